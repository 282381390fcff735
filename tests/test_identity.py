"""A run directory is of what trained it: another step is refused, other surroundings are tried."""

import json
import os
import random
import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.executors.worker import Worker
from lagjax.executors.workload import Workload
from lagjax.identity import described
from tests import quick, toy

no_page = quick.no_page


def run(path, rate=1e-2, told=None, **changes):
    task = toy.task(tx=optax.adam(rate), horizon=12, **changes)
    pool = [each._replace(target=changes.get("model", toy.LARGE)) for each in toy.pool("stack")]
    told = told or toy.Told()
    return lagjax.run(task, pool, lagjax.FixedLag(4), path, progress=told)


def elsewhere(path):
    """As if the run had begun under another version of JAX, which traces otherwise."""
    config = json.loads((path / "config.json").read_text())
    config["versions"]["jax"] = "0.0"
    config["programs"] = dict.fromkeys(config["programs"], "another")
    (path / "config.json").write_text(json.dumps(config))


def test_the_message_names_what_differs(tmp_path):
    run(tmp_path)
    with pytest.raises(
        ValueError, match=r"'stack' was trained otherwise: .*mul -0\.0099\d*:.* there and .*-0\.019"
    ) as e:
        run(tmp_path, rate=2e-2)
    assert "another directory" in str(e.value)
    assert run(tmp_path).winner == "stack"


def test_constants_and_schedules_are_part_of_it():
    def text(tx, table=None):
        model = toy.LARGE
        if table is not None:

            def loss(params, batch, key):
                total, count = toy.LARGE.loss(params, batch, key)
                return total + jnp.asarray(table).sum(), count

            model = model._replace(loss=loss)
        task = toy.task(tx=tx)
        work = Workload(task, {}, {}, None, np.stack(toy.VALID), None, None, 1.0, "")
        work.join([toy.pool("stack")[0]._replace(target=model)])
        return described(work.groups["stack"])

    one = text(optax.adam(1e-2))
    assert text(optax.adam(1e-2)) == one
    others = [
        text(optax.adam(1.0001e-2)),
        text(optax.adam(optax.linear_schedule(1e-2, 0.0, 10))),
        text(optax.adam(optax.linear_schedule(1e-2, 0.0, 11))),
        text(optax.adam(1e-2), np.zeros(5, np.float32)),
        text(optax.adam(1e-2), np.arange(5, dtype=np.float32)),
    ]
    assert len({one, *others}) == 6


def test_elsewhere_a_few_steps_are_made_again(tmp_path):
    first = run(tmp_path)
    elsewhere(tmp_path)
    told = toy.Told()
    assert run(tmp_path, told=told) == first
    assert any("made again" in note for note in told.notes)
    with pytest.raises(ValueError, match="training losses from step .* were .* and are now"):
        run(tmp_path, rate=0.2)


def test_made_again_from_growing_and_from_a_checkpoint(tmp_path):
    task = toy.task(tx=optax.adam(1e-2), horizon=12)
    lagjax.run(task, toy.pool("stack"), lagjax.FixedLag(4), tmp_path, progress=toy.Told())
    losses = np.fromfile(tmp_path / "steps" / "stack-0.f32", np.float32)
    key = lambda trial: lagjax.initial.trial_key(0, trial)
    shards, checkpoints = np.stack(toy.VALID), tmp_path / "checkpoints"
    work = Workload(task, {}, {}, key, shards, None, checkpoints, 1.0, "")
    work.join(toy.pool("stack"))
    worker = Worker(work)
    trial = lagjax.jobs.Trial("stack", 0)
    np.testing.assert_array_equal(worker.again(trial, -1, 5), losses[:5])
    # The probe's end.
    np.testing.assert_array_equal(worker.again(trial, 4, 5), losses[4:9])
    worker.close()


def outcome(path):
    decision = json.loads((path / "decision.json").read_text())
    del decision["ledger"]["seconds"]
    return decision, toy.without_times(path), (path / "steps" / "stack-0.f32").read_bytes()


def cut(whole, path, count):
    """Truncates a copy of a run at seeded places and calls it again."""
    draw = random.Random(0)
    wanted = outcome(whole)
    files = sorted(x.relative_to(whole) for x in whole.rglob("*") if x.is_file())
    for _ in range(count):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        file = path / draw.choice(files)
        size = file.stat().st_size
        os.truncate(file, draw.randrange(size) if size else 0)
        try:
            run(path)
        except ValueError as error:
            # All else can be made again; what was asked for cannot be known without it.
            assert file.name == "config.json" and "restore" in str(error)
        else:
            assert outcome(path) == wanted, file


def test_files_that_were_cut_short(tmp_path):
    run(tmp_path / "whole")
    for name in ("curves.jsonl", "steps/stack-0.f32", "rounds.jsonl", "decision.json"):
        path = tmp_path / name.replace("/", "-")
        shutil.copytree(tmp_path / "whole", path)
        os.truncate(path / name, (path / name).stat().st_size // 2)
        run(path)
        assert outcome(path) == outcome(tmp_path / "whole"), name


@pytest.mark.slow
def test_files_that_were_cut_short_anywhere(tmp_path):
    run(tmp_path / "whole")
    cut(tmp_path / "whole", tmp_path / "cut", 200)
