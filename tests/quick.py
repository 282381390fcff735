"""For modules whose tests spend most of their time drawing pages, or compiling what is compiled."""

from collections.abc import Iterator

import jax
import pytest

from lagjax import initial, report
from lagjax.executors import workload
from lagjax.grower import Grower
from lagjax.initial import Group
from lagjax.mesh import Placement
from lagjax.model import Batch
from lagjax.task import Candidate, Task

KEPT: list[tuple[object, Group]] = []


@pytest.fixture(scope="module", autouse=True)
def no_page() -> Iterator[None]:
    """Runs draw no page, in each module that takes this name from here: it takes longer than they."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda path: path)
        yield


@pytest.fixture(scope="module", autouse=True)
def groups_kept() -> Iterator[None]:
    """Runs of equal training loops share what is traced and compiled for them, in each module that
    takes this name from here. A run that goes on elsewhere makes it again, as in `test_kill.py`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "Group", group)
        yield


def group(
    task: Task, first: Candidate, shards: Batch, placed: Placement | None, grower: Grower | None
) -> Group:
    """An equal group that is there, rid of its candidates, or a new one."""
    batch = task.batch(0, int(task.source.position))
    alike = (
        (first.target, task.horizon, task.seeds, task.tx, task.engine, dict(task.averages)),
        [(x.shape, x.dtype) for x in jax.tree.leaves((batch, shards))],
        placed and placed.described(),
        (initial.LENGTH, jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion),
    )
    for given, one in KEPT:
        if given == alike:
            one.task, one.shards, one.placement = task, shards, placed
            one._growers.clear()
            one._beginnings.clear()
            if one.shapes(first, grower) == one.like:
                return one
    KEPT.insert(0, (alike, Group(task, first, shards, placed, grower)))
    # Some runs have several; what was made long ago is not asked for again.
    del KEPT[16:]
    return KEPT[0][1]
