"""The plan of a collection: everything that decides the numbers, frozen before the first forward.

A `CollectPlan` is plain values with a JSON round trip and the only contract between workers: two
workers with equal plans write equal bytes. Standard library only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvwstream.canonical import differences, digest_of
from kvwstream.errors import DamageError, OptionError

FORMAT_VERSION = 3
MOMENTS = ("abs", "signed", "square")
FURTHER_MOMENTS = {"signed", "square"}
"""What the shapes `energy` and `coherent` need beside the absolute moment."""
ARITHMETICS = ("exact", "in-place")
TOKEN_RULES = ("answer", "question", "image", "all")


class Site(NamedTuple):
    """One value projection, with its place on the vector axis."""

    path: str
    """Module path in the loaded model, e.g. `model.layers.0.mlp.down_proj`."""
    tensor: str
    """Name of its weight in the checkpoint."""
    axis: int
    """Axis of that weight that enumerates knowledge vectors: 1 for Linear, 0 for Conv1D."""
    layer: int
    """Zero-based decoder layer."""
    expert: int
    """Expert within the layer, -1 in a dense layer."""
    width: int
    """Number of knowledge vectors."""
    offset: int
    """Index of its first knowledge vector on the vector axis."""

    @property
    def vectors(self) -> slice:
        """Where the site lies on the vector axis."""
        return slice(self.offset, self.offset + self.width)


class Part(NamedTuple):
    """A contiguous run of records `start <= record < stop`: scheduled, retried, sealed as one."""

    number: int
    start: int
    stop: int

    @property
    def num_records(self) -> int:
        """Number of records in the part."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Its folder below `parts/`."""
        return f"{self.number:06d}"


@dataclass(frozen=True)
class Progressive:
    """How the model is weakened while the forget records are measured (Algorithm 1)."""

    gamma: float
    layers: str
    arithmetic: str
    retain: str
    """Digest of C_r and of the retain tokens per site."""
    epochs: int = 1
    """Passes over the examples, each in the same order."""
    after: str | None = None
    """Digest of the rows of A that the model was weakened by before the first record."""

    def __post_init__(self) -> None:
        if self.arithmetic not in ARITHMETICS:
            raise OptionError(
                f"arithmetic must be one of {', '.join(ARITHMETICS)}, got {self.arithmetic}"
            )
        if self.epochs < 1:
            raise OptionError(f"epochs must be at least 1, got {self.epochs}")

    @classmethod
    def is_sound(cls, value: Any) -> bool:
        """Whether plain values are those of a `Progressive`."""
        fields = {field.name for field in dataclasses.fields(cls)}
        return (
            isinstance(value, dict)
            and value.keys() == fields
            and isinstance(value["gamma"], float)
            and isinstance(value["layers"], str)
            and value["arithmetic"] in ARITHMETICS
            and isinstance(value["epochs"], int)
        )


@dataclass(frozen=True)
class CollectPlan:
    """What decides the numbers of a store (design: *plan*).

    Digests are SHA-256 in hex. `record` k holds the examples
    `k * batch_size <= position < (k + 1) * batch_size` in the order of the table of examples.
    """

    model_digest: str
    config_digest: str
    processor_digest: str
    sites_digest: str
    data_digest: str
    arrangement_digest: str
    """Of the order of the examples, their clusters, passes and prefixes."""
    num_examples: int
    num_sites: int
    num_vectors: int
    seed: int
    batch_size: int
    part_size: int
    tokens: str
    moments: tuple[str, ...]
    dtype: str
    attention: str
    threads: int
    pass_tokens: int
    """Positions in a forward pass at most, those of shared prefixes apart."""
    sharing: bool
    """Whether examples that begin alike run behind one prefix."""
    until_stable: float | None = None
    """How far A may still move where the collection ends early; None: it runs to its end."""
    schedule: str = "frozen"
    progressive: Progressive | None = None
    """With the schedule `progressive` only."""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.schedule != ("progressive" if self.progressive else "frozen"):
            raise OptionError(
                f"schedule {self.schedule} does not fit progressive {self.progressive}"
            )
        for name in ("num_examples", "num_sites", "num_vectors", "batch_size", "part_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.pass_tokens < 1:
            raise OptionError(f"pass_tokens must be at least 1, got {self.pass_tokens}")
        if self.until_stable is not None and not 0 < self.until_stable < math.inf:
            raise OptionError(
                f"until-stable must be a positive number, got {self.until_stable}; 0.01 lets no "
                "accessor move by more than 0.01"
            )
        if self.until_stable is not None and self.progressive:
            raise OptionError(
                "until-stable is for retain data: a progressive collection measures every record"
            )
        if self.tokens not in TOKEN_RULES:
            raise OptionError(f"tokens must be one of {', '.join(TOKEN_RULES)}, got {self.tokens}")
        check_moments(self.moments)

    @property
    def num_records(self) -> int:
        """Number of records: batches of `batch_size` examples, in each epoch."""
        return self._records_per_epoch * (self.progressive.epochs if self.progressive else 1)

    @property
    def _records_per_epoch(self) -> int:
        """The last record of an epoch may be smaller."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_parts(self) -> int:
        """Number of parts of `part_size` records, the last one may be smaller."""
        return -(-self.num_records // self.part_size)

    @property
    def parts(self) -> Iterable[Part]:
        """Every part, in record order."""
        return (self.part(index) for index in range(self.num_parts))

    def part(self, index: int) -> Part:
        """Part number `index`; IndexError beyond the last."""
        if not 0 <= index < self.num_parts:
            raise IndexError(f"part {index} of {self.num_parts}")
        start = index * self.part_size
        return Part(index, start, min(start + self.part_size, self.num_records))

    def epoch_of(self, record: int) -> int:
        """Which pass over the examples a record belongs to."""
        return record // self._records_per_epoch

    def examples_of(self, record: int) -> range:
        """Positions, in plan order, of the examples of a record."""
        start = record % self._records_per_epoch * self.batch_size
        return range(start, min(start + self.batch_size, self.num_examples))

    @property
    def digest(self) -> str:
        """SHA-256 of the plan; every seal carries it."""
        return digest_of(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "moments": list(self.moments)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CollectPlan:
        """Inverse of `to_dict`; `DamageError` if fields are unlike this format."""
        if values.get("format_version") != FORMAT_VERSION:
            raise DamageError(
                f"store format version {values.get('format_version')}: this kvwstream reads and "
                f"writes version {FORMAT_VERSION}; use the release that wrote the store"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        if values.keys() != fields:
            missing, extra = sorted(fields - values.keys()), sorted(values.keys() - fields)
            raise DamageError(f"the plan is damaged: missing {missing}, unknown {extra}")
        try:
            how = values["progressive"]
            if how is not None and not Progressive.is_sound(how):
                raise OptionError(f"progressive is {how}")
            return cls(
                **{
                    **values,
                    "moments": tuple(values["moments"]),
                    "progressive": how and Progressive(**how),
                }
            )
        except (OptionError, TypeError) as error:
            raise DamageError(f"the plan is damaged: {error}") from error

    def differences(self, other: CollectPlan, fields: Iterable[str] | None = None) -> list[str]:
        """One line per field in which `other` differs: `field: X there, Y here`."""
        there, here = self._named(), other._named()
        return differences(there, here, [name for name in fields or there if name in here])

    def _named(self) -> dict[str, Any]:
        """Every field; those of `progressive`, if there is one, one by one."""
        values = {**vars(self), **(vars(self.progressive) if self.progressive else {})}
        del values["progressive"]
        return values


MODEL_FIELDS = ("model_digest", "config_digest", "sites_digest")
"""Plan fields that must agree for two stores to speak of the same model."""
STATISTIC_FIELDS = (
    *MODEL_FIELDS,
    "processor_digest",
    "tokens",
    "moments",
    "dtype",
    "attention",
    "schedule",
)
"""Plan fields that must agree for the statistics of two stores to be put together."""


def canonical_moments(moments: Iterable[str]) -> tuple[str, ...]:
    """Moments in canonical order, unknown ones last (`check_moments` refuses them)."""
    rank = {moment: number for number, moment in enumerate(MOMENTS)}
    return tuple(sorted(moments, key=lambda moment: rank.get(moment, len(MOMENTS))))


def check_moments(moments: tuple[str, ...]) -> None:
    """`OptionError` unless `moments` are distinct, known, in canonical order."""
    if not moments or any(moment not in MOMENTS for moment in moments):
        raise OptionError(f"moments must be among {', '.join(MOMENTS)}, got {','.join(moments)!r}")
    if list(moments) != [moment for moment in MOMENTS if moment in moments]:
        raise OptionError(f"moments: each once, in the order {','.join(MOMENTS)}")


def order_by_seed(digests: Iterable[str], seed: int) -> list[int]:
    """Order of examples: ascending SHA-256 of seed and content digest.

    Depends on the contents alone, not on file order, library or platform, so the same set of
    examples has the same records everywhere and its first N are a random sample.
    """
    keys = [hashlib.sha256(f"{seed}:{digest}".encode()).digest() for digest in digests]
    return sorted(range(len(keys)), key=keys.__getitem__)
