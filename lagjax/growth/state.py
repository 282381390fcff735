"""The optimizer state of a grown model: grown by the same Plan as the parameters, or reset."""

from typing import Any, Literal, TypeAlias

import jax
import optax

from lagjax.axes import Layout, Params, path_of
from lagjax.growth.plan import Plan

OptState: TypeAlias = Any

ORDER = {
    "mu": 1,
    "trace": 1,
    "acc_grads": 1,
    "ema": 1,
    "nu": 2,
    "nu_max": 2,
    "sum_of_squares": 2,
}
"""Fields of optax states that hold one array a parameter → the order of the gradient's moment they estimate."""


def carry(
    plan: Plan | None,
    state: OptState,
    params: Params,
    large: Params,
    tx: optax.GradientTransformation,
    schedule: Literal["restart", "continue"],
) -> OptState:
    """The state of `tx` with which the large model begins.

    Args:
        plan: maps the statistics of gradients, with their step counts; None starts them anew.
        state: the small model's optimizer state, of the same transformation as `tx`.
        params: the small model's parameters.
        large: the large model's parameters.
        tx: the transformation that trains the large model.
        schedule: "restart" begins the learning-rate schedules of `tx` at 0; "continue" at the small model's step.

    Raises:
        ValueError: for a state that has no rule, by its name; and where the structure of the state is not `tx`'s.
    """
    fresh = tx.init(large)
    wanted: Any = jax.tree.structure(jax.eval_shape(tx.init, params))
    if wanted != jax.tree.structure(state):
        raise ValueError(
            "the source's optimizer state was not made by tx.init for the source's parameters: found\n"
            f"  {jax.tree.structure(state)}\nGive the transformation that made it, or reset the moments"
        )
    grown = fresh if plan is None else _moments(plan, state, params, large, fresh)
    return _schedules(grown, state if schedule == "continue" else fresh)


def _moments(
    plan: Plan, state: OptState, params: Params, large: Params, fresh: OptState
) -> OptState:
    """Grows what is shaped like the parameters, field by field, and carries the rest."""
    old_paths, new_paths = _keys(params), _keys(large)
    sources: dict[Any, dict[str, Any]] = {}
    rest: dict[Any, Any] = {}
    for keys, value in jax.tree_util.tree_flatten_with_path(state)[0]:
        prefix, path = _owner(keys, old_paths)
        if path is None:
            rest[keys] = value
        else:
            _check_shape(keys, value, plan.source, path)
            sources.setdefault(prefix, {})[path] = value
    leaves, treedef = jax.tree_util.tree_flatten_with_path(fresh)
    wanted: dict[Any, dict[str, Any]] = {}
    for keys, value in leaves:
        prefix, path = _owner(keys, new_paths)
        if path is not None:
            wanted.setdefault(prefix, {})[path] = value
    made = {
        prefix: plan.moments(sources.get(prefix, {}), group, _order(prefix))
        for prefix, group in wanted.items()
    }
    values = []
    for keys, value in leaves:
        prefix, path = _owner(keys, new_paths)
        if path is not None:
            values.append(made[prefix][path])
        elif keys in rest and rest[keys].shape == value.shape:
            values.append(rest[keys])
        else:
            raise ValueError(_no_rule(keys))
    return jax.tree.unflatten(treedef, values)


def _keys(params: Params) -> dict[Any, str]:
    return {
        keys: path_of(keys)
        for keys, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    }


def _owner(
    keys: tuple[Any, ...], paths: dict[Any, str]
) -> tuple[tuple[Any, ...], str | None]:
    """Splits the path of a state's leaf into the field that holds it and the parameter it belongs to."""
    for start in range(len(keys) + 1):
        if keys[start:] in paths and start:
            return keys[:start], paths[keys[start:]]
    return keys, None


def _check_shape(keys: tuple[Any, ...], value: Any, source: Layout, path: str) -> None:
    leaf = next(leaf for leaf in source.leaves if leaf.path == path)
    if tuple(value.shape) != leaf.shape:
        raise ValueError(
            f"{_no_rule(keys)}; it has shape {tuple(value.shape)}, its parameter {leaf.shape}"
        )


def _order(prefix: tuple[Any, ...]) -> int:
    field = next(
        (
            key.name
            for key in reversed(prefix)
            if isinstance(key, jax.tree_util.GetAttrKey)
        ),
        None,
    )
    if field not in ORDER:
        raise ValueError(_no_rule(prefix))
    return ORDER[field]


def _no_rule(keys: tuple[Any, ...]) -> str:
    return (
        f"no rule grows the optimizer state {path_of(keys)!r}; reset the moments, or use a transformation whose "
        f"statistics are among {', '.join(ORDER)}"
    )


def _schedules(state: OptState, like: OptState) -> OptState:
    """The state with its schedules' step counts and values taken from another."""

    def scheduled(node: Any) -> bool:
        return isinstance(
            node, optax.ScaleByScheduleState | optax.InjectStatefulHyperparamsState
        )

    # By path, because the parameters inside the two states may be of different depth.
    others = dict(jax.tree_util.tree_flatten_with_path(like, is_leaf=scheduled)[0])

    def swap(keys: tuple[Any, ...], one: Any) -> Any:
        if not scheduled(one):
            return one
        if isinstance(one, optax.InjectStatefulHyperparamsState):
            return others[keys]._replace(
                inner_state=_schedules(one.inner_state, others[keys].inner_state)
            )
        return others[keys]

    return jax.tree_util.tree_map_with_path(swap, state, is_leaf=scheduled)
