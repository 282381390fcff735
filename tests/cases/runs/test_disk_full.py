"""A disk that fills: the run fails, the user frees space and gives the same command again.

It must go on, now and later, and leave whole lines in curves.jsonl.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

import lagjax
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def disk(tmp_path):
    """A file system of 3 MB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass


@pytest.mark.slow
def test_goes_on_when_there_is_room_again(disk):
    other = disk / "other"

    def fed(seed, step):
        # Another program fills the disk some steps into the winner's way on.
        if step == 20 and not other.exists():
            fill(other)
        return toy.batch(seed, step)

    # A line of curves.jsonl is about 2 kB long.
    shards = [toy.batch(99, index) for index in range(96)]
    trained = lagjax.Trained(toy.PARAMS)
    options = {"horizon": 64, "valid": shards, "checkpoint_seconds": 0.0}
    with pytest.raises(Exception, match="(?i)space|full|ENOSPC"):
        small.search(disk / "run", trained, "stack", "lidas", batch=fed, **options)
    assert other.exists()
    other.unlink()
    for _ in range(2):
        decision = small.search(disk / "run", trained, "stack", "lidas", **options)
        assert decision.winner
    lines = (disk / "run" / "curves.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


def go(path):
    """The run that is killed; ends in its decision."""
    shards = [toy.batch(99, index) for index in range(96)]
    options = {"horizon": 64, "valid": shards, "checkpoint_seconds": 0.0}
    return small.search(path, lagjax.Trained(toy.PARAMS), "stack", "lidas", **options)


@pytest.mark.slow
def test_killed_while_the_disk_is_full(disk, tmp_path_factory):
    alone = tmp_path_factory.mktemp("alone") / "run"
    decision = go(alone)
    program = "import sys; from tests.cases.runs import test_disk_full as t; t.go(sys.argv[1])"
    command = [sys.executable, "-c", program, str(disk / "run")]
    lines, draw = disk / "run" / "curves.jsonl", random.Random(0)
    for wanted in (1, 3, 6):
        # Until there are so many evaluations; then there is no room, and then no process.
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        while process.poll() is None and (
            not lines.exists() or len(lines.read_bytes().splitlines()) < wanted
        ):
            time.sleep(0.01)
        fill(disk / "other")
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.wait()
        (disk / "other").unlink()
    again = go(disk / "run")
    assert again._replace(ledger=None) == decision._replace(ledger=None)
    assert toy.without_times(disk / "run") == toy.without_times(alone)
