"""Any policy, interrupted between any two events of the record, ends with the record of a run that
was not.

Here an interruption is an exception right after a write, a rename, a cut or a removal;
`test_kill.py` has real kills.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

import lagjax
from lagjax import runs
from lagjax.executors.workload import Executor, Workload
from lagjax.jobs import Job, Segment, Trial, Update
from lagjax.store.directory import read
from lagjax.store.losses import Losses, file_name
from tests import policies, quick, toy

no_page, groups_kept = quick.no_page, quick.groups_kept

WIDER = toy.model(6)
POOL = (*toy.pool("stack", "identity-top", "random-top"), toy.pool("zeroed-stack")[0])
MIXED = (*POOL[:2], lagjax.Candidate("deeper", POOL[0].operator, WIDER))
POLICIES: dict[str, tuple[lagjax.select.decision.Policy, Sequence[lagjax.Candidate]]] = {
    "fixed": (lagjax.FixedLag(9), POOL),
    "racing": (policies.Halving(5), POOL),
    "proposing": (policies.Evolve(toy.LARGE, 4), POOL[:2]),
    "uneven": (policies.Uneven(), POOL),
    "equal FLOPs": (policies.AtFlops(2.5e6), MIXED),
}


class Interrupted(BaseException):
    """What a kill is here."""


class Simulated:
    """An executor that trains nothing: losses are drawn, checkpoints are empty folders."""

    def __call__(self, work: Workload, jobs: Sequence[Job], /) -> Iterator[Update]:
        for job in jobs:
            folders = [work.checkpoints / file_name(trial) for trial in job.trials]
            saved = [{int(x.name) for x in f.iterdir()} if f.is_dir() else set() for f in folders]
            start = max(set.intersection(*saved), default=-1)
            first = start
            while start < job.until:
                stop = min(max(start, 0) + 4, job.until)
                steps = [x for x in job.evaluations if start < x <= stop]
                for folder in folders:
                    (folder / str(stop)).mkdir(parents=True, exist_ok=True)
                    tick()
                yield Segment(
                    job.trials,
                    start,
                    stop,
                    tuple(_line(trial, step, job.phase) for step in steps for trial in job.trials),
                    {trial: _losses(trial)[max(start, 0) : stop] for trial in job.trials},
                    (1.0,) * len(toy.VALID),
                )
                start = stop
            assert first <= job.until


def _losses(trial: Trial) -> np.ndarray:
    common = np.random.default_rng([trial.seed, 1]).normal(size=100)
    own = np.random.default_rng([len(trial.candidate), trial.seed]).normal(size=100)
    return (3 + common + 0.1 * own).astype(np.float32)


def _line(trial: Trial, step: int, phase: str) -> dict:
    draw = np.random.default_rng([len(trial.candidate), trial.seed, step])
    shards = draw.normal(3 / (1 + 0.01 * step), 0.1, len(toy.VALID)).tolist()
    return {
        "phase": phase,
        "candidate": trial.candidate,
        "seed": trial.seed,
        "step": step,
        "valid_loss": float(np.mean(shards)),
        "valid_loss_shards": shards,
        "train_loss": None,
        "grad_norm": None,
        "update_norm": None,
        "lr": None,
        "metrics": {},
        "tokens": step,
        "flops": float(step),
        "seconds": float(step),
        "status": "ok",
    }


tick: Callable[[], None] = lambda: None


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], list[int]]]:
    """`events(n)` interrupts after the n-th event from now, `events(None)` never; the list's length
    counts them.
    """
    state: dict = {"left": None, "count": []}

    def happened() -> None:
        state["count"].append(1)
        if state["left"] is not None and len(state["count"]) == state["left"]:
            raise Interrupted

    def after(module: object, name: str) -> None:
        original = getattr(module, name)

        def wrapped(*given: object, **named: object) -> object:
            result = original(*given, **named)
            happened()
            return result

        monkeypatch.setattr(module, name, wrapped)

    def arm(left: int | None) -> list[int]:
        state["left"], state["count"] = left, []
        return state["count"]

    after(os, "fsync")
    after(os, "truncate")
    after(pathlib.Path, "replace")
    after(shutil, "rmtree")
    monkeypatch.setattr("tests.test_policies.tick", happened)
    yield arm


def go(path: pathlib.Path, name: str, executor: Executor, **options: object) -> lagjax.Decision:
    policy, pool = POLICIES[name]
    task = toy.task(seeds=2)
    options = {"checkpoint_seconds": 0.0, "progress": toy.Told(), "executor": executor} | options
    return lagjax.run(task, pool, policy, path, **options)


def record(path: pathlib.Path) -> tuple:
    """All that is not a time."""
    data = read(path)
    lines = sorted(
        (json.dumps(line | {"seconds": 0}, sort_keys=True) for line in data.curves),
    )
    assert data.decision is not None
    decision = data.decision | {"ledger": data.decision["ledger"] | {"seconds": 0}}
    trials = {Trial(line["candidate"], line["seed"]) for line in data.curves}
    losses = {trial: Losses(path / "steps").of(trial).tobytes() for trial in trials}
    kept = sorted(str(x.relative_to(path)) for x in (path / "checkpoints").glob("*/*"))
    return lines, data.rounds, decision, losses, kept, data.config


def interrupted(
    tmp_path: pathlib.Path,
    events: Callable[[int | None], list[int]],
    name: str,
    executor: Executor,
    sample: int | None,
    **options: object,
) -> int:
    """Compares the runs that were interrupted once with the one that was not; returns how many."""
    count = events(None)
    decision = go(tmp_path / "whole", name, executor, **options)
    whole, total = record(tmp_path / "whole"), len(count)
    at = np.arange(1, total + 1)
    if sample is not None:
        at = np.random.default_rng(0).choice(at, min(sample, total), replace=False)
    for number in at:
        path = tmp_path / str(number)
        events(int(number))
        with pytest.raises(Interrupted):
            go(path, name, executor, **options)
        events(None)
        # But for the ledger's seconds; its FLOPs are in the record.
        again = go(path, name, executor, **options)
        assert again._replace(ledger=None) == decision._replace(ledger=None), number
        assert record(path) == whole, number
        shutil.rmtree(path)
    return len(at)


@pytest.mark.parametrize(
    "name",
    [
        # Those that need the most of what is on record; the others at every event, with -m slow.
        name if name in ("racing", "proposing") else pytest.param(name, marks=pytest.mark.slow)
        for name in POLICIES
    ],
)
def test_interrupted_at_some_events(
    name: str, tmp_path: pathlib.Path, events: Callable[[int | None], list[int]]
) -> None:
    assert interrupted(tmp_path, events, name, Simulated(), 6, compare="start") == 6


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["winner", "all"])
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_interrupted_at_every_event(
    name: str,
    at_once: int,
    keep: str,
    tmp_path: pathlib.Path,
    events: Callable[[int | None], list[int]],
) -> None:
    options = {"candidates_at_once": at_once, "keep": keep, "compare": "start"}
    assert interrupted(tmp_path, events, name, Simulated(), None, **options) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["racing", "proposing", "uneven"])
def test_interrupted_while_training(
    name: str, tmp_path: pathlib.Path, events: Callable[[int | None], list[int]]
) -> None:
    """The same with real training, at 20 events."""
    executor = runs.SERIAL
    assert interrupted(tmp_path, events, name, executor, 20, candidates_at_once=2) == 20


def test_racing_leaves_some_behind(tmp_path: pathlib.Path) -> None:
    decision = go(tmp_path / "run", "racing", Simulated())
    assert sorted(decision.lags.values()) == [20] * 4
    assert sorted(decision.status.values()) == [
        "ok",
        "stopped at step 10",
        "stopped at step 5",
        "stopped at step 5",
    ]
    rounds = read(tmp_path / "run").rounds
    assert [len(each["until"]) for each in rounds if each["answer"] == "Probe"] == [4, 2, 1]


def test_proposed_candidates_are_trained_and_recorded(tmp_path: pathlib.Path) -> None:
    decision = go(tmp_path / "run", "proposing", Simulated())
    added = [x for each in read(tmp_path / "run").rounds for x in each.get("candidates", ())]
    assert len(added) == 4
    assert {x["name"] for x in added} < set(decision.losses_at_lag)
    assert all(x["word"] == x["name"] and x["role"] == "candidate" for x in added)
    assert all(loss is not None for loss in decision.losses_at_lag.values())


def test_targets_of_other_flops_reach_other_steps(tmp_path: pathlib.Path) -> None:
    decision = go(tmp_path / "run", "equal FLOPs", Simulated())
    assert decision.lags["deeper"] < decision.lags["stack"]
    assert decision.losses_at_lag["deeper"] is not None
