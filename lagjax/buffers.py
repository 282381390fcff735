"""Buffers: trees whose arrays no one else holds, so that they may be donated."""

import contextlib
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def own(tree: Tree, *others: object) -> Tree:
    """The tree with an array of its own for every leaf: copies of those that stand twice, or in
    `others`.

    Called eagerly, an operation that changes nothing returns the array that it was given. A grown
    tree would hold the small model's arrays, and one of them in several layers; a train step that
    donates its state fails on the second, and deletes the small model. Under `jax.jit` results have
    buffers of their own, and nothing is copied here.
    """
    held = {place for leaf in jax.tree.leaves(others) for place in _places(leaf)}

    def owned(leaf: object) -> object:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        places = _places(leaf)
        if places & held:
            # jnp.copy compiles a program for each shape.
            return jax.device_put(leaf, leaf.sharding, may_alias=False)
        held.update(places)
        return leaf

    made: Tree = jax.tree.map(owned, tree)
    return made


def _places(leaf: object) -> set[int]:
    """What tells an array's memory from others': two arrays may be of one buffer."""
    found = {id(leaf)}
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return found
        # Not every device tells; there arrays are told apart.
        with contextlib.suppress(RuntimeError):
            found |= {
                x.data.unsafe_buffer_pointer() for x in leaf.addressable_shards if x.data.size
            }
    return found
