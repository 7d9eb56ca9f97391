"""Which stores may be reduced together, and what statistics say of where they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from kvwstream.canonical import differences
from kvwstream.errors import DataError, OptionError, PlanMismatchError
from kvwstream.plan import STATISTIC_FIELDS, CollectPlan
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.statistics import Statistics

COMMON_FIELDS = [field for field in STATISTIC_FIELDS if field != "schedule"]
"""Retain data are always measured on the base model, forget data perhaps on a weakened one."""


def check_compatible(stores: Sequence[CollectStore]) -> None:
    """`PlanMismatchError` unless all measure the same, `DataError` if two share an example.

    Withdrawn examples do not count; a store of which nothing is left is refused.
    """
    first = stores[0]
    if "abs" not in first.plan.moments:
        raise OptionError(f"{first.location.url}: has no abs moment, which the accessor needs")
    owners: dict[str, tuple[CollectStore, str]] = {}
    for store in stores:
        differences = first.plan.differences(store.plan, COMMON_FIELDS)
        if differences:
            raise PlanMismatchError(
                f"{first.location.url} and {store.location.url} do not belong together:\n  "
                + "\n  ".join(differences)
            )
        if not len(store.records):
            raise DataError(f"{store.location.url}: every example is withdrawn, nothing is left")
        shared, removed = [], set(store.revision.removed)
        for position, digest in enumerate(store.examples.digests):
            if position in removed:
                continue
            name = store.examples.ids[position]
            owner = owners.setdefault(digest, (store, name))
            if owner[0] is not store:
                shared.append(f"{owner[1]} = {name}")
        if shared:
            raise DataError(
                f"{store.location.url}: {len(shared)} examples stand in an earlier store too "
                f"({', '.join(shared[:5])}{', …' if len(shared) > 5 else ''}); an example counts "
                "once, and is either to retain or to forget"
            )


def check_measured_alike(stored: Statistics, plan: CollectPlan) -> None:
    """`PlanMismatchError` unless C_r was measured as the stores of `plan` are."""
    wrong = differences(stored.attributes["model"], plan.to_dict(), COMMON_FIELDS)
    if wrong:
        raise PlanMismatchError(
            f"{stored.location.url}: does not belong to this model or these options:\n  "
            + "\n  ".join(wrong)
        )


def check_unseen(
    stored: Statistics, plan: CollectPlan, roles: Sequence[str] = ("retain", "forget")
) -> None:
    """`DataError` if the examples of `plan` are those of a store that `stored` was made from.

    Of stores in the `roles` alone.

    Statistics do not hold the digests of single examples, so of sets that overlap nothing is seen.
    """
    for source in stored.attributes["sources"]:
        if source["role"] in roles and source["plan"]["data_digest"] == plan.data_digest:
            raise DataError(
                f"{stored.location.url}: holds these {plan.num_examples} examples already, as "
                f"{source['name']} to {source['role']}; an example counts once, and is either to "
                "retain or to forget"
            )


def check_on_base(retain: Sequence[CollectStore]) -> None:
    """`PlanMismatchError` if retain data were measured on a weakened model."""
    for store in retain:
        if store.plan.progressive:
            raise PlanMismatchError(
                f"{store.location.url}: progressive: C_r is that of the base model; collect the "
                "data to retain without --progressive"
            )


def describe(
    retain: Sequence[CollectStore],
    forget: Sequence[CollectStore],
    previous: Statistics | None = None,
) -> dict[str, Any]:
    """Attributes of the group: which model, which stores in which order, how many records."""
    before = previous.attributes if previous else {}
    plan = (forget or retain)[0].plan
    # Requests one after the other: one progressive one makes the order of all of them count.
    how = next((s.plan.progressive for s in reversed(forget) if s.plan.progressive), None)
    progressive = dataclasses.asdict(how) if how else before.get("progressive")
    model = {field: plan.to_dict()[field] for field in STATISTIC_FIELDS}
    return {
        "model": {**model, "schedule": "progressive" if progressive else "frozen"},
        "moment": "abs",
        "num_retain_records": before.get(
            "num_retain_records", sum(len(store.records) for store in retain)
        ),
        "progressive": progressive,
        "sources": [
            *before.get("sources", []),
            *(
                {
                    "role": role,
                    "name": store.location.name,
                    "digest": store.digest(),
                    "num_records": len(store.records),
                    "plan": store.plan.to_dict(),
                }
                for role, stores in (("retain", retain), ("forget", forget))
                for store in stores
            ),
        ],
    }
