"""What lagjax asks of a model: pure functions, no state."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from lagjax.algebra.axes import Axes, Params

Key: TypeAlias = jax.Array
Batch: TypeAlias = Any
"""A pytree of arrays: whatever the model's loss takes."""


class Model(NamedTuple):
    """A model as pure functions.

    Attributes:
        init: fresh parameters from a key; their shapes and dtypes are the specification of a growth target.
        loss: `(params, batch, key)` → the sum of nats and the count it runs over, both scalars, so that shards
            of unequal size add up. `key` is None for evaluation.
        axes: what each axis of each parameter is.
        apply: `(params, batch)` → outputs; needed for certificates only.
    """

    init: Callable[[Key], Params]
    loss: Callable[[Params, Batch, Key | None], tuple[jax.Array, jax.Array]]
    axes: Axes
    apply: Callable[[Params, Batch], jax.Array] | None = None
