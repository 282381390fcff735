"""The run directory: kills are mended, commits may be said twice, other formats are refused."""

import json
import os
import pathlib

import numpy as np
import pytest

from lagjax.jobs import Segment, Trial
from lagjax.store import directory
from lagjax.store.directory import Store, read
from lagjax.store.losses import Losses

A, B = Trial("a/b c", 0), Trial("b", 1)


def line(trial: Trial, step: int, status: str = "ok") -> dict:
    return {"candidate": trial.candidate, "seed": trial.seed, "step": step, "status": status}


def segment(start: int, stop: int, *trials: Trial, every: int = 2) -> Segment:
    """Losses are the steps' numbers; evaluations at every second one."""
    trials = trials or (A,)
    steps = [step for step in range(0, stop + 1, every) if step > start]
    losses = np.arange(max(start, 0), stop, dtype=np.float32)
    lines = tuple(line(trial, step) for step in steps for trial in trials)
    return Segment(trials, start, stop, lines, dict.fromkeys(trials, losses))


def state(store: Store) -> tuple:
    return (
        [(x["candidate"], x["step"]) for x in store.curves],
        {trial: store.losses.of(trial).tolist() for trial in (A, B)},
        {trial: store.checkpoints.steps(trial) for trial in (A, B)},
    )


def save(store: Store, trial: Trial, *steps: int) -> None:
    for step in steps:
        (store.checkpoints.root / directory_name(trial) / str(step)).mkdir(parents=True)


def directory_name(trial: Trial) -> str:
    return {"a/b c": "a%2Fb%20c-0", "b": "b-1"}[trial.candidate]


def test_a_commit_is_on_record_and_prunes(tmp_path: pathlib.Path) -> None:
    with Store(tmp_path) as store:
        save(store, A, 2, 4, 6)
        assert not store.reached(A, 0) and store.losses.count(A) == -1
        store.commit(segment(-1, 4))
        assert state(store)[0] == [(A.candidate, step) for step in (0, 2, 4)]
        # The later checkpoint is somebody's work in progress.
        assert store.checkpoints.steps(A) == [6, 4, 2]
        store.commit(segment(4, 6))
        assert store.checkpoints.steps(A) == [6, 4]
        assert store.reached(A, 6) and not store.reached(A, 7)
        before = state(store)
    with Store(tmp_path) as store:
        assert state(store) == before
        assert [x["step"] for x in store.curves.of(A)] == [0, 2, 4, 6]


def test_a_segment_may_be_said_twice(tmp_path: pathlib.Path) -> None:
    with Store(tmp_path) as store:
        for each in (segment(-1, 4, A, B), segment(4, 8, A, B)):
            store.commit(each)
        before = state(store), (tmp_path / "curves.jsonl").read_bytes()
        store.commit(segment(4, 8, A, B))
        assert state(store)[:2] == before[0][:2]
        # From further back, because a checkpoint was damaged: what stood beyond is replaced.
        store.commit(segment(-1, 6, A))
        curves, losses, _ = state(store)
        assert losses[A] == [0, 1, 2, 3, 4, 5] and losses[B] == [*range(8)]
        assert sorted(curves) == sorted(
            [(A.candidate, x) for x in (0, 2, 4, 6)] + [("b", x) for x in (0, 2, 4, 6, 8)]
        )
        now = state(store)
    with Store(tmp_path) as store:
        assert sorted(state(store)[0]) == sorted(now[0]) and state(store)[1:] == now[1:]


def test_what_was_not_committed_is_cut_back(tmp_path: pathlib.Path) -> None:
    """A kill between any two writes of a commit: checkpoint, lines, losses, prune."""
    with Store(tmp_path) as store:
        store.commit(segment(-1, 4, A, B))
        save(store, A, 2, 3, 4)
        whole = state(store)
    for written in range(4):
        with Store(tmp_path) as store:
            # Checkpoints and lines of both, but only one's losses.
            if written > 0:
                save(store, A, 8)
                save(store, B, 8)
            if written > 1:
                store.curves.add(segment(4, 8, A, B).lines)
            if written > 2:
                store.losses.add(A, np.arange(4, 8, dtype=np.float32))
        with Store(tmp_path) as store:
            store.repair([A, B])
            curves, losses, saved = state(store)
            if written < 3:
                assert sorted(curves) == sorted(whole[0])
                assert losses == whole[1]
                # And what there was no time to prune.
                assert saved == {A: [4, 3], B: []}
            else:
                # What is whole of one trial stays.
                assert losses == {A: [*range(8)], B: [*range(4)]}
                assert sorted(curves) == sorted([*whole[0], (A.candidate, 6), (A.candidate, 8)])
                assert saved == {A: [8, 4], B: []}


def test_a_trial_that_never_came_to_a_commit_is_forgotten(tmp_path: pathlib.Path) -> None:
    with Store(tmp_path) as store:
        save(store, A, 0)
        store.curves.add([line(A, 0)])
    with Store(tmp_path) as store:
        store.repair([A])
        assert state(store)[0] == [] and state(store)[2][A] == []
        assert (tmp_path / "curves.jsonl").read_text() == ""


def test_a_failed_trial_has_reached_any_step(tmp_path: pathlib.Path) -> None:
    with Store(tmp_path) as store:
        lines = (line(A, 0), line(A, 2, "loss not finite at step 1"))
        store.commit(Segment((A,), -1, 8, lines, {A: np.zeros(2, np.float32)}))
        assert store.reached(A, 100)
        store.repair([A])
        assert store.reached(A, 100) and len(store.curves.of(A)) == 2


@pytest.mark.parametrize("name", ["curves.jsonl", "rounds.jsonl"])
def test_a_torn_last_line_is_mended(tmp_path: pathlib.Path, name: str) -> None:
    def add(store: Store, number: int) -> None:
        if name == "curves.jsonl":
            store.curves.add([line(A, number)])
        else:
            store.answer(number, {"answer": "Probe", "until": {"a": number}}, "policy")

    with Store(tmp_path) as store:
        store.configure({})
        (tmp_path / "config.json").write_text('{"format": 2}')
        add(store, 0)
        add(store, 1)
    path = tmp_path / name
    whole = path.read_bytes()
    first = whole[: whole.index(b"\n") + 1]
    # Of a last line all but its end, or a few bytes, "é" among them cut in half.
    for left in (whole[:-1], whole[: len(first) + 5], first + '{"é'.encode()[:-1]):
        path.write_bytes(left)
        # Whoever only reads leaves it as it is.
        assert len(getattr(read(tmp_path), name.removesuffix(".jsonl"))) == 1
        assert path.read_bytes() == left
        with Store(tmp_path) as store:
            assert path.read_bytes() == first
            add(store, 1)
        assert path.read_bytes() == whole
    path.write_bytes(b"{nonsense}\n" + whole)
    with pytest.raises(ValueError, match=rf"{name} is damaged in line 1: '{{nonsense}}'; restore"):
        Store(tmp_path)
    # And lets others in again.
    path.write_bytes(whole)
    with Store(tmp_path):
        pass


def test_a_torn_file_of_losses(tmp_path: pathlib.Path) -> None:
    with Store(tmp_path) as store:
        store.commit(segment(-1, 4))
    (path,) = (tmp_path / "steps").iterdir()
    path.write_bytes(path.read_bytes() + b"\0\0\0")
    with Store(tmp_path) as store:
        assert store.losses.count(A) == 4 and store.losses.of(A).tolist() == [0, 1, 2, 3]
        store.repair([A])
        assert path.stat().st_size == 16
        store.commit(segment(4, 6))
        assert store.losses.of(A).tolist() == [0, 1, 2, 3, 4, 5]
        # A trial that has grown and made no step is another thing than one that has not grown.
        store.commit(segment(-1, 0, B))
        assert (store.losses.count(B), len(store.losses.of(B))) == (0, 0)
        store.losses.cut(B, -1)
        assert store.losses.count(B) == -1
    assert path.read_bytes() == np.arange(6, dtype="<f4").tobytes()


def test_losses_keep_their_bits(tmp_path: pathlib.Path) -> None:
    values = np.array([0.1, np.nan, np.inf, -0.0, 1e-45], np.float32)
    losses = Losses(tmp_path / "steps")
    losses.add(A, values)
    assert Losses(tmp_path / "steps").of(A).tobytes() == values.tobytes()
    assert {x.name for x in (tmp_path / "steps").iterdir()} == {"a%2Fb%20c-0.f32"}


def test_an_old_directory_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "config.json").write_text(json.dumps({"task": {}}))
    says = r"format 1, these of 2; install lagjax==0\.1\.0 to read it or go on with it"
    for opened in (Store, read):
        with pytest.raises(ValueError, match=says):
            opened(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"format": 3}))
    with pytest.raises(ValueError, match="format 3"):
        Store(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"format": 3}
    (tmp_path / "config.json").write_text('{"format": 2')
    with pytest.raises(ValueError, match=r"config\.json is damaged.*restore it"):
        Store(tmp_path)


def test_once_keeps_what_was_measured(tmp_path: pathlib.Path) -> None:
    measured = []

    def measure(value: int) -> int:
        measured.append(value)
        return value

    with Store(tmp_path) as store:
        store.configure({"grouping": {"x": 1}})
        assert store.once(("grouping", "y"), lambda: measure(3)) == 3
        assert store.once(("grouping", "y"), lambda: measure(4)) == 3
        assert store.once(("shard_tokens",), lambda: [1.0]) == [1.0]
    with Store(tmp_path) as store:
        assert store.once(("grouping", "y"), lambda: measure(5)) == 3
        assert store.config["grouping"] == {"x": 1, "y": 3}
    assert measured == [3]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {"format": 2, "grouping": {"x": 1, "y": 3}, "shard_tokens": [1.0]}


def test_the_environment_may_differ_with_a_note(tmp_path: pathlib.Path) -> None:
    notes: list[str] = []
    with Store(tmp_path, notes.append) as store:
        given = {"task": {"horizon": 3, "pool": ["a", "b"]}, "cores": 2, "versions": {"jax": "1"}}
        store.configure(given, ("cores", "versions"))
        assert not notes
        other = {**given, "cores": 4, "versions": {"jax": "1", "optax": "2"}}
        store.configure(other, ("cores", "versions"))
        assert notes == [
            "this run began where cores was 2, and goes on where it is 4",
            "this run began where versions.optax was None, and goes on where it is '2'",
        ]
        for task, says in (
            ({"horizon": 4, "pool": ["a", "b"]}, r"task\.horizon is 3 there and 4 here"),
            ({"horizon": 3, "pool": ["a", "c"]}, r"task\.pool\[1\] is 'b' there and 'c' here"),
            ({"horizon": 3, "pool": ["a"]}, r"task\.pool is \['a', 'b'\] there"),
        ):
            with pytest.raises(ValueError, match=says):
                store.configure({"task": task, "new": 1}, ("cores", "versions"))
        # The first that it was made with stays, and nothing of what is refused.
        assert store.config == {"format": 2, **given}


def test_a_directory_has_one_writer(tmp_path: pathlib.Path) -> None:
    with Store(tmp_path), pytest.raises(ValueError, match="in use by process"):
        Store(tmp_path)
    with Store(tmp_path):
        pass


def test_answers_are_compared(tmp_path: pathlib.Path) -> None:
    with Store(tmp_path) as store:
        for number, step in enumerate((4, 8)):
            store.answer(number, {"answer": "Probe", "until": {"a": step}}, "policy")
    before = (tmp_path / "rounds.jsonl").read_bytes()
    with Store(tmp_path) as store:
        store.answer(0, {"answer": "Probe", "until": {"a": 4}}, "policy")
        with pytest.raises(
            ValueError, match=r"round 1 was.*8.*'my policy' answers.*9.*pure function"
        ):
            store.answer(1, {"answer": "Probe", "until": {"a": 9}}, "my policy")
    assert (tmp_path / "rounds.jsonl").read_bytes() == before


def test_a_record_goes_back_to_its_checkpoint(tmp_path: pathlib.Path) -> None:
    """Whoever deleted the last checkpoint of what is to be kept needs it again."""
    with Store(tmp_path) as store:
        store.commit(segment(-1, 8))
        save(store, A, 4, 8)
        store.rewind(A, 8)
        assert store.losses.count(A) == 8
        (store.checkpoints.root / directory_name(A) / "8").rmdir()
        # It is not to come that far, or has not.
        store.rewind(A, 9)
        assert store.losses.count(A) == 8
        store.rewind(A, 8)
        assert store.losses.count(A) == 4
        assert [x["step"] for x in store.curves.of(A)] == [0, 2, 4]


def test_how_a_candidate_was_grown_is_asked_for(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint of 'a' with seed 3"):
        directory.growth(tmp_path, "a", 3)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_child_does_not_keep_the_lock(tmp_path: pathlib.Path) -> None:
    """It may outlive the run that it was forked in."""
    (born, tell), (done, end) = os.pipe(), os.pipe()
    with Store(tmp_path):
        if not (child := os.fork()):
            os.write(tell, b".")
            os.read(done, 1)
            os._exit(0)
        os.read(born, 1)
    try:
        Store(tmp_path).__exit__()
    finally:
        os.write(end, b".")
        os.waitpid(child, 0)
