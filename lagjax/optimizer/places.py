"""Places: which leaf of an optimizer's state belongs to which parameter, and to which statistic.

A statistic is a part of the state that has the parameters' tree, or what masks and labels leave of
it: its path is the place, and the same in the small and in the large model's state. Nothing goes by
a name, so that a hyperparameter `b1` is not taken for the bias `b1`.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.nnx.training.optimizer import to_opt_state

from lagjax.algebra.layout import Array, Keys, Params, path_of
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
    shapes = _by_keys(params)
    leaves, found = leaves_of(state), {}
    for keys, part in _parts(list(leaves), shapes).items():
        path, shape = shapes[keys[len(part) :]] if part is not None else (None, None)
        at = keys if part is None else part
        found[keys] = Place(at, path, tuple(leaves[keys].shape) == shape)
    return found


def alike(one: Mapping[Keys, Place], other: Mapping[Keys, Place]) -> bool:
    """Whether two states have the same parts; masks and labels may leave some of them out."""

    def parts(places: Mapping[Keys, Place], single: bool) -> set[Keys]:
        found = places.values()
        return {place.part for place in found if (place.parameter is None) is single}

    if parts(one, True) != parts(other, True):
        return False
    both = parts(one, False), parts(other, False)
    return both[0] == both[1] or all(both)


def replanted(
    state: OptState, params: Params, large: Params, source: Mapping[str, str | None]
) -> OptState:
    """The state of a larger model before its first step, made of that of the small model's.

    For a transformation that can make the small model's only, because its labels or its mask are
    trees: each parameter is masked if its source is.

    Args:
        state: of the small model before its first step.
        params: the small model's parameters.
        large: the large model's.
        source: path of a large model's parameter → that of the small model's it is made of.
    """
    shapes = _by_keys(params)
    found = jax.tree_util.tree_flatten_with_path(state, is_leaf=_masked)[0]
    parts = set(_parts([_unboxed(keys) for keys, _ in found], shapes).values())

    def planted(keys: Keys, node: OptState) -> OptState:
        if _unboxed(keys) not in parts:
            return node
        inside = jax.tree_util.tree_flatten_with_path(node, is_leaf=_masked)[0]
        olds = {shapes[_unboxed(keys)]: x for keys, x in inside}
        values = {path: (x, shape) for (path, shape), x in olds.items()}

        def one(keys: Keys, new: Array) -> OptState:
            old, shape = values[source[path_of(keys)] or next(iter(values))]
            if _masked(old):
                return old
            whole = tuple(old.shape) == shape
            return jnp.full(new.shape if whole else old.shape, old.reshape(-1)[0], old.dtype)

        return jax.tree_util.tree_map_with_path(one, large)

    return jax.tree_util.tree_map_with_path(
        planted, state, is_leaf=lambda keys, _: _unboxed(keys) in parts, is_leaf_takes_path=True
    )


def _by_keys(params: Params) -> dict[Keys, tuple[str, tuple[int, ...]]]:
    """The path and shape of each parameter."""
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    return {_unboxed(keys): (path_of(keys), tuple(x.shape)) for keys, x in found}


def _parts(leaves: Sequence[Keys], params: Collection[Keys]) -> dict[Keys, Keys | None]:
    """The path of the statistic that each leaf is of; None where it is of none."""
    under: dict[Keys, int] = Counter()
    mirrored: dict[Keys, int] = Counter()
    for keys in leaves:
        for start in range(len(keys) + 1):
            under[keys[:start]] += 1
            mirrored[keys[:start]] += keys[start:] in params
    return {
        keys: next(
            (
                keys[:start]
                for start in range(len(keys) + 1)
                # All that is there must be of parameters: hyperparameters have others beside them.
                if keys[start:] in params and mirrored[keys[:start]] == under[keys[:start]]
            ),
            None,
        )
        for keys in leaves
    }


def _masked(node: object) -> bool:
    return isinstance(node, optax.MaskedNode)


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
        return to_opt_state(made)  # type: ignore[no-untyped-call]
    if not boxes and any(map(boxed, jax.tree.leaves(made, is_leaf=boxed))):
        return nnx.as_pure(made)
    return made


def _unboxed(keys: Keys) -> Keys:
    boxed = keys and isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value"
    return keys[:-1] if boxed else keys
