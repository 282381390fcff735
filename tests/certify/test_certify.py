"""Certificates prove, measure, and blame the axis."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import transformer
from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Experts, Residual, RMSNorm, Units
from lagjax.certify import blame
from lagjax.certify.certify import certify, untold
from lagjax.growth import width
from lagjax.growth.depth import Stack
from lagjax.growth.operator import Grow
from lagjax.model import Model
from tests.growth import models
from tests.growth.test_width import small_config, values

KEY = jax.random.key(3)
BATCHES = [np.random.default_rng(i).integers(7, size=(4, 5), dtype=np.int32) for i in range(3)]


@dataclass(frozen=True)
class Broken:
    """An operator whose result is changed at one path."""

    base: Grow
    path: tuple[str, ...]
    change: object

    def __call__(self, key, params, source, target, /):
        grown = self.base(key, params, source, target)
        at = jax.tree_util.tree_map(lambda x: x, grown)
        inner = at
        for name in self.path[:-1]:
            inner = inner[name]
        inner[self.path[-1]] = self.change(inner[self.path[-1]])
        return at

    def plan(self, key, source, target, /):
        return self.base.plan(key, source, target)


def certified(operator, met=True, axes=None, factory=False, **sizes):
    """Certifies on a net of width 4 with 6 units; `met` says whether the large model is made as
    required.
    """
    small = {"embed": 4, "mlp": 6, "epsilon": sizes.pop("epsilon", 1e-5)}
    large = small | sizes
    one, other = models.bare(**small), models.bare(**large)
    params = values(jax.eval_shape(one.init, KEY))
    plan = operator.plan(
        KEY, one.axes.layout(params), other.axes.layout(jax.eval_shape(other.init, KEY))
    )
    for need in plan.requires if met else ():
        name = {"epsilon": "epsilon", "logits": "logits"}[need.what]
        large[name] = large.get(name, 1.0) * need.value
    other = models.bare(**large)
    if axes:
        one, other = (x._replace(axes=axes(x.axes)) for x in (one, other))

    def pair(dtype):
        return tuple(models.bare(**x, dtype=dtype) for x in (small, large))

    return certify(
        operator,
        one,
        other,
        params,
        BATCHES,
        key=KEY,
        factory=pair if factory else None,
    )


def blamed(found):
    assert found.kind == "none"
    return {(one.axis, one.leaf) for one in found.violations}, " ".join(
        one.why for one in found.violations
    )


def test_exact_given_what_is_met():
    found = certified(Grow(width=width.Tile()), embed=8, mlp=12, factory=True)
    assert found.kind == "exact given"
    assert [one.what for one in found.requires] == ["logits"]
    assert list(found.max_diff) == ["float64", "float32", "bfloat16"]
    assert found.max_diff["float64"] < 1e-12
    assert 1e-12 < found.max_diff["float32"] < 1e-5
    assert found.max_diff["bfloat16"] < 0.1
    assert found.dead_fraction == 0
    # Even copies never separate, and half of the rank is theirs.
    assert found.twins.keys() == found.ranks.keys() == {"embed", "mlp"}
    assert found.twin_distance < 1e-6
    assert found.ranks["mlp"] <= 0.5
    assert "never separate" in str(found)


def test_splits_and_padding_separate_twins():
    for operator in (
        Grow(width={"mlp": width.Tile(width.ScalarSplit(-0.5))}),
        Grow(width={"mlp": width.Tile(width.NoisySplit(0.1))}),
        # Copies read new entries of the stream, each by fresh parameters of its own.
        Grow(width={"mlp": width.Tile(), "embed": width.ZeroPad()}),
    ):
        grown = {"embed": 6} if "ZeroPad" in str(operator) else {}
        found = certified(operator, mlp=12, **grown)
        assert found.kind.startswith("exact")
        assert found.twins["mlp"] > 1e-4


def test_dead_parameters_are_found():
    dead = certified(Grow(width={"mlp": width.ZeroPad()}), mlp=9)
    assert dead.kind == "exact"
    # A gate of 0 and what it lets through, 0 too: nothing ever moves.
    third = pytest.approx(1 / 3)
    assert dead.dead == {f"l/0/{name}": third for name in ("down", "gate", "up")}
    assert dead.dead_fraction == pytest.approx(36 / (36 * 3 + 28 + 8))
    assert not certified(Grow(width={"mlp": width.RandomIn()}), mlp=9).dead


def test_not_exact():
    found = certified(Grow(depth=Stack()), layers=2)
    assert found.kind == "none"
    assert found.max_diff["float32"] > 1e-2
    found = certified(Grow(width={"mlp": width.Noisy(width.Tile(), 1e-3)}), mlp=12)
    assert found.kind == "approximate"
    assert 1e-5 < found.max_diff["float32"] < 0.1


def test_a_factor_that_was_forgotten():
    operator = Broken(Grow(width={"mlp": width.Tile()}), ("l", "0", "down"), lambda x: 2 * x)
    found = blamed(certified(operator, mlp=12))
    assert found == (
        {("mlp", "l/{layers}/down")},
        "the factor of its copies is missing",
    )
    operator = Broken(
        Grow(width={"embed": width.ZeroPad()}),
        ("norm",),
        lambda x: x * np.sqrt(2, dtype=np.float32),
    )
    found = blamed(certified(operator, embed=8))
    assert found == ({("embed", "norm")}, "the factor of its copies is missing")


def test_an_epsilon_that_was_forgotten():
    found = certified(Grow(width={"embed": width.ZeroPad()}), met=False, embed=8, epsilon=0.1)
    who, why = blamed(found)
    assert who == {("embed", None)}
    assert "must have epsilon × 0.5" in why


def test_heads_of_a_group_that_were_scrambled():
    """Heads tiled as a flat list come under other keys."""
    config = small_config(kv=2, group=2, layers=1, implementation="scanned")
    small, large = (transformer.model(dataclasses.replace(config, kv=kv)) for kv in (2, 4))
    params = values(jax.eval_shape(small.init, KEY))

    def flat(x):
        heads = x.reshape(1, 8, *x.shape[3:])
        return heads[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(x.shape)

    operator = Broken(Grow(width={"kv": width.Tile()}), ("layers", "attn", "out", "kernel"), flat)
    plan = operator.plan(KEY, *(m.axes.layout(jax.eval_shape(m.init, KEY)) for m in (small, large)))
    right, grown = jax.jit(
        lambda params: tuple(
            one(KEY, params, small.axes, large) for one in (operator.base, operator)
        )
    )(params)
    assert plan.exact_by_table
    assert {(x.axis, x.leaf) for x in blame.broken(plan, params, grown)} == {
        ("kv", "layers/attn/out/kernel")
    }
    assert not list(blame.broken(plan, params, right))


def test_a_first_copy_that_is_not_read_is_no_mistake():
    operator = Grow(width={"mlp": width.Tile(width.ScalarSplit(0.0))})
    small, large = models.bare(4, 6), models.bare(4, 12)
    params = values(jax.eval_shape(small.init, KEY))
    plan = operator.plan(KEY, *(m.axes.layout(jax.eval_shape(m.init, KEY)) for m in (small, large)))
    assert not list(blame.broken(plan, params, operator(KEY, params, small.axes, large)))


def test_entries_in_another_order():
    operator = Broken(Grow(width={"mlp": width.Tile()}), ("l", "0", "up"), lambda x: x[..., ::-1])
    found = blamed(certified(operator, mlp=12))
    assert found == ({("mlp", "l/{layers}/up")}, "its entries are in another order")


def test_new_entries_that_are_read():
    operator = Broken(
        Grow(width={"mlp": width.RandomIn()}), ("l", "0", "down"), lambda x: x + (x == 0)
    )
    found = blamed(certified(operator, mlp=9))
    assert found == (
        {("mlp", "l/{layers}/down")},
        "what is read of new entries does not cancel",
    )


def test_a_tie_that_was_forgotten():
    # The multiplier of the logits.
    found = certified(Grow(width={"embed": width.Tile()}), embed=8, met=False)
    who, why = blamed(found)
    assert who == {("embed", "embed")}
    assert "must have logits × 0.5" in why

    # The mark in the table.
    def untied(axes):
        rows = {pattern: row.replace("=vocab", "<vocab") for pattern, row in axes.rows}
        return Axes(rows, dict(axes.kinds))

    found = certified(Grow(width={"embed": width.Tile()}), embed=8, met=False, axes=untied)
    who, why = blamed(found)
    assert who == {("vocab", "embed")}
    assert "agree once its row is '=vocab >embed'" in why


def plain(rows, kinds, shapes, outputs):
    """A model of matrices, whose outputs are a function of them."""

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, shapes[n]) for n, k in zip(sorted(shapes), keys)}

    return Model(init, None, Axes(rows, kinds), lambda params, batch: outputs(params))


def cause(operator, small, large):
    """What the experiments say, from parameters drawn at random."""
    params = small.init(KEY)
    plan = operator.plan(KEY, small.layout(), large.layout())
    assert plan.exact_by_table
    (one,) = untold(operator, plan, small, large, params, np.zeros(()), KEY)
    grown = operator(KEY, params, small.axes, large)
    return (one.axis, one.leaf, one.why), list(blame.broken(plan, params, grown))


X = np.random.default_rng(5).normal(size=(8, 4)).astype(np.float32)


def test_experts_of_whom_as_few_are_taken_as_before():
    rows = {"gate": "<x >experts", "w": "experts <x >y"}
    kinds = {"x": Channels(), "y": Channels(), "experts": Experts(top=2)}

    def outputs(params):
        logits, chosen = jax.lax.top_k(X @ params["gate"], 2)
        each = jnp.einsum("nx,nexy->ney", X, params["w"][chosen])
        return jnp.einsum("ne,ney->ny", jax.nn.softmax(logits), each)

    small, large = (plain(rows, kinds, {"gate": (4, n), "w": (n, 4, 3)}, outputs) for n in (3, 6))
    (axis, leaf, why), _ = cause(Grow(width={"experts": width.Tile()}), small, large)
    assert (axis, leaf) == ("experts", None)
    assert (
        why
        == "the large model must have top × 2 (experts): outputs agree once its entries are alike"
    )


def test_fresh_layers_may_hold_anything():
    rows = {"in": "<x >embed", "norm": "#layers 1+embed", "up": "#layers <embed >mlp"}
    axes = Axes(
        rows | {"down": "#layers <mlp >embed+", "out": "<embed >y"},
        {"embed": Residual(RMSNorm()), "mlp": Units("relu"), "x": Channels(), "y": Channels()},
    )

    def sown(layers, embed, mlp, seed):
        shapes = {"in": (4, embed), "norm": (layers, embed), "up": (layers, embed, mlp)}
        shapes |= {"down": (layers, mlp, embed), "out": (embed, 3)}
        draw = np.random.default_rng(seed)
        return {n: jnp.asarray(draw.normal(size=x), jnp.float32) for n, x in shapes.items()}

    small, fresh = sown(2, 4, 5, 0), sown(3, 8, 10, 1)
    operator = Grow(depth="0 new* 1", width={"embed": width.ZeroPad(), "mlp": width.Tile()})
    plan = operator.plan(KEY, axes.layout(small), axes.layout(fresh))
    grown = plan.params(small, fresh)
    assert plan.exact_by_table
    assert not list(blame.broken(plan, small, grown))
    wrong = grown | {"up": grown["up"] * jnp.array([1.0, 1.0, 2.0])[:, None, None]}
    assert {one.leaf for one in blame.broken(plan, small, wrong)} == {"up"}


def test_what_no_reading_mends_is_not_found():
    rows, kinds = {"up": "<x >mlp", "down": "<mlp >y"}, {"mlp": Units("relu")}

    def outputs(size):
        # Of the large model's own: no table and no axis has to do with it.
        return lambda p: jax.nn.relu(X @ p["up"]) @ p["down"] + (size - 5)

    small, large = (plain(rows, kinds, {"up": (4, n), "down": (n, 3)}, outputs(n)) for n in (5, 10))
    (axis, _, why), _ = cause(Grow(width={"mlp": width.Tile()}), small, large)
    assert axis == "*"
    assert why.startswith("not found")


def test_a_scale_stored_as_a_distance_is_not_blamed_for_an_epsilon():
    rows = {"in": "<x >embed", "norm": "1+embed", "out": "<embed >y"}
    kinds = {"embed": Residual(RMSNorm()), "x": Channels(), "y": Channels()}

    def outputs(p):
        h = X @ p["in"]
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1.0)
        return (h * (1 + p["norm"])[None]) @ p["out"]

    small, large = (
        plain(rows, kinds, {"in": (4, n), "norm": (n,), "out": (n, 3)}, outputs) for n in (4, 8)
    )
    (axis, leaf, why), mistakes = cause(Grow(width={"embed": width.ZeroPad()}), small, large)
    assert not mistakes
    assert (axis, leaf) == ("embed", None)
    assert "must have epsilon × 0.5" in why


def test_what_a_certificate_needs():
    model = models.bare(4, 6)
    params = values(jax.eval_shape(model.init, KEY))
    operator = Grow(depth=Stack())
    with pytest.raises(ValueError, match="the large model has no apply; give Model"):
        certify(operator, model, model._replace(apply=None), params, BATCHES)
    with pytest.raises(ValueError, match="no batches are given"):
        certify(operator, model, model, params, [])
