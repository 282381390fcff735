"""`kill -9` at any instant: the same command goes on, and ends as if nothing had happened."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from lagjax.store import directory

ROOT = pathlib.Path(__file__).parent.parent


def exit_codes(folder: pathlib.Path, lanes: int, places: list[str]) -> list[int]:
    """Of the run that is left alone, of those killed, and of the last, which ends what they began."""
    command = [sys.executable, "-m", "tests.killed_run", folder, str(lanes), *places]
    # The first process compiles, those after it read what it left: the same programs, in less time.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | cache,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    assert all(code in (0, -signal.SIGKILL) for code in codes), (codes, done.stderr)
    return codes


def outcome(workdir: pathlib.Path) -> tuple[list, dict, set]:
    """Curves and decision without wall times, which no two runs share, and the checkpoints that are left."""
    record = directory.read(workdir)
    curves = [
        {key: value for key, value in line.items() if key != "seconds"} for line in record.curves
    ]
    assert record.decision is not None
    decision = json.loads(json.dumps(record.decision))
    del decision["ledger"]["seconds"]
    kept = {str(path.relative_to(workdir)) for path in (workdir / "checkpoints").glob("*/*")}
    return curves, decision, kept


@pytest.mark.parametrize(
    ("lanes", "places"),
    [
        (1, ["source:2", "save:9", "append:12", "probe:2", "continue:1", "report"]),
        (3, ["save:8", "probe:2"]),
    ],
)
def test_ends_as_if_not_killed(lanes: int, places: list[str], tmp_path: pathlib.Path) -> None:
    killed = [-signal.SIGKILL] * len(places)
    assert exit_codes(tmp_path, lanes, places) == [0, *killed, 0]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert (tmp_path / "killed/report.html").read_text().endswith("</html>\n")
