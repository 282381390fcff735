"""What the cases of growth share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import lagjax
from lagjax.algebra.layout import Params
from lagjax.algebra.plan import Plan
from lagjax.certify.certify import untold
from lagjax.model import Linear


def drawn(init: Callable[[jax.Array], Params], size: float = 0.5, seed: int = 0) -> Params:
    """Parameters of the shapes of a model's, with nothing left at 0 or 1; compiles nothing."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, size, x.shape).astype(x.dtype)), shapes
    )


def planned(operator: Linear, params: Params, axes: lagjax.Axes, target: lagjax.Model) -> Plan:
    """The operator's plan for the two models."""
    key = jax.random.key(0)
    shapes = jax.eval_shape(target.init, key)
    return operator.plan(key, axes.layout(params), target.axes.layout(shapes))


def grow(
    operator: Linear, params: Params, axes: lagjax.Axes, target: lagjax.Model
) -> tuple[Plan, Params]:
    """The plan, and the large model's parameters."""
    plan = planned(operator, params, axes, target)
    return plan, operator(jax.random.key(0), params, axes, target)


def blamed(
    operator: Linear,
    params: Params,
    axes: lagjax.Axes,
    large: lagjax.Model,
    outputs: Callable[[Params], jax.Array],
    precision: str = "float32",
) -> list[tuple[str, str | None, str]]:
    """What a certificate gives as the cause of outputs that differ, as axis, parameter and why.

    Args:
        operator: that grows.
        params: the small model's parameters.
        axes: its table.
        large: the large model, with an `apply`.
        outputs: the small model's, of its parameters.
        precision: whose tolerance holds.
    """
    small = lagjax.Model(None, None, axes, lambda params, batch: outputs(params))  # type: ignore[arg-type]
    plan = planned(operator, params, axes, large)
    assert plan.exact_by_table
    key, batch = jax.random.key(0), jnp.zeros(())
    found = untold(operator, plan, small, large, params, batch, key, precision)
    return [(one.axis, one.leaf, one.why) for one in found]


def apart(got: jax.Array, wanted: jax.Array) -> float:
    """The largest difference, relative to the largest that is wanted."""
    return float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max())
