"""Statistics and a strength that fit each other: what every result is made from, or made anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kvwstream.accessor import LayerRange, gates, log_gates, sites_within
from kvwstream.checkpoint import Checkpoint, match_tensors
from kvwstream.coefficients import Float64
from kvwstream.errors import OptionError, PlanMismatchError
from kvwstream.plan import ARITHMETICS, Progressive, Site
from kvwstream.rounding import ITEMSIZE, encode
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength
from kvwstream.weakening import Exact, InPlace, Scaling

WARNING = (
    "made from a progressive collection at another strength than its own: the coefficients of its "
    "forget records were measured on a model weakened otherwise"
)
BUDGET = 128 << 20
"""Bytes of gates that the in-place arithmetic holds at a time; one site's at least."""


@dataclass(frozen=True)
class Recipe:
    """Gates of the sites within the layers. `OptionError` where the strength does not fit."""

    stored: Statistics
    strength: Strength
    arithmetic: str = "exact"
    as_frozen: bool = False
    """Take a progressive collection for a frozen one: its C_f belong to another strength."""

    def __post_init__(self) -> None:
        if self.arithmetic not in ARITHMETICS:
            raise OptionError(
                f"arithmetic must be one of {', '.join(ARITHMETICS)}, got {self.arithmetic}"
            )
        self.stored.require_forget()
        self.strength.check_fits(self.stored)
        sites_within(self.stored.sites, self.strength.layers)
        self._check_progressive()

    def _check_progressive(self) -> None:
        """`OptionError` unless the strength is that of a progressive collection."""
        how = self._collected
        if how is None and self.as_frozen:
            raise OptionError(f"{self.stored.location.url}: is frozen, leave --as-frozen out")
        if how and not self._is_own and not self.as_frozen:
            raise OptionError(
                f"{self.stored.location.url}: was collected progressively with gamma "
                f"{how.gamma:g}, layers {how.layers}, {how.arithmetic} arithmetic and the paper's "
                "accessor; its C_f belong to these. Collect anew for others, or `apply` with "
                "--as-frozen"
            )

    @cached_property
    def _collected(self) -> Progressive | None:
        values = self.stored.attributes["progressive"]
        return Progressive(**values) if values else None

    @cached_property
    def _is_own(self) -> bool:
        """Whether a progressive collection is replayed as it went."""
        how = self._collected
        if how is None:
            return False
        own = Strength(how.gamma, LayerRange.parse(how.layers), until=self.strength.until)
        return self.strength == own and self.arithmetic == how.arithmetic

    @cached_property
    def sites(self) -> list[Site]:
        """The value projections within the layers."""
        return sites_within(self.stored.sites, self.strength.layers)

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            **self.strength.to_dict(),
            "schedule": self.stored.attributes["model"]["schedule"],
            "arithmetic": self.arithmetic,
            "as_frozen": self.as_frozen,
            "warning": WARNING if self.as_frozen and not self._is_own else None,
            "num_forget_records": self.strength.num_records(self.stored),
        }

    def log_gates(self) -> dict[str, Float64]:
        """-gamma * S of each site, by module path."""
        total = self.strength.exponent(self.stored)
        return {s.path: log_gates(total[s.vectors], self.strength.gamma) for s in self.sites}

    def sites_in(self, base: Checkpoint) -> list[Site]:
        """The sites, `tensor` named as in `base`; `PlanMismatchError` if it is another model."""
        missing = [s.tensor for s in self.stored.sites if s.tensor not in base.tensors]
        if missing:
            raise PlanMismatchError(
                f"{base.folder}: has no tensor {missing[0]}; {self.stored.location.url} was "
                "measured on another model"
            )
        matched = match_tensors(self.stored.sites, base)
        return [site for site in matched if site.layer in self.strength.layers]

    def scalings(self, base: Checkpoint, first: int = 0) -> Iterator[dict[str, Scaling]]:
        """What each tensor of `base` is multiplied by, in batches that bound the memory.

        With in-place arithmetic from record `first` on.
        """
        sites = self.sites_in(base)
        if self.arithmetic == "exact":
            total = self.strength.exponent(self.stored)
            gamma = self.strength.gamma
            yield {s.tensor: Exact(s.axis, gates(total[s.vectors], gamma)) for s in sites}
            return
        records = self.strength.num_rows(self.stored) - first
        batch: list[Site] = []
        size = 0
        for site in sites:
            needed = records * site.width * ITEMSIZE[base.tensors[site.tensor].dtype]
            if batch and size + needed > BUDGET:
                yield self._steps(batch, base, first, records)
                batch, size = [], 0
            batch.append(site)
            size += needed
        yield self._steps(batch, base, first, records)

    def _steps(
        self, sites: list[Site], base: Checkpoint, first: int, records: int
    ) -> dict[str, Scaling]:
        """Each record's gate, rounded once to the dtype of the weight; one pass over the rows."""
        dtypes = [base.tensors[site.tensor].dtype for site in sites]
        steps = [
            np.empty((records, site.width), encode(np.empty(0), dtype).dtype)
            for site, dtype in zip(sites, dtypes, strict=True)
        ]
        for record, row in enumerate(self.strength.rows(self.stored), start=-first):
            if record < 0:
                continue
            for site, dtype, values in zip(sites, dtypes, steps, strict=True):
                values[record] = encode(gates(row[site.vectors], self.strength.gamma), dtype)
        return {s.tensor: InPlace(s.axis, g) for s, g in zip(sites, steps, strict=True)}


def collected_arithmetic(stored: Statistics) -> str:
    """That of a progressive collection; exact for a frozen one."""
    how = stored.attributes["progressive"]
    return str(how["arithmetic"]) if how else "exact"


def check_base(stored: Statistics, digest: str, model: Path) -> None:
    """`PlanMismatchError` unless `digest` is that of the weights that were measured."""
    if digest != stored.model_digest:
        raise PlanMismatchError(
            f"{stored.location.url}: measured on weights {stored.model_digest[:12]}…, but {model} "
            f"has {digest[:12]}…; statistics fit the very weights they were measured on"
        )
