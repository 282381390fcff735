"""The optimizer state of a grown model, for the transformations of optax."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import flatten
from lagjax.algebra.provenance import step_sizes, unseen
from lagjax.growth import width
from lagjax.growth.operator import Grow
from lagjax.state import carry, measure, scale_by_growth
from lagjax.store import directory
from tests import quick, toy
from tests.growth import checks, models
from tests.growth.models import FAMILIES
from tests.growth.test_conformance import KEY, planned

no_page, groups_kept = quick.no_page, quick.groups_kept

SCHEDULE = optax.linear_schedule(1.0, 0.0, 10)
OUTPUTS = r"attn/out|mlp/down"
WORD = "0*0.5 new* 1* 1"
# Where layers matter only in that there are more of them.
SHORT = "0 1*0.5 new*"


def by_matrix(params):
    return jax.tree.map(lambda x: "matrix" if x.ndim > 1 else "vector", params)


TRANSFORMATIONS = {
    "adam": optax.adam(1e-3),
    "adamw with a schedule": optax.adamw(SCHEDULE),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "plain": optax.sgd(0.1),
    "lion": optax.lion(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(SCHEDULE)),
    "many small batches": optax.MultiSteps(optax.adam(SCHEDULE), 2),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=SCHEDULE),
    "partitioned": optax.partition({"matrix": optax.adam(1e-3), "vector": optax.sgd(0.1, momentum=0.9)}, by_matrix),
    "masked": optax.masked(optax.adam(1e-3), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
    "amsgrad": optax.amsgrad(1e-3),
    "rmsprop": optax.rmsprop(1e-3, momentum=0.9),
    "adagrad": optax.adagrad(1e-3, initial_accumulator_value=0.25),
    "half precision": optax.adam(1e-3, mu_dtype=jnp.bfloat16),
}  # fmt: skip


@functools.cache
def grown_pair(family, word):
    """A small model and the one that it grows into, with the parameters of both and the plan."""
    small, large = FAMILIES[family](2), models.filled(FAMILIES[family](len(word.split())))
    params, operator = models.drawn(small), Grow(depth=word)
    # The state goes by the plan: of the parameters only shapes count, and none need be grown.
    return small, large, params, planned(operator, small, large), models.drawn(large, seed=1)


class Grown:
    """A small model's state, its counters at `count`, and the model that it grows into."""

    def __init__(self, family, tx, word=WORD, **counters):
        self.small, self.large, self.params, self.plan, self.grown = grown_pair(family, word)
        self.tx = tx
        counts = {name: jnp.asarray(n, jnp.int32) for name, n in counters.items()}
        self.state = jax.tree_util.tree_map_with_path(
            lambda keys, value: counts.get(getattr(keys[-1], "name", None), value),
            jax.jit(tx.init)(self.params),
        )

    @property
    def fresh(self):
        return jax.jit(self.tx.init)(self.grown)

    def carry(self, moments="grow", schedule="continue", state=None):
        plan = self.plan if moments == "grow" else None
        state = self.state if state is None else state
        # One small program, not one for every operation on every shape.
        return jax.jit(lambda *given: carry(plan, *given, self.tx, schedule))(
            state, self.params, self.grown
        )

    def after(self, state):
        """The state after a step."""
        return jax.jit(self.tx.update)(self.grown, state, self.grown)[1]


@pytest.mark.parametrize(
    "name, family",
    [*((name, "scanned") for name in TRANSFORMATIONS), ("injected", "nnx"), ("partitioned", "nnx")],
)
def test_fits(name, family):
    one = Grown(family, tx := TRANSFORMATIONS[name], SHORT)
    fresh = jax.eval_shape(tx.init, one.grown)
    for choice in (("reset", "restart"), ("grow", "continue")):
        carried = jax.eval_shape(lambda choice=choice: one.carry(*choice))
        chex.assert_trees_all_equal_shapes_and_dtypes(carried, fresh)
    # The next step takes it.
    jax.eval_shape(tx.update, one.grown, carried, one.grown)


@pytest.mark.parametrize(
    "tx, field, power, family",
    [
        *(("adam", *field, family) for family in FAMILIES for field in (("mu", 1), ("nu", 2))),
        ("momentum", "trace", 1, "unrolled"),
        ("lion", "mu", 1, "scanned"),
        ("many small batches", "acc_grads", 1, "scanned"),
        ("amsgrad", "nu_max", 2, "scanned"),
        ("rmsprop", "nu", 2, "scanned"),
        ("adagrad", "sum_of_squares", 2, "scanned"),
    ],
)
def test_moments_go_with_their_layer(tx, field, power, family):
    one = Grown(family, TRANSFORMATIONS[tx])
    small, large = (jax.eval_shape(lambda x=x: x) for x in (one.params, one.grown))
    sown = checks.planted(one.small.axes, small, lambda leaf, stack, index: index + 1)
    fresh = 0.25 if tx == "adagrad" else 0.0
    inner = [0.5**power, None, 0, 1]  # by what WORD scales what is inside a layer

    def expected(leaf, stack, index):
        source = one.plan.words[stack].layers[index].source
        if source is None:
            return fresh
        # What it starts with is not of the gradient.
        grown = (source + 1 - fresh) * (1 if re.search(OUTPUTS, leaf.path) else inner[index])
        return fresh + grown

    carried = one.carry(state=optax.tree.set(one.state, **{field: sown}))
    reaped = checks.planted(one.large.axes, large, expected)
    chex.assert_trees_all_close(optax.tree.get(carried, field), reaped, rtol=1e-6)


def test_rule_is_the_gradients():
    """Outputs scaled by s send s times the gradient inside, and get the same themselves."""
    small, large = models.FAMILIES["unrolled"](2), models.FAMILIES["unrolled"](4)
    params, begun = models.drawn(small), models.filled(large)

    def added(word):
        grown = jax.jit(lambda given: Grow(depth=word)(KEY, given, small.axes, begun))(params)
        return jax.device_get(flatten(models.gradient(large.loss)(grown)["layers_1"]))

    zeroed, once, twice = (added(f"0 0*{scale} 1 1") for scale in ("0", "0.0005", "0.001"))
    for path in zeroed:
        output = bool(re.search(OUTPUTS, path))
        assert bool(np.any(zeroed[path] != 0)) is output, path
        expected = once[path] * (1 if output else 2)
        tolerance = 0.01 * float(np.abs(expected).max()) + 1e-8
        np.testing.assert_allclose(twice[path], expected, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("moments", ["grow", "reset"])
@pytest.mark.parametrize("schedule", ["continue", "restart"])
@pytest.mark.parametrize("family", ["scanned", "unrolled"])
@pytest.mark.parametrize("name", ["adamw with a schedule", "injected"])
def test_counts_go_with_the_moments_and_schedules_by_choice(name, family, schedule, moments):
    one = Grown(family, TRANSFORMATIONS[name], SHORT, count=3)
    carried = one.carry(moments, schedule)
    step = 3 if schedule == "continue" else 0
    adams = [x for x in _states(carried) if isinstance(x, optax.ScaleByAdamState)]
    assert [int(adam.count) for adam in adams] == [3 if moments == "grow" else 0]
    if name == "injected":
        assert int(carried.count) == step
        after = one.after(carried)
        np.testing.assert_allclose(after.hyperparams["learning_rate"], SCHEDULE(step))
    else:
        schedules = [x for x in _states(carried) if isinstance(x, optax.ScaleByScheduleState)]
        assert [int(state.count) for state in schedules] == [step]


@pytest.mark.parametrize("name", ["adamw with a schedule", "injected"])
def test_schedules_are_rewound_to_a_step(name):
    one = Grown("unrolled", TRANSFORMATIONS[name], SHORT, count=7)
    carried = one.carry(schedule=2)
    after = one.after(carried)
    if name == "injected":
        np.testing.assert_allclose(after.hyperparams["learning_rate"], SCHEDULE(2))
        adam = carried.inner_state[0]
    else:
        (schedule,) = (x for x in _states(carried) if isinstance(x, optax.ScaleByScheduleState))
        assert int(schedule.count) == 2
        adam = carried[0]
    # The statistics keep their own count.
    assert int(adam.count) == 7


def _states(state):
    def known(node):
        return isinstance(node, optax.ScaleByAdamState | optax.ScaleByScheduleState)

    return jax.tree.leaves(state, is_leaf=known)


def test_reset_is_the_fresh_state():
    one = Grown("unrolled", TRANSFORMATIONS["adamw with a schedule"], SHORT, count=2)
    chex.assert_trees_all_equal(one.carry("reset", "restart"), one.fresh)


def test_small_batches_go_on_where_they_were():
    one = Grown("scanned", TRANSFORMATIONS["many small batches"], mini_step=1, gradient_step=4)
    carried = one.carry()
    assert int(carried.mini_step) == int(one.state.mini_step) == 1
    assert int(carried.gradient_step) == int(one.state.gradient_step) == 4


def test_a_state_without_a_rule_is_named():
    one = Grown("scanned", optax.adafactor(1e-3, min_dim_size_to_factor=3))
    with pytest.raises(
        ValueError,
        match=r"no rule grows the optimizer state '.*v_row.*reset the moments",
    ):
        one.carry()
    chex.assert_trees_all_equal(one.carry("reset", "restart"), one.fresh)


def test_a_state_of_another_transformation():
    one = Grown("scanned", optax.adam(1e-3))
    for other in (
        optax.sgd(0.1, momentum=0.9).init(one.params),
        one.fresh.__class__(()),
    ):
        with pytest.raises(ValueError, match="not made by tx.init for the source's parameters"):
            one.carry(state=other)
    with pytest.raises(ValueError, match="schedule is 'rewind'; expected 'restart', 'continue'"):
        one.carry(schedule="rewind")


BATCHES = [
    np.random.default_rng(seed).integers(7, size=(8, 6), dtype=np.int32) for seed in range(12)
]


@functools.cache
def training_step(loss, tx):
    """Compiled once for all that a model is trained."""

    @jax.jit
    def step(params, state, batch):
        def mean(params):
            total, count = loss(params, batch, None)
            return total / count

        value, gradient = jax.value_and_grad(mean)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


class Wide:
    """A small model trained for 6 steps in double precision, and the twice as wide one that it
    grows into.
    """

    def __init__(self, tx, operator=None, small=(4, 6), large=(8, 12), logits=0.5):
        self.tx, self.operator = tx, operator or Grow(width=width.Tile())
        self.small = models.bare(*small, dtype="float64")
        self.large = models.bare(*large, logits=logits, dtype="float64")
        start = models.drawn(self.small)
        self.params, self.state, _ = self.train(
            self.small, start, jax.jit(tx.init)(start), BATCHES[:6]
        )
        layouts = (m.axes.layout(jax.eval_shape(m.init, KEY)) for m in (self.small, self.large))
        self.plan = self.operator.plan(KEY, *layouts)
        self.grown = jax.jit(lambda x: self.operator(KEY, x, self.small.axes, self.large))(
            self.params
        )

    def train(self, model, params, state, batches):
        step = training_step(model.loss, self.tx)
        losses = []
        for batch in batches:
            params, state, loss = step(params, state, batch)
            losses.append(float(loss))
        return params, state, np.array(losses)

    def follows(self, moments="grow"):
        """How far the losses of 6 steps of the grown model are from those of the small one that
        goes on.
        """
        plan = self.plan if moments == "grow" else None
        state = jax.jit(lambda *given: carry(plan, *given, self.tx, "continue"))(
            self.state, self.params, self.grown
        )
        _, _, small = self.train(self.small, self.params, self.state, BATCHES[6:])
        _, _, large = self.train(self.large, self.grown, state, BATCHES[6:])
        assert abs(small[0] - large[0]) < 1e-10
        return np.abs(small - large).max()


def test_grown_run_follows_the_small_models_training_by_the_rule_alone():
    """Symmetric copies, grown statistics and step sizes: the large model computes what the small
    one would have.
    """
    with jax.enable_x64(True):

        def adam(**options):
            return optax.chain(
                optax.scale_by_adam(eps=1e-14),
                scale_by_growth(**options),
                optax.scale(-0.02),
            )

        ruled = Wide(adam())
        assert ruled.follows() < 1e-6
        assert ruled.follows("reset") > 1e-2
        assert Wide(adam(follow=False)).follows() > 1e-3


def test_momentum_follows_by_its_own_step_sizes():
    with jax.enable_x64(True):
        one = Wide(optax.sgd(0.1, momentum=0.9))
        assert one.follows() > 1e-3
        sizes = jax.tree.unflatten(
            jax.tree.structure(one.grown), step_sizes(one.plan, normalised=False)
        )
        plain = one.tx

        def update(gradient, state, params=None):
            updates, state = plain.update(gradient, state, params)
            like = len(jax.tree.leaves(updates)[0]) == 7 and updates["embed"].shape == (
                7,
                8,
            )
            return (jax.tree.map(jnp.multiply, updates, sizes) if like else updates), state

        one.tx = optax.GradientTransformation(plain.init, update)
        assert one.follows() < 1e-10


def test_grown_statistics_are_those_that_are_measured():
    """At a learning rate of zero, statistics of the grown model are the grown ones of the small
    model.
    """
    with jax.enable_x64(True):
        tx = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(SCHEDULE))
        one = Wide(tx)
        small, large = (
            jax.jit(
                lambda params, model=model: measure(
                    model, params, tx.init(params), BATCHES[:4], tx, KEY
                )
            )(params)
            for model, params in ((one.small, one.params), (one.large, one.grown))
        )
        grown = jax.jit(lambda *given: carry(one.plan, *given, tx, "restart"))(
            small, one.params, one.grown
        )
        chex.assert_trees_all_close(grown, large, rtol=1e-5, atol=1e-12)
        # Nothing was applied, and the schedule has not moved.
        assert int(large[0].count) == 4
        assert int(large[1].count) == 0


def test_new_entries_count_their_own_steps():
    """Under an old count the first steps of new entries are up to 6.6 times too long; corrected
    they are Adam's own.
    """
    old, new = ({"w": np.ones((n, 2), np.float32)} for n in (2, 3))
    axes = Axes({"w": ">x <y"})
    plan = Grow(width={"x": width.RandomIn()}).plan(KEY, axes.layout(old), axes.layout(new))
    gradient = {"w": np.full((3, 2), 0.1, np.float32)}

    def steps(tx):
        @jax.jit
        def found():
            state = optax.tree.set(tx.init(old), count=jnp.int32(5000))
            if len(state) == 2:
                state = (state[0], state[1]._replace(steps=jnp.int32(5000)))
            state = carry(plan, state, old, new, tx, "continue")

            def step(state, _):
                updates, state = tx.update(gradient, state, new)
                return state, updates["w"][2, 0]

            return jax.lax.scan(step, state, length=13)[1]

        return np.asarray(found())

    plain = steps(optax.scale_by_adam())
    assert plain[0] == pytest.approx(3.16, abs=0.01)
    assert plain.max() == pytest.approx(6.55, abs=0.01)
    np.testing.assert_allclose(
        steps(optax.chain(optax.scale_by_adam(), scale_by_growth())), 1, rtol=1e-4
    )
    warm = steps(optax.chain(optax.scale_by_adam(), scale_by_growth(warmup=10)))
    np.testing.assert_allclose(warm[[0, 4, 9, 12]], [0.1, 0.5, 1, 1], rtol=1e-4)
    assert [x.tolist() for x in unseen(plan)] == [[[False] * 2, [False] * 2, [True] * 2]]


def test_zeroed_copies_have_seen_nothing_inside():
    small, large = (FAMILIES["scanned"](n) for n in (2, 3))
    plan = planned(Grow(depth="0 0* 1"), small, large)
    for leaf, new in zip(plan.target.leaves, unseen(plan)):
        layers = [bool(x.all()) for x in np.moveaxis(new, 0, 0)] if leaf.stacks else []
        inner = not re.search(OUTPUTS, leaf.path)
        assert layers == ([False, inner, False] if leaf.stacks else []), leaf.path


def test_a_run_measures_statistics_and_says_what_it_cost(tmp_path):
    def run(name, **how):
        task, pool = toy.task(**how), toy.pool("stack", "random-top")
        found = lagjax.run(
            task,
            pool,
            lagjax.FixedLag(8),
            tmp_path / name,
            progress=toy.Told(),
            candidates_at_once=1,
            # Evaluated after the first step.
            compare="all",
        )
        (first,) = (
            x
            for x in directory.read(tmp_path / name).curves
            if (x["candidate"], x["step"]) == ("stack", 1)
        )
        return found.ledger, first

    plain, reset = run("reset")
    ledger, measured = run("measured", transfer=lagjax.Transfer("measure"))
    assert plain.fit_flops == 0
    # Eight steps' worth for each of two candidates.
    assert ledger.fit_flops == 2 * 8 * measured["flops"]
    assert measured["lr"] == reset["lr"]
    assert measured["update_norm"] < reset["update_norm"]
