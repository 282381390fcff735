"""Runs: what the run directory holds, resuming, failures, groups, what stays and what goes."""

import json
import logging
import pathlib
import re
import shutil
from collections import namedtuple
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax import report
from lagjax.engine import TrainState
from lagjax.executors import workload
from lagjax.initial import Group
from lagjax.jobs import Trial
from lagjax.store import directory
from lagjax.store.directory import Store
from lagjax.store.losses import Losses
from tests import quick, toy
from tests.toy import curve, without_times

no_page, groups_kept = quick.no_page, quick.groups_kept
WRITE = report.write

LINE = {
    "phase",
    "candidate",
    "seed",
    "step",
    "valid_loss",
    "valid_loss_shards",
    "train_loss",
    "grad_norm",
    "update_norm",
    "lr",
    "metrics",
    "tokens",
    "flops",
    "seconds",
    "status",
}
DECISION = {
    "weights",
    "winner",
    "runner_up",
    "outcome",
    "lag",
    "margin",
    "margin_interval",
    "ranking",
    "losses_at_start",
    "losses_at_lag",
    "status",
    "tied",
    "lags",
    "ledger",
}
LEDGER = {
    "overhead",
    "budget_share",
    "full_run_flops",
    "losers_flops",
    "evaluation_flops",
    "fit_flops",
    "baseline_flops",
    "seconds",
}
CONFIG = {
    "baselines",
    "programs",
    "format",
    "arguments",
    "task",
    "pool",
    "policy",
    "compare",
    "keep",
    "candidates_at_once",
    "placement",
    "versions",
    "device",
    "cores",
    "grouping",
    "shard_tokens",
}
ENTRY = {"name", "operator", "role", "word", "exact", "transfer", "target", "step_flops", "horizon"}


FINISHED = {
    "pool": toy.pool("stack", "identity-top", "random-top"),
    "seeds": 2,
    "compare": "start",
    "checkpoint_seconds": 1e9,
}
RUN = ("compare", "keep", "checkpoint_seconds", "candidates_at_once", "policy")


def go(path: pathlib.Path, *, told: toy.Told | None = None, **changes: object) -> lagjax.Decision:
    options = {"candidates_at_once": 1, "policy": lagjax.FixedLag(8)}
    options |= {name: changes.pop(name) for name in RUN if name in changes}
    pool = changes.pop("pool", toy.pool("stack", "random-top"))
    policy = options.pop("policy")
    return lagjax.run(
        toy.task(**changes), pool, policy, path, progress=told or toy.Told(), **options
    )


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, lagjax.Decision]:
    path = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        # The one run of this module that has a page.
        patch.setattr(report, "write", WRITE)
        return path, go(path, **FINISHED)


def test_the_directory_holds_what_it_should(
    finished: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    path, decision = finished
    record = directory.read(path)
    assert record.decision is not None
    assert set(record.decision) == DECISION
    assert record.decision["lags"] == dict.fromkeys(decision.status, 8)
    assert set(record.decision["ledger"]) == LEDGER
    assert record.decision == json.loads(json.dumps(decision.as_json()))
    assert all(set(line) == LINE for line in record.curves)
    keys = [
        (line["phase"], line["candidate"], line["seed"], line["step"]) for line in record.curves
    ]
    assert len(set(keys)) == len(keys)
    assert {line["phase"] for line in record.curves if line["step"] <= 8} == {"probe"}
    assert {line["phase"] for line in record.curves if line["step"] > 8} == {"continue"}
    assert set(record.config) == CONFIG
    assert record.config["format"] == 2
    assert record.config["task"]["unit"] == "nats per token"
    assert all(set(entry) == ENTRY for entry in record.config["pool"])
    words = {entry["name"]: (entry["word"], entry["exact"]) for entry in record.config["pool"]}
    assert words["stack"] == ("0 1 0 1", False)
    assert words["identity-top"] == ("0 1 new* new*", True)
    assert record.config["shard_tokens"] == [32.0] * 6
    probe, decided = record.rounds
    assert probe == {"round": 0, "answer": "Probe", "until": dict.fromkeys(decision.status, 8)}
    assert (decided["answer"], decided["winner"]) == ("Decision", decision.winner)
    assert (path / "report.html").is_file()


def test_lines_add_up(finished: tuple[pathlib.Path, lagjax.Decision]) -> None:
    path, decision = finished
    for line in (lines := curve(path, decision.winner)):
        assert line["tokens"] == 32 * line["step"]
        assert line["valid_loss"] == pytest.approx(np.mean(line["valid_loss_shards"]), rel=1e-6)
        # The rate of the step just made: step s of the loop reads the schedule at s - 1.
        rate = 3e-3 * (1 - (line["step"] - 1) / 200)
        assert line["lr"] == (pytest.approx(rate, rel=1e-5) if line["step"] else None)
    assert lines[-1]["step"] == 24
    # By hand: forward 2 + 4 × 2 matrix products of 32 tokens, backward twice that, less nothing.
    forward = 2 * 32 * (4 * 2 * 8 * 16 + 8 * 16)
    assert lines[-1]["flops"] == 24 * 3 * forward
    ledger = decision.ledger
    assert ledger.full_run_flops == 24 * 3 * forward
    assert ledger.losers_flops == (3 * 2 - 1) * 8 * 3 * forward
    # At the start and at the lag, on the fewest shards there may be: steps are few.
    assert [len(line["valid_loss_shards"]) for line in lines if line["step"] <= 8] == [2, 2]
    assert ledger.evaluation_flops == 3 * 2 * 2 * 2 * forward
    assert (
        ledger.overhead == (ledger.losers_flops + ledger.evaluation_flops) / ledger.full_run_flops
    )
    assert ledger.budget_share == (1 + ledger.overhead) / 3


def test_a_curve_equals_a_plain_loop(
    finished: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    """The reference: a loop written out, with the data order and the schedule of the full run."""
    path, _ = finished
    candidate = toy.pool("stack")[0]
    params = candidate.operator(jax.random.key(0), toy.PARAMS, toy.AXES, toy.LARGE)
    tx, shards = toy.tx(), toy.VALID
    state = tx.init(params)
    total_and_count = jax.jit(toy.LARGE.loss)

    @jax.jit
    def train(params: dict, state: object, batch: np.ndarray) -> tuple:
        grads = jax.grad(lambda params: toy.LARGE.loss(params, batch, None)[0] / batch[:, 1:].size)(
            params
        )
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    expected, trained = {}, []
    for step in range(9):
        totals = [total_and_count(params, shard, None) for shard in shards]
        expected[step] = [float(total) / int(count) for total, count in totals]
        trained.append(float(total_and_count(params, toy.batch(1, step), None)[0]) / 32)
        params, state = train(params, state, toy.batch(1, step))
    for line in curve(path, "stack", seed=1):
        of_shards = expected[line["step"]][: len(line["valid_loss_shards"])]
        assert line["valid_loss_shards"] == pytest.approx(of_shards, rel=1e-5)
        assert line["valid_loss"] == pytest.approx(np.mean(of_shards), rel=1e-5)
    losses = Losses(path / "steps").of(Trial("stack", 1))
    np.testing.assert_allclose(losses, trained[:8], rtol=1e-5)


def test_the_losses_of_every_step_add_up_to_the_lines(tmp_path: pathlib.Path) -> None:
    """Wherever calls and evaluations end: 40 steps, evaluated at 7 and every second one."""
    go(tmp_path, pool=toy.pool("stack"), horizon=40, policy=lagjax.FixedLag(7))
    losses = Losses(tmp_path / "steps").of(Trial("stack", 0))
    assert losses.shape == (40,)
    lines = curve(tmp_path, "stack")
    assert 7 in [line["step"] for line in lines] and len(lines) < 40
    for before, line in pairwise(lines):
        mean = losses[before["step"] : line["step"]].astype(np.float64).mean()
        assert line["train_loss"] == pytest.approx(mean, rel=1e-6)


def test_exact_candidates_start_at_the_small_models_loss(
    finished: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    _, decision = finished
    totals = [toy.SMALL.loss(toy.PARAMS, shard, None) for shard in toy.VALID[:2]]
    small = sum(float(total) for total, _ in totals) / sum(count for _, count in totals)
    assert decision.losses_at_start["identity-top"] == pytest.approx(small, rel=1e-6)
    assert abs(decision.losses_at_start["stack"] - small) > 1e-3


def test_again_does_nothing(finished: tuple[pathlib.Path, lagjax.Decision]) -> None:
    """Though the losers' checkpoints are gone: the record says that nothing is left to do."""
    path, decision = finished
    files = lambda: {
        x: (x.stat().st_mtime_ns, x.read_bytes()) for x in path.rglob("*") if x.is_file()
    }
    before = files()
    told = toy.Told()
    again = go(path, **FINISHED, told=told)
    assert not told.events
    after = files()
    changed = {x.name for x in before if before[x] != after.get(x)} | {
        x.name for x in after if x not in before
    }
    assert changed <= {"decision.json", "report.html", "lock"}
    assert all(before[x][1] == after[x][1] for x in after)
    assert again == decision


def test_losers_checkpoints_go_unless_all_are_kept(
    finished: tuple[pathlib.Path, lagjax.Decision], tmp_path: pathlib.Path
) -> None:
    path, decision = finished
    kept = {x.name for x in (path / "checkpoints").iterdir()}
    assert kept == {f"{decision.winner}-0", f"{decision.winner}-1"}
    there: list[tuple[str, bool]] = []

    def look(event: object) -> None:
        folders = {x.name for x in (tmp_path / "run/checkpoints").iterdir()}
        there.append((event.phase, "stack-0" in folders and "random-top-0" in folders))

    first = go(tmp_path / "run", told=toy.Told(look))
    # While they may be needed they are there; they go before the winner takes more of the disk.
    last_probe = max(index for index, (phase, _) in enumerate(there) if phase == "probe")
    assert there[-1] == ("continue", False) and last_probe >= 1
    assert {x.name for x in (tmp_path / "run/checkpoints").iterdir()} == {f"{first.winner}-0"}
    again = go(tmp_path / "all", keep="all")
    assert again._replace(ledger=None) == first._replace(ledger=None)
    kept = {
        x.name: sorted(y.name for y in x.iterdir())
        for x in (tmp_path / "all/checkpoints").iterdir()
    }
    (loser,) = {"stack", "random-top"} - {first.winner}
    assert kept == {f"{first.winner}-0": ["24", "8"], f"{loser}-0": ["8"]}


def test_the_loss_at_the_start_would_have_chosen_another(
    finished: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    """With compare="start" it is trained to the horizon as well, and no one else is."""
    path, decision = finished
    at_start = min(decision.losses_at_start, key=lambda name: decision.losses_at_start[name])
    assert at_start != decision.winner
    ends = {(x["candidate"], x["seed"]): x["step"] for x in without_times(path)}
    assert {trial for trial, step in ends.items() if step == 24} == {
        (decision.winner, 0),
        (at_start, 0),
    }


def test_a_disk_without_room_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = {"bytes": 0}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, free["bytes"]))
    # Parameters and two moments; two candidates, two checkpoints each and one being written.
    size = (
        4
        * 3
        * sum(x.size for x in jax.tree.leaves(jax.eval_shape(toy.LARGE.init, jax.random.key(0))))
    )
    free["bytes"] = 5 * size
    with pytest.raises(
        ValueError, match=r"of 2 trials take about 69.4 kB.* has 69.1 kB left; free some"
    ):
        go(tmp_path)
    assert not (tmp_path / "curves.jsonl").exists() and not list(
        (tmp_path / "checkpoints").iterdir()
    )
    free["bytes"] = 5 * (size + 100)
    go(tmp_path)


def test_at_once_changes_results_by_rounding_only(
    finished: tuple[pathlib.Path, lagjax.Decision], tmp_path: pathlib.Path
) -> None:
    path, _ = finished
    go(tmp_path / "run", **FINISHED, candidates_at_once=3)
    assert list(directory.read(tmp_path / "run").config["grouping"].values()) == [3]
    for one, other in zip(without_times(path), without_times(tmp_path / "run"), strict=True):
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-5)
        if one["step"]:
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def test_how_often_it_saves_changes_nothing(
    finished: tuple[pathlib.Path, lagjax.Decision], tmp_path: pathlib.Path
) -> None:
    path, decision = finished
    # The winner alone, after every evaluation; those of `finished` are saved at the ends only.
    go(tmp_path / "run", pool=toy.pool(decision.winner), checkpoint_seconds=0.0)
    often = without_times(tmp_path / "run")
    trial = decision.winner, 0
    assert often == [x for x in without_times(path) if (x["candidate"], x["seed"]) == trial]


def test_all_failed_is_a_decision(tmp_path: pathlib.Path) -> None:
    def engine(model: lagjax.Model, tx: object) -> lagjax.Engine:
        made = lagjax.from_loss(model, tx)

        def step(state: TrainState, batch: jax.Array) -> tuple:
            state, metrics = made.step(state, batch)
            bad = jnp.where(state.step >= 3, jnp.nan, 1.0)
            return state._replace(params=jax.tree.map(lambda x: x * bad, state.params)), metrics

        return made._replace(step=step)

    decision = go(tmp_path / "run", engine=engine)
    assert decision.outcome == "all_failed"
    assert decision.winner is None
    assert set(decision.status.values()) == {"loss not finite at step 4"}
    assert not list((tmp_path / "run/checkpoints").iterdir())
    told = toy.Told()
    again = go(tmp_path / "run", engine=engine, told=told)
    assert again == decision and not told.events


def test_an_engine_of_ones_own(tmp_path: pathlib.Path) -> None:
    """A training loop without optax that keeps a state of its own, a running mean of the loss."""

    def engine(model: lagjax.Model, tx: None) -> lagjax.Engine:
        def mean(params: object, batch: jax.Array) -> jax.Array:
            total, count = model.loss(params, batch, None)
            return total / count

        def step(state: tuple, batch: jax.Array) -> tuple:
            params, average = state
            loss, grads = jax.value_and_grad(mean)(params, batch)
            params = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)
            average = 0.9 * average + 0.1 * loss
            # A reading, and a mean over rows.
            return (params, average), {
                "loss": (loss * 3, 3),
                "average": (average, 0),
                "tokens": (batch.sum(), 4),
            }

        def evaluate(state: tuple, batch: jax.Array) -> dict:
            return {
                "loss": model.loss(state[0], batch, None),
                "average": (state[1], 0),
                "tokens": (batch.sum(), 4),
            }

        return lagjax.Engine(
            lambda trained, key: (trained.params, jnp.zeros(())),
            step,
            evaluate,
            lambda state: lagjax.Trained(state[0]),
            unit="nats per letter",
        )

    # An audit is evaluated at every third step at most.
    decision = go(tmp_path, tx=None, engine=engine, horizon=48, compare="all")
    assert decision.winner
    first, *lines = curve(tmp_path, decision.winner)
    assert lines[-1]["valid_loss"] < decision.losses_at_start[decision.winner]
    assert lines[-1]["grad_norm"] is None and lines[-1]["tokens"] == 3 * 48
    assert directory.read(tmp_path).config["task"]["unit"] == "nats per letter"
    losses = Losses(tmp_path / "steps").of(Trial(decision.winner, 0))
    tokens = np.array([toy.batch(0, step).sum() / 4 for step in range(48)])
    shown = np.sum(toy.VALID) / 24
    assert first["metrics"] == {"valid_average": 0.0, "valid_tokens": pytest.approx(shown)}
    average, before = 0.0, 0
    for line in lines:
        for loss in losses[before : line["step"]]:
            average = 0.9 * average + 0.1 * loss
        assert line["metrics"] == {
            "average": pytest.approx(average, rel=1e-5),
            "tokens": pytest.approx(tokens[before : line["step"]].mean()),
            "valid_average": pytest.approx(average, rel=1e-5),
            "valid_tokens": pytest.approx(shown),
        }
        before = line["step"]
    assert len(lines) < 24


def test_candidates_of_two_targets_are_two_groups(tmp_path: pathlib.Path) -> None:
    deeper = toy.model(6)
    pool = (
        *toy.pool("stack"),
        lagjax.Candidate("deeper", toy.pool("stack")[0].operator, deeper),
    )
    decision = go(tmp_path / "run", pool=pool)
    assert set(decision.ranking) == {"stack", "deeper"}
    config = directory.read(tmp_path / "run").config
    assert set(config["grouping"]) == {entry["target"] for entry in config["pool"]}
    assert len(config["grouping"]) == 2
    assert (
        curve(tmp_path / "run", "deeper")[1]["flops"] > curve(tmp_path / "run", "stack")[1]["flops"]
    )


def test_moments_grow_and_the_schedule_continues(tmp_path: pathlib.Path) -> None:
    trained = lagjax.train(
        toy.SMALL, toy.tx(), toy.batch, toy.VALID, 20, tmp_path / "a", progress=toy.Told()
    )
    # The task's, and candidates' own.
    own = {
        "fresh": lagjax.Transfer(),
        "restarted": lagjax.Transfer("grow"),
        "rewound": lagjax.Transfer("reset", 5),
        "continued": None,
    }
    (stack,) = toy.pool("stack")
    pool = [stack._replace(name=name, transfer=transfer) for name, transfer in own.items()]
    transfer = lagjax.Transfer("grow", "continue")
    source = trained._replace(params=toy.PARAMS)
    go(
        tmp_path / "b",
        pool=pool,
        source=source,
        transfer=transfer,
        horizon=2,
        policy=lagjax.FixedLag(1),
    )
    first = {name: curve(tmp_path / "b", name)[1] for name in own}
    rates = {name: line["lr"] for name, line in first.items()}
    # The rate goes on from step 20 of the schedule, from another, or begins again.
    expected = {"fresh": 0, "restarted": 0, "rewound": 5, "continued": 20}
    for name, step in expected.items():
        assert rates[name] == pytest.approx(3e-3 * (1 - step / 200), rel=1e-5)
    assert first["fresh"]["update_norm"] != first["restarted"]["update_norm"]
    entries = {x["name"]: x["transfer"] for x in directory.read(tmp_path / "b").config["pool"]}
    assert entries["continued"] == {"moments": "grow", "schedule": "continue"}
    assert entries["rewound"] == {"moments": "reset", "schedule": 5}


def test_one_compilation_for_a_group(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every candidate, seed, round and segment of a group goes through one compiled function."""
    monkeypatch.setattr(workload, "Group", Group)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        go(tmp_path / "run", seeds=2, compare="all")
    compiled = re.findall(r"^Compiling jit\((\w+)\)", "\n".join(caplog.messages), re.MULTILINE)
    # And the small model, which an audit trains on, is a group of its own.
    assert (compiled.count("advance"), compiled.count("evaluate")) == (2, 2)


def test_a_live_directory_is_refused(tmp_path: pathlib.Path) -> None:
    with (
        Store(tmp_path / "run"),
        pytest.raises(ValueError, match="in use by process"),
    ):
        go(tmp_path / "run")
    go(tmp_path / "run")


def test_progress_says_where_it_stands(tmp_path: pathlib.Path) -> None:
    told = toy.Told()
    go(tmp_path / "run", told=told)
    shares = [event.share for event in told.events if event.phase == "probe"]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert told.events[-1].phase == "continue"
    assert told.events[-1].step == told.events[-1].until == 24
    assert told.events[-1].seconds_left == pytest.approx(0)
    assert told.events[-1].share == pytest.approx(1)
    assert all(event.tokens_per_second > 0 for event in told.events if event.step > 8)


def test_every_seed_has_its_own_data_and_fresh_layers(tmp_path: pathlib.Path) -> None:
    go(tmp_path / "run", seeds=2, pool=toy.pool("random-top"))
    first, second = (
        curve(tmp_path / "run", "random-top", 0),
        curve(tmp_path / "run", "random-top", 1),
    )
    assert first[0]["valid_loss"] != second[0]["valid_loss"]
    go(tmp_path / "stack", seeds=2, pool=toy.pool("stack"))
    first, second = (
        curve(tmp_path / "stack", "stack", 0),
        curve(tmp_path / "stack", "stack", 1),
    )
    assert first[0]["valid_loss"] == second[0]["valid_loss"]
    assert first[1]["valid_loss"] != second[1]["valid_loss"]


@pytest.mark.parametrize("source", [toy.PARAMS, toy.AXES], ids=["bare", "as before"])
def test_a_source_that_is_no_trained_model(source: object, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"source is of type \w+; give .* Trained\(params\)"):
        go(tmp_path / "run", source=source)
    assert not (tmp_path / "run").exists()


def test_a_fault_of_the_page_costs_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(path: pathlib.Path) -> None:
        raise RuntimeError("no such font")

    monkeypatch.setattr(report, "write", faulty)
    told = toy.Told()
    decision = lagjax.run(
        toy.task(horizon=2), toy.pool("stack"), lagjax.FixedLag(1), tmp_path, progress=told
    )
    assert decision.winner == "stack"
    assert told.notes[-1] == "no report.html was made: RuntimeError: no such font"
