"""A candidate's operator, traced once and compiled apart from what its target is initialised by."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jax.interpreters.partial_eval import dce_jaxpr
from jax.typing import ArrayLike

from lagjax.algebra.layout import Params
from lagjax.engine import State
from lagjax.mesh import DATA, Placement
from lagjax.model import Key
from lagjax.task import Candidate, Task

MOVING = {
    "broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "dynamic_update_slice", "gather",
    "optimization_barrier", "pad", "reshape", "rev", "select_n", "slice", "squeeze", "transpose",
}  # fmt: skip
"""Primitives that round nothing."""


class Grower:
    """A candidate's operator on the small model: traced once, and compiled without what its target
    is initialised by, where this changes no bit.

    That is then made by a program of its own, which all candidates of the target share, and handed
    to the operator. The bits are those of the operator's call under `jax.jit`, as a growth record
    replays it.

    Attributes:
        shapes: of the grown parameters.
        apart: whether the initialisation is a program of its own.

    Raises:
        ValueError: as the operator does, and for a target whose parameters are no arrays.
    """

    def __init__(self, task: Task, candidate: Candidate, placement: Placement | None) -> None:
        source, target, fresh = task.model.axes, candidate.target, candidate.target.shapes()
        init = jax.jit(target.init, inline=True)

        def call(key: Key, params: Params, made: Params) -> Params:
            # An operator that initialises by another key than its own does that itself.
            given = target._replace(init=lambda other: made if other is key else init(other))
            large = candidate.operator(key, params, source, given)
            # No result is an array that was given: training takes its state's memory over.
            return jax.lax.optimization_barrier(large)

        inlined = jax.jit(call, inline=True)
        traced = inlined.trace(jax.random.key(0), task.source.params, fresh)
        self.shapes = traced.out_info
        into: tuple[State, State] = (None, None)
        if placement and placement.fully_sharded:
            # Fully sharded, a candidate never lies on one device whole.
            into = tuple(placement.state(x, (DATA,), False) for x in (fresh, self.shapes))
        self._init = jax.jit(target.init, out_shardings=into[0])
        self._call = jax.jit(call, out_shardings=into[1])
        self._whole = jax.jit(
            lambda key, params: inlined(key, params, init(key)), out_shardings=into[1]
        )
        # What no result depends on is dropped.
        jaxpr, used = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.out_avals))
        drawn = len(jax.tree.leaves(fresh))
        whole = [x for x, value in zip(jaxpr.constvars, traced.jaxpr.consts) if _whole(value)]
        self.apart = any(used[-drawn:]) and _moves(
            jaxpr, jaxpr.invars[-sum(used[-drawn:]) :], whole
        )

    def __call__(self, key: Key, params: Params) -> Params:
        """The grown parameters, by the operator's key."""
        return self._call(key, params, self._init(key)) if self.apart else self._whole(key, params)


def _moves(jaxpr: Jaxpr, drawn: Sequence[Var], whole: Sequence[Var]) -> bool:
    """Whether a program only moves values, and multiplies some: those that are drawn by 0 and 1
    alone. That is nothing that XLA could round otherwise together with what draws them.

    `whole` are variables that are 0 or 1.
    """
    from_drawn, exact = set(drawn), set(whole)

    def is_exact(x: Var | Literal) -> bool:
        return x in exact if isinstance(x, Var) else _whole(x.val)

    for equation in jaxpr.eqns:
        name, read, made = equation.primitive.name, equation.invars, equation.outvars
        of_drawn = [isinstance(x, Var) and x in from_drawn for x in read]
        inner = equation.params.get("jaxpr")
        if isinstance(inner, ClosedJaxpr):
            inside = inner.jaxpr
            among = [x for x, one in zip(inside.invars, of_drawn) if one]
            known = [x for x, one in zip(inside.invars, read) if is_exact(one)]
            if name not in ("jit", "pjit") or not _moves(inside, among, known):
                return False
        elif any(jnp.issubdtype(x.aval.dtype, jnp.inexact) for x in made):  # type: ignore[attr-defined]
            rounds = any(one and not is_exact(other) for one, other in zip(of_drawn, read[::-1]))
            if name not in MOVING and (name != "mul" or rounds):
                return False
        if any(of_drawn):
            from_drawn |= set(made)
        elif name in ("broadcast_in_dim", "reshape") and is_exact(read[0]):
            exact |= set(made)
    return True


def _whole(value: ArrayLike) -> bool:
    """Whether a constant is 0 and 1 alone."""
    numbers = jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    return bool(numbers and np.isin(np.asarray(value), (0, 1)).all())
