"""lagjax: grow a trained model in every way worth trying, and keep the way that wins after a small lag of training."""

__version__ = "0.1.0"

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import (
    Channels,
    Dot,
    Experts,
    Heads,
    LayerNorm,
    Lookup,
    Residual,
    RMSNorm,
    Units,
)
from lagjax.certify.certify import Certificate, certify
from lagjax.growth import pools
from lagjax.growth.depth import Depth
from lagjax.growth.experts import Upcycle
from lagjax.growth.fusion import Fuse
from lagjax.growth.gradmax import gradmax
from lagjax.growth.learned import fit, fit_ligo
from lagjax.growth.masked import masked
from lagjax.growth.pools import Candidate
from lagjax.growth.width import Both, Width
from lagjax.model import Model
from lagjax.probe import Engine, from_loss
from lagjax.runs import Task, run, train
from lagjax.select.decision import Decision, FixedLag
from lagjax.state import scale_by_growth

__all__ = [
    "Axes",
    "Both",
    "Candidate",
    "Certificate",
    "Channels",
    "Decision",
    "Depth",
    "Dot",
    "Engine",
    "Experts",
    "FixedLag",
    "Fuse",
    "Heads",
    "LayerNorm",
    "Lookup",
    "Model",
    "RMSNorm",
    "Residual",
    "Task",
    "Units",
    "Upcycle",
    "Width",
    "certify",
    "fit",
    "fit_ligo",
    "from_loss",
    "gradmax",
    "masked",
    "pools",
    "run",
    "scale_by_growth",
    "train",
]
