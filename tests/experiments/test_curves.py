"""The bank: a small task end to end, and what is run, skipped and refused."""

import dataclasses
import itertools
import pathlib

import numpy as np
import optax
import pytest

from experiments import bank, curves, datasheet, hypotheses, regimes, replay, settings
from experiments.bank import Curves

SMALL = {
    "width": 16, "heads": 2, "window": 16, "batch": 2, "seeds": 1, "warmup": 2, "shards": 2,
    "shorter": 100,
}  # fmt: skip


def test_a_small_task_is_kept_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = dataclasses.replace(curves.TASKS["gpt-5"], layers=(1, 2), candidates=2)
    monkeypatch.setitem(curves.TASKS, "gpt-5", entry)
    config = curves.Config(
        ("gpt-5",), workdir=tmp_path / "runs", results=tmp_path / "kept", **SMALL
    )
    assert curves.kept(config, "gpt-5") is None
    curves.main(config)
    found = curves.kept(config, "gpt-5")
    # One layer has no order to destroy: there is no control.
    assert found is not None and found.able == 2 and len(found.names) == 2
    assert found.baselines.keys() == {"not growing", "from scratch"}
    assert all(np.isfinite(each.train).all() for each in found.baselines.values())
    assert found.train.shape == (2, 1, 8) and np.isfinite(found.train).all()
    assert found.valid.keys() == {"raw", "average"} and np.isfinite(found.valid["average"]).all()
    assert found.row["config"]["source_steps"] == 1000 and not found.row["held_out"]
    assert found.row["failed"] == [] and found.row["winner"] in found.names
    assert found.source is not None and found.source.train.shape == (1, 10)
    assert "1 of" in datasheet.render(tmp_path / "kept")
    assert {"commit", "versions", "device", "cores", "corpus"} <= found.row.keys()
    # The state is grown and the rate begins at its peak.
    assert found.norms[1, 0, 0, 1] == pytest.approx(3e-3)
    # Kept, it is not run again; configured otherwise, it is.
    capsys.readouterr()
    curves.main(config)
    assert "kept" not in capsys.readouterr().out
    assert curves.kept(dataclasses.replace(config, seeds=2), "gpt-5") is None
    curves.main(dataclasses.replace(config, list=True))
    listed = capsys.readouterr().out
    assert "gpt-5" in listed and "kept" in listed and "2 × 1" in listed and "hours left" in listed


def test_the_first_eight_are_a_half_fraction() -> None:
    """Each main effect is free of the others and of interactions of two; those stand in pairs."""
    levels = np.array([[*entry.levels.values()] for entry in curves.CELLS.values()])
    signs = np.where(levels, 1, -1)
    assert len({tuple(row) for row in signs}) == 8
    assert (signs[:, 3] == signs[:, :3].prod(axis=1)).all()
    assert (signs.T @ signs == 8 * np.eye(4)).all()
    pairs = {two: signs[:, two].prod(axis=1) for two in itertools.combinations(range(4), 2)}
    for factor in signs.T:
        assert all(factor @ pair == 0 for pair in pairs.values())
    assert (pairs[0, 1] == pairs[2, 3]).all() and (pairs[0, 2] == pairs[1, 3]).all()


def test_rates() -> None:
    config, steps = curves.Config(), curves.TASKS["gpt-1"].horizon
    again = curves.schedule(config, curves.TASKS["gpt-1"], 1.0, steps)
    assert [float(again(at)) for at in (0, 25, 50, steps)] == pytest.approx(
        [0, 0.5, 1, 0], abs=1e-6
    )
    at_once = curves.schedule(config, curves.TASKS["gpt-6"], 1.0, steps)
    assert [float(at_once(at)) for at in (0, steps)] == pytest.approx([0.1, 0], abs=1e-6)
    late = curves.schedule(config, curves.TASKS["late"], 1.0, steps)
    assert [float(late(at)) for at in (0, steps // 2, 3 * steps // 4, steps)] == pytest.approx(
        [1, 1, 0.5, 0], abs=1e-6
    )
    constant = curves.source_schedule(config, curves.TASKS["gpt-3"], 1.0)
    annealed = curves.source_schedule(config, curves.TASKS["gpt-4"], 1.0)
    assert [float(constant(10_000)), float(annealed(10_000))] == pytest.approx([1, 0], abs=1e-6)


def test_one_task_of_each_model_is_held_out() -> None:
    held = {name: entry for name, entry in curves.TASKS.items() if entry.held_out}
    assert {*held} == {*curves.HELD_OUT} and not {*held} & {*curves.CELLS}
    assert {entry.model.split("-")[0] for entry in held.values()} == {"gpt", "bert", "ul2"}


def test_other_models_are_tried_where_cells_differ_most() -> None:
    """By the committed curves; each model in both regimes, but for what names it."""
    tasks = {task.name: task for task in hypotheses.kept(bank.CURVES)}
    cells = {name: hypotheses.told_of(tasks[name]) for name in curves.CELLS}
    assert regimes.farthest(cells) == curves.FARTHEST
    own = {"about": "", "model": "gpt", "candidates": 12, "held_out": False}
    regime = {name: dataclasses.replace(curves.CELLS[name], **own) for name in curves.FARTHEST}
    others = [entry for entry in curves.TASKS.values() if entry.model != "gpt"]
    for model in settings.MODELS.keys() - {"gpt"}:
        mine = [dataclasses.replace(x, **own) for x in others if x.model == model]
        assert len(mine) == 2 and all(each in mine for each in regime.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("gpt-9",)}, "no task 'gpt-9'; there are gpt-1, gpt-2"),
        ({"tasks": ("wikitext",)}, "needs its text; give its folder, --wikitext2 PATH"),
    ],
)
def test_a_task_that_cannot_be_run(
    changes: dict[str, object], message: str, tmp_path: pathlib.Path
) -> None:
    config = curves.Config(workdir=tmp_path, results=tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        curves.main(config)
    assert not [*tmp_path.iterdir()]


def test_sources_of_the_second_kind_are_others() -> None:
    """Another initialisation and another data order, neither of them a candidate's."""
    first, second = (curves.TASKS[name] for name in ("gpt-1", "gpt-1-again"))
    assert dataclasses.replace(second, second=False, about=first.about) == first


def test_models_bring_what_an_experiment_needs() -> None:
    """By shapes alone: no vocabulary is trained."""
    size = settings.Size(width=16, heads=2, window=32, batch=2, shards=2, vocab=320)
    for kind in settings.MODELS.values():
        found = kind(size, 1, settings.BLANK)
        assert len(found.valid) == len(found.shards)
        tx = found.optimizer(optax.constant_schedule(0.1))
        assert isinstance(tx, optax.GradientTransformation)
        one, again = found.batch(1, 2), found.batch(1, 2)
        assert all(map(np.array_equal, *map(_leaves, (one, again))))
        assert not all(map(np.array_equal, *map(_leaves, (one, found.batch(1, 3)))))


def _leaves(batch: object) -> list[np.ndarray]:
    return [*batch.values()] if isinstance(batch, dict) else [batch]


def test_the_first_steps_come_again() -> None:
    """Of the committed curves, from the committed small model, by the row alone."""
    path = bank.CURVES / f"{curves.SOURCE_KEPT}.npz"
    source = bank.source_path(path)
    assert source.stat().st_size <= 2**20
    kept = Curves.load(path)
    if why := replay.otherwise(kept.row):
        pytest.skip(why)
    found = replay.losses(kept.row, source, 3)
    for name, mine in found.items():
        np.testing.assert_allclose(mine, kept.train[kept.names.index(name), :, :3], rtol=1e-4)
    assert not np.allclose(found["stack"], found["zeroed-interleave"], rtol=1e-3)


def test_why_steps_may_not_come_again() -> None:
    row = Curves.load(bank.CURVES / f"{curves.SOURCE_KEPT}.npz").row
    old = {**row, "versions": {**row["versions"], "jax": "0.1"}}
    assert "and was 0.1" in replay.otherwise(old)
    if not replay.otherwise(row):
        assert "had abc" in replay.otherwise({**row, "corpus": "abc"})
    grown = {**row, "config": {**row["config"], "state": "grown"}}
    with pytest.raises(ValueError, match="the optimizer's state, which is not kept"):
        replay.losses(grown, bank.CURVES, 1)
    with pytest.raises(ValueError, match="the small model of 'gpt-2' is not kept"):
        replay.main(replay.Config("gpt-2"))


def test_the_committed_datasheet_is_that_of_the_committed_curves() -> None:
    assert (bank.CURVES / "README.md").read_text() == datasheet.render(bank.CURVES)


def test_the_kept_files_are_small() -> None:
    assert sum(path.stat().st_size for path in bank.CURVES.iterdir()) <= 20e6
