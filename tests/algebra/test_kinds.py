"""Kinds own their rules; `tests/test_strangers.py` has a norm that is new."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagjax.algebra import kinds
from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, LayerNorm, Lookup, Residual, RMSNorm, Units
from lagjax.growth import width
from lagjax.growth.operator import Grow
from lagjax.growth.width import ByKind
from tests.growth import checks
from tests.test_strangers import MaxNorm

KEY = jax.random.key(0)
ROWS = {"in": "<x >embed", "norm": "embed", "out": "<embed >y"}


def plan(kind, way, old=2, new=4):
    axes = Axes(ROWS, {"embed": kind, "x": Channels(), "y": Channels()})
    layouts = (
        axes.layout(checks.shapes({"in": (3, n), "norm": (n,), "out": (n, 3)})) for n in (old, new)
    )
    return Grow(width={"embed": way}).plan(KEY, *layouts)


def grown(plan):
    draw = np.random.default_rng(0)
    trees = (
        {leaf.path: jnp.asarray(draw.normal(size=leaf.shape)) for leaf in layout.leaves}
        for layout in (plan.source, plan.target)
    )
    params = next(trees)
    return params, plan.params(params, next(trees))


@pytest.mark.parametrize(
    "one, other",
    [
        (Residual(RMSNorm()), Residual(RMSNorm(), pre=True)),
        (Dot(), Dot(rope=None, scaled=True)),
        (Units("gelu"), Units("gelu", gated=False)),
    ],
    ids=str,
)
def test_kinds_are_equal_by_value(one, other):
    assert one == other
    assert hash(one) == hash(other)
    assert one not in (Residual(LayerNorm()), Residual(None), Dot("half"), Units("relu"))
    assert eval(repr(one), vars(kinds)) == one


@pytest.mark.parametrize("norm", ["rms", RMSNorm])
def test_a_norm_is_an_object(norm):
    with pytest.raises(ValueError, match=r"takes a norm, RMSNorm\(\) or LayerNorm\(\), or None"):
        Residual(norm)


@pytest.mark.parametrize("norm", [None, MaxNorm()], ids=str)
def test_a_tied_table_notices_unequal_copies_by_itself(norm):
    """Logits are no multiple of what they were, whatever the norm lets pass."""
    kinds = {"embed": Residual(norm), "vocab": Lookup()}
    axes = Axes({"table": "=vocab >embed"}, kinds)
    small, *large = (axes.layout(checks.shapes({"table": (5, n)})) for n in (2, 4, 5))
    even, odd = (
        Grow(width={"embed": way}).plan(KEY, small, layout)
        for way, layout in zip((width.Tile(), width.Net2Net()), large, strict=True)
    )
    assert even.exact_by_table
    (why,) = odd.violations
    assert (why.axis, why.leaf) == ("embed", "table")
    assert "as often as they are copied" in why.why


def test_pools_ask_a_norm_whether_it_subtracts_the_mean():
    ways = ByKind(width.ZeroPad(), width.Tile(), width.Tile(), layer=width.Centred())
    found = [ways.expansion(Residual(norm)) for norm in (RMSNorm(), MaxNorm(), None, LayerNorm())]
    assert found == [width.ZeroPad()] * 3 + [width.Centred()]


def test_without_a_norm_what_acts_elementwise_stays():
    """A norm's scale makes up for longer streams; where there is no norm there is nothing to."""
    small, large = grown(plan(Residual(None), width.Isometric()))
    np.testing.assert_allclose(large["norm"], np.tile(small["norm"], 2))
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    outputs = [(x @ p["in"] * p["norm"][None]) @ p["out"] for p in (small, large)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    small, large = grown(plan(Residual(RMSNorm()), width.ZeroPad()))
    np.testing.assert_allclose(large["norm"][:2], small["norm"] * np.sqrt(1 / 2), rtol=1e-6)
