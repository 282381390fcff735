"""What every growth operator keeps to, for every family of models: a row of `pools.py` is all that
a new one needs.
"""

import copy
import functools

import chex
import jax
import numpy as np
import optax
import pytest

from lagjax import state
from lagjax.algebra.words import Layer, Word
from lagjax.growth import pools
from lagjax.growth.operator import Grow
from tests.growth import models
from tests.growth.models import BATCH, FAMILIES

KEY = jax.random.key(1)
# One for all: how its state follows the gradient is read once for each family.
TX = optax.adamw(optax.constant_schedule(1e-3))
PAIRS = [(2, 4), (3, 5), (1, 3), (6, 7)]
CASES = [("scanned", pair) for pair in PAIRS] + [("unrolled", (2, 4)), ("nnx", (2, 4))]
STRATEGIES = pools.DEPTH | pools.CONTROLS
WORDS = ["0 0* 1 1*", "0 1 new new", "new 1*0.25 0 new*0.5"]

OPERATORS = {name: Grow(depth=how) for name, how in STRATEGIES.items()} | {
    word: Grow(depth=word) for word in WORDS
}
each_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
each_strategy = pytest.mark.parametrize("how", STRATEGIES.values(), ids=STRATEGIES)
each_case = pytest.mark.parametrize("family, pair", CASES, ids=str)
each_family = pytest.mark.parametrize("family", FAMILIES)
# What operators have in common goes by words: the other families see those of each kind.
each = pytest.mark.parametrize(
    ("operator", "family"),
    [(operator, "scanned") for operator in OPERATORS.values()]
    + [(OPERATORS[word], family) for word in WORDS for family in FAMILIES if family != "scanned"],
    ids=str,
)


@functools.cache
def models_of(family, pair, **kwargs):
    small, large = (FAMILIES[family](layers, **kwargs) for layers in pair)
    return small, models.drawn(small), models.filled(large)


@functools.cache
def planned(operator, small, large):
    shapes = [jax.eval_shape(model.init, KEY) for model in (small, large)]
    return operator.plan(KEY, small.axes.layout(shapes[0]), large.axes.layout(shapes[1]))


@each_case
@each_strategy
def test_gives_the_targets_shapes(how, family, pair):
    small, large = (FAMILIES[family](layers) for layers in pair)
    shapes, expected = (jax.eval_shape(model.init, KEY) for model in (small, large))
    grown = jax.eval_shape(lambda params: Grow(depth=how)(KEY, params, small.axes, large), shapes)
    chex.assert_trees_all_equal_shapes_and_dtypes(grown, expected)


@each_family
def test_fresh_layers_are_the_targets(family):
    small, large = FAMILIES[family](1), FAMILIES[family](2)
    params = models.drawn(small)
    grown = Grow(depth="new 0")(KEY, params, small.axes, large)
    chex.assert_trees_all_equal_shapes_and_dtypes(grown, jax.eval_shape(large.init, KEY))

    def layer(index, params, axes):
        taken = Grow(depth=f"{index} {index}")(KEY, params, axes, models.filled(large))
        return {k: v for k, v in dict(taken).items() if k.startswith("layers")}

    fresh, copied = (layer(index, grown, large.axes) for index in (0, 1))
    chex.assert_trees_all_equal(fresh, layer(0, large.init(KEY), large.axes))
    chex.assert_trees_all_equal(copied, layer(0, params, small.axes))


@each
def test_jit_gives_the_same_and_compiles_once(operator, family):
    small, params, large = models_of(family, (2, 4))
    traces = []

    def grow(operator, key, params):
        traces.append(operator)
        return operator(key, params, small.axes, large)

    compiled = jax.jit(grow, static_argnums=0)
    expected = operator(KEY, params, small.axes, large)
    chex.assert_trees_all_equal(compiled(operator, KEY, params), expected)
    anew = copy.deepcopy(operator)
    assert anew is not operator
    chex.assert_trees_all_equal(compiled(anew, KEY, params), expected)
    assert len(traces) == 1


@each
def test_vmap_gives_the_same_and_only_fresh_layers_need_the_key(operator, family):
    small, params, large = models_of(family, (2, 4))
    keys = jax.random.split(KEY, 2)
    one, other = (operator(key, params, small.axes, large) for key in keys)
    many = jax.vmap(lambda key: operator(key, params, small.axes, large))(keys)
    chex.assert_trees_all_equal(many, jax.tree.map(lambda *x: np.stack(x), one, other))
    chex.assert_trees_all_equal(one, operator(keys[0], params, small.axes, large))
    fresh = "new" in str(planned(operator, small, large).words["layers"])
    equal = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))
    assert equal is not fresh


@each
def test_gradient_is_finite_and_reaches_the_source(operator, family):
    small, params, large = models_of(family, (2, 4))

    grown, pull = jax.vjp(lambda params: operator(KEY, params, small.axes, large), params)
    (gradient,) = pull(models.gradient(large.loss)(grown))
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)
    chex.assert_tree_all_finite(gradient)
    assert optax.tree.norm(gradient) > 0


@each
def test_optimizer_state_fits(operator, family):
    small, params, large = models_of(family, (2, 4))

    def carry(params):
        grown = operator(KEY, params, small.axes, large)
        plan = planned(operator, small, large)
        return state.carry(plan, TX.init(params), params, grown, TX, "continue")

    expected = jax.eval_shape(lambda: TX.init(large.init(KEY)))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(carry, params), expected)


@each_family
@pytest.mark.parametrize("how", pools.DEPTH.values(), ids=pools.DEPTH)
def test_equal_size_is_the_identity(how, family):
    small, params, large = models_of(family, (4, 4))
    plan = planned(Grow(depth=how), small, large)
    assert plan.words == {"layers": Word(tuple(Layer(index) for index in range(4)))}
    assert plan.exact_by_table
    chex.assert_trees_all_equal(Grow(depth=how)(KEY, params, small.axes, large), params)


@each_operator
def test_smaller_target_raises(operator):
    small, params, large = models_of("scanned", (4, 2))
    with pytest.raises(ValueError, match="'layers' has 2 layers, fewer than the source's 4"):
        operator(KEY, params, small.axes, large)


def losses(family, pair, operator, **kwargs):
    """The loss before and after growing, in double precision, and whether the operator says that
    they are equal.
    """
    with jax.enable_x64(True):
        small, params, large = models_of(family, pair, dtype="float64", **kwargs)
        grown = operator(KEY, params, small.axes, large)
        before, after = (
            nats / count
            for nats, count in (
                small.loss(params, BATCH, None),
                large.loss(grown, BATCH, None),
            )
        )
        assert before.dtype == after.dtype == np.float64
        return float(before), float(after), planned(operator, small, large).exact_by_table


@each_case
@each_strategy
def test_says_exact_where_it_is(how, family, pair):
    before, after, exact = losses(family, pair, Grow(depth=how))
    assert exact == (abs(after - before) <= 1e-10 * before)


@pytest.mark.parametrize("word", WORDS)
def test_words_say_exact_where_they_are(word):
    before, after, exact = losses("scanned", (2, 4), Grow(depth=word))
    assert exact == (abs(after - before) <= 1e-10 * before)


@each_strategy
def test_nothing_is_exact_after_the_norm(how):
    before, after, exact = losses("scanned", (2, 4), Grow(depth=how), pre=False)
    assert not exact
    assert abs(after - before) > 1e-6


@pytest.mark.parametrize(
    "families",
    [
        ("scanned", "unrolled"),
        ("unrolled", "scanned"),
        ("nnx", "scanned"),
        ("unrolled", "nnx"),
    ],
    ids=str,
)
def test_one_codebase_grows_into_another(families):
    """Rows of the same name pair: the same operator then gives the same function in every
    codebase.
    """
    first, _second = families
    small, params, _ = models_of(first, (2, 2))
    here, there = (models.filled(FAMILIES[family](4)) for family in families)
    operator = Grow(depth="0 1*0.5 1* 0")
    loss, _ = here.loss(operator(KEY, params, small.axes, here), BATCH, None)
    other, _ = there.loss(operator(KEY, params, small.axes, there), BATCH, None)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
