"""Scaling the steps of a grown model, so that training goes on as the small model's did.

Adam's steps are free of the gradient's scale, so that a matrix of which each copy is read for a
half moves the function twice as far as before; and a statistic that starts at 0 under an old step
count makes the first steps of what is new several times too long. `scale_by_growth` mends both:
`carry` tells it of each growth.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lagjax.algebra.layout import Array, Params
from lagjax.algebra.plan import Plan
from lagjax.algebra.provenance import added, step_sizes, unseen

ORIGINAL = -1
"""`born` of what has statistics since the optimizer's first step."""


class ScaleByGrowthState(NamedTuple):
    """What `scale_by_growth` knows of the model's growths.

    Attributes:
        steps: of the optimizer so far.
        factors: of each entry's steps, the product over all growths.
        born: after how many steps each entry came without statistics of its own, or −1.
    """

    steps: jax.Array
    factors: Params
    born: Params

    @property
    def unseen(self) -> Params:
        """Which entries count their own steps."""
        return jax.tree.map(lambda x: x > ORIGINAL, self.born)


def scale_by_growth(
    follow: bool = True,
    betas: tuple[float, float] | None = (0.9, 0.999),
    warmup: int = 0,
) -> optax.GradientTransformation:
    """Scales the steps of a grown model: `optax.chain(optax.adam(1e-3), scale_by_growth())`.

    Before growing it changes nothing; `carry` fills its state, at every growth anew: factors
    multiply, and what was new before keeps the count of its own steps. Put it before decoupled
    weight decay, which would be scaled too.

    Args:
        follow: multiply each parameter's steps so that training goes on as the small model's did:
            1/k for a matrix whose inputs were copied k times, the rule of µP (Yang et al. 2022,
            arXiv 2203.03466).
        betas: of Adam: what is new is corrected for its own number of steps, in place of the old
            count; None for optimizers without such a correction.
        warmup: steps over which what is new, or begins its statistics anew, comes to its full rate.

    The optimizer's steps must be free of the gradient's scale, as Adam's are and SGD's are not: for
    those see `provenance.step_sizes`.
    """

    def init(params: Params) -> ScaleByGrowthState:
        return ScaleByGrowthState(
            jnp.zeros((), jnp.int32),
            # In float32 at least: a third is none in bfloat16.
            jax.tree.map(
                lambda x: jnp.ones(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
            ),
            jax.tree.map(lambda x: jnp.full(x.shape, ORIGINAL, jnp.int32), params),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        found: ScaleByGrowthState = state
        steps = found.steps + 1

        def scaled(x: jax.Array, factor: jax.Array, born: jax.Array) -> jax.Array:
            age = (steps - born).astype(factor.dtype)
            young = jnp.minimum(1.0, age / warmup) if warmup else jnp.ones_like(age)
            if betas is not None:
                counted = steps.astype(factor.dtype)
                young = young * _correction(betas, age) / _correction(betas, counted)
            own = jnp.where(born > ORIGINAL, young, 1.0)
            return x * (own * factor if follow else own).astype(x.dtype)

        made = jax.tree.map(scaled, updates, found.factors, found.born)
        return made, found._replace(steps=steps)

    return optax.GradientTransformation(init, update)


def of_growth(node: object) -> bool:
    """Whether a node of an optimizer's state is that of `scale_by_growth`."""
    return isinstance(node, ScaleByGrowthState)


def told(
    plan: Plan,
    steps: Array,
    factors: Mapping[str, Array],
    born: Mapping[str, Array],
    fresh: tuple[Mapping[str, Array], Mapping[str, Array]],
    originals: bool = False,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Factors and births of a grown model's parameters, by path.

    An entry has the factor of its source, times what this growth asks; one that has no statistics
    is born now.

    Args:
        plan: of the growth.
        steps: of the small model's optimizer.
        factors: of the small model's parameters, those that the transformation sees.
        born: theirs.
        fresh: both of the large model before any growth.
        originals: whether copies have no statistics either.
    """
    paths = plan.target.paths
    sizes = dict(zip(paths, step_sizes(plan, dtype=np.float64)))
    new = dict(zip(paths, added(plan) if originals else unseen(plan)))
    multiplied: dict[str, Array] = {
        path: x * jnp.asarray(sizes[path], x.dtype)
        for path, x in plan.moments(factors, fresh[0], 0, odd=False).items()
    }
    births: dict[str, Array] = {
        path: jnp.where(new[path], jnp.asarray(steps, x.dtype), x)
        for path, x in plan.moments(born, fresh[1], 0, odd=False).items()
    }
    return multiplied, births


def _correction(betas: tuple[float, float], steps: jax.Array) -> jax.Array:
    """By what Adam multiplies the ratio of its statistics after so many steps."""
    logs = (jnp.log(jnp.asarray(beta, steps.dtype)) for beta in betas)
    first, second = (-jnp.expm1(steps * log) for log in logs)
    return jnp.sqrt(second) / first
