"""How a part is written: its arrays, whole, and then its seal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvwstream.coefficients import Float32, Int64
from kvwstream.plan import CollectPlan, Part
from kvwstream.stores.arrays import digest_array, group_document, write_array
from kvwstream.stores.location import Location

COUNT = "token_count"


@dataclass(frozen=True)
class PartData:
    """A sealed part in memory."""

    part: Part
    sums: dict[str, Float32]
    """Per moment, (record, vector) float32."""
    counts: Int64
    """(record, site) answer positions."""


def seal_part(
    place: Location,
    plan: CollectPlan,
    widths: Int64,
    data: PartData,
    environment: Mapping[str, str],
    exponent: str | None,
) -> None:
    """Write the arrays of a part to `place`, make them durable, then seal it.

    `widths` (site,) are knowledge vectors; `environment` and `exponent` go into the seal.
    """
    records, width = data.part.num_records, int(widths.max())
    chunk = (records, width)
    shard = (records, -(-plan.num_vectors // width) * width)
    for moment, sums in data.sums.items():
        write_array(place, f"{moment}_sum", sums, ("record", "vector"), chunk, shard)
    write_array(place, COUNT, data.counts, ("record", "site"), data.counts.shape)
    sha256 = {f"{moment}_sum": digest_array(sums) for moment, sums in data.sums.items()}
    sha256[COUNT] = digest_array(data.counts)
    place.sync()
    seal = {
        "plan": plan.digest,
        **data.part._asdict(),
        "num_tokens": int(data.counts.max(axis=1).sum()),
        "sha256": sha256,
        "environment": dict(environment),
    }
    if exponent is not None:
        seal["exponent"] = exponent
    place.create("zarr.json", group_document({"seal": seal}, place, sha256))
    place.sync()
