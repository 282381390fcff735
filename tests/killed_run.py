"""Trains, grows, probes and goes on with the toy net, in processes that kill themselves.

    python -m tests.killed_run FOLDER AT_ONCE WHERE...

A process that is left alone works in FOLDER/whole. Then one for each WHERE works in FOLDER/killed,
and a last one that is left alone; the exit codes are printed. WHERE is `source:N`, `probe:N` or
`continue:N` (at the N-th step forward of the phase), `save:N` (in the midst of the N-th
checkpoint), `lines:N`, `losses:N` or `answer:N` (right after the N-th time that these were put on
record), `baseline:N` (right after the N-th time that a baseline's were), `prune:N` (before the N-th
removal of old checkpoints), or `report`.

All are forks of one that has imported everything, which takes longer than the work; each starts JAX
itself.
"""

import importlib
import json
import os
import pathlib
import signal
import sys
import threading

import lagjax
from lagjax import report
from lagjax.baselines import FROM_SCRATCH, NOT_GROWING
from lagjax.jobs import Segment
from lagjax.store.checkpoints import Checkpoints
from lagjax.store.curves import Curves
from lagjax.store.directory import Store
from lagjax.store.losses import Losses

PLACES = {
    "save": (Checkpoints, "save"),
    "prune": (Checkpoints, "prune"),
    "lines": (Curves, "add"),
    "losses": (Losses, "add"),
    "answer": (Store, "answer"),
}

# What a run imports when it comes to it.
importlib.import_module("lagjax.report.charts")
importlib.import_module("matplotlib.backends.backend_svg")


def kill(delay: float = 0.0) -> None:
    """Ends this process as the out-of-memory killer would, now or in the midst of what follows."""
    if delay:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def arm(where: str) -> object:
    """Prepares the kill; returns the progress to run with."""
    from tests import toy

    place, _, number = where.partition(":")
    left = {"count": int(number or 1)}

    def due() -> bool:
        left["count"] -= 1
        return left["count"] == 0

    if place in PLACES:
        owner, name = PLACES[place]
        original = getattr(owner, name)

        def wrapped(self: object, *arguments: object, **named: object) -> object:
            last = due()
            if last and place == "prune":
                kill()
            if last and place == "save":
                kill(0.01)
            found = original(self, *arguments, **named)
            if last and place != "save":
                kill()
            return found

        setattr(owner, name, wrapped)
    if place == "baseline":
        commit = Store.commit

        def committed(self: Store, segment: Segment) -> None:
            commit(self, segment)
            if segment.trials[0].candidate in (NOT_GROWING, FROM_SCRATCH) and due():
                kill()

        Store.commit = committed
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


def run(workdir: pathlib.Path, at_once: int, where: str) -> None:
    """The run, from its start to its end or from where the directory stands."""
    # It computes where it is imported.
    from tests import toy

    small, large = toy.model(1), toy.model(2)
    options = {"checkpoint_seconds": 0.0, "progress": arm(where)}
    source = lagjax.train(small, toy.tx(), toy.batch, toy.VALID, 4, workdir, **options)
    task = toy.task(
        model=small, source=source, tx=toy.schedule, horizon=10, seeds=1 if at_once == 1 else 2
    )
    names = ("stack", "identity-between", "random-between")
    pool = lagjax.pools.depth(source.params, toy.AXES, large)
    lagjax.run(
        task,
        [candidate for candidate in pool if candidate.name in names],
        lagjax.FixedLag(4 if at_once == 1 else 2),
        workdir,
        compare="start",
        baselines=True,
        candidates_at_once=at_once,
        **options,
    )


def main(folder: str, at_once: str, *places: str) -> None:
    work = [("whole", ""), *(("killed", where) for where in places), ("killed", "")]
    codes = []
    for name, where in work:
        # JAX has not started here, and so has no threads that a fork would lose.
        if not (child := os.fork()):
            run(pathlib.Path(folder, name), int(at_once), where)
            return
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(*sys.argv[1:])
