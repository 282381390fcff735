"""Policies and decisions, by hand-made numbers."""

import dataclasses
import json

import numpy as np
import pytest

from lagjax.jobs import Trial
from lagjax.select.decision import Decision, Probe, decide, start_choice
from lagjax.select.fixed import FixedLag
from tests.made import SHARDS, evidence, known


def probes(
    *means: float,
    spread: float = 0.0,
    controls: tuple[str, ...] = (),
    seeds: int = 1,
    roles: str = "control",
) -> object:
    """Candidates a, b, ... with these mean losses at step 4; shards share most of their noise."""
    random = np.random.default_rng(0)
    common = random.normal(size=(seeds, SHARDS))
    own = random.normal(size=(len(means), seeds, SHARDS))
    own -= own.mean(axis=-1, keepdims=True)
    losses = np.array(means)[:, None, None] + common - common.mean(-1, keepdims=True) + spread * own
    names = "abcdefgh"[: len(means)]
    return evidence(
        {name: {0: np.full((seeds, SHARDS), 9.0), 4: x} for name, x in zip(names, losses)},
        [known(name, role=roles if name in controls else "candidate") for name in names],
    )


def test_clear() -> None:
    decision = decide(probes(3.0, 2.0, 2.5, spread=0.01), 4)
    assert (decision.winner, decision.runner_up, decision.outcome) == (
        "b",
        "c",
        "clear",
    )
    assert decision.ranking == ("b", "c", "a")
    assert decision.margin == pytest.approx(0.5)
    assert decision.margin_interval is not None
    assert decision.margin_interval[0] < 0.5 < decision.margin_interval[1]
    assert decision.tied == ("b",)


def test_common_noise_does_not_matter() -> None:
    """Shards differ by ±1 nat, the candidates by 0.1: only pairing can tell."""
    assert decide(probes(2.1, 2.0, spread=0.01), 4).outcome == "clear"


def test_tie_keeps_the_earliest_of_the_tied() -> None:
    decision = decide(probes(5.0, 2.001, 2.0, 2.002, spread=0.1), 4)
    assert (decision.winner, decision.runner_up, decision.outcome) == ("b", "c", "tie")
    assert decision.tied == ("b", "c", "d")
    assert decision.margin == pytest.approx(-0.001)
    assert decision.ranking[0] == "c"


def test_failed_and_controls_cannot_win() -> None:
    decision = decide(probes(np.nan, 1.0, 2.0, 3.0, spread=0.01, controls=("b",)), 4)
    assert (decision.winner, decision.runner_up) == ("c", "d")
    assert decision.ranking == ("b", "c", "d")
    assert decision.losses_at_lag["a"] is None
    assert decision.status["a"] != "ok"


def test_baselines_are_ranked_and_cannot_win() -> None:
    decision = decide(probes(1.0, 2.0, spread=0.01, controls=("a",), roles="baseline"), 4)
    assert (decision.winner, decision.ranking, decision.outcome) == ("b", ("a", "b"), "clear")
    assert decide(probes(1.0, controls=("a",)), 4).outcome == "all_failed"


def test_all_failed() -> None:
    decision = decide(probes(np.nan, np.nan), 4)
    assert set(decision.status.values()) == {"loss not finite at step 2"}
    assert (decision.winner, decision.outcome, decision.margin) == (
        None,
        "all_failed",
        None,
    )


def test_a_pool_of_one() -> None:
    decision = decide(probes(2.0), 4)
    assert (decision.winner, decision.runner_up, decision.outcome, decision.margin) == (
        "a",
        None,
        "clear",
        None,
    )


def test_at_a_step_or_each_at_its_own_last() -> None:
    """Whom a race left behind takes part only in what it was measured at."""
    losses = {
        "a": {0: 9.0, 2: 3.0},
        "b": {0: 9.0, 2: 4.0, 4: 3.5},
        "c": {0: 9.0, 2: 5.0, 4: 3.6},
    }
    found = evidence(losses, spread=0.001)
    at = decide(found, 4)
    assert (at.winner, at.runner_up, at.ranking, at.lag) == ("b", "c", ("b", "c"), 4)
    assert at.lags == {"a": 4, "b": 4, "c": 4}
    assert at.losses_at_lag["a"] is None and at.losses_at_start["a"] == pytest.approx(9)
    assert at.status == {"a": "stopped at step 2", "b": "ok", "c": "ok"}
    last = decide(found)
    assert (last.winner, last.runner_up, last.lag) == ("a", "b", 2)
    assert last.lags == {"a": 2, "b": 4, "c": 4} and last.ranking == ("a", "b", "c")
    assert last.margin == pytest.approx(0.5)
    assert set(last.status.values()) == {"ok"}


def test_fixed_lag_asks_then_decides() -> None:
    found = probes(2.0, 3.0, spread=0.01)
    assert FixedLag(7)(found) == Probe(7)
    assert isinstance(FixedLag(4)(found), Decision)
    assert isinstance(FixedLag(share=0.04)(found), Decision)
    assert FixedLag(share=0.04)(evidence({}, [known("a")])) == Probe(4)


def test_what_a_probe_asks_for() -> None:
    pool = ("a", "b", "c")
    assert Probe(3).steps(pool) == {"a": 3, "b": 3, "c": 3}
    assert list(Probe(3, ("c", "a")).steps(pool)) == ["a", "c"]
    assert Probe({"c": 5, "b": 2}).steps(pool) == {"b": 2, "c": 5}
    assert Probe({"c": 5, "b": 2}, ("c",)).steps(pool) == {"c": 5}
    for probe in (
        Probe(3, ("a", "x")),
        Probe({"x": 1, "a": 2}),
        Probe({"a": 2}, ("x",)),
        Probe({"a": 2}, ("b",)),
    ):
        says = r"asks for the candidates \['x'\]; there|asks for \['b'\] without a step; it gives"
        with pytest.raises(ValueError, match=says):
            probe.steps(pool)
    # As policies make them, and JSON takes them.
    steps = Probe({"a": np.int64(3)}).steps(pool)
    assert json.loads(json.dumps(steps)) == {"a": 3}
    made = decide(probes(2.0, 3.0, spread=0.01), np.int64(4)).as_json()
    assert json.loads(json.dumps(made))["lags"] == {"a": 4, "b": 4}


@pytest.mark.parametrize(
    "policy",
    [FixedLag(3, 0.1), FixedLag(101), FixedLag(0), FixedLag(share=1.5), FixedLag(share=0)],
)
def test_a_lag_that_does_not_fit(policy: FixedLag) -> None:
    with pytest.raises(ValueError, match="horizon"):
        policy.lag(100)


def test_start_choice_breaks_ties_by_the_alphabet() -> None:
    losses = {"e": 1.0, "c": 2.0, "a": 3.0, "b": 2.0 + 1e-6, "d": None}
    assert start_choice(losses, {"e"}) == "b"
    assert start_choice({"a": 2.001, "b": 2.0}) == "b"
    assert start_choice({"a": None}) is None


def test_a_fixed_lag_by_default() -> None:
    """A sixteenth of the horizon, by the task's first average where it has one."""
    one, other = known("a"), known("b")
    assert FixedLag()(evidence({}, [one, other])) == Probe(round(100 / 16))
    # Of a short horizon a step, not none.
    assert FixedLag().lag(7) == 1
    raw = evidence({"a": {6: [[1.0, 1.1]]}, "b": {6: [[2.0, 2.1]]}}, [one, other])
    assert FixedLag()(raw).weights == "raw"
    lines = {
        Trial(name, 0): [
            {
                "step": 6, "valid_loss_shards": [loss, loss], "status": "ok",
                "averages": {"ema": {"valid_loss_shards": [3 - loss, 3.1 - loss]}},
            }
        ]
        for name, loss in (("a", 1.0), ("b", 2.0))
    }  # fmt: skip
    kept = dataclasses.replace(raw, lines=lines, averages=("ema",))
    assert (FixedLag()(kept).winner, FixedLag()(kept).weights) == ("b", "ema")
    assert FixedLag(weights="raw")(kept).winner == "a"


def test_weights_are_told_where_all_have_failed() -> None:
    failed = evidence({"a": {6: [[np.nan, np.nan]]}}, [known("a")])
    found = decide(failed, 6, "ema")
    assert (found.outcome, found.weights) == ("all_failed", "ema")
