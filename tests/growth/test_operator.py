"""The one composition prints as it is written, says what a target asks for and it does not do, and
the baselines grow nothing.
"""

import chex
import jax
import numpy as np
import pytest

from lagjax.growth import pools
from lagjax.growth.depth import Scaled, Stack
from lagjax.growth.experts import Upcycle
from lagjax.growth.operator import FromScratch, Grow, Same
from lagjax.growth.width import ByKind, Isometric, Net2Net, NoisySplit, RandomIn, Tile, ZeroPad
from tests import toy

KEY = jax.random.key(1)
WIDE = toy.model(2, 2 * toy.WIDTH)
BOTH = toy.model(4, 2 * toy.WIDTH)


@pytest.mark.parametrize(
    "operator, written",
    [
        (Grow(), "Grow()"),
        (Grow(depth=Stack()), "Grow(depth=Stack())"),
        (Grow(depth="0 0* 1 1*"), "Grow(depth='0 0* 1 1*')"),
        (
            Grow(depth={"encoder": Stack(), "decoder": "0 0* 1"}, width=RandomIn()),
            "Grow(depth={'encoder': Stack(), 'decoder': '0 0* 1'}, width=RandomIn())",
        ),
        (Grow(width={"mlp": RandomIn()}), "Grow(width={'mlp': RandomIn()})"),
        (Grow(experts=Upcycle()), "Grow(experts=Upcycle(axis='experts', noise=0.0))"),
        (Grow(depth=Stack(), fuse=True), "Grow(depth=Stack(), fuse=True)"),
    ],
    ids=str,
)
def test_operators_print_as_written(operator, written):
    assert repr(operator) == written


def test_operators_compare_by_value():
    noisy = ByKind(Isometric(NoisySplit()), Net2Net(), ZeroPad())
    for make in (
        lambda: Grow(depth={"enc": Scaled(Stack()), "dec": "0 0"}),
        lambda: Grow(depth=Stack(), width={"mlp": RandomIn(), "embed": ZeroPad()}),
        lambda: Grow(width=noisy, experts=Upcycle("mixture")),
    ):
        assert make() == make()
        assert hash(make()) == hash(make())
    assert Grow(depth=Stack()) != Grow(depth=Scaled(Stack()))
    assert Grow(width=Tile()) != Grow(depth=Stack(), width=Tile())


def test_names_in_a_mapping_are_the_tables():
    """A mapping of one stack, or of all axes that grow, is the strategy itself."""
    for one, other, target in (
        (Grow(depth=Stack()), Grow(depth={"layers": Stack()}), toy.LARGE),
        (Grow(width=Tile()), Grow(width={"embed": Tile(), "mlp": Tile()}), WIDE),
    ):
        chex.assert_trees_all_equal(
            *(each(KEY, toy.PARAMS, toy.AXES, target) for each in (one, other))
        )


@pytest.mark.parametrize(
    "operator, target, message",
    [
        (Grow(), toy.LARGE, "has 4 layers, the source's 2; this operator adds none: .*depth=Stack"),
        (Grow(width=Tile()), BOTH, r"this operator adds none: .*or say how, as in Grow\(depth="),
        (Grow(), WIDE, r"'embed' has size 8 .* does not grow it: say how, as in Grow\(width=\{"),
        (Grow(depth=Stack()), BOTH, r"does not grow it: say how, as in Grow\(width="),
        (Grow(depth={"layer": Stack()}), toy.LARGE, r"\['layer'\], the stacks are \['layers'\]"),
        (Grow(experts=Upcycle()), toy.SMALL, "the target has no axis 'experts'"),
        (Same(), toy.LARGE, r"Same\(\) grows nothing, .* be the small model itself: .*4 layers"),
        (Same(), WIDE, r"Same\(\) grows nothing, .*'embed' has size 8"),
    ],
    # Models print the addresses of their functions.
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_what_a_target_asks_for_is_said(operator, target, message):
    with pytest.raises(ValueError, match=message):
        operator(KEY, toy.PARAMS, toy.AXES, target)


@pytest.mark.parametrize("more", [{"width": Tile()}, {"experts": Upcycle()}])
def test_fused_models_grow_along_every_axis(more):
    with pytest.raises(
        ValueError, match=r"fuse=True\): fused models lie .* leave out width=, .* and p"
    ):
        Grow(fuse=True, **more)


def test_baselines_grow_nothing():
    layout = toy.AXES.layout(toy.PARAMS)
    chex.assert_trees_all_equal(Same()(KEY, toy.PARAMS, toy.AXES, toy.SMALL), toy.PARAMS)
    plan = Same().plan(KEY, layout, layout)
    assert plan.exact_by_table
    moments = {leaf.path: np.ones(leaf.shape, "float32") for leaf in layout.leaves}
    zeros = {path: np.zeros_like(value) for path, value in moments.items()}
    chex.assert_trees_all_equal(plan.moments(moments, zeros, 2), moments)
    for target in (toy.SMALL, BOTH):
        found = FromScratch()(KEY, toy.PARAMS, toy.AXES, target)
        chex.assert_trees_all_equal(found, target.init(KEY))


def test_pools_make_no_operator_twice():
    operators = [Grow(width=each) for each in pools.WIDTH.values()]
    operators += [Grow(depth=each) for each in (pools.DEPTH | pools.CONTROLS).values()]
    assert len(set(operators)) == len(operators)
