"""Tables of architectures that are not plain stacks of one layer."""

import jax
import pytest

from lagjax.growth.depth import Fresh, Interleave
from lagjax.growth.operator import Grow
from tests.growth import architectures as arch
from tests.growth import checks, models


def test_grouped_queries():
    small, large = arch.grouped(2), arch.grouped(4)
    layout = checks.table(arch.GROUPED, small, large)
    checks.scanning(arch.GROUPED, small)
    # The number of keys is given; the size of a group follows.
    assert layout.sizes == {"embed": 6, "kv": 2, "group": 3, "qk": 5, "v": 4}
    assert layout.stacks == {"layers": 2}
    assert len(layout.layer_kinds("layers")[0]) == 8


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_layers(axis):
    small, large = (jax.eval_shape(models.linen(n, axis).init, checks.KEY) for n in (2, 4))
    layout = checks.table(models.linen(2, axis).axes, small, large)
    assert layout.sizes == {
        "embed": 6,
        "heads": 2,
        "qk": 5,
        "v": 5,
        "mlp": 8,
        "vocab": 7,
    }
    assert layout.stacks == {"layers": 2}
    assert layout.leaves[-1].dims[axis].stack == "layers"


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_and_unrolled_are_one(axis):
    """From one real model into the other, and back."""
    scanned, unrolled = models.linen(3, axis), models.linen(3, None)
    params = models.drawn(unrolled)
    same = Grow(depth="0 1 2")
    there = same(checks.KEY, params, unrolled.axes, models.filled(scanned))
    back = same(checks.KEY, there, scanned.axes, models.filled(unrolled))
    checks.chex.assert_trees_all_equal(back, params)
    kernel = params["layers_2"]["attn"]["query"]["kernel"]
    found = jax.numpy.take(there["layers"]["attn"]["query"]["kernel"], 2, axis)
    checks.chex.assert_trees_all_equal(found, kernel)


@pytest.mark.parametrize("family", ["unrolled", "nnx"])
def test_unrolled_layers(family):
    small, large = (jax.eval_shape(models.FAMILIES[family](n).init, checks.KEY) for n in (2, 4))
    axes = models.FAMILIES[family](2).axes
    checks.table(axes, small, large)
    checks.scanning(axes, small)


def test_experts():
    small, large = arch.layered(*["experts"] * 2), arch.layered(*["experts"] * 4)
    layout = checks.table(arch.EXPERTS_ONLY, small, large)
    checks.scanning(arch.EXPERTS_ONLY, small)
    assert layout.sizes == {"vocab": 7, "embed": 6, "mlp": 8, "experts": 3}


def test_boxes_of_logical_partitioning():
    small, large = arch.layered(*["boxed"] * 2), arch.layered(*["boxed"] * 4)
    checks.table(arch.DENSE_ONLY, small, large)
    checks.scanning(arch.DENSE_ONLY, small)
    grown = Grow(depth=Interleave())(
        checks.KEY,
        checks.numbered(small),
        arch.DENSE_ONLY,
        checks.target(arch.DENSE_ONLY, large),
    )
    assert grown["layer_3"]["dense"]["up"]["kernel"].names == ("embed", "mlp")


def test_first_layer_dense_then_experts():
    small, large = (
        arch.layered("dense", *["experts"] * 2),
        arch.layered("dense", *["experts"] * 4),
    )
    layout = checks.table(arch.DENSE_FIRST, small, large)
    first, second, third = layout.layer_kinds("layers")
    assert first != second == third
    plan = Grow(depth=Fresh("between", zero=True)).plan(
        checks.KEY, layout, arch.DENSE_FIRST.layout(large)
    )
    assert str(plan.words["layers"]) == "0 1 new* 2 new*"
    assert plan.exact_by_table


def test_kinds_in_turn():
    kinds = ["dense", "global"]
    small, large = arch.layered(*kinds * 2), arch.layered(*kinds * 3)
    layout = checks.table(arch.IN_TURN, small, large)
    assert len(set(layout.layer_kinds("layers"))) == 2
    plan = Grow(depth=Interleave()).plan(checks.KEY, layout, arch.IN_TURN.layout(large))
    assert str(plan.words["layers"]) == "0 1 0 1 2 3"
