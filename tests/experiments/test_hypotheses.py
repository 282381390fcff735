"""What the bank says, on made-up curves."""

import dataclasses
import pathlib

import numpy as np
import pytest

from experiments import bank, bank_findings, curves, hypotheses, tables
from experiments.bank import Baseline, Curves
from experiments.rows import RESULTS, read

STEPS = (0, 1, 2, 4, 8, 16)
NAMES = ("zeroed-interleave", "stack", "interleave", "random-top", "reversed")
WORDS = ("0 0* 1 1* 2 2*", "0 1 2 0 1 2", "0 0 1 1 2 2", "0 1 2 new new new", "2 1 0 2 1 0")


def made(task: str, turns: bool = False) -> Curves:
    """Four candidates and a control; where the ranking turns, after four steps. The best ends at
    1.0, not growing at 1.1 for as many FLOPs, and from scratch at 0.9.
    """
    draw = np.random.default_rng(0)
    up = np.array([1.0, 1.1, 1.2, 1.3, 2.0])
    down = np.array([1.3, 1.2, 1.1, 1.0, 2.0])
    end = np.linspace(0.5, 0.0, len(STEPS))
    raw = np.stack([(down if turns and step < 4 else up) for step in STEPS], axis=1) + end
    raw = raw[:, None] + 1e-3 * draw.normal(size=(5, 3, len(STEPS)))
    averaged = np.stack([up] * len(STEPS), axis=1)[:, None] + np.zeros((1, 3, 1))
    rates = np.ones((5, 3, len(STEPS)))
    entry = curves.configured(curves.Config(), task)
    return Curves(
        NAMES, 4, STEPS, {"raw": raw, "average": averaged},
        np.zeros((5, 3, 16), np.float32), np.stack([rates, rates]),
        raw[..., None].repeat(8, axis=-1), 0.5, WORDS,
        np.array([True, False, False, False, False]), (16,) * 5, (2.0,) * 5,
        {
            "not growing": Baseline(
                (0, 16, 32), np.array([[1.4, 1.2, 1.1]] * 3), np.zeros((3, 32), np.float32), 1.0
            ),
            "from scratch": Baseline(
                (0, 8, 16), np.array([[5.0, 1.6, 0.9]] * 3), np.zeros((3, 16), np.float32), 2.0
            ),
        },
        None, {"config": entry, "corpus": "c", "held_out": False},
    )  # fmt: skip


def saved(folder: pathlib.Path, turning: str = "tenth of the rate") -> None:
    """The half fraction, the ranking turning where a factor is at its second level."""
    for name, entry in curves.CELLS.items():
        made(name, entry.levels[turning]).save(folder / f"{name}.npz")


def test_curves_come_back_as_they_were_kept(tmp_path: pathlib.Path) -> None:
    one = made("gpt-1")
    one.save(tmp_path / "one.npz")
    found = Curves.load(tmp_path / "one.npz")
    for field in ("names", "able", "steps", "words", "horizons", "step_flops", "row"):
        assert getattr(found, field) == getattr(one, field)
    assert (found.exact == one.exact).all()
    for weights, losses in one.valid.items():
        np.testing.assert_allclose(found.valid[weights], losses, rtol=1e-6)
    assert found.baselines.keys() == one.baselines.keys() and found.source is None
    kept, given = found.baselines["from scratch"], one.baselines["from scratch"]
    assert (kept.steps, kept.step_flops) == (given.steps, given.step_flops)
    np.testing.assert_allclose(kept.valid, given.valid, rtol=1e-6)


def test_the_kept_curves_of_before_are_read() -> None:
    """Those of the evidence experiment have neither words nor a row."""
    for path in bank.CURVES.glob("evidence-*.npz"):
        found = Curves.load(path)
        assert (
            found.row == {}
            and found.baselines == {}
            and found.able == len(found.names) - ("reversed" in found.names)
        )


def test_curves_of_other_horizons_are_compared_at_shares() -> None:
    one = made("gpt-1")
    twice = (0, 1, 2, 4, 8, 16, 32)
    raw = np.full((5, 3, 7), np.nan)
    raw[0, :, :6], raw[1:, :, :6] = one.valid["raw"][0], 7.0
    # The second candidate takes twice the steps: at half of them it is at 3.
    raw[1, :, 4:] = [4.0, 3.0, 2.0]
    found = one._replace(valid={"raw": raw}, steps=twice, horizons=(16, 32, 16, 16, 16)).ended()
    assert found.steps == STEPS
    assert found.losses[STEPS.index(8), 1].tolist() == [3.0] * 3
    assert found.losses[STEPS.index(16), 1].tolist() == [2.0] * 3


def test_what_the_bank_says(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "curves")
    config = hypotheses.Config(tmp_path / "curves", tmp_path, tmp_path / "none", 50)
    hypotheses.main(config)
    told = {(x["task"], x["hypothesis"]): x for x in read(tmp_path / "hypotheses.json")}
    fields = {"hypothesis", "model", "size", "regime", "threshold", "value", "interval", "seeds"}
    assert all(fields | {"verdict", "rows"} <= row.keys() for row in told.values())
    # gpt-2 turns, gpt-1 does not.
    assert told["gpt-1", "H2"]["verdict"] == "refuted"
    assert told["gpt-1", "H3"]["verdict"] == "supported"
    assert told["gpt-1", "H6"]["verdict"] == told["gpt-2", "H6"]["verdict"] == "supported"
    start = {task: told[task, "H1"]["parts"][0]["value"] for task in ("gpt-1", "gpt-2")}
    assert start["gpt-1"] > 0.9 > -0.9 > start["gpt-2"]
    # Where the start misleads, an exact member is still the best: that is what refutes the claim.
    assert told["gpt-2", "H1"]["verdict"] == "refuted" and told["gpt-2", "H1"]["threshold"] == 0
    rows = read(tmp_path / "regimes.json")
    numbers = {x["task"]: x for x in rows if x["question"] == "numbers"}
    tells = "share of the horizon from which on {} tell"
    assert numbers["gpt-1"][tells.format("weights")] == 0
    assert numbers["gpt-2"][tells.format("weights")] == 4 / 16
    assert numbers["gpt-2"][tells.format("averages")] == 1 / 16
    assert (numbers["gpt-2"]["lowest at the start"], numbers["gpt-2"]["best"]) == (
        ["random-top"], "zeroed-interleave",
    )  # fmt: skip
    # The best at the end is the worst at the start where the ranking turns, after four steps of 16.
    turns, stays = numbers["gpt-2"], numbers["gpt-1"]
    assert [turns["start loses"], *turns["weights lose"]] == pytest.approx(
        [0.3] * 4 + [0, 0], abs=0.01
    )
    assert turns["averages lose"] == pytest.approx([0.3, 0, 0, 0, 0], abs=0.01)
    assert stays["start loses"] == pytest.approx(0, abs=1e-9)
    assert turns["spread"] == pytest.approx(0.15, abs=0.01)
    (one,) = [
        x
        for x in rows
        if x["question"] == "effect" and x["factor"] == "tenth of the rate"
        if x["number"] == "Spearman at the start"
    ]
    assert one["clear"] and one["effect"] == pytest.approx(-2, abs=0.1)


def test_growing_pays_against_what_is_not_grown(tmp_path: pathlib.Path) -> None:
    saved(tmp_path)
    (task, *_) = hypotheses.kept(tmp_path)
    rows = hypotheses.worth(task, hypotheses.Config(draws=20))
    found = {(x["against"], x["source"]): x for x in rows}
    assert found["not growing", "given"]["lower_by"] == pytest.approx(0.1, abs=1e-3)
    assert found["from scratch", "given"]["lower_by"] == pytest.approx(-0.1, abs=1e-3)
    # With the source paid, the grown model stands where it stood 1,000 steps of the small one
    # before: it has not begun when the other ends.
    assert ("from scratch", "paid") not in found
    assert ("not growing", "paid") not in found
    assert found["from scratch", "given"]["best"] == "zeroed-interleave"


def test_what_is_held_out_is_not_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path)
    hidden = dataclasses.replace(curves.TASKS["gpt-3"], held_out=True)
    monkeypatch.setitem(curves.TASKS, "gpt-3", hidden)
    others = [name for name in curves.CELLS if name != "gpt-3"]
    assert [task.name for task in hypotheses.kept(tmp_path)] == others
    # Nor what was kept before a task was configured otherwise.
    longer = dataclasses.replace(curves.TASKS["gpt-5"], horizon=801)
    monkeypatch.setitem(curves.TASKS, "gpt-5", longer)
    others.remove("gpt-5")
    assert [task.name for task in hypotheses.kept(tmp_path)] == others


def test_a_bank_without_tasks(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no task of the bank is kept in .*curves"):
        hypotheses.main(hypotheses.Config(tmp_path / "curves", tmp_path))


def test_the_committed_verdicts_are_those_of_the_committed_curves(tmp_path: pathlib.Path) -> None:
    there = [name for name in ("hypotheses", "regimes", "worth") if hypotheses.kept(bank.CURVES)]
    if there:
        hypotheses.main(hypotheses.Config(results=tmp_path))
    for name in there:
        assert read(tmp_path / f"{name}.json") == read(RESULTS / f"{name}.json")


def test_what_another_source_moves() -> None:
    numbers = ("gpt-1", 0.8, 0.1, 0.5), ("gpt-1-again", 0.75, 0.4, 0.5), ("wikitext", 0.0, 0.0, 0.0)
    by = {
        name: {"task": name, bank_findings.START: start, bank_findings.REGRET: regret,
               bank_findings.WEIGHTS: weights}
        for name, start, regret, weights in numbers
    }  # fmt: skip
    said = bank_findings.sources(by)
    assert "(gpt-1-again) moves the start's Spearman by 0.05, its normalised regret by 0.30" in said
    assert "weights tell by 0.00" in said
    assert not bank_findings.sources({"gpt-1": by["gpt-1"]})


def test_the_tables_have_what_the_bank_says(tmp_path: pathlib.Path) -> None:
    saved(tmp_path / "curves")
    hypotheses.main(hypotheses.Config(tmp_path / "curves", tmp_path, tmp_path / "none", 20))
    text = tables.render(tmp_path)
    assert "| gpt-1 | source annealed, full rate, 1,000 steps, state reset (3 to 6 layers" in text
    assert "how much the start tells is *tenth of the rate*: −2.0" in text
    plain = " ".join(text.split())
    assert "| averages at 1/16 of the horizon | 0.0000 |" in text
    assert "| the start | 0.1499 | 0.2999 (gpt-2) | 4 |" in text
    assert (
        "**With it, train on before choosing, and choose by the average of the weights**" in plain
    )
    assert "**Without it, keep what is lowest right after growing**" in plain
    assert "lower in 8 of 8 tasks and higher in 0. Lower by, on the mean: constant source" in plain
    assert "from scratch, source given | −0.10" in text
