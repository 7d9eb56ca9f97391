"""Forgetting must be judged on wordings that were not collected: what gives a test away."""

from __future__ import annotations

from collections.abc import Sequence

from kvwstream.canonical import digest_of
from kvwstream.examples import Example
from kvwstream.paths import local_path
from kvwstream.readers import read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics

ADVICE = "ask the same facts in other words, or forgetting is judged by what was collected"


def check_unasked(asked: Sequence[Example], stored: Statistics, collected: str | None) -> list[str]:
    """A line for each sign that questions are asked as they were collected.

    Of statistics only a whole set in its order can be recognised; `collected`, a store or the data
    that it was made of, tells single examples.
    """
    digest = digest_of([example.digest for example in asked])
    for source in stored.attributes["sources"]:
        if source["role"] == "forget" and source["plan"]["data_digest"] == digest:
            return [f"the forget questions are those that {source['name']} collected; {ADVICE}"]
    if collected is None:
        return [
            "whether the forget questions were collected cannot be told from statistics; give "
            "--collected with the forget store or its data"
        ]
    if (local_path(collected) / "zarr.json").is_file() or "://" in collected:
        store = CollectStore.open(Location(collected))
        known = set(store.examples.digests)
        again = [example.id for example in asked if example.digest in known]
    else:
        prompts = {digest_of(list(e.prompt)) for e in read_examples(collected)}
        again = [e.id for e in asked if digest_of(list(e.prompt)) in prompts]
    if not again:
        return []
    names = ", ".join(again[:5]) + (", …" if len(again) > 5 else "")
    return [
        f"{len(again)} of {len(asked)} forget questions stand in {collected} ({names}); {ADVICE}"
    ]
