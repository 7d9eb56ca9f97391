"""The paper's rivals on tiny models: every loss against its formula, masks, scores, the search."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from benchmarks.methods import ga, gd, gradient, kl, kvw, manu, mmu, npo, oracle
from benchmarks.methods.search import RUNGS, Point, search
from benchmarks.methods.training import (
    Pairs,
    Settings,
    answer_logits,
    answer_loss,
    draw_pairs,
    label,
    lora,
    sequence_losses,
)
from kvwstream.accessor import LayerRange, vector_gates
from kvwstream.answers import AnswerEncoder
from kvwstream.examples import Example
from kvwstream.models import LoadedModel, load_model
from kvwstream.plan import Site
from kvwstream.readers import read_examples
from kvwstream.search import Rule, Scores
from kvwstream.stores.location import Location
from kvwstream.stores.statistics import Statistics
from kvwstream.strength import Strength
from tests.families import build_family

# PEFT asks transformers for a name that the latter has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module")
def loaded(llama: Path) -> LoadedModel:
    return load_model(llama)


@pytest.fixture(scope="module")
def sets(data: dict[str, Path]) -> tuple[list[Example], list[Example]]:
    return read_examples(str(data["forget"])), read_examples(str(data["retain"]))


@pytest.fixture(scope="module")
def encoder(loaded: LoadedModel) -> AnswerEncoder:
    return AnswerEncoder(loaded.processor, loaded.model.config)


@pytest.fixture(scope="module")
def pairs(encoder: AnswerEncoder, sets: tuple[list[Example], list[Example]]) -> Pairs:
    return draw_pairs(encoder, *sets, Settings(0.0, steps=2))


def gradients(model: nn.Module, run: Callable[[], None]) -> list[torch.Tensor]:
    """What `run` leaves in the trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    run()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]


def stirred(model: nn.Module) -> None:
    """A LoRA that has moved, so that the model is no longer its reference."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def by_hand(
    model: nn.Module, encoder: AnswerEncoder, examples: Sequence[Example]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Each example alone and whole: log p (row, token) where answers are predicted, and -log p."""
    rows, losses = [], []
    for example in examples:
        span, ids = encoder.locate(example), encoder.token_ids(example)
        chosen = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        places = range(span.prompt, span.total)
        rows += [chosen[place - 1] for place in places]
        losses.append(-torch.stack([chosen[place - 1, ids[place]] for place in places]))
    return torch.stack(rows), losses


def test_labels_are_the_answer_and_nothing_else(
    loaded: LoadedModel, sets: tuple[list[Example], list[Example]]
) -> None:
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    for example in sets[0]:
        batch = label(encoder, [example])
        assert loaded.processor.decode(batch.targets).strip() == example.answer


def test_loss_needs_no_other_logits(
    loaded: LoadedModel, encoder: AnswerEncoder, sets: tuple[list[Example], list[Example]]
) -> None:
    batch = label(encoder, sets[1])
    expected, losses = by_hand(loaded.model, encoder, sets[1])
    torch.testing.assert_close(answer_logits(loaded.model, batch).log_softmax(-1), expected)
    torch.testing.assert_close(answer_loss(loaded.model, batch), torch.cat(losses).mean())
    sums = torch.stack([part.sum() for part in losses])
    torch.testing.assert_close(sequence_losses(loaded.model, batch), sums)


def test_pairs_are_drawn_from_both_sets_by_the_seed(
    encoder: AnswerEncoder, sets: tuple[list[Example], list[Example]]
) -> None:
    def drawn(seed: int) -> list[list[int]]:
        pairs = draw_pairs(encoder, *sets, Settings(0.0, steps=3, batch_size=2, seed=seed))
        return [batch.inputs["input_ids"].tolist() for pair in pairs for batch in pair]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    forget, retain = ([encoder.token_ids(e) for e in examples] for examples in sets)
    for number, batch in enumerate(drawn(0)):
        for row in batch:
            assert any(row[:20] == ids[:20] for ids in (retain if number % 2 else forget))


@pytest.mark.parametrize("weight", [0.7, 2.0])
@pytest.mark.parametrize("method", ["GA", "GD", "KL", "NPO", "oracle"])
def test_gradient_is_that_of_the_formula(
    method: str,
    weight: float,
    loaded: LoadedModel,
    encoder: AnswerEncoder,
    sets: tuple[list[Example], list[Example]],
) -> None:
    examples = sets[0][:4], sets[1][-4:]
    forget, retain = (label(encoder, chosen) for chosen in examples)
    with torch.no_grad():
        reference, _ = by_hand(loaded.model, encoder, examples[1])
        whole = by_hand(loaded.model, encoder, examples[0])[1]
        reference_sums = torch.stack([x.sum() for x in whole])
    with lora(loaded.model, 2, seed=0) as model:
        stirred(model)

        def formula() -> None:
            _, losses = by_hand(model, encoder, examples[0])
            known, kept = by_hand(model, encoder, examples[1])
            ce_f, ce_r = torch.cat(losses).mean(), torch.cat(kept).mean()
            divergence = (reference.exp() * (reference - known)).sum(-1).mean()
            ratio = torch.exp(reference_sums - torch.stack([x.sum() for x in losses]))
            beta = npo.BETA
            total = {
                "GA": -ce_f,
                "GD": -ce_f + weight * ce_r,
                "KL": -ce_f + weight * (ce_r + divergence),
                "NPO": (2 / beta) * torch.log(1 + ratio**beta).mean() + weight * ce_r,
                "oracle": ce_r,
            }
            total[method].backward()

        made = {
            "GA": ga.make_step,
            "GD": gd.make_step,
            "KL": kl.make_step,
            "NPO": npo.make_step,
            "oracle": lambda model, weight: oracle.make_step(model),
        }
        step = made[method](model, weight)
        ours, expected = gradients(model, lambda: step(forget, retain)), gradients(model, formula)
    assert any(gradient.abs().max() > 1e-4 for gradient in expected)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@given(st.floats(0, 50), st.floats(0, 50))
def test_npo_is_bounded_below_and_pushes_less_what_is_forgotten(loss: float, more: float) -> None:
    before = torch.zeros(1)
    near, far = torch.tensor([loss]), torch.tensor([loss + more])
    assert 0 <= npo.preference(far, before) <= npo.preference(near, before)


def test_kl_of_equal_models_is_nothing() -> None:
    logits = torch.randn(5, 7)
    assert kl.divergence(logits, logits) == pytest.approx(0, abs=1e-6)


def test_mmu_ascends_only_where_the_mask_is(loaded: LoadedModel, pairs: Pairs) -> None:
    forget, retain = pairs[0]
    with lora(loaded.model, 2, seed=0) as model:
        stirred(model)
        mask = mmu.make_mask(model, pairs)
        share = np.mean([chosen.float().mean().item() for chosen in mask])
        assert 0.05 < share < 0.95
        step = mmu.make_step(model, 2.0, mask)
        ours = gradients(model, lambda: step(forget, retain))
        ascent = gradients(model, lambda: (-answer_loss(model, forget)).backward())
        descent = gradients(model, lambda: (2.0 * answer_loss(model, retain)).backward())
    for got, up, down, chosen in zip(ours, ascent, descent, mask, strict=True):
        torch.testing.assert_close(got, up * chosen + down)


def test_mmu_mask_is_the_ratio_of_mean_squared_gradients(loaded: LoadedModel, pairs: Pairs) -> None:
    with lora(loaded.model, 2, seed=0) as model:
        stirred(model)
        expected = []
        for side in (0, 1):
            found = [
                gradients(
                    model, lambda pair=pair, side=side: answer_loss(model, pair[side]).backward()
                )
                for pair in pairs
            ]
            expected.append(
                [sum(g**2 for g in each) / len(pairs) for each in zip(*found, strict=True)]
            )
        for chosen, f, r in zip(mmu.make_mask(model, pairs), *expected, strict=True):
            clear = (f - r).abs() > 1e-6 * (f + r)
            assert torch.equal(chosen[clear], (f >= r)[clear])


@pytest.mark.parametrize("method", gradient.METHODS)
def test_every_method_moves_what_it_may_and_gives_the_model_back(
    method: str, loaded: LoadedModel, pairs: Pairs
) -> None:
    model = loaded.model
    before = {name: p.clone() for name, p in model.state_dict().items()}
    vanilla = answer_loss(model, pairs[0][0]).item()
    with gradient.unlearned(method, model, pairs, Settings(1e-3)) as trained:
        names = {name for name, _ in trained.named_parameters()}
        assert any("lora" in name for name in names) == (method != "MMU")
        assert answer_loss(trained, pairs[0][0]).item() > vanilla  # it ascends
        for name, value in trained.state_dict().items():
            kept = name.replace(".base_layer", "")
            if method != "MMU" and "lora" not in name:
                assert torch.equal(value, before[kept])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_step_without_finite_gradient_is_an_error(loaded: LoadedModel, pairs: Pairs) -> None:
    before = answer_loss(loaded.model, pairs[0][0]).item()
    with (
        pytest.raises(FloatingPointError, match="lower learning rate"),
        gradient.unlearned("GA", loaded.model, [*pairs] * 40, Settings(1e30)),
    ):
        pass
    assert answer_loss(loaded.model, pairs[0][0]).item() == before


def test_gradient_methods_take_images(tmp_path: Path) -> None:
    loaded = load_model(build_family("llava", tmp_path))
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    examples = read_examples(str(picture_rows(tmp_path)))
    pairs = draw_pairs(encoder, examples[:2], examples[2:], Settings(1e-3, steps=1))
    before = answer_loss(loaded.model, pairs[0][0]).item()
    with gradient.unlearned("GD", loaded.model, pairs, Settings(1e-2)) as trained:
        assert answer_loss(trained, pairs[0][0]).item() > before


def picture_rows(folder: Path) -> Path:
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 10, 200)).save(folder / f"{number}.png")
    rows = [
        {"question": "What colour is it?", "answer": f"It is {c}.", "image": f"{n}.png"}
        for n, c in enumerate(("red", "green", "blue", "pink"))
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def stored(
    llama: Path,
    sets: tuple[list[Example], list[Example]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    return kvw.collect_both(llama, *sets, folder)


def test_kvw_is_the_library(stored: Path, loaded: LoadedModel) -> None:
    statistics = Statistics.open(Location(str(stored / "statistics.zarr")))
    strength = Strength(0.3, LayerRange(0, 1))
    expected = vector_gates(statistics.sites, statistics.exponent(), 0.3, LayerRange(0, 1))
    np.testing.assert_array_equal(kvw.gates(stored / "statistics.zarr", strength), expected)
    assert kvw.gates(stored / "statistics.zarr", Strength(0.3, LayerRange(0, 1), 2.0)).min() < 1


def test_manu_scores_are_those_of_the_activations(
    stored: Path, loaded: LoadedModel, sets: tuple[list[Example], list[Example]]
) -> None:
    """Every activation at an answer position, kept by hooks of our own."""
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    kept: list[list[np.ndarray]] = []
    records: list[np.ndarray] = []
    for examples in sets:
        kept.append([])
        for example in examples:
            batch = label(encoder, [example])
            seen = []
            handles = [
                layer.mlp.down_proj.register_forward_pre_hook(
                    lambda _, inputs, seen=seen: seen.append(inputs[0][0].detach())
                )
                for layer in loaded.model.model.layers
            ]
            with torch.no_grad():
                loaded.model(**batch.inputs)
            for handle in handles:
                handle.remove()
            kept[-1].append(torch.cat(seen, dim=-1)[batch.rows].double().numpy())
        if len(kept) == 1:
            records = [np.abs(z).mean(0) for z in kept[0]]
    forget, retain = (np.concatenate(z) for z in kept)
    sums = [manu.Sums.read(str(stored / f"{kind}.zarr")) for kind in ("forget", "retain")]
    ours = manu.importances(*sums)
    assert list(ours) == ["abs", "freq", "var", "rms"]
    np.testing.assert_allclose(ours["abs"], np.abs(forget).mean(0), rtol=1e-5)
    np.testing.assert_allclose(ours["var"], forget.std(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(ours["rms"], np.sqrt((forget**2).mean(0)), rtol=1e-5)
    often = (np.array(records) > np.abs(retain).mean(0)).mean(0)
    np.testing.assert_allclose(ours["freq"], often, atol=1e-9)
    theirs = manu.importances(sums[1], sums[1])
    total = sum(ours[name] / (theirs[name] + 1e-5) - 1 for name in ours)
    np.testing.assert_allclose(manu.score(*sums), total)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_manu_prunes_the_best_scored_share_within_the_layers(seed: int, share: float) -> None:
    sites = [Site(f"{i}", f"{i}.weight", 1, i, -1, 10, 10 * i) for i in range(3)]
    scores = np.random.default_rng(seed).normal(size=30)
    gates = manu.gates(sites, scores, share, LayerRange(1, 2))
    assert (gates[:10] == 1).all()
    pruned = np.flatnonzero(gates == 0)
    assert len(pruned) == round(share * 20)
    rest = np.setdiff1d(np.arange(10, 30), pruned)
    if len(pruned) and len(rest):
        assert scores[pruned].min() >= scores[rest].max()


@given(
    st.lists(st.floats(1e-6, 1e4), min_size=2, max_size=30),
    st.floats(0.001, 0.9),
    st.floats(1e-3, 1e3),
)
def test_gamma_takes_the_share_whatever_the_scale(
    exponents: list[float], share: float, scale: float
) -> None:
    total = np.array(exponents)
    gamma = kvw.gamma_taking(share, total)
    assert np.mean(1 - np.exp(-gamma * total)) == pytest.approx(share)
    assert kvw.gamma_taking(share, scale * total) == pytest.approx(gamma / scale)


def test_control_keeps_what_each_layer_loses_but_takes_it_from_others(stored: Path) -> None:
    statistics = Statistics.open(Location(str(stored / "statistics.zarr")))
    total, sites = statistics.exponent(), statistics.sites
    dealt = kvw.permuted(total, sites)
    for site in sites:
        assert sorted(dealt[site.vectors]) == sorted(total[site.vectors])
        assert not np.array_equal(dealt[site.vectors], total[site.vectors])
    np.testing.assert_array_equal(dealt, kvw.permuted(total, sites))


@given(st.integers(1, RUNGS), st.integers(1, RUNGS), st.integers(1, 8))
def test_search_finds_the_strongest_that_keeps_enough(
    damage_at: int, forgets_at: int, budget: int
) -> None:
    """Retain falls from `damage_at` on, forget reaches nothing at `forgets_at`."""

    def measure(point: Point) -> Scores:
        damaged = point.rung >= damage_at
        forget = max(0.0, 1 - point.rung / forgets_at)
        return Scores(forget, 0.5 if damaged else 1.0)

    rule = Rule(1.0)
    tried = search(measure, rule, budget, shifts=())
    assert len(tried) <= budget
    assert len({point for point, _ in tried}) == len(tried)
    if budget >= 6:
        best = min((scores for _, scores in tried), key=rule.rank)
        allowed = damage_at - 1e-9  # the strongest, to within a grid of three rungs halved twice
        assert best.forget <= max(0.0, 1 - max(0.0, allowed - 1) / forgets_at) + 1e-6


@pytest.mark.parametrize(
    ("scores", "rungs"),
    [
        # Of equals the strongest is the best, and none goes beyond the ladder.
        (Scores(0.5, 0.99), [4, 7, 10, 13, 14.5, 15.25, RUNGS, 13.25]),
        (Scores(0.0, 0.5), [4, 7, 10, 13, 2, 1, 5, 2]),  # nothing is allowed: from the first
    ],
)
def test_what_is_left_of_the_budget_tries_the_second_settings(
    scores: Scores, rungs: list[float]
) -> None:
    seen: list[Point] = []

    def measure(point: Point) -> Scores:
        seen.append(point)
        return scores

    search(measure, Rule(1.0), 8, shifts=(1, -2))
    assert [point.second for point in seen] == [0, 0, 0, 0, 0, 0, 1, 2]
    assert [point.rung for point in seen] == rungs


@given(st.integers(1, RUNGS), st.integers(1, RUNGS), st.integers(4, 12))
def test_learning_rates_go_down_until_one_is_allowed(
    damage_at: int, forgets_at: int, budget: int
) -> None:
    """A higher rate forgets more; with more retain weight it also does less damage."""

    def measure(point: Point) -> Scores:
        damaged = point.rung >= damage_at + 2 * (point.second == 1)
        return Scores(max(0.0, 1 - point.rung / forgets_at), 0.5 if damaged else 1.0)

    rule = Rule(1.0)
    tried = search(measure, rule, budget)
    points = [point for point, _ in tried]
    assert len(points) <= budget
    assert len(set(points)) == len(points)
    assert all(1 <= point.rung <= RUNGS for point in points)
    if damage_at > 2 and budget >= 7:
        assert any(rule.allows(scores) for _, scores in tried)
