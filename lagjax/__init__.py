"""lagjax: grow a trained model in every way worth trying, and keep the way that wins after a small lag of training."""

__version__ = "0.1.0"

from lagjax.algebra.axes import Axes, Dot, Elementwise, Experts, Lookup, Residual
from lagjax.certify.certify import Certificate, certify
from lagjax.growth import leafwise, pools
from lagjax.growth.gradmax import gradmax
from lagjax.growth.learned import fit, fit_ligo
from lagjax.growth.masked import masked
from lagjax.growth.operator import FromScratch, Grow, Same
from lagjax.model import Model
from lagjax.probe import Engine, from_loss
from lagjax.runs import Task, run, train
from lagjax.select.decision import Decision, FixedLag
from lagjax.state import scale_by_growth
from lagjax.task import Candidate, Transfer

__all__ = [
    "Axes",
    "Candidate",
    "Certificate",
    "Decision",
    "Dot",
    "Elementwise",
    "Engine",
    "Experts",
    "FixedLag",
    "FromScratch",
    "Grow",
    "Lookup",
    "Model",
    "Residual",
    "Same",
    "Task",
    "Transfer",
    "certify",
    "fit",
    "fit_ligo",
    "from_loss",
    "gradmax",
    "leafwise",
    "masked",
    "pools",
    "run",
    "scale_by_growth",
    "train",
]
