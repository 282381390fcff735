"""Masked growth (MSG, Yao et al. 2023, arXiv 2305.02869): what is new takes part with a weight that
goes from 0 to 1.

New entries and layers start as the target's initialisation has them, and are multiplied into the
function by a mask, so that the function is kept at 0, whatever they hold::

    operator = Grow(depth=Fresh("top"), width={"mlp": RandomPad()})
    plan = operator.plan(key, source.layout(params), target.axes.layout(shapes))
    engine = from_loss(ramp(target, plan, steps=1000), tx)

The authors mask activations, which takes a forward pass written for it. Here the mask multiplies
parameters: along an axis between two of them those that read it, which is the same thing, along the
residual stream those that write it. The mean that LayerNorm takes over the stream cannot be masked
in this way.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.kinds import Kind
from lagjax.algebra.layout import Array, Leaf, Params
from lagjax.algebra.maps import AxisMap, Vector, column
from lagjax.algebra.pieces import GrownAxis, join, split
from lagjax.algebra.plan import Plan
from lagjax.algebra.words import Word, by_layer
from lagjax.model import Model

Mask: TypeAlias = Array | float
"""A scalar from 0 to 1; may be traced."""


def masked(target: Model, plan: Plan) -> Callable[[Mask], Model]:
    """Mask → the target in which what the plan adds takes part with this weight; at 1 the target
    itself.

    Masked are entries that are new and that the plan has both written and read (`RandomPad`), and
    the residual outputs of added layers, fresh or copies. What the plan keeps silent of itself is
    left alone. At 0 the function is that of the small model, the plan's `requires` met, until what
    was copied is trained.

    Raises ValueError where the plan does not keep the function even without what it adds, with the
    axis or stack.
    """
    if found := silenced(plan).violations:
        raise ValueError(
            f"a mask of 0 does not keep the function: {'; '.join(map(str, found))}. Grow this "
            "without a mask: a residual axis by Isometric, Average or Centred, layers by "
            "Scaled(...) or Fresh(zero=True), others by RandomIn"
        )

    def at(mask: Mask) -> Model:
        def effective(params: Params) -> Params:
            values = plan.target.values(params)
            made = {
                leaf.path: _masked(plan, leaf, values[leaf.path], mask)
                for leaf in plan.target.leaves
            }
            return plan.target.tree(made, params)

        apply = target.apply
        return Model(
            target.init,
            lambda params, batch, key: target.loss(effective(params), batch, key),
            target.axes,
            apply and (lambda params, batch: apply(effective(params), batch)),
        )

    return at


def ramp(target: Model, plan: Plan, steps: int) -> Callable[[jax.Array], Model]:
    """Training step → the masked target, its mask step / steps and 1 from then on; `from_loss`
    makes an engine of it.

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
        kind = plan.target.kind(axis)
        kept = np.where(_entries(kind, grown), 0.0, 1.0)
        maps[axis] = (
            dataclasses.replace(grown, writes=grown.writes * kept)
            if kind.stream
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


def _entries(kind: Kind, grown: AxisMap) -> Vector:
    """`[new]` which entries of an axis are masked: those that are new and take part."""
    if kind.indexed:
        # The data choose among these.
        return np.zeros(grown.new, bool)
    # A norm notices what is written, read or not.
    entries: Vector = grown.fresh & (grown.writes != 0) & (kind.stream | (grown.reads != 0))
    return entries


def _added(word: Word) -> list[bool]:
    """Which layers are masked: those that are not the first of their source, and do something."""
    return [new and scale != 0 for new, scale in zip(word.added, word.scales)]


def _masked(plan: Plan, leaf: Leaf, value: Array, mask: Mask) -> Array:
    """One parameter as the masked model uses it."""
    if leaf.residual:
        added = {stack: _added(word) for stack, word in plan.words.items()}
        for layers in by_layer(leaf, added):
            value = _weighted(value + leaf.offset, layers, mask) - leaf.offset
    if not any(grown := plan.grown(leaf)):
        return value
    parts = list(split(value, leaf.dims, plan.target.extents))
    for index, axes in enumerate(grown):
        for axis in filter(_masks, axes):
            entries = column(_entries(axis.kind, axis.map), parts[index].ndim, axis.at)
            parts[index] = _weighted(parts[index], entries, mask)
    return join(parts, leaf.dims, plan.target.extents)


def _masks(axis: GrownAxis) -> bool:
    """Whether a parameter is masked along an axis: it writes a stream, or reads another axis."""
    return axis.role in (">", "+") if axis.kind.stream else axis.reads


def _weighted(value: Array, entries: Vector, mask: Mask) -> Array:
    """Multiplies some entries by the mask."""
    if not entries.any():
        return value
    return value * jnp.where(entries, mask, 1.0).astype(value.dtype)
