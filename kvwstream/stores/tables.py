"""The tables of a store: its sites, its examples, the rows that were left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvwstream.canonical import digest_of
from kvwstream.coefficients import Int64
from kvwstream.errors import DamageError
from kvwstream.examples import BadRow
from kvwstream.plan import CollectPlan, Site
from kvwstream.stores.arrays import group_document, read_table, write_table
from kvwstream.stores.location import Location

SKIPPED = "skipped"
COLUMNS = (
    "id",
    "digest",
    "num_tokens",
    "num_prompt_tokens",
    "num_positions",
    "cluster",
    "forward",
    "group",
    "prefix",
)
"""Of the table of examples."""


@dataclass(frozen=True)
class ExampleTable:
    """What the store says of its examples, in plan order; record k holds `plan.examples_of(k)`."""

    ids: list[str]
    digests: list[str]
    """SHA-256 of each example's content."""
    num_tokens: Int64
    """(example,) length of prompt plus answer in tokens."""
    num_prompt_tokens: Int64
    """(example,) length of the prompt."""
    num_positions: Int64
    """(example,) positions that count."""
    cluster: Int64
    """(example,) number of the cluster: what examples of one subject have in common."""
    forward: Int64
    """(example,) number of the forward pass."""
    group: Int64
    """(example,) number of the group. With a prefix, it begins with the same tokens, run once."""
    prefix: Int64
    """(example,) tokens that the pass takes from a shared prefix."""

    @property
    def digest(self) -> str:
        """The plan's `data_digest`: contents in no order, ids apart."""
        return digest_of(sorted(self.digests))

    @property
    def arrangement(self) -> str:
        """The plan's `arrangement_digest`: contents in order, and what runs together."""
        columns = (self.cluster, self.forward, self.group, self.prefix)
        return digest_of([self.digests, *(column.tolist() for column in columns)])


def sites_digest(sites: Sequence[Site]) -> str:
    """The plan's `sites_digest`."""
    return digest_of([list(site) for site in sites])


def read_sites(location: Location, plan: CollectPlan) -> list[Site]:
    """The sites of the store at `location`; `DamageError` if they are not the plan's."""
    columns = read_table(location, "sites", Site._fields)
    rows = zip(*(columns[field].tolist() for field in Site._fields), strict=True)
    sites = [Site(*row) for row in rows]
    if sites_digest(sites) != plan.sites_digest:
        raise DamageError(f"{location.url}/sites: changed, its digest is not the plan's")
    return sites


def read_examples(location: Location, plan: CollectPlan) -> ExampleTable:
    """The examples of the store at `location`; `DamageError` if they are not the plan's."""
    table = read_table(location, "examples", COLUMNS)
    examples = ExampleTable(
        table["id"].tolist(),
        [row.tobytes().hex() for row in table["digest"]],
        *(table[column] for column in COLUMNS[2:]),
    )
    if examples.digest != plan.data_digest:
        raise DamageError(f"{location.url}/examples: changed, its digest is not the plan's")
    if examples.arrangement != plan.arrangement_digest:
        raise DamageError(
            f"{location.url}/examples: order, clusters, passes or prefixes changed, their digest "
            "is not the plan's"
        )
    return examples


def write_tables(
    location: Location,
    sites: Sequence[Site],
    examples: ExampleTable,
    skipped: Sequence[BadRow] = (),
) -> None:
    """Write them all, and last the group of the parts, which says that they are whole."""
    columns = {field: np.array([getattr(site, field) for site in sites]) for field in Site._fields}
    write_table(location, "sites", "site", columns)
    digests = np.array([list(bytes.fromhex(digest)) for digest in examples.digests], np.uint8)
    columns = {
        "id": np.array(examples.ids, dtype=object),
        "digest": digests,
        **{column: getattr(examples, column) for column in COLUMNS[2:]},
    }
    write_table(location, "examples", "example", columns)
    if skipped:
        columns = {
            field: np.array([getattr(row, field) for row in skipped], dtype=object)
            for field in BadRow._fields
        }
        write_table(location, SKIPPED, "row", columns)
    location.write("parts/zarr.json", group_document({}))


def positions_run(examples: ExampleTable) -> int:
    """Positions that a model runs for a table: padded tails, and the prefix of each group once."""
    starts = np.flatnonzero(np.diff(examples.forward, prepend=-1))
    lengths = examples.num_tokens - 1  # the last token predicts nothing
    rows = np.diff([*starts, len(lengths)])
    tails = np.maximum.reduceat(lengths, starts) - examples.prefix[starts]
    group, prefix = examples.group, examples.prefix
    anew = (np.diff(group, prepend=-1) != 0) | (np.diff(prefix, prepend=0) != 0)
    return int((rows * tails).sum() + prefix[anew].sum())
