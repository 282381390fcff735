"""A training loop as functions, and the trained model that goes into it and comes out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Var

from lagjax.algebra.layout import Params
from lagjax.model import Batch, Key, Model, mean_loss

OptState: TypeAlias = optax.OptState
State: TypeAlias = Any
"""Whatever a training loop carries from step to step; a pytree of arrays."""
Metrics: TypeAlias = Mapping[str, tuple[jax.Array, jax.Array] | jax.Array | float]
"""Name → sum and count, both scalars, so that steps and shards of unequal size add up. "loss" is
always there, summed over what its unit counts (tokens, images). A count of 0 says that the sum is a
reading, such as a learning rate: it is recorded as it stands, everything else as a mean. A plain
number x, but for the loss, counts as (x, 1)."""


class Averaged(NamedTuple):
    """Running averages of a model's parameters, and of what floats in its collections."""

    params: Params
    collections: Mapping[str, Any] = {}


class Trained(NamedTuple):
    """A model that has been trained: what a search takes in and gives out. A pytree of arrays and
    nothing else.

    Attributes:
        params: its parameters.
        opt_state: its optimizer's state; needed to grow moments or to continue a schedule.
        collections: state that is no parameter, by name: batch statistics, a running average of the
            parameters. Their leaves have rows in the axes table under `name/path`; a leaf without
            one that mirrors a parameter grows as it does.
        step: steps made, as schedules count them.
        position: batches seen: a trial with seed s goes on with `batch(s, position)`.
        averages: name → averages that were kept of it (`Task.averages`). They are not grown: a
            grown model begins its own.
    """

    params: Params
    opt_state: OptState | None = None
    collections: Mapping[str, Any] = {}
    step: jax.Array | int = 0
    position: jax.Array | int = 0
    averages: Mapping[str, Averaged] = {}


class Engine(NamedTuple):
    """How a model is trained and evaluated. `from_loss` makes one; a training loop of your own is
    another.

    Attributes:
        init: `(Trained, key)` → state; dropout keys and whatever else the loop carries live in the
            state. Where the loop has collections, it makes those that it is not given: their shapes
            are the specification that grown ones must have.
        step: `(state, batch)` → state and metrics; "loss" is of the batch before the update,
            `grad_norm`, `update_norm` and `lr` have columns of their own in curves, all others
            stand under "metrics".
        evaluate: `(state, batch)` → metrics.
        trained: state → what comes out; the run itself fills in `step` and `position`.
        unit: of the loss.
    """

    init: Callable[[Trained, Key], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    evaluate: Callable[[State, Batch], Metrics]
    trained: Callable[[State], Trained]
    unit: str = "nats per token"


class TrainState(NamedTuple):
    """A training run of `from_loss` between two steps; `step` counts from 0 after growing."""

    step: jax.Array
    params: Params
    opt_state: OptState
    key: Key


def from_loss(
    model: Model | Callable[[jax.Array], Model],
    tx: optax.GradientTransformation | None,
    unit: str = "nats per token",
) -> Engine:
    """Trains by the gradient of the mean loss. `pmap` of old is `jit` over a mesh today.

    The model may change with the number of steps made since growing, as `growth.masked.ramp` lets
    it. The learning rate is recorded where `tx` holds it in its state, as
    `optax.inject_hyperparams` does.

    Raises ValueError without an optimizer.
    """
    if tx is None:
        raise ValueError(
            "the task has neither tx nor an engine; give the optimizer of the large model"
        )

    def at(step: jax.Array) -> Model:
        return model if isinstance(model, Model) else model(step)

    def init(trained: Trained, key: Key) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), trained.params, trained.opt_state, key)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)

        def mean(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            total, count = sum_and_count(at(state.step).loss(params, batch, key))
            return mean_loss(total, count), (total, count)

        (_, loss), grads = jax.value_and_grad(mean, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        one = jnp.ones(())
        metrics = {
            "loss": loss,
            "grad_norm": (optax.tree.norm(grads), one),
            "update_norm": (optax.tree.norm(updates), one),
        }
        found = optax.tree.get_all_with_path(opt_state, "learning_rate")
        rates = [x for _, x in found if isinstance(x, jax.Array) and x.ndim == 0]
        if len(rates) == 1:
            metrics["lr"] = (rates[0], jnp.zeros(()))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return {"loss": sum_and_count(at(state.step).loss(state.params, batch, None))}

    def trained(state: TrainState) -> Trained:
        return Trained(state.params, state.opt_state)

    return Engine(init, step, evaluate, trained, unit)


def sum_and_count(found: Any, what: str = "the loss") -> tuple[jax.Array, jax.Array]:
    """What a loss returned, as two scalars; raises ValueError where it is not a sum and a count."""
    shapes = jax.tree.map(jnp.shape, found)
    if shapes != ((), ()):
        raise ValueError(
            f"{what} returned the shapes {shapes}; expected two scalars, the sum and the count it "
            "runs over: 'return nll.sum(), nll.size'"
        )
    return jnp.asarray(found[0]), jnp.asarray(found[1], jnp.float32)


def float32(metrics: Metrics) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Metrics as they are recorded; raises ValueError for one that is no sum and count, and without
    "loss".
    """
    if "loss" not in metrics:
        raise ValueError(
            f"the engine gives the metrics {sorted(metrics)}; expected 'loss' among them, as a "
            "sum and a count"
        )
    found = {}
    for name, value in metrics.items():
        # A number is its own mean; but a loss without its count could not be averaged over shards.
        alone = name != "loss" and not isinstance(value, tuple) and jnp.shape(value) == ()
        given = (value, 1) if alone else value
        total, count = sum_and_count(given, f"the metric {name!r}")
        found[name] = (total.astype(jnp.float32), count)
    return found


class Parts:
    """How a state is cut into the trained model that comes out of it and the rest, so that nothing
    is saved twice.

    Args:
        engine: what trains.
        like: the shapes of a state.

    Attributes:
        places: for each array of the trained model which one of the state it is; -1 where it is
            computed.
    """

    places: Trained

    def __init__(self, engine: Engine, like: State) -> None:
        closed, self._shape = jax.make_jaxpr(engine.trained, return_shape=True)(like)
        given = {var: index for index, var in enumerate(closed.jaxpr.invars)}
        self._passed = [
            given.get(var, -1) if isinstance(var, Var) else -1 for var in closed.jaxpr.outvars
        ]
        self.places = jax.tree.unflatten(jax.tree.structure(self._shape), self._passed)
        self._engine, self._structure = engine, jax.tree.structure(like)

    def apart(self, state: State) -> tuple[Trained, dict[str, Any]]:
        """The trained model, and what else the state has; of shapes their shapes."""
        leaves = jax.tree.leaves(state)
        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        made, structure = jax.tree.flatten(self._shape if abstract else self._engine.trained(state))
        trained = [
            leaf if at < 0 else leaves[at] for at, leaf in zip(self._passed, made, strict=True)
        ]
        rest = {str(at): leaf for at, leaf in enumerate(leaves) if at not in self._passed}
        return jax.tree.unflatten(structure, trained), rest

    def together(self, trained: Trained, rest: Mapping[str, Any]) -> State:
        """The state that was cut."""
        found = {int(at): leaf for at, leaf in rest.items()}
        for at, leaf in zip(self._passed, jax.tree.leaves(trained), strict=True):
            if at >= 0:
                found[at] = leaf
        return jax.tree.unflatten(self._structure, [found[at] for at in sorted(found)])
