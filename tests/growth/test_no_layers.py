"""A source that has no layers: what its table may leave out, what can be added, and whole runs."""

import pathlib

import chex
import jax
import numpy as np
import optax
import pytest

import lagjax
from lagjax import state
from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import flatten
from lagjax.growth import pools
from lagjax.growth.depth import Fresh, Lidas, Midas, Scaled, Stack
from lagjax.growth.operator import Grow, Same
from tests import quick, toy
from tests.growth import checks, models

no_page, groups_kept = quick.no_page, quick.groups_kept

KEY = jax.random.key(1)
BATCH = models.BATCH
# As arrays of no layers, and with no arrays.
FAMILIES = {
    "stacked": (toy.model(0), toy.model(3), toy.VALID[0]),
    "unrolled": (models.bare(4, 6, 0), models.bare(4, 6, 3), BATCH),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def planned(operator, small, large):
    return operator.plan(KEY, small.layout(), large.layout())


@each_family
def test_zeroed_layers_keep_the_function_and_fresh_ones_do_not(family):
    small, large, batch = FAMILIES[family]
    params = models.drawn(small)
    before = small.loss(params, batch, None)[0]
    for strategy, exact in ((Fresh(zero=True), True), (Fresh(), False), (Scaled(Fresh()), True)):
        operator = Grow(depth=strategy)
        grown = operator(KEY, params, small.axes, large)
        chex.assert_trees_all_equal_shapes_and_dtypes(grown, large.shapes())
        after = large.loss(grown, batch, None)[0]
        assert (float(before) == float(after)) is exact
        inner, outer = ("layers/up", "embed") if family == "stacked" else ("l/2/up", "embed")
        # The target's own, but for outputs that are zeroed.
        assert np.array_equal(flatten(grown)[inner], flatten(large.init(KEY))[inner])
        assert np.array_equal(flatten(grown)[outer], flatten(params)[outer])
    chex.assert_trees_all_equal(Same()(KEY, params, small.axes, small), params)


def test_zeroed_layers_are_proved_and_wider_ones_too():
    small, large, _ = FAMILIES["unrolled"]
    assert planned(Grow(depth=Fresh(zero=True)), small, large).exact_by_table
    assert not planned(Grow(depth=Fresh()), small, large).exact_by_table
    wider = models.bare(6, 8, 3, epsilon=1e-5 * 4 / 6)
    operator = Grow(depth=Fresh(zero=True), width=pools.WIDTH["zero-pad"])
    found = lagjax.certify(operator, small, wider, models.drawn(small), [BATCH], steps=1)
    assert found.kind == "exact given" and found.max_diff["float32"] < 1e-5


@each_family
def test_moments_of_new_layers_start_at_zero(family):
    small, large, _ = FAMILIES[family]
    params, tx = models.drawn(small), optax.adam(1e-3)
    old = jax.tree.map(lambda x: np.full_like(x, 3), tx.init(params))
    for operator in (Grow(depth=Fresh()), Grow(depth=Fresh(zero=True))):
        grown = operator(KEY, params, small.axes, large)
        plan = planned(operator, small, large)
        made = state.carry(plan, old, params, grown, tx, "continue")
        chex.assert_trees_all_equal_shapes_and_dtypes(made, tx.init(grown))
        for path, x in flatten(made[0].nu).items():
            assert (np.asarray(x) == (3 if path in ("embed", "norm") else 0)).all(), path
        assert made[0].count == 3


@each_family
def test_what_cannot_be_copied(family):
    small, large, _ = FAMILIES[family]
    stack = "l" if family == "unrolled" else "layers"
    stack = next(iter(small.layout().stacks)) or stack
    for strategy in (Stack(), Scaled(Stack()), Midas(), Lidas()):
        with pytest.raises(ValueError, match=rf"copies layers, and the source's stack '{stack}'"):
            planned(Grow(depth=strategy), small, large)
    with pytest.raises(ValueError, match="takes layer 0, but the source's stack"):
        planned(Grow(depth="new 0 new"), small, large)
    with pytest.raises(ValueError, match=r"has 3 layers, the source's 0; this operator adds none"):
        planned(Grow(), small, large)
    with pytest.raises(ValueError, match=r"copies layers"):
        lagjax.fit_ligo(KEY, models.drawn(small), small.axes, large, [BATCH])


def test_rows_that_match_nothing_in_either():
    rows = {"w": ">x", r"l/(?P<layers>\d+)/a": ">x", r"d/(?P<more>\d+)/b": ">x"}
    axes = Axes(rows)
    small, large = ({"w": (2,)}, {"w": (2,), "l/0/a": (2,)})
    layouts = [axes.layout(checks.shapes(one)) for one in (small, large)]
    assert layouts[0].stacks == {"layers": 0, "more": 0}
    with pytest.raises(ValueError, match=r"rows of the stack 'more' match no parameter in the so"):
        Grow(depth=Fresh()).plan(KEY, *layouts)
    # One row of a stack whose others match is a mistake, and so is one of no stack.
    for row in (r"l/(?P<layers>\d+)/c", "v"):
        with pytest.raises(ValueError, match="matches no parameter"):
            Axes(rows | {row: ">x"}).layout(checks.shapes(large))
    # What has layers without a row is found before.
    with pytest.raises(ValueError, match="no row of the axes table matches"):
        axes.layout(checks.shapes({"w": (2,), "k/0/a": (2,)}))


def test_state_of_layers_that_are_not_there():
    rows = {"w": ">x", r"l/(?P<layers>\d+)/a": ">x", r"stats/l/(?P<layers>\d+)/m": "~x"}
    small, large = {"w": (2,)}, {"w": (2,), "l/0/a": (2,)}
    axes, shapes = Axes(rows), [checks.shapes(one) for one in (small, large)]
    plan = Grow(depth=Fresh()).plan(KEY, *(axes.layout(one) for one in shapes))
    stats = {"l": {"0": {"m": np.full(2, 5.0)}}}
    made = state.collections(plan, {"stats": {}}, {"stats": stats}, axes, axes)
    assert (np.asarray(made["stats"]["l"]["0"]["m"]) == 5).all()


def pool(small, large, **more):
    return pools.depth(small.shapes(), small.axes, large, **more)


def test_the_pools_of_none_and_of_one():
    for small, large, _ in FAMILIES.values():
        words = {
            one.name: str(*planned(one.operator, small, large).words.values())
            for one in pool(small, large)
        }
        expected = {"zeroed": "new* new* new*", "half": "new*0.5 new*0.5 new*0.5"}
        assert words == expected | {"random": "new new new"}
    one = models.bare(4, 6, 1)
    words = [str(*planned(x.operator, one, large).words.values()) for x in pool(one, large)]
    assert {"0 0* 0*", "0 0 0", "0 new* new*", "0 new new"} <= set(words)


def batch(seed, step):
    return toy.batch(seed, step) % models.VOCAB


@pytest.mark.parametrize("family, layers", [("stacked", 0), ("unrolled", 0), ("unrolled", 1)])
def test_a_run_from_start_to_end(family, layers, tmp_path: pathlib.Path):
    """The source is trained, grown in both ways, compared with not growing, and replayed."""
    small, large, _ = FAMILIES[family]
    small = small if layers == 0 else models.bare(4, 6, layers)
    data = (toy.batch, toy.VALID) if family == "stacked" else (batch, [batch(1000, 0)])
    tx, quiet = optax.adam(1e-2), {"progress": toy.Told()}
    source = lagjax.train(small, tx, *data, 4, tmp_path, **quiet)
    assert source.opt_state is not None
    task = lagjax.Task(small, source, tx, *data, 4)
    chosen = pool(small, large, continued=1)[-3:]
    assert chosen[-1].name.endswith(", continued")
    found = lagjax.run(task, chosen, lagjax.FixedLag(2), tmp_path, baselines=True, **quiet)
    trained = lagjax.load(tmp_path, large, tx=tx)
    chex.assert_trees_all_equal_shapes_and_dtypes(trained.params, large.shapes())
    assert set(found.ranking) == {one.name for one in chosen}
    if layers == 0:
        # The start is evaluated on the first shards only.
        begun = toy.curve(tmp_path, "zeroed, continued")[0]["valid_loss_shards"]
        last = toy.curve(tmp_path, "source")[-1]["valid_loss_shards"][: len(begun)]
        np.testing.assert_allclose(begun, last, rtol=1e-5)
    anew = next(x for x in chosen if x.transfer)
    without = task._replace(source=lagjax.Trained(source.params))
    with pytest.raises(ValueError, match=rf"candidate '{anew.name}'.*need the small model's opt"):
        lagjax.run(without, chosen, lagjax.FixedLag(2), tmp_path / "none", **quiet)
