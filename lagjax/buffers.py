"""Buffers: trees whose arrays no one else holds, so that they may be donated."""

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
    held = {id(leaf) for leaf in jax.tree.leaves(others)}

    def owned(leaf: object) -> object:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        if id(leaf) in held:
            return jnp.copy(leaf)
        held.add(id(leaf))
        return leaf

    made: Tree = jax.tree.map(owned, tree)
    return made
