"""How the parts of an optimizer's state follow the gradient: read from what it does, or given."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Units
from lagjax.algebra.layout import path_of
from lagjax.algebra.provenance import Origin, only
from lagjax.growth import width
from lagjax.optimizer.reading import read
from lagjax.state import carry, scale_by_growth
from tests.cases.growth.growing import drawn, grow

AXES = Axes({"up": "<inp >mlp", "b1": ">mlp", "down": "<mlp >out"}, {"mlp": Units("tanh")})
# Of sizes that none is cut down to.
SHAPES = {"up": (5, 4), "b1": (4,), "down": (4, 3)}


def init(size):
    shapes = {"up": (5, size), "b1": (size,), "down": (size, 3)}
    return lambda key: {name: jnp.ones(shape) for name, shape in shapes.items()}


PARAMS = drawn(init(4))


def rules(tx, params=PARAMS):
    """The rules of a state as words, by the last name of each part; one for all parameters."""
    found = {}
    for keys, rule in read(tx, params).items():
        path = path_of(keys)
        parts = [x for x in path.split("/") if x not in SHAPES]
        found.setdefault(parts[-1] if parts else "", set()).add(rule)
    return {part: one.pop() if len(one) == 1 else one for part, one in found.items()}


def grown(tx, state, params=PARAMS, how=None, schedule="continue"):
    operator = lagjax.Grow(width={"mlp": how or width.Tile()})
    plan, large = grow(operator, params, AXES, lagjax.Model(init(8), None, AXES))
    return carry(plan, state, params, large, tx, schedule)


class Toy(NamedTuple):
    """A state of a stranger's: its statistics have names that tell nothing."""

    mu: optax.Params
    counts: optax.Params
    nu: jax.Array


def toy():
    """Keeps the largest |g|, steps by entry, and the norm of all."""

    def start(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        counts = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int32), params)
        return Toy(zeros, counts, jnp.zeros(()))

    def update(updates, state, params=None):
        largest = jax.tree.map(lambda m, g: jnp.maximum(m, jnp.abs(g)), state.mu, updates)
        counts = jax.tree.map(lambda n: n + 1, state.counts)
        nu = 0.9 * state.nu + optax.tree.norm(updates)
        return jax.tree.map(lambda g: g / (1e-30 + nu), updates), Toy(largest, counts, nu)

    return optax.GradientTransformation(start, update)


def test_orders_and_signs_are_read():
    found = rules(optax.chain(toy(), optax.trace(0.9)))
    assert found["mu"][:3] == ("statistic", 1, False)
    assert found["counts"][:3] == ("statistic", 0, False)
    # Divided by a norm of all, the updates follow no gradient of one entry.
    assert found["nu"].kind == found["trace"].kind == "refused"


def test_what_depends_on_more_than_the_gradient_is_refused():
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9))
    assert "weight decay" in rules(decayed)["trace"].why
    # Its decay is in the steps alone.
    assert rules(optax.adamw(1e-3, weight_decay=0.1))["mu"].kind == "statistic"
    fading = rules(optax.scale_by_rms(initial_scale=1.0))["nu"]
    assert fading.why == "the value that it starts with is still in it"
    assert rules(optax.scale_by_rss())["sum_of_squares"].start == pytest.approx(0.1)


def test_clipping_accumulation_and_freezing_hide_nothing():
    clipped = optax.chain(optax.clip_by_global_norm(0.01), optax.trace(0.9))
    assert rules(clipped)["trace"].power == 1
    found = rules(optax.MultiSteps(optax.adam(1e-3), 40))
    assert found["nu"].power == 2 and found["gradient_step"].counts
    assert found["mini_step"].kind == found["count"].kind == "kept"
    late = rules(optax.MultiSteps(optax.adam(1e-3), 1000))
    assert late["nu"].why == "it did not move in 70 steps"
    frozen = optax.chain(optax.freeze({"up": True, "b1": False, "down": False}), optax.adam(1e-3))
    assert rules(frozen)["nu"].power == 2


def test_a_transformation_that_holds_arrays_of_its_model_is_run_on_them():
    mask = {name: np.arange(np.prod(shape)).reshape(shape) % 2 for name, shape in SHAPES.items()}

    def update(updates, state, params=None):
        return jax.tree.map(jnp.multiply, updates, mask), state

    half = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    assert rules(optax.chain(half, optax.adam(1e-3)))["mu"].power == 1
    broken = optax.chain(
        optax.GradientTransformation(half.init, lambda *_: 1 / 0), optax.trace(0.9)
    )
    assert "ZeroDivisionError" in rules(broken)["trace"].why


def test_a_mask_of_origins_fits_the_small_model_that_is_run():
    like = {"w": np.broadcast_to(np.int8(Origin.FRESH), (3000, 3000))}
    params = {"w": jax.ShapeDtypeStruct((3000, 3000), jnp.float32)}
    tx = optax.chain(optax.adam(1e-3), only(like, Origin.FRESH))
    assert {str(rule) for rule in read(tx, params).values()} == {"kept", "by c", "by c²"}


def test_statistics_behind_the_growths_factors_have_them_too():
    tx = optax.chain(optax.scale_by_adam(), scale_by_growth(), optax.trace(0.9))
    assert rules(tx)["trace"][1:4] == (0, True, 1)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    made = grown(tx, state)[2].trace
    np.testing.assert_allclose(made["down"], np.tile(state[2].trace["down"], (2, 1)) / 2)
    np.testing.assert_allclose(made["up"], np.tile(state[2].trace["up"], (1, 2)))


def test_a_negative_share_turns_what_is_odd():
    tx = optax.chain(optax.scale_by_adam(), optax.trace(0.9))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    made = grown(tx, state, how=width.Tile(width.ScalarSplit(-0.5)))
    for found, before, factors in (
        (made[0].mu, state[0].mu, (-0.5, 1.5)),
        (made[0].nu, state[0].nu, (0.25, 2.25)),
        (made[1].trace, state[1].trace, (-1, 1)),
    ):
        np.testing.assert_allclose(found["b1"], np.outer(factors, before["b1"]).ravel(), rtol=1e-5)


def test_rules_of_ones_own_stand_anywhere_in_a_chain():
    ruled = lagjax.grown_by(toy(), {"nu": "anew", "mu": 2})
    tx = optax.chain(optax.clip(1.0), optax.masked(ruled, {"up": True, "b1": True, "down": False}))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    before, made = (x[1].inner_state.state for x in (state, grown(tx, state)))
    np.testing.assert_allclose(made.mu["b1"], np.tile(before.mu["b1"], 2) / 4)
    np.testing.assert_array_equal(made.counts["b1"], np.ones(8))
    assert float(before.nu) > 0 and float(made.nu) == 0
    with pytest.raises(ValueError, match="no rule grows the optimizer state 'nu': it follows the"):
        grown(toy(), toy().init(PARAMS))
    with pytest.raises(ValueError, match="rule 'mu': 3; expected one of"):
        lagjax.grown_by(toy(), {"mu": 3})
    # What has not its parameter's shape has no order.
    with pytest.raises(ValueError, match="nu': its rule is 1, but it has not"):
        grown(one := lagjax.grown_by(toy(), {"nu": 1}), one.init(PARAMS))


def test_a_state_that_is_the_tree_of_parameters():
    tx = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params=None: (updates, updates),
    )
    made = grown(tx, PARAMS)
    np.testing.assert_allclose(made["b1"], np.tile(PARAMS["b1"], 2) / 2)


def test_reading_costs_one_trace():
    traced = []

    def update(updates, state, params=None):
        traced.append(1)
        return updates, state

    plain = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    tx = optax.chain(plain, optax.trace(0.9))
    state = tx.init(PARAMS)
    for _ in range(2):
        jax.jit(lambda state: grown(tx, state))(state)
    assert len(traced) == 1
