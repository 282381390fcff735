"""lagjax: grow a trained model in every way worth trying, and keep the way that wins after a small
lag of training.
"""

__version__ = "0.2.0"

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import (
    Channels,
    Dot,
    Experts,
    Heads,
    LayerNorm,
    LayerTypes,
    Lookup,
    Residual,
    RMSNorm,
    Units,
)
from lagjax.algebra.plan import Perturb
from lagjax.averages import Ema, Tail
from lagjax.certify.certify import Certificate, certify
from lagjax.engine import Engine, Trained, from_loss
from lagjax.evidence import Evidence
from lagjax.growth import leafwise, pools
from lagjax.growth.experts import Duplicate, Upcycle
from lagjax.growth.gradmax import gradmax
from lagjax.growth.learned import fit, fit_ligo
from lagjax.growth.masked import masked
from lagjax.growth.operator import FromScratch, Grow, Same
from lagjax.model import Model
from lagjax.optimizer.rules import grown_by
from lagjax.runs import load, run, train
from lagjax.select.decision import Add, Anneal, Decision, Probe, decide
from lagjax.select.fixed import FixedLag
from lagjax.state import scale_by_growth
from lagjax.task import Candidate, Task, Transfer

__all__ = [
    "Add",
    "Anneal",
    "Axes",
    "Candidate",
    "Certificate",
    "Channels",
    "Decision",
    "Dot",
    "Duplicate",
    "Ema",
    "Engine",
    "Evidence",
    "Experts",
    "FixedLag",
    "FromScratch",
    "Grow",
    "Heads",
    "LayerNorm",
    "LayerTypes",
    "Lookup",
    "Model",
    "Perturb",
    "Probe",
    "RMSNorm",
    "Residual",
    "Same",
    "Tail",
    "Task",
    "Trained",
    "Transfer",
    "Units",
    "Upcycle",
    "certify",
    "decide",
    "fit",
    "fit_ligo",
    "from_loss",
    "gradmax",
    "grown_by",
    "leafwise",
    "load",
    "masked",
    "pools",
    "run",
    "scale_by_growth",
    "train",
]
