"""The executor of one process: a job after another."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lagjax.executors.worker import Worker
from lagjax.executors.workload import Workload
from lagjax.jobs import Job, Update


@dataclass(frozen=True)
class Serial:
    """Does jobs one after another, here."""

    def __call__(self, work: Workload, jobs: Sequence[Job], /) -> Iterator[Update]:
        with contextlib.closing(Worker(work)) as worker:
            for job in jobs:
                yield from worker.run(job)


SERIAL = Serial()
