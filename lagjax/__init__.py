"""lagjax: grow a trained model in every way worth trying, and keep the way that wins after a small lag of training."""

__version__ = "0.1.0"

from lagjax.axes import Axes, Dot, Elementwise, Residual
from lagjax.growth import pools
from lagjax.growth.depth import Depth
from lagjax.growth.pools import Candidate
from lagjax.model import Model
from lagjax.probe import Engine, from_loss
from lagjax.runs import Task, run, train
from lagjax.select import Decision, FixedLag

__all__ = [
    "Axes",
    "Candidate",
    "Decision",
    "Depth",
    "Dot",
    "Elementwise",
    "Engine",
    "FixedLag",
    "Model",
    "Residual",
    "Task",
    "from_loss",
    "pools",
    "run",
    "train",
]
