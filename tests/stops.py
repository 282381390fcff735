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

    task, found = toy.task(), dict[str, None]()

    def called(frame: types.FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or (workdir / "decision.json").exists():
            return
        path = pathlib.Path(code.co_filename)
        if path.is_relative_to(ROOT) and code.co_name[0] != "<":
            given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(frame.f_locals.get(name) is task for name in given):
                found[f"{path.relative_to(ROOT)}:{code.co_qualname}"] = None

    sys.setprofile(called)
    try:
        lagjax.run(task, toy.pool(), lagjax.FixedLag(8), workdir, progress=toy.Told())
    finally:
        sys.setprofile(None)
    return list(found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for stop in stops(pathlib.Path(folder) / "run"):
            print(stop)
