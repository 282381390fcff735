"""Models fused with themselves keep their function; different ones without norms are averaged; bad sources are refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import transformer
from lagjax.axes import Axes, Elementwise, Lookup, Residual, flatten
from lagjax.growth.depth import Depth, Scaled, Stack
from lagjax.growth.fusion import Fuse, fuse_states
from lagjax.growth.state import scale_by_growth
from lagjax.model import Model
from tests.growth.test_moe import BATCH, DENSE, KEY, drawn, planned


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def table(units):
    return Axes(
        {
            "embed": "<vocab >embed",
            "in": "#layers <embed >(left | right)",
            "bias": "#layers >(left | right)",
            "out": "#layers <left >embed+",
            "head": "<embed >vocab",
            "shift": ">vocab",
        },
        {
            "embed": Residual(None, True),
            "left": Elementwise("relu", gated=True),
            "right": Elementwise("identity", gated=True),
            "vocab": Lookup(),
        },
        {"left": units, "right": units},
    )


@functools.cache
def plain(embed, units, layers=2, vocab=5):
    """A net without norms, whose gates and values are one array."""
    shapes = {
        "embed": (vocab, embed),
        "in": (layers, embed, 2 * units),
        "bias": (layers, 2 * units),
        "out": (layers, units, embed),
        "head": (embed, vocab),
        "shift": (vocab,),
    }

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(key, shape)
            for key, (name, shape) in zip(keys, shapes.items())
        }

    def apply(params, batch):
        x = params["embed"][batch]
        for w, bias, out in zip(params["in"], params["bias"], params["out"]):
            left, right = jnp.split(x @ w + bias[None, None], 2, -1)
            x = x + (jax.nn.relu(left) * right) @ out
        return x @ params["head"] + params["shift"][None, None]

    return Model(init, None, table(units), apply)


WIDE = dataclasses.replace(DENSE, width=8, kv=2, mlp=10)


def test_self_fusion_keeps_the_function():
    """Tied heads too, whose logits are averaged by what the plan requires."""
    plan = planned(Fuse(), DENSE, WIDE)
    assert plan.exact
    assert [(one.what, one.value) for one in plan.requires] == [("logits", 0.5)]
    small = transformer.model(DENSE)
    large = transformer.model(transformer.required(WIDE, plan.requires, DENSE))
    params = drawn(DENSE)

    @jax.jit
    def both(params):
        fused = Fuse()(KEY, (params, params), small.axes, large)
        return small.apply(params, BATCH), large.apply(fused, BATCH)

    one, other = both(params)
    np.testing.assert_allclose(other, one, atol=1e-10)


def test_different_models_without_norms_give_their_average():
    small, large = plain(3, 4), plain(6, 8)
    first, second = (small.init(jax.random.key(seed)) for seed in (0, 1))
    fused = Fuse()(KEY, (first, second), small.axes, large)
    tokens = jnp.arange(5)[None]
    average = (small.apply(first, tokens) + small.apply(second, tokens)) / 2
    np.testing.assert_allclose(large.apply(fused, tokens), average, atol=1e-10)
    # Each in its own block, and nothing between them, in both of the concatenated parts.
    left, right = jnp.split(fused["in"], 2, -1)
    for part, (one, other) in zip(
        (left, right),
        zip(jnp.split(first["in"], 2, -1), jnp.split(second["in"], 2, -1)),
    ):
        np.testing.assert_array_equal(part[:, :3, :4], one)
        np.testing.assert_array_equal(part[:, 3:, 4:], other)
        np.testing.assert_array_equal(part[:, :3, 4:], 0)
    np.testing.assert_array_equal(
        fused["shift"], (first["shift"] + second["shift"]) / 2
    )


def test_layers_are_added_in_the_same_step():
    small, large = plain(3, 4), plain(6, 8, layers=4)
    params = small.init(KEY)
    operator = Fuse(depth=Depth(Scaled(Stack())))
    fused = operator(KEY, (params, params), small.axes, large)
    np.testing.assert_array_equal(fused["out"][2:], 0)
    np.testing.assert_array_equal(fused["in"][2:], fused["in"][:2])


def test_optimizer_states_are_fused_like_parameters():
    small, large = plain(3, 4), plain(6, 8)
    params = [small.init(jax.random.key(seed)) for seed in (0, 1)]
    tx = optax.chain(optax.scale_by_adam(), scale_by_growth())
    states = [optax.tree.set(tx.init(one), mu=one) for one in params]
    fused = Fuse()(KEY, params, small.axes, large)
    layouts = (m.axes.layout(jax.eval_shape(m.init, KEY)) for m in (small, large))
    plan = Fuse().plan(KEY, *layouts)
    state = fuse_states(plan, states, params, fused, tx, "continue")
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), state, tx.init(fused)
    )
    mu = flatten(optax.tree.get(state, "mu"))
    # The head is read for a half, and its inputs are whole: its gradient is that of the small model.
    np.testing.assert_allclose(
        mu["head"], jnp.concatenate([x["head"] for x in params]), rtol=1e-6
    )
    halves = jnp.concatenate([x["embed"] for x in params], 1) / 2
    np.testing.assert_allclose(mu["embed"], halves, rtol=1e-6)


@pytest.mark.parametrize(
    "params, large, message",
    [
        (lambda p: (p,), (6, 8), "fusing takes the parameters of two models or more"),
        (lambda p: (p, p, p), (6, 8), "3 models are given, but the target's axes .* are 2 times as large"),
        (lambda p: (p, p), (6, 12), "axis 'embed' has size 3 in the sources and 6 .* fusing 3 models, as 'left' has it, takes 9"),
        (lambda p: (p, p), (3, 4), "no axis of the target is larger than the sources'"),
        (lambda p: (p, p | {"shift": jnp.zeros(6)}), (6, 8), r"shift \(6,\)"),
    ],
)  # fmt: skip
def test_bad_sources(params, large, message):
    small = plain(3, 4)
    with pytest.raises(ValueError, match=message):
        Fuse()(KEY, params(small.init(KEY)), small.axes, plain(*large))


def test_what_the_data_index_cannot_be_fused():
    small = plain(3, 4)
    params = small.init(KEY)
    with pytest.raises(
        ValueError, match="'vocab' grows from 5 to 10 .* but the data index it"
    ):
        Fuse()(KEY, (params, params), small.axes, plain(6, 8, vocab=10))
