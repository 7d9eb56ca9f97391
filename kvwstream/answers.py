"""A conversation as tensors, with the positions that predict its answer.

The answer is found by processing the prompt and the prompt plus the answer and checking that the
first is a prefix of the second (never by searching for the answer). The end of turn is not fed:
what would follow the answer cannot change what came before it in a causal model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from transformers import PretrainedConfig

from kvwstream.batches import Batch, batch_behind, side_by_side, whole_batch
from kvwstream.errors import DataError
from kvwstream.examples import Example
from kvwstream.passes import IMAGE, Reading
from kvwstream.pixels import Pictures, RememberedPixels
from kvwstream.rendering import Rendered, naming, render_by_template


class Span(NamedTuple):
    """Lengths in tokens: the prompt, the prompt with the answer, and the image tokens in it."""

    prompt: int
    total: int
    image: int = 0
    """Image tokens that can be predicted: those behind the first position."""

    def num_positions(self, rule: str) -> int:
        """How many positions count under a token rule of the plan."""
        counts = {
            "answer": self.total - self.prompt,
            "question": self.prompt - 1 - self.image,
            "image": self.image,
            "all": self.total - 1,
        }
        return counts[rule]


class AnswerEncoder:
    """Renders, tokenises and batches examples for one model, with their images if it takes any."""

    def __init__(self, processor: Any, config: PretrainedConfig) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.multimodal = processor is not self.tokenizer
        self.template = getattr(processor, "chat_template", None)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        text = config.get_text_config(decoder=True)
        limit = getattr(text, "max_position_embeddings", None)
        self.max_length = min(limit or 2**31, self.tokenizer.model_max_length)
        self.image_ids = {getattr(config, "image_token_id", None)} - {None}
        self.takes_suffix = self.multimodal and not self.template
        """A processor without a chat template takes the answer apart, as PaliGemma's does: only
        then its attention, which is bidirectional within the prompt, is causal in the answer."""
        inner = getattr(processor, "image_processor", None)
        if inner is not None and not isinstance(inner, RememberedPixels):  # of another encoder
            processor.image_processor = RememberedPixels(inner)
        self._pictures = Pictures()
        self.rows_interact = bool(getattr(text, "cross_attention_layers", None))
        """Whether a row's numbers depend on how many images its neighbours in a batch have."""

    def render(self, example: Example) -> Rendered:
        """Prompt and answer as text.

        With the model's chat template where it has one, thinking switched off; without,
        `Question: ...` newline `Answer: ...`. `DataError` if the template does not put the answer
        right behind the prompt, white space apart.
        """
        if self.template:
            return render_by_template(self.processor, example, with_images=self.multimodal)
        if len(example.messages) != 2:
            raise DataError(
                f"{example.id}: the model has no chat template, so only one question with one "
                f"answer can be rendered, got {len(example.messages)} messages"
            )
        content = example.messages[0]["content"]
        if not self.takes_suffix:
            return Rendered(f"Question: {content}\nAnswer:", f" {example.answer.strip()}")
        if not example.images:
            raise DataError(f"{example.id}: has no image, and this model's processor needs one")
        question = content if isinstance(content, str) else content[-1]["text"]
        images = self.tokenizer.decode([*self.image_ids]) * len(example.images)
        return Rendered(images + question, example.answer.strip())

    def locate(self, example: Example) -> Span:
        """Where the answer lies; raises as `read` does."""
        return self.read(example)[0]

    def read(self, example: Example) -> tuple[Span, list[int]]:
        """Where the answer lies, and the tokens. Raises `DataError` naming the example.

        Checked: the prompt's tokens are a prefix, something follows, it decodes to the answer, it
        holds no padding, image or other special token, nothing is beyond the model's maximum
        length.
        """
        rendered, images = self.render(example), self._images(example)
        with naming(example.id, "the processor refuses the conversation"):
            prompt = self._process([rendered.prompt], None, [images])["input_ids"][0].tolist()
            total = self._ids(rendered, images)
        if total[: len(prompt)] != prompt:
            at = next((i for i, (a, b) in enumerate(zip(prompt, total, strict=False)) if a != b), 0)
            raise DataError(
                f"{example.id}: the prompt's tokens are not a prefix of prompt plus answer (they "
                f"part at token {at} of {len(prompt)}); the answer's positions cannot be told"
            )
        answer = total[len(prompt) :]
        decoded = self.tokenizer.decode(answer, clean_up_tokenization_spaces=False)
        if not answer or "".join(decoded.split()) != "".join(example.answer.split()):
            raise DataError(
                f"{example.id}: the tokens behind the prompt read {decoded!r}, "
                f"not the answer {example.answer!r}"
            )
        special = sorted(set(answer) & {*self.tokenizer.all_special_ids, *self.image_ids})
        if special:
            names = self.tokenizer.convert_ids_to_tokens(special)
            raise DataError(f"{example.id}: the answer holds the special tokens {names}")
        if len(total) > self.max_length:
            raise DataError(
                f"{example.id}: {len(total)} tokens, more than the model's maximum length of "
                f"{self.max_length}: the answer would be cut off; shorten or remove the example"
            )
        image = sum(token in self.image_ids for token in prompt[1:])
        return Span(len(prompt), len(total), image), total

    def reading(self, example: Example, span: Span, ids: Sequence[int], rule: str) -> Reading:
        """What decides which examples can share a prefix; `span` and `ids` are from `read`."""
        tokens = np.array(ids[:-1], np.uint32)
        images = "".join(example.image_digests)
        is_image = [token in self.image_ids for token in ids[:-1]]
        places = np.flatnonzero(is_image) if images else np.empty(0, np.int64)
        first, bare = self.positions(ids, span, rule)[0], 0
        if len(places):
            bare = int(places[-1]) + 1
            tokens[places] = IMAGE
        elif images:  # where they enter cannot be told
            first = 0
        return Reading(tokens, first, bare, images)

    def positions(self, ids: Sequence[int], span: Span, rule: str) -> list[int]:
        """Positions t that count, by what token t + 1 is.

        `answer`: part of the answer; `image`: an image token of the prompt; `question`: any other
        token of the prompt; `all`: anything.
        """
        if rule in ("question", "image"):
            wanted = rule == "image"
            tokens = range(1, span.prompt)
            return [t - 1 for t in tokens if (ids[t] in self.image_ids) == wanted]
        return list(range(span.prompt - 1 if rule == "answer" else 0, span.total - 1))

    def token_ids(self, example: Example) -> list[int]:
        """Tokens of prompt plus answer."""
        return self._ids(self.render(example), self._images(example))

    def batch(
        self,
        examples: Sequence[Example],
        spans: Sequence[Span],
        rule: str,
        prefix: int = 0,
        groups: Sequence[int] = (),
    ) -> Batch:
        """Examples as one right-padded batch; `spans` are theirs, from `locate`.

        The first `prefix` tokens are common to all examples of one of `groups` (a number for each
        example), and so are the images if there are any.
        """
        rendered = [self.render(example) for example in examples]
        images = [self._images(example) for example in examples]
        if prefix:
            return self._batch_behind(rendered, images, spans, rule, prefix, groups)
        prompts, answers = ([r[part] for r in rendered] for part in (0, 1))
        inputs = self._process(prompts, answers, images)
        ids = inputs["input_ids"].tolist()
        lengths = [n - self.takes_suffix for n in inputs["attention_mask"].sum(dim=1).tolist()]
        assert lengths == [span.total for span in spans], "spans of other examples"
        positions = [self.positions(*pair, rule) for pair in zip(ids, spans, strict=True)]
        return whole_batch(inputs, ids, positions, max(lengths) - 1)

    def _batch_behind(
        self,
        rendered: Sequence[Rendered],
        images: Sequence[list[Any]],
        spans: Sequence[Span],
        rule: str,
        prefix: int,
        groups: Sequence[int],
    ) -> Batch:
        # Round by round with the same images, so that their pixels are made once.
        rounds = side_by_side(groups)
        firsts = rounds[0]
        processed = [
            self._process(
                [rendered[place].prompt for place in places],
                [rendered[place].answer for place in places],
                [images[first] for first in firsts],
            )
            for places in rounds
        ]
        ids: dict[int, list[int]] = {}
        for places, inputs in zip(rounds, processed, strict=True):
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
            for place, line, length in zip(places, inputs["input_ids"], lengths, strict=True):
                ids[place] = line[:length].tolist()
        lines = [ids[place] for place in range(len(groups))]
        assert [len(line) for line in lines] == [span.total for span in spans], "other spans"
        numbers = {groups[first]: number for number, first in enumerate(firsts)}
        row_of = [numbers[group] for group in groups]
        for line, row in zip(lines, row_of, strict=True):
            assert line[:prefix] == lines[firsts[row]][:prefix], "another prefix"
        positions = [self.positions(*pair, rule) for pair in zip(lines, spans, strict=True)]
        return batch_behind(processed[0], row_of, prefix, lines, positions)

    def prompts(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Prompts as one left-padded batch, for generation."""
        texts = [self.render(example).prompt for example in examples]
        images = [self._images(example) for example in examples]
        names = ", ".join(example.id for example in examples)
        with naming(names, "the processor refuses a conversation"):
            inputs = self._process(texts, None, images, side="left")
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        for example, length in zip(examples, lengths, strict=True):
            if length >= self.max_length:
                raise DataError(
                    f"{example.id}: a question of {length} tokens leaves no room for an answer "
                    f"within the model's maximum length of {self.max_length}"
                )
        return inputs

    def _images(self, example: Example) -> list[Any]:
        if example.images and not self.multimodal:
            raise DataError(f"{example.id}: has an image, but the model takes text only")
        return self._pictures.of(example)

    def _ids(self, rendered: Rendered, images: list[Any]) -> list[int]:
        inputs = self._process([rendered.prompt], [rendered.answer], [images])
        ids: list[int] = inputs["input_ids"][0].tolist()
        return ids[:-1] if self.takes_suffix else ids  # a suffix comes with an end of text

    def _process(
        self,
        prompts: list[str],
        answers: list[str] | None,
        images: list[list[Any]],
        side: str = "right",
    ) -> dict[str, Tensor]:
        """Tokens and pixels of prompts, each with its answer if `answers` are given."""
        options: dict[str, Any] = {"padding": True, "padding_side": side, "return_tensors": "pt"}
        texts = prompts
        if answers is not None:
            if self.takes_suffix:
                options["suffix"] = answers
            else:
                texts = [p + a for p, a in zip(prompts, answers, strict=True)]
        begin = self.tokenizer.bos_token
        options["add_special_tokens"] = not (begin and texts[0].startswith(begin))
        if self.multimodal:  # nested lists are what every processor takes; of nothing, none
            shown = images if any(images) else None
            inputs = dict(self.processor(text=texts, images=shown, **options))
        else:
            inputs = dict(self.tokenizer(texts, verbose=False, **options))
        inputs.pop("labels", None)
        return inputs
