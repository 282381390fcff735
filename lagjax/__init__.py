"""lagjax: grow a trained model in every way worth trying, and keep the way that wins after a small lag of training."""

__version__ = "0.2.0"

from lagjax.algebra.axes import Axes, Dot, Elementwise, Experts, Lookup, Residual
from lagjax.certify.certify import Certificate, certify
from lagjax.engine import Engine, Trained, from_loss
from lagjax.evidence import Evidence
from lagjax.growth import pools
from lagjax.growth.depth import Depth
from lagjax.growth.experts import Upcycle
from lagjax.growth.fusion import Fuse
from lagjax.growth.gradmax import gradmax
from lagjax.growth.learned import fit, fit_ligo
from lagjax.growth.masked import masked
from lagjax.growth.width import Both, Width
from lagjax.model import Model
from lagjax.runs import load, run, train
from lagjax.select.decision import Add, Decision, Probe, decide
from lagjax.select.fixed import FixedLag
from lagjax.state import scale_by_growth
from lagjax.task import Candidate, Task, Transfer

__all__ = [
    "Add",
    "Axes",
    "Both",
    "Candidate",
    "Certificate",
    "Decision",
    "Depth",
    "Dot",
    "Elementwise",
    "Engine",
    "Evidence",
    "Experts",
    "FixedLag",
    "Fuse",
    "Lookup",
    "Model",
    "Probe",
    "Residual",
    "Task",
    "Trained",
    "Transfer",
    "Upcycle",
    "Width",
    "certify",
    "decide",
    "fit",
    "fit_ligo",
    "from_loss",
    "gradmax",
    "load",
    "masked",
    "pools",
    "run",
    "scale_by_growth",
    "train",
]
