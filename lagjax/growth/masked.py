"""Masked growth (MSG, Yao et al. 2023, arXiv 2305.02869): what is new takes part with a weight that goes from 0 to 1.

New entries and layers start as the target's initialisation has them, and are multiplied into the function by a mask, so that the
function is kept at 0, whatever they hold::

    operator = Grow(depth=Fresh("top"), width={"mlp": RandomPad()})
    plan = operator.plan(key, source.layout(params), target.axes.layout(shapes))
    engine = from_loss(ramp(target, plan, steps=1000), tx)

The authors mask activations, which takes a forward pass written for it. Here the mask multiplies parameters: along an axis
between two of them those that read it, which is the same thing, along the residual stream those that write it. The
mean that LayerNorm takes over the stream cannot be masked in this way.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.axes import Layout, Leaf, Lookup, Params, Residual, join, split
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.pieces import GrownAxis
from lagjax.algebra.plan import Plan, Word
from lagjax.model import Model

Mask: TypeAlias = Any
"""A scalar from 0 to 1; may be traced."""


def masked(target: Model, plan: Plan) -> Callable[[Mask], Model]:
    """Mask → the target in which what the plan adds takes part with this weight; at 1 the target itself.

    Masked are entries that are new and that the plan has both written and read (`RandomPad`), and the residual outputs of
    added layers, fresh or copies. What the plan keeps silent of itself is left alone. At 0 the function is that of the small
    model, the plan's `requires` met, until what was copied is trained.

    Raises ValueError where the plan does not keep the function even without what it adds, with the axis or stack.
    """
    if found := silenced(plan).violations:
        raise ValueError(
            f"a mask of 0 does not keep the function: {'; '.join(map(str, found))}. Grow this without a mask: a residual axis by "
            "Isometric, Average or Centred, layers by Scaled(...) or Fresh(zero=True), others by RandomIn"
        )

    def at(mask: Mask) -> Model:
        def effective(params: Params) -> Params:
            leaves, treedef = jax.tree.flatten(params)
            return jax.tree.unflatten(
                treedef,
                [
                    _masked(plan, leaf, value, mask)
                    for leaf, value in zip(plan.target.leaves, leaves, strict=True)
                ],
            )

        apply = target.apply
        return Model(
            target.init,
            lambda params, batch, key: target.loss(effective(params), batch, key),
            target.axes,
            apply and (lambda params, batch: apply(effective(params), batch)),
        )

    return at


def ramp(target: Model, plan: Plan, steps: int) -> Callable[[jax.Array], Model]:
    """Training step → the masked target, its mask step / steps and 1 from then on; `from_loss` makes an engine of it.

    Raises ValueError as `masked` does, and for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: a ramp takes at least one step")
    at = masked(target, plan)
    return lambda step: at(jnp.minimum(1.0, step / steps))


def silenced(plan: Plan) -> Plan:
    """The plan as a mask of 0 leaves it: nothing takes part that is masked."""
    maps = {}
    for axis, grown in plan.maps.items():
        kept = np.where(_entries(plan.target, axis, grown), 0.0, 1.0)
        maps[axis] = (
            dataclasses.replace(grown, writes=grown.writes * kept)
            if isinstance(plan.target.kinds.get(axis), Residual)
            else dataclasses.replace(grown, reads=grown.reads * kept)
        )
    words = {
        stack: Word(
            tuple(
                layer._replace(scale=0.0) if new else layer
                for layer, new in zip(word.layers, _added(word))
            )
        )
        for stack, word in plan.words.items()
    }
    return dataclasses.replace(plan, maps=maps, words=words)


def _entries(target: Layout, axis: str, grown: AxisMap) -> np.ndarray:
    """`[new]` which entries of an axis are masked: those that are new and take part."""
    kind = target.kinds.get(axis)
    if isinstance(kind, Lookup):
        # The data choose among these.
        return np.zeros(grown.new, bool)
    # A norm notices what is written, read or not.
    read = isinstance(kind, Residual) | (grown.reads != 0)
    found: np.ndarray = grown.fresh & (grown.writes != 0) & read
    return found


def _added(word: Word) -> list[bool]:
    """Which layers are masked: those that are not the first of their source, and do something."""
    seen: set[int | None] = {None}
    added = []
    for layer in word.layers:
        added.append(layer.source in seen and layer.scale != 0)
        seen.add(layer.source)
    return added


def _masked(plan: Plan, leaf: Leaf, value: Any, mask: Mask) -> Any:
    """One parameter as the masked model uses it."""
    if leaf.residual:
        for stack, index in leaf.layer:
            if _added(plan.words[stack])[index]:
                value = value * jnp.asarray(mask, value.dtype)
        for axis, dim in enumerate(leaf.dims):
            if dim.stack:
                value = _weighted(value, axis, _added(plan.words[dim.stack]), mask)
    if not any(axis in plan.maps for dim in leaf.dims for axis in dim.names):
        return value
    sizes = {**plan.target.sizes, **plan.target.stacks}
    parts = list(split(value, leaf.dims, sizes))
    for index in range(len(parts)):
        for factor in plan.factors_of(leaf, index):
            if _masks(factor):
                entries = _entries(plan.target, factor.name, factor.map)
                parts[index] = _weighted(parts[index], factor.at, entries, mask)
    return join(parts, leaf.dims, sizes)


def _masks(factor: GrownAxis) -> bool:
    """Whether a parameter is masked along an axis: it writes or adds to the residual stream, or reads any other axis."""
    if isinstance(factor.kind, Residual):
        return factor.role in (">", "+")
    return factor.reads


def _weighted(value: Any, axis: int, entries: Any, mask: Mask) -> Any:
    """Multiplies some entries along an axis by the mask."""
    if not np.any(entries):
        return value
    shape = [1] * value.ndim
    shape[axis] = -1
    weights = jnp.where(np.reshape(entries, shape), mask, 1.0)
    return value * weights.astype(value.dtype)
