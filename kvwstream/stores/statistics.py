"""What `reduce` writes: C_r, C_f, A and S as one Zarr group that xarray opens with named axes.

The group's `zarr.json` is written last and holds the SHA-256 of every array: without it there is no
group, with it every array is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvwstream.canonical import digest_of
from kvwstream.coefficients import Float64, Int64
from kvwstream.errors import DamageError, OptionError
from kvwstream.plan import FORMAT_VERSION, FURTHER_MOMENTS, STATISTIC_FIELDS, Progressive, Site
from kvwstream.stores.arrays import (
    Array,
    ArrayDigest,
    digest_array,
    read_array,
    read_attributes,
    read_blocks,
)
from kvwstream.stores.location import Location

DIMS: dict[str, tuple[str, ...]] = {
    "retain_mean": ("vector",),
    "retain_standard_error": ("vector",),
    "retain_token_count": ("site",),
    "retain_square_mean": ("vector",),
    "forget_mean": ("record", "vector"),
    "forget_running_mean": ("record", "vector"),
    "accessor": ("record", "vector"),
    "forget_signed_mean": ("record", "vector"),
    "forget_token_count": ("record", "site"),
    "exponent": ("vector",),
    "forget_sum": ("vector",),
    # coordinates
    "site": ("site",),
    "tensor": ("site",),
    "axis": ("site",),
    "site_layer": ("site",),
    "expert": ("site",),
    "width": ("site",),
    "offset": ("site",),
    "site_index": ("vector",),
    "layer": ("vector",),
    "channel": ("vector",),
    "examples": ("record",),
}
COORDINATES = list(DIMS)[list(DIMS).index("site") :]
OF_FURTHER_MOMENTS = {"retain_square_mean", "forget_signed_mean"}
"""Only where signed and square moments were collected."""
FORGET = [name for name, dims in DIMS.items() if "record" in dims] + ["exponent", "forget_sum"]
SITE_COLUMNS = dict(
    zip(
        Site._fields,
        ("site", "tensor", "axis", "site_layer", "expert", "width", "offset"),
        strict=True,
    )
)
SOURCE = {"role", "name", "digest", "plan"}
"""What must be known of each store."""
SOUND: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: isinstance(value, dict) and value.keys() == set(STATISTIC_FIELDS),
    "num_forget_records": lambda value: isinstance(value, int),
    "progressive": lambda value: value is None or Progressive.is_sound(value),
    "sha256": lambda value: isinstance(value, dict),
    "sources": lambda value: (
        isinstance(value, list)
        and all(isinstance(v, dict) and v.keys() >= SOURCE for v in value)
        and all(isinstance(v["plan"], dict) and "data_digest" in v["plan"] for v in value)
    ),
}
"""Attributes without which nothing can be read, and what each must look like."""
CHUNK_BYTES = 16 << 20
"""Size that chunks of whole records aim at."""


@dataclass(frozen=True)
class Statistics:
    """A finished statistics group; arrays are read when they are asked for."""

    location: Location
    attributes: dict[str, Any]

    @classmethod
    def open(cls, location: Location) -> Statistics:
        """`DamageError` if no complete statistics of this format version are there."""
        attributes = read_attributes(location)
        if attributes.get("kind") != "statistics":
            raise DamageError(f"{location.url}: not statistics that `kvwstream reduce` wrote")
        if attributes.get("format_version") != FORMAT_VERSION:
            raise DamageError(
                f"{location.url}: statistics of format version {attributes.get('format_version')}; "
                f"this kvwstream reads version {FORMAT_VERSION}"
            )
        wrong = [n for n, sound in SOUND.items() if n not in attributes or not sound(attributes[n])]
        if wrong:
            raise DamageError(f"{location.url}: attributes missing or damaged: {', '.join(wrong)}")
        plans = (source["plan"] for source in attributes["sources"])
        collected = [plan["progressive"] for plan in plans if plan.get("progressive")]
        if attributes["progressive"] != (collected[-1] if collected else None):
            raise DamageError(
                f"{location.url}: attributes damaged: progressive is not what the plans of its "
                "sources say"
            )
        return cls(location, attributes)

    @property
    def digest(self) -> str:
        """SHA-256 of the attributes, which hold the SHA-256 of every array."""
        return digest_of(self.attributes)

    @property
    def model_digest(self) -> str:
        """Digest of the base weights that were measured."""
        return str(self.attributes["model"]["model_digest"])

    @property
    def num_forget_records(self) -> int:
        """Number of rows of A; 0 for retain statistics alone."""
        return int(self.attributes["num_forget_records"])

    @property
    def has_moments(self) -> bool:
        """Whether signed and square moments were collected, which `energy` and `coherent` need."""
        return set(self.attributes["model"]["moments"]) >= FURTHER_MOMENTS

    @property
    def array_names(self) -> list[str]:
        """Arrays that must be there."""
        absent = set() if self.num_forget_records else set(FORGET)
        absent |= set() if self.has_moments else OF_FURTHER_MOMENTS
        return [name for name in DIMS if name not in absent]

    @cached_property
    def sites(self) -> list[Site]:
        """The value projections, in order of the vector axis."""
        columns = [self.read(name).tolist() for name in SITE_COLUMNS.values()]
        return [Site(*row) for row in zip(*columns, strict=True)]

    def read(self, name: str) -> Array:
        """A whole array, checked against its SHA-256."""
        values = read_array(self.location, name)
        if digest_array(values) != self.attributes["sha256"].get(name):
            raise self._damage(name)
        return values

    def check(self, name: str) -> None:
        """`DamageError` unless an array is as digested; a chunk in memory at a time."""
        if len(DIMS.get(name, ())) == 2 and self.num_forget_records:
            for _ in self.blocks(name, self.num_forget_records):
                pass
        else:
            self.read(name)

    def rows(self, name: str, count: int) -> Iterator[Float64]:
        """`blocks`, row by row."""
        for block in self.blocks(name, count):
            yield from block

    def blocks(self, name: str, count: int) -> Iterator[Array]:
        """The first `count` rows of an array over records, a chunk in memory at a time.

        Everything is read and checked against the SHA-256, so what was made of the rows counts only
        when they have come to their end: `DamageError` comes last. No rows, no check.
        """
        self.require_forget()
        digest: ArrayDigest | None = None
        for block in read_blocks(self.location, name, self.num_forget_records) if count else ():
            if digest is None:
                digest = ArrayDigest(block.dtype, (self.num_forget_records, *block.shape[1:]))
            digest.update(block)
            yield block[: max(0, count)]
            count -= len(block)
        if digest and digest.hexdigest() != self.attributes["sha256"].get(name):
            raise self._damage(name)

    def exponent(self) -> Float64:
        """S (vector,) after all forget records."""
        self.require_forget()
        return self.read("exponent")

    def unseen_sites(self) -> list[str]:
        """Sites that no retain token reached: their gate is 1."""
        tokens: Int64 = self.read("retain_token_count")
        return [site.path for site, n in zip(self.sites, tokens, strict=True) if n == 0]

    def require_forget(self) -> None:
        """`OptionError` if these are retain statistics alone."""
        if not self.num_forget_records:
            raise OptionError(
                f"{self.location.url}: holds retain statistics alone; reduce it with --forget"
            )

    def _damage(self, name: str) -> DamageError:
        return DamageError(
            f"{self.location.url}/{name}: is not what the group's digest says; run "
            "`kvwstream reduce` again"
        )
