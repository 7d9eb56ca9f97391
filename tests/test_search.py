"""The rule of the paper, the bisection and the search, on scores that are known beforehand."""

from __future__ import annotations

import builtins
from collections.abc import Generator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvwstream.errors import OptionError
from kvwstream.search import (
    CLOSE,
    FAIRLY_CLOSE,
    REFINING,
    Rule,
    Scores,
    Space,
    Trial,
    bisection,
    gallop,
    search,
    two_folds,
)

SHARES = st.integers(0, 20).map(lambda n: n / 20)
TRIALS = st.lists(st.builds(Scores, SHARES, SHARES), max_size=12).map(
    lambda scores: [Trial({"gamma": n}, s) for n, s in enumerate(scores)]
)


@given(TRIALS, SHARES, st.none() | SHARES)
def test_the_best_keeps_enough_and_no_other_that_does_is_nearer(trials, vanilla, oracle):
    rule = Rule(vanilla, oracle_forget=oracle)
    best = rule.best(trials)
    allowed = [t for t in trials if t.scores.retain >= 0.95 * vanilla - 1e-9]
    assert (best is None) == (not allowed)
    if best:
        assert best in allowed
        wanted = oracle or 0
        nearest = min(abs(t.scores.forget - wanted) for t in allowed)
        assert abs(best.scores.forget - wanted) == nearest
        equal = [t for t in allowed if abs(t.scores.forget - wanted) == nearest]
        assert best.scores.retain == max(t.scores.retain for t in equal)
        assert best == min(trials, key=lambda trial: rule.rank(trial.scores))
    elif trials:
        first = min(trials, key=lambda trial: rule.rank(trial.scores))
        assert first.scores.retain == max(t.scores.retain for t in trials)


def test_the_rule_by_hand():
    trials = [
        Trial({"gamma": 0.01}, Scores(0.40, 0.80)),
        Trial({"gamma": 0.02}, Scores(0.10, 0.76)),
        Trial({"gamma": 0.03}, Scores(0.05, 0.75)),
    ]
    assert Rule(0.8).best(trials) == trials[1]  # 0.76 is 95 % of 0.80
    assert Rule(0.8, keep=0.9).best(trials) == trials[2]
    assert Rule(0.8, oracle_forget=0.3).best(trials) == trials[0]
    assert Rule(1.0).best(trials) is None


def tried(gammas: Generator[float, bool], boundary: float) -> list[float]:
    made = [next(gammas)]
    try:
        while True:
            made.append(gammas.send(made[-1] > boundary))
    except StopIteration:
        return made


@settings(deadline=None)
@given(st.floats(0.001, 0.05), st.integers(2, 7))
def test_a_bisection_closes_in_on_the_boundary(boundary, points):
    made = tried(bisection(0.001, 0.05, points), boundary)
    below, above = (
        [g for g in made if g <= boundary],
        [g for g in made if g > boundary],
    )
    assume(below and above)
    assert min(above) / max(below) <= CLOSE
    assert len(made) <= points + 7
    assert len(set(made)) == len(made)


@settings(deadline=None)
@given(st.floats(0.0012, 0.04), st.floats(0.001, 0.05))
def test_a_gallop_closes_in_on_the_boundary_from_any_guess(boundary, guess):
    made = tried(gallop(guess, 0.001, 0.05), boundary)
    below, above = [g for g in made if g <= boundary], [g for g in made if g > boundary]
    if below and above:
        assert min(above) / max(below) <= FAIRLY_CLOSE
    else:  # it ended at an end of the range
        assert min(made) < 0.001 * 1.5 or max(made) > 0.05 / 1.5


def world(setting) -> Scores:
    """Forgetting needs gamma * weight >= 0.02; keeping is best from layer 1 to 3 with power 2."""
    strength = setting["gamma"] * setting.get("power", 1)
    harm = 1 + abs(setting.get("start", 1) - 1) + abs(setting.get("stop", 3) - 3)
    harm /= setting.get("power", 1)
    return Scores(max(0.0, 1 - strength / 0.02), max(0.0, 1 - 0.06 * harm * strength / 0.02))


def test_gamma_alone_is_found_within_a_dozen_trials():
    trials = search(Space(0.001, 0.05, {"power": [1.0]}), world, Rule(1.0), budget=20)
    assert len(trials) <= 12
    best = Rule(1.0).best(trials)
    # 95 % is kept up to 0.02 * 0.05 / 0.06.
    assert 0.02 * 0.05 / 0.06 / CLOSE <= best.setting["gamma"] <= 0.02 * 0.05 / 0.06
    assert all(trial.setting["power"] == 1.0 for trial in trials)


SPACE = Space(
    0.001,
    0.05,
    {"start": [0, 1], "stop": [2, 3, 4], "power": [1.0, 2.0]},
    scale=lambda chosen: 1 / chosen["power"],
)


def test_layers_and_power_are_found_with_gamma():
    trials = search(SPACE, world, Rule(1.0), budget=60)
    assert len(trials) <= 60
    best = Rule(1.0).best(trials)
    assert best.scores.forget == 0
    assert {k: v for k, v in best.setting.items() if k != "gamma"} == {
        "start": 1,
        "stop": 3,
        "power": 2.0,
    }


@pytest.mark.parametrize("budget", [24, 60])
def test_the_chosen_proposal_is_refined(budget):
    trials = search(SPACE, world, Rule(1.0), budget=budget)
    best = Rule(1.0).best(trials)
    same = [t for t in trials if {**t.setting, "gamma": 0} == {**best.setting, "gamma": 0}]
    stronger = [t.setting["gamma"] for t in same if t.setting["gamma"] > best.setting["gamma"]]
    assert best.scores.forget == 0 or min(stronger) / best.setting["gamma"] <= CLOSE


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_a_search_keeps_to_its_budget_and_can_be_repeated(budget):
    first = search(SPACE, world, Rule(1.0), budget=budget, seed=3)
    assert budget - REFINING <= len(first) <= budget
    assert search(SPACE, world, Rule(1.0), budget=budget, seed=3) == first
    longer = search(SPACE, world, Rule(1.0), budget=budget + 5, seed=3)
    same = budget - REFINING if budget > REFINING else 0
    assert longer[:same] == first[:same]


def test_a_search_ends_when_everything_is_known():
    trials = search(Space(0.01, 0.05, {"power": [1.0, 2.0]}), world, Rule(1.0), budget=60)
    settings = [tuple(trial.setting.items()) for trial in trials]
    assert len(set(settings)) == len(settings) < 40


def test_without_optuna_more_than_gamma_is_refused(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r"needs the package optuna: pip install 'kvwstream\[sw"):
        search(SPACE, world, Rule(1.0), budget=3)


@given(st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=20), st.integers(0, 9))
def test_folds_keep_names_together_and_are_of_equal_size(names, seed):
    folds = two_folds(names, seed)
    of = dict(zip(names, folds, strict=True))
    assert folds == [of[name] for name in names]
    assert sum(of.values()) == len(of) // 2
    backwards = two_folds(names[::-1], seed)
    assert backwards[::-1] == folds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule(0.5, keep=1.2), "keep must be a share from 0 to 1, got 1.2"),
        (lambda: Space(0.05, 0.001), "from:to, both above 0"),
        (lambda: Space(0, 0.001), "from:to, both above 0"),
        (lambda: Space(0.1, 0.2, {"power": []}), "no choices for power"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()
