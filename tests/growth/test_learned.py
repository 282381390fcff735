"""LiGO starts as copies, learns, and does not care how layers are stored."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import transformer
from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import flatten
from lagjax.flops import flops
from lagjax.growth.depth import Stack
from lagjax.growth.learned import Ligo, fit, fit_ligo, ligo_start
from lagjax.growth.operator import Grow
from lagjax.store import record
from tests import toy
from tests.growth import checks

KEY = jax.random.key(3)
SMALL = transformer.Config(
    layers=2,
    width=6,
    kv=2,
    group=1,
    head_dim=4,
    mlp=8,
    window=6,
    vocab=7,
    norm="layer",
    pre=True,
    positions="learned",
    tied=True,
    gated=False,
)
LARGE = dataclasses.replace(SMALL, layers=5, width=9, kv=3, head_dim=6, mlp=10)
BATCHES = [np.asarray(toy.batch(0, step)) for step in range(12)]


@functools.cache
def drawn(config):
    """A model and parameters that are the same numbers however layers are stored."""
    model = transformer.model(config)
    stacked = transformer.model(dataclasses.replace(config, implementation="scanned"))
    draw = np.random.default_rng(0)
    values = {
        path: draw.normal(0, 0.5, x.shape).astype(x.dtype)
        for path, x in flatten(jax.eval_shape(stacked.init, KEY)).items()
    }
    shapes = jax.eval_shape(model.init, KEY)
    leaves = []
    for leaf in model.axes.layout(shapes).leaves:
        value = values[leaf.name]
        leaves.append(jnp.asarray(value[leaf.layer[0][1]] if leaf.layer else value))
    return model, jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def layouts(small, params, large):
    shapes = jax.eval_shape(large.init, KEY)
    return small.axes.layout(params), large.axes.layout(shapes)


def grow(operator, small, params, large):
    return jax.jit(lambda p: operator(KEY, p, small.axes, large))(params)


def by_layer(model, params):
    """Name and layer → value, whether stacked or not."""
    found = {}
    flat = flatten(params)
    for leaf in model.axes.layout(params).leaves:
        if leaf.layer:
            found[leaf.name, leaf.layer[0][1]] = flat[leaf.path]
        elif leaf.stacks:
            found |= {(leaf.name, i): x for i, x in enumerate(flat[leaf.path])}
        else:
            found[leaf.name, None] = flat[leaf.path]
    return found


@pytest.mark.parametrize("implementation", ["scanned", "unrolled", "nnx"])
def test_it_starts_as_stacking(implementation):
    config = dataclasses.replace(SMALL, implementation=implementation)
    small, params = drawn(config)
    large = transformer.model(dataclasses.replace(config, layers=5))
    start = ligo_start(KEY, *layouts(small, params, large), noise=0.0)
    grown = grow(Ligo(**start), small, params, large)
    chex.assert_trees_all_equal(grown, grow(Grow(depth=Stack()), small, params, large))
    noisy = Ligo(**ligo_start(KEY, *layouts(small, params, large)))
    for matrix in dict(noisy.mixing).values():
        np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
        assert 0 < np.abs(matrix - np.eye(2)[np.arange(5) % 2]).max() < 0.03


def test_formula_and_storage():
    """Σ_j w_lj B_out W_j B_inᵀ, written out, from all storages into all."""
    small, params = drawn(SMALL)
    start = ligo_start(KEY, *layouts(small, params, transformer.model(LARGE)))
    # Anything but copies.
    draw = np.random.default_rng(1)
    start = jax.tree.map(lambda x: x + draw.normal(0, 0.3, x.shape), start)
    axes, mixing = start["axes"], start["mixing"]
    assert axes.keys() == {"embed", "kv", "qk", "v", "mlp"}
    w = by_layer(small, params)

    def mixed(name, equation, *over):
        total = sum(mixing["layers", name][4, j] * np.asarray(w[name, j]) for j in range(2))
        return np.einsum(equation, total, *(axes[axis] for axis in over))

    expected = {
        ("layers/mlp/up/kernel", 4): ("em,Ee,Mm->EM", "embed", "mlp"),
        ("layers/mlp/up/bias", 4): ("m,Mm->M", "mlp"),
        ("layers/attn_norm/scale", 4): ("e,Ee->E", "embed"),
        ("layers/attn_norm/bias", 4): ("e,Ee->E", "embed"),
        ("layers/attn/out/kernel", 4): (
            "hgve,Hh,Vv,Ee->HgVE",
            "kv",
            "v",
            "embed",
        ),
    }
    trees = []
    for old, new in [
        ("scanned", "unrolled"),
        ("unrolled", "scanned"),
        ("nnx", "nnx"),
    ]:
        one, values = drawn(dataclasses.replace(SMALL, implementation=old))
        large = transformer.model(dataclasses.replace(LARGE, implementation=new))
        tree = grow(Ligo(**start), one, values, large)
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, jax.eval_shape(large.init, KEY))
        trees.append(by_layer(large, tree))
    for tree in trees:
        assert tree.keys() == trees[0].keys()
        for name in tree:
            np.testing.assert_allclose(tree[name], trees[0][name], rtol=2e-5, atol=1e-5)
    for place, (equation, *over) in expected.items():
        value = mixed(place[0], equation, *over)
        np.testing.assert_allclose(trees[0][place], value, rtol=2e-4, atol=1e-5)
    table = np.einsum("ve,Ee->vE", w["embed/embedding", None], axes["embed"])
    np.testing.assert_allclose(trees[0]["embed/embedding", None], table, rtol=2e-4)


def test_flattened_and_concatenated_axes():
    """A fused, transposed projection grows as its parts would."""
    apart = Axes({r"(q|k)": ">heads >qk <embed", "v": ">heads >v <embed"})
    row = {"qkv": ">(heads qk | heads qk | heads v) <embed"}
    fused = Axes(row, sizes={"heads": 2, "qk": 3, "v": 4})
    wider = Axes(row, sizes={"heads": 3, "qk": 4, "v": 4})
    parts = checks.numbered(checks.shapes({"k": (2, 3, 5), "q": (2, 3, 5), "v": (2, 4, 5)}))

    def flat(tree):
        rows = [tree[name].reshape(-1, tree[name].shape[-1]) for name in "qkv"]
        return {"qkv": jnp.concatenate(rows)}

    large = checks.shapes({"k": (3, 4, 6), "q": (3, 4, 6), "v": (3, 4, 6)})
    start = ligo_start(KEY, apart.layout(parts), apart.layout(large))
    assert start["mixing"] == {}
    operator = Ligo(**start)
    separate = operator(KEY, parts, apart, checks.target(apart, large))
    shape = checks.shapes({"qkv": (36, 6)})
    together = operator(KEY, flat(parts), fused, checks.target(wider, shape))
    chex.assert_trees_all_equal(together, flat(separate))


def test_fitting_lowers_the_loss_and_moves_every_matrix():
    large = toy.model(4, width=12)
    fitted = fit_ligo(KEY, toy.PARAMS, toy.AXES, large, BATCHES, optax.adamw(3e-2), noise=0.0)
    assert fitted.losses.shape == (12,)
    assert fitted.losses[-3:].mean() < fitted.losses[:3].mean() - 0.2
    shapes = jax.eval_shape(large.init, KEY)
    start = Ligo(**ligo_start(KEY, toy.AXES.layout(toy.PARAMS), toy.AXES.layout(shapes), noise=0.0))
    for before, after in zip(
        (start.axes, start.mixing), (fitted.operator.axes, fitted.operator.mixing)
    ):
        assert dict(before).keys() == dict(after).keys()
        for name, matrix in before:
            assert np.abs(dict(after)[name] - matrix).min() > 0
    # The first loss is that of the operator it starts from.
    grown = start(KEY, toy.PARAMS, toy.AXES, large)
    total, count = large.loss(grown, BATCHES[0], None)
    np.testing.assert_allclose(fitted.losses[0], total / count, rtol=1e-5)


def test_any_parametrised_operator():
    """One number for all added layers, from 0: the fit turns them on."""

    @dataclasses.dataclass(frozen=True)
    class Weighted:
        weight: jax.Array

        def __call__(self, key, params, source, target):
            tree = Grow(depth=Stack())(key, params, source, target)
            new = jnp.arange(4).reshape(4, 1, 1) >= 2
            down = tree["layers"]["down"]
            tree["layers"]["down"] = jnp.where(new, self.weight * down, down)
            return tree

    def fitted(batches):
        return fit(
            *(Weighted, np.zeros(()), KEY, toy.PARAMS, toy.AXES, toy.LARGE),
            batches,
            optax.sgd(1.0),
        )

    three, one = fitted(iter(BATCHES[:3])), fitted(BATCHES[:1])
    assert three.operator.weight != 0
    total, count = toy.SMALL.loss(toy.PARAMS, BATCHES[0], None)
    np.testing.assert_allclose(three.losses[0], total / count, rtol=1e-5)
    # Of a gradient of the large model, without that of the old weights.
    shapes = jax.eval_shape(toy.LARGE.init, KEY)
    forward, whole = (
        flops(f, shapes)
        for loss in [lambda p: toy.LARGE.loss(p, BATCHES[0], None)[0]]
        for f in (loss, jax.grad(loss))
    )
    assert forward < one.flops < whole
    assert three.flops == 3 * one.flops


def test_equal_by_content():
    small, params = drawn(SMALL)
    start = ligo_start(KEY, *layouts(small, params, transformer.model(LARGE)))
    one, same = Ligo(**start), Ligo(**jax.device_get(start))
    start["axes"]["embed"] = start["axes"]["embed"].at[0, 0].add(1e-6)
    other = Ligo(**start)
    assert one == same and hash(one) == hash(same) and repr(one) == repr(same)
    assert one != other and repr(one) != repr(other)
    assert record.decode(record.encode(same)) == same


def test_errors():
    small, params = drawn(SMALL)
    start = ligo_start(KEY, *layouts(small, params, transformer.model(LARGE)))
    wider = transformer.model(dataclasses.replace(LARGE, mlp=12))
    with pytest.raises(ValueError, match=r"axis 'mlp' has shape \(10, 8\); .* takes \(12, 8\)"):
        Ligo(**start)(KEY, params, small.axes, wider)
    deeper = transformer.model(dataclasses.replace(LARGE, layers=6))
    with pytest.raises(ValueError, match=r"mixing of .* \(5, 2\); .* takes \(6, 2\)"):
        Ligo(**start)(KEY, params, small.axes, deeper)
    with pytest.raises(ValueError, match="axis 'mlp' has size 8 .* 7 .*adds entries"):
        smaller = transformer.model(dataclasses.replace(SMALL, mlp=7))
        ligo_start(KEY, *layouts(small, params, smaller))
    with pytest.raises(ValueError, match="no batches to fit to"):
        fit_ligo(KEY, toy.PARAMS, toy.AXES, toy.LARGE, [])
