"""Runs: what the run directory holds, resuming, damaged checkpoints, failures, groups and lanes."""

import gc
import json
import math
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lagjax.lanes import Course

import lagjax
from lagjax import runs
from lagjax.probe import TrainState
from lagjax.store import directory
from lagjax.store.directory import Directory, LaneName
from tests import quick, toy

compile_quickly = quick.compile_quickly

LINE = {
    "phase", "candidate", "seed", "step", "valid_loss", "valid_loss_shards", "train_loss", "grad_norm", "update_norm",
    "lr", "tokens", "flops", "seconds", "status",
}  # fmt: skip
DECISION = {
    "winner", "runner_up", "outcome", "lag", "margin", "margin_interval", "ranking", "losses_at_start",
    "losses_at_lag", "status", "tied", "ledger",
}  # fmt: skip
LEDGER = {
    "overhead", "budget_share", "full_run_flops", "losers_flops", "evaluation_flops", "fit_flops", "seconds",
}  # fmt: skip


FINISHED = {
    "pool": toy.pool(),
    "seeds": 2,
    "compare": "start",
    "checkpoint_seconds": 1e9,
}
RUN = ("compare", "checkpoint_seconds", "lanes")


def go(path: pathlib.Path, *, told: toy.Told | None = None, **changes: object) -> lagjax.Decision:
    options = {"lanes": 1} | {name: changes.pop(name) for name in RUN if name in changes}
    pool = changes.pop("pool", toy.pool("stack", "random-top"))
    task = toy.task(**changes)
    policy = lagjax.FixedLag(8)
    return lagjax.run(task, pool, policy, path, progress=told or toy.Told(), **options)


def curve(path: pathlib.Path, candidate: str, seed: int = 0) -> list[dict]:
    lines = directory.read(path).curves
    return [line for line in lines if (line["candidate"], line["seed"]) == (candidate, seed)]


def without_times(path: pathlib.Path) -> list[dict]:
    return [
        {key: x for key, x in line.items() if key != "seconds"}
        for line in directory.read(path).curves
    ]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, lagjax.Decision]:
    path = tmp_path_factory.mktemp("run") / "run"
    return path, go(path, **FINISHED)


def test_the_directory_holds_what_it_should(
    finished: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    path, decision = finished
    record = directory.read(path)
    assert record.decision is not None
    assert set(record.decision) == DECISION
    assert set(record.decision["ledger"]) == LEDGER
    assert record.decision == json.loads(json.dumps(decision.as_json()))
    assert all(set(line) == LINE for line in record.curves)
    keys = [
        (line["phase"], line["candidate"], line["seed"], line["step"]) for line in record.curves
    ]
    assert len(set(keys)) == len(keys)
    assert {line["phase"] for line in record.curves if line["step"] <= 8} == {"probe"}
    assert {line["phase"] for line in record.curves if line["step"] > 8} == {"continue"}
    for name in (
        "task",
        "pool",
        "policy",
        "compare",
        "versions",
        "device",
        "cores",
        "grouping",
        "shard_tokens",
    ):
        assert name in record.config
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
    assert ledger.losers_flops == (4 * 2 - 1) * 8 * 3 * forward
    evaluations = sum(step <= 8 for step in runs.evaluation_steps(24, 8))
    assert ledger.evaluation_flops == 4 * 2 * evaluations * 6 * forward
    assert (
        ledger.overhead == (ledger.losers_flops + ledger.evaluation_flops) / ledger.full_run_flops
    )
    assert ledger.budget_share == (1 + ledger.overhead) / 4


def test_a_curve_equals_a_plain_loop(
    finished: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    """The reference: a step loop written out, with the data order and the schedule of the full run."""
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

    expected = {}
    for step in range(9):
        totals = [total_and_count(params, shard, None) for shard in shards]
        expected[step] = sum(float(total) for total, _ in totals) / sum(
            int(count) for _, count in totals
        )
        params, state = train(params, state, toy.batch(1, step))
    for line in curve(path, "stack", seed=1):
        assert line["valid_loss"] == pytest.approx(expected[line["step"]], rel=1e-5)


def test_exact_candidates_start_at_the_small_models_loss(
    finished: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    _, decision = finished
    totals = [toy.SMALL.loss(toy.PARAMS, shard, None) for shard in toy.VALID]
    small = sum(float(total) for total, _ in totals) / sum(count for _, count in totals)
    assert decision.losses_at_start["identity-top"] == pytest.approx(small, rel=1e-6)
    assert decision.losses_at_start["zeroed-stack"] == pytest.approx(small, rel=1e-6)
    assert abs(decision.losses_at_start["stack"] - small) > 1e-3


def test_again_does_nothing(finished: tuple[pathlib.Path, lagjax.Decision]) -> None:
    path, decision = finished
    before = (path / "curves.jsonl").read_bytes()
    told = toy.Told()
    again = go(path, **FINISHED, told=told)
    assert not told.events
    assert (path / "curves.jsonl").read_bytes() == before
    assert again == decision


def test_lanes_change_results_by_rounding_only(
    finished: tuple[pathlib.Path, lagjax.Decision], tmp_path: pathlib.Path
) -> None:
    path, _ = finished
    go(tmp_path / "run", **FINISHED, lanes=3)
    assert directory.read(tmp_path / "run").config["grouping"][0]["lanes"] == 3
    for one, other in zip(_sorted(path), _sorted(tmp_path / "run"), strict=True):
        assert one["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-5)
        if one["step"]:
            assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


def _sorted(path: pathlib.Path) -> list[dict]:
    return sorted(
        without_times(path),
        key=lambda line: (line["candidate"], line["seed"], line["step"]),
    )


def test_how_often_it_saves_changes_nothing(
    finished: tuple[pathlib.Path, lagjax.Decision], tmp_path: pathlib.Path
) -> None:
    path, decision = finished
    # The winner alone, after every evaluation; those of `finished` are saved at the ends only.
    pool = toy.pool(decision.winner)
    go(tmp_path / "run", pool=pool, seeds=2, checkpoint_seconds=0.0)
    often = without_times(tmp_path / "run")
    winner = [line for line in without_times(path) if line["candidate"] == decision.winner]
    key = lambda line: (line["seed"], line["step"])
    assert sorted(often, key=key) == sorted(winner, key=key)


# Orbax leaves coroutines behind where a file is damaged.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_damaged_checkpoint_is_named_and_the_last_good_one_used(
    finished: tuple[pathlib.Path, lagjax.Decision], damage: str, tmp_path: pathlib.Path
) -> None:
    path, decision = finished
    shutil.copytree(path, copy := tmp_path / "run")
    folder = copy / "checkpoints" / f"{decision.winner}-0"
    # Take the last evaluation away, so that there is something left to do from the damaged checkpoint.
    shutil.rmtree(folder / "24")
    (latest,) = folder.iterdir()
    shutil.copytree(latest, folder / "24")
    data = max(
        (file for file in latest.rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )
    wrong = folder / "24" / data.relative_to(latest)
    content = wrong.read_bytes()
    if damage == "truncate":
        wrong.write_bytes(content[: len(content) // 2])
    elif damage == "alter":
        middle = len(content) // 2
        wrong.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        wrong.unlink()
    told: list[str] = []
    lane = LaneName(decision.winner, 0)
    with Directory(copy, told.append) as opened:
        like = _like()
        assert opened.saved(lane)[0] == 24
        assert opened.restore(lane, 24, like) is None
        gc.collect()
        assert opened.restore(lane, int(latest.name), like) is not None
    assert len(told) == 1
    assert str(folder / "24") in told[0]
    go(copy, **FINISHED)
    assert _sorted(copy) == _sorted(path)
    # Here, and not in the midst of another test.
    gc.collect()


def _like() -> object:
    search_task = toy.task()
    (group,) = runs._groups(search_task, toy.pool("stack"))
    return runs._like(search_task, toy.pool("stack")[0], group[1])


def test_a_candidate_that_turns_nan_is_set_aside(tmp_path: pathlib.Path) -> None:
    """Its neighbours, in the same compiled call, do not notice."""

    class Poison(lagjax.Grow):
        """Grows to parameters that overflow."""

        def __call__(self, key, params, source, target):
            grown = super().__call__(key, params, source, target)
            return {**grown, "embed": grown["embed"] * np.float32(1e38) * 10}

    poisoned = lagjax.Candidate("poisoned", Poison(depth="0 1 0 1"), toy.LARGE)
    pool = (toy.pool("stack")[0], poisoned, toy.pool("random-top")[0])
    alone = go(tmp_path / "alone", pool=(pool[0], pool[2]), lanes=1)
    for lanes in (1, 3):
        decision = go(tmp_path / f"{lanes}", pool=pool, lanes=lanes)
        assert decision.status["poisoned"].startswith("loss not finite at step ")
        assert decision.losses_at_lag["poisoned"] is None
        assert "poisoned" not in decision.ranking
        assert decision.winner == alone.winner
        last = curve(tmp_path / f"{lanes}", "poisoned")[-1]
        assert last["valid_loss"] is None
        assert last["step"] < 24
        for name in ("stack", "random-top"):
            assert decision.losses_at_lag[name] == pytest.approx(
                alone.losses_at_lag[name], rel=1e-5
            )


def test_all_failed_is_a_decision(tmp_path: pathlib.Path) -> None:
    def engine(model: lagjax.Model) -> lagjax.Engine:
        made = lagjax.from_loss(model, toy.tx())

        def step(state: TrainState, batch: jax.Array) -> tuple:
            state, metrics = made.step(state, batch)
            bad = jnp.where(state.step >= 3, jnp.nan, 1.0)
            return state._replace(params=jax.tree.map(lambda x: x * bad, state.params)), metrics

        return made._replace(step=step)

    decision = go(tmp_path / "run", engine=engine)
    assert decision.outcome == "all_failed"
    assert decision.winner is None
    assert set(decision.status.values()) == {"loss not finite at step 3"}
    assert (tmp_path / "run/report.html").is_file()


def test_an_engine_of_ones_own(tmp_path: pathlib.Path) -> None:
    """A training loop that keeps a state of its own, here a running mean of the loss, without optax."""

    def engine(model: lagjax.Model) -> lagjax.Engine:
        def mean(params: object, batch: jax.Array) -> jax.Array:
            total, count = model.loss(params, batch, None)
            return total / count

        def step(state: tuple, batch: jax.Array) -> tuple:
            params, average = state
            loss, grads = jax.value_and_grad(mean)(params, batch)
            params = jax.tree.map(lambda x, g: x - 0.1 * g, params, grads)
            return (params, 0.9 * average + 0.1 * loss), {"train_loss": loss}

        return lagjax.Engine(
            lambda params, opt_state, key: (params, jnp.zeros(())),
            step,
            lambda state, batch: model.loss(state[0], batch, None),
        )

    decision = go(tmp_path / "run", tx=None, engine=engine)
    assert decision.winner
    line = curve(tmp_path / "run", decision.winner)[-1]
    assert line["valid_loss"] < decision.losses_at_start[decision.winner]
    assert line["grad_norm"] is None and line["tokens"] == 0


def test_candidates_of_two_targets_are_two_groups(tmp_path: pathlib.Path) -> None:
    deeper = toy.model(6)
    pool = (
        *toy.pool("stack"),
        lagjax.Candidate("deeper", toy.pool("stack")[0].operator, deeper),
    )
    decision = go(tmp_path / "run", pool=pool)
    assert set(decision.ranking) == {"stack", "deeper"}
    assert [
        found["candidates"] for found in directory.read(tmp_path / "run").config["grouping"]
    ] == [["stack"], ["deeper"]]
    assert (
        curve(tmp_path / "run", "deeper")[1]["flops"] > curve(tmp_path / "run", "stack")[1]["flops"]
    )


def test_moments_grow_and_the_schedule_continues(tmp_path: pathlib.Path) -> None:
    _, state = lagjax.train(
        toy.SMALL,
        toy.tx(),
        toy.batch,
        toy.VALID,
        20,
        tmp_path / "a",
        progress=toy.Told(),
    )
    go(
        tmp_path / "b",
        pool=toy.pool("stack"),
        opt_state=state,
        moments="grow",
        schedule="continue",
        horizon=8,
    )
    go(
        tmp_path / "c",
        pool=toy.pool("stack"),
        opt_state=state,
        moments="grow",
        horizon=8,
    )
    # The rate goes on from step 20 of the schedule, or begins again.
    assert curve(tmp_path / "b", "stack")[1]["lr"] == pytest.approx(3e-3 * (1 - 20 / 200), rel=1e-5)
    assert curve(tmp_path / "c", "stack")[1]["lr"] == pytest.approx(3e-3, rel=1e-5)
    go(tmp_path / "d", pool=toy.pool("stack"), horizon=8)
    assert (
        curve(tmp_path / "d", "stack")[1]["update_norm"]
        != curve(tmp_path / "c", "stack")[1]["update_norm"]
    )


def test_one_compilation_for_a_group(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every candidate, seed and segment of a group goes through one compiled function."""
    compiled = []
    original = runs.program
    monkeypatch.setattr(runs, "program", lambda *args: compiled.append(args) or original(*args))
    chex.clear_trace_counter()
    go(tmp_path / "run", seeds=2, compare="all")
    assert len(compiled) == 1


def test_train_is_resumable_and_reads_what_is_finished(tmp_path: pathlib.Path) -> None:
    arguments = (toy.SMALL, toy.tx(), toy.batch, toy.VALID, 20, tmp_path / "run")
    params, _state = lagjax.train(*arguments, progress=toy.Told())
    told = toy.Told()
    again, _ = lagjax.train(*arguments, progress=told)
    chex.assert_trees_all_equal(params, again)
    assert not told.events
    lines = curve(tmp_path / "run", "source")
    assert {line["phase"] for line in lines} == {"source"}
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"]


def test_a_live_directory_is_refused(tmp_path: pathlib.Path) -> None:
    with (
        Directory(tmp_path / "run"),
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
    assert first[2]["valid_loss"] != second[2]["valid_loss"]


@pytest.mark.parametrize("horizon", [1, 2, 16, 24, 800, 10_000])
def test_evaluation_steps(horizon: int) -> None:
    steps = runs.evaluation_steps(horizon, horizon // 3 + 1)
    assert steps[0] == 0 and steps[-1] == horizon
    assert horizon // 3 + 1 in steps
    assert list(steps) == sorted(set(steps))
    assert len(steps) <= 18 + math.log(horizon, 4) + 17


def test_phases_are_told_apart_by_the_lag() -> None:
    course = Course(None, toy.batch, (0,), None, (0, 1), lambda step: "probe", toy.Told(), 0.0)  # type: ignore[arg-type]
    course.expect(10.0)
    assert course.work == 10.0
