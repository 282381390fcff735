"""Growing eagerly, then a train step that donates its state, the usual loop of JAX.

The steps must run, and the small model and its optimizer state must survive them.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import lagjax
from lagjax.state import carry
from tests.cases.growth.growing import planned

AXES = lagjax.Axes(
    {"inp": "<x >embed", r"layers_(?P<layers>\d+)/w": "<embed >embed+", "out": "<embed >y"},
    kinds={"embed": lagjax.Residual(None)},
)
TX = optax.adam(1e-3)
CALLS = {
    "eagerly": lambda op, key, params, target: op(key, params, AXES, target),
    "under jit": lambda op, key, params, target: jax.jit(
        lambda key, params: op(key, params, AXES, target)
    )(key, params),
    "leaf by leaf": lambda op, key, params, target: lagjax.leafwise.apply(
        op, key, params, AXES, target
    ),
}


def model(layers):
    def init(key):
        made = {"inp": jnp.ones((5, 4)), "out": jnp.ones((4, 3))}
        for i in range(layers):
            weights = jax.random.normal(jax.random.fold_in(key, i), (4, 4))
            made[f"layers_{i}"] = {"w": 0.1 * weights}
        return made

    return lagjax.Model(init, None, AXES)


def total(params):
    x = jnp.ones((2, 5)) @ params["inp"]
    for i in range(len(params) - 2):
        x = x + jnp.tanh(x @ params[f"layers_{i}"]["w"])
    return (x @ params["out"]).sum()


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state):
    updates, state = TX.update(jax.grad(total)(params), state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("word", ["0 1 0 1", "0 new 1 new"])
@pytest.mark.parametrize("moments", ["fresh", "carried"])
def test_steps_donate_only_what_was_grown(call, word, moments):
    small, target = model(2).init(jax.random.key(0)), model(4)
    small, state = step(small, TX.init(small))
    operator = lagjax.Grow(depth=word)
    grown = call(operator, jax.random.key(0), small, target)
    if moments == "fresh":
        made = TX.init(grown)
    else:
        plan = planned(operator, small, AXES, target)
        made = carry(plan, state, small, grown, TX, "continue")
    step(*step(grown, made))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((small, state)))
