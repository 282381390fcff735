"""Schedules of the weight decay, of accumulation, and a learning rate that is cut on a plateau.

A schedule of the weight decay must begin where `schedule` says, as that of the learning rate does,
and the others must be carried without an error.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib

import lagjax
from lagjax.growth import width
from lagjax.state import carry
from tests.cases.growth.growing import drawn, grow

AXES = lagjax.Axes({"up": "<inp >mlp", "down": "<mlp >out"}, {"mlp": lagjax.Units("tanh")})
RATE = optax.linear_schedule(1.0, 0.0, 100)
DECAYED = optax.chain(
    optax.scale_by_adam(), optax.add_decayed_weights(RATE), optax.scale_by_schedule(RATE)
)
OTHERS = {
    "learning rate": optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(RATE)),
    "plateau": optax.chain(
        optax.scale_by_adam(), contrib.reduce_on_plateau(patience=1, factor=0.5)
    ),
    "accumulation": optax.MultiSteps(optax.adam(RATE), lambda n: jnp.where(n < 3, 1, 2)),
}


def init(size):
    return lambda key: {"up": jnp.ones((5, size)), "down": jnp.ones((size, 3))}


def carried(tx, moments, schedule):
    """The state after six steps, carried; and the one that `tx` makes for the large model."""
    params, target = drawn(init(4)), lagjax.Model(init(8), None, AXES)
    plan, large = grow(lagjax.Grow(width={"mlp": width.Tile()}), params, AXES, target)
    state = tx.init(params)
    update = optax.with_extra_args_support(tx).update

    def six(params, state):
        one = functools.partial(update, params, params=params, value=jnp.ones(()))
        return jax.lax.fori_loop(0, 6, lambda _, state: one(state)[1], state)

    state = jax.jit(six)(params, state)
    plan = plan if moments == "grow" else None
    return carry(plan, state, params, large, tx, schedule), tx.init(large)


@pytest.mark.parametrize(
    ("moments", "schedule", "step"),
    [
        ("grow", "continue", 6),
        ("grow", "restart", 0),
        ("grow", 7, 7),
        ("reset", "continue", 6),
        ("reset", "restart", 0),
        ("reset", 7, 7),
    ],
)
def test_a_schedule_of_the_weight_decay(moments, schedule, step):
    made, _ = carried(DECAYED, moments, schedule)
    assert int(made[2].count) == step
    assert int(made[1].count) == step


@pytest.mark.parametrize("tx", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("moments", ["grow", "reset"])
@pytest.mark.parametrize("schedule", ["restart", "continue", 7])
def test_others_are_carried(tx, moments, schedule):
    made, wanted = carried(tx, moments, schedule)
    assert jax.tree.structure(made) == jax.tree.structure(wanted)
