"""Every optimizer of optax that runs from gradients alone: how its state grows, and how right that
is.

    python -m experiments.optimizers           # two minutes on 2 CPU cores

Writes `results/optimizers.jsonl`, a row for each public factory of `optax` and `optax.contrib`, and
for each step of `chain` whose factory is public. A small model and the one twice as wide that it
grows into are shown the same ten batches, and nothing is applied: the grown state of the one is
compared with the measured state of the other. `python -m experiments.tables` makes the README's
table. No factory is left out: the rows say what those lack that cannot be run.
"""

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from rich.console import Console

from experiments.cli import command
from experiments.rows import RESULTS, Row, markdown
from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Units
from lagjax.algebra.layout import path_of
from lagjax.fingerprint import versions
from lagjax.growth.operator import Grow
from lagjax.growth.width import Tile
from lagjax.model import Model
from lagjax.optimizer.places import leaves_of, places
from lagjax.optimizer.reading import read
from lagjax.state import carry
from lagjax.store.directory import write_atomically

AXES = Axes({"up": "<inp >mlp", "bias": ">mlp", "down": "<mlp >out"}, {"mlp": Units("tanh")})
KEY = jax.random.key(0)
ADAM = optax.adam(1e-3)
MATRICES = {"up": True, "bias": False, "down": True}
GIVEN: dict[str, Any] = {
    **dict.fromkeys(("learning_rate", "decay_rate", "weight_decay"), 1e-3),
    **dict.fromkeys(("inner", "optimizer", "base_optimizer", "tx", "opt"), ADAM),
    "fast_optimizer": ADAM,
    **dict.fromkeys(("clipping", "max_delta", "threshold", "max_norm", "l2_norm_clip"), 1.0),
    **dict.fromkeys(("sync_period", "max_consecutive_errors", "every_k_schedule"), 3),
    **dict.fromkeys(("max_backtracking_steps", "max_linesearch_steps"), 3),
    "adv_optimizer": optax.sgd(1e-3),
    "decay": 0.9,
    "eta": 0.0,
    "gamma": 0.55,
    "noise_multiplier": 0.0,
    "seed": 0,
    "slow_step_size": 0.5,
    "step_size": -1e-3,
    "step_size_fn": optax.constant_schedule(-1e-3),
    "should_transform_fn": lambda step: True,
    "inner_factory": optax.adam,
    "transforms": {True: ADAM, False: optax.sgd(1e-3, momentum=0.9)},
    **{name: MATRICES for name in ("mask", "freeze_mask", "param_labels")},
    "measure_name": "norm",
    "measure": optax.tree.norm,
    "measures": {"norm": optax.tree.norm},
    "f": lambda updates, params: updates,
}
"""What is given where a factory asks for it, by the argument's name; noise of size 0."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is compared."""

    results: Path = RESULTS / "optimizers.jsonl"
    """Where the rows go."""


def factories() -> dict[str, Callable[..., Any]]:
    """The public functions and classes of optax that give a transformation, by name."""
    found = {}
    for module, prefix in ((optax, ""), (optax.contrib, "contrib.")):
        for name, value in sorted(vars(module).items()):
            gives = inspect.isclass(value) and hasattr(value, "gradient_transformation")
            if inspect.isfunction(value):
                # One of them, monitor, does not say it.
                said = str(inspect.signature(value).return_annotation)
                gives = "GradientTransformation" in said or name == "monitor"
            if gives and not name.startswith("_"):
                found[prefix + name] = value
    return found


def made(factory: Callable[..., Any]) -> optax.GradientTransformation:
    """The transformation with its defaults; raises TypeError for what cannot be given."""
    wanted: list[Any] = []
    given = {}
    for one in inspect.signature(factory).parameters.values():
        if one.kind is one.VAR_POSITIONAL:
            # What puts transformations together is given one.
            wanted = [("adam", ADAM) if factory is optax.named_chain else ADAM]
        elif one.name == "key" or (one.default is one.empty and one.kind is not one.VAR_KEYWORD):
            if one.name not in GIVEN and one.name != "key":
                raise TypeError(f"needs {one.name!r}")
            given[one.name] = GIVEN.get(one.name, 0)
    found = factory(*wanted, **given)
    return found(1e-3) if not hasattr(found, "init") else found


def init(size: int) -> Callable[[Any], dict[str, jax.Array]]:
    shapes = {"up": (5, size), "bias": (size,), "down": (size, 3)}
    return lambda key: {name: jnp.ones(shape) for name, shape in shapes.items()}


@functools.cache
def models() -> tuple[Any, tuple[Any, Any], tuple[Any, Any]]:
    """The plan, and both models' parameters with their gradients on ten batches."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(init(4), KEY)
    params = jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.5, x.shape).astype(x.dtype)), shapes
    )
    target, operator = Model(init(8), None, AXES), Grow(width={"mlp": Tile()})  # type: ignore[arg-type]
    large = operator(KEY, params, AXES, target)
    plan = operator.plan(KEY, AXES.layout(params), AXES.layout(large))
    batches = (draw.normal(size=(10, 32, 5)), draw.normal(size=(10, 32, 3)))

    def loss(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        hidden = jnp.tanh(x @ params["up"] + params["bias"][None])
        return jnp.mean((hidden @ params["down"] - y) ** 2)

    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
    return plan, (params, gradients(params, batches)), (large, gradients(large, batches))


def shown(tx: optax.GradientTransformation, params: Any, gradients: Any) -> Any:
    """The state after ten updates, none of them applied."""

    @jax.jit
    def step(state: Any, number: Any) -> Any:
        return tx.update(jax.tree.map(lambda x: x[number], gradients), state, params)[1]

    state = tx.init(params)
    for number in range(10):
        state = step(state, number)
    return state


def row(name: str, factory: Callable[..., Any]) -> Row:
    """How the state of one optimizer is carried."""
    plan, (params, of_small), (large, of_large) = models()
    where = {"versions": versions(), "device": jax.devices()[0].device_kind}
    empty = {"rules": {}, "why": None, "difference": None, "worst": None}
    try:
        tx = made(factory)
        state, truth = shown(tx, params, of_small), shown(tx, large, of_large)
    except Exception as error:  # noqa: BLE001 (a row of the table, whatever it is)
        why = str(error).strip().partition("\n")[0]
        return {"optimizer": name, "outcome": "not run", **empty, "why": why, **where}
    at, rules = places(truth, large), read(tx, large)
    said: dict[str, set[str]] = {}
    for keys, rule in rules.items():
        said.setdefault(path_of(at[keys].part), set()).add(str(rule))
    found: Row = {**empty, "rules": {part: ", ".join(sorted(one)) for part, one in said.items()}}
    try:
        grown = leaves_of(carry(plan, state, params, large, tx, "continue"))
    except ValueError as error:
        return {"optimizer": name, "outcome": "refused", **found, "why": str(error), **where}
    measured = leaves_of(truth)
    apart = {
        path_of(keys): _apart(x, measured[keys])
        for keys, x in grown.items()
        if keys in rules and rules[keys].kind != "anew"
    }
    worst = max(apart, key=lambda path: apart[path], default=None)
    outcome = "carried" if worst else "anew" if rules else "no state"
    found |= {"difference": apart[worst] if worst else None, "worst": worst}
    return {"optimizer": name, "outcome": outcome, **found, **where}


def _apart(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value."""
    if not jnp.issubdtype(expected.dtype, jnp.number):
        return float(not bool((found == expected).all()))
    one, other = np.asarray(found, float), np.asarray(expected, float)
    largest = float(np.abs(other).max(initial=0))
    return float(np.abs(one - other).max(initial=0)) / (largest or 1.0)


def table(rows: list[Row]) -> str:
    """A line for all optimizers whose states are alike, those without any left out."""
    alike: dict[tuple[str, str], list[Row]] = {}
    for one in rows:
        if one["outcome"] != "no state":
            # Where a part stands in a chain tells nothing of it.
            parts = {f"{part.split('/')[-1]} {rule}" for part, rule in one["rules"].items()}
            said = ", ".join(sorted(parts))
            if one["why"]:
                said = str(one["why"]).partition("\n")[0].partition(";")[0]
            if one["outcome"] == "refused":
                said = said.partition("': ")[2] or said.partition(":")[0]
            alike.setdefault((one["outcome"], said), []).append(one)
    lines = []
    for outcome in ("carried", "anew", "refused", "not run"):
        for (kind, said), mine in alike.items():
            if kind == outcome:
                apart = [one["difference"] for one in mine if one["difference"] is not None]
                names = ", ".join(one["optimizer"] for one in mine)
                far = f"{max(apart):.0e}" if apart else "–"
                lines.append((names, outcome, said, far))
    return markdown(("Optimizer", "state", "how its parts grow, or why not", "off by"), lines)


def main(arguments: Arguments) -> None:
    """Makes every row anew."""
    jax.config.update("jax_disable_most_optimizations", True)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    rows = []
    for name, factory in factories().items():
        rows.append(row(name, factory))
        apart = rows[-1]["difference"]
        console.print(
            f"{name}: {rows[-1]['outcome']}"
            + (f", {apart:.1e} from measured" if apart is not None else "")
            + (f": {rows[-1]['why']}" if rows[-1]["why"] else ""),
            markup=False,
        )
    write_atomically(arguments.results, "".join(json.dumps(one) + "\n" for one in rows))


cli = command(main, "optimizers", Arguments, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
