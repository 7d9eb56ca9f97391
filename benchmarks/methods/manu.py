"""MANU (Liu et al., ACL 2025): prune neurons that matter more to the forget than to the retain set.

Four importance scores of a neuron over a data set, from the sums that
`collect --moments abs,signed,square` stored; z is its activation, here the coefficient of a
knowledge vector at answer positions:

    I_abs = E|z|                        I_freq = how often it is active
    I_var = sqrt(E z^2 - (E z)^2)       I_rms = sqrt(E z^2)

A neuron's score is the sum over the four of I(forget) / (I(retain) + eps) - 1, and the best-scored
share alpha of all neurons is set to zero. Sums hold no count of single positions above a threshold,
so that I_freq is the share of records in which the mean |z| exceeds the retain set's. The authors'
code looks at the last three layers only; here alpha and the layers are chosen by the same search as
every method's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvwstream.accessor import LayerRange
from kvwstream.coefficients import Float64, token_mean
from kvwstream.plan import Site
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location

MOMENTS = ("abs", "signed", "square")
EPSILON = 1e-5


@dataclass(frozen=True)
class Sums:
    """Token means of the three moments over a store, and its records, one part in memory."""

    store: CollectStore
    means: dict[str, Float64]
    """Per moment (vector,)."""

    @classmethod
    def read(cls, url: str) -> Sums:
        """Of a complete store that holds the three moments."""
        store = CollectStore.open(Location(url))
        store.require_sealed()
        sums = {moment: np.zeros(store.plan.num_vectors) for moment in MOMENTS}
        counts = np.zeros(len(store.sites), np.int64)
        for part in map(store.read_records, range(store.num_parts)):
            counts += part.counts.sum(axis=0)
            for moment, total in sums.items():
                total += part.sums[moment].sum(axis=0, dtype=np.float64)
        means = {m: token_mean(total, counts, store.widths) for m, total in sums.items()}
        return cls(store, means)

    def share_above(self, bound: Float64) -> Float64:
        """(vector,) the share of records whose mean |z| exceeds `bound`."""
        above = np.zeros(bound.shape, np.int64)
        for part in map(self.store.read_records, range(self.store.num_parts)):
            means = token_mean(part.sums["abs"], part.counts, self.store.widths)
            above += (means > bound).sum(axis=0)
        return above / self.store.num_records

    @cached_property
    def deviation(self) -> Float64:
        """I_var (vector,); rounding can leave a variance of nothing slightly negative."""
        variance = self.means["square"] - np.square(self.means["signed"])
        return np.sqrt(np.maximum(variance, 0.0))


def importances(sums: Sums, retain: Sums) -> dict[str, Float64]:
    """The four scores (vector,) of the data behind `sums`."""
    return {
        "abs": sums.means["abs"],
        "freq": sums.share_above(retain.means["abs"]),
        "var": sums.deviation,
        "rms": np.sqrt(sums.means["square"]),
    }


def score(forget: Sums, retain: Sums) -> Float64:
    """What neurons are ranked by (vector,)."""
    ours, theirs = importances(forget, retain), importances(retain, retain)
    total = np.zeros_like(ours["abs"])
    for name, importance in ours.items():
        total += importance / (theirs[name] + EPSILON) - 1
    return total


def gates(sites: list[Site], scores: Float64, share: float, layers: LayerRange) -> Float64:
    """(vector,) 0 for the best-scored `share` of the vectors within `layers`, else 1."""
    inside = np.zeros(scores.shape, bool)
    for site in sites:
        inside[site.vectors] = site.layer in layers
    count = round(share * int(inside.sum()))
    ranked = np.argsort(np.where(inside, -scores, np.inf), kind="stable")
    values = np.ones_like(scores)
    values[ranked[:count]] = 0.0
    return values
