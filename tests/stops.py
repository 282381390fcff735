"""Follows a task from `lagjax.run` to decision.json: the functions of lagjax that it is passed to,
in order.

    python -m tests.stops

A reader who follows it by hand makes as many stops.
"""

import pathlib
import sys
import tempfile
import types

import lagjax

ROOT = pathlib.Path(lagjax.__file__).parent


def stops(workdir: pathlib.Path) -> list[str]:
    """`file:function` of each function that was called with the task until the decision was
    written.
    """
    from tests import toy

    found, inside, decided = dict[str, None](), f"{ROOT}/", workdir / "decision.json"

    def called(frame: types.FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # Every call of the process comes by, most of them JAX's: what is cheap comes first.
        if event != "call" or not code.co_filename.startswith(inside) or code.co_name[0] == "<":
            return
        given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        passed = any(isinstance(frame.f_locals.get(x), lagjax.Task) for x in given)
        if passed and not decided.exists():
            found[f"{code.co_filename.removeprefix(inside)}:{code.co_qualname}"] = None

    sys.setprofile(called)
    try:
        task, pool = toy.task(horizon=2), toy.pool("stack")
        lagjax.run(task, pool, lagjax.FixedLag(1), workdir, progress=toy.Told())
    finally:
        sys.setprofile(None)
    return list(found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for stop in stops(pathlib.Path(folder) / "run"):
            print(stop)
