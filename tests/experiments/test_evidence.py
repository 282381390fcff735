"""The evidence experiment: a small one end to end, and what its rows are made into."""

import json
import pathlib

import numpy as np
import pytest

from experiments import bank, evidence, evidence_findings, pictures, quickstart, tables
from experiments.rows import RESULTS, read
from lagjax.analysis.margin import METHOD
from lagjax.averages import AVERAGES
from lagjax.jobs import RAW
from lagjax.select import fixed

SMALL = {
    "layers": 1, "width": 16, "heads": 2, "window": 16, "batch": 4, "source_steps": 20,
    "horizon": 64, "looks": (48,), "seeds": 2, "warmup": 4, "shards": 4,
}  # fmt: skip


def made(**changes: object) -> bank.Curves:
    """Three candidates, two seeds, evaluated at 0, 48 and 64; the second ends best."""
    end = np.array([[2.0, 2.0], [1.0, 1.2], [1.5, 1.5]])
    at_48 = np.array([[1.9, 1.9], [1.6, 1.6], [1.5, 1.5]])
    raw = np.stack([at_48 + 1, at_48, end], axis=2)
    ema = np.stack([np.full((3, 2), np.nan), end + 0.1, end], axis=2)
    random = np.random.default_rng(0)
    train = (end[..., None] + random.normal(size=(1, 2, 64)) * 0.1).astype(np.float32)
    shards = raw[..., None] + random.normal(size=(1, 1, 3, 4)) * 0.1
    curves = bank.Curves(
        ("a", "b", "c"), 3, (0, 48, 64), {RAW: raw, "ema 1/64": ema}, train,
        np.zeros((2, 3, 2, 3)), shards, 0.5,
    )  # fmt: skip
    return curves._replace(**changes)


def test_a_small_one_goes_through(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One of each kind: every average is another evaluation to compile.
    fewer = {name: evidence.AVERAGES[name] for name in ("ema 1/64", "tail 1/32")}
    monkeypatch.setattr(evidence, "AVERAGES", fewer)
    config = evidence.Config(
        regimes=("constant",), workdir=tmp_path / "runs", results=tmp_path / "results", **SMALL
    )
    evidence.main(config)
    rows = read(tmp_path / "results/evidence.jsonl")
    signals = {evidence_findings.name_of(row) for row in rows if row["step"] == 48}
    assert signals == {"raw", "window", "anneal", *evidence.AVERAGES}
    assert {row["seed"] for row in rows} == {0, 1}
    fields = {"regime", "seed", "step", "signal", "share", "decay", "spearman", "regret_nats"}
    assert all(fields | {"cost", "noise_floor", "commit", "device"} <= row.keys() for row in rows)
    # A half-life of one step of 64.
    (decay,) = {row["decay"] for row in rows if row["share"] == "1/64" and row["signal"] == "ema"}
    assert decay == pytest.approx(0.5)
    saved = bank.Curves.load(tmp_path / "results/curves/evidence-constant.npz")
    # One layer has no order to destroy: there is no control.
    assert saved.able == len(saved.names) == 4
    assert saved.train.shape == (len(saved.names), 2, 64) and np.isfinite(saved.train).all()
    assert read(tmp_path / "results/coverage.jsonl")[0]["method"] == "iid"
    # Again: nothing is trained, and the rows are the same.
    evidence.main(config)
    assert read(tmp_path / "results/evidence.jsonl") == rows


def test_rows_by_hand() -> None:
    found = {(x["signal"], x["step"], x["seed"]): x for x in evidence.rows("low", made())}
    raw, ema = found["raw", 48, 0], found["ema", 48, 0]
    # The lowest at 48 is c, which ends at 1.5; on the mean over seeds b ends at 1.1.
    assert raw["regret_nats"] == pytest.approx(0.4)
    assert raw["spearman"] == pytest.approx(0.5)
    assert (ema["regret_nats"], ema["spearman"]) == pytest.approx((0.0, 1.0))
    # Two losers' 48 steps, three evaluations of three candidates, half a step each, of 64 steps.
    assert ema["cost"] == pytest.approx((2 * 48 + 3 * 3 * 0.5) / 64)
    assert raw["cost"] == pytest.approx((2 * 48 + 3 * 2 * 0.5) / 64)
    assert raw["random_regret"] == pytest.approx(np.mean([2.0, 1.1, 1.5]) - 1.1)
    assert ("ema", 0, 0) not in found


def row(signal: str, step: int, regret: float, cost: float, **changes: object) -> dict:
    share = "1/64" if signal == "ema" else None
    return {
        "regime": "low", "seed": 0, "step": step, "signal": signal, "share": share, "spearman": 1.0,
        "regret_nats": regret, "cost": cost, "noise_floor": 0.01, "config": {"horizon": 800},
    } | changes  # fmt: skip


def test_verdicts_compare_at_equal_cost() -> None:
    raw = [row("raw", 50, 0.1, 1.0), row("raw", 100, 0.0, 2.0)]
    # Halfway between them the weights' regret is .05.
    (better,) = evidence_findings.verdicts([*raw, row("ema", 50, 0.03, 1.5)])
    assert better.holds and better.better == ("low",)
    assert better.gain == pytest.approx(0.02)
    # Lower by less than the floor is not lower.
    (level,) = evidence_findings.verdicts([*raw, row("ema", 50, 0.045, 1.5)])
    assert not level.holds and level.worst[2] <= 0
    # Steps before a sixteenth of the horizon count where that is asked for.
    early = [*raw, row("ema", 16, 0.5, 1.2), row("ema", 50, 0.03, 1.5)]
    assert evidence_findings.verdicts(early)[0].holds
    assert not evidence_findings.verdicts(early, 0.0)[0].holds
    # One place that is worse by more than the floor is enough.
    rows = [*raw, row("ema", 50, 0.03, 1.5), row("ema", 100, 0.02, 2.0)]
    (worse,) = evidence_findings.verdicts(rows)
    assert worse.better and not worse.holds
    assert worse.worst == ("low", 100, pytest.approx(0.01))


def test_coverage_is_of_what_comes_next() -> None:
    """Without noise between candidates every interval is a point; with a drift it misses."""
    steps = np.arange(64.0)
    train = np.stack([np.zeros(64), steps * 0.01, np.ones(64)])[:, None].repeat(2, axis=1)
    still = made(train=np.zeros((3, 2, 64), np.float32) + np.arange(3.0)[:, None, None])
    found = {x["method"]: x for x in evidence.coverages("low", still)}
    assert found["iid"]["coverage"] == 1.0 and found["iid"]["width"] == 0.0
    assert (found["iid"]["window"], found["iid"]["pairs"]) == (12, 6)
    drifts = {x["method"]: x for x in evidence.coverages("low", made(train=train))}
    # Of three pairs one does not drift.
    assert drifts["iid"]["coverage"] == pytest.approx(1 / 3, abs=1e-4)


def test_the_committed_picture_is_of_the_committed_rows() -> None:
    for name in pictures.PICTURES:
        rows, picture = read(RESULTS / name), (RESULTS / name).with_suffix(".svg")
        assert bool(rows) == picture.exists()
        assert not rows or f"rows {pictures.digest(rows)}" in picture.read_text()


def test_the_tables_have_the_picture(tmp_path: pathlib.Path) -> None:
    rows = [
        {"device": "d", "cores": 2, "commit": "c",
         "versions": {"jax": "1"}, "about": "a", "candidates": 3, "random_regret": 0.1} | x
        for x in (row("raw", 50, 0.1, 1.0), row("raw", 100, 0.0, 2.0), row("ema", 50, 0.0, 1.1))
    ]  # fmt: skip
    (tmp_path / "evidence.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    front = tmp_path / "front.md"
    front.write_text("nothing")
    tables.main(tables.Arguments((), tmp_path, tmp_path / "README.md", front))
    text = (tmp_path / "README.md").read_text()
    assert "| ema 1/64 | 1.00 (0.0000) | – |" in text and "results/evidence.svg" in text
    assert f"rows {pictures.digest(rows)}" in (tmp_path / "evidence.svg").read_text()


def test_a_regime_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no regime 'x'; there are quickstart, constant"):
        evidence.main(evidence.Config(regimes=("x",)))


def test_the_defaults_follow_from_the_committed_rows() -> None:
    found = evidence_findings.default(read(RESULTS / "evidence.jsonl"))
    assert found and found.share == fixed.SHARE
    assert found.signal == f"ema 1/{1 / quickstart.Config.average:.0f}"
    assert [*AVERAGES.values()] == [evidence.AVERAGES[found.signal]]
    assert quickstart.Config.lag == round(fixed.SHARE * quickstart.Config.horizon)
    assert evidence_findings.interval(read(RESULTS / "coverage.jsonl")) == METHOD
    # Over the regimes far below the start's choice, each for less than one and a half full runs.
    start, chosen, random, cost = np.array([*found.lines.values()]).T
    assert chosen.mean() < start.mean() / 5 and (chosen < random / 5).all() and (cost <= 1.5).all()


def test_the_narrowest_interval_that_holds() -> None:
    def covered(method: str, regime: str, coverage: float, width: float) -> dict:
        return {"method": method, "regime": regime, "coverage": coverage, "width": width}

    rows = [
        covered("narrow", "a", 0.95, 1.0), covered("narrow", "b", 0.89, 1.0),
        covered("wide", "a", 0.99, 3.0), covered("wide", "b", 0.95, 3.0),
        covered("good", "a", 0.91, 2.0), covered("good", "b", 0.93, 2.0),
    ]  # fmt: skip
    assert evidence_findings.interval(rows) == "good"
    assert evidence_findings.interval(rows[:2]) is None


def test_a_default_is_the_shortest_lag_within_the_noise() -> None:
    shared = {"random_regret": 0.1}
    raw = [row("raw", 0, 0.2, 0.1), row("raw", 50, 0.1, 1.0), row("raw", 100, 0.1, 2.0)]
    ema = [row("ema", 16, 0.0, 0.2), row("ema", 50, 0.03, 1.0), row("ema", 100, 0.01, 2.0)]
    found = evidence_findings.default([x | shared for x in (*raw, *ema)])
    assert found and (found.signal, found.share) == ("ema 1/64", 0.125)
    assert found.lines == {"low": (0.2, 0.01, 0.1, 2.0)}
    worse = [row("ema", 50, 0.3, 1.0)]
    assert evidence_findings.default([x | shared for x in (*raw, *worse)]) is None
