"""What a stranger adds, without touching lagjax: an operator, a norm, a metric, a collection, an executor, a policy with a
feature of its own, a section of the page. CONTRIBUTING.md says where each goes inside.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax import report
from lagjax.algebra.kinds import Norm
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.words import Word
from lagjax.executors.serial import Serial
from lagjax.executors.workload import Workload
from lagjax.growth.depth import Scaled
from lagjax.jobs import Job, Update
from lagjax.report import content
from lagjax.report.facts import Facts
from lagjax.store import directory
from tests import quick, toy

compile_quickly = quick.compile_quickly

KINDS = {"embed": lagjax.Residual(lagjax.RMSNorm()), "mlp": lagjax.Units("tanh")}
AXES = lagjax.Axes(dict(toy.AXES.rows), kinds=KINDS)


def go(path: pathlib.Path, *pool: str, policy: object = lagjax.FixedLag(2), **options: object):
    changes = {name: options.pop(name) for name in ("engine", "source") if name in options}
    task = toy.task(horizon=options.pop("horizon", 4), **changes)
    options = {"progress": toy.Told(), "checkpoint_seconds": 1e9} | options
    return lagjax.run(task, options.pop("pool", toy.pool(*pool)), policy, path, **options)


# A depth strategy and an expansion


@dataclass(frozen=True)
class Mirror:
    """The net, and its mirror image on top: `0 1 2 2 1 0`."""

    def word(self, old: int, new: int, /) -> Word:
        there_and_back = [*range(old), *reversed(range(old))]
        return Word.parse(" ".join(str(there_and_back[i % (2 * old)]) for i in range(new)))


@dataclass(frozen=True)
class OfTheFirst:
    """The old entries, then copies of the first: `0 1 2 0 0 0`."""

    def map(self, old: int, new: int, /) -> AxisMap:
        return AxisMap(old, np.array([*range(old), *[0] * (new - old)]))


def test_an_operator() -> None:
    """It is proved and measured, where it is exact and where it is not."""
    small, wide = (toy.model(2)._replace(axes=AXES) for _ in range(2))
    large = toy.model(4)._replace(axes=AXES)
    for depth, kind in ((Scaled(Mirror()), "exact"), (Mirror(), "none")):
        operator = lagjax.Grow(depth=depth)
        found = lagjax.certify(operator, small, large, toy.PARAMS, toy.VALID[:2], steps=1)
        assert found.kind == kind
    del wide


def test_an_operator_in_a_run(tmp_path: pathlib.Path) -> None:
    """It takes part beside others, and its record replays to the same tree."""
    operator = lagjax.Grow(depth=Mirror())
    pool = (*toy.pool("stack"), lagjax.Candidate("mirror", operator, toy.LARGE))
    decision = go(tmp_path, pool=pool, keep="all")
    assert set(decision.ranking) == {"stack", "mirror"}
    entry = directory.read(tmp_path).config["pool"][1]
    assert (entry["word"], entry["exact"]) == ("0 1 1 0", False)
    grown = directory.growth(tmp_path, "mirror").replay(toy.PARAMS, toy.AXES, toy.LARGE)
    up = toy.PARAMS["layers"]["up"]
    np.testing.assert_array_equal(grown["layers"]["up"], up[np.array([0, 1, 1, 0])])
