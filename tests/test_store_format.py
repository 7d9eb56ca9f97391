"""Format version 2, to the byte: what is written today must be read, and named the same, for ever.

A change here means a new format version.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.errors import ZarrUserWarning

from kvwstream.canonical import canonical_json
from kvwstream.passes import in_order
from kvwstream.plan import CollectPlan, Site, order_by_seed
from kvwstream.stores.arrays import ArrayDigest, digest_array
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.sealed_part import PartData
from kvwstream.stores.tables import ExampleTable, sites_digest
from tests.conftest import tree_bytes

GOLDEN = Path(__file__).parent / "golden" / "store-v3.json"
SITES = [
    Site("model.layers.0.mlp.down_proj", "model.layers.0.mlp.down_proj.weight", 1, 0, -1, 3, 0),
    Site("model.layers.1.mlp.down_proj", "model.layers.1.mlp.down_proj.weight", 1, 1, -1, 2, 3),
]
EXAMPLES = ExampleTable(
    ["a", "ü", "c"],
    ["1" * 64, "2" * 64, "3" * 64],
    np.array([5, 6, 7]),
    np.array([4, 4, 4]),
    np.array([1, 2, 3]),
    *in_order(3, 1).columns,
)
PLAN = CollectPlan(
    model_digest="a" * 64,
    config_digest="b" * 64,
    processor_digest="c" * 64,
    sites_digest=sites_digest(SITES),
    data_digest=EXAMPLES.digest,
    arrangement_digest=EXAMPLES.arrangement,
    num_examples=3,
    num_sites=2,
    num_vectors=5,
    seed=0,
    batch_size=1,
    part_size=2,
    tokens="answer",
    moments=("abs",),
    dtype="float32",
    attention="sdpa",
    threads=1,
    pass_tokens=2048,
    sharing=True,
)


def write(folder: Path) -> CollectStore:
    store = CollectStore.create(Location(str(folder)), PLAN, SITES, EXAMPLES)
    values = np.arange(15, dtype=np.float32).reshape(3, 5) / 7
    counts = np.array([[1, 1], [2, 2], [3, 3]])
    for part in PLAN.parts:
        rows = slice(part.start, part.stop)
        store.write_part(PartData(part, {"abs": values[rows]}, counts[rows]), {"device": "cpu"})
    return store


def names_of(folder: Path) -> dict[str, object]:
    """Digests that the format defines, and the names of every file."""
    store = CollectStore.open(Location(str(folder)))
    return {
        "plan": PLAN.digest,
        "sites": PLAN.sites_digest,
        "data": PLAN.data_digest,
        "store": store.digest(),
        "parts": [store.read_seal(n)["sha256"] for n in range(PLAN.num_parts)],
        "order": order_by_seed(EXAMPLES.digests, 0),
        "files": sorted(tree_bytes(folder)),
    }


def test_names_and_digests_are_those_of_format_version_3(tmp_path):
    write(tmp_path / "s.zarr")
    assert names_of(tmp_path / "s.zarr") == json.loads(GOLDEN.read_text())


def test_metadata_say_what_the_format_page_says(tmp_path):
    write(tmp_path / "s.zarr")
    array = json.loads((tmp_path / "s.zarr/parts/000000/abs_sum/zarr.json").read_text())
    assert array["dimension_names"] == ["record", "vector"]
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [2, 6]  # one shard per part
    sharding = array["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [2, 3]  # the widest site
    codecs = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert codecs == ["bytes", "blosc", "crc32c"]
    root = json.loads((tmp_path / "s.zarr/zarr.json").read_text())
    assert root["attributes"] == {"kind": "collect", "plan": PLAN.to_dict()}


def test_a_part_is_no_group_before_its_seal(tmp_path):
    write(tmp_path / "s.zarr")
    (tmp_path / "s.zarr/parts/000001/zarr.json").unlink()
    parts = zarr.open_group(tmp_path / "s.zarr", mode="r")["parts"]
    with pytest.warns(ZarrUserWarning, match="000001 is not recognized"):
        assert list(parts.group_keys()) == ["000000"]


def test_an_array_digest_can_be_computed_with_hashlib_alone():
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    header = canonical_json(["<f4", [2, 3]])
    expected = hashlib.sha256(header + values.astype("<f4").tobytes()).hexdigest()
    assert digest_array(values) == expected
    digest = ArrayDigest("f4", (2, 3))
    for row in values:
        digest.update(row)
    assert digest.hexdigest() == expected


def test_what_is_read_back_is_what_was_written(tmp_path):
    written = write(tmp_path / "s.zarr")
    store = CollectStore.open(Location(str(tmp_path / "s.zarr")))
    assert (store.plan, store.sites) == (PLAN, SITES)
    assert store.examples.ids == EXAMPLES.ids
    np.testing.assert_array_equal(store.examples.num_positions, EXAMPLES.num_positions)
    for number in range(PLAN.num_parts):
        one, two = store.read_part(number), written.read_part(number)
        np.testing.assert_array_equal(one.sums["abs"], two.sums["abs"])
        np.testing.assert_array_equal(one.counts, two.counts)
