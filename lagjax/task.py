"""What a search is given: the ways to start, and what becomes of the training state on the way."""

from typing import Literal, NamedTuple

from lagjax.algebra.plan import Growth
from lagjax.model import Model


class Transfer(NamedTuple):
    """What becomes of the small model's training state: how its optimizer's statistics and its schedules begin.

    Attributes:
        moments: "reset" starts the statistics anew; "grow" maps them as the operator maps the parameters, which takes a
            linear operator; "measure" takes them from gradients of the grown model at a learning rate of zero.
        schedule: "restart" begins the learning-rate schedules at 0; "continue" at the small model's step; a number at that
            step, so that a schedule is rewound to where a model of this loss would be (Shen et al. 2022, arXiv 2203.06211).
    """

    moments: Literal["reset", "grow", "measure"] = "reset"
    schedule: Literal["restart", "continue"] | int = "restart"


class Candidate(NamedTuple):
    """A way to start: an operator applied to the small model.

    Attributes:
        name: in tables, curves and checkpoints.
        operator: fills the target's parameters.
        target: the large model; candidates of one target are probed under one compiled step.
        role: a "candidate" may win; a "control" is only there to be beaten, and a "baseline" (`Same()`, `FromScratch()`)
            says what not growing comes to: neither can win.
        transfer: of the training state; None takes the task's.
        fit_flops: what making the operator cost, for the ledger.
    """

    name: str
    operator: Growth
    target: Model
    role: Literal["candidate", "control", "baseline"] = "candidate"
    transfer: Transfer | None = None
    fit_flops: float = 0.0
