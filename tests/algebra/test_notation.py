"""What a row can say of a model that multiplies, divides or offsets: grown models compute the same.

Each net here is the least that has the trait; numpy computes it in float64.
"""

import jax
import numpy as np
import pytest

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import (
    Channels,
    Dot,
    Heads,
    LayerNorm,
    LayerTypes,
    Lookup,
    Residual,
    RMSNorm,
    Units,
)
from lagjax.algebra.notation import parse
from lagjax.algebra.pieces import join, split
from lagjax.algebra.provenance import step_sizes
from lagjax.growth import width
from lagjax.growth.operator import Grow
from tests.growth.checks import shapes

pytestmark = pytest.mark.usefixtures("double")
KEY, DRAW = jax.random.key(0), np.random.default_rng(0)
X = DRAW.normal(size=(5, 6))


def grown(axes, how, small, large, **sizes):
    """The plan, random parameters of the small shapes, and what the plan makes of them."""
    source, target = (
        Axes(dict(axes.rows), dict(axes.kinds), dict(axes.sizes) | more) for more in ({}, sizes)
    )
    plan = how.plan(KEY, source.layout(shapes(small)), target.layout(shapes(large)))
    one, other = (
        {path: DRAW.normal(size=shape) for path, shape in each.items()} for each in (small, large)
    )
    return plan, one, jax.tree.map(np.asarray, plan.params(one, other))


def rms(x, scale):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True)) * scale


def layer(x, scale):
    return rms(x - x.mean(-1, keepdims=True), scale)


def normal(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    "text",
    [
        "1+embed",
        "*embed+",
        "<mlp >embed*",
        "<embed >(heads (>qk | <qk | v))",
        "(heads (a | b) 2)",
        "<embed >heads /(heads v)^0.5",
        "<mlp >embed+ /layers^0.5 /#layers^-1",
        "name: <embed /(a | b)^0.5",
    ],
)
def test_what_is_written_is_read(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embed*", "marked as multiplied later, which only what writes"),
        ("/#(a b)", "what the model divides by is written as '/layers"),
        ("/embed+", "what the model divides by is written as '/layers"),
        ("embed^0.5", "has an order that is 0 or of no statistic"),
        ("2+embed", "cannot read '2"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        Axes({"x": text})


def test_a_divisor_names_an_axis_of_the_table():
    with pytest.raises(
        ValueError, match=r"x \(3,\) is divided by /heads, but no row has \['heads'"
    ):
        Axes({"x": ">embed /heads"}).layout(shapes({"x": (3,)}))
    rows = {r"w(?P<layers>\d)": "<embed >y", "x": ">y /#layers"}
    with pytest.raises(
        ValueError, match=r"number of its layer, /#layers, but is part of the stacks \[\]"
    ):
        Axes(rows).layout(shapes({"w0": (3, 2), "x": (2,)}))


def test_parts_within_a_flattened_axis():
    """GPT-NeoX's queries, keys and values: for every head its three."""
    (dim,) = parse("(heads (q | k | 2))").dims
    sizes = {"heads": 3, "q": 4, "k": 5}
    array = np.arange(3 * (4 + 5 + 2))
    q, k, rest = split(array, [dim], sizes)
    by_head = array.reshape(3, 11)
    for found, wanted in ((q, by_head[:, :4]), (k, by_head[:, 4:9]), (rest, by_head[:, 9:])):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(join([q, k, rest], [dim], sizes), array)


@pytest.mark.parametrize(
    ("norm", "kind", "way"),
    [(rms, RMSNorm(), width.ZeroPad()), (layer, LayerNorm(), width.Tile())],
    ids=["rms", "layer"],
)
def test_a_norm_before_the_addition(norm, kind, way):
    """Gemma 2 norms what a sublayer gives; its scale, from 1, is the last one."""
    axes = Axes(
        {
            "inp": "<x >embed",
            r"l(?P<layers>\d)/pre": "1+embed",
            r"l(?P<layers>\d)/up": "<embed >mlp",
            r"l(?P<layers>\d)/down": "<mlp >embed*",
            r"l(?P<layers>\d)/post": "1+embed+",
            "norm": "1+embed",
            "out": "<embed >y",
        },
        {"embed": Residual(kind), "mlp": Units("relu"), "x": Channels(), "y": Channels()},
    )

    def sizes(layers, n):
        made = {"inp": (6, n), "norm": (n,), "out": (n, 2)}
        for i in range(layers):
            made |= {f"l{i}/pre": (n,), f"l{i}/up": (n, 7)}
            made |= {f"l{i}/down": (7, n), f"l{i}/post": (n,)}
        return made

    def outputs(params):
        x = X @ params["inp"]
        for i in range((len(params) - 3) // 4):
            h = norm(x, 1 + params[f"l{i}/pre"]) @ params[f"l{i}/up"]
            h = np.maximum(h, 0) @ params[f"l{i}/down"]
            x = x + norm(h, 1 + params[f"l{i}/post"])
        return norm(x, 1 + params["norm"]) @ params["out"]

    deep = Grow(depth="0 0* new* 1", width={"embed": way})
    plan, small, large = grown(axes, deep, sizes(2, 4), sizes(4, 8))
    assert plan.exact_by_table
    np.testing.assert_allclose(outputs(large), outputs(small), rtol=1e-9)
    np.testing.assert_array_equal(large["l1/post"], -1)
    unmarked = Axes(dict(axes.rows) | {r"l(?P<layers>\d)/down": "<mlp >embed"}, dict(axes.kinds))
    plan, _, _ = grown(unmarked, deep, sizes(2, 4), sizes(4, 8))
    assert "without the mark '+'" in plan.violations[0].why
    # What a reader sees without its mean is not what a norm gives.
    plan, _, _ = grown(axes, Grow(width={"embed": width.Average()}), sizes(2, 4), sizes(2, 6))
    assert any("acts entry by entry on what is added" in one.why for one in plan.violations)


def test_a_vector_that_multiplies_allows_no_means():
    rows = {"inp": "<x >embed", "factor": "*embed", "out": "<embed >y"}
    kinds = {"embed": Residual(None), "x": Channels(), "y": Channels()}

    def plan(way):
        sizes = ({"inp": (6, n), "factor": (n,), "out": (n, 2)} for n in (4, 6))
        return grown(Axes(rows, kinds), Grow(width={"embed": way}), *sizes)[0]

    assert plan(width.ZeroPad()).exact_by_table
    assert "acts entry by entry" in str(plan(width.Average()).violations)


def test_the_scale_of_a_norm_on_an_axis_that_meets_none():
    """SubLN norms hidden units; a table that says nothing of it is not believed."""
    rows = {"up": "<x >mlp", "norm": "mlp", "down": "<mlp >y"}
    kinds = {"mlp": Units("relu"), "x": Channels(), "y": Channels()}
    sizes = [{"up": (6, n), "norm": (n,), "down": (n, 2)} for n in (4, 6)]
    plan, _, _ = grown(Axes(rows, kinds), Grow(width={"mlp": width.RandomIn()}), *sizes)
    assert "'mlp' is said to meet none; if it only multiplies, write '*mlp'" in str(
        plan.violations[0]
    )
    axes = Axes(rows | {"norm": "*mlp"}, kinds)
    plan, small, large = grown(axes, Grow(width={"mlp": width.RandomIn()}), *sizes)
    assert plan.exact_by_table
    one, other = ((np.maximum(X @ p["up"], 0) * p["norm"]) @ p["down"] for p in (small, large))
    np.testing.assert_allclose(other, one, rtol=1e-12)


def test_a_batch_norm_takes_away_what_copies_are_multiplied_by():
    rows = {"inp": "<x >embed", "factor": "*embed", "out": "<embed >y", "stats/var": "~embed^2"}
    axes = Axes(rows, {"embed": Residual(None), "x": Channels(), "y": Channels()})
    sizes = [{"inp": (6, n), "factor": (n,), "out": (n, 2)} for n in (4, 8)]
    plan, _, _ = grown(axes, Grow(width={"embed": width.Isometric()}), *sizes)
    assert "a batch norm divides by what its copies" in str(plan.violations)
    assert grown(axes, Grow(width={"embed": width.Tile()}), *sizes)[0].exact_by_table


@pytest.mark.parametrize("grows", ["turned", "plain"])
def test_scores_are_divided_by_the_root_of_a_whole_head(grows):
    """Of which a part is rotated and the other is not, as in GPT-NeoX and DeepSeek."""
    rows = {
        "q": "<x >(turned | plain)",
        "k": "<x <(turned | plain) /(turned | plain)^0.5",
        "v": "<x >y",
    }
    whole = {"x": Channels(), "y": Channels()}
    parts = {"turned": Dot("half", scaled=False), "plain": Dot(scaled=False)}
    axes = Axes(rows, whole | parts, {"turned": 4, "plain": 2})
    # Frequencies are of the first pair: any will do that are the same for copies.
    angle = np.arange(5)[:, None]

    def outputs(params, turned, pairs):
        def rotated(z):
            a, b = np.split(z[:, :turned], 2, 1)
            t = angle * (1.0 + np.asarray(pairs))
            a, b = a * np.cos(t) - b * np.sin(t), a * np.sin(t) + b * np.cos(t)
            return np.concatenate([a, b, z[:, turned:]], 1)

        q, k = rotated(X @ params["q"]), rotated(X @ params["k"])
        return normal(q @ k.T / np.sqrt(q.shape[1])) @ (X @ params["v"])

    sizes = {"turned": 4, "plain": 2} | {grows: 8}
    total = sum(sizes.values())
    small, large = ({"q": (6, n), "k": (6, n), "v": (6, 3)} for n in (6, total))
    plan, one, other = grown(axes, Grow(width={grows: width.Tile()}), small, large, **sizes)
    assert plan.exact_by_table
    pairs = next((x.value for x in plan.requires), (0, 1))
    wanted = outputs(one, 4, (0, 1))
    np.testing.assert_allclose(outputs(other, sizes["turned"], pairs), wanted, rtol=1e-10)


def test_a_size_that_an_embedding_is_multiplied_by():
    """Gemma's embedding is times the root of its width; as a tied head it is not."""
    kinds = {"embed": Residual(None), "vocab": Lookup(), "y": Channels()}
    axes = Axes({"table": "<vocab >embed /embed^-0.5", "out": "<embed >y"}, kinds)
    sizes = ({"table": (5, n), "out": (n, 2)} for n in (4, 9))
    how = Grow(width={"embed": width.ZeroPad()})
    plan, small, large = grown(axes, how, *sizes)
    assert plan.exact_by_table
    one, other = ((p["table"] * np.sqrt(len(p["out"]))) @ p["out"] for p in (small, large))
    np.testing.assert_allclose(other, one, rtol=1e-12)
    tied = Axes({"table": "=vocab >embed /embed^-0.5"}, {k: kinds[k] for k in ("embed", "vocab")})
    plan, _, _ = grown(tied, how, {"table": (5, 4)}, {"table": (5, 9)})
    assert "as the head it is not divided by what grows" in str(plan.violations[0])


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "unrolled"])
def test_what_is_divided_keeps_its_steps(stacked):
    """Parameters, moments and steps of outputs that are divided by depth and by the layer's number.

    Of what the model uses, w / (√L i), the large one's must be the small one's, and move as it.
    """
    row = "<mlp >embed+ /layers^0.5 /#layers"
    axes = Axes({"w": f"#layers {row}"} if stacked else {r"w(?P<layers>\d)": row})
    sizes = [{"w": (n, 2, 3)} if stacked else {f"w{i}": (2, 3) for i in range(n)} for n in (2, 4)]
    plan, small, large = grown(axes, Grow(depth="0 1 1 0"), *sizes)
    small = jax.tree.map(np.abs, small)
    large = jax.tree.map(np.asarray, plan.params(small, large))

    def used(params):
        values = params["w"] if stacked else np.stack(list(params.values()))
        return values / np.sqrt(len(values)) / np.arange(1, len(values) + 1)[:, None, None]

    np.testing.assert_allclose(used(large), used(small)[[0, 1, 1, 0]], rtol=1e-12)
    for power in (1, 2):
        blank = {path: np.zeros(x.shape) for path, x in large.items()}
        moments = jax.tree.map(np.asarray, plan.moments(small, blank, power))
        ratio = used({p: x ** -(1 / power) for p, x in moments.items()})
        # A gradient of the parameter is that of what is used, over the same factor.
        wanted = used({p: x ** -(1 / power) for p, x in small.items()})[[0, 1, 1, 0]]
        np.testing.assert_allclose(ratio, wanted, rtol=1e-6)
    steps = dict(zip(large, step_sizes(plan)))
    ones = {path: np.ones(x.shape) for path, x in small.items()}
    moved = used({path: steps[path] * np.ones(x.shape) for path, x in large.items()})
    np.testing.assert_allclose(moved, used(ones)[[0, 1, 1, 0]], rtol=1e-6)


def test_words_keep_the_types_of_layers():
    axes = Axes({r"w(?P<layers>\d)": "<embed >embed+"}, {"layers": LayerTypes(("a", "b", "b"))})
    small, large = ({f"w{i}": (2, 2) for i in range(n)} for n in (3, 6))
    _, one, other = grown(axes, Grow(depth="0 1 2 0 2 1"), small, large)
    np.testing.assert_array_equal(other["w4"], one["w2"])
    with pytest.raises(ValueError, match="another kind .layer 3.; they differ in type a, type b"):
        grown(axes, Grow(depth="0 1 2 1 2 0"), small, large)
    with pytest.raises(ValueError, match="takes the types of layers in their order"):
        LayerTypes("ab")


def test_an_axis_that_is_unrolled():
    """Heads that are modules, grown as those of one array are."""
    rows = {
        r"head(?P<heads>\d+)/v": "<x >v",
        r"head(?P<heads>\d+)/bias": ">v",
    }
    small, large = (
        {
            f"head{i}/{name}": shape
            for i in range(n)
            for name, shape in (("v", (6, 2)), ("bias", (2,)))
        }
        for n in (2, 12)
    )
    axes = Axes(rows, {"heads": Heads()})
    plan, one, other = grown(axes, Grow(width={"heads": width.Tile()}), small, large)
    for i in range(12):
        np.testing.assert_array_equal(other[f"head{i}/v"], one[f"head{i % 2}/v"])
    assert [x.shape for x in step_sizes(plan)] == [shape for _, shape in sorted(large.items())]
    with pytest.raises(ValueError, match="count from 0, each once"):
        axes.layout(shapes({path.replace("1", "3"): shape for path, shape in small.items()}))
    small["head1/v"] = (6, 3)
    with pytest.raises(ValueError, match="are entries of the axis 'heads'; they must be alike"):
        axes.layout(shapes(small))
