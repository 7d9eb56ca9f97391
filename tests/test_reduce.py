"""Statistics: Dask = the serial specification to the bit = one big pass in float64."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from kvwstream.accessor import exponent
from kvwstream.collector import site_inputs
from kvwstream.errors import DataError, IncompleteError, PlanMismatchError, StorageError
from kvwstream.models import inference, load_model
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.derive import reduce_serial
from kvwstream.pipelines.prepare import prepare
from kvwstream.pipelines.reduce import reduce
from kvwstream.readers import read_examples
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from tests.conftest import THINGS, Artefacts, llama_config, save_model, tree_bytes


def parts_of(url: str):
    store = CollectStore.open(Location(url))
    return [store.read_part(number) for number in range(store.plan.num_parts)]


def test_dask_gives_the_bits_of_the_serial_specification(artefacts: Artefacts):
    stored = Statistics.open(Location(artefacts.statistics))
    widths = np.array([site.width for site in stored.sites])
    expected = reduce_serial(parts_of(artefacts.retain), parts_of(artefacts.forget), widths)
    for name, values in expected.items():
        np.testing.assert_array_equal(stored.read(name), values, err_msg=name)


def test_reducing_twice_gives_the_same_bytes(artefacts: Artefacts, tmp_path: Path):
    reduce([artefacts.retain], str(tmp_path / "statistics.zarr"), [artefacts.forget])
    assert tree_bytes(tmp_path / "statistics.zarr") == tree_bytes(artefacts.statistics)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_streaming_equals_one_big_pass_in_float64(llama, data, tmp_path, batch_size):
    """C_r from the stored sums against the mean over all positions of one plain forward each."""
    examples = read_examples(str(data["retain"]))
    prepared = prepare(str(llama), examples, batch_size=batch_size, part_size=2)
    collect(prepared, str(tmp_path / "s.zarr"))
    stored = reduce([str(tmp_path / "s.zarr")], str(tmp_path / "r.zarr"))

    loaded = load_model(llama)
    seen: list[list[np.ndarray]] = [[] for _ in prepared.sites]
    for example in examples:
        span = prepared.encoder.locate(example)
        batch = prepared.encoder.batch([example], [span], "answer")
        rows = batch.rows

        def keep(number, coefficients, rows=rows):
            flat = coefficients.reshape(-1, coefficients.shape[-1])[rows]
            seen[number].append(flat.double().abs().numpy())

        with inference(loaded.model), site_inputs(loaded.model, prepared.sites, keep):
            loaded.model(**batch.inputs)
    expected = np.concatenate([np.concatenate(rows).mean(axis=0) for rows in seen])
    np.testing.assert_allclose(stored.read("retain_mean"), expected, rtol=2e-6, atol=1e-9)
    tokens = sum(len(rows) for rows in seen[0])
    np.testing.assert_array_equal(stored.read("retain_token_count"), [tokens] * 2)


def test_two_stores_count_as_one(llama, data, tmp_path):
    """Same token means (to rounding) as one store of all, whatever the batches and parts are."""
    examples = read_examples(str(data["retain"]))
    whole, a, b = (str(tmp_path / f"{name}.zarr") for name in ("whole", "a", "b"))
    collect(prepare(str(llama), examples), whole)
    collect(prepare(str(llama), examples[:4], part_size=3), a)
    collect(prepare(str(llama), examples[4:], batch_size=2, seed=5), b)
    one = reduce([whole], str(tmp_path / "one.zarr"))
    two = reduce([a, b], str(tmp_path / "two.zarr"))
    np.testing.assert_array_equal(one.read("retain_token_count"), two.read("retain_token_count"))
    np.testing.assert_allclose(one.read("retain_mean"), two.read("retain_mean"), rtol=1e-5)


def test_running_mean_and_exponent_are_prefixes(artefacts: Artefacts):
    stored = Statistics.open(Location(artefacts.statistics))
    parts = parts_of(artefacts.forget)
    sums = np.concatenate([part.sums["abs"] for part in parts]).astype(float).cumsum(axis=0)
    tokens = np.repeat(np.concatenate([part.counts for part in parts]).cumsum(axis=0), 48, axis=1)
    np.testing.assert_allclose(stored.read("forget_running_mean"), sums / tokens, rtol=1e-12)
    np.testing.assert_array_equal(exponent(stored.read("accessor")), stored.exponent())


def test_xarray_opens_it_with_named_axes_and_without_a_warning(artefacts: Artefacts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = xr.open_zarr(artefacts.statistics).load()
    assert opened.accessor.dims == ("record", "vector")
    assert opened.forget_token_count.dims == ("record", "site")
    assert list(opened.site.values) == [f"model.layers.{n}.mlp.down_proj" for n in (0, 1)]
    assert opened.layer.dims == ("vector",)
    layer_one = opened.exponent.where(opened.layer == 1, drop=True)
    np.testing.assert_array_equal(layer_one.channel, np.arange(48))
    assert set(opened.examples.values) == {f"{thing}-pink" for thing in THINGS[:5]}


def test_plain_zarr_and_xarray_read_a_part(artefacts: Artefacts):
    part = xr.open_zarr(f"{artefacts.forget}/parts/000000").load()
    np.testing.assert_array_equal(part.abs_sum, parts_of(artefacts.forget)[0].sums["abs"])


def test_retain_statistics_alone(artefacts: Artefacts, tmp_path):
    stored = reduce([artefacts.retain], str(tmp_path / "r.zarr"))
    both = Statistics.open(Location(artefacts.statistics))
    np.testing.assert_array_equal(stored.read("retain_mean"), both.read("retain_mean"))
    with pytest.raises(ValueError, match="holds retain statistics alone; reduce it with --forget"):
        stored.exponent()


def test_unsealed_parts_are_listed_all_at_once(llama, data, tmp_path):
    store = tmp_path / "s.zarr"
    collect(prepare(str(llama), read_examples(str(data["retain"])), part_size=2), str(store))
    for number in (1, 4):
        (store / "parts" / f"{number:06d}" / "zarr.json").unlink()
    with pytest.raises(IncompleteError, match=r"2 of 6 parts have no seal \(1, 4\)"):
        reduce([str(store)], str(tmp_path / "r.zarr"))
    assert not (tmp_path / "r.zarr").exists()


def test_stores_that_share_an_example_are_refused(artefacts: Artefacts, tmp_path):
    with pytest.raises(DataError, match=r"5 examples stand in an earlier store too \(.*-pink"):
        reduce([artefacts.retain, artefacts.forget], str(tmp_path / "r.zarr"), [artefacts.forget])


def test_stores_of_another_model_or_rule_are_refused(artefacts: Artefacts, data, tmp_path):
    other = save_model(tmp_path / "other", llama_config(), seed=1)
    examples = read_examples(str(data["forget"]))
    collect(prepare(str(other), examples), str(tmp_path / "model.zarr"))
    collect(prepare(str(artefacts.model), examples, tokens="all"), str(tmp_path / "rule.zarr"))
    for name, line in (("model", "model_digest: .* there, .* here"), ("rule", "tokens: answer")):
        with pytest.raises(PlanMismatchError, match=line):
            reduce([artefacts.retain], str(tmp_path / "r.zarr"), [str(tmp_path / f"{name}.zarr")])


def test_an_existing_place_is_refused_and_left_alone(artefacts: Artefacts, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, Path(artefacts.retain), Path(artefacts.statistics)):
        before = tree_bytes(place)
        with pytest.raises(StorageError, match="exists already"):
            reduce([artefacts.retain], str(place))
        assert tree_bytes(place) == before


def test_what_an_interrupted_reduce_left_is_replaced(artefacts: Artefacts, tmp_path):
    """A draft beside the place, as a kill leaves it, is no statistics and is done anew."""
    out, draft = tmp_path / "r.zarr", tmp_path / ".r.zarr.partial"
    reduce([artefacts.retain], str(out))
    whole = tree_bytes(out)
    out.rename(draft)
    (draft / "zarr.json").unlink()
    reduce([artefacts.retain], str(out))
    assert tree_bytes(out) == whole
    assert not draft.exists()


def test_a_folder_that_looks_like_statistics_is_left_alone(artefacts: Artefacts, tmp_path):
    """Its names are those of arrays, its contents somebody's work."""
    (tmp_path / "project" / "examples").mkdir(parents=True)
    (tmp_path / "project" / "examples" / "data.txt").write_text("years of work")
    with pytest.raises(StorageError, match="exists already"):
        reduce([artefacts.retain], str(tmp_path / "project"), [artefacts.forget])
    assert (tmp_path / "project" / "examples" / "data.txt").read_text() == "years of work"
