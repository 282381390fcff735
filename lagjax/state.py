"""The optimizer state of a grown model: grown by the parameters' Plan, measured, or reset.

State of the model that is no parameter grows by it too: `collections`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Array, Keys, Params, flatten, path_of
from lagjax.algebra.plan import Plan
from lagjax.algebra.provenance import added, step_sizes
from lagjax.buffers import own
from lagjax.model import Batch, Key, Model, mean_loss
from lagjax.optimizer.places import Place, alike, boxed_as, leaves_of, nodes, places, replanted
from lagjax.optimizer.reading import read
from lagjax.optimizer.rules import OptState, Rule
from lagjax.optimizer.scaling import ScaleByGrowthState, scale_by_growth, told

__all__ = ["ScaleByGrowthState", "carry", "collections", "measure", "scale_by_growth"]

Schedule: TypeAlias = Literal["restart", "continue"] | int


def carry(
    plan: Plan | None,
    state: OptState,
    params: Params,
    large: Params,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    originals: bool = False,
) -> OptState:
    """The state of `tx` with which the large model begins.

    Statistics grow as `optimizer.reading` finds that they follow the gradient, or by the rules of
    `grown_by`; what only counts their steps goes with them. What counts or keeps anything else
    belongs to a schedule.

    Args:
        plan: maps the statistics of gradients, with their step counts; None starts them anew.
        state: the small model's optimizer state, pure or as `nnx.Optimizer` holds it. Its
            transformation is `tx`, or differs from it in trees of labels and masks only.
        params: the small model's parameters.
        large: the large model's parameters.
        tx: the transformation that trains the large model.
        schedule: "restart" begins the schedules of `tx` at 0, of rates, decay, accumulation and
            all others; "continue" at the small model's step; a number at that step, so that a
            schedule is rewound to where a model of this loss would be (Shen et al. 2022,
            arXiv 2203.06211). What is no step count, such as a rate cut on a plateau, goes on at
            a number as at "continue".
        originals: grow the statistics of originals only; those of copies begin anew, as what is new
            does (`provenance.added`). `scale_by_growth` counts their steps from here on, and warms
            their rate up.

    Raises:
        ValueError: for a part of the state that has no rule, by its name and with the reason; and
            where the structure of the state is not `tx`'s.
    """
    if isinstance(schedule, str) and schedule not in ("restart", "continue"):
        raise ValueError(f"schedule is {schedule!r}; expected 'restart', 'continue' or a step")
    try:
        fresh, rules = tx.init(large), None
    except (ValueError, TypeError, KeyError):
        # Its labels or its mask are a tree of the small model.
        if plan is None:
            raise
        fresh, rules = _of_the_small(plan, tx, params, large)
    if plan is None and schedule == "restart":
        return boxed_as(own(fresh, state, params, large), state)
    old, begun = leaves_of(state), leaves_of(fresh)
    before, after = places(state, params), places(fresh, large)
    if not alike(before, after):
        raise ValueError(
            "the source's optimizer state was not made by tx.init for the source's parameters: "
            f"found\n  {jax.tree.structure(state)}\nGive the transformation that made it, or "
            "reset the moments"
        )
    rules, made = read(tx, large) if rules is None else rules, dict[Keys, Array]()
    if plan is not None:
        for node in nodes(fresh)[0]:
            made |= _told(plan, node, (old, before), (begun, after), originals)
        made |= _statistics(plan, rules, (old, before), (begun, after), originals)
    for keys, rule in rules.items():
        if rule.kind == "refused" and plan is not None:
            raise ValueError(_no_rule(after[keys], rule.why))
        if (
            rule.kind == "schedule"
            and schedule != "restart"
            or (rule.kind == "kept" and plan is not None)
        ):
            made[keys] = _kept(old, begun, keys, after[keys])
        if rule.counts and not isinstance(schedule, str):
            made[keys] = jnp.full_like(begun[keys], schedule)
    leaves = [made.get(keys, x) for keys, x in begun.items()]
    grown = jax.tree.unflatten(jax.tree.structure(fresh), leaves)
    return boxed_as(own(grown, state, params, large), state)


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
        return mean_loss(*model.loss(params, batch, key))

    def step(found: OptState, numbered: tuple[jax.Array, Batch]) -> tuple[OptState, None]:
        number, batch = numbered
        gradient = jax.grad(mean)(params, batch, jax.random.fold_in(key, number))
        return tx.update(gradient, found, params)[1], None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    numbers = jnp.arange(len(batches))
    found, _ = jax.lax.scan(step, tx.init(params), (numbers, stacked))
    kept, rules = leaves_of(state), read(tx, params)
    leaves = [
        kept[keys] if keys in rules and rules[keys].kind == "schedule" else x
        for keys, x in leaves_of(found).items()
    ]
    return own(jax.tree.unflatten(jax.tree.structure(found), leaves), state, params)


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
        return own(dict(fresh), found, fresh)
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
    made = {
        name: jax.tree.unflatten(
            jax.tree.structure(tree), [grown[f"{name}/{path}"] for path in flatten(tree)]
        )
        for name, tree in fresh.items()
    }
    return own(made, found, fresh)


def _by_path(trees: Mapping[str, Params]) -> dict[str, Array]:
    return {
        f"{name}/{path}": x for name, tree in trees.items() for path, x in flatten(tree).items()
    }


def _of_the_small(
    plan: Plan, tx: optax.GradientTransformation, params: Params, large: Params
) -> tuple[OptState, dict[Keys, Rule]]:
    """The large model's first state, and its rules, from those of the small one."""
    source: dict[str, str | None] = {}
    for leaf in plan.target.leaves:
        old = plan.source_of(leaf)
        arrays = plan.target.unrolled.get(leaf.path, (leaf.path,))
        source |= dict.fromkeys(arrays, None if old is None else old.path)
    begun = tx.init(params)
    fresh, rules = replanted(begun, params, large, source), read(tx, params)
    by_place = dict[tuple[Keys, str | None], Rule]()
    for keys, place in places(begun, params).items():
        if keys in rules:
            by_place[place.part, place.parameter] = by_place[place.part, None] = rules[keys]
    made = {}
    for keys, place in places(fresh, large).items():
        at = None if place.parameter is None else source[place.parameter]
        if (place.part, at) in by_place:
            made[keys] = by_place[place.part, at]
    return fresh, made


Leaves: TypeAlias = tuple[Mapping[Keys, Array], Mapping[Keys, Place]]


def _parts(leaves: Leaves) -> dict[Keys, dict[str, Array]]:
    """What has its parameter's shape, by the path of the statistic and of the parameter."""
    found: dict[Keys, dict[str, Array]] = {}
    for keys, place in leaves[1].items():
        if place.whole and place.parameter is not None:
            found.setdefault(place.part, {})[place.parameter] = leaves[0][keys]
    return found


def _statistics(
    plan: Plan, rules: Mapping[Keys, Rule], small: Leaves, large: Leaves, originals: bool
) -> dict[Keys, Array]:
    """Grows what follows the gradient, each part by its rule."""
    sources, groups = _parts(small), dict[tuple[Keys, Rule], dict[str, Keys]]()
    sizes: dict[str, Array] = {}
    anew = dict(zip(plan.target.paths, added(plan))) if originals else {}
    if any(rule.growth for rule in rules.values()):
        sizes = dict(zip(plan.target.paths, step_sizes(plan)))
    for keys, rule in rules.items():
        if rule.kind == "statistic":
            place = large[1][keys]
            groups.setdefault((place.part, rule), {})[str(place.parameter)] = keys
    made = {}
    for (part, rule), wanted in groups.items():
        found = {path: _less(x, rule.start) for path, x in sources.get(part, {}).items()}
        fresh = {path: _less(large[0][keys], rule.start) for path, keys in wanted.items()}
        for path, x in _grown(plan, part, found, fresh, rule).items():
            if rule.growth:
                x = x * jnp.asarray(sizes[path] ** rule.growth, x.dtype)
            if path in anew:
                x = jnp.where(anew[path], fresh[path], x)
            made[wanted[path]] = _less(x, -rule.start)
    return made


def _grown(
    plan: Plan, part: Keys, found: dict[str, Array], fresh: dict[str, Array], rule: Rule
) -> dict[str, Array]:
    try:
        return plan.moments(found, fresh, rule.power, odd=rule.odd)
    except ValueError as error:
        raise ValueError(
            f"the optimizer state {path_of(part)!r}: {error}; give both models the same masks and "
            "labels, or reset the moments"
        ) from None


def _less(x: Array, start: float) -> Array:
    return x - jnp.asarray(start, x.dtype) if start else x


def _told(
    plan: Plan, node: Keys, small: Leaves, large: Leaves, originals: bool
) -> dict[Keys, Array]:
    """The state of `scale_by_growth` at a node right after growing."""
    name = jax.tree_util.GetAttrKey
    factors, born = (*node, name("factors")), (*node, name("born"))
    steps = (*node, name("steps"))
    old, fresh = _parts(small), _parts(large)
    new = fresh.get(factors, {}), fresh.get(born, {})
    found = told(plan, small[0][steps], old.get(factors, {}), old.get(born, {}), new, originals)
    values = {factors: found[0], born: found[1]}
    made = {
        keys: values[place.part][str(place.parameter)]
        for keys, place in large[1].items()
        if place.part in values
    }
    return made | {steps: small[0][steps]}


def _kept(old: Mapping[Keys, Array], begun: Mapping[Keys, Array], keys: Keys, at: Place) -> Array:
    value = old.get(keys)
    if value is None or value.shape != begun[keys].shape:
        has = "none" if value is None else f"the shape {value.shape}"
        raise ValueError(_no_rule(at, f"the source has {has}, the target {begun[keys].shape}"))
    return jnp.asarray(value)


def _no_rule(place: Place, why: str) -> str:
    return (
        f"no rule grows the optimizer state {path_of(place.part)!r}"
        + (f" of {place.parameter!r}" if place.parameter else "")
        + f": {why}; reset the moments, or give a rule by lagjax.grown_by"
    )
