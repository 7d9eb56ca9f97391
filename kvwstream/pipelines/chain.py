"""That progressive stores follow from the records before them, checked while these are replayed."""

from __future__ import annotations

from collections.abc import Sequence

from kvwstream.canonical import differences
from kvwstream.coefficients import Float64
from kvwstream.errors import DamageError, PlanMismatchError
from kvwstream.pipelines.retained import Retained
from kvwstream.plan import Progressive
from kvwstream.stores.arrays import ArrayDigest, digest_array
from kvwstream.stores.collected import CollectStore


class Chain:
    """Follows the forget records; raises where a store was not collected after those before it."""

    def __init__(
        self,
        forget: Sequence[CollectStore],
        retained: Retained,
        num_before: int,
        before: Progressive | None,
    ) -> None:
        self.starts: dict[int, tuple[CollectStore, int]] = {}
        self.after: dict[int, tuple[CollectStore, ArrayDigest]] = {}
        number = num_before
        for store in forget:
            how = store.plan.progressive
            if how and how.retain != retained.digest:
                raise PlanMismatchError(
                    f"{store.location.url}: was weakened with another C_r than that of these "
                    "retain stores; reduce it with those of its --retain-statistics"
                )
            if how and before:
                check_alike(store.location.url, before, how)
            if how:
                shape = (number, store.plan.num_vectors)
                self.after[number] = store, ArrayDigest("<f8", shape)
                for part in store.parts:
                    self.starts[number + part.start] = store, part.number
            before = how or before
            number += len(store.records)

    def at(self, number: int, total: Float64) -> None:
        """Before record `number`, with the S of all before it."""
        if number in self.after:
            self._check_after(number)
        if number in self.starts:
            store, part = self.starts.pop(number)
            check_start(store, part, digest_array(total))

    def add(self, row: Float64) -> None:
        """A of the next record."""
        for _, digest in self.after.values():
            digest.update(row)

    def _check_after(self, number: int) -> None:
        store, digest = self.after.pop(number)
        how = store.plan.progressive
        expected = digest.hexdigest() if number else None
        if how and how.after != expected:
            what = (
                "after other requests than stand before it here"
                if how.after
                else "as the first request, but others stand before it here"
            )
            raise PlanMismatchError(
                f"{store.location.url}: was collected {what}; reduce the requests in the order in "
                "which they were collected"
            )


def check_alike(url: str, before: Progressive, planned: Progressive) -> None:
    """`PlanMismatchError` unless two requests are weakened in the same way."""
    names = ("gamma", "layers", "arithmetic", "retain")
    wrong = differences(vars(before), vars(planned), names)
    if wrong:
        raise PlanMismatchError(f"{url}: weakens otherwise:\n  " + "\n  ".join(wrong))


def check_start(store: CollectStore, part: int, digest: str) -> None:
    """`DamageError` unless a part's seal says that it was begun with the S of this digest."""
    if store.read_seal(part).get("exponent") != digest:
        raise DamageError(
            f"{store.location.url}/parts/{store.plan.part(part).name}: was measured after other "
            "records than those before it; delete the part and all after it, and collect again"
        )
