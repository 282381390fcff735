"""What every axes table is checked for, ours and other codebases'."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Layout, Params, flatten
from lagjax.algebra.pieces import join, split
from lagjax.growth.depth import Fresh, Interleave, Stack
from lagjax.growth.operator import Grow
from lagjax.model import Model

KEY = jax.random.key(0)
FRESH = -1.0


def shapes(leaves: dict[str, tuple[int, ...]]) -> Params:
    """A flat tree of shapes."""
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in leaves.items()}


def numbered(tree: Params) -> Params:
    """Arrays in which no two elements are equal."""
    leaves, treedef = jax.tree.flatten(tree)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    return jax.tree.unflatten(
        treedef,
        # Made by NumPy, which compiles nothing for each shape.
        [
            jax.device_put(np.arange(a, a + x.size).reshape(x.shape).astype(x.dtype))
            for x, a in zip(leaves, starts)
        ],
    )


def planted(axes: Axes, tree: Params, origin) -> Params:
    """Arrays that say where they belong: layer i of a stack holds `origin(leaf, stack, i)`, the
    rest 0.

    Stacks inside one another are not told apart.
    """
    values = []
    for leaf, value in zip(axes.layout(tree).leaves, jax.tree.leaves(tree)):
        filled = np.zeros(value.shape, value.dtype)
        for stack, index in leaf.layer:
            filled += origin(leaf, stack, index)
        for position, dim in enumerate(leaf.dims):
            if dim.stack:
                moved = np.moveaxis(filled, position, -1)
                moved += [origin(leaf, dim.stack, i) for i in range(value.shape[position])]
        values.append(jax.device_put(filled))
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def target(axes: Axes, tree: Params) -> Model:
    """A model of these shapes whose fresh values are all `FRESH`."""

    def init(key):
        return jax.tree.map(lambda x: jnp.full(x.shape, FRESH, x.dtype), tree)

    return Model(init, None, axes)


def grow(operator: Grow, params: Params, axes: Axes, model: Model) -> Params:
    """By one program, not one for every operation on every shape."""
    return jax.jit(lambda params: operator(KEY, params, axes, model))(params)


def table(axes: Axes, small: Params, large: Params, large_axes: Axes | None = None) -> Layout:
    """Checks that a table fits two depths of a codebase, and that growing goes by it; returns the
    small layout.
    """
    large_axes = large_axes or axes
    layout = axes.layout(small)
    for leaf, value in zip(layout.leaves, jax.tree.leaves(numbered(small))):
        sizes = {**layout.sizes, **layout.stacks}
        parts = split(value, leaf.dims, sizes)
        assert sum(part.size for part in parts) == value.size
        np.testing.assert_array_equal(join(parts, leaf.dims, sizes), value)
        shaped = jax.eval_shape(lambda x, d=leaf.dims, s=sizes: join(split(x, d, s), d, s), value)
        assert (shaped.shape, shaped.dtype) == (value.shape, value.dtype)
    for strategy in (Stack(), Interleave(), Fresh("between", zero=True)):
        _grows(Grow(depth=strategy), axes, small, large_axes, large)
    return layout


def _grows(operator: Grow, axes: Axes, small: Params, large_axes: Axes, large: Params) -> None:
    words = operator.plan(KEY, axes.layout(small), large_axes.layout(large)).words
    params = planted(axes, small, lambda leaf, stack, index: index + 1)
    grown = grow(operator, params, axes, target(large_axes, large))
    chex.assert_trees_all_equal_shapes_and_dtypes(grown, large)

    def origin(leaf, stack, index):
        layer = words[stack].layers[index]
        value = FRESH if layer.source is None else layer.source + 1
        return value * layer.scale if leaf.residual else value

    chex.assert_trees_all_equal(grown, planted(large_axes, large, origin))


def scanned(layout: Layout, position: int) -> tuple[Axes, Params]:
    """The same codebase with its unrolled layers stacked, along axis 0 or 1: table and shapes."""
    rows, tree = {}, {}
    for leaf in layout.leaves:
        dims, shape = [str(dim) for dim in leaf.dims], list(leaf.shape)
        for stack, _ in leaf.layer:
            at = min(position, len(shape))
            dims.insert(at, f"#{stack}")
            shape.insert(at, layout.stacks[stack])
        rows[re.escape(leaf.name)] = f"{leaf.name}: {' '.join(dims)}"
        tree[leaf.name] = jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
    return Axes(rows, sizes=layout.sizes), tree


def scanning(axes: Axes, tree: Params) -> None:
    """Checks that stacking the layers of an unrolled codebase and unrolling them again changes
    nothing.
    """
    layout, params = axes.layout(tree), numbered(tree)
    for position in (0, 1):
        stacked_axes, stacked = scanned(layout, position)
        same = Grow(depth=Stack())
        there = grow(same, params, axes, target(stacked_axes, stacked))
        chex.assert_trees_all_equal_shapes_and_dtypes(there, stacked)
        values = flatten(params)
        for leaf in layout.leaves:
            if leaf.layer:
                at = min(position, len(leaf.shape))
                np.testing.assert_array_equal(
                    jnp.take(there[leaf.name], leaf.layer[0][1], at), values[leaf.path]
                )
        back = grow(same, there, stacked_axes, target(axes, tree))
        chex.assert_trees_all_equal(back, params)
