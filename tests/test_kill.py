"""`kill -9` at any instant: the same command goes on, and ends as if nothing had happened."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from lagjax.fingerprint import digest
from lagjax.jobs import Trial
from lagjax.store import directory
from lagjax.store.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).parent.parent


def exit_codes(folder: pathlib.Path, at_once: int, places: list[str]) -> list[int]:
    """Of the run left alone, of those killed, and of the last, which ends what they began."""
    command = [sys.executable, "-m", "tests.killed_run", folder, str(at_once), *places]
    # The first process compiles, those after it read what it left: the same programs, in less time.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
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


def outcome(workdir: pathlib.Path) -> tuple:
    """All that a run leaves but wall times; of checkpoints, what they hold."""
    data = directory.read(workdir)
    lines = [
        {key: value for key, value in line.items() if key != "seconds"} for line in data.curves
    ]
    # Trials that were cut back come later in the file; each one's own lines are in order.
    lines.sort(key=lambda line: (line["candidate"], line["seed"]))
    assert data.decision is not None
    decision = json.loads(json.dumps(data.decision))
    del decision["ledger"]["seconds"]
    losses = {x.name: x.read_bytes() for x in (workdir / "steps").iterdir()}
    checkpoints = Checkpoints(workdir / "checkpoints")
    kept = {}
    for folder in (workdir / "checkpoints").iterdir():
        name, _, seed = folder.name.rpartition("-")
        for step in checkpoints.steps(trial := Trial(name, int(seed))):
            arrays, meta = checkpoints.read(trial, step)
            kept[trial, step] = digest(arrays), meta["growth"], meta["digest"]
    checkpoints.close()
    return data.config, data.rounds, lines, losses, decision, kept


@pytest.mark.parametrize(
    ("at_once", "places"),
    [
        (
            1,
            ["source:2", "lines:4", "save:5", "continue:1", "baseline:2", "baseline:3", "report"],
        ),
        pytest.param(3, ["save:9"], marks=pytest.mark.slow),
    ],
)
def test_ends_as_if_not_killed(at_once: int, places: list[str], tmp_path: pathlib.Path) -> None:
    killed = [-signal.SIGKILL] * len(places)
    assert exit_codes(tmp_path, at_once, places) == [0, *killed, 0]
    config, *others = outcome(tmp_path / "killed")
    assert (config, *others) == outcome(tmp_path / "whole")
    assert [x["name"] for x in config["baseline_pool"]] == ["not growing", "from scratch"]
    assert (tmp_path / "killed/report.html").read_text().endswith("</html>\n")
