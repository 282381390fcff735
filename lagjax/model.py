"""What lagjax asks of a model and of a growth operator: pure functions, no state."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Layout, Params
from lagjax.algebra.plan import Plan

Key: TypeAlias = jax.Array
Batch: TypeAlias = Any
"""A pytree of arrays: whatever the model's loss takes."""


class Model(NamedTuple):
    """A model as pure functions.

    Attributes:
        init: fresh parameters from a key; their shapes and dtypes are the specification of a growth
            target.
        loss: `(params, batch, key)` → the sum of nats and the count it runs over, both scalars, so
            that shards of unequal size add up. `key` is None for evaluation.
        axes: what each axis of each parameter is.
        apply: `(params, batch)` → outputs; needed for certificates only.
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Batch, Key | None], tuple[jax.Array, jax.Array]]
    axes: Axes
    apply: Callable[[Params, Batch], jax.Array] | None = None

    def shapes(self) -> Params:
        """The shapes and dtypes of its parameters; raises ValueError for what is no array."""
        try:
            return jax.eval_shape(self.init, jax.random.key(0))
        except TypeError as error:
            if "not a valid JAX type" not in str(error):
                raise
            raise ValueError(
                f"a model's init returns more than arrays ({error}); keep the rest out of its "
                "parameters"
            ) from error

    def layout(self) -> Layout:
        """Its axes table, bound to these shapes."""
        return self.axes.layout(self.shapes())


def mean_loss(total: jax.Array, count: jax.Array) -> jax.Array:
    """A loss from its sum and count; 0 of nothing, as a batch of padding alone is."""
    return jnp.asarray(total / jnp.where(count == 0, 1, count))


class Growth(Protocol):
    """A growth operator: fills the parameters of a larger model from those of a smaller one.

    Implement it as a frozen dataclass, so that equal operators compare equal, print as written and
    compile once.
    """

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params: ...


class Linear(Growth, Protocol):
    """An operator that is linear in the parameters, and can so grow the optimizer's state too."""

    def plan(self, key: Key, source: Layout, target: Layout, /) -> Plan: ...
