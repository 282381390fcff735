"""FLOPs counted by walking the jaxpr: contractions and convolutions, two for each multiply and add.

The compiler's own cost analysis counts a scan's body once, and is therefore not used.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of one call; `args` may be arrays or `jax.ShapeDtypeStruct`.

    A scan counts its length, a branch its dearest arm, and a loop whose length the trace does not
    know one turn.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inputs: list[Any] = [x.aval for x in equation.invars]
        outputs: list[Any] = [x.aval for x in equation.outvars]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = inputs[0].shape
            total += 2 * math.prod(outputs[0].shape) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = inputs[1].shape
            channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(outputs[0].shape) * math.prod(kernel) / channels
        elif name == "scan":
            total += equation.params["length"] * _count(equation.params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in equation.params["branches"])
        else:
            total += sum(_count(inner) for inner in _inner(list(equation.params.values())))
    return total


def _inner(values: list[Any]) -> list[core.Jaxpr]:
    found: list[core.Jaxpr] = []
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _inner(list(value))
    return found
