"""A disk that fills: the run fails, the user frees space and gives the same command again.

It must go on, now and later, and leave whole lines in curves.jsonl.
"""

import json
import os
import subprocess

import pytest

import lagjax
from tests import quick, toy
from tests.cases.runs import small

no_page = quick.no_page


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
