"""GradMax keeps the function, and gives new units the largest gradient there is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import transformer
from lagjax import Axes, Elementwise, Model, Residual
from lagjax.axes import flatten
from lagjax.growth import record
from lagjax.growth.gradient import Given, gradmax
from lagjax.growth.width import RandomIn, Width, ZeroPad

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
    np.random.default_rng(seed).integers(7, size=(3, 7)).astype(np.int32)
    for seed in range(2)
]


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def drawn(model, seed=0):
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, KEY)
    return jax.tree.map(
        lambda x: jnp.asarray(draw.normal(0, 0.5, x.shape), x.dtype), shapes
    )


def mlp(hidden, act=jnp.tanh, kind="tanh", extra=None):
    """y = down act(up x + bias), 5 → hidden → 4, and the squared error."""
    rows = {"up": "<x >mlp", "bias": ">mlp", "down": "<mlp >y"}
    kinds = {"mlp": Elementwise(kind), "x": Elementwise("identity")}

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
    """G of the toy, [fan-in, fan-out], by hand: inputs, and 1 for the bias, times the errors' gradient."""
    total = 0
    for x, y in (examples(0), examples(1, 4)):
        hidden = np.tanh(x @ params["up"] + params["bias"])
        error = 2 * (hidden @ params["down"] - y)
        total = total + np.concatenate([x, np.ones((len(x), 1))], 1).T @ error
    return total / 13


def fan_in_gradient(large, grown, old=6):
    """Of the mean loss over both batches, for new units: [new, 6]."""

    def mean(params):
        sums = [large.loss(params, batch, None) for batch in BOTH]
        return sum(a for a, _ in sums) / sum(b for _, b in sums)

    BOTH = (examples(0), examples(1, 4))
    grads = jax.grad(mean)(grown)
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
    np.testing.assert_allclose(
        large.apply(grown, batch), small.apply(params, batch), rtol=1e-12
    )
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
        assert np.linalg.norm(gradient) > 1.01 * np.linalg.norm(
            fan_in_gradient(large, rival)
        )


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


@pytest.mark.parametrize("implementation", ["scanned", "unrolled"])
def test_layers_of_a_transformer(implementation):
    config = dataclasses.replace(SMALL, implementation=implementation)
    small, large = (
        transformer.model(config),
        transformer.model(dataclasses.replace(config, mlp=11)),
    )
    params = drawn(small)
    # The same numbers in both storages.
    if implementation == "unrolled":
        one = flatten(drawn(transformer.model(SMALL)))
        leaves = [
            one[leaf.name][leaf.layer[0][1]] if leaf.layer else one[leaf.name]
            for leaf in small.axes.layout(params).leaves
        ]
        params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    result = gradmax(KEY, params, small.axes, large, BATCHES)
    assert list(result.scores) == ["layers 0", "layers 1"]
    np.testing.assert_allclose(list(result.scores.values()), SCORES, rtol=1e-4)
    grow = jax.jit(lambda p: result.operator(KEY, p, small.axes, large))
    grown = grow(params)
    before, after = small.apply(params, BATCHES[0]), large.apply(grown, BATCHES[0])
    assert jnp.abs(after - before).max() < 1e-12 * jnp.abs(before).max()


def test_heads():
    """A head's fan-out is a matrix; all that writes the head counts as its fan-in."""
    small, large = (
        transformer.model(SMALL),
        transformer.model(dataclasses.replace(SMALL, kv=3)),
    )
    params = drawn(small)
    result = gradmax(KEY, params, small.axes, large, BATCHES[:1], axis="kv")
    grown = jax.jit(lambda p: result.operator(KEY, p, small.axes, large))(params)
    gradient = jax.jit(jax.grad(lambda p: large.loss(p, BATCHES[0], None)[0] / 18))

    def size(params):
        grads = gradient(params)["layers"]["attn"]
        new = [grads[x]["kernel"][:, :, 2] for x in "qkv"]
        new += [grads[x]["bias"][:, 2] for x in "qkv"]
        return float(optax.tree.norm(new))

    out = grown["layers"]["attn"]["out"]["kernel"]
    for seed in range(3):
        other = np.random.default_rng(seed).normal(size=out[:, 2].shape)
        norms = [np.sqrt((x**2).sum((1, 2, 3))) for x in (out[:, 2], other)]
        other *= (norms[0] / norms[1])[:, None, None, None]
        rival = jax.tree.map(lambda x: x, grown)
        rival["layers"]["attn"]["out"]["kernel"] = out.at[:, 2].set(other)
        assert size(grown) > 1.1 * size(rival)
    before, after = small.apply(params, BATCHES[0]), large.apply(grown, BATCHES[0])
    assert jnp.abs(after - before).max() < 1e-12 * jnp.abs(before).max()


def test_equal_by_content():
    small, params, result = found(9, 0.7)
    one = result.operator
    same = Given(Width({"mlp": ZeroPad()}), jax.tree.map(jnp.asarray, one.fresh))
    assert one == same and hash(one) == hash(same) and repr(one) == repr(same)
    for other in (found(9)[2].operator, Given(Width(RandomIn()), one.fresh)):
        assert one != other and repr(one) != repr(other)
    assert record.decode(record.encode(one)) == one
    plan = one.plan(
        KEY,
        small.axes.layout(params),
        mlp(9).axes.layout(jax.eval_shape(mlp(9).init, KEY)),
    )
    assert plan.exact
    with pytest.raises(ValueError, match=r"shape \(9, 4\) for 'down', .* \(8, 4\)"):
        one(KEY, params, small.axes, mlp(8))


@pytest.mark.parametrize(
    "target, axis, message",
    [
        (mlp(9, jax.nn.relu, "relu"), "mlp", "no slope at 0.*RandomIn.. or Paired"),
        (mlp(9, kind="silu", extra={"mlp": Elementwise("silu", True)}), "mlp", "gated"),
        (mlp(9, extra={"mlp": Residual("rms", True)}), "mlp", "entries act alone"),
        (mlp(6), "mlp", "size 6 in the source and 6 in the target"),
        (mlp(9), "x", "size 5 in the source and 5 in the target"),
    ],
)
def test_what_cannot_be(target, axis, message):
    small = mlp(6, jax.nn.relu)._replace(axes=target.axes)
    with pytest.raises(ValueError, match=message):
        gradmax(KEY, drawn(small), small.axes, target, [examples(0)], axis)


def test_no_batches():
    with pytest.raises(ValueError, match="no batches to measure gradients on"):
        gradmax(KEY, drawn(mlp(6)), mlp(6).axes, mlp(9), [])
