"""Training loops as functions: what goes into a run, what comes out, what is saved once."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.engine import Engine, Parts, Trained, float32, from_loss, sum_and_count
from lagjax.jobs import Trial
from lagjax.store.losses import Losses
from tests import quick, toy

no_page, groups_kept = quick.no_page, quick.groups_kept


def with_average(model: lagjax.Model, tx: optax.GradientTransformation) -> Engine:
    """Keeps a running average of the parameters, which is evaluated as well, and an accuracy."""
    inner = from_loss(model, tx)

    def init(trained: Trained, key: jax.Array) -> tuple:
        average = trained.collections.get("ema", trained.params)
        return inner.init(trained, key), average, key

    def step(state: tuple, batch: jax.Array) -> tuple:
        made, metrics = inner.step(state[0], batch)
        average = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, state[1], made.params)
        return (made, average, state[2]), metrics

    def evaluate(state: tuple, batch: jax.Array) -> dict:
        guess = model.apply(state[0].params, batch).argmax(-1)
        return {
            **inner.evaluate(state[0], batch),
            "averaged": model.loss(state[1], batch, None),
            "accuracy": ((guess == batch[:, 1:]).sum(), guess.size),
        }

    def trained(state: tuple) -> Trained:
        return inner.trained(state[0])._replace(collections={"ema": state[1]})

    return Engine(init, step, evaluate, trained)


def test_a_state_comes_apart_and_together() -> None:
    """Nothing is saved twice; what is computed on the way out is not taken for the state."""
    kept = with_average(toy.LARGE, toy.tx())

    def out(state: tuple) -> Trained:
        half = jax.tree.map(lambda x: x / 2, state[1])
        return kept.trained(state)._replace(collections={"ema": state[1], "half": half})

    engine = kept._replace(trained=out)
    params = toy.LARGE.init(jax.random.key(0))
    given = Trained(params, toy.tx().init(params))
    state = jax.jit(engine.init)(given, jax.random.key(1))
    parts = Parts(engine, jax.eval_shape(lambda: state))
    trained, rest = parts.apart(state)
    expected = engine.trained(state)
    chex.assert_trees_all_equal(trained, expected)
    # The step, and the key, which the state has twice; the parameters and both averages come out.
    assert len(rest) == 3
    count = len(jax.tree.leaves(params))
    outside = len(jax.tree.leaves(trained)) - 2
    assert outside == 3 * count + len(jax.tree.leaves(given.opt_state))
    again = parts.together(trained, rest)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    as_data = lambda tree: jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    chex.assert_trees_all_equal(as_data(again), as_data(state))
    shapes, _ = parts.apart(jax.eval_shape(lambda: state))
    told = lambda tree: jax.tree.map(
        lambda x: (x.shape, x.dtype), tree._replace(step=(), position=())
    )
    assert told(shapes) == told(expected)


def test_a_run_carries_collections_and_metrics(tmp_path: pathlib.Path) -> None:
    """They grow with the parameters, go on to the bit after an interruption, and come out."""
    average = jax.tree.map(lambda x: 2 * x, toy.PARAMS)
    (stack,) = toy.pool("stack")
    task = toy.task(
        source=Trained(toy.PARAMS, collections={"ema": average}), engine=with_average, horizon=6
    )

    def interrupt(event: object) -> None:
        if event.step >= 3:
            raise KeyboardInterrupt

    def go(path: pathlib.Path, told: toy.Told, seconds: float = 1e9) -> None:
        policy = lagjax.FixedLag(4)
        lagjax.run(
            task,
            [stack],
            policy,
            path,
            progress=told,
            checkpoint_seconds=seconds,
            keep="all",
            compare="all",
        )

    go(tmp_path / "whole", toy.Told())
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", toy.Told(interrupt), 0.0)
    told = toy.Told()
    go(tmp_path / "cut", told, 0.0)
    assert told.events[0].step == 3
    assert toy.without_times(tmp_path / "cut") == toy.without_times(tmp_path / "whole")
    trial = Trial("stack", 0)
    one, other = (Losses(tmp_path / name / "steps").of(trial) for name in ("cut", "whole"))
    assert one.tobytes() == other.tobytes() and len(one) == 6
    found = [lagjax.load(tmp_path / name, toy.LARGE) for name in ("cut", "whole")]
    chex.assert_trees_all_equal(*found)
    last = found[0]
    first, *_ = lines = toy.curve(tmp_path / "whole", "stack")
    grow = jax.jit(lambda params: stack.operator(jax.random.key(0), params, toy.AXES, toy.LARGE))

    total = jax.jit(lambda params, batch: toy.LARGE.loss(params, batch, None)[0])

    def loss(params: object) -> float:
        return sum(float(total(params, x)) for x in toy.VALID) / 192

    assert first["metrics"]["valid_averaged"] == pytest.approx(loss(grow(average)), rel=1e-5)
    assert lines[-1]["metrics"]["valid_averaged"] == pytest.approx(
        loss(last.collections["ema"]), rel=1e-5
    )
    apply = jax.jit(toy.LARGE.apply)
    guesses = [np.asarray(apply(last.params, x)).argmax(-1) for x in toy.VALID]
    right = np.mean([guess == x[:, 1:] for guess, x in zip(guesses, toy.VALID)])
    assert lines[-1]["metrics"]["valid_accuracy"] == pytest.approx(right)
    assert set(lines[-1]["metrics"]) == {"valid_averaged", "valid_accuracy"}


def test_where_there_are_no_tokens_nothing_is_divided(tmp_path: pathlib.Path) -> None:
    """A batch and a shard of padding alone, and a model that multiplies nothing."""

    def loss(params, batch, key):
        weights, values = batch
        return (weights * (params["level"] - values) ** 2).sum(), weights.sum()

    def batch(seed, step):
        return np.full(4, float(step != 1), np.float32), np.arange(4, dtype=np.float32)

    table = lagjax.Axes({"level": ""})
    model = lagjax.Model(lambda key: {"level": jnp.zeros(())}, loss, table)
    task = lagjax.Task(
        model,
        lagjax.Trained({"level": jnp.ones(())}),
        optax.sgd(0.1),
        batch,
        [batch(0, 0), batch(0, 1)],
        4,
    )
    pool = [lagjax.Candidate("same", lagjax.Same(), model)]
    found = lagjax.run(task, pool, lagjax.FixedLag(3), tmp_path, progress=toy.Told())
    assert found.winner == "same"
    assert found.ledger.overhead == 0
    losses = [line["valid_loss"] for line in toy.curve(tmp_path, "same")]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    train = np.fromfile(tmp_path / "steps" / "same-0.f32", "<f4")
    assert train[1] == 0 and (train[[0, 2, 3]] > 0).all()


def test_what_is_no_sum_and_count() -> None:
    for found in (1.0, (1.0,), (1.0, 2.0, 3.0), (np.ones(2), 2), [1.0, 1.0], {"a": 1.0}):
        with pytest.raises(
            ValueError, match=r"the loss returned the shapes.*return nll\.sum\(\), nll"
        ):
            sum_and_count(found)
    total, count = sum_and_count((jnp.bfloat16(3.0), 4))
    assert (float(total), float(count), count.dtype) == (3.0, 4.0, jnp.float32)
    with pytest.raises(ValueError, match=r"gives the metrics \['accuracy'\]; expected 'loss'"):
        float32({"accuracy": (1.0, 1.0)})
    with pytest.raises(ValueError, match="the metric 'accuracy' returned"):
        float32({"loss": (1.0, 1.0), "accuracy": (0.5,)})
    made = float32({"loss": (jnp.bfloat16(1.0), 2), "rate": 0.5})
    assert [float(x) for x in made["rate"]] == [0.5, 1.0]
    assert made["loss"][0].dtype == jnp.float32


def test_an_engine_whose_evaluation_is_no_metric(tmp_path: pathlib.Path) -> None:
    """Refused before anything is written."""
    for evaluate, says in (
        (lambda state, batch: {"accuracy": (1.0, 1.0)}, "expected 'loss' among them"),
        (lambda state, batch: {"loss": (1.0, 1.0), "bleu": (0.5,)}, "the metric 'bleu' returned"),
    ):

        def engine(model: lagjax.Model, tx: object, evaluate: object = evaluate) -> Engine:
            return from_loss(model, tx)._replace(evaluate=evaluate)

        with pytest.raises(ValueError, match=says):
            lagjax.run(
                toy.task(engine=engine),
                toy.pool("stack"),
                lagjax.FixedLag(4),
                tmp_path / "run",
                progress=toy.Told(),
            )
        assert not (tmp_path / "run").exists()
