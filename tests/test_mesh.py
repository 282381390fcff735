"""Probes over eight devices: candidates side by side, batches shared, parameters fully sharded."""

import functools
import json
import pathlib

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import lagjax
from lagjax.engine import Trained, from_loss
from lagjax.jobs import ANNEAL, evaluation_steps
from lagjax.mesh import placement
from lagjax.probe import fitting, program, steps_of
from lagjax.store import directory
from tests import quick, toy

no_page, groups_kept = quick.no_page, quick.groups_kept

SAME = {"rtol": 1e-4, "atol": 2e-6}
"""Float32 sums in another order. By SGD: Adam's first steps turn rounding of a gradient near 0 into
a whole step.
"""

MODEL, TX = toy.model(2, width=64), optax.sgd(0.1, momentum=0.9)
ENGINE = from_loss(MODEL, TX)
SHARDS = np.stack(toy.VALID)
ALL = np.int32(len(SHARDS))
MESHES = {
    "candidates": ((8,), ("candidates",)),
    "data": ((4,), ("data",)),
    "both": ((4, 2), ("candidates", "data")),
    "both, the other way": ((2, 4), ("data", "candidates")),
}


def mesh(shape: tuple[int, ...], names: tuple[str, ...]) -> Mesh:
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), names)


@jax.jit
def begun(key: jax.Array):
    params = MODEL.init(key)
    return ENGINE.init(Trained(params, TX.init(params)), key)


def states(count: int):
    return [begun(jax.random.key(seed)) for seed in range(count)]


@functools.cache
def compiled(count: int, of: Mesh | None, fully_sharded: bool = False):
    batches = steps_of(toy.batch, [0, 1], 0, 4, 4)
    where = placement(of, fully_sharded)
    return program(ENGINE, states(1)[0], batches, SHARDS, count, 4, where)


@functools.cache
def advanced(count: int, of: Mesh | None, fully_sharded: bool = False):
    """Four steps of each trial and its evaluation."""
    made = compiled(count, of, fully_sharded)
    batches = steps_of(toy.batch, [0, 1], 0, 4, 4)
    order = np.arange(count, dtype=np.int32) % 2 if count > 1 else np.int32(1)
    state, buffer = made.advance(made.place(states(count)), batches, order, np.int32(4))
    return state, made.evaluate(state, SHARDS, ALL)["loss"], np.asarray(buffer)


@pytest.mark.parametrize(
    ("name", "fully_sharded"),
    [
        ("candidates", False),
        ("both", False),
        ("both", True),
        pytest.param("data", False, marks=pytest.mark.slow),
        pytest.param("data", True, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_compute_what_one_does(name: str, fully_sharded: bool) -> None:
    count = 1 if name == "data" else 8
    single, (sums, counts), buffer = advanced(count, None)
    spread, (spread_sums, spread_counts), spread_buffer = advanced(
        count, mesh(*MESHES[name]), fully_sharded
    )
    assert len(spread.params["embed"].sharding.device_set) == (4 if name == "data" else 8)
    chex.assert_trees_all_close(
        jax.device_get(spread.params),
        jax.device_get(single.params),
        **SAME,
    )
    np.testing.assert_allclose(spread_sums, sums, rtol=1e-5)
    np.testing.assert_array_equal(spread_counts, counts)
    np.testing.assert_allclose(spread_buffer, buffer, rtol=1e-3, atol=1e-5)


def test_one_trial_alone_has_all_devices() -> None:
    batch = jax.ShapeDtypeStruct((8, 9), np.int32)
    odd = jax.ShapeDtypeStruct((4, 9), np.int32)
    where = placement(mesh(*MESHES["both"]))
    assert where.spread(1, batch, batch) == ("candidates", "data")
    assert where.spread(8, batch, batch) == ("data",)
    assert where.spread(1, odd, batch) == ("data",)


def test_memory_per_device_falls() -> None:
    """Candidates side by side hold an eighth each; fully sharded, parameters and moments are shared
    as well.
    """
    alone = compiled(8, None)
    # A little is everywhere: batches, which candidates share.
    assert compiled(8, mesh(*MESHES["candidates"])).bytes < alone.bytes / 8 * 1.25
    one = compiled(1, None)
    data = mesh((4,), ("data",))
    copied, cut = advanced(1, data)[0], advanced(1, data, True)[0]
    held = lambda state: sum(
        x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.opt_state)
    )
    assert held(cut) < held(copied) / 4 * 1.05
    assert compiled(1, data, True).bytes < one.bytes / 2


def test_one_compilation() -> None:
    """Steps of any number, from anywhere, and an evaluation: nothing is traced or compiled
    again.
    """
    traces = []

    def loss(params: object, batch: jax.Array, key: object) -> tuple:
        traces.append(key)
        return MODEL.loss(params, batch, key)

    engine = from_loss(MODEL._replace(loss=loss), TX)
    made = states(8)
    batches = steps_of(toy.batch, [0, 1], 0, 4, 4)
    where = placement(mesh(*MESHES["both"]), True)
    one = program(engine, made[0], batches, SHARDS, 8, 4, where)
    state, before = one.place(made), len(traces)
    order = np.zeros(8, np.int32)
    for count in (1, 3, 4):
        state, _ = one.advance(state, batches, order, np.int32(count))
        one.evaluate(state, SHARDS, ALL)
    assert len(traces) == before


def test_trials_divide_over_the_groups() -> None:
    small = compiled(1, None)._replace(bytes=1)
    assert fitting(small, 14, 4) == 16
    assert fitting(small, 3, 4) == 4
    assert fitting(small._replace(bytes=10**15), 14, 4) == 4


def run(workdir: pathlib.Path, stop_after: int | None = None, **options: object):
    def interrupt(event: object) -> None:
        if stop_after and event.step >= stop_after:
            raise KeyboardInterrupt

    task = toy.task(seeds=2, averages={"ema": lagjax.Ema(0.2)})
    return lagjax.run(
        task, toy.pool("stack", "random-top"), looking, workdir, progress=toy.Told(interrupt), **options
    )  # fmt: skip


def losses(workdir: pathlib.Path) -> list[float]:
    lines = directory.read(workdir).curves
    # Those of averages and of annealed copies too.
    lines.sort(key=lambda x: (x["candidate"], x["seed"], x["phase"], x["step"]))
    averages = [x["averages"]["ema"]["valid_loss"] for x in lines if x["phase"] != ANNEAL]
    return [line["valid_loss"] for line in lines] + averages


def looking(evidence: lagjax.Evidence) -> object:
    """Anneals copies at the lag, and decides by the average."""
    if evidence.frontier < 8:
        return lagjax.Probe(8)
    if not evidence.annealed("stack", 8):
        return lagjax.Anneal()
    return lagjax.decide(evidence, 8, "ema")


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pathlib.Path, lagjax.Decision]:
    """The run on one device."""
    path = tmp_path_factory.mktemp("alone") / "run"
    return path, run(path, candidates_at_once=1)


@pytest.mark.parametrize("fully_sharded", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_over_eight_devices(
    alone: tuple[pathlib.Path, lagjax.Decision],
    tmp_path: pathlib.Path,
    fully_sharded: bool,
) -> None:
    """It decides as one device does, goes on after an interruption bit for bit, and remembers its
    devices.
    """
    options = {"mesh": mesh(*MESHES["both"]), "fully_sharded": fully_sharded}
    one, decision = alone
    spread = run(tmp_path / "eight", **options)
    assert (spread.winner, spread.ranking) == (decision.winner, decision.ranking)
    np.testing.assert_allclose(losses(tmp_path / "eight"), losses(one), rtol=1e-4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=12, **options)
    assert run(tmp_path / "cut", **options).ranking == spread.ranking
    assert losses(tmp_path / "cut") == losses(tmp_path / "eight")
    config = json.loads((tmp_path / "eight/config.json").read_text())
    assert config["placement"] == {
        "candidates": 4, "data": 2, "fully_sharded": fully_sharded,
    }  # fmt: skip
    assert list(config["grouping"].values()) == [4]
    with pytest.raises(ValueError, match="placement"):
        run(tmp_path / "eight")


def test_training_the_small_model_over_devices(tmp_path: pathlib.Path) -> None:
    arguments = (toy.SMALL, TX, toy.batch, toy.VALID, 6)
    told = toy.Told()
    alone = lagjax.train(*arguments, tmp_path / "one", progress=told)
    spread = lagjax.train(
        *arguments, tmp_path / "four", progress=told, mesh=mesh((4,), ("data",)), fully_sharded=True
    )  # fmt: skip
    chex.assert_trees_all_close(jax.device_get(spread.params), jax.device_get(alone.params), **SAME)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mesh": mesh((2,), ("model",))}, "expected 'candidates', 'data' or both"),
        ({"fully_sharded": True}, "give a mesh"),
        ({"mesh": mesh((8,), ("data",))}, "4 rows, which do not divide over the 8"),
        ({"mesh": mesh((8,), ("candidates",)), "candidates_at_once": 3}, "do not divide over the 8 groups"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_refused(tmp_path: pathlib.Path, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(tmp_path / "run", **options)


def test_evaluations_of_an_audit_are_dense_at_first() -> None:
    assert evaluation_steps(160, base=2)[:5] == (0, 1, 2, 4, 8)
    assert evaluation_steps(160)[:4] == (0, 1, 4, 10)
