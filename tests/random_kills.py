"""Kills a small quickstart at random instants, and compares what it ends with.

    python -m tests.random_kills FOLDER --times 50        # ten to fifteen minutes on 2 CPU cores

FOLDER/whole is a run that is left alone. Then runs are started, killed by SIGKILL after a random
time and started again, in FOLDER/0, FOLDER/1 and so on, a new one when one has come to its end,
until there were as many kills as asked for. Each must end with the rows, losses, rounds,
checkpoints and decision of the first. The exit code is 1 where one does not.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from lagjax.jobs import Trial
from lagjax.store.directory import read
from lagjax.store.losses import Losses

ROOT = pathlib.Path(__file__).parent.parent
SMALL = [
    "--layers",
    "1",
    "--grown-layers",
    "2",
    "--width",
    "16",
    "--heads",
    "2",
    "--window",
    "16",
    "--batch",
    "4",
    "--source-steps",
    "60",
    "--horizon",
    "80",
    "--lag",
    "20",
    "--shards",
    "4",
    "--seeds",
    "2",
    "--checkpoint-seconds",
    "0",
]


def start(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen[bytes]:
    """A process of its own group, so that nothing of it is left when it is killed."""
    command = [sys.executable, "-m", "experiments.quickstart", *SMALL, "--workdir", str(workdir)]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with (workdir.parent / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )


def finish(workdir: pathlib.Path, cache: pathlib.Path) -> float:
    """Runs it to its end; returns the seconds that took."""
    began = time.monotonic()
    if code := start(workdir, cache).wait():
        raise SystemExit(f"{workdir} ended with {code}; see {workdir.parent / 'log'}")
    return time.monotonic() - began


def outcome(workdir: pathlib.Path) -> dict[str, object]:
    """All that two runs share: everything but wall times, and where and when they were made."""
    data = read(workdir)
    assert data.decision is not None
    trials = {Trial(line["candidate"], line["seed"]) for line in data.curves}
    losses = Losses(workdir / "steps")
    return {
        "rows": sorted(repr(sorted((line | {"seconds": 0}).items())) for line in data.curves),
        "rounds": data.rounds,
        "decision": data.decision | {"ledger": data.decision["ledger"] | {"seconds": 0}},
        "losses": sorted((trial, losses.of(trial).tobytes()) for trial in trials),
        "checkpoints": sorted(
            str(x.relative_to(workdir)) for x in (workdir / "checkpoints").glob("*/*")
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    draw, cache = random.Random(given.seed), given.folder / "compiled"
    finish(given.folder / "whole", cache)
    # The second time everything is compiled: that is how long the others take.
    seconds = finish(given.folder / "again", cache)
    whole, kills, number = outcome(given.folder / "whole"), 0, 0
    differing = [] if outcome(given.folder / "again") == whole else ["again"]
    while kills < given.times:
        workdir = given.folder / str(number)
        process = start(workdir, cache)
        try:
            process.wait(draw.uniform(0.2 * seconds, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            if kills < given.times:
                continue
            finish(workdir, cache)
        found = outcome(workdir)
        if found != whole:
            parts = [part for part in whole if found[part] != whole[part]]
            differing.append(f"{workdir}: {', '.join(parts)}")
        print(f"{kills} kills, {number + 1} runs, {len(differing)} differ", flush=True)
        number += 1
    print("\n".join(differing) or "every run ended as the one that was left alone")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
