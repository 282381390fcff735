"""A short annealing: a copy of a trial is trained on while its learning rate goes to 0.

What it ends at is near the floor of the valley that the trial bounces in, as an average of its
weights is (see `averages`), at the price of the steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lagjax.engine import Engine, Metrics, Parts, State, Trained
from lagjax.model import Batch, Key


class Annealing(NamedTuple):
    """A training loop's state, and how far the annealing has come.

    Attributes:
        state: the loop's own.
        made: steps of the annealing.
        steps: that it has in all.
    """

    state: State
    made: jax.Array
    steps: jax.Array


def annealed(engine: Engine, like: State) -> Engine:
    """The training loop whose parameters move in each step by an ever smaller share of what they
    would: from all of it down to 1 / steps.

    Where the learning rate multiplies the whole update, as in optax's optimizers, that is a rate
    that goes linearly to 0 from the schedule's, whatever the optimizer.

    Args:
        engine: the loop.
        like: the shapes of its state.

    Raises:
        ValueError: where the parameters that come out do not stand in its state.
    """
    places = jax.tree.leaves(Parts(engine, like).places.params)
    if -1 in places:
        raise ValueError(
            "an annealing moves the parameters in the training loop's state, and its `trained` "
            "computes them; let it give them as they stand in the state, or do not anneal"
        )

    def init(trained: Trained, key: Key) -> Annealing:
        return begin(engine.init(trained, key), 1)

    def step(state: Annealing, batch: Batch) -> tuple[Annealing, Metrics]:
        after, metrics = engine.step(state.state, batch)
        before, structure = jax.tree.flatten(state.state)
        leaves = jax.tree.leaves(after)
        share = 1 - state.made / state.steps
        for place in places:
            old, new = before[place], leaves[place]
            leaves[place] = (old + share.astype(old.dtype) * (new - old)).astype(old.dtype)
        moved = jax.tree.unflatten(structure, leaves)
        return Annealing(moved, state.made + 1, state.steps), metrics

    return Engine(
        init,
        step,
        lambda state, batch: engine.evaluate(state.state, batch),
        lambda state: engine.trained(state.state),
        engine.unit,
    )


def begin(state: State, steps: int) -> Annealing:
    """A trial's state before an annealing of so many steps."""
    return Annealing(state, jnp.zeros((), jnp.float32), jnp.asarray(steps, jnp.float32))
