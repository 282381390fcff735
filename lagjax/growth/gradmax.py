"""GradMax: new units that learn as fast as possible (Evci et al. 2022, arXiv 2201.05125).

New units of an axis start with a fan-in of 0, so that the function is kept, and with the fan-out
that makes the gradient of this fan-in the largest::

    found = gradmax(key, params, source, target, batches, axis="mlp")
    candidate = Candidate("gradmax", found.operator, target, fit_flops=found.flops)

That gradient is G ω, linear in the fan-out ω of a unit, and does not depend on the other new units,
which are all 0. So G is measured column by column without a change to the forward pass: new units
get basis vectors as fan-outs, each shows one column, and all layers are measured at once.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Units
from lagjax.algebra.layout import Array, Layout, Leaf, Params
from lagjax.algebra.pieces import join, pieces_of, split
from lagjax.algebra.plan import Plan
from lagjax.fingerprint import digest
from lagjax.flops import flops
from lagjax.growth.learned import ByContent
from lagjax.growth.operator import Grow
from lagjax.growth.width import ZeroPad
from lagjax.model import Batch, Key, Linear, Model

Site: TypeAlias = tuple[tuple[tuple[str, int], ...], tuple[str, ...]]
"""Where units are: the layer of unrolled stacks, and the stacks inside the arrays."""
REMEDY = "grow it by RandomIn() or Paired() instead"


@dataclass(frozen=True, eq=False, repr=False)
class Given(ByContent):
    """Another linear operator with given values in place of the target's initialisation, path by
    path.

    They show where the operator takes fresh values only.

    Attributes:
        base: a `Linear` operator; it says what is fresh.
        fresh: (path, array of the target's shape) of some leaves.
    """

    base: Linear
    fresh: tuple[tuple[str, Array], ...]

    def content(self) -> tuple[object, ...]:
        return (self.base, digest(dict(self.fresh)))

    def __repr__(self) -> str:
        return f"Given({self.base}, {digest(dict(self.fresh))})"

    def plan(self, key: Key, source: Layout, target: Layout, /) -> Plan:
        """The base's."""
        return self.base.plan(key, source, target)

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params:
        """Raises ValueError for a value that the target has no place for, and as the base does."""

        def init(key: Key) -> Params:
            fresh, given = target.init(key), dict(self.fresh)
            layout = target.axes.layout(fresh)
            found = layout.values(fresh)
            for path, value in given.items():
                if path not in found or np.shape(found[path]) != np.shape(value):
                    raise ValueError(
                        f"{self} has a value of shape {np.shape(value)} for {path!r}, where the "
                        f"target has {np.shape(found[path]) if path in found else 'no parameter'}; "
                        "make it for this target"
                    )
            made = {
                path: jnp.asarray(given[path], value.dtype) if path in given else value
                for path, value in found.items()
            }
            return layout.tree(made, fresh)

        return self.base(key, params, source, target._replace(init=init))


class GradMax(NamedTuple):
    """What GradMax found.

    Attributes:
        operator: linear and exact.
        flops: what the measurement cost, for `Candidate.fit_flops`.
        scores: layer → sum of the squares of the singular values that were taken: by how much the
            loss falls, to first order and for fan-outs of norm 1, for each unit of learning rate.
    """

    operator: Given
    flops: float
    scores: dict[str, float]

    @property
    def score(self) -> float:
        """Of all layers together."""
        return sum(self.scores.values())


def gradmax(
    key: Key,
    params: Params,
    source: Axes,
    target: Model,
    batches: Iterable[Batch],
    axis: str = "mlp",
    scale: float = 1.0,
) -> GradMax:
    """Grows one axis by GradMax.

    In each layer new units get the top right singular vectors of G as fan-outs, G `[fan-in,
    fan-out]` the mean gradient over the batches, each of `scale` times the mean norm of the old
    units' fan-outs. The fan-in is all that writes a unit in its layer, the biases too; the fan-out
    all that reads it. Where G has fewer singular values above 0 than there are new units, the rest
    get random mixtures of the vectors found: the same vector twice would make twins.

    It takes ⌈fan-out / new units⌉ gradients of the large model for each batch.

    Args:
        key: of the operator's plan and of the mixtures.
        params: of the small model.
        source: the small model's table.
        target: the large model; larger on this axis only.
        batches: at least one.
        axis: of units, heads or channels (`lagjax.algebra.kinds`), not gated.
        scale: of the new fan-outs.

    Raises ValueError for another axis, where new units without a fan-in are not silent, and where
    all gradients are 0.
    """
    shapes = target.shapes()
    old, new = source.layout(params), target.axes.layout(shapes)
    _check(axis, old, new)
    base = Grow(width={axis: ZeroPad()})
    plan = base.plan(key, old, new)
    if plan.violations:
        raise ValueError(
            "new units without a fan-in change the function: "
            f"{'; '.join(map(str, plan.violations))}; {REMEDY}"
        )
    first, count = old.sizes[axis], new.sizes[axis] - old.sizes[axis]
    reads, writes = (
        {leaf.path: leaf for leaf in new.leaves if _having(leaf, axis, role)} for role in ("<", ">")
    )
    zeros = {leaf.path: np.zeros(leaf.shape, leaf.dtype) for leaf in new.leaves}

    def fresh(fan_outs: Mapping[Site, Array]) -> dict[str, Array]:
        """The readers, their new entries filled from `[layers, new units, fan-out]` by site."""
        made, starts = {}, dict.fromkeys(fan_outs, 0)
        for path, leaf in reads.items():
            parts, site = list(split(zeros[path], leaf.dims, new.extents)), _site(leaf)
            for part, order in _having(leaf, axis, "<").items():
                rows = _rows(parts[part], order)
                end = starts[site] + rows.shape[2]
                mine = fan_outs[site][:, :, starts[site] : end].astype(leaf.dtype)
                rows = jnp.concatenate([rows[:, :first], mine], axis=1)
                parts[part] = _unrows(rows, order, parts[part].shape)
                starts[site] = end
            made[path] = join(parts, leaf.dims, new.extents)
        return made

    def gathered(
        leaves: Mapping[str, Leaf], values: Mapping[str, Array], role: str
    ) -> dict[Site, Array]:
        """All that writes or reads the units, `[layers, units, fan-in or fan-out]` by site."""
        found: dict[Site, list[Array]] = {}
        for path, leaf in leaves.items():
            parts = split(values[path], leaf.dims, new.extents)
            for part, order in _having(leaf, axis, role).items():
                found.setdefault(_site(leaf), []).append(_rows(parts[part], order))
        return {site: jnp.concatenate(rows, axis=2) for site, rows in found.items()}

    existing = jax.eval_shape(lambda: gathered(reads, zeros, "<"))
    sites = {site: (x.shape[0], x.shape[2]) for site, x in existing.items()}

    @jax.jit
    def columns(
        params: Params, offset: jax.Array, batch: Batch
    ) -> tuple[dict[Site, Array], Array, dict[Site, Array]]:
        """Columns of G from `offset` on, summed over the batch; its count; the grown fan-outs."""
        basis = {
            site: jnp.broadcast_to(
                jax.nn.one_hot(offset + jnp.arange(count), width),
                (layers, count, width),
            )
            for site, (layers, width) in sites.items()
        }
        made = {**zeros, **fresh(basis)}
        grown = new.values(plan.params(params, new.tree(made, shapes)))

        def total(written: dict[str, Array]) -> tuple[jax.Array, Array]:
            return target.loss(new.tree({**grown, **written}, shapes), batch, None)

        grads, number = jax.grad(total, has_aux=True)({p: grown[p] for p in writes})
        gradients = gathered(writes, grads, ">")
        return (
            {site: _wide(gradients[site][:, first:]) for site in sites},
            number,
            gathered(reads, grown, "<"),
        )

    if missing := sites.keys() - {_site(leaf) for leaf in writes.values()}:
        raise ValueError(
            f"axis {axis!r} is read in {', '.join(_label(site, 0, new) for site in missing)}, "
            f"where nothing writes it: its units have no fan-in of their own; {REMEDY}"
        )
    passes = math.ceil(max(width for _, width in sites.values()) / count)
    sums: dict[tuple[Site, int], Array] = {}
    counted, spent, costs = 0.0, 0.0, {}
    for batch in batches:
        signature = tuple(np.shape(x) for x in jax.tree.leaves(batch))
        if signature not in costs:
            costs[signature] = flops(columns, params, np.int32(0), batch)
        spent += passes * costs[signature]
        for index in range(passes):
            found, number, grown = columns(params, np.int32(index * count), batch)
            for site, rows in found.items():
                sums[site, index] = sums.get((site, index), 0) + rows
        counted += float(number)
    if not sums:
        raise ValueError("there are no batches to measure gradients on; give at least one")

    chosen, scores, random = {}, {}, np.random.default_rng(_seed(key))
    for site, (layers, width) in sites.items():
        # [layers, fan-out, fan-in], without the columns after the last basis vector.
        measured = np.concatenate(
            [np.asarray(sums[site, index], float) for index in range(passes)], axis=1
        )[:, :width]
        sizes_of_old = np.linalg.norm(np.asarray(grown[site], float)[:, :first], axis=2)
        rows = []
        for layer in range(layers):
            directions, score = _directions(measured[layer].T / counted, count, random)
            rows.append(scale * sizes_of_old[layer].mean() * directions)
            scores[_label(site, layer, new)] = score
        chosen[site] = jnp.asarray(np.stack(rows))
    if not any(scores.values()):
        raise ValueError(
            f"all gradients of new units of axis {axis!r} are 0: the activation has no slope at 0, "
            f"as relu, or its layers' outputs have no effect; {REMEDY}"
        )
    made = jax.device_get(jax.jit(fresh)(chosen))
    return GradMax(Given(base, tuple(made.items())), spent, scores)


def _check(axis: str, source: Layout, target: Layout) -> None:
    kind = target.kind(axis)
    if not kind.alone:
        raise ValueError(
            f"axis {axis!r} has the kind {kind}; GradMax grows axes whose entries act alone: say "
            f"it in the table, kinds={{{axis!r}: Units(...)}}, or name another axis"
        )
    if isinstance(kind, Units) and kind.gated:
        raise ValueError(
            f"axis {axis!r} is gated: where a gate and what it lets through are both 0, so are "
            f"their gradients; {REMEDY}"
        )
    if source.sizes.get(axis, 0) >= target.sizes.get(axis, 0):
        raise ValueError(
            f"axis {axis!r} has size {source.sizes.get(axis)} in the source and "
            f"{target.sizes.get(axis)} in the target; GradMax adds units: give a target that is "
            "larger on it"
        )


def _directions(
    gradient: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, float]:
    """`count` fan-outs of norm 1, `[count, fan-out]`, from G `[fan-in, fan-out]`; their score."""
    _, values, vectors = np.linalg.svd(gradient, full_matrices=False)
    # Below this a singular value is rounding, in float32 at least.
    rank = int((values > 1e-6 * max(values[0], np.finfo(float).tiny)).sum())
    taken = vectors[: min(rank, count)]
    # A layer without any gradient gets any directions.
    span = vectors[:rank] if rank else np.eye(gradient.shape[1])
    mixed = random.normal(size=(count - len(taken), len(span))) @ span
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.concatenate([taken, mixed]), float((values[: len(taken)] ** 2).sum())


def _wide(x: Array) -> Array:
    """In float32 at least, since it is summed over batches."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _seed(key: Key) -> list[int]:
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return [int(x) for x in np.ravel(key)]


def _site(leaf: Leaf) -> Site:
    return leaf.layer, tuple(dim.stack for dim in leaf.dims if dim.stack)


def _label(site: Site, layer: int, layout: Layout) -> str:
    """A layer's name, such as `layers 0`."""
    unrolled, inside = site
    places = np.unravel_index(layer, [layout.stacks[stack] for stack in inside] or [1])
    named = [*unrolled, *zip(inside, places)]
    return ", ".join(f"{stack} {index}" for stack, index in named) or "all"


class Order(NamedTuple):
    """How `_rows` sees an unfolded array: so many stacks, the units' axis, the rest."""

    stacks: int
    axes: tuple[int, ...]


def _having(leaf: Leaf, axis: str, role: str) -> dict[int, Order]:
    """The pieces of a leaf that have the axis in this role."""
    found = {}
    for part, piece in enumerate(pieces_of(leaf.dims)):
        if (units := piece.at(axis, role)) is not None:
            first = (*piece.stacks, units)
            rest = (at for at in range(len(piece.names)) if at not in first)
            found[part] = Order(len(piece.stacks), (*first, *rest))
    return found


def _rows(value: Array, order: Order) -> Array:
    """`[layers, units, rest]` of an unfolded array."""
    moved = value.transpose(order.axes)
    stacks, units = moved.shape[: order.stacks], moved.shape[order.stacks]
    return moved.reshape(math.prod(stacks), units, -1)


def _unrows(rows: Array, order: Order, shape: tuple[int, ...]) -> Array:
    """The array that `_rows` took apart."""
    moved = rows.reshape([shape[axis] for axis in order.axes])
    return moved.transpose(np.argsort(order.axes))
