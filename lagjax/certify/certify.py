"""Certificates: what a growth operator keeps, proved from table and plan, then measured."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lagjax.algebra.layout import Params, flatten
from lagjax.algebra.pieces import GrownAxis, split
from lagjax.algebra.plan import Plan
from lagjax.algebra.proof import Requirement, Violation
from lagjax.certify import blame
from lagjax.certify.readings import Tables
from lagjax.model import Batch, Growth, Key, Model, mean_loss

TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 0.1}
"""How far outputs may be apart, relative to their scale, where a plan is exact."""

_ADAM = optax.adam(1e-3)  # One object, so that equal models compile their step once.


class Certificate(NamedTuple):
    """What an operator keeps of one small model in one large model.

    Attributes:
        kind: `exact`; `exact given` what `requires` names; `approximate`, but for noise of a chosen
            size; `none`.
        violations: why it is not exact, by axis; also where the proof says exact and the models
            disagree.
        requires: what the large model must do differently to be exact.
        max_diff: dtype → largest difference of outputs, relative to the largest output; of mean
            losses where the shapes differ.
        dead: path → share of its entries whose gradient is 0 before, after one and after two steps,
            though it is not 0 in a large model drawn at random; leaves without any are left out.
        dead_fraction: the same over all parameters.
        twins: axis → after `steps` steps, the smallest distance of two copies of one entry, in what
            writes them, relative to their length; 0 means that they never separate. Axes without
            copies are left out.
        ranks: axis → effective rank (exponential of the entropy of singular values; Roy and
            Vetterli 2007) of all that writes along it after `steps` steps, over its size.
    """

    kind: Literal["exact", "exact given", "approximate", "none"]
    violations: tuple[Violation, ...]
    requires: tuple[Requirement, ...]
    max_diff: Mapping[str, float]
    dead: Mapping[str, float]
    dead_fraction: float
    twins: Mapping[str, float]
    ranks: Mapping[str, float]

    @property
    def twin_distance(self) -> float | None:
        """The smallest distance of twins on any axis; None where nothing was copied twice."""
        return min(self.twins.values(), default=None)

    def __str__(self) -> str:
        lines = [self.kind + "".join(f"; {one}" for one in self.requires)]
        lines += [f"  {one}" for one in self.violations]
        differences = ", ".join(f"{x:.1e} in {name}" for name, x in self.max_diff.items())
        lines.append(f"outputs differ by {differences} of their scale")
        lines.append(
            f"{self.dead_fraction:.1%} of the parameters are dead"
            + "".join(f", {share:.0%} of {path}" for path, share in self.dead.items())
        )
        lines += [
            f"twins on axis {axis!r} " + (f"are {x:.1e} apart" if x > 1e-6 else "never separate")
            for axis, x in self.twins.items()
        ]
        return "\n".join(lines)


def certify(
    operator: Growth,
    small: Model,
    large: Model,
    params: Params,
    batches: Sequence[Batch],
    *,
    key: Key | None = None,
    factory: Callable[[str], tuple[Model, Model]] | None = None,
    steps: int = 20,
    tx: optax.GradientTransformation | None = None,
) -> Certificate:
    """Certifies an operator for one small and one large model.

    Args:
        operator: what is certified; with a `plan`, it is proved too.
        small: the small model; needs `apply`.
        large: the large model, as `requires` asks; needs `apply`.
        params: the small model's parameters. Trained ones, or drawn at random: those of an
            initialisation have zero biases and equal scales, in which mistakes hide.
        batches: of training data; outputs are compared on the first, the others train, in turn.
        key: of the growth.
        factory: dtype → the two models computing in it; then outputs are compared in float64,
            float32 and bfloat16.
        steps: how long the grown model is trained before twins and ranks are looked at.
        tx: by which; Adam unless given.

    Raises:
        ValueError: for a model without `apply`, no batches, and whatever the operator refuses.
    """
    for name, model in (("small", small), ("large", large)):
        if model.apply is None:
            raise ValueError(
                f"the {name} model has no apply; give Model(..., apply=lambda params, batch: "
                "outputs)"
            )
    if not batches:
        raise ValueError("no batches are given; certificates are measured on at least one")
    key = jax.random.key(0) if key is None else key
    plan = plan_of(operator, key, small, large, params)
    grown = _grow(operator, key, params, small, large)
    differences = (
        _in_precisions(operator, factory, params, grown, batches[0], key)
        if factory
        else {
            str(jnp.result_type(*jax.tree.leaves(params))): difference(
                small, large, params, grown, batches[0]
            )
        }
    )
    violations = (
        plan.violations
        if plan
        else (Violation("*", None, "the operator is not linear: nothing is proved"),)
    )
    requires = plan.requires if plan else ()
    off = [name for name, x in differences.items() if not x <= TOLERANCE.get(name, 0.1)]
    if plan and not violations and off:
        violations = tuple(blame.broken(plan, params, grown)) or tuple(
            untold(operator, plan, small, large, params, batches[0], key, off[0], factory)
        )
    if not violations:
        kind: Any = "exact given" if requires else "exact"
    else:
        kind = "approximate" if all(one.small for one in violations) else "none"
    dead, fraction = _dead(large, grown, batches, tx or _ADAM)
    trained = _trained(large, grown, batches, tx or _ADAM, steps)
    return Certificate(
        kind,
        violations,
        requires,
        differences,
        dead,
        fraction,
        _twins(plan, trained) if plan else {},
        _ranks(plan, trained) if plan else {},
    )


def plan_of(operator: Growth, key: Key, small: Model, large: Model, params: Params) -> Plan | None:
    """The operator's plan for two models; None where it has none."""
    if not hasattr(operator, "plan"):
        return None
    plan: Plan = operator.plan(key, small.axes.layout(params), large.layout())
    return plan


def difference(
    small: Model,
    large: Model,
    params: Params,
    grown: Params,
    batch: Batch,
    logits: float = 1.0,
) -> float:
    """The largest difference of the two models' outputs, relative to the largest output.

    The large model's are multiplied by `logits`. Where outputs are of different shapes, that of
    their mean losses.
    """
    one, other = _outputs(small, params, batch), _outputs(large, grown, batch) * logits
    if one.shape != other.shape:
        one, other = _mean(small)(params, batch), _mean(large)(grown, batch)
    one, other = (np.asarray(x, np.float64) for x in (one, other))
    return float(np.abs(other - one).max() / np.abs(one).max())


def untold(
    operator: Growth,
    plan: Plan,
    small: Model,
    large: Model,
    params: Params,
    batch: Batch,
    key: Key,
    precision: str = "float32",
    factory: Callable[[str], tuple[Model, Model]] | None = None,
) -> list[Violation]:
    """Why outputs differ though all parameters are as planned: `blame.untold` on these models.

    In a precision, for whose models a factory is asked where there is one.
    """
    near = TOLERANCE.get(precision, 0.1)

    with jax.enable_x64(precision == "float64" or bool(jax.config.read("jax_enable_x64"))):
        if factory:
            small, large = factory(precision)
            params = jax.tree.map(lambda x: np.asarray(x).astype(precision), params)

        def tried(params: Params, by: Tables | Plan, logits: float = 1.0, /) -> float:
            scales = {logits}
            try:
                if isinstance(by, Plan):
                    grown = by.params(params, large.init(key))
                else:
                    read = small._replace(axes=by[0]), large._replace(axes=by[1])
                    grown = operator(key, params, by[0], read[1])
                    if found := plan_of(operator, key, *read, params):
                        # As another reading may require.
                        scales |= {
                            float(np.asarray(x.value)) for x in found.requires if x.what == "logits"
                        }
            except ValueError:
                # Tables by which the operator does not grow this model into that.
                return float("inf")
            return min(difference(small, large, params, grown, batch, x) for x in scales)

        return blame.untold(plan, (small.axes, large.axes), params, tried, near)


def _in_precisions(
    operator: Growth,
    factory: Callable[[str], tuple[Model, Model]],
    params: Params,
    grown: Params,
    batch: Batch,
    key: Key,
) -> dict[str, float]:
    """The difference in float64, computed in it throughout, and of parameters cast to others."""
    found = {}
    for name in ("float64", "float32", "bfloat16"):

        def cast(tree: Params, name: str = name) -> Params:
            # In numpy, which compiles nothing.
            return jax.tree.map(lambda x: np.asarray(x).astype(name), tree)

        with jax.enable_x64(name == "float64" or bool(jax.config.read("jax_enable_x64"))):
            small, large = factory(name)
            given = cast(params)
            made = _grow(operator, key, given, small, large) if name == "float64" else cast(grown)
            found[name] = difference(small, large, given, made, batch)
    return found


@functools.lru_cache(maxsize=64)
def _jitted(function: Any) -> Any:
    return jax.jit(function)


def _outputs(model: Model, params: Params, batch: Batch) -> Any:
    return _jitted(model.apply)(params, batch)


@functools.lru_cache(maxsize=64)
def _mean_of(loss: Any) -> Any:
    def mean(params: Params, batch: Batch) -> jax.Array:
        return mean_loss(*loss(params, batch, None))

    return jax.jit(mean)


def _mean(model: Model) -> Any:
    return _mean_of(model.loss)


@functools.lru_cache(maxsize=64)
def _step_of(loss: Any, tx: optax.GradientTransformation) -> Any:
    gradient = jax.grad(_mean_of(loss))

    @jax.jit
    def step(params: Params, state: Any, batch: Batch) -> tuple[Params, Any, Params]:
        found = gradient(params, batch)
        updates, state = tx.update(found, state, params)
        return optax.apply_updates(params, updates), state, found

    return step


def _grow(operator: Growth, key: Key, params: Params, small: Model, large: Model) -> Params:
    return jax.jit(lambda key, params: operator(key, params, small.axes, large))(key, params)


def _dead(
    large: Model,
    grown: Params,
    batches: Sequence[Batch],
    tx: optax.GradientTransformation,
) -> tuple[dict[str, float], float]:
    moved = _moved(large, grown, batches, tx)
    # What no token of the batches reaches is dead in any model.
    draw = np.random.default_rng(0)
    anywhere = jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape).astype(x.dtype), grown)
    reached = _moved(large, anywhere, batches, tx)
    total = sum(x.size for x in moved.values())
    dead = {path: int((reached[path] & ~moved[path]).sum()) for path in moved}
    shares = {path: n / moved[path].size for path, n in dead.items() if n}
    return shares, sum(dead.values()) / total


def _moved(
    large: Model,
    params: Params,
    batches: Sequence[Batch],
    tx: optax.GradientTransformation,
) -> dict[str, np.ndarray]:
    """Which entries have a gradient at the start, after one step or after two."""
    step, state = _step_of(large.loss, tx), _jitted(tx.init)(params)
    alive: dict[str, np.ndarray] = {}
    for number in range(3):
        params, state, found = step(params, state, batches[number % len(batches)])
        for path, x in flatten(found).items():
            alive[path] = alive.get(path, False) | (np.asarray(x) != 0)
    return alive


def _trained(
    large: Model,
    grown: Params,
    batches: Sequence[Batch],
    tx: optax.GradientTransformation,
    steps: int,
) -> Params:
    step, params, state = _step_of(large.loss, tx), grown, _jitted(tx.init)(grown)
    for number in range(steps):
        params, state, _ = step(params, state, batches[number % len(batches)])
    return params


def _written(plan: Plan, params: Params, axis: str) -> Iterator[tuple[np.ndarray, GrownAxis]]:
    """Every array that writes along an axis, as a matrix `[size of the axis, rest]`."""
    values = plan.target.values(params)
    for leaf in plan.target.having(axis):
        array = np.asarray(values[leaf.path], np.float64)
        parts = split(array, leaf.dims, plan.target.extents)
        for value, axes in zip(parts, plan.grown(leaf)):
            for one in axes:
                if one.name == axis and not one.reads:
                    rows = np.moveaxis(np.asarray(value), one.at, 0)
                    yield rows.reshape(len(rows), -1), one


def _twins(plan: Plan, params: Params) -> dict[str, float]:
    found = {}
    for axis, grown in plan.maps.items():
        again = np.flatnonzero((grown.copy > 0) & ~grown.fresh)
        if not len(again):
            continue
        first = np.array(
            [np.flatnonzero(grown.source == grown.source[index])[0] for index in again]
        )
        apart, length = np.zeros(len(again)), np.zeros(len(again))
        for value, one in _written(plan, params, axis):
            rows = value / np.where(one.factor == 0, 1, one.factor)[:, None]
            apart += ((rows[again] - rows[first]) ** 2).sum(1)
            length += (rows[first] ** 2).sum(1)
        found[axis] = float(np.sqrt(apart / np.maximum(length, 1e-30)).min())
    return found


def _ranks(plan: Plan, params: Params) -> dict[str, float]:
    found = {}
    for axis in plan.maps:
        rows = [value for value, _ in _written(plan, params, axis)]
        if rows:
            values = np.linalg.svd(np.concatenate(rows, 1), compute_uv=False)
            shares = values[values > 0] / values.sum()
            found[axis] = float(np.exp(-(shares * np.log(shares)).sum()) / plan.maps[axis].new)
    return found
