"""Places: which leaf of an optimizer's state belongs to which parameter, and to which statistic.

A statistic is a part of the state that has the parameters' tree, or what masks and labels leave of
it: its path is the place, and the same in the small and in the large model's state. Nothing goes by
a name, so that a hyperparameter `b1` is not taken for the bias `b1`.
"""

import collections
from typing import NamedTuple

import jax
from flax import nnx
from flax.nnx.training.optimizer import to_opt_state

from lagjax.algebra.axes import Array, Keys, Params, path_of
from lagjax.optimizer.rules import OptState, Ruled
from lagjax.optimizer.scaling import of_growth


class Place(NamedTuple):
    """Where a leaf stands.

    Attributes:
        part: the path of the statistic, or the leaf's own where it is none of a parameter.
        parameter: the path of its parameter, if it has one.
        whole: it has the shape of this parameter.
    """

    part: Keys
    parameter: str | None
    whole: bool

    @property
    def node(self) -> Keys:
        """The path of what holds the statistic."""
        return self.part[:-1]


def leaves_of(state: OptState) -> dict[Keys, Array]:
    """The leaves of a state by path, those of boxes by the box's."""
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return {_unboxed(keys): leaf for keys, leaf in found}


def places(state: OptState, params: Params) -> dict[Keys, Place]:
    """The place of every leaf of a state of these parameters; arrays or their shapes."""
    shapes: dict[Keys, tuple[str, tuple[int, ...]]] = {}
    for keys, x in jax.tree_util.tree_flatten_with_path(params)[0]:
        shapes[_unboxed(keys)] = path_of(keys), tuple(x.shape)
    leaves = leaves_of(state)
    under: dict[Keys, int] = collections.Counter()
    mirrored: dict[Keys, int] = collections.Counter()
    for keys in leaves:
        for start in range(len(keys) + 1):
            under[keys[:start]] += 1
            mirrored[keys[:start]] += keys[start:] in shapes
    found = {}
    for keys, leaf in leaves.items():
        found[keys] = Place(keys, None, False)
        for start in range(len(keys) + 1):
            part = keys[:start]
            # All that is there must be of parameters: hyperparameters have others beside them.
            if keys[start:] in shapes and mirrored[part] == under[part]:
                path, shape = shapes[keys[start:]]
                found[keys] = Place(part, path, tuple(leaf.shape) == shape)
                break
    return found


def nodes(state: OptState) -> tuple[set[Keys], dict[Keys, Ruled]]:
    """Where `scale_by_growth` has its state, and what has rules of its own."""
    growth: set[Keys] = set()
    ruled: dict[Keys, Ruled] = {}

    def walk(tree: OptState, above: Keys) -> None:
        inner = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda node: of_growth(node) or isinstance(node, Ruled)
        )[0]
        for keys, node in inner:
            if of_growth(node):
                growth.add((*above, *keys))
            elif isinstance(node, Ruled):
                ruled[(*above, *keys)] = node
                walk(node.state, (*above, *keys, jax.tree_util.GetAttrKey("state")))

    walk(state, ())
    return growth, ruled


def boxed_as(made: OptState, state: OptState) -> OptState:
    """A state with its arrays in boxes where another has them: `nnx.Optimizer` holds it so."""

    def boxed(node: object) -> bool:
        return isinstance(node, nnx.Variable)

    boxes = [x for x in jax.tree.leaves(state, is_leaf=boxed) if boxed(x)]
    if any(isinstance(box, nnx.OptState) for box in boxes):
        return to_opt_state(made)
    if not boxes and any(map(boxed, jax.tree.leaves(made, is_leaf=boxed))):
        return nnx.as_pure(made)
    return made


def _unboxed(keys: Keys) -> Keys:
    boxed = keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value"
    return keys[:-1] if boxed else keys
