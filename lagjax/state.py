"""The optimizer state of a grown model: grown by the parameters' Plan, measured, or reset.

State of the model that is no parameter grows by it too: `collections`.

Adam's steps are free of the gradient's scale, so that a matrix of which each copy is read for a
half moves the function twice as far as before; and a statistic that starts at 0 under an old step
count makes the first steps of what is new several times too long. `scale_by_growth` at the end of a
chain mends both: `carry` tells it of the growth.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Array, Keys, Layout, Params, flatten, path_of
from lagjax.algebra.plan import Plan
from lagjax.algebra.provenance import step_sizes, unseen
from lagjax.buffers import own
from lagjax.model import Batch, Key, Model

OptState: TypeAlias = Any
Schedule: TypeAlias = Literal["restart", "continue"] | int

ORDER = {
    "mu": 1,
    "trace": 1,
    "acc_grads": 1,
    "ema": 1,
    "nu": 2,
    "nu_max": 2,
    "sum_of_squares": 2,
}
"""Fields of optax states, one array a parameter → the order of the gradient's moment in them."""


class ScaleByGrowthState(NamedTuple):
    """Steps since growing, and before; each parameter's factor; which ones have no statistics."""

    steps: jax.Array
    before: jax.Array
    factors: Params
    unseen: Params


def scale_by_growth(
    follow: bool = True,
    betas: tuple[float, float] | None = (0.9, 0.999),
    warmup: int = 0,
) -> optax.GradientTransformation:
    """Scales the steps of a grown model: `optax.chain(optax.adam(1e-3), scale_by_growth())`.

    Before growing it changes nothing; `carry` fills its state. Put it before decoupled weight
    decay, which would be scaled too.

    Args:
        follow: multiply each parameter's steps so that training goes on as the small model's did:
            1/k for a matrix whose inputs were copied k times, the rule of µP (Yang et al. 2022,
            arXiv 2203.03466).
        betas: of Adam: what is new is corrected for its own number of steps, in place of the old
            count; None for optimizers without such a correction.
        warmup: steps over which what is new comes to its full rate.

    The optimizer's steps must be free of the gradient's scale, as Adam's are and SGD's are not: for
    those see `provenance.step_sizes`.
    """

    def init(params: Params) -> ScaleByGrowthState:
        return ScaleByGrowthState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), params),
            jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        found: ScaleByGrowthState = state
        steps = (found.steps + 1).astype(jnp.float32)
        young = jnp.minimum(1.0, steps / warmup) if warmup else jnp.ones(())
        if betas is not None:
            counted = steps + found.before.astype(jnp.float32)
            young = young * _correction(betas, steps) / _correction(betas, counted)

        def scaled(x: jax.Array, factor: jax.Array, new: jax.Array) -> jax.Array:
            own = jnp.where(new, young, 1.0)
            return x * (own * factor if follow else own).astype(x.dtype)

        made = jax.tree.map(scaled, updates, found.factors, found.unseen)
        return made, found._replace(steps=found.steps + 1)

    return optax.GradientTransformation(init, update)


def carry(
    plan: Plan | None,
    state: OptState,
    params: Params,
    large: Params,
    tx: optax.GradientTransformation,
    schedule: Schedule,
) -> OptState:
    """The state of `tx` with which the large model begins.

    Args:
        plan: maps the statistics of gradients, with their step counts; None starts them anew.
        state: the small model's optimizer state, of the same transformation as `tx`.
        params: the small model's parameters.
        large: the large model's parameters.
        tx: the transformation that trains the large model.
        schedule: "restart" begins the learning-rate schedules of `tx` at 0; "continue" at the small
            model's step; a number at that step, so that a schedule is rewound to where a model of
            this loss would be (Shen et al. 2022, arXiv 2203.06211).

    Raises:
        ValueError: for a state that has no rule, by its name; and where the structure of the state
            is not `tx`'s.
    """
    fresh = tx.init(large)
    wanted: object = jax.tree.structure(jax.eval_shape(tx.init, params))
    if wanted != jax.tree.structure(state):
        raise ValueError(
            "the source's optimizer state was not made by tx.init for the source's parameters: "
            f"found\n  {jax.tree.structure(state)}\nGive the transformation that made it, or "
            "reset the moments"
        )
    grown = fresh if plan is None else _moments(plan, state, params, large, fresh)
    if isinstance(schedule, int):
        made = _rewound(grown, schedule)
    else:
        made = _schedules(grown, state if schedule == "continue" else fresh)
    return own(made, state, params, large)


def _correction(betas: tuple[float, float], steps: jax.Array) -> jax.Array:
    """By what Adam multiplies the ratio of its statistics after so many steps."""
    return jnp.sqrt(1 - betas[1] ** steps) / (1 - betas[0] ** steps)


def measure(
    model: Model,
    params: Params,
    state: OptState,
    batches: Sequence[Batch],
    tx: optax.GradientTransformation,
    key: Key,
) -> OptState:
    """The state of `tx` with statistics measured on the grown model itself, at a learning rate of
    zero.

    An alternative to growing them that needs no rule: as many updates as there are batches, none of
    them applied.

    Args:
        model: the large model.
        params: its parameters.
        state: with the schedules' steps to keep, as `carry` gives it with no plan.
        batches: of training data; at least one, and all of one shape.
        tx: the transformation that trains the large model.
        key: for the loss, of dropout say.
    """

    def mean(params: Params, batch: Batch, key: Key) -> jax.Array:
        total, count = model.loss(params, batch, key)
        return total / count

    def step(found: OptState, numbered: tuple[jax.Array, Batch]) -> tuple[OptState, None]:
        number, batch = numbered
        gradient = jax.grad(mean)(params, batch, jax.random.fold_in(key, number))
        return tx.update(gradient, found, params)[1], None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    numbers = jnp.arange(len(batches))
    found, _ = jax.lax.scan(step, tx.init(params), (numbers, stacked))
    return _schedules(found, state)


def collections(
    plan: Plan | None,
    found: Mapping[str, Params],
    fresh: Mapping[str, Params],
    source: Axes,
    target: Axes,
) -> dict[str, Params]:
    """State that is no parameter, grown: batch statistics, averages of the parameters.

    A leaf with a row of its own in the axes table, under `collection/path`, is a statistic of what
    is along its axes and grows as that does, a variance by the square. Any other is a copy of the
    parameter at its path, and grows as this does. A collection that the large model lacks is left
    out.

    Args:
        plan: of the parameters' growth; None starts the collections anew.
        found: the small model's collections by name.
        fresh: the large model's before the first step; what is new stays as it is there, with the
            factors that new entries of parameters have.
        source: the small model's axes table.
        target: the large model's.

    Raises ValueError for a collection that the small model lacks, and for a leaf that has neither
    row nor parameter.
    """
    if plan is None:
        return dict(fresh)
    if lacking := fresh.keys() - found.keys():
        raise ValueError(
            f"the large model has the collections {sorted(fresh)}, the small one {sorted(found)}; "
            f"give {sorted(lacking)} of the small one too, or start them by the engine's init"
        )
    whole = dataclasses.replace(
        plan,
        source=source.with_state(plan.source, {name: found[name] for name in fresh}),
        target=target.with_state(plan.target, fresh),
        invented=plan.invented | {f"{name}/{one}" for name in fresh for one in plan.invented},
    )
    grown = whole.state(_by_path(found), _by_path(fresh))
    return {
        name: jax.tree.unflatten(
            jax.tree.structure(tree), [grown[f"{name}/{path}"] for path in flatten(tree)]
        )
        for name, tree in fresh.items()
    }


def _by_path(trees: Mapping[str, Params]) -> dict[str, Array]:
    return {
        f"{name}/{path}": x for name, tree in trees.items() for path, x in flatten(tree).items()
    }


def _of_growth(node: object) -> bool:
    return isinstance(node, ScaleByGrowthState)


def _told(plan: Plan, old: ScaleByGrowthState, fresh: ScaleByGrowthState) -> ScaleByGrowthState:
    """The state of `scale_by_growth` right after growing."""
    like = jax.tree.structure(fresh.factors)
    return ScaleByGrowthState(
        jnp.zeros((), jnp.int32),
        old.steps + old.before,
        jax.tree.unflatten(like, [jnp.asarray(x, jnp.float32) for x in step_sizes(plan)]),
        jax.tree.unflatten(like, [jnp.asarray(x) for x in unseen(plan)]),
    )


def _moments(
    plan: Plan, state: OptState, params: Params, large: Params, fresh: OptState
) -> OptState:
    """Grows what is shaped like the parameters, field by field, and carries the rest."""
    old_paths, new_paths = _keys(params), _keys(large)
    sources: dict[Keys, dict[str, Array]] = {}
    rest: dict[Keys, Any] = {}
    for keys, value in jax.tree_util.tree_flatten_with_path(state, is_leaf=_of_growth)[0]:
        prefix, path = _owner(keys, old_paths)
        if path is None:
            rest[keys] = value
        else:
            _check_shape(keys, value, plan.source, path)
            sources.setdefault(prefix, {})[path] = value
    leaves, treedef = jax.tree_util.tree_flatten_with_path(fresh, is_leaf=_of_growth)
    wanted: dict[Keys, dict[str, Array]] = {}
    for keys, value in leaves:
        prefix, path = _owner(keys, new_paths)
        if path is not None:
            wanted.setdefault(prefix, {})[path] = value
    made = {
        prefix: plan.moments(sources.get(prefix, {}), group, _order(prefix))
        for prefix, group in wanted.items()
    }
    values: list[Any] = []
    for keys, value in leaves:
        prefix, path = _owner(keys, new_paths)
        if path is not None:
            values.append(made[prefix][path])
        elif _of_growth(value):
            values.append(_told(plan, rest[keys], value))
        elif keys in rest and rest[keys].shape == value.shape:
            values.append(rest[keys])
        else:
            raise ValueError(_no_rule(keys))
    return jax.tree.unflatten(treedef, values)


def _keys(params: Params) -> dict[Keys, str]:
    return {keys: path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(params)[0]}


def _owner(keys: Keys, paths: dict[Keys, str]) -> tuple[Keys, str | None]:
    """Splits the path of a state's leaf into the field that holds it and its parameter's path."""
    for start in range(len(keys) + 1):
        if keys[start:] in paths and start:
            return keys[:start], paths[keys[start:]]
    return keys, None


def _check_shape(keys: Keys, value: Array, source: Layout, path: str) -> None:
    leaf = next(leaf for leaf in source.leaves if leaf.path == path)
    if tuple(value.shape) != leaf.shape:
        raise ValueError(
            f"{_no_rule(keys)}; it has shape {tuple(value.shape)}, its parameter {leaf.shape}"
        )


def _order(prefix: Keys) -> int:
    field = next(
        (key.name for key in reversed(prefix) if isinstance(key, jax.tree_util.GetAttrKey)),
        None,
    )
    if field not in ORDER:
        raise ValueError(_no_rule(prefix))
    return ORDER[field]


def _no_rule(keys: Keys) -> str:
    return (
        f"no rule grows the optimizer state {path_of(keys)!r}; reset the moments, or use a "
        f"transformation whose statistics are among {', '.join(ORDER)}"
    )


def _rewound(state: OptState, step: int) -> OptState:
    """The state with its schedules at a step."""

    def rewind(one: Any) -> Any:
        if isinstance(one, optax.InjectStatefulHyperparamsState):
            one = one._replace(
                inner_state=_rewound(one.inner_state, step),
                # Of its schedules, which hold nothing but their count.
                hyperparams_states=jax.tree.map(
                    lambda x: jnp.asarray(step, x.dtype), one.hyperparams_states
                ),
            )
        return one._replace(count=jnp.asarray(step, jnp.int32)) if _scheduled(one) else one

    return jax.tree.map(rewind, state, is_leaf=_scheduled)


def _scheduled(node: object) -> bool:
    return isinstance(node, optax.ScaleByScheduleState | optax.InjectStatefulHyperparamsState)


def _schedules(state: OptState, like: OptState) -> OptState:
    """The state with its schedules' step counts and values taken from another."""
    # By path, because the parameters inside the two states may be of different depth.
    others = dict(jax.tree_util.tree_flatten_with_path(like, is_leaf=_scheduled)[0])

    def swap(keys: Keys, one: Any) -> Any:
        if not _scheduled(one):
            return one
        if isinstance(one, optax.InjectStatefulHyperparamsState):
            return others[keys]._replace(
                inner_state=_schedules(one.inner_state, others[keys].inner_state)
            )
        return others[keys]

    return jax.tree_util.tree_map_with_path(swap, state, is_leaf=_scheduled)
