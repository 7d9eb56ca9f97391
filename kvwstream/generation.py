"""Greedy answers to many questions: batches of like length, left-padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from kvwstream.answers import AnswerEncoder
from kvwstream.collector import module_inputs
from kvwstream.examples import Example
from kvwstream.models import LoadedModel, inference


def generate_answers(
    loaded: LoadedModel,
    encoder: AnswerEncoder,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 50,
    advance: Callable[[int], None] | None = None,
) -> list[str]:
    """The responses of a loaded model to `examples`, in their order.

    Plain greedy decoding, at most `max_new_tokens` long: the model's own generation settings
    (repetition penalty, ...) are put aside. `advance` is told of the examples of each batch as it
    is finished. Raises what `AnswerEncoder.prompts` does.
    """
    responses = [""] * len(examples)
    for batch in length_batches(encoder, examples, batch_size):
        chosen = [examples[index] for index in batch]
        answers = answer_batch(loaded, encoder, chosen, max_new_tokens)
        for index, response in zip(batch, answers, strict=True):
            responses[index] = response
        if advance:
            advance(len(batch))
    return responses


def length_batches(
    encoder: AnswerEncoder, examples: Sequence[Example], batch_size: int
) -> list[list[int]]:
    """Indices of `examples` in batches of like length, the longest first.

    By the number of images, then by the tokens of the prompt's text. They are what decides the
    padding, and with it the last bits of a response, so a run that goes on keeps to them. One by
    one for families whose rows interact.
    """
    if encoder.rows_interact:
        batch_size = 1
    lengths = [
        (len(example.images), len(encoder.tokenizer(encoder.render(example).prompt).input_ids))
        for example in examples
    ]
    order = sorted(range(len(examples)), key=lambda index: lengths[index], reverse=True)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_batch(
    loaded: LoadedModel, encoder: AnswerEncoder, examples: Sequence[Example], max_new_tokens: int
) -> list[str]:
    """The responses to one batch, as decoded; special tokens are left out."""
    own = loaded.model.generation_config
    ends = encoder.tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=encoder.tokenizer.pad_token_id,
    )
    inputs = {k: v.to(loaded.device) for k, v in encoder.prompts(examples).items()}
    with (
        inference(loaded.model),
        _generation_by(loaded.model, greedy),
        module_inputs([loaded.model.get_output_embeddings()], _made_whole),
    ):
        tokens = loaded.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    responses: list[str] = encoder.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return responses


def _made_whole(number: int, hidden: Tensor) -> Tensor:
    """The last position is a strided slice of a prompt's rows.

    A CPU multiplies such a slice with a copy of the vocabulary matrix for each row.
    """
    return hidden.contiguous()


@contextmanager
def _generation_by(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Generate by `config` alone: the model's own (repetition penalty, ...) would fill its gaps."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own
