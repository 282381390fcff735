"""The axes table: how rows are read, bound to shapes, and what is said of those that do not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Dot, Residual, RMSNorm
from lagjax.algebra.layout import flatten
from lagjax.algebra.notation import Dim, parse
from lagjax.algebra.pieces import join, rearrange, split
from tests.growth.checks import shapes

LAYERS = r"l/(?P<layers>\d+)/"


def layout(rows, leaves, **kwargs):
    return Axes(rows, **kwargs).layout(shapes(leaves))


@pytest.mark.parametrize(
    "text, name, dims",
    [
        ("", None, ()),
        ("embed", None, (Dim("", (("embed",),)),)),
        ("=vocab >embed", None, (Dim("=", (("vocab",),)), Dim(">", (("embed",),)))),
        ("#layers <mlp >embed+", None, (Dim("#", (("layers",),)), Dim("<", (("mlp",),)), Dim(">", (("embed",),), True))),
        ("3 3 <cin >cout", None, (Dim("", ((3,),)), Dim("", ((3,),)), Dim("<", (("cin",),)), Dim(">", (("cout",),)))),
        (">(heads qk | 2 v)", None, (Dim(">", (("heads", "qk"), (2, "v"))),)),
        ("<(kv group v) >embed+", None, (Dim("<", (("kv", "group", "v"),)), Dim(">", (("embed",),), True))),
        (r"layers/\2: >embed", r"layers/\2", (Dim(">", (("embed",),)),)),
    ],
)  # fmt: skip
def test_parse(text, name, dims):
    assert parse(text) == (name, dims, ())


@pytest.mark.parametrize(
    "text, message",
    [
        ("<embed >mlp-out", "cannot read '>mlp-out'; expected axes such as"),
        ("<<embed", "cannot read '<<embed'"),
        ("(a (b (c)))", r"cannot read"),
        ("(a | )", r"'\(a \| \)' is empty or has a name that is no identifier"),
        (">2x", "'>2x' is empty or has a name that is no identifier"),
        (
            "#(layers blocks) x",
            r"'#\(layers blocks\)' is no stack; a stack is one named axis",
        ),
        ("#3 x", "'#3' is no stack"),
        ("(a | b) (c | d)", "more than one concatenated axis; keep the parts of one"),
    ],
)
def test_axes_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        Axes({"x": text})


names = st.sampled_from(["embed", "heads", "qk", "v"]) | st.integers(1, 4)
parts = st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)
dims = st.builds(
    lambda role, part, residual: Dim(role, (part,), residual),
    st.sampled_from(["<", ">", "=", "+", ""]),
    parts,
    st.booleans(),
)


@st.composite
def fused_dims(draw):
    """Concatenated parts, of which some factors have a role of their own."""
    found = tuple(draw(st.lists(parts, min_size=2, max_size=3)))
    roles = st.sampled_from(["", "<", ">"])
    own = tuple(tuple(draw(roles) for _ in part) for part in found)
    return Dim(">", found, own=own if any(map(any, own)) else ())


fused = fused_dims()
rows = st.tuples(
    st.lists(dims, max_size=2), st.lists(fused, max_size=1), st.lists(dims, max_size=1)
)
SIZES = {"embed": 2, "heads": 3, "qk": 4, "v": 5}


@given(rows)
def test_rows_are_read_as_written(groups):
    row = tuple(dim for group in groups for dim in group)
    assert parse(" ".join(map(str, row))) == (None, row, ())


def test_a_factor_has_the_role_of_its_axis_or_its_own():
    (fused, width) = parse(">(heads qk | heads <qk | heads v) <embed")[1]
    assert [fused.roles(part) for part in range(3)] == [
        (">", ">"),
        (">", "<"),
        (">", ">"),
    ]
    assert width.roles(0) == ("<",)
    (bias,) = parse("+embed")[1]
    assert (bias.role, bias.names) == ("+", ("embed",))


@settings(max_examples=25)  # JAX compiles for every shape.
@given(rows)
def test_join_undoes_split(groups):
    row = [dim for group in groups for dim in group]

    def size(part):
        return int(np.prod([SIZES.get(x, x) for x in part]))

    shape = [sum(size(part) for part in dim.parts) for dim in row]
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    unfolded = split(array, row, SIZES)
    assert len(unfolded) == max([len(dim.parts) for dim in row], default=1)
    np.testing.assert_array_equal(join(unfolded, row, SIZES), array)


def test_split_gives_one_axis_a_name():
    (kernel,) = parse(">(heads qk | heads qk | heads v)").dims
    q, k, v = split(np.arange(3 * (4 + 4 + 5)), [kernel], SIZES)
    assert (q.shape, k.shape, v.shape) == ((3, 4), (3, 4), (3, 5))
    np.testing.assert_array_equal(k, np.arange(12, 24).reshape(3, 4))
    np.testing.assert_array_equal(v, np.arange(24, 39).reshape(3, 5))


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("<embed >heads >qk", "<embed >(heads qk)", lambda x: x.reshape(2, 12)),
        ("<embed >heads >qk", ">(heads qk) <embed", lambda x: x.reshape(2, 12).T),
        (
            "<embed >heads >qk",
            ">(qk heads) <embed",
            lambda x: x.transpose(2, 1, 0).reshape(12, 2),
        ),
        # Equal names and literal sizes keep their order.
        ("2 3 4", "2 3 4", lambda x: x),
        ("2 <heads >qk", "<heads 2 >qk", lambda x: x.transpose(1, 0, 2)),
    ],
)
def test_rearrange(old, new, expected):
    array = np.arange(24).reshape(2, 3, 4)
    found = rearrange(array, parse(old)[1], parse(new)[1], SIZES)
    np.testing.assert_array_equal(found, expected(array))


def test_rearrange_keeps_equal_axes_in_order():
    kernel = np.arange(2 * 2 * 3 * 4).reshape(2, 2, 3, 4)
    found = rearrange(kernel, parse("2 2 <heads >qk")[1], parse(">qk <heads 2 2")[1], SIZES)
    np.testing.assert_array_equal(found, kernel.transpose(3, 2, 0, 1))


def test_layout():
    found = layout(
        {
            "embed": "=vocab >embed",
            LAYERS + "(q|k)": "<embed >(heads qk)",
            LAYERS + "out": "<mlp >embed+",
            "s/conv": "3 #s <cin >cout",
        },
        {
            "embed": (7, 6),
            "l/0/k": (6, 10),
            "l/0/q": (6, 10),
            "l/1/out": (8, 6),
            "s/conv": (3, 4, 2, 5),
        },
        sizes={"heads": 2},
        kinds={"qk": Dot("half")},
    )
    assert found.sizes == {
        "vocab": 7,
        "embed": 6,
        "heads": 2,
        "qk": 5,
        "mlp": 8,
        "cin": 2,
        "cout": 5,
    }
    assert found.stacks == {"layers": 2, "s": 4}
    assert found.kinds == {"qk": Dot("half")}
    by_path = {leaf.path: leaf for leaf in found.leaves}
    assert by_path["l/1/out"].name == "l/{layers}/out"
    assert by_path["l/1/out"].layer == (("layers", 1),)
    assert [path for path, leaf in by_path.items() if leaf.residual] == ["l/1/out"]
    assert by_path["s/conv"].stacks == ("s",)
    first, second = found.layer_kinds("layers")
    assert first == {("l/{layers}/q", ()), ("l/{layers}/k", ())}
    assert second == {("l/{layers}/out", ())}


def test_layers_within_stages():
    found = layout(
        {r"s(?P<stage>\d+)/b(?P<block>\d+)": ">embed"},
        {f"s{i}/b{j}": (3,) for i in range(2) for j in range(3)},
    )
    assert found.stacks == {"stage": 2, "block": 3}
    assert found.leaves[-1].name == "s{stage}/b{block}"
    assert found.leaves[-1].layer == (("stage", 1), ("block", 2))


def test_sizes_that_shapes_do_not_tell_are_left_open():
    found = layout({"q": "<embed >(heads qk)"}, {"q": (6, 10)})
    assert found.sizes == {"embed": 6}
    with pytest.raises(
        ValueError,
        match="size of axis 'heads' cannot be told .* give sizes={'heads': ...}",
    ):
        split(np.zeros((6, 10)), found.leaves[0].dims, found.sizes)


def test_a_scalar_and_arrays():
    found = Axes({"scale": "", "w": "<embed"}).layout(
        {"scale": jnp.ones(()), "w": np.ones(3, np.float16)}
    )
    assert next((leaf.dims, leaf.dtype) for leaf in found.leaves) == ((), jnp.float32)
    assert found.leaves[1].dtype == np.float16


def test_tables_compare_by_value():
    one, other = (Axes({"x": "a b"}, {"a": Residual(RMSNorm(), True)}, {"b": 3}) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Axes({"x": "a b"}, {"a": Residual(RMSNorm(), False)}, {"b": 3})


GOOD = {
    LAYERS + "up": "<embed >mlp",
    LAYERS + "down": "<mlp >embed+",
    "head": "<embed >vocab",
}
LEAVES = {
    "l/0/up": (6, 8),
    "l/0/down": (8, 6),
    "l/1/up": (6, 8),
    "l/1/down": (8, 6),
    "head": (6, 7),
}


@pytest.mark.parametrize(
    "rows, leaves, message",
    [
        # A leaf without a row: the leaf, its shape, and the row to add, once for all layers.
        (
            {LAYERS + "up": "<embed >mlp", "head": "<embed >vocab"},
            LEAVES,
            r'^no row of the axes table matches\n  l/0/down \(8, 6\): add r"l/\(\?P<layers>\\d\+\)/down": "\? \?"$',
        ),
        # Only the first number is taken for a layer's.
        (
            GOOD,
            LEAVES | {"block/0/layer/1/w.x": (3,)},
            r'add r"block/\(\?P<layers>\\d\+\)/layer/1/w\\.x": "\?"',
        ),
        (GOOD | {"tail": ">x"}, LEAVES, "row 'tail' matches no parameter.*correct or remove it"),
        (GOOD | {"hed": ">x"}, LEAVES, "row 'hed' matches no parameter; the nearest is 'head'; correct"),
        (
            {".*/up": "<embed >mlp"} | GOOD,
            LEAVES,
            (r"row '.*layers.*up' is shadowed: '\.\*/up' comes before it and takes l/0/up; move it "
            r"up or remove it"),
        ),
        (
            GOOD | {"head": "<embed >heads >vocab"},
            LEAVES,
            r"head has shape \(6, 7\), 2 axes, but its row 'head' gives 3: '<embed >heads >vocab'",
        ),
        (
            GOOD,
            LEAVES | {"head": (5, 7)},
            r"\(.*\): its axis .embed\+? has size ., expected .; embed = . \(from .*\)",
        ),
        (GOOD | {"head": "3 >vocab"}, LEAVES, r"head \(6, 7\): its axis 3 has size 6, expected 3"),
        (
            GOOD | {"head": "<embed >(mlp x)"},
            LEAVES,
            r"head \(6, 7\): its axis >\(mlp x\) of size 7 cannot be made of {'mlp': 8}",
        ),
        (
            GOOD | {"head": "<embed >(x x)"},
            LEAVES,
            r"its axis >\(x x\) of size 7 cannot be made of {}",
        ),
        (
            GOOD,
            {path.replace("1", "2"): shape for path, shape in LEAVES.items()},
            "stack 'layers' has no layer 1, though l/2/.* exists; layers count from 0",
        ),
        (
            GOOD | {"(a|b)": "#s x"},
            LEAVES | {"a": (2, 3), "b": (4, 3)},
            r"stack 's' has 2 layers, but b \(4, 3\) has 4",
        ),
        (GOOD | {"s/(?P<layers>.*)": "x"}, LEAVES | {"s/a": (3,)}, "captures layers='a' from s/a; a number was"),
        (
            GOOD | {"(a|b)": "both: x"},
            LEAVES | {"a": (3,), "b": (3,)},
            r"a \(3,\) and b \(3,\) have the same name 'both'; set them apart, .*'attn/\\1: axes'",
        ),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(rows, leaves, message):
    with pytest.raises(ValueError, match=message):
        layout(rows, leaves)


def test_the_good_table_fits():
    assert layout(GOOD, LEAVES).sizes == {"embed": 6, "mlp": 8, "vocab": 7}


def test_given_sizes_are_checked():
    with pytest.raises(ValueError, match=r"size 6, expected 5; embed = 5 \(from sizes=\)"):
        layout(GOOD, LEAVES, sizes={"embed": 5})


@pytest.mark.parametrize("what", ["kinds", "sizes"])
def test_unknown_axes(what):
    with pytest.raises(
        ValueError,
        match=f"{what} names the axis 'embd', which no row has; the nearest is 'embed'",
    ):
        Axes(GOOD, **{what: {"embd": 3}})


def test_not_a_pattern():
    with pytest.raises(ValueError, match=r"row '\(a': not a regular expression"):
        Axes({"(a": "x"})


def test_empty_tree():
    with pytest.raises(ValueError, match="empty tree; give what the model's init returns"):
        Axes(GOOD).layout({})


def test_paths_hide_boxes():
    tree = {
        "boxed": nn.LogicallyPartitioned(jnp.ones(2), ("x",)),
        "list": [jnp.ones(2)],
        "nnx": nnx.State({"layers": {0: nnx.Param(jnp.ones(2))}}),
        "value": jnp.ones(2),
    }
    assert list(flatten(tree)) == ["boxed", "list/0", "nnx/layers/0", "value"]


def test_split_traces():
    row = parse("<embed >(heads qk | v)").dims
    shape = jax.eval_shape(lambda x: join(split(x, row, SIZES), row, SIZES), jnp.zeros((2, 17)))
    assert shape.shape == (2, 17)
