"""Reading how the parts of an optimizer's state follow the gradient from what the optimizer does.

It is run for a few steps on small random gradients of a model with the same tree, all sizes cut
down to 2, and again with each entry's gradient c times as large, c its own. A part that is then c,
c² or 1 times as large, entry by entry, grows as the gradient does. What mixes entries, such as a
norm of a matrix, follows none of these: its value in a large model is another matter.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from lagjax.algebra.axes import Keys, Params, path_of
from lagjax.optimizer.places import Place, leaves_of, nodes, places
from lagjax.optimizer.rules import Given, OptState, Rule, Ruled
from lagjax.optimizer.scaling import ScaleByGrowthState, of_growth

SIZES = 0.2, 0.02, 0.002
"""Of the gradients: where something is clipped at one, the next is tried."""
STEPS, MORE = 6, 70
"""How many are taken, and how many where something did not move, as under accumulation."""
TIMES = -0.5, 2.0, -2.0, 0.5
"""By what entries are multiplied: powers of 2, which round nothing."""
LARGEST = 2**22
"""Parameters of a model that is run at its own size, where `tx` works on no other."""

Numbers: TypeAlias = NDArray[Any]
Series: TypeAlias = dict[Keys, Numbers]
"""The values of every leaf after each step, the first before any."""
Shapes: TypeAlias = Mapping[Keys, Any]


class _Tree(NamedTuple):
    """The tree of a model's parameters, and their shapes and dtypes."""

    structure: Any
    shapes: tuple[tuple[tuple[int, ...], Any], ...]

    def filled(self, leaves: Sequence[Any]) -> Params:
        return jax.tree.unflatten(self.structure, leaves)

    @property
    def abstract(self) -> Params:
        return self.filled([jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in self.shapes])

    def cut(self) -> "_Tree":
        return self._replace(
            shapes=tuple((tuple(min(n, 2) for n in shape), x) for shape, x in self.shapes)
        )


def read(tx: optax.GradientTransformation, params: Params) -> dict[Keys, Rule]:
    """The rule of every leaf of the state that `tx` has for these parameters, or their shapes.

    All but those of `scale_by_growth`. It is worked out once for a transformation and a tree, at
    the time of tracing if there is any.
    """
    leaves, structure = jax.tree.flatten(params)
    return _read(tx, _Tree(structure, tuple((tuple(x.shape), x.dtype) for x in leaves)))


@functools.lru_cache(maxsize=64)
def _read(tx: optax.GradientTransformation, tree: _Tree) -> dict[Keys, Rule]:
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
    tree: _Tree,
    found: Mapping[Keys, Place],
    shapes: Shapes,
) -> dict[Keys, Rule]:
    why = ""
    # A transformation may hold arrays of the model's own shapes, or mask by size.
    for one in (tree.cut(), tree):
        if sum(int(np.prod(shape)) for shape, _ in one.shapes) > LARGEST:
            why = f"it works on the model's own size only, which is too large to try ({why})"
            break
        try:
            with jax.ensure_compile_time_eval():
                runs = _Runs(tx, one)
                if runs.first["plain"].keys() >= found.keys():
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


class _Runs:
    """The transformation's course under gradients that differ by known factors.

    `first` has those of the first size of gradients: "plain"; "times", each entry's gradient
    multiplied by `times`; "none", no gradient; "value", other losses; "growth", where
    `scale_by_growth` has the factors |`times`|.
    """

    def __init__(self, tx: optax.GradientTransformation, tree: _Tree) -> None:
        self.tree, draw = tree, np.random.default_rng(0)
        self.paths = [
            path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree.abstract)[0]
        ]
        self.numbers = [self._drawn(draw, *x) for x in tree.shapes]
        self.params = self._as_params(self.numbers)
        self.gradients = [[self._drawn(draw, *one) for one in tree.shapes] for _ in range(MORE)]
        self.times = [
            np.resize(np.roll(TIMES, number), shape)
            for number, (shape, _) in enumerate(tree.shapes)
        ]
        with_value = not isinstance(tx, optax.GradientTransformation) or isinstance(
            tx, optax.GradientTransformationExtraArgs
        )

        def step(grads: Params, state: OptState, params: Params, value: Any) -> Any:
            more = {"value": value} if with_value else {}
            return tx.update(grads, state, params, **more)

        self.step, self.init = jax.jit(step), tx.init
        self.growing = bool(nodes(jax.eval_shape(tx.init, tree.abstract))[0])
        self.first, self.last = self._at(SIZES[0], STEPS)

    def _drawn(self, draw: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Numbers:
        """Between ½ and 1½, of either sign; nothing for what is no number."""
        if not jnp.issubdtype(dtype, jnp.inexact):
            return np.zeros(shape)
        return np.asarray(draw.uniform(0.5, 1.5, shape) * draw.choice([-1.0, 1.0], shape))

    def _as_params(self, leaves: Sequence[Numbers], size: float = 1.0) -> Params:
        made = [jnp.asarray(size * x, dtype) for x, (_, dtype) in zip(leaves, self.tree.shapes)]
        return self.tree.filled(made)

    def begin(self, factors: Sequence[Numbers] | None = None) -> OptState:
        """The state before the first step."""
        state = self.init(self.params)
        if factors is None:
            return state
        by_path = dict(zip(self.paths, factors))

        def scaled(node: Any) -> Any:
            if not isinstance(node, ScaleByGrowthState):
                return node
            found = jax.tree_util.tree_map_with_path(
                lambda keys, x: x * jnp.asarray(by_path[path_of(keys)], x.dtype), node.factors
            )
            return node._replace(factors=found)

        return jax.tree.map(scaled, state, is_leaf=of_growth)

    def course(
        self,
        size: float,
        steps: int,
        times: Sequence[Numbers] | None = None,
        factors: Sequence[Numbers] | None = None,
        falling: bool = True,
    ) -> tuple[Series, OptState]:
        state = self.begin(factors)
        met = [_numbers(state)]
        for number in range(steps):
            grads = self.gradients[number]
            if times is not None:
                grads = [x * c for x, c in zip(grads, times)]
            value = jnp.float32(2.0 + (-0.1 if falling else 0.1) * number)
            _, state = self.step(self._as_params(grads, size), state, self.params, value)
            met.append(_numbers(state))
        return {keys: np.stack([one[keys] for one in met]) for keys in met[0]}, state

    def _at(self, size: float, steps: int) -> tuple[dict[str, Series], OptState]:
        plain, last = self.course(size, steps)
        made = {"plain": plain, "times": self.course(size, steps, self.times)[0]}
        if size == SIZES[0]:
            made["none"] = self.course(0.0, steps)[0]
            made["value"] = self.course(size, steps, falling=False)[0]
        if self.growing:
            factors = [np.abs(x) for x in self.times]
            made["growth"] = self.course(size, steps, factors=factors)[0]
        return made, last

    def further(self) -> None:
        """More steps than before."""
        if len(next(iter(self.first["plain"].values()))) <= STEPS + 1:
            self.first, self.last = self._at(SIZES[0], MORE)

    @functools.cached_property
    def smaller(self) -> list[dict[str, Series]]:
        steps = len(next(iter(self.first["plain"].values()))) - 1
        return [self._at(size, steps)[0] for size in SIZES[1:]]

    def of_parameters(self) -> set[Keys]:
        """The leaves that hold parameters at first."""
        begun = _numbers(self.begin())
        other = _numbers(self.init(self._as_params(self.numbers, 2.0)))
        return {keys for keys, x in begun.items() if not np.array_equal(x, other[keys])}

    def untouched(self, keys: Keys) -> bool:
        """Whether a step hands a leaf on as it is."""
        begun, places = self.begin(), list(leaves_of(self.begin()))
        made = jax.make_jaxpr(self.step)(self.params, begun, self.params, jnp.float32(1.0)).jaxpr
        (call,) = made.eqns
        inner = call.params["jaxpr"].jaxpr
        # Gradients and updates, of which there are as many, come first in both.
        at = len(self.paths) + places.index(keys)
        return inner.invars[at] is inner.outvars[at]

    def unread(self, keys: set[Keys]) -> bool:
        """Whether what comes after does not depend on these leaves' values."""
        first, last = self.begin(), self.last
        begun = leaves_of(first)
        leaves = [begun[k] if k in keys else x for k, x in leaves_of(last).items()]
        other = jax.tree.unflatten(jax.tree.structure(last), leaves)
        grads = self._as_params(self.gradients[0], SIZES[0])
        one, two = (self.step(grads, x, self.params, jnp.float32(1.0)) for x in (last, other))
        return all(
            np.array_equal(a, b)
            for a, b in zip(_numbers(one).values(), _numbers(two).values(), strict=True)
        )


def _numbers(state: OptState) -> dict[Keys, Numbers]:
    """The leaves of a state as numbers of numpy."""

    def number(x: Any) -> Numbers:
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            x = jax.random.key_data(x)
        found = np.asarray(x)
        return found.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else found

    return {keys: number(jnp.asarray(x)) for keys, x in leaves_of(state).items()}


def _rules(runs: _Runs, found: Mapping[Keys, Place], shapes: Shapes) -> dict[Keys, Rule]:
    at = dict(zip(runs.paths, runs.times))
    like = dict(zip(runs.paths, (shape for shape, _ in runs.tree.shapes)))

    def fits(keys: Keys) -> bool:
        """It is of its parameter's shape in the model that is run, too."""
        shape, path = runs.first["plain"][keys].shape[1:], found[keys].parameter
        return shape == (like[str(path)] if found[keys].whole else shapes[keys].shape)

    def statistic(keys: Keys) -> Rule | None:
        times = at[str(found[keys].parameter)]
        return next(
            (
                rule
                for one in (runs.first, *runs.smaller)
                if (rule := _follows(keys, one, runs, times))
            ),
            None,
        )

    whole = [keys for keys, place in found.items() if place.whole]
    if any(not _moved(runs.first, keys) for keys in whole):
        runs.further()
    held, made, still = runs.of_parameters(), dict[Keys, Rule](), []
    for keys, place in found.items():
        if not fits(keys):
            made[keys] = Rule("refused", why="its shape depends on the parameters' sizes")
        elif place.whole and keys in held:
            made[keys] = Rule("refused", why="it holds parameters")
        elif place.whole and not _moved(runs.first, keys):
            still.append(keys)
        elif place.whole:
            made[keys] = statistic(keys) or Rule("refused", why=_no_order(keys, runs))
        elif _differs(runs.first, keys, ("plain", "times", "none")):
            why = "it follows the gradient, and is no statistic of a parameter's shape"
            made[keys] = Rule("refused", why=why)
        else:
            made[keys] = _constant(keys, runs.first, found)
    for keys in still:
        made[keys] = _alike(keys, found, made, runs)
    left = {
        keys
        for keys, rule in made.items()
        if rule.kind == "refused"
        and fits(keys)
        or (found[keys].parameter is not None and not found[keys].whole)
    }
    if left and runs.unread(left):
        made |= {keys: Rule("anew") for keys in left}
    return made


def _moved(runs: Mapping[str, Series], keys: Keys) -> bool:
    series = runs["plain"][keys]
    return bool((series != series[:1]).any())


def _differs(runs: Mapping[str, Series], keys: Keys, names: Sequence[str]) -> bool:
    one, *others = (runs[name][keys] for name in names)
    return not all(np.array_equal(one, other, equal_nan=one.dtype.kind == "f") for other in others)


def _follows(keys: Keys, runs: Mapping[str, Series], of: _Runs, times: Numbers) -> Rule | None:
    """The order of a part in the gradient, under gradients of one size; None where it has none."""
    start, none = 0.0, of.first["none"][keys]
    if (none == none[:1]).all() and len(np.unique(none[0])) == 1:
        start = float(none.flat[0])

    def course(name: str) -> Numbers:
        found: Numbers = runs[name][keys] - start
        return found

    plain = course("plain")
    if not plain.any():
        return None
    for power, odd in ((1, True), (2, False), (0, True), (0, False), (1, False), (2, True)):
        factor = np.abs(times) ** power * (np.sign(times) if odd else 1.0)
        if _close(course("times"), plain * factor):
            break
    else:
        return None
    growths = (0, 1, 2) if of.growing else ()
    growth = [n for n in growths if _close(course("growth"), plain * np.abs(times) ** n)]
    if growths and not growth:
        return None
    return Rule("statistic", power, odd, growth[0] if growth else 0, start)


def _close(found: Numbers, expected: Numbers) -> bool:
    return np.allclose(found, expected, rtol=1e-2, atol=1e-3 * float(np.abs(expected).max()))


def _no_order(keys: Keys, runs: _Runs) -> str:
    none = runs.first["none"][keys]
    if none[0].any() and (none != none[:1]).any():
        return "the value that it starts with is still in it"
    return "it follows neither the gradient, nor its square, nor its sign alone, entry by entry"


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


def _alike(keys: Keys, found: Mapping[Keys, Place], made: Mapping[Keys, Rule], runs: _Runs) -> Rule:
    """The rule of what did not move, as that of a frozen parameter: of the rest of its part."""
    others = {
        made[other]
        for other, place in found.items()
        if place.part == found[keys].part and other in made
    }
    if len(others) == 1:
        return others.pop()
    values = runs.first["plain"][keys]
    if values.any() and runs.untouched(keys):
        return Rule("statistic")
    return Rule("refused", why=f"it did not move in {len(values) - 1} steps")
