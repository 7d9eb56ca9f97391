"""A conversation as tensors, with the positions that predict its answer.

The answer is found by processing the prompt and the prompt plus the answer and checking that the
first is a prefix of the second (never by searching for the answer). The end of turn is not fed:
what would follow the answer cannot change what came before it in a causal model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from kvwstream.errors import DataError
from kvwstream.examples import Example


class Span(NamedTuple):
    """Lengths in tokens: the prompt, and the prompt with the answer."""

    prompt: int
    total: int

    def positions(self, rule: str) -> range:
        """Positions t that count: t + 1 is an answer token (`answer`), or any token (`all`)."""
        return range(self.prompt - 1 if rule == "answer" else 0, self.total - 1)


@dataclass(frozen=True)
class Batch:
    """One record as model input."""

    inputs: dict[str, Tensor]
    """What the model's forward takes, right-padded to (example, token)."""
    rows: Tensor
    """(row,) indices of the positions that count, in the flattened (example * token) axis."""
    counts: list[int]
    """Number of those positions per example, in order."""

    @property
    def num_positions(self) -> int:
        """Number of positions that the model runs, padding included."""
        return self.inputs["input_ids"].numel()

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return Batch(inputs, self.rows.to(device, non_blocking=True), self.counts)


class AnswerEncoder:
    """Renders, tokenises and batches examples for one model."""

    def __init__(self, processor: Any, config: PretrainedConfig) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        text = config.get_text_config(decoder=True)
        limit = getattr(text, "max_position_embeddings", None)
        self.max_length = min(limit or 2**31, self.tokenizer.model_max_length)

    def render(self, example: Example) -> tuple[str, str]:
        """The prompt's text and the text of prompt plus answer.

        With the model's chat template where it has one, thinking switched off; else as
        `Question: ...` newline `Answer: ...`. `DataError` if the template does not put the answer
        right behind the prompt.
        """
        if getattr(self.processor, "chat_template", None):
            options = {"tokenize": False, "enable_thinking": False}
            template = self.processor.apply_chat_template
            prompt = template(list(example.prompt), add_generation_prompt=True, **options)
            whole = template(list(example.messages), **options)
            for answer in (example.answer, example.answer.strip()):
                if whole.startswith(prompt + answer):
                    return prompt, prompt + answer
            raise DataError(
                f"{example.id}: the chat template does not put the answer behind the prompt: "
                f"expected {prompt[-40:] + example.answer[:40]!r}, got {whole[-120:]!r}"
            )
        if len(example.messages) != 2:
            raise DataError(
                f"{example.id}: the model has no chat template, so only one question with one "
                f"answer can be rendered, got {len(example.messages)} messages"
            )
        prompt = f"Question: {example.messages[0]['content']}\nAnswer:"
        return prompt, f"{prompt} {example.answer.strip()}"

    def locate(self, example: Example) -> Span:
        """Where the answer lies. Raises `DataError` naming the example.

        Checked: the prompt's tokens are a prefix, something follows, it decodes to the answer, it
        holds no padding or other special token, nothing is beyond the model's maximum length.
        """
        texts = self.render(example)
        prompt, total = (self._process([text])["input_ids"][0].tolist() for text in texts)
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
        special = sorted(set(answer) & set(self.tokenizer.all_special_ids))
        if special:
            names = self.tokenizer.convert_ids_to_tokens(special)
            raise DataError(f"{example.id}: the answer holds the special tokens {names}")
        if len(total) > self.max_length:
            raise DataError(
                f"{example.id}: {len(total)} tokens, more than the model's maximum length of "
                f"{self.max_length}: the answer would be cut off; shorten or remove the example"
            )
        return Span(len(prompt), len(total))

    def token_ids(self, example: Example) -> list[int]:
        """Tokens of prompt plus answer."""
        return list(self._process([self.render(example)[1]])["input_ids"][0].tolist())

    def batch(self, examples: Sequence[Example], spans: Sequence[Span], rule: str) -> Batch:
        """Examples as one right-padded batch; `spans` are theirs, from `locate`."""
        inputs = self._process([self.render(example)[1] for example in examples])
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        assert lengths == [span.total for span in spans], "spans of other examples"
        width = inputs["input_ids"].shape[1]
        positions = [span.positions(rule) for span in spans]
        rows = [
            number * width + position
            for number, positions_ in enumerate(positions)
            for position in positions_
        ]
        return Batch(inputs, torch.tensor(rows), [len(p) for p in positions])

    def prompts(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Prompts as one left-padded batch, for generation."""
        return self._process([self.render(example)[0] for example in examples], side="left")

    def _process(self, texts: list[str], side: str = "right") -> dict[str, Tensor]:
        special = not getattr(self.processor, "chat_template", None)
        return dict(
            self.tokenizer(
                texts,
                padding=True,
                padding_side=side,
                return_tensors="pt",
                add_special_tokens=special,  # a chat template has written its own
                verbose=False,
            )
        )
