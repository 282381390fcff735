"""Evaluations: seldom, on no more shards than a share of the training pays, and on fewer of what is
far behind.
"""

import pathlib
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import lagjax
from lagjax.evaluations import FEWEST, enough, planned
from lagjax.executors.workload import Workload
from lagjax.jobs import evaluated
from tests import quick, toy
from tests.made import evidence, known

no_page, groups_kept = quick.no_page, quick.groups_kept


def work(shards: int = 16, averages: int = 0, shard: float = 1 / 3, horizon: int = 800) -> Workload:
    """Steps of one FLOP, evaluations of `shards` shards."""
    rules = {f"ema {index}": lagjax.Ema(0.1) for index in range(averages)}
    task = SimpleNamespace(valid=[None] * shards, averages=rules, horizon=horizon)
    group = SimpleNamespace(task=task, costs=SimpleNamespace(step=1.0, evaluation=shards * shard))
    return SimpleNamespace(task=task, groups={"a": group})


def share(found: dict[int, int], until: int, averages: int = 0) -> float:
    """What a plan's evaluations up to a step take, of a step's FLOPs each."""
    of_weights = {step: count * (1 + averages * (step > 0)) for step, count in found.items()}
    return sum(of_weights.values()) / 3 / until


@pytest.mark.parametrize("averages", [0, 1, 5])
@pytest.mark.parametrize(("lag", "most"), [(200, 0.05), (400, 0.05), (80, 0.1), (40, 0.1)])
def test_a_probe_is_evaluated_at_its_ends(lag: int, most: float, averages: int) -> None:
    found = planned(work(averages=averages), "a", {lag: 16}, lag, False, False)
    assert [*found] == [0, lag] and found[0] == found[lag] >= 2
    taken = share(found, lag, averages)
    assert taken <= most or found[lag] == 2
    # No more shards than pay, and no fewer.
    one_more = {step: count + 1 for step, count in found.items()}
    assert found[lag] == 16 or share(one_more, lag, averages) > most


def test_each_probe_pays_for_its_own() -> None:
    """What was asked before is in the plan as it was, and is not paid for again."""
    first = planned(work(64), "a", {80: 64}, 80, False, False)
    second = planned(work(64), "a", {80: 64, 400: 64}, 400, False, False)
    assert {step: second[step] for step in first} == first
    assert second[400] == int(0.05 * 320 * 3)


def test_an_end_is_evaluated_on_all() -> None:
    assert planned(work(64), "a", {80: 64, 800: 2}, 800, False, False)[800] == 64


def test_what_goes_on_is_watched() -> None:
    probe = planned(work(), "a", {200: 16}, 200, False, False)
    found = planned(work(), "a", {200: 16}, 800, True, False)
    assert [*found] == [0, 200, 300, 400, 500, 600, 700, 800]
    assert {step: found[step] for step in probe} == probe
    assert {found[step] for step in found if step > 200} == {16}


def test_an_audit_is_dense() -> None:
    found = planned(work(), "a", {}, 800, True, True)
    assert {1, 2, 4, 50, 800} <= {*found} and {*found.values()} == {16}


def test_shards_that_cost_nothing_are_all_taken() -> None:
    assert planned(work(shard=0.0), "a", {40: 16}, 40, False, False) == {0: 16, 40: 16}


def test_more_than_is_enough_is_not_taken() -> None:
    """Of the shards that are paid for; never fewer than tell an error."""
    found = planned(work(64), "a", {80: 64, 200: 4, 400: 1}, 400, False, False)
    assert {200: 4, 400: FEWEST}.items() <= found.items() and found[80] > 4


def test_what_is_far_behind_needs_few_shards() -> None:
    """The error of a mean falls with the root of their number: as many as it takes for the interval
    of the difference to end at 0.
    """
    spread = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0]) / 10
    losses = {"best": [spread * 0 + 1.0], "near": [spread + 1.1], "far": [spread + 3.0]}
    found = evidence({name: {4: rows} for name, rows in losses.items()})
    margin = found.margin("best", "near", 4)
    needed = 8 * ((margin.high - margin.mean) / 0.1) ** 2
    assert 4 < needed < 7
    # The leader as many as the nearest of the others.
    assert enough(found, 16) == {"best": np.ceil(needed), "near": np.ceil(needed), "far": FEWEST}
    tied = evidence({"best": {4: [spread * 0 + 1.0]}, "near": {4: [spread + 1.001]}})
    assert enough(tied, 16) == {"best": 16, "near": 16}


def test_where_nothing_was_measured_all_shards_are_needed() -> None:
    nothing = evidence({}, [known("a"), known("b")])
    assert enough(nothing, 16) == {"a": 16, "b": 16}
    lost = evidence({"a": {4: [[np.nan] * 8]}, "b": {4: 1.0}})
    assert enough(lost, 16) == {"a": 16, "b": 16}


@pytest.mark.parametrize("averages", [{}, {"average": lagjax.Ema(1 / 32)}])
def test_a_race_looks_less_at_what_is_far_behind(
    tmp_path: pathlib.Path, averages: dict[str, lagjax.Ema]
) -> None:
    """The second round's shards follow from the first one's losses, and from no others."""
    valid = tuple(toy.batch(1000, index) for index in range(24))
    spoilt = lagjax.Candidate("spoilt", Spoilt(), toy.LARGE)
    task = toy.task(valid=valid, averages=averages, horizon=400)
    lagjax.run(task, (*toy.pool("stack", "zeroed-stack"), spoilt), Twice(), tmp_path / "run")
    taken = {
        name: [len(x["valid_loss_shards"]) for x in toy.curve(tmp_path / "run", name)]
        for name in ("stack", "zeroed-stack", "spoilt")
    }
    assert {name: x[:2] for name, x in taken.items()} == dict.fromkeys(taken, taken["stack"][:2])
    assert taken["spoilt"][2] == FEWEST < max(taken["stack"][2], taken["zeroed-stack"][2])


@dataclass(frozen=True)
class Spoilt:
    """A start that takes long to mend."""

    def __call__(self, key: object, params: object, source: object, target: object, /) -> object:
        grown = lagjax.Grow(depth="0 1 0 1")(key, params, source, target)
        return jax.tree.map(lambda x: 30 * x, grown)


@dataclass(frozen=True)
class Twice:
    """All to two steps."""

    def __call__(self, evidence: lagjax.Evidence, /) -> lagjax.Probe | lagjax.Decision:
        later = [step for step in (100, 300) if step > evidence.frontier]
        return lagjax.Probe(later[0]) if later else lagjax.decide(evidence, 300)


def test_evaluated_counts_shards_and_averages() -> None:
    line = {"step": 8, "valid_loss_shards": [1.0, 2.0], "averages": {"a": {}, "b": {}}}
    assert evaluated(line) == 6 and evaluated(line | {"step": 0}) == 2
    assert evaluated({"step": 8, "valid_loss_shards": [1.0]}) == 1
