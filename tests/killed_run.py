"""Trains, grows, probes and goes on with the toy net, and kills itself where it is told to.

    python -m tests.killed_run WORKDIR LANES [WHERE]

WHERE is `source:N`, `probe:N` or `continue:N` (at the N-th step forward of the phase), `save:N` or `append:N` (in the
N-th save or right after the N-th curve line), or `report`.
"""

import os
import signal
import sys
import threading

import lagjax
from lagjax import report
from lagjax.directory import Directory
from tests import toy


def kill(delay: float = 0.0) -> None:
    """Ends this process as the kernel's out-of-memory killer would, now or in the midst of what follows."""
    if delay:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str) -> toy.Told:
    """Prepares the kill; returns the progress to run with."""
    place, _, number = where.partition(":")
    left = {"count": int(number or 1)}

    def due() -> bool:
        left["count"] -= 1
        return left["count"] == 0

    if place in ("save", "append"):
        original = getattr(Directory, place)

        def wrapped(self: Directory, *arguments: object) -> None:
            last = due()
            if last and place == "save":
                kill(0.01)
            original(self, *arguments)
            if last and place == "append":
                kill()

        setattr(Directory, place, wrapped)
    if place == "report":
        write = report.write

        def interrupted(path: object) -> object:
            kill(0.3)
            return write(path)

        report.write = interrupted

    def then(event: object) -> None:
        if event.phase == place and due():
            kill()

    return toy.Told(then)


def main(workdir: str, lanes: str, where: str = "") -> None:
    progress = arm(where)
    options = {"checkpoint_seconds": 0.0, "progress": progress}
    params, _ = lagjax.train(
        toy.SMALL, toy.tx(), toy.batch, toy.VALID, 6, workdir, **options
    )
    task = toy.task(params=params, horizon=32, seeds=1 if lanes == "1" else 2)
    pool = toy.pool("stack", "identity-top", "random-top")
    lagjax.run(
        task,
        pool,
        lagjax.FixedLag(12),
        workdir,
        compare="start",
        lanes=int(lanes),
        **options,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
