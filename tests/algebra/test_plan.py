"""Words and targets that cannot be are refused, and the message says what to do."""

import jax
import numpy as np
import pytest

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import LayerNorm, Residual, RMSNorm
from lagjax.algebra.plan import Plan
from lagjax.algebra.words import Word
from lagjax.growth.depth import Stack
from lagjax.growth.operator import Grow
from tests.growth import checks, models

ROWS = {
    r"l/(?P<layers>\d+)/in": "<embed >mlp",
    r"l/(?P<layers>\d+)/out": "<mlp >embed+",
    "head": "<embed >vocab",
}
PRE = {"embed": Residual(RMSNorm(), pre=True)}


def shapes(layers, mlp=4, head=5):
    of = {f"l/{i}/in": (3, mlp) for i in range(layers)} | {
        f"l/{i}/out": (mlp, 3) for i in range(layers)
    }
    return checks.shapes(of | {"head": (3, head)})


def grow(word, old, new, source=ROWS, target=ROWS, axes=Axes):
    small, large = axes(source), axes(target)
    return Grow(depth=word)(checks.KEY, checks.numbered(old), small, checks.target(large, new))


@pytest.mark.parametrize(
    "word, message",
    [
        (
            "0 1 2 0",
            r"'0 1 2 0' takes layer 2, but the source's stack 'layers' has layers 0 to 1",
        ),
        ("0 1 0", r"'0 1 0' has 3 layers, the target's stack 'layers' 4"),
        ("0 1 x 1", r"'x' is no layer; expected '2', 'new', '2\*' or '2\*0.5'"),
        ("0 1 -1 1", r"'-1' is no layer"),
        ("0 1 0*half 1", r"'0\*half' is no layer"),
        ("0 1 0.5 1", r"'0.5' is no layer"),
        ("", r"word '' names no layer"),
    ],
)
def test_bad_words(word, message):
    with pytest.raises(ValueError, match=message):
        grow(word, shapes(2), shapes(4))


def test_fewer_layers():
    with pytest.raises(
        ValueError,
        match="'layers' has 2 layers, fewer than the source's 3; growth adds",
    ):
        grow("0 1", shapes(3), shapes(2))


def test_another_width():
    with pytest.raises(
        ValueError,
        match="axis 'mlp' has size 4 in the source's .* and 6 in the target's",
    ):
        grow(Stack(), shapes(2), shapes(4, mlp=6))
    with pytest.raises(
        ValueError, match="axis 'vocab' has size 5 .* 7 .*does not grow it: say how"
    ):
        grow(Stack(), shapes(2), shapes(4, head=7))


def test_another_width_that_only_a_flattened_axis_shows():
    rows = {r"(?P<layers>\d+)/q": "<embed >(heads qk)+"}
    small, large = (checks.shapes({f"{i}/q": (3, n) for i in range(2)}) for n in (4, 6))
    with pytest.raises(ValueError, match=r"1/q \(3, 4\) and the target's 1/q \(3, 6\) differ"):
        grow(Stack(), small, large, rows, rows)


def test_a_stack_in_one_table_only():
    flat = {
        r"l/\d+/in": "<embed >mlp",
        r"l/\d+/out": "<mlp >embed+",
        "head": "<embed >vocab",
    }
    for source, target in ((ROWS, flat), (flat, ROWS)):
        with pytest.raises(
            ValueError,
            match=r"stacks of layers are .*mark the same ones in both tables",
        ):
            grow(Stack(), shapes(2), shapes(2), source, target)
    one = {**ROWS, "head": "#heads <embed"}
    with pytest.raises(
        ValueError,
        match=r"source's stacks of layers are \['layers'\].*\['heads', 'layers'\]",
    ):
        grow(Stack(), shapes(2), shapes(2, head=3), ROWS, one)


def test_a_leaf_outside_the_stack_in_one_table():
    """The stack is in both tables, but this leaf is part of it in one of them only."""
    small = {r"l/(?P<layers>\d+)/in": "in: <embed >mlp", "head": "head: <embed >vocab"}
    large = {
        r"l/(?P<layers>\d+)/in": "in: <embed >mlp",
        r"h/(?P<layers>\d+)": "head: <embed >vocab",
    }
    old = checks.shapes({"l/0/in": (3, 4), "head": (3, 5)})
    new = checks.shapes({"l/0/in": (3, 4), "h/0": (3, 5)})
    with pytest.raises(
        ValueError,
        match=r"head \(3, 5\) is part of the stacks \(\), its counterpart h/0",
    ):
        grow("0", old, new, small, large)


def test_a_leaf_without_counterpart():
    more = {**shapes(4), "tail": jax.ShapeDtypeStruct((3,), np.float32)}
    rows = {**ROWS, "tail": "embed"}
    with pytest.raises(
        ValueError,
        match=r"target's tail \(3,\) has no counterpart .*giving both the same name",
    ):
        grow(Stack(), shapes(2), more, ROWS, rows)
    with pytest.raises(
        ValueError,
        match=r"source's tail \(3,\) has no counterpart named 'tail' in the target",
    ):
        grow(Stack(), more, shapes(4), rows, ROWS)


def test_a_layer_that_no_row_captured():
    """A row such as `.*norm` that also takes the layers' norms."""
    rows = {
        "l/.*/in": "<embed >mlp",
        r"l/(?P<layers>\d+)/out": "<mlp >embed+",
        "head": "<embed >vocab",
    }
    with pytest.raises(
        ValueError,
        match=r"l/2/in .*counts layers, let its row capture it: '\(\?P<layers>",
    ):
        grow("0 1 0 1", shapes(2), shapes(4), rows, rows)


def test_scaling_needs_a_residual_row():
    rows = {pattern: axes.replace("+", "") for pattern, axes in ROWS.items()}
    with pytest.raises(ValueError, match=r"'0 0\* 1 1' scales .* mark it: '>embed\+'"):
        grow("0 0* 1 1", shapes(2), shapes(4), rows, rows)
    grow("0 0 1 1", shapes(2), shapes(4), rows, rows)


def test_strategies_by_stack_name_the_stacks():
    with pytest.raises(ValueError, match=r"given for \['enc'\], the stacks are \['layers'\]"):
        grow({"enc": Stack()}, shapes(2), shapes(4))


@pytest.mark.parametrize(
    "kinds, rows, exact",
    [
        (PRE, ROWS, True),
        ({"embed": Residual(LayerNorm(), pre=True)}, ROWS, True),
        ({"embed": Residual(RMSNorm(), pre=False)}, ROWS, False),
        ({}, ROWS, False),
        # An output whose mark was forgotten: zeroing would leave it in the sum.
        (
            PRE,
            {
                **ROWS,
                r"l/(?P<layers>\d+)/in": "<mlp >embed",
                r"l/(?P<layers>\d+)/out": "<mlp >embed+",
            },
            False,
        ),
    ],
    ids=["rms", "layer", "after the sum", "not said", "a mark is missing"],
)
def test_exact_is_proved_or_not_claimed(kinds, rows, exact):
    axes = Axes(rows, kinds)
    old, new = (axes.layout(shapes(n, mlp=3)) for n in (2, 3))
    assert Plan(old, new, {"layers": Word.parse("0 0* 1")}).exact_by_table is exact
    assert Plan(old, new, {"layers": Word.parse("0 new* 1")}).exact_by_table is exact
    for word in ("0 0 1", "0 1 new", "0 0*0.5 1", "1 0 0*", "0* 1 0", "0 0* 0*"):
        assert not Plan(old, new, {"layers": Word.parse(word)}).exact_by_table
    # Nothing is added, so nothing has to be proved.
    assert Plan(old, old, {"layers": Word.parse("0 1")}).exact_by_table


def test_types_are_the_targets():
    small, large = models.linen(2, 0), models.linen(3, None)
    half = jax.tree.map(lambda x: x.astype("bfloat16"), models.drawn(small))
    grown = Grow(depth="0 new 1")(checks.KEY, half, small.axes, models.filled(large))
    assert {leaf.dtype for leaf in jax.tree.leaves(grown)} == {np.dtype("float32")}
