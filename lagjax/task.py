"""What a search is about: the small model, how the large one is trained, and the ways to start
it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Self, TypeAlias

import optax

from lagjax.averages import AVERAGES, Average
from lagjax.engine import Engine, Trained, from_loss
from lagjax.model import Batch, Growth, Model

Schedule: TypeAlias = Literal["restart", "continue"] | int
Optimizer: TypeAlias = optax.GradientTransformation | Callable[[int], optax.GradientTransformation]


class Transfer(NamedTuple):
    """What becomes of the optimizer's state when a model grows.

    Attributes:
        moments: "reset" starts its statistics anew; "grow" maps them as the operator maps the
            parameters; "originals" does so where an entry is the first copy of its source, and
            begins those of further copies anew, as of all that is new, which then warm up by
            themselves where `tx` has `scale_by_growth(warmup=...)` (SPARKLING, Yu et al. 2026,
            arXiv 2602.02472; the asymmetric reset of arXiv 2604.04281); "measure" takes them of the
            large model on its first batches, at a learning rate of 0.
        schedule: "restart" begins the schedules of `tx` at 0; "continue" at the small model's step;
            a number at that step.
    """

    moments: Literal["reset", "grow", "originals", "measure"] = "reset"
    schedule: Schedule = "restart"

    @property
    def planned(self) -> bool:
        """Whether moments grow by the operator's plan."""
        return self.moments in ("grow", "originals")


class Candidate(NamedTuple):
    """A way to start: an operator, the large model that it fills, and what becomes of the
    optimizer's state.

    Attributes:
        name: in tables, curves and checkpoints.
        operator: fills the target's parameters.
        target: the large model; candidates of one target are trained under one compiled step.
        role: "candidate"; "control", which is there to be beaten; "baseline", which is not growing,
            or from scratch. Only a candidate can win.
        transfer: the task's, unless it has its own.
        fit_flops: what making the operator cost, for the ledger.
    """

    name: str
    operator: Growth
    target: Model
    role: Literal["candidate", "control", "baseline"] = "candidate"
    transfer: Transfer | None = None
    fit_flops: float = 0.0


class Task(NamedTuple):
    """A small trained model, and how the large one is trained.

    Attributes:
        model: the small model; of its functions only the axes table is needed.
        source: it, trained.
        tx: what trains the large model, or a function that makes it for a horizon, so that a
            schedule ends where training does; None where `engine` has its own. Without a function
            one schedule serves every horizon.
        batch: `(seed, step)` → batch, a pure function; all candidates of a seed see the same
            batches, from `source.position` on.
        valid: validation shards, batches of one shape, the same for all candidates and seeds.
        horizon: steps of the large model's full training: of the first in the pool that can win.
        seeds: how many, counted from 0; a seed fixes the fresh layers and the order of the data.
            Seed 0 of the winner goes on.
        seed: makes the fresh layers of this task others than those of another.
        transfer: what becomes of the optimizer's state, where a candidate does not say it.
        engine: `(target, tx)` → its training loop.
        averages: name → a running average of each trial's weights, which is kept and evaluated
            beside the weights themselves: a name in the evidence, as `weights="average"`. Each
            costs a copy of the parameters; `{}` keeps none.
        matched: by what full trainings of other targets are alike: all take the horizon's "steps",
            or as many as cost its "flops". Baselines are always matched by FLOPs.
    """

    model: Model
    source: Trained
    tx: Optimizer | None
    batch: Callable[[int, int], Batch]
    valid: Sequence[Batch]
    horizon: int
    seeds: int = 1
    seed: int = 0
    transfer: Transfer = Transfer()
    engine: Callable[[Model, optax.GradientTransformation | None], Engine] = from_loss
    averages: Mapping[str, Average] = AVERAGES
    matched: Literal["steps", "flops"] = "steps"

    @property
    def optimizer(self) -> optax.GradientTransformation | None:
        """`tx`, or what it makes for the horizon."""
        return self.tx(self.horizon) if callable(self.tx) else self.tx

    def at(self, horizon: int) -> Self:
        """This task for those that are trained so many steps."""
        task = self._replace(horizon=horizon)
        return task._replace(tx=task.optimizer)

    def horizon_of(self, candidate: Candidate, step_flops: float, full_run_flops: float) -> int:
        """Steps of a candidate's full training.

        Args:
            candidate: whose.
            step_flops: what one of its steps costs.
            full_run_flops: what the full training costs that it is matched with.
        """
        if (self.matched == "flops" or candidate.role == "baseline") and step_flops:
            return max(1, round(full_run_flops / step_flops))
        return self.horizon

    def transfer_of(self, candidate: Candidate) -> Transfer:
        """The candidate's own, or the task's."""
        return self.transfer if candidate.transfer is None else candidate.transfer
