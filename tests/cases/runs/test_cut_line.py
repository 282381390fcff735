"""The machine dies, or the disk fills, while a line of curves.jsonl is being written.

The same command must go on, now and later, and leave whole lines.
"""

import json

import pytest

import lagjax
from lagjax.store import curves
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept


class PowerCut(Exception):
    pass


def test_goes_on_after_half_a_line(tmp_path, monkeypatch):
    trained = lagjax.Trained(toy.PARAMS)
    real, written = curves.append, []

    def dying(path, content):
        written.append(content)
        # The fourth evaluation of the winner's way on reaches the disk in half only.
        if sum(b'"continue"' in each for each in written) == 4:
            real(path, content[: len(content) // 2])
            raise PowerCut
        real(path, content)

    options = {"horizon": 32, "checkpoint_seconds": 0.0}
    with monkeypatch.context() as patched:
        patched.setattr(curves, "append", dying)
        with pytest.raises(PowerCut):
            small.search(tmp_path, trained, "stack", "lidas", **options)
    cut = (tmp_path / "curves.jsonl").read_text()
    assert not cut.endswith("\n")
    first, second = (small.search(tmp_path, trained, "stack", "lidas", **options) for _ in "12")
    assert first.winner == second.winner
    lines = (tmp_path / "curves.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
