"""Evaluations: seldom, and on no more shards than a share of the training pays."""

from types import SimpleNamespace

import pytest

import lagjax
from lagjax.evaluations import planned
from lagjax.executors.workload import Workload
from lagjax.jobs import evaluated


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
    found = planned(work(averages=averages), "a", (), lag, False, False)
    assert [*found] == [0, lag] and found[0] == found[lag] >= 2
    taken = share(found, lag, averages)
    assert taken <= most or found[lag] == 2
    # No more shards than pay, and no fewer.
    one_more = {step: count + 1 for step, count in found.items()}
    assert found[lag] == 16 or share(one_more, lag, averages) > most


def test_each_probe_pays_for_its_own() -> None:
    """What was asked before is in the plan as it was, and is not paid for again."""
    first = planned(work(64), "a", (), 80, False, False)
    second = planned(work(64), "a", (80,), 400, False, False)
    assert {step: second[step] for step in first} == first
    assert second[400] == int(0.05 * 320 * 3)


def test_an_end_is_evaluated_on_all() -> None:
    assert planned(work(64), "a", (80,), 800, False, False)[800] == 64


def test_what_goes_on_is_watched() -> None:
    probe = planned(work(), "a", (200,), 200, False, False)
    found = planned(work(), "a", (200,), 800, True, False)
    assert [*found] == [0, 200, 300, 400, 500, 600, 700, 800]
    assert {step: found[step] for step in probe} == probe
    assert {found[step] for step in found if step > 200} == {16}


def test_an_audit_is_dense() -> None:
    found = planned(work(), "a", (), 800, True, True)
    assert {1, 2, 4, 50, 800} <= {*found} and {*found.values()} == {16}


def test_shards_that_cost_nothing_are_all_taken() -> None:
    assert planned(work(shard=0.0), "a", (), 40, False, False) == {0: 16, 40: 16}


def test_evaluated_counts_shards_and_averages() -> None:
    line = {"step": 8, "valid_loss_shards": [1.0, 2.0], "averages": {"a": {}, "b": {}}}
    assert evaluated(line) == 6 and evaluated(line | {"step": 0}) == 2
    assert evaluated({"step": 8, "valid_loss_shards": [1.0]}) == 1
