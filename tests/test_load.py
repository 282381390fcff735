"""What a run gives back: `train` and `load`, in the target's own tree, to the bit."""

import json
import pathlib
from typing import Any, NamedTuple

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lagjax
from lagjax.engine import from_loss
from lagjax.probe import LENGTH, program, steps_of
from lagjax.store.checkpoints import nested
from tests import quick, toy
from tests.toy import curve

no_page, groups_kept = quick.no_page, quick.groups_kept


LOSSES = jax.jit(toy.LARGE.loss), jax.jit(toy.SMALL.loss)


class Finished(NamedTuple):
    path: pathlib.Path
    source: lagjax.Trained
    decision: lagjax.Decision
    pool: tuple[lagjax.Candidate, ...]


def train(path: pathlib.Path, steps: int = 6, **changes: object) -> lagjax.Trained:
    given = {"progress": toy.Told(), **changes}
    return lagjax.train(toy.SMALL, toy.tx(), toy.batch, toy.VALID, steps, path, **given)


def go(path: pathlib.Path, source: lagjax.Trained, **changes: object) -> lagjax.Decision:
    options = {"candidates_at_once": 1, "checkpoint_seconds": 1e9, "progress": toy.Told()}
    options |= {name: changes.pop(name) for name in ("keep",) if name in changes}
    pool = changes.pop("pool", toy.pool("stack", "random-top"))
    task = toy.task(**{"source": source, "horizon": 16, **changes})
    return lagjax.run(task, pool, lagjax.FixedLag(4), path, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A small model trained and grown in one directory, every checkpoint kept."""
    path = tmp_path_factory.mktemp("run") / "run"
    source, pool = train(path), toy.pool("stack", "random-top")
    # The rate goes on, so that steps of schedules and of the data differ.
    transfer = lagjax.Transfer("reset", 100)
    decision = go(path, source, pool=pool, keep="all", seeds=2, transfer=transfer)
    return Finished(path, source, decision, pool)


def validation(params: object, shards: tuple[np.ndarray, ...] = toy.VALID) -> float:
    total = sum(float(LOSSES[0](params, x, None)[0]) for x in shards)
    return total / sum(x[:, 1:].size for x in shards)


def test_the_source_comes_out(finished: Finished) -> None:
    source = finished.source
    assert (int(source.step), int(source.position)) == (6, 6)
    chex.assert_trees_all_equal_shapes_and_dtypes(source.params, toy.PARAMS)
    assert jax.tree.structure(source.opt_state) == jax.tree.structure(toy.tx().init(toy.PARAMS))
    read = lagjax.load(finished.path, toy.SMALL, tx=toy.tx(), candidate="source")
    chex.assert_trees_all_equal(read, source)
    last = curve(finished.path, "source")[-1]
    assert (last["phase"], last["step"]) == ("source", 6)
    total = sum(float(LOSSES[1](source.params, x, None)[0]) for x in toy.VALID)
    assert last["valid_loss"] == pytest.approx(total / 192, rel=1e-6)


def test_the_winner_by_default_at_its_latest_checkpoint(finished: Finished) -> None:
    path, _, decision, _ = finished
    found = lagjax.load(path, toy.LARGE, tx=toy.tx())
    last = curve(path, decision.winner)[-1]
    assert last["step"] == 16
    assert validation(found.params) == pytest.approx(last["valid_loss"], rel=1e-6)
    # The schedules began at 100, the data go on where the source's ended.
    assert (int(found.step), int(found.position)) == (116, 22)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        found.params, jax.eval_shape(toy.LARGE.init, jax.random.key(0))
    )
    named = lagjax.load(path, toy.LARGE, tx=toy.tx(), candidate=decision.winner, step=16)
    chex.assert_trees_all_equal(named, found)


def test_any_candidate_seed_and_step(finished: Finished) -> None:
    path, _, _, pool = finished
    for name in (candidate.name for candidate in pool):
        for seed in (0, 1):
            found = lagjax.load(path, toy.LARGE, candidate=name, seed=seed, step=4)
            (line,) = (line for line in curve(path, name, seed) if line["step"] == 4)
            shards = toy.VALID[: len(line["valid_loss_shards"])]
            assert validation(found.params, shards) == pytest.approx(line["valid_loss"], rel=1e-6)
            assert (int(found.step), int(found.position)) == (104, 10)


def test_without_a_model_it_comes_as_nested_dictionaries(finished: Finished) -> None:
    found, own = (lagjax.load(finished.path, like, tx=toy.tx()) for like in (None, toy.LARGE))
    assert type(found.params) is dict and type(found.params["layers"]) is dict
    chex.assert_trees_all_equal(found.params, own.params)
    # The optimizer's own tree where `tx` is given, dictionaries where it is not.
    chex.assert_trees_all_equal(found.opt_state, own.opt_state)
    bare = lagjax.load(finished.path, toy.LARGE)
    assert type(bare.opt_state) is dict
    chex.assert_trees_all_equal(bare.opt_state, nested(own.opt_state))
    assert jax.tree.all(jax.tree.map(lambda x: isinstance(x, jax.Array), found))


def test_the_optimizer_goes_on_as_the_run_did(finished: Finished) -> None:
    """From the checkpoint at the lag to the horizon, by hand: bitwise the run's own."""
    path = finished.path
    begin, end = (lagjax.load(path, toy.LARGE, tx=toy.tx(), step=step) for step in (4, 16))
    engine = from_loss(toy.LARGE, toy.tx())
    state = engine.init(begin, jax.random.key(0))
    batches = steps_of(toy.batch, [0], int(begin.position), 12, LENGTH)
    made = program(engine, state, batches, np.stack(toy.VALID), 1)
    state, _ = made.advance(state, batches, np.int32(0), np.int32(12))
    chex.assert_trees_all_equal(engine.trained(state).params, end.params)
    chex.assert_trees_all_equal(engine.trained(state).opt_state, end.opt_state)
    assert float(end.opt_state.hyperparams["learning_rate"]) == pytest.approx(
        3e-3 * (1 - 115 / 200)
    )


def test_a_run_goes_on_with_the_data(tmp_path: pathlib.Path) -> None:
    """`source.position` is where they go on, for every seed; what was seen is not seen again."""
    shifted = lambda seed, step: toy.batch(seed, step + 5)
    source = lagjax.Trained(toy.PARAMS)
    options = {"pool": toy.pool("stack"), "seeds": 2}
    go(tmp_path / "a", source._replace(position=5), **options)
    go(tmp_path / "b", source, batch=shifted, **options)
    assert toy.without_times(tmp_path / "a") == toy.without_times(tmp_path / "b")
    go(tmp_path / "c", source, **options)
    assert toy.without_times(tmp_path / "a") != toy.without_times(tmp_path / "c")
    assert int(lagjax.load(tmp_path / "a").position) == 21


def test_train_is_resumable_and_reads_what_is_finished(tmp_path: pathlib.Path) -> None:
    whole = train(tmp_path / "a", 20, seed=3)

    def interrupt(event: object) -> None:
        if event.step >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", 20, seed=3, progress=toy.Told(interrupt), checkpoint_seconds=0.0)
    told = toy.Told()
    resumed = train(tmp_path / "b", 20, seed=3, progress=told)
    assert told.events[0].step == 10
    chex.assert_trees_all_equal(resumed, whole)
    told = toy.Told()
    chex.assert_trees_all_equal(train(tmp_path / "b", 20, seed=3, progress=told), whole)
    assert not told.events
    assert toy.without_times(tmp_path / "a") == toy.without_times(tmp_path / "b")
    lines = curve(tmp_path / "a", "source", seed=3)
    assert {line["phase"] for line in lines} == {"source"}
    assert lines[-1]["valid_loss"] < lines[0]["valid_loss"]
    with pytest.raises(ValueError, match=r"source\.steps is 20 there and 21 here"):
        train(tmp_path / "a", 21, seed=3)


class Net(flax.linen.Module):
    """One hidden layer on a one-hot token."""

    width: int

    @flax.linen.compact
    def __call__(self, batch: jax.Array) -> jax.Array:
        x = jax.nn.one_hot(batch[:, :-1], toy.VOCAB)
        return flax.linen.Dense(toy.VOCAB)(jnp.tanh(flax.linen.Dense(self.width)(x)))


class Nnx(nnx.Module):
    """The same in nnx."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(toy.VOCAB, width, rngs=rngs)
        self.down = nnx.Linear(width, toy.VOCAB, rngs=rngs)

    def __call__(self, batch: jax.Array) -> jax.Array:
        return self.down(jnp.tanh(self.up(jax.nn.one_hot(batch[:, :-1], toy.VOCAB))))


def loss_of(apply: Any) -> Any:
    def loss(params: object, batch: jax.Array, key: object) -> tuple:
        logits = apply(params, batch)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:])
        return nats.sum(), nats.size

    return loss


def linen(width: int) -> lagjax.Model:
    net = Net(width)
    axes = lagjax.Axes(
        {
            "params/Dense_0/kernel": "<vocab >mlp",
            "params/Dense_0/bias": ">mlp",
            "params/Dense_1/kernel": "<mlp >vocab",
            "params/Dense_1/bias": ">vocab",
        }
    )
    return lagjax.Model(lambda key: net.init(key, toy.VALID[0]), loss_of(net.apply), axes)


def in_nnx(width: int) -> lagjax.Model:
    graph, _ = nnx.split(nnx.eval_shape(lambda: Nnx(width, nnx.Rngs(0))))
    axes = lagjax.Axes(
        {
            "up/kernel": "<vocab >mlp",
            "up/bias": ">mlp",
            "down/kernel": "<mlp >vocab",
            "down/bias": ">vocab",
        }
    )

    def apply(params: nnx.State, batch: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(batch)

    def init(key: jax.Array) -> nnx.State:
        return nnx.state(Nnx(width, nnx.Rngs(key)))

    return lagjax.Model(init, loss_of(apply), axes)


class Wider:
    """Fresh units beside the old ones, for trees of any kind."""

    def __call__(self, key, params, source, target):
        large = target.init(key)
        pad = lambda new, old: new.at[tuple(map(slice, old.shape))].set(old)
        return jax.tree.map(pad, large, params)


@pytest.mark.parametrize("make", [linen, in_nnx])
def test_trees_of_flax_come_back_as_they_are(make: Any, tmp_path: pathlib.Path) -> None:
    small, large = make(4), make(6)
    told = toy.Told()
    source = lagjax.train(small, toy.tx(), toy.batch, toy.VALID, 2, tmp_path, progress=told)
    like = jax.eval_shape(small.init, jax.random.key(0))
    assert jax.tree.structure(source.params) == jax.tree.structure(like)
    task = lagjax.Task(small, source, toy.tx(), toy.batch, toy.VALID, 2)
    pool = [lagjax.Candidate("wider", Wider(), large)]
    lagjax.run(task, pool, lagjax.FixedLag(1), tmp_path, progress=told)
    found = lagjax.load(tmp_path, large, tx=toy.tx())
    params = large.init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(found.params, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.opt_state, toy.tx().init(params))
    total = sum(float(large.loss(found.params, x, None)[0]) for x in toy.VALID)
    assert total / 192 == pytest.approx(curve(tmp_path, "wider")[-1]["valid_loss"], rel=1e-6)
    # What it is loaded as without a model holds the same leaves in the same order.
    bare = lagjax.load(tmp_path)
    leaves = dict(jax.tree_util.tree_leaves_with_path(nested(found.params)))
    assert leaves.keys() == dict(jax.tree_util.tree_leaves_with_path(bare.params)).keys()


def test_what_cannot_be_loaded(finished: Finished, tmp_path: pathlib.Path) -> None:
    path, _, decision, _ = finished
    winner = decision.winner
    for given, says in (
        (
            {"candidate": "x"},
            r"no checkpoint of 'x' with seed 0; .*'source-0', 'stack-0'.*keep='all'",
        ),
        ({"seed": 2}, rf"no checkpoint of '{winner}' with seed 2"),
        ({"step": 9}, rf"no checkpoint of '{winner}' with seed 0 at step 9; .*steps \[4, 16\]"),
        (
            {"like": toy.SMALL},
            r"float32\[4, (8|16), .*'layers/(up|down)', and `like` has float32\[2, .*the model",
        ),
        (
            {"like": toy.LARGE._replace(init=lambda key: {"w": jnp.ones(2)})},
            "has nothing at 'w', and `like` has float32",
        ),
        (
            {"like": toy.LARGE, "tx": optax.sgd(0.1, momentum=0.9)},
            "nothing at '0/trace/.*`tx` has float32.*the optimizer",
        ),
        (
            {"tx": optax.inject_hyperparams(optax.sgd)(0.1)},
            "and `tx` has nothing there; give the optimizer",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            lagjax.load(path, **given)
    with pytest.raises(ValueError, match="no run directory"):
        lagjax.load(tmp_path)

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lagjax.run(
            toy.task(),
            toy.pool("stack"),
            lagjax.FixedLag(4),
            tmp_path / "run",
            progress=toy.Told(interrupt),
        )
    with pytest.raises(ValueError, match=r"has not decided yet: finish it, or name a candidate"):
        lagjax.load(tmp_path / "run")
    decided = {"winner": None, "outcome": "all_failed"}
    (tmp_path / "run/decision.json").write_text(json.dumps(decided))
    with pytest.raises(ValueError, match="no winner: all failed"):
        lagjax.load(tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["format"]
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another version of lagjax.*install lagjax==0.1.0"):
        lagjax.load(tmp_path / "run", candidate="stack")


def test_a_source_that_cannot_be_trained(tmp_path: pathlib.Path) -> None:
    lost = toy.SMALL._replace(loss=lambda params, batch, key: (params["embed"].sum() * jnp.nan, 1))
    arguments = (toy.tx(), toy.batch, toy.VALID, 2)
    with pytest.raises(ValueError, match="at step 0; it shall return a sum and its count"):
        lagjax.train(lost, *arguments, tmp_path / "a", progress=toy.Told())
    explode = optax.sgd(jnp.nan)
    with pytest.raises(ValueError, match="at step 1; check its loss.*lower its learning rate"):
        lagjax.train(toy.SMALL, explode, *arguments[1:], tmp_path / "b", progress=toy.Told())
    with pytest.raises(
        ValueError, match="steps of the small model is 0; give a whole number, at least 1"
    ):
        train(tmp_path / "c", 0)
    assert not (tmp_path / "c").exists()
