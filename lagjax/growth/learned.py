"""Learned growth: operators with parameters of their own, fitted to the loss of the model that they
grow.

`fit` takes any parametrised operator; `fit_ligo` fits LiGO's (Wang et al. 2023, arXiv 2303.00980)::

    fitted = fit_ligo(key, params, source, target, batches)
    candidate = Candidate("ligo", fitted.operator, target, fit_flops=fitted.flops)
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Array, Layout, Leaf, Params
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.notation import Dim
from lagjax.algebra.pieces import join, pieces_of, rearrange, unfold
from lagjax.algebra.plan import Plan
from lagjax.algebra.words import layers_of, pick
from lagjax.fingerprint import digest
from lagjax.flops import flops
from lagjax.growth.depth import Stack, words
from lagjax.growth.width import maps
from lagjax.model import Batch, Growth, Key, Model, mean_loss

Phi: TypeAlias = Any
"""A pytree of arrays: the parameters of an operator."""


class Fitted(NamedTuple):
    """An operator that was fitted.

    Attributes:
        operator: with the parameters after the last step, as NumPy arrays.
        flops: what the fit cost, for `Candidate.fit_flops`.
        losses: `[steps]` the target's mean training loss before each step, in nats.
    """

    operator: Growth
    flops: float
    losses: np.ndarray


def fit(
    make: Callable[[Phi], Growth],
    start: Phi,
    key: Key,
    params: Params,
    source: Axes,
    target: Model,
    batches: Iterable[Batch],
    tx: optax.GradientTransformation,
) -> Fitted:
    """Fits an operator's parameters by the gradient of the target's mean loss; the small model
    stays as it is.

    Args:
        make: parameters → operator; is called under `jax.jit`.
        start: the parameters to start from.
        key: of the growth at every step, and of the loss, folded with the step's number.
        params: of the small model.
        source: the small model's table.
        target: the large model.
        batches: one for each step.
        tx: the optimizer of the operator's parameters.

    FLOPs are counted by step from what is traced: where the growth calls `target.init`, this is
    counted as well.

    Raises ValueError where there are no batches.
    """

    @jax.jit
    def step(
        phi: Phi, state: optax.OptState, params: Params, number: jax.Array, batch: Batch
    ) -> tuple[Phi, optax.OptState, jax.Array]:
        def mean(phi: Phi) -> jax.Array:
            grown = make(phi)(key, params, source, target)
            return mean_loss(*target.loss(grown, batch, jax.random.fold_in(key, number)))

        loss, grads = jax.value_and_grad(mean)(phi)
        updates, state = tx.update(grads, state, phi)
        return optax.apply_updates(phi, updates), state, loss

    phi = jax.tree.map(jnp.asarray, start)
    state, losses, spent = tx.init(phi), [], 0.0
    costs: dict[Hashable, float] = {}
    for number, batch in enumerate(batches):
        arguments = (phi, state, params, np.int32(number), batch)
        shapes = tuple(np.shape(x) for x in jax.tree.leaves(batch))
        if shapes not in costs:
            costs[shapes] = flops(step, *arguments)
        spent += costs[shapes]
        phi, state, loss = step(*arguments)
        losses.append(loss)
    if not losses:
        raise ValueError("there are no batches to fit to; give at least one")
    return Fitted(make(jax.device_get(phi)), spent, np.asarray(jax.device_get(losses)))


class ByContent:
    """Operators that hold arrays are equal where these are, bit for bit."""

    def content(self) -> tuple[object, ...]:
        """What two equal operators have in common."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ByContent)
            and type(self) is type(other)
            and self.content() == other.content()
        )

    def __hash__(self) -> int:
        return hash(self.content())


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Ligo(ByContent):
    """LiGO (Wang et al. 2023, arXiv 2303.00980): W'_l = Σ_j w_lj B_out W_j B_inᵀ, linear in the
    small model's parameters.

    Every array goes by the matrix of each axis that it has, whatever its role there; nothing is
    fresh and no key is used.

    Attributes:
        axes: axis that grows → `[new, old]`.
        mixing: (stack that grows, name of a parameter) → `[new layers, old layers]`, of the layers
            that have it.
    """

    axes: tuple[tuple[str, Array], ...]
    mixing: tuple[tuple[tuple[str, str], Array], ...]

    def __init__(self, axes: Mapping[str, Array], mixing: Mapping[tuple[str, str], Array]) -> None:
        object.__setattr__(self, "axes", tuple(axes.items()))
        object.__setattr__(self, "mixing", tuple(mixing.items()))

    def content(self) -> tuple[object, ...]:
        return (digest((dict(self.axes), dict(self.mixing))),)

    def __repr__(self) -> str:
        return f"Ligo({', '.join(axis for axis, _ in self.axes)}; {self.content()[0]})"

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params:
        """Raises ValueError where its matrices do not fit source and target."""
        shapes = target.shapes()
        old, new = source.layout(params), target.axes.layout(shapes)
        self._check(old, new)
        values, grown = old.values(params), {}
        for leaf in new.leaves:
            if leaf.name not in grown:
                grown[leaf.name] = self._grown(leaf, old, new, values)
        made = {leaf.path: _placed(leaf, new, *grown[leaf.name]) for leaf in new.leaves}
        return new.tree(made, shapes)

    def _check(self, source: Layout, target: Layout) -> None:
        wanted = jax.tree.map(np.shape, _selection(source, target))
        for what, given, known in zip(("axis", "mixing of"), (self.axes, self.mixing), wanted):
            shapes = {name: np.shape(matrix) for name, matrix in given}
            for name in known.keys() | shapes.keys():
                if known.get(name) != shapes.get(name):
                    raise ValueError(
                        f"the matrix for {what} {name!r} has shape {shapes.get(name)}; growing "
                        f"this source into this target takes {known.get(name)}: fit the operator "
                        "to these two, or start from ligo_start"
                    )

    def _grown(
        self, leaf: Leaf, source: Layout, target: Layout, values: Mapping[str, Array]
    ) -> tuple[Array, tuple[Dim, ...]]:
        """All layers of one name, and its axes: the stacks in front, then those of the target's."""
        stacks, axes, mixing = sorted(leaf.stacks), dict(self.axes), dict(self.mixing)
        olds = [one for one in source.leaves if one.name == leaf.name]
        every = {stack: layers_of(source, leaf.name, stack) for stack in stacks}
        value, dims = pick(olds, values, every)
        named = [dim.stack for dim in dims]
        front = [named.index(stack) for stack in stacks]
        rest = [at for at, stack in enumerate(named) if not stack]
        value = value.transpose(*front, *rest)
        for at, stack in enumerate(stacks):
            if (stack, leaf.name) in mixing:
                value = _contracted(mixing[stack, leaf.name], value, at)
        layers = dict(zip(stacks, value.shape))
        have = tuple(dims[at] for at in (*front, *rest))
        want = (*have[: len(front)], *(dim for dim in leaf.dims if not dim.stack))
        extents = {**target.sizes, **layers}
        if not any(axis in axes for dim in want for axis in dim.names):
            return rearrange(value, have, want, extents), want
        parts = unfold(value, have, want, {**source.sizes, **layers})
        made = []
        for piece, part in zip(pieces_of(want), parts):
            for at, name in enumerate(piece.names):
                if name in axes:
                    part = _contracted(axes[str(name)], part, at)
            made.append(part)
        return join(made, want, extents), want


def ligo_start(key: Key, source: Layout, target: Layout, noise: float = 0.03) -> dict[str, Any]:
    """Where LiGO's fit starts; `Ligo(**start)` makes the operator.

    New entries of an axis are copies of the old ones in turn, for those that read too (the authors'
    code also has a random start, and learns only the rows of new entries). Layers are stacked: row
    l of a mixing matrix is 1 at l mod L and noise from U(0, `noise`) elsewhere, divided by its sum.

    Raises ValueError where source and target do not fit each other.
    """
    axes, mixing = _selection(source, target)
    made = {}
    for index, (name, chosen) in enumerate(mixing.items()):
        one = jax.random.fold_in(key, index)
        drawn = jnp.where(chosen > 0, 1.0, noise * jax.random.uniform(one, chosen.shape))
        made[name] = drawn / drawn.sum(axis=1, keepdims=True)
    return {"axes": jax.tree.map(jnp.asarray, axes), "mixing": made}


def fit_ligo(
    key: Key,
    params: Params,
    source: Axes,
    target: Model,
    batches: Iterable[Batch],
    tx: optax.GradientTransformation | None = None,
    noise: float = 0.03,
) -> Fitted:
    """Fits LiGO; the authors take 100 batches. By default AdamW with their published commands' rate
    of 2e-4.
    """
    start_key, fit_key = jax.random.split(key)
    shapes = target.shapes()
    start = ligo_start(start_key, source.layout(params), target.axes.layout(shapes), noise)
    return fit(
        lambda phi: Ligo(**phi),
        start,
        fit_key,
        params,
        source,
        target,
        batches,
        optax.adamw(2e-4) if tx is None else tx,
    )


@dataclass(frozen=True)
class _InTurn:
    """Copies of the old entries in turn, at any size."""

    def map(self, old: int, new: int, /) -> AxisMap:
        return AxisMap(old, np.arange(new) % old)


def _selection(
    source: Layout, target: Layout
) -> tuple[dict[str, np.ndarray], dict[tuple[str, str], np.ndarray]]:
    """Matrices of zeros and ones that copy entries in turn and stack layers, for every axis and
    stack that grows.
    """
    stacked = words(Stack() if source.stacks else None, source, target)
    # A plan checks that the two fit each other.
    plan = Plan(source, target, stacked, maps(_InTurn(), source, target))
    axes = {axis: np.eye(grown.old)[grown.source] for axis, grown in plan.maps.items()}
    mixing = {}
    for leaf in target.leaves:
        for stack in leaf.stacks:
            if source.stacks[stack] == target.stacks[stack]:
                continue
            word = stacked[stack]
            new = [word.sources[index] for index in layers_of(target, leaf.name, stack)]
            old = layers_of(source, leaf.name, stack)
            mixing[stack, leaf.name] = np.equal.outer(new, old).astype(float)
    return axes, mixing


def _placed(leaf: Leaf, layout: Layout, value: Array, dims: tuple[Dim, ...]) -> Array:
    """One leaf out of all layers of its name."""
    places = {
        stack: layers_of(layout, leaf.name, stack).index(index) for stack, index in leaf.layer
    }
    every = dataclasses.replace(leaf, dims=dims, layer=())
    value, dims = pick([every], {leaf.path: value}, places)
    return rearrange(value, dims, leaf.dims, layout.extents).astype(leaf.dtype)


def _contracted(matrix: Array, value: Array, at: int) -> Array:
    """`matrix`, `[new, old]`, applied along an axis; where it copies, copies are exact on every
    device.
    """
    grown = jnp.tensordot(matrix, value, ((1,), (at,)), precision="highest")
    return jnp.moveaxis(grown, 0, at)
