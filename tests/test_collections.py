"""State that is no parameter: batch statistics and running averages, grown with the parameters."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Residual, Units
from lagjax.growth.operator import Grow
from lagjax.growth.width import (
    Aki,
    Average,
    Isometric,
    NoisySplit,
    RandomIn,
    RandomPad,
    Tile,
)
from lagjax.state import collections

KEY = jax.random.key(5)
X = np.random.default_rng(0).normal(size=(16, 3))
LAYERS = {"scanned": "l/", "unrolled": r"l_(?P<layers>\d+)/"}


def axes(form):
    stack, path = "#layers " if form == "scanned" else "", LAYERS[form]
    return Axes(
        {
            "embed": "<x >embed",
            path + "up": f"l/up: {stack}<embed >mlp",
            path + "scale": f"l/scale: {stack}*mlp",
            path + "bias": f"l/bias: {stack}+mlp",
            path + "down": f"l/down: {stack}<mlp >embed+",
            "head": "<embed >y",
            f"batch_stats/{path}mean": f"stats/mean: {stack}~mlp",
            f"batch_stats/{path}var": f"stats/var: {stack}~mlp^2",
            f"batch_stats/{path}count": f"stats/count: {stack}~",
        },
        kinds={"embed": Residual(None), "mlp": Units("relu"), "x": Channels(), "y": Channels()},
    )


def drawn(layers, embed, mlp, seed):
    """Parameters and statistics, scanned; the statistics of layer i are those of any batch."""
    draw = np.random.default_rng(seed)
    shapes = {
        "embed": (3, embed),
        "l": {
            "up": (layers, embed, mlp),
            "scale": (layers, mlp),
            "bias": (layers, mlp),
            "down": (layers, mlp, embed),
        },
        "head": (embed, 2),
    }
    params = jax.tree.map(
        lambda shape: draw.normal(size=shape), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return params, measured(params, np.arange(layers) + 10 * seed)


def forward(params, stats, x):
    """The outputs, and each layer's mean and variance before its norm; `stats` None: of the
    batch.
    """
    h, found = x @ params["embed"], []
    for i in range(len(params["l"]["up"])):
        layer = {name: value[i] for name, value in params["l"].items()}
        u = h @ layer["up"]
        mean, var = (u.mean(0), u.var(0)) if stats is None else (stats["mean"][i], stats["var"][i])
        found.append((u.mean(0), u.var(0)))
        u = (u - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]
        h = h + np.maximum(u, 0) @ layer["down"]
    return h @ params["head"], found


def measured(params, counts):
    means, variances = (np.stack(x) for x in zip(*forward(params, None, X)[1]))
    return {"l": {"mean": means, "var": variances, "count": np.asarray(counts, np.int32)}}


def unrolled(tree):
    """`l` by layer in place of stacked."""
    if "l" not in tree:
        return tree
    flat = {name: value for name, value in tree.items() if name != "l"}
    count = len(next(iter(tree["l"].values())))
    return flat | {f"l_{i}": {k: v[i] for k, v in tree["l"].items()} for i in range(count)}


def scanned(tree):
    layers = [tree[name] for name in sorted(tree) if name.startswith("l_")]
    flat = {name: value for name, value in tree.items() if not name.startswith("l_")}
    return flat | {"l": {k: np.stack([x[k] for x in layers]) for k in layers[0]}}


def grown(operator, forms, small, large):
    """Parameters and collections of the grown model, scanned; source and target as `forms` say."""
    of = [unrolled if form == "unrolled" else dict for form in forms]
    tables = [axes(form) for form in forms]
    (params, before), (fresh, blank) = (map(make, one) for make, one in zip(of, (small, large)))
    found = {"batch_stats": before, "ema": params}, {"batch_stats": blank, "ema": fresh}
    layouts = (table.layout(p) for table, p in zip(tables, (params, fresh)))
    plan = operator.plan(KEY, *layouts)
    made = plan.params(params, fresh), collections(plan, *found, *tables)
    made = jax.tree.map(np.asarray, made)
    back = scanned if forms[1] == "unrolled" else dict
    return plan, back(made[0]), {name: back(tree) for name, tree in made[1].items()}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


FORMS = [(one, other) for one in LAYERS for other in LAYERS]


@pytest.mark.parametrize("forms", FORMS, ids="-".join)
@pytest.mark.parametrize("way", [Tile(), Tile(NoisySplit()), RandomIn()], ids=str)
def test_a_net_with_batch_norm_keeps_its_function(forms, way):
    operator = Grow(depth="0 0* 1 new*", width={"mlp": way})
    small, large = drawn(2, 4, 3, 1), drawn(4, 4, 6, 2)
    plan, params, state = grown(operator, forms, small, large)
    assert plan.exact_by_table
    before, _ = forward(small[0], small[1]["l"], X)
    after, statistics = forward(params, state["batch_stats"]["l"], X)
    np.testing.assert_allclose(after, before, rtol=1e-10)
    # What was copied in its place has the very statistics that the grown model shows.
    copied = slice(None) if isinstance(way, Tile) else slice(3)
    for new in (0, 2):
        for name, value in zip(("mean", "var"), statistics[new]):
            shown = state["batch_stats"]["l"][name][new][copied]
            np.testing.assert_allclose(shown, value[copied], rtol=1e-10)
    stats = state["batch_stats"]["l"]
    assert stats["count"].tolist() == [10, 10, 11, 23]
    assert stats["count"].dtype == np.int32
    np.testing.assert_array_equal(stats["var"][3], large[1]["l"]["var"][3])
    if isinstance(way, RandomIn):
        np.testing.assert_array_equal(stats["mean"][0, 3:], large[1]["l"]["mean"][0, 3:])


@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_averages_grow_as_their_parameters_do(forms):
    """Noise and all: an average of parameters that stand still is these, grown or not."""
    operator = Grow(depth="0 0*0.5 new", width={"embed": Tile(NoisySplit()), "mlp": RandomPad()})
    _, params, state = grown(operator, forms, drawn(1, 2, 3, 1), drawn(3, 4, 5, 2))
    chex.assert_trees_all_equal(state["ema"], params)


ONE = {"w": "<x >c", "s/mean": "~c", "s/var": "~c^2"}
LINEAR = Axes(ONE, kinds={"c": Channels(), "x": Channels()})


def linear(way, old=3, new=6, table=LINEAR):
    """Weights of a linear map and its outputs' statistics, grown; and those of the grown map."""
    w, other = np.random.default_rng(3).normal(size=(2, 3, 6))
    small, large = {"w": w[:, :old]}, {"w": other[:, :new]}

    def statistics(params):
        u = X @ params["w"]
        return {"s": {"mean": u.mean(0), "var": u.var(0)}}

    plan = Grow(width={"c": way}).plan(KEY, table.layout(small), table.layout(large))
    blank = jax.tree.map(lambda x: np.full(x.shape, 7.0), statistics(large))
    found = collections(plan, statistics(small), blank, table, table)
    return found["s"], statistics(plan.params(small, large))["s"]


@pytest.mark.parametrize("way", [Isometric(), Tile(), Average(), Aki()], ids=str)
def test_a_variance_is_of_order_2(way):
    found, seen = linear(way, new=8 if isinstance(way, Average) else 6)
    np.testing.assert_allclose(found["mean"], seen["mean"], rtol=1e-10)
    made = slice(None, 6)
    np.testing.assert_allclose(found["var"][made], seen["var"][made], rtol=1e-10)
    # The variance of a mean does not follow from variances.
    np.testing.assert_array_equal(found["var"][6:], 7.0)


def test_rows_of_state_leave_parameters_alone():
    without = Axes({"w": "<x >c"}, kinds={"c": Channels(), "x": Channels()})
    params = {"w": np.ones((3, 6))}
    # But for what a variance along them tells of a proof.
    wanted = dataclasses.replace(without.layout(params), batch_normed=frozenset({"c"}))
    assert LINEAR.layout(params) == wanted
    # And a table of a model that has no such state today fits.
    whole = LINEAR.with_state(LINEAR.layout(params), {})
    assert whole == LINEAR.layout(params)


@pytest.mark.parametrize(
    "rows, tree, message",
    [
        ({"w": "<x >c"}, {"mean": (6,)}, r'state s/mean \(6,\), and .mean. is no parameter; add r"s/mean": "~\?"'),
        ({"w": "<x >c"}, {"w": (6,)}, r"state s/w \(6,\), and w \(3, 6\) is a parameter; add"),
        (ONE, {"mean": (6,)}, "row 's/var' matches no parameter; the nearest is 's/mean'"),
        (ONE, {"mean": (5,), "var": (6,)}, r"s/mean \(5,\): its axis ~c has size 5, expected 6; c = 6 \(from w"),
        (ONE, {"mean": (6, 1), "var": (6,)}, r"s/mean has shape \(6, 1\), 2 axes, but its row 's/mean' gives 1"),
    ],
)  # fmt: skip
def test_state_that_does_not_fit(rows, tree, message):
    table = Axes(rows)
    params = table.layout({"w": np.ones((3, 6))})
    with pytest.raises(ValueError, match=message):
        table.with_state(params, {"s": {path: np.ones(shape) for path, shape in tree.items()}})


def test_collections_that_do_not_fit():
    layout = LINEAR.layout({"w": np.ones((3, 6))})
    plan = Grow(width={"c": Tile()}).plan(KEY, layout, layout)
    s = {"mean": jnp.ones(6), "var": jnp.ones(6)}
    with pytest.raises(ValueError, match=r"\['s'\], the small one \[\]; give \['s'\] of the small"):
        collections(plan, {}, {"s": s}, LINEAR, LINEAR)
    assert collections(plan, {"s": s}, {}, LINEAR, LINEAR) == {}
    other = dataclasses.replace(plan, target=layout)
    with pytest.raises(ValueError, match="target's s/var .* has no counterpart named 's/var'"):
        collections(
            other,
            {"s": {"mean": jnp.ones(6)}},
            {"s": s},
            Axes({"w": "<x >c", "s/mean": "~c"}),
            LINEAR,
        )


@pytest.mark.parametrize("row", [">x^2", "~x^0", "x^2"])
def test_orders_are_of_statistics(row):
    with pytest.raises(ValueError, match="only those have one, and it counts from 1"):
        Axes({"w": row})
