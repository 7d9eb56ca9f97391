"""The keys and values of prefixes, computed once and read by every row behind them.

Examples that begin with the same tokens and images have the same keys and values there, in a
decoder that looks back only. A pass over the rows behind reads them and keeps nothing of its own.
Keys are kept whole, so a sliding window is the mask's matter and needs no care here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from kvwstream.errors import ModelError


class _PrefixLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer: takes keys and values in once, then shows them before those of every pass."""

    is_sliding = False
    row_of: Tensor | None = None
    """(row,) the prefix that each row of the pass follows."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The first pass over the layer is the prefixes'."""
        self.keys, self.values, self.is_initialized = key_states, value_states, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (row, head, prefix and new tokens, channel)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        assert self.row_of is not None
        return (
            _behind(self.keys, key_states, self.row_of),
            _behind(self.values, value_states, self.row_of),
        )

    def get_seq_length(self) -> int:
        """Tokens of a prefix."""
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All keys, from the first token on."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


def _behind(prefixes: Tensor | None, new: Tensor, row_of: Tensor) -> Tensor:
    assert prefixes is not None
    if len(prefixes) == 1:
        before = prefixes.expand(new.shape[0], -1, -1, -1)
    else:
        before = prefixes.index_select(0, row_of.to(prefixes.device, non_blocking=True))
    return torch.cat([before, new], dim=-2)


class PrefixCache(Cache):  # type: ignore[misc]
    """What a model's forward takes as `past_key_values`, for prefixes and for what is behind.

    Prefixes are rows of one pass, equally long, so that nothing is padded between them and tails.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_PrefixLayer)
        self._rope_deltas: Tensor | None = None

    def follow(self, row_of: Tensor) -> None:
        """What comes next: a row for each of `row_of`, behind the prefix of that number."""
        for layer in self.layers:
            layer.row_of = row_of

    @contextmanager
    def noting_positions(self, model: PreTrainedModel, num_prefixes: int) -> Iterator[None]:
        """While the prefixes run: keep by how much images hold their positions back.

        Rotary positions with three axes advance by less than an image's tokens. The model keeps the
        difference in `rope_deltas`, for the last input with images, whatever runs next; so it is
        cleared before the prefixes and read right behind them.
        """
        inner = getattr(model, "model", model)
        if not hasattr(inner, "rope_deltas"):
            yield
            return
        inner.rope_deltas = None
        yield
        found = inner.rope_deltas
        if found is None:
            found = torch.zeros(num_prefixes, dtype=torch.long, device=model.device)
        self._rope_deltas = found.reshape(-1)

    def positions_behind(self, row_of: Tensor, tokens: int) -> Tensor | None:
        """Position ids (3, row, token) behind the prefix where rotary positions have three axes.

        Such a model takes the mask of prefix and tail for that of the tail alone, so the positions
        are given. None for every other model, which counts on by itself.
        """
        if self._rope_deltas is None:
            return None
        starts: Tensor = (
            self.get_seq_length() + self._rope_deltas[row_of.to(self._rope_deltas.device)]
        )
        line = torch.arange(tokens, device=starts.device)
        return (starts[:, None] + line).expand(3, -1, -1)


def why_not_shared(config: PretrainedConfig, *, takes_suffix: bool) -> str | None:
    """Why a prefix's keys and values cannot serve several examples; None where they can."""
    text = config.get_text_config(decoder=True)
    if getattr(text, "cross_attention_layers", None):
        return "its text attends to images in layers of their own (cross-attention)"
    if takes_suffix:
        return "it reads a prompt in both directions, so the beginning depends on what follows"
    return None


def check_whole(cache: PrefixCache, num_layers: int) -> None:
    """`ModelError` unless every decoder layer up to the last site kept its keys in the cache."""
    kept = sum(layer.is_initialized for layer in cache.layers)
    if kept < num_layers:
        raise ModelError(
            f"the model kept keys and values of {kept} of {num_layers} decoder layers; prefixes "
            "cannot be shared, collect with --no-sharing"
        )
