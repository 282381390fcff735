"""Maps, ways and the operators made of them: the algebra on small arrays, and functions kept on
small transformers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.models import transformer
from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, LayerNorm, Lookup, Residual, RMSNorm, Units
from lagjax.algebra.layout import flatten
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.pieces import GrownAxis
from lagjax.algebra.plan import Plan
from lagjax.algebra.provenance import Origin, only, tree
from lagjax.growth import pools, width
from lagjax.growth.depth import Scaled, Stack, words
from lagjax.growth.operator import Grow
from tests.growth import checks, models

KEY = jax.random.key(3)
WAYS = [
    width.Tile(),
    width.Tile(width.NoisySplit(0.5)),
    width.Tile(width.ScalarSplit(-0.5)),
    width.Tile(width.ScalarSplit(0.0)),
    width.Net2Net(seed=1),
    width.Net2Net(split=width.ScalarSplit(0.3, noise=0.1)),
    width.Isometric(width.NoisySplit()),
    width.ZeroPad(),
    width.RandomIn(),
    width.Paired(),
    width.Average(width.NoisySplit()),
    width.BlockDiagonal(),
]
ROWS = {
    "embed": "=vocab >embed",
    r"l/(?P<layers>\d+)/norm": "embed",
    r"l/(?P<layers>\d+)/up": "<embed >mlp",
    r"l/(?P<layers>\d+)/bias": ">mlp",
    r"l/(?P<layers>\d+)/down": ">embed+ <mlp",
}
KINDS = {
    "embed": Residual(RMSNorm(), pre=True),
    "mlp": Units("gelu"),
    "vocab": Lookup(),
}
AXES = Axes(ROWS, KINDS)


def net(layers, embed, mlp, vocab=5):
    of = {"embed": (vocab, embed)}
    for i in range(layers):
        of |= {
            f"l/{i}/norm": (embed,),
            f"l/{i}/up": (embed, mlp),
            f"l/{i}/bias": (mlp,),
        }
        of |= {f"l/{i}/down": (embed, mlp)}
    return checks.shapes(of)


def values(tree, seed=0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jax.device_put(draw.normal(size=x.shape).astype(x.dtype)), tree)


def grow(operator, params, large, axes=AXES):
    return operator(KEY, params, axes, checks.target(axes, large))


def compiled(operator, params, large):
    """Grown in one program: of many shapes that no other test has, it is faster."""
    return jax.jit(lambda params: grow(operator, params, large))(params)


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("old, new", [(2, 4), (3, 6)])
def test_what_reads_undoes_what_writes(way, old, new):
    """W' R = W: a reader of a grown axis, given R x, computes what the old one computed of x."""
    reads = Axes({"w": "<x >y"}, {"x": Channels()})
    writes = Axes({"w": "<y >x"}, {"x": Channels()})
    w, v = np.random.default_rng(0).normal(size=(2, old, 3))
    w, v = jnp.asarray(w), jnp.asarray(v.T)
    large = {"w": (new, 3)}
    read = grow(Grow(width={"x": way}), {"w": w}, checks.shapes(large), reads)["w"]
    written = grow(Grow(width={"x": way}), {"w": v}, checks.shapes({"w": (3, new)}), writes)["w"]
    np.testing.assert_allclose(written @ read, v @ w, rtol=1e-5, atol=1e-6)


@settings(max_examples=20)
@given(st.lists(st.integers(-1, 2), min_size=1, max_size=5), st.randoms())
def test_any_map_is_undone(more, random):
    """Random copies, shares, factors and new entries: contraction gives the small parameter
    back.
    """
    source = np.array([0, 1, 2, *more])
    counts = np.bincount(source[source >= 0], minlength=3)
    share = np.array([random.uniform(0.1, 1) for _ in source])
    scale = np.array([random.choice([0.5, 1.0, -2.0]) for _ in source])
    for j in range(3):
        share[source == j] /= share[source == j].sum()
    made = AxisMap(3, source, scale=scale * (source >= 0), share=share * (source >= 0), noise=1.0)
    assert made.counts.tolist() == [counts[j] if j >= 0 else 1 for j in source]
    read, written = (GrownAxis("x", 1, role, Channels(), made) for role in "<>")
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    value = read.grow(w)
    value = value + read.free(jax.random.normal(KEY, value.shape))
    np.testing.assert_allclose(read.contract(value), w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(written.contract(written.grow(w)), w, rtol=1e-5)


@settings(max_examples=3)
@given(st.sampled_from([(1, 2), (2, 2), (2, 3)]), st.sampled_from([2, 3]))
def test_composition_is_sequence(factors, size):
    """Growing twice is growing once by the product."""
    first, second = factors
    small = values(net(1, size, 2 * size))
    middle = net(1, first * size, 2 * size * first)
    large = net(1, first * second * size, 2 * size * first * second)
    tile = Grow(width=width.Tile())
    once = compiled(tile, small, large)
    twice = compiled(tile, compiled(tile, small, middle), large)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), once, twice)


@pytest.mark.parametrize("first", ["depth", "width"])
def test_depth_and_width_in_one_are_both_in_turn(first):
    depth, wide = (
        Grow(depth="0 0*0.5 1"),
        Grow(width={"embed": width.Isometric(), "mlp": width.Tile()}),
    )
    small, large = values(net(2, 2, 3)), net(3, 3, 6)
    middle = net(3, 2, 3) if first == "depth" else net(2, 3, 6)
    one, other = (depth, wide) if first == "depth" else (wide, depth)
    together = compiled(Grow(depth=depth.depth, width=wide.width), small, large)
    in_turn = compiled(other, compiled(one, small, middle), large)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, in_turn)


def test_noise_is_the_keys_and_nothing_else_is():
    small, large = values(net(1, 2, 3)), net(1, 4, 6)
    target = checks.target(AXES, large)
    for split, equal in ((width.EvenSplit(), True), (width.NoisySplit(), False)):
        operator = Grow(width=width.Tile(split))
        one, same, other = (operator(jax.random.key(k), small, AXES, target) for k in (0, 0, 1))
        jax.tree.map(np.testing.assert_array_equal, one, same)
        assert np.array_equal(one["l/0/down"], other["l/0/down"]) is equal


def test_where_each_entry_comes_from():
    small, large = values(net(2, 2, 3)), net(3, 3, 5)
    operator = Grow(depth="0 new* 1", width={"embed": width.ZeroPad(), "mlp": width.RandomIn()})
    plan = operator.plan(KEY, AXES.layout(small), AXES.layout(large))
    grown = compiled(operator, small, large)
    origins = tree(plan, grown)
    f, s, z, c = (int(x) for x in (Origin.FRESH, Origin.SCALED, Origin.ZEROED, Origin.COPIED))
    assert origins["l/0/up"].tolist() == [
        [c, c, c, f, f],
        [c, c, c, f, f],
        [f, f, f, f, f],
    ]
    assert origins["l/0/norm"].tolist() == [s, s, f]
    assert origins["l/1/up"].tolist() == [[f] * 5] * 3
    assert origins["l/1/down"].tolist() == [[z] * 5] * 3
    assert origins["l/2/down"].tolist() == [[c, c, c, z, z], [c, c, c, z, z], [z] * 5]
    for path, found in flatten(origins).items():
        # Fresh values are all -1 here, but for the factor of the norm's scale.
        fresh = flatten(grown)[path][found == f]
        np.testing.assert_allclose(
            fresh,
            -np.sqrt(2 / 3) if "0/norm" in path or "2/norm" in path else -1,
            rtol=1e-6,
        )
        np.testing.assert_array_equal(flatten(grown)[path][found == z], 0)
    tx = only(origins, Origin.FRESH, Origin.ZEROED)
    moved, _ = tx.update(jax.tree.map(jnp.ones_like, grown), tx.init(grown))
    np.testing.assert_array_equal(moved["l/0/norm"], [0, 0, 1])


def small_config(**choices):
    sizes = {
        "layers": 2,
        "width": 4,
        "kv": 2,
        "group": 1,
        "head_dim": 4,
        "mlp": 6,
        "window": 4,
        "vocab": 5,
    }
    return transformer.Config(
        **sizes
        | {
            "norm": "rms",
            "pre": True,
            "positions": "learned",
            "tied": True,
            "gated": False,
        }
        | choices
    )


@functools.cache
def logits_of(model):
    """Compiled once for each model."""
    return jax.jit(model.apply)


@functools.cache
def model_of(config):
    return transformer.model(config)


def outputs(operator, small, changes, params):
    """The small and the grown model's logits, in double precision."""
    asked = dataclasses.replace(small, **changes)
    one, other = model_of(small), model_of(asked)
    layouts = (
        one.axes.layout(params),
        other.axes.layout(jax.eval_shape(other.init, KEY)),
    )
    plan = operator.plan(KEY, *layouts)
    large = model_of(transformer.required(asked, plan.requires, small))
    batch = np.random.default_rng(0).integers(5, size=(2, 5), dtype=np.int32)
    # Its own initialisation would take longer to compile than all else.
    begun = models.filled(large)
    grown = jax.jit(lambda p: operator(KEY, p, one.axes, begun))(params)
    return plan, logits_of(one)(params, batch), logits_of(large)(grown, batch)


@pytest.mark.parametrize("name", ["isometric", "paired", "tile-noise", "random-pad"])
def test_pool_is_exact_where_it_says_so(name):
    with jax.enable_x64(True):
        small = small_config(dtype="float64")
        params = values(jax.eval_shape(transformer.model(small).init, KEY))
        operator = Grow(depth=Scaled(Stack()), width=pools.WIDTH[name])
        changes = {"layers": 3, "width": 8, "mlp": 12, "kv": 4, "head_dim": 8}
        plan, one, other = outputs(operator, small, changes, params)
        assert plan.exact_by_table is (name != "random-pad")
        assert (float(jnp.abs(one - other).max()) <= 1e-10) is plan.exact_by_table


def test_permuting_hidden_units_permutes_nothing_observable():
    with jax.enable_x64(True):
        small = small_config(dtype="float64")
        model = transformer.model(small)
        params = values(jax.eval_shape(model.init, KEY))
        order = np.random.default_rng(0).permutation(6)
        shuffled = jax.tree_util.tree_map(lambda x: x, params)
        mlp = shuffled["layers"]["mlp"]
        mlp["up"] = jax.tree.map(lambda x: x[..., order], mlp["up"])
        mlp["down"]["kernel"] = mlp["down"]["kernel"][:, order]
        operator = Grow(width={"mlp": width.Net2Net(split=width.NoisySplit())})
        _, one, other = outputs(operator, small, {"mlp": 9}, params)
        _, _, again = outputs(operator, small, {"mlp": 9}, shuffled)
        np.testing.assert_allclose(other, one, atol=1e-10)
        np.testing.assert_allclose(again, one, atol=1e-10)


def test_width_pool_names_what_can_grow():
    small, large = small_config(), small_config(width=6, mlp=9)
    one, other = transformer.model(small), transformer.model(large)
    shapes = jax.eval_shape(one.init, KEY)
    asked = []

    def required(requires):
        asked.append(requires)
        return transformer.model(transformer.required(large, requires, small))

    pool = pools.width(shapes, one.axes, other, required)
    assert [x.name for x in pool] == [
        "isometric",
        "zero-pad",
        "paired",
        "net2net",
        "aki",
        "random-pad",
    ]
    assert asked
    by_name = {x.name: x for x in pool}
    assert by_name["isometric"].target != other
    plain = pools.width(shapes, one.axes, other)
    assert {x.target for x in plain} == {other}
    with pytest.raises(
        ValueError, match="no expansion grows this target:\n  isometric: .*adds none"
    ):
        pools.width(shapes, one.axes, transformer.model(small_config(layers=3, width=6)))


LARGE = {"embed": 4, "mlp": 6}


@pytest.mark.parametrize(
    "operator, large, message",
    [
        (Grow(width=width.Tile()), (1, 3, 6), r"axis 'embed' of embed \(5, 3\): Tile.* 3 is no multiple of 2; give a multiple"),
        (Grow(width=width.BlockDiagonal()), (1, 4, 7), r"axis 'mlp' of l/0/bias \(7,\): .* 7 is no multiple of 3"),
        (Grow(width={"embed": width.ZeroPad()}), (1, 3, 6), r"axis 'mlp' has size 3 in the source's l/0/bias .* 6 in the target's .*say how, as in Grow\(width"),
        (Grow(width=width.ZeroPad()), (1, 1, 3), r"axis 'embed' has size 2 in the source and 1 in the target's embed \(5, 1\); growth adds"),
        (Grow(width={"widht": width.ZeroPad()}), (1, 3, 3), r"given for the axes \['widht'\].* it has \['embed', 'mlp', 'vocab'\]"),
        (Grow(width=width.ZeroPad()), (2, 3, 3), r"stack 'layers' has 2 layers, the source's 1; this operator adds none: .*as in Grow\(depth=Stack\(\)\)"),
    ],
)  # fmt: skip
def test_bad_targets(operator, large, message):
    with pytest.raises(ValueError, match=message):
        grow(operator, values(net(1, 2, 3)), net(*large))


def test_an_axis_grown_in_one_place_only():
    large = net(1, 2, 6) | {"l/0/bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    with pytest.raises(
        ValueError,
        match=r"l/0/down \(2, 6\): its axis <mlp has size 6, expected 3; mlp = 3 \(from l/0/bias",
    ):
        grow(Grow(width=width.Tile()), values(net(1, 2, 3)), large)


def test_a_group_that_does_not_divide():
    rows = {
        "q": "<embed >(kv group qk)",
        "k": "<embed >(kv <qk)",
        "o": "<(kv group v) >embed+",
        "v": "<embed >(kv v)",
    }
    small, large = (Axes(rows, sizes={"kv": kv, "qk": 2, "v": 2}) for kv in (2, 4))
    one = checks.shapes({"q": (3, 8), "k": (3, 4), "o": (8, 3), "v": (3, 4)})
    other = checks.shapes({"q": (3, 12), "k": (3, 8), "o": (12, 3), "v": (3, 8)})
    with pytest.raises(
        ValueError,
        match=r"o \(12, 3\): its axis <\(kv group v\) of size 12 cannot be made of \{'kv': 4",
    ):
        Grow(width=width.Tile())(KEY, values(one), small, checks.target(large, other))


def test_proofs_name_the_axis():
    def why(kinds, operator, large=(1, 4, 6), rows=ROWS):
        axes = Axes(rows, kinds)
        plan = operator.plan(KEY, axes.layout(net(1, 2, 3)), axes.layout(net(*large)))
        assert plan.exact_by_table is not plan.violations
        return [str(one) for one in plan.violations]

    unequal = why(KINDS, Grow(width=width.Net2Net()), (1, 3, 4))
    assert len(unequal) == 1
    assert unequal[0].startswith("'embed': entries are copied unequally often")
    layer = KINDS | {"embed": Residual(LayerNorm(), pre=True)}
    assert (
        "'embed': the mean that LayerNorm subtracts" in why(layer, Grow(width=width.ZeroPad()))[0]
    )
    tied = why(layer, Grow(width={"embed": width.Centred(), "mlp": width.Tile()}))
    assert tied == [
        (
            "'embed' in embed: the table is tied: as the head it would have to read what it does not "
            "write"
        )
    ]
    assert not why(layer, Grow(width={"embed": width.Average(), "mlp": width.Tile()}), (1, 5, 6))
    unknown = {axis: kind for axis, kind in KINDS.items() if axis != "mlp"}
    assert (
        "'mlp' in l/{layers}/bias: its kind is not known"
        in why(unknown, Grow(width=width.Tile()))[0]
    )
    sigmoid = KINDS | {"mlp": Units("sigmoid")}
    assert "sigmoid of 0 is not known to be 0" in why(sigmoid, Grow(width=width.ZeroPad()))[0]
    assert not why(sigmoid, Grow(width={"embed": width.ZeroPad(), "mlp": width.RandomIn()}))
    written = ROWS | {r"l/(?P<layers>\d+)/down": ">embed+ >mlp"}
    assert (
        "'mlp' in l/{layers}/bias: nothing reads along it"
        in why(KINDS, Grow(width=width.Tile()), rows=written)[0]
    )
    noisy = Grow(width={"embed": width.Tile(), "mlp": width.Noisy(width.Tile(), 0.01)})
    layout = AXES.layout(net(1, 2, 3)), AXES.layout(net(1, 4, 6))
    assert [one.small for one in noisy.plan(KEY, *layout).violations] == [True]


def test_what_a_plan_requires():
    def requires(way, size, norm=KINDS["embed"].norm):
        axes = Axes(ROWS, KINDS | {"embed": Residual(norm, pre=True)})
        plan = Grow(width={"embed": way}).plan(
            KEY, axes.layout(net(1, 2, 3)), axes.layout(net(1, size, 3))
        )
        return {one.what: one.value for one in plan.requires}

    assert requires(width.Tile(), 4) == {"logits": 0.5}
    assert requires(width.ZeroPad(), 4) == {"epsilon": pytest.approx(0.5)}
    assert requires(width.Isometric(), 3) == {"epsilon": pytest.approx(2 / 3)}
    assert requires(width.Average(), 5, LayerNorm()) == {
        "epsilon": pytest.approx(4 / 5),
        "logits": 0.5,
    }
    rope = Axes({"q": "<e >qk", "k": "<e <qk"}, {"qk": Dot("half")})
    one, other = (checks.shapes({"q": (3, n), "k": (3, n)}) for n in (4, 6))
    plan = Grow(width={"qk": width.ZeroPad()}).plan(KEY, rope.layout(one), rope.layout(other))
    assert [(x.what, x.value) for x in plan.requires] == [("frequencies", (0, 1, -1))]
    assert plan.maps["qk"].source.tolist() == [0, 1, -1, 2, 3, -1]
    between = Axes({"q": "<e >qk", "k": "<e <qk"}, {"qk": Dot("interleaved")})
    plan = Grow(width={"qk": width.Tile()}).plan(
        KEY,
        between.layout(one),
        between.layout(checks.shapes({"q": (3, 8), "k": (3, 8)})),
    )
    assert plan.maps["qk"].source.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert plan.exact_by_table


def test_a_plan_with_noise_needs_a_key():
    layouts = AXES.layout(net(1, 2, 3)), AXES.layout(net(1, 2, 6))
    maps = {"mlp": width.Tile(width.NoisySplit()).map(3, 6)}
    plan = Plan(*layouts, words("0", *layouts), maps)
    with pytest.raises(ValueError, match="'mlp' draws noise, but its plan has no key"):
        plan.params(values(net(1, 2, 3)), values(net(1, 2, 6)))
