"""What a forward pass is given: rows of tokens, and the prefixes that they follow, if any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Inputs = dict[str, Tensor]
PER_TOKEN = ("input_ids", "attention_mask", "cross_attention_mask")
"""Inputs (example, token, ...), beside those whose name ends in `token_type_ids`."""


@dataclass(frozen=True)
class Prefix:
    """Tokens and images with which the rows of a batch begin, as a batch of their own."""

    inputs: Inputs
    """(prefix, token), all of one length: nothing is padded."""
    length: int
    """In tokens."""
    row_of: Tensor
    """(row,) the prefix that each row of the batch follows."""

    def to(self, device: torch.device) -> Prefix:
        """The same prefixes on another device, the rows left where they are."""
        return replace(self, inputs=_moved(self.inputs, device))


@dataclass(frozen=True)
class Batch:
    """Examples as model input, up to the last token that predicts."""

    inputs: Inputs
    """What the model's forward takes, right-padded to (example, token). Behind a prefix tokens are
    those of the tails; the attention mask covers the prefix, too."""
    rows: Tensor
    """(row,) indices of the positions that count, in the flattened (example * token) axis."""
    targets: Tensor
    """(row,) the tokens that they predict."""
    counts: list[int]
    """Number of those positions per example, in order."""
    prefix: Prefix | None = None

    @property
    def num_positions(self) -> int:
        """Number of positions that the model runs behind the prefix, padding included."""
        return self.inputs["input_ids"].numel()

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; the inputs of its prefixes stay where they are."""
        return replace(
            self,
            inputs=_moved(self.inputs, device),
            rows=self.rows.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
            prefix=self.prefix
            and replace(self.prefix, row_of=self.prefix.row_of.to(device, non_blocking=True)),
        )


Lines = Sequence[Sequence[int]]
"""Per example: tokens, or positions that count."""


def whole_batch(inputs: Inputs, ids: Lines, positions: Lines, stop: int) -> Batch:
    """Rows without prefix, of the tokens `ids`; nothing at or behind `stop` runs."""
    return _batch(_until(inputs, stop), ids, positions, None)


def side_by_side(groups: Sequence[int]) -> list[list[int]]:
    """Places of the first example of each group, of the second of each, and so on.

    A group that has no more shows its first again. Groups are in the order of their first examples.
    """
    members: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    return [
        [own[turn] if turn < len(own) else own[0] for own in members.values()]
        for turn in range(max(map(len, members.values())))
    ]


def batch_behind(
    firsts: Inputs, row_of: Sequence[int], length: int, ids: Lines, positions: Lines
) -> Batch:
    """Rows whose first `length` tokens are those of the row `row_of` of `firsts`."""
    tails = [torch.tensor(line[length:-1]) for line in ids]
    mask = [torch.ones(len(line) - 1, dtype=torch.long) for line in ids]
    inputs = {
        "input_ids": pad_sequence(tails, batch_first=True),
        "attention_mask": pad_sequence(mask, batch_first=True),
    }
    prefix = Prefix(_until(firsts, length), length, torch.tensor(row_of))
    return _batch(inputs, ids, positions, prefix)


def _batch(inputs: Inputs, ids: Lines, positions: Lines, prefix: Prefix | None) -> Batch:
    width, start = inputs["input_ids"].shape[1], prefix.length if prefix else 0
    rows = [n * width + place - start for n, line in enumerate(positions) for place in line]
    targets = [ids[n][place + 1] for n, line in enumerate(positions) for place in line]
    counts = [len(line) for line in positions]
    return Batch(inputs, torch.tensor(rows), torch.tensor(targets), counts, prefix)


def _until(inputs: Inputs, stop: int) -> Inputs:
    return {
        name: value[:, :stop] if name in PER_TOKEN or name.endswith("token_type_ids") else value
        for name, value in inputs.items()
    }


def _moved(inputs: Inputs, device: torch.device) -> Inputs:
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
