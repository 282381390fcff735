"""A mask of 0 keeps the function whatever is new, one of 1 is the target, and training takes it
from one to the other.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import transformer
from lagjax.algebra.layout import flatten
from lagjax.engine import Trained, from_loss
from lagjax.growth.depth import Fresh, Interleave, Reversed
from lagjax.growth.masked import masked, ramp, silenced
from lagjax.growth.operator import Grow
from lagjax.growth.width import Paired, RandomIn, RandomPad, ZeroPad
from tests import toy

KEY = jax.random.key(2)
SMALL = transformer.Config(
    layers=2,
    width=6,
    kv=2,
    group=1,
    head_dim=4,
    mlp=8,
    window=6,
    vocab=7,
    norm="rms",
    pre=True,
    positions="rope",
    tied=True,
    gated=True,
    dtype="float64",
)
BATCH = np.random.default_rng(0).integers(7, size=(3, 7)).astype(np.int32)
EVERYTHING = Grow(depth=Fresh("top"), width=RandomPad())
ALL = dataclasses.replace(
    SMALL, layers=3, width=9, kv=3, group=2, head_dim=6, mlp=11, dtype="float64"
)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def drawn(model, seed=0):
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.5, x.shape).astype(x.dtype)), shapes
    )


@functools.cache
def outputs(config):
    """Of the small model, with its parameters."""
    small = transformer.model(config)
    params = drawn(small)
    return params, jax.jit(small.apply)(params, BATCH)


def meeting(config, plan):
    """The target as the plan requires it."""
    for one in plan.requires:
        if one.what == "epsilon":
            config = dataclasses.replace(config, epsilon=config.epsilon * one.value)
        else:
            assert one.what == "frequencies"
            old = [10000 ** (-2 * j / 4) for j in range(2)]
            new = tuple(old[i] if i >= 0 else 0.5 for i in one.value)
            config = dataclasses.replace(config, frequencies=new)
    return transformer.model(config)


def grown(operator, config, source=SMALL):
    """The plan, the target, and grown parameters whose new entries are anything."""
    small, large = transformer.model(source), transformer.model(config)
    shapes = jax.eval_shape(large.init, KEY)
    plan = operator.plan(KEY, small.axes.layout(outputs(source)[0]), large.axes.layout(shapes))
    large = meeting(config, plan)
    grow = jax.jit(plan.params)
    return plan, large, grow(outputs(source)[0], drawn(large, 1))


@functools.cache
def everything(implementation):
    source, config = (dataclasses.replace(x, implementation=implementation) for x in (SMALL, ALL))
    return grown(EVERYTHING, config, source)


def applied(target, plan):
    """`(mask, params)` → outputs."""
    at = masked(target, plan)
    return jax.jit(lambda mask, params: at(mask).apply(params, BATCH))


def shown(target, plan):
    """`(mask, params)` → the parameters that the target is called with."""
    at = masked(target._replace(loss=lambda params, *_: params), plan)
    return jax.jit(lambda mask, params: at(mask).loss(params, BATCH, None))


def change(found, expected):
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


@pytest.mark.parametrize(
    "operator, changes",
    [
        (Grow(width=RandomPad()), {"mlp": 11, "head_dim": 6}),
        (Grow(width=RandomPad()), {"kv": 3, "group": 2}),
        (Grow(width=RandomPad()), {"width": 9}),
        (Grow(depth=Fresh("bottom")), {"layers": 3}),
        (Grow(depth=Interleave()), {"layers": 4}),
    ],
    ids=["mlp", "heads", "width", "fresh", "copies"],
)
def test_the_function_is_kept_at_0(operator, changes):
    plan, large, params = grown(operator, dataclasses.replace(SMALL, **changes))
    apply, expected = applied(large, plan), outputs(SMALL)[1]
    assert not plan.exact_by_table and silenced(plan).exact_by_table
    assert change(apply(0.0, params), expected) < 1e-10
    # Not because what is new never does anything.
    assert change(apply(0.1, params), expected) > 1e-4


@pytest.mark.parametrize(
    "implementation", ["scanned", pytest.param("unrolled", marks=pytest.mark.slow)]
)
def test_everything_at_once(implementation):
    plan, large, params = everything(implementation)
    source = dataclasses.replace(SMALL, implementation=implementation)
    old, expected = outputs(source)
    assert change(applied(large, plan)(0.0, params), expected) < 1e-10
    used = shown(large, plan)
    chex.assert_trees_all_equal(used(1.0, params), params)
    # At 0 they are those of the silenced plan, save for what is then without effect: what is old is
    # masked nowhere.
    silent = jax.jit(silenced(plan).params)(old, drawn(large, 1))
    for one, other in zip(*map(jax.tree.leaves, (used(0.0, params), silent))):
        assert (np.isclose(one, other, rtol=1e-12) | (one == 0)).all()


def test_gradients_of_what_is_new():
    plan, large, params = everything("scanned")
    at = masked(large, plan)
    gradient = jax.jit(jax.grad(lambda params, mask: at(mask).loss(params, BATCH, None)[0]))
    some, none = (flatten(gradient(params, mask)) for mask in (0.5, 0.0))
    up, down = "layers/mlp/up/kernel", "layers/mlp/down/kernel"
    # Nothing moves at 0, and everything in between.
    for path, new in [
        (up, np.s_[:2, :6, 8:]),
        (down, np.s_[:2, 8:, :6]),
        (down, np.s_[2]),
        (up, np.s_[2, :6, :8]),
        ("layers/attn/q/kernel", np.s_[:2, :6, 2:]),
        ("layers/attn/k/kernel", np.s_[:2, :6, :2, 4:]),
        ("embed/embedding", np.s_[:, 6:]),
    ]:
        assert np.abs(some[path][new]).min() > 0, path
    assert not none[up][:2, :6, 8:].any() and not none[down][2].any()
    # What is old learns at 0 as well.
    assert np.abs(none[up][:2, :6, :8]).min() > 0


def test_the_ramp():
    small, large, batch = toy.SMALL, toy.model(3), toy.batch(0, 0)
    layouts = [model.axes.layout(jax.eval_shape(model.init, KEY)) for model in (small, large)]
    plan = Grow(depth=Fresh("top")).plan(KEY, *layouts)
    params = jax.jit(plan.params)(toy.PARAMS, jax.jit(large.init)(KEY))
    # A step that changes nothing: only the mask moves.
    tx = optax.sgd(0.0)
    engine = from_loss(ramp(large, plan, steps=4), tx)
    state = engine.init(Trained(params, tx.init(params)), KEY)
    step, evaluate = jax.jit(engine.step), jax.jit(engine.evaluate)
    losses, trained = [], []
    for _ in range(7):
        total, count = evaluate(state, batch)["loss"]
        losses.append(float(total / count))
        state, metrics = step(state, batch)
        total, count = metrics["loss"]
        trained.append(float(total / count))
    at = masked(large, plan)
    loss = jax.jit(lambda mask: at(mask).loss(params, batch, None)[0] / count)
    expected = [float(loss(mask)) for mask in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0)]
    assert np.abs(np.diff(expected[:5])).min() > 1e-3
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(trained, expected, rtol=1e-5)
    for model, tree, index in [(small, toy.PARAMS, 0), (large, params, -1)]:
        total, count = jax.jit(model.loss, static_argnums=2)(tree, batch, None)
        np.testing.assert_allclose(losses[index], total / count, rtol=1e-5)


def test_silent_ways_stay_as_they_are():
    """What cannot be seen needs no mask, which would only slow it down."""
    plan, large, params = grown(
        Grow(width={"mlp": RandomIn(), "qk": ZeroPad(), "v": ZeroPad()}),
        dataclasses.replace(SMALL, head_dim=6, mlp=11),
    )
    chex.assert_trees_all_equal(shown(large, plan)(0.0, params), params)


@pytest.mark.parametrize(
    "operator, source, changes, message",
    [
        (
            Grow(width=RandomPad()),
            {"norm": "layer"},
            {"width": 9},
            "'embed': the mean that LayerNorm subtracts changes.*Isometric, Average or Centred",
        ),
        (
            Grow(depth=Fresh("top")),
            {"pre": False},
            {"layers": 3},
            "'layers' in .* the identity in a pre-norm net only",
        ),
        (Grow(depth=Reversed()), {}, {"layers": 4}, "adds layers that do something"),
        (Grow(width=RandomPad()), {}, {"vocab": 9}, "'vocab' .* softmax's mass"),
    ],
)
def test_what_no_mask_keeps(operator, source, changes, message):
    source = dataclasses.replace(SMALL, **source)
    small = transformer.model(source)
    large = transformer.model(dataclasses.replace(source, **changes))
    old, new = (model.axes.layout(jax.eval_shape(model.init, KEY)) for model in (small, large))
    with pytest.raises(ValueError, match=message):
        masked(large, operator.plan(KEY, old, new))


def test_errors():
    plan, large, _ = grown(Grow(width=Paired()), dataclasses.replace(SMALL, mlp=10))
    with pytest.raises(ValueError, match="steps=0: a ramp takes at least one step"):
        ramp(large, plan, 0)
