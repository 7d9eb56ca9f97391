"""Stores of made-up sums, for what does not need a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.measuring import seconds
from kvwstream.passes import in_order
from kvwstream.plan import CollectPlan, Site
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.environment import claim
from kvwstream.stores.location import Location
from kvwstream.stores.sealed_part import PartData
from kvwstream.stores.tables import ExampleTable, sites_digest

TOKENS = 640  # per example: 576 of a picture, 64 of text, as in LLaVA-1.5
POSITIONS = 20
ENVIRONMENT = {"device": "none"}


def make_store(
    folder: Path,
    sites: Sequence[Site],
    records: int,
    *,
    first: int = 0,
    part_size: int = 64,
    model_digest: str = "0" * 64,
) -> list[float]:
    """A complete store, its examples numbered from `first`; seconds to write each part."""
    names = [f"{first + number:064x}" for number in range(records)]
    lengths = (np.full(records, number) for number in (TOKENS, TOKENS - POSITIONS, POSITIONS))
    table = ExampleTable(names, names, *lengths, *in_order(records, 1).columns)
    width = sum(site.width for site in sites)
    plan = CollectPlan(
        model_digest, *("0" * 64,) * 2, sites_digest(sites), table.digest, table.arrangement,
        records, len(sites), width, seed=0, batch_size=1, part_size=part_size, tokens="answer",
        moments=("abs",), dtype="bfloat16", attention="sdpa", threads=1,
        pass_tokens=2048, sharing=True,
    )  # fmt: skip
    store = CollectStore.create(Location(str(folder)), plan, list(sites), table)
    claim(store.location, ENVIRONMENT)
    rng, spent = np.random.default_rng(first), []
    for part in plan.parts:
        sums = np.abs(rng.standard_normal((part.num_records, width), np.float32))
        data = PartData(part, {"abs": sums}, np.full((part.num_records, len(sites)), POSITIONS))
        spent.append(seconds(partial(store.write_part, data, ENVIRONMENT)))
    return spent
