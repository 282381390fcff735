"""GradMax keeps the function, and gives new units the largest gradient there is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import transformer
from lagjax import Axes, Model
from lagjax.algebra.kinds import Channels, Residual, RMSNorm, Units
from lagjax.algebra.layout import flatten
from lagjax.growth.gradmax import Given, gradmax
from lagjax.growth.operator import Grow
from lagjax.growth.width import RandomIn, ZeroPad
from lagjax.store import record

KEY = jax.random.key(1)
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
    positions="learned",
    tied=True,
    gated=False,
    dtype="float64",
)
BATCHES = [
    np.random.default_rng(seed).integers(7, size=(3, 7)).astype(np.int32) for seed in range(2)
]


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


def mlp(hidden, act=jnp.tanh, kind="tanh", extra=None):
    """y = down act(up x + bias), 5 → hidden → 4, and the squared error."""
    rows = {"up": "<x >mlp", "bias": ">mlp", "down": "<mlp >y"}
    kinds = {"mlp": Units(kind), "x": Channels()}

    def init(key):
        shapes = {"up": (5, hidden), "bias": (hidden,), "down": (hidden, 4)}
        return {name: jax.random.normal(key, x) for name, x in shapes.items()}

    def apply(p, batch):
        return act(batch[0] @ p["up"] + p["bias"][None]) @ p["down"]

    def loss(p, batch, key):
        return jnp.square(apply(p, batch) - batch[1]).sum(), len(batch[0])

    return Model(init, loss, Axes(rows, kinds | (extra or {})), apply)


def examples(seed, size=9):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(size, 5)), draw.normal(size=(size, 4))


@functools.cache
def found(hidden, scale=1.0):
    small = mlp(6)
    params = drawn(small)
    # Batches of unequal size.
    batches = [examples(0), examples(1, 4)]
    return (
        small,
        params,
        gradmax(KEY, params, small.axes, mlp(hidden), iter(batches), scale=scale),
    )


def dense(params):
    """G of the toy, [fan-in, fan-out], by hand: inputs, and 1 for the bias, times the errors'
    gradient.
    """
    params, total = jax.device_get(params), 0
    for x, y in (examples(0), examples(1, 4)):
        hidden = np.tanh(x @ params["up"] + params["bias"])
        error = 2 * (hidden @ params["down"] - y)
        total = total + np.concatenate([x, np.ones((len(x), 1))], 1).T @ error
    return total / 13


def fan_in_gradient(large, grown, old=6):
    """Of the mean loss over both batches, for new units: [new, 6]."""

    def mean(params):
        both = (examples(0), examples(1, 4))
        sums = [large.loss(params, batch, None) for batch in both]
        return sum(a for a, _ in sums) / sum(b for _, b in sums)

    grads = jax.jit(jax.grad(mean))(grown)
    return np.concatenate([grads["up"], grads["bias"][None]])[:, old:].T


def test_the_largest_gradient_there_is():
    small, params, result = found(9, 0.7)
    large = mlp(9)
    grown = result.operator(KEY, params, small.axes, large)
    for name in params:
        old = tuple(slice(n) for n in params[name].shape)
        np.testing.assert_array_equal(grown[name][old], params[name])
    # The fan-in is 0, and the function kept.
    assert not grown["up"][:, 6:].any() and not grown["bias"][6:].any()
    batch = examples(3)
    np.testing.assert_allclose(large.apply(grown, batch), small.apply(params, batch), rtol=1e-12)
    norm = 0.7 * np.linalg.norm(params["down"], axis=1).mean()
    new = np.asarray(grown["down"])[6:]
    np.testing.assert_allclose(new @ new.T, norm**2 * np.eye(3), atol=1e-12)
    # Measured otherwise, and by a rule of its own.
    values = np.linalg.svd(dense(params), compute_uv=False)
    gradient = fan_in_gradient(large, grown)
    np.testing.assert_allclose(
        np.linalg.norm(gradient), norm * np.sqrt((values[:3] ** 2).sum()), rtol=1e-10
    )
    np.testing.assert_allclose(result.score, (values[:3] ** 2).sum(), rtol=1e-10)
    for seed in range(5):
        draw = np.random.default_rng(seed).normal(size=(4, 4))
        other = norm * np.linalg.qr(draw)[0][:3]
        rival = {**grown, "down": grown["down"].at[6:].set(other)}
        assert np.linalg.norm(gradient) > 1.01 * np.linalg.norm(fan_in_gradient(large, rival))


def test_more_units_than_directions():
    """Four outputs, nine new units: no two alike, all of one norm, and all with a gradient."""
    small, params, result = found(15)
    grown = result.operator(KEY, params, small.axes, mlp(15))
    new = np.asarray(grown["down"])[6:]
    norm = np.linalg.norm(params["down"], axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), norm, rtol=1e-10)
    similar = np.abs(new @ new.T) / norm**2 - np.eye(9)
    assert similar.max() < 0.999
    gradient = fan_in_gradient(mlp(15), grown)
    assert np.linalg.norm(gradient, axis=1).min() > 1e-3
    total = (np.linalg.svd(dense(params), compute_uv=False) ** 2).sum()
    np.testing.assert_allclose(result.score, total, rtol=1e-10)
    # Nine basis vectors at once, instead of three at a time.
    assert found(9, 0.7)[2].flops > result.flops > 0


@functools.cache
def transformers(implementation, **changes):
    """The small model with the same numbers in all storages, and the large one."""
    config = dataclasses.replace(SMALL, implementation=implementation)
    small = transformer.model(config)
    numbers = flatten(drawn(transformer.model(SMALL)))
    shapes = jax.eval_shape(small.init, KEY)
    leaves = [
        numbers[leaf.name][leaf.layer[0][1]] if leaf.layer else numbers[leaf.name]
        for leaf in small.axes.layout(shapes).leaves
    ]
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    large = transformer.model(dataclasses.replace(config, **changes))
    return small, params, large


@functools.cache
def in_layers(implementation):
    small, params, large = transformers(implementation, mlp=11)
    return gradmax(KEY, params, small.axes, large, BATCHES)


@functools.cache
def gradient(model):
    """params → the mean loss over both batches, and its gradient; compiled once for all tests of a
    model.
    """
    both = np.concatenate(BATCHES)
    return jax.jit(jax.value_and_grad(lambda p: model.loss(p, both, None)[0] / 36))


@functools.cache
def small_loss():
    small, params, _ = transformers("scanned")
    total, count = jax.jit(small.loss)(params, np.concatenate(BATCHES), KEY)
    return total / count


def grow(small, params, large, operator):
    return jax.jit(lambda p: operator(KEY, p, small.axes, large))(params)


@pytest.mark.slow
def test_each_layer_has_its_own():
    small, params, large = transformers("scanned", mlp=11)
    result = in_layers("scanned")
    loss, grads = gradient(large)(grow(small, params, large, result.operator))
    np.testing.assert_allclose(loss, small_loss(), rtol=1e-12)
    grads = grads["layers"]["mlp"]["up"]
    new = np.concatenate([grads["kernel"], grads["bias"][:, None]], 1)[:, :, 8:]
    norms = np.linalg.norm(params["layers"]["mlp"]["down"]["kernel"], axis=2).mean(1)
    np.testing.assert_allclose(
        np.linalg.norm(new, axis=(1, 2)),
        norms * np.sqrt(list(result.scores.values())),
        rtol=1e-9,
    )


def test_layers_unrolled():
    found, expected = in_layers("unrolled"), in_layers("scanned")
    assert list(expected.scores) == list(found.scores) == ["layers 0", "layers 1"]
    np.testing.assert_allclose(
        list(found.scores.values()), list(expected.scores.values()), rtol=1e-9
    )
    ((_, stacked),), given = expected.operator.fresh, dict(found.operator.fresh)
    for layer in range(2):
        # Up to the sign of each singular vector.
        one, other = stacked[layer, 8:], given[f"layers_{layer}/mlp/down/kernel"][8:]
        sign = np.sign((one * other).sum(1, keepdims=True))
        np.testing.assert_allclose(one, sign * other, rtol=1e-6)


@pytest.mark.slow
def test_heads():
    """A head's fan-out is a matrix; all that writes the head counts as its fan-in."""
    small, params, large = transformers("scanned", kv=3)
    result = gradmax(KEY, params, small.axes, large, BATCHES, axis="kv")
    grown = grow(small, params, large, result.operator)
    loss, _ = gradient(large)(grown)
    np.testing.assert_allclose(loss, small_loss(), rtol=1e-12)

    def size(params):
        grads = gradient(large)(params)[1]["layers"]["attn"]
        new = [grads[x]["kernel"][:, :, 2] for x in "qkv"]
        new += [grads[x]["bias"][:, 2] for x in "qkv"]
        return np.sqrt(sum(np.square(x).sum() for x in new))

    out = grown["layers"]["attn"]["out"]["kernel"]
    for seed in range(3):
        other = np.random.default_rng(seed).normal(size=out[:, 2].shape)
        norms = [np.sqrt((x**2).sum((1, 2, 3))) for x in (out[:, 2], other)]
        other *= (norms[0] / norms[1])[:, None, None, None]
        rival = jax.tree.map(lambda x: x, grown)
        rival["layers"]["attn"]["out"]["kernel"] = out.at[:, 2].set(other)
        assert size(grown) > 1.1 * size(rival)


def test_equal_by_content():
    small, params, result = found(9, 0.7)
    one = result.operator
    same = Given(
        Grow(width={"mlp": ZeroPad()}),
        tuple((path, jnp.asarray(x)) for path, x in one.fresh),
    )
    assert one == same and hash(one) == hash(same) and repr(one) == repr(same)
    for other in (found(9)[2].operator, Given(Grow(width=RandomIn()), one.fresh)):
        assert one != other and repr(one) != repr(other)
    assert record.decode(record.encode(one)) == one
    plan = one.plan(
        KEY,
        small.axes.layout(params),
        mlp(9).axes.layout(jax.eval_shape(mlp(9).init, KEY)),
    )
    assert plan.exact_by_table
    with pytest.raises(ValueError, match=r"shape \(9, 4\) for 'down', .* \(8, 4\)"):
        one(KEY, params, small.axes, mlp(8))


@pytest.mark.parametrize(
    "target, axis, message",
    [
        (mlp(9, jax.nn.relu, "relu"), "mlp", "no slope at 0.*RandomIn.. or Paired"),
        (mlp(9, kind="silu", extra={"mlp": Units("silu", True)}), "mlp", "gated"),
        (mlp(9, extra={"mlp": Residual(RMSNorm(), True)}), "mlp", "entries act alone"),
        (mlp(6), "mlp", "size 6 in the source and 6 in the target"),
        (mlp(9), "x", "size 5 in the source and 5 in the target"),
    ],
)
def test_what_cannot_be(target, axis, message):
    small = mlp(6, jax.nn.relu)._replace(axes=target.axes)
    with pytest.raises(ValueError, match=message):
        gradmax(KEY, drawn(small), small.axes, target, [examples(0)], axis)


def test_queries_that_share_their_values():
    """Without a fan-in they attend to all alike, and what they read is not 0."""
    small, params, large = transformers("scanned", group=2)
    with pytest.raises(ValueError, match="'group' in layers/attn/v/.* share with other"):
        gradmax(KEY, params, small.axes, large, BATCHES, "group")


def test_no_batches():
    with pytest.raises(ValueError, match="no batches to measure gradients on"):
        gradmax(KEY, drawn(mlp(6)), mlp(6).axes, mlp(9), [])
