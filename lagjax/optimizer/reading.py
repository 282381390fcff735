"""Reading how the parts of an optimizer's state follow the gradient from what the optimizer does.

It is run for a few steps on small random gradients of a model with the same tree, all sizes cut
down to 2, and again with each entry's gradient c times as large, c its own. A part that is then c,
c² or 1 times as large, entry by entry, grows as the gradient does. What mixes entries, such as a
norm of a matrix, follows none of these: its value in a large model is another matter.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lagjax.algebra.layout import Keys, Params, path_of
from lagjax.optimizer.course import SIZES, Courses, Numbers, Series, Tree
from lagjax.optimizer.places import Place, leaves_of, nodes, places
from lagjax.optimizer.rules import Given, Rule, Ruled

LARGEST = 2**20
"""Parameters of a model that is run at its own size, where `tx` works on no other."""
ORDERS = (1, True), (2, False), (0, True), (0, False), (1, False), (2, True)
"""Powers of the gradient, and whether its sign goes along; the usual ones first."""
Shapes: TypeAlias = Mapping[Keys, Any]


def read(tx: optax.GradientTransformation, params: Params) -> dict[Keys, Rule]:
    """The rule of every leaf of the state that `tx` has for these parameters, or their shapes.

    All but those of `scale_by_growth`. It is worked out once for a transformation and a tree, at
    the time of tracing if there is any.
    """
    leaves, structure = jax.tree.flatten(params)
    tree = Tree(structure, tuple((tuple(x.shape), x.dtype) for x in leaves))
    try:
        hash((tx, tree))
    except TypeError:
        # Of an optimizer, or of boxes, that cannot be told from others.
        return _read.__wrapped__(tx, tree)
    return _read(tx, tree)


@functools.lru_cache(maxsize=64)
def _read(tx: optax.GradientTransformation, tree: Tree) -> dict[Keys, Rule]:
    state = jax.eval_shape(tx.init, tree.abstract)
    growth, ruled = nodes(state)
    shapes = leaves_of(state)
    found = {
        keys: place
        for keys, place in places(state, tree.abstract).items()
        if not any(keys[: len(node)] == node for node in growth)
    }
    told = {keys: _given(keys, place, ruled) for keys, place in found.items()}
    read: dict[Keys, Rule] = {}
    if any(rule is None for rule in told.values()):
        read = _behaviour(tx, tree, found, shapes)
    made = {}
    for keys, place in found.items():
        rule = told[keys]
        made[keys] = read[keys] if rule is None else _ruled(rule, place, shapes[keys].dtype)
    return made


def _given(keys: Keys, place: Place, ruled: Mapping[Keys, Ruled]) -> Given | None:
    """The rule that a user gave, by the innermost who did."""
    for node in sorted(ruled, key=len, reverse=True):
        if keys[: len(node)] == node:
            part = path_of(place.part[len(node) + 1 :])
            for pattern, rule in ruled[node].rules:
                if re.fullmatch(pattern, part):
                    return rule
    return None


def _ruled(rule: Given, place: Place, dtype: Any) -> Rule:
    if rule == "keep" or rule == "anew":
        return Rule("kept" if rule == "keep" else "anew")
    if rule == "schedule":
        return Rule("schedule", counts=jnp.issubdtype(dtype, jnp.integer))
    if not place.whole:
        return Rule("refused", why=f"its rule is {rule}, but it has not its parameter's shape")
    return Rule("statistic", rule, rule < 2 and jnp.issubdtype(dtype, jnp.inexact))


def _behaviour(
    tx: optax.GradientTransformation,
    tree: Tree,
    found: Mapping[Keys, Place],
    shapes: Shapes,
) -> dict[Keys, Rule]:
    why = ""
    # A transformation may hold arrays of the model's own shapes, or mask by size.
    for one, with_value in itertools.product((tree.cut, tree), (True, False)):
        if with_value and type(tx) is optax.GradientTransformation:
            continue
        if sum(int(np.prod(shape)) for shape, _ in one.shapes) > LARGEST:
            why = f"it works on the model's own size only, which is too large to try ({why})"
            break
        try:
            with jax.ensure_compile_time_eval():
                runs = Courses(tx, one, with_value)
                if leaves_of(runs.last).keys() == shapes.keys():
                    return _rules(runs, found, shapes)
                why = "it depends on sizes"
        except Exception as error:  # noqa: BLE001 (a user's transformation may raise any)
            said = str(error).strip().partition("\n")[0]
            why = f"it does not run on gradients alone ({type(error).__name__}: {said})"
    return {keys: _unread(place, found, shapes[keys], why) for keys, place in found.items()}


def _unread(place: Place, found: Mapping[Keys, Place], leaf: Any, why: str) -> Rule:
    """The rule where nothing could be run: what stands alone is of a schedule."""
    beside = any(other.whole and other.node == place.node for other in found.values())
    if place.parameter is None and not beside:
        return Rule("schedule", counts=leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer))
    return Rule("refused", why=why)


def _rules(runs: Courses, found: Mapping[Keys, Place], shapes: Shapes) -> dict[Keys, Rule]:
    whole = [keys for keys, place in found.items() if place.whole]
    if not all(_moved(runs, keys) for keys in whole):
        runs.further()
    first = runs.at(SIZES[0])
    like = dict(zip(runs.paths, (shape for shape, _ in runs.tree.shapes)))
    made, still = dict[Keys, Rule](), list[Keys]()
    for keys, place in found.items():
        expected = like[str(place.parameter)] if place.whole else tuple(shapes[keys].shape)
        if runs.shape(keys) != expected:
            made[keys] = Rule("refused", why="its shape depends on the parameters' sizes")
        elif place.whole and not np.array_equal(first["plain"][keys][0], first["params"][keys][0]):
            made[keys] = Rule("refused", why="it holds parameters")
        elif place.whole and not _moved(runs, keys):
            still.append(keys)
        elif place.whole:
            made[keys] = _statistic(keys, str(place.parameter), runs)
        elif _differs(first, keys, ("plain", "times", "none")):
            why = "it follows the gradient, and is no statistic of a parameter's shape"
            made[keys] = Rule("refused", why=why)
        elif _differs(first, keys, ("plain", "params")):
            made[keys] = Rule("refused", why="it follows the parameters")
        else:
            made[keys] = _constant(keys, first, found)
    for keys in still:
        made[keys] = _alike(keys, found, made, runs)
    left = {
        keys
        for keys, place in found.items()
        if made[keys].kind == "refused" or (place.parameter is not None and not place.whole)
        if not jnp.issubdtype(shapes[keys].dtype, jax.dtypes.extended)
    }
    if left and runs.unread(left):
        made |= {keys: Rule("anew") for keys in left}
    return made


def _moved(runs: Courses, keys: Keys) -> bool:
    series = runs.at(SIZES[0])["plain"][keys]
    return bool((series != series[:1]).any())


def _differs(runs: Mapping[str, Series], keys: Keys, names: Sequence[str]) -> bool:
    one, *others = (runs[name][keys] for name in names)
    return not all(np.array_equal(one, other, equal_nan=one.dtype.kind == "f") for other in others)


def _statistic(keys: Keys, parameter: str, runs: Courses) -> Rule:
    """The rule by which a part of a parameter's shape follows its gradient.

    It must be the same at two sizes of the gradient: beside an epsilon there is none.
    """
    first = {name: found[keys] for name, found in runs.at(SIZES[0]).items()}
    none = first["none"]
    kept = (none == none[:1]).all() and len(np.unique(none[0])) == 1
    # Counts are the same without gradients; Yogi's first mean, of 1e-6, is none to speak of.
    alone = np.array_equal(none, first["plain"]) or _close(first["plain"] - none, first["plain"])
    if none[0].any() and not kept and not alone:
        return Rule("refused", why="the value that it starts with is still in it")
    start = float(none.flat[0]) if kept else 0.0
    times = runs.times[runs.paths.index(parameter)]
    for one, other in itertools.pairwise(SIZES):
        rule = _follows(keys, runs.at(one), times, start)
        if rule is not None and rule == _follows(keys, runs.at(other), times, start):
            return rule
    why = "it follows neither the gradient, nor its square, nor its sign alone, entry by entry"
    if not _close(first["params"], first["plain"]):
        why = "it follows the parameters too, as with weight decay in the gradient"
    return Rule("refused", why=why)


def _follows(keys: Keys, runs: Mapping[str, Series], times: Numbers, start: float) -> Rule | None:
    """The order of a part in gradients of one size; None where it has none."""
    courses = {name: found[keys] - start for name, found in runs.items()}
    plain = courses["plain"]
    if not plain.any() or not _close(courses["params"], plain):
        return None
    for power, odd in ORDERS:
        factor = np.abs(times) ** power * (np.sign(times) if odd else 1.0)
        if _close(courses["times"], plain * factor):
            break
    else:
        return None
    if "growth" not in courses:
        return Rule("statistic", power, odd, 0, start)
    growth = [n for n in (0, 1, 2) if _close(courses["growth"], plain * np.abs(times) ** n)]
    return Rule("statistic", power, odd, growth[0], start) if growth else None


def _close(found: Numbers, expected: Numbers) -> bool:
    """Within a hundredth of the largest that each entry comes to on its course."""
    return bool((np.abs(found - expected) <= 1e-2 * np.abs(expected).max(0)).all())


def _constant(keys: Keys, runs: Mapping[str, Series], found: Mapping[Keys, Place]) -> Rule:
    """The rule of what is the same whatever the gradients are.

    It belongs to the statistics beside it if it changes whenever they do; else to a schedule, and
    counts the steps of it if it grows by one at a time whatever the losses are.
    """
    series = runs["plain"][keys]
    steps = (
        np.diff(series.astype(np.int64)) if series.dtype.kind in "iu" and series.ndim == 1 else None
    )
    counts = steps is not None and bool(np.isin(steps, (0, 1)).all() and steps.any())
    counts = counts and not _differs(runs, keys, ("plain", "value"))
    moves = np.zeros(len(series) - 1, bool)
    beside = False
    for other, place in found.items():
        if place.whole and place.node == found[keys].node:
            beside, values = True, runs["plain"][other]
            moves |= (values[1:] != values[:-1]).reshape(len(moves), -1).any(1)
    if beside and (steps is None or (steps[moves] != 0).all()):
        return Rule("kept")
    return Rule("schedule", counts=counts)


def _alike(
    keys: Keys, found: Mapping[Keys, Place], made: Mapping[Keys, Rule], runs: Courses
) -> Rule:
    """The rule of what did not move, as that of a frozen parameter: of the rest of its part."""
    others = {
        made[other]
        for other, place in found.items()
        if place.part == found[keys].part and other in made
    }
    if len(others) == 1:
        return others.pop()
    values = runs.at(SIZES[0])["plain"][keys]
    if values.any() and runs.untouched(keys):
        return Rule("statistic")
    return Rule("refused", why=f"it did not move in {len(values) - 1} steps")
