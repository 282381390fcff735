"""What growing saves against longer trainings from scratch."""

import dataclasses
import pathlib

import numpy as np
import pytest

from experiments import curves, hypotheses, scratch
from experiments.rows import read
from tests.experiments.test_hypotheses import made


def rows(*losses: float) -> list[dict[str, object]]:
    """Of 100, 200 and 400 FLOPs, two seeds each."""
    return [
        {"flops": 100.0 * 2**at, "loss": loss + shift, "seed": seed}
        for at, loss in enumerate(losses)
        for seed, shift in enumerate((-0.01, 0.01))
    ]


def test_what_is_saved_is_read_between_two_horizons() -> None:
    """Halfway between two losses lies the geometric mean of their FLOPs."""
    found = scratch.saved(rows(3.0, 2.0, 1.0), np.array([1.5, 1.5, 1.5]), 100.0, 50)
    assert found is not None
    share, (low, high) = found
    assert share == pytest.approx(1 - 100 / (200 * 2**0.5))
    assert low < share < high and high - low < 0.05


def test_growing_may_cost_more() -> None:
    found = scratch.saved(rows(3.0, 2.0, 1.0), np.array([2.0, 2.0]), 300.0, 50)
    assert found is not None and found[0] == pytest.approx(-0.5)


@pytest.mark.parametrize("end", [0.5, 3.5])
def test_what_no_horizon_reaches_is_not_known(end: float) -> None:
    assert scratch.saved(rows(3.0, 2.0, 1.0), np.array([end, end]), 100.0, 50) is None


def test_savings_are_of_the_same_model_and_text() -> None:
    task = hypotheses.Kept("gpt-1", curves.TASKS["gpt-1"], made("gpt-1"))
    told = {
        "model": "gpt", "layers": 6, "width": 48, "vocab": None, "corpus": "c", "shorter": 1,
        "horizon": 7,
    }  # fmt: skip
    # The best ends at 1.0, for 16 steps of 2 FLOPs; the small model took 1,000 of 1.
    longer = [
        {"flops": 20.0 * 100**at, "loss": loss, "config": told}
        for at, loss in enumerate((2.0, 0.5))
        for _ in range(2)
    ]
    given, paid = hypotheses.savings(task, longer, 20)
    needed = 20 * 100 ** (1 / 1.5)
    assert given["saved"] == pytest.approx(1 - 32 / needed, abs=0.01)
    assert paid["saved"] == pytest.approx(1 - 1032 / needed, abs=0.03)
    for other in ({"corpus": "d"}, {"layers": 8}, {"model": "bert"}):
        others = [row | {"config": told | other} for row in longer]
        assert hypotheses.savings(task, others, 20) == []


def test_rows_are_made_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = curves.Config(width=16, heads=2, window=16, batch=2, warmup=2, shards=2)
    monkeypatch.setattr(curves, "Config", lambda: sizes)
    short = dataclasses.replace(curves.TASKS[curves.SOURCE_KEPT], layers=(1, 2))
    monkeypatch.setitem(curves.TASKS, curves.SOURCE_KEPT, short)
    with pytest.raises(ValueError, match="no task 'gpt-9'; there are gpt-1"):
        scratch.main(scratch.Config(("gpt-9",)))
    task = (curves.SOURCE_KEPT,)
    config = scratch.Config(task, (200, 400), 1, tmp_path / "runs", tmp_path, shorter=100)
    scratch.main(config)
    found = read(tmp_path / "scratch.jsonl")
    assert [row["config"]["horizon"] for row in found] == [200, 400]
    assert found[1]["flops"] == 2 * found[0]["flops"] > 0
    assert all(row["loss"] > 0 and row["config"]["layers"] == 2 for row in found)
    asked = curves.configured(curves.Config(), curves.SOURCE_KEPT) | {"shorter": 100}
    assert scratch.like(found, asked, found[0]["config"]["corpus"]) == found
    capsys.readouterr()
    scratch.main(config)
    assert read(tmp_path / "scratch.jsonl") == found


@pytest.mark.parametrize(("at_two", "verdict"), [(32.0, "supported"), (6400.0, "refuted")])
def test_the_growth_factor_that_saves_most(at_two: float, verdict: str) -> None:
    """All end alike and nothing that is exact is best; at 2 × that takes fewer FLOPs, or more."""
    longer: list[dict[str, object]] = []
    tasks = []
    for factor, name in curves.FACTORS.items():
        one = made(name)
        # The interleaved copies, which are exact, end last.
        one.valid["raw"][0] += 1.0
        cost = at_two / 16 if factor == 2 else 200.0
        tasks.append(
            hypotheses.Kept(name, curves.TASKS[name], one._replace(step_flops=(cost,) * 5))
        )
        told = scratch.model_of(one.row["config"], "c") | {"horizon": 7, "shorter": 1}
        longer += [
            {"flops": 1e4 * 100**at, "loss": loss, "config": told}
            for at, loss in enumerate((2.0, 0.5))
            for _ in range(2)
        ]
    (row,) = hypotheses.factors(tasks, longer, 20)
    assert (row["hypothesis"], row["task"], row["verdict"]) == ("H7", "factors", verdict)
    assert {part["verdict"] for part in row["parts"]} == {"supported", verdict}
    assert row["saved"]["1.5"] == row["saved"]["8"] != row["saved"]["2"]
    assert hypotheses.factors(tasks[1:], longer, 20) == []
    assert hypotheses.factors(tasks, longer[:-4], 20) == []
