"""Evidence: cut at what was asked for, and the right numbers of hand-made ones."""

import dataclasses
import pathlib

import numpy as np
import pytest

from lagjax.analysis.margin import margin, steps_margin
from lagjax.evidence import Evidence, gather
from lagjax.jobs import Segment, Trial
from lagjax.store.directory import Store
from tests import toy
from tests.made import evidence, known

COUNTS = np.array([3.0, 1.0])
ONE = np.array([[1.0, 2.0], [3.0, 4.0]])
OTHER = np.array([[2.0, 2.0], [4.0, 6.0]])


def two() -> Evidence:
    """Two seeds, two shards of unequal size."""
    return evidence(
        {"a": {0: ONE + 5, 4: ONE}, "b": {0: ONE + 5, 4: OTHER}, "c": {0: ONE}},
        [known("a"), known("b"), known("c"), known("d")],
        train={"a": [[1, 2, 3, 4], [5, 6, 7, 8]], "b": [[2, 2, 4, 4], [6, 8, 7, 9]]},
        counts=COUNTS,
    )


def test_losses_weigh_shards_and_seeds() -> None:
    found = two()
    assert found.loss("a", 4) == pytest.approx((1.25 + 3.25) / 2)
    assert found.loss("b", 4) == pytest.approx((2.0 + 4.5) / 2)
    assert found.losses(4) == {"a": 2.25, "b": 3.25, "c": None, "d": None}
    assert found.loss("a", 3) is None
    assert (found.last("b"), found.last("c"), found.last("d")) == (3.25, 2.25, None)
    assert found.shards("a", 4).tolist() == ONE.tolist() and found.shards("c", 4) is None
    assert (found.steps("a"), found.steps("d")) == ((0, 4), ())
    assert [found.reached(name) for name in "abcd"] == [4, 4, 0, -1]
    assert found.frontier == 4


def test_one_seed_that_failed_is_no_loss() -> None:
    lost = ONE.copy()
    lost[1, 0] = np.nan
    found = evidence({"a": {4: lost}, "b": {4: ONE}}, counts=COUNTS)
    assert found.loss("a", 4) is None and found.ranking(4) == ("b",)
    # Nor is one that was not measured.
    lines = {trial: lines for trial, lines in found.lines.items() if trial != ("b", 1)}
    found = dataclasses.replace(found, lines=lines)
    assert found.loss("b", 4) is None and found.steps("b") == ()


def test_rankings_are_of_those_that_may_win() -> None:
    losses = {"a": {4: 3.0}, "b": {4: 1.0, 8: 0.9}, "c": {4: 2.0}, "d": {4: 0.5}}
    found = evidence(losses, [known(x) for x in "abc"] + [known("d", role="control")])
    assert found.ranking(4) == ("b", "c", "a")
    assert found.ranking(8) == ("b",)
    assert found.ranking() == ("b", "c", "a")


def test_margins_are_paired() -> None:
    found = two()
    assert found.margin("a", "b", 4) == margin(ONE, OTHER, COUNTS)
    assert found.margin("a", "b", 4).mean == pytest.approx(1.0)
    assert found.margin("b", "a", 4).mean == pytest.approx(-1.0)
    # Each at its own last.
    assert found.margin("c", "b").mean == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"'a' were.* \(0, 4\), those of 'c' at \(0,\); a margin"):
        found.margin("a", "c", 4)
    with pytest.raises(ValueError, match=r"of 'd' at \(\); a margin at the last of each"):
        found.margin("a", "d")


def test_margins_of_training_losses() -> None:
    found = two()
    rows = [[1, 2, 3, 4], [5, 6, 7, 8]], [[2, 2, 4, 4], [6, 8, 7, 9]]
    one, other = (np.array(row, np.float64) for row in rows)
    assert found.train_margin("a", "b", 1, 4) == steps_margin(one[:, 1:], other[:, 1:])
    assert found.train_margin("a", "b", 1, 4).mean == pytest.approx(4 / 6)
    for name, start, stop, made in (
        ("b", 0, 5, 4), ("b", 7, 9, 4), ("b", 2, 2, 4), ("b", -2, 3, 4), ("c", 0, 1, 0),
    ):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"has made {made} steps.*steps {start} to {stop} needs"
        ):
            found.train_margin("a", name, start, stop)


def test_what_is_left_and_what_flops_buy() -> None:
    free = known("c", step_flops=0.0)
    found = evidence({"a": {4: 1.0}}, [known("a"), known("b", step_flops=40.0, horizon=30), free])
    assert (found.left("a"), found.left("b")) == (96 * 10, 30 * 40)
    assert found.steps_for(0) == {"a": 1, "b": 1, "c": 100}
    assert found.steps_for(400) == {"a": 40, "b": 10, "c": 100}
    assert found.steps_for(1e6) == {"a": 100, "b": 30, "c": 100}


def line(trial: Trial, step: int, status: str = "ok") -> dict:
    loss = [None, None] if status != "ok" else [float(step), 1.0]
    return {
        "candidate": trial.candidate,
        "seed": trial.seed,
        "step": step,
        "valid_loss_shards": loss,
        "seconds": 1.5,
        "status": status,
    }


def test_the_record_is_cut_at_what_was_asked_for(tmp_path: pathlib.Path) -> None:
    """A resumed run sees what it saw, though the record goes further."""
    task = toy.task(seeds=2, valid=toy.VALID[:2])
    pool = {name: known(name) for name in ("a", "b", "c")}
    trials = [Trial(name, seed) for name in ("a", "b") for seed in (0, 1)]
    with Store(tmp_path) as store:
        for trial in trials:
            lines = [line(trial, step) for step in (0, 4, 8)]
            stop = 8
            if trial == ("b", 1):
                lines[2] = line(trial, 6, "loss not finite at step 5")
                stop = 6
            losses = np.arange(stop, dtype=np.float32)
            store.commit(Segment((trial,), -1, 8, tuple(lines), {trial: losses}))
        nothing = gather(store, pool, {}, set(), 0, task, 7.0)
        assert nothing.lines == nothing.train == nothing.asked == {}
        assert (nothing.spent, nothing.frontier, nothing.additions) == (7.0, 0, 0)
        store.once(("shard_tokens",), lambda: [3.0, 1.0])
        found = gather(store, pool, {"a": 4, "b": 4}, set(), 2, task, 7.0)
        assert {t: [x["step"] for x in lines] for t, lines in found.lines.items()} == {
            trial: [0, 4] for trial in trials
        }
        assert all(losses.tolist() == [0, 1, 2, 3] for losses in found.train.values())
        # A failure that comes later has not happened yet.
        assert found.known["b"].status == "ok" and found.additions == 2
        assert found.loss("b", 4) == pytest.approx((3 * 4 + 1) / 4)
        # Ten FLOPs a step, three an evaluation.
        assert found.spent == 7 + 4 * (4 * 10 + 2 * 3)
        assert "seconds" not in found.lines[trials[0]][0]
        later = gather(store, pool, {"a": 4, "b": 8}, set(), 0, task, 0.0)
        assert later.known["b"].status == "loss not finite at step 5 with seed 1"
        assert later.loss("b", 8) is None and later.loss("a", 8) is None
        assert later.spent == 2 * (40 + 6) + (80 + 9) + (60 + 9)
        assert later.reached("c") == -1


def leading(bias: float, step: int = 100) -> Evidence:
    """Three candidates 0, .02 and .05 apart, evaluated on eight shards at a step; in training
    losses they are further apart by a bias.
    """
    random = np.random.default_rng(0)
    shards, batches = random.normal(size=8) * 0.2 + 2, random.normal(size=step) * 0.2 + 2
    found = evidence({}, [known("a"), known("b"), known("c")])
    lines, train = {}, {}
    for name, apart in (("a", 0.0), ("b", 0.02), ("c", 0.05)):
        trial = Trial(name, 0)
        noise = random.normal(size=(2, step)) * 0.01
        losses = (shards + apart + noise[0, :8]).tolist()
        lines[trial] = [{"step": step, "valid_loss_shards": losses, "status": "ok"}]
        train[trial] = (batches + apart + bias * (name != "a") + noise[1]).astype(np.float32)
    return dataclasses.replace(
        found, lines=lines, train=train, seeds=1, counts=np.ones(8),
        asked=dict.fromkeys("abc", step),
    )  # fmt: skip


def test_a_lead_joins_validation_and_the_steps_before_it() -> None:
    found = leading(0.0)
    lead = found.lead()
    assert (lead.leader, lead.why, [*lead.over]) == ("a", "", ["b", "c"])
    for name, apart in (("b", 0.02), ("c", 0.05)):
        alone, both = found.margin("a", name, 100), lead.over[name]
        assert both.low <= apart <= both.high
        # The window of 25 steps makes it surer.
        assert both.high - both.low < alone.high - alone.low


def test_a_lead_is_validations_alone_where_training_says_otherwise() -> None:
    found = leading(0.03)
    lead = found.lead()
    assert lead.why == "training losses of the 25 steps before step 100 differ otherwise"
    assert lead.over["b"] == found.margin("a", "b", 100)
    short = leading(0.0, 36).lead()
    assert short.why == "9 steps before step 36 are too few"
    with pytest.raises(ValueError, match="no candidate was evaluated at step 50"):
        found.lead(50)


def test_candidates_are_compared_on_the_shards_that_all_have() -> None:
    """A shard of twice the loss, which one target was not evaluated on, makes it no better."""
    found = evidence({}, [known("a"), known("b")], counts=np.ones(3))
    shards = {"a": [1.0, 1.0, 4.0], "b": [1.1, 1.1]}
    lines = {
        Trial(name, 0): [{"step": 8, "valid_loss_shards": each, "status": "ok"}]
        for name, each in shards.items()
    }
    found = dataclasses.replace(found, lines=lines, seeds=1, asked={"a": 8, "b": 8})
    assert found.losses(8) == {"a": pytest.approx(1.0), "b": pytest.approx(1.1)}
    assert found.ranking() == ("a", "b") and found.loss("a", 8) == pytest.approx(2.0)
    assert found.margin("a", "b").mean == pytest.approx(0.1)
