"""Workers: damaged checkpoints, trials that fail, what a segment says."""

import pathlib
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax import initial
from lagjax.executors.serial import SERIAL
from lagjax.executors.workload import Workload
from lagjax.jobs import Job, Segment, Trial
from lagjax.store.losses import Losses
from tests import quick, toy
from tests.toy import curve, without_times

no_page, groups_kept = quick.no_page, quick.groups_kept


def go(path: pathlib.Path, **changes: object) -> lagjax.Decision:
    options = {"progress": toy.Told(), "candidates_at_once": 1, "checkpoint_seconds": 0.0}
    options |= {name: changes.pop(name) for name in (*options, "executor") if name in changes}
    pool = changes.pop("pool", toy.pool("stack", "random-top"))
    # The lag is no step at which a run of 48 steps is evaluated of itself.
    policy = changes.pop("policy", lagjax.FixedLag(8))
    return lagjax.run(toy.task(**{"horizon": 48, **changes}), pool, policy, path, **options)


def stopping(phase: str, step: int) -> toy.Told:
    """A progress that ends the run."""

    def then(event: object) -> None:
        if event.phase == phase and event.step >= step:
            raise KeyboardInterrupt

    return toy.Told(then)


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def alter(file: pathlib.Path) -> None:
    content, middle = bytearray(file.read_bytes()), file.stat().st_size // 2
    content[middle] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module", autouse=True)
def short_calls() -> Iterator[None]:
    """Calls of at most four steps, so that there are checkpoints between evaluations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "LENGTH", 4)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, lagjax.Decision]:
    path = tmp_path_factory.mktemp("run") / "run"
    return path, go(path)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that was interrupted right after its lag."""
    path = tmp_path_factory.mktemp("cut") / "run"
    with pytest.raises(KeyboardInterrupt):
        go(path, progress=stopping("continue", 9))
    return path


@pytest.mark.parametrize(
    ("damage", "both"), [(truncate, False), (alter, False), (pathlib.Path.unlink, True)]
)
def test_a_damaged_checkpoint_is_named_and_the_last_good_one_used(
    whole: tuple[pathlib.Path, lagjax.Decision],
    cut: pathlib.Path,
    damage: Callable[[pathlib.Path], None],
    both: bool,
    tmp_path: pathlib.Path,
) -> None:
    """Even that before the lag, or none: what the policy saw is measured again."""
    path, decision = whole
    shutil.copytree(cut, copy := tmp_path / "run")
    folder = copy / "checkpoints" / f"{decision.winner}-0"
    latest, before = sorted((int(x.name) for x in folder.iterdir()), reverse=True)
    assert before < latest == 8
    for step in [latest, before] if both else [latest]:
        files = [x for x in (folder / str(step)).rglob("*") if x.is_file()]
        damage(max(files, key=lambda file: file.stat().st_size))
    told = toy.Told()
    again = go(copy, progress=told)
    assert len(told.notes) == 1 + both
    for step, note in zip((latest, before), told.notes):
        assert f"{folder / str(step)} is damaged" in note and "last good one" in note
    first = next(event for event in told.events if event.candidates == decision.winner)
    assert first.step == (4 if both else 8)
    assert again._replace(ledger=None) == decision._replace(ledger=None)
    assert without_times(copy) == without_times(path)
    trial = Trial(decision.winner, 0)
    assert _losses(copy, trial) == _losses(path, trial)


def _losses(path: pathlib.Path, trial: Trial) -> bytes:
    return Losses(path / "steps").of(trial).tobytes()


def poisoned(at: int) -> Callable[[lagjax.Model, object], lagjax.Engine]:
    """Engines that lose the parameters of one candidate, known by its first value, at a step."""

    def engine(model: lagjax.Model, tx: object) -> lagjax.Engine:
        made = lagjax.from_loss(model, tx)

        def init(trained: lagjax.Trained, key: jax.Array) -> tuple:
            return made.init(trained, key), trained.params["embed"][0, 0] > 99

        def step(state: tuple, batch: jax.Array) -> tuple:
            inner, marked = state
            inner, metrics = made.step(inner, batch)
            bad = jnp.where(marked & (inner.step >= at), jnp.nan, 1.0)
            inner = inner._replace(params=jax.tree.map(lambda x: x * bad, inner.params))
            return (inner, marked), metrics

        return lagjax.Engine(
            init,
            step,
            lambda state, batch: made.evaluate(state[0], batch),
            lambda state: made.trained(state[0]),
        )

    return engine


class Marked:
    """Grows as `stack` does, and marks what it grew."""

    def __call__(self, key, params, source, target):
        grown = toy.pool("stack")[0].operator(key, params, source, target)
        return {**grown, "embed": grown["embed"].at[0, 0].set(100.0)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, lagjax.Decision]:
    """The neighbours of the trial that fails, without it."""
    path = tmp_path_factory.mktemp("alone") / "run"
    return path, go(path, **FAILING, checkpoint_seconds=1e9)


# The loss of step 7, which sees what step 6 made, is the first that is lost; the lag is the next
# evaluation.
FAILING = {"engine": poisoned(6), "policy": lagjax.FixedLag(12), "horizon": 16}


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_trial_that_fails_is_set_aside(
    alone: tuple[pathlib.Path, lagjax.Decision], at_once: int, tmp_path: pathlib.Path
) -> None:
    """Its curve ends there; its neighbours, in the same compiled call, do not notice."""
    marked = lagjax.Candidate("marked", Marked(), toy.LARGE)
    stack, random = toy.pool("stack", "random-top")
    saved: list[set[int]] = []

    def look(event: object) -> None:
        folder = tmp_path / "run/checkpoints/marked-0"
        saved.append({int(x.name) for x in folder.glob("[0-9]*")})

    path, pool = tmp_path / "run", (stack, marked, random)
    options = {"candidates_at_once": at_once, "checkpoint_seconds": 0.0 if at_once == 1 else 1e9}
    decision = go(path, pool=pool, progress=toy.Told(look), **FAILING, **options)
    assert decision.status["marked"] == "loss not finite at step 7"
    assert decision.losses_at_lag["marked"] is None
    assert "marked" not in decision.ranking and decision.outcome != "all_failed"
    lines = curve(path, "marked")
    assert [(line["step"], line["status"] == "ok") for line in lines] == [(0, True), (12, False)]
    assert lines[-1]["valid_loss"] is None and lines[-1]["valid_loss_shards"] == [None] * 2
    finite = np.isfinite(Losses(path / "steps").of(Trial("marked", 0)))
    assert finite.tolist() == [True] * 6 + [False] * 6
    # Nothing is saved of it after its failure.
    assert max(step for steps in saved for step in steps | {-1}) == (4 if at_once == 1 else -1)
    assert alone[1].winner == decision.winner
    for name in ("stack", "random-top"):
        one, other = (curve(x, name) for x in (path, alone[0]))
        for line, expected in zip(one, other, strict=True):
            assert line["valid_loss"] == pytest.approx(expected["valid_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_failure_between_evaluations(tmp_path: pathlib.Path) -> None:
    """The step whose loss was lost is told, though it is seen at the next evaluation."""
    marked = lagjax.Candidate("marked", Marked(), toy.LARGE)
    options = {"engine": poisoned(4), "policy": lagjax.FixedLag(9)}
    decision = go(tmp_path / "run", pool=(*toy.pool("stack"), marked), **options)
    # Evaluated at 0 and 9.
    assert decision.status["marked"] == "loss not finite at step 5"
    assert curve(tmp_path / "run", "marked")[-1]["step"] == 9
    losses = Losses(tmp_path / "run/steps").of(Trial("marked", 0))
    assert np.isfinite(losses).tolist() == [True] * 4 + [False] * 5
    line = curve(tmp_path / "run", "marked")[-1]
    assert (line["train_loss"], line["grad_norm"], line["valid_loss"]) == (None, None, None)
    told = toy.Told()
    assert (
        go(tmp_path / "run", pool=(*toy.pool("stack"), marked), **options, progress=told)
        == decision
    )
    assert not told.events


def test_what_segments_say(tmp_path: pathlib.Path) -> None:
    """From checkpoint to checkpoint, each on disk when it is said; what just these steps gave."""
    said: list[tuple[Job, Segment]] = []

    def watching(work: Workload, jobs: list[Job]) -> object:
        for job in jobs:
            for update in SERIAL(work, [job]):
                if isinstance(update, Segment):
                    said.append((job, update))
                    for trial in update.trials:
                        there = (
                            work.checkpoints / f"{trial.candidate}-{trial.seed}" / str(update.stop)
                        )
                        assert there.is_dir()
                yield update

    go(tmp_path, pool=toy.pool("stack"), executor=watching, seeds=2)
    jobs = list(dict.fromkeys(id(job) for job, _ in said))
    assert len(jobs) == 3
    for one in jobs:
        job, *_ = (job for job, _ in said if id(job) == one)
        segments = [segment for other, segment in said if other is job]
        assert segments[0].start == (-1 if job.phase == "probe" else 8)
        assert segments[-1].stop == job.until
        for before, segment in pairwise(segments):
            assert segment.start == before.stop
        for segment in segments:
            (trial,) = segment.trials
            assert len(segment.losses[trial]) == segment.stop - max(segment.start, 0)
            assert all(segment.start < line["step"] <= segment.stop for line in segment.lines)
            measured = max(x for x in job.evaluations if x <= segment.stop)
            assert segment.shard_tokens == (32.0,) * job.shards_at(measured)
        steps = [line["step"] for segment in segments for line in segment.lines]
        assert steps == [x for x in job.evaluations if x > segments[0].start]
