"""Width against depth in small, from its command line: equal FLOPs, going on, what rows say."""

import json
import pathlib
import sys

import pytest

from experiments import width
from experiments.rows import Row, read
from experiments.width_findings import sections
from lagjax.progress import Silent
from lagjax.store import directory

SMALL = {
    "layers": 1,
    "grown_layers": 2,
    "heads": 1,
    "grown_heads": 2,
    "head_dim": 4,
    "window": 8,
    "batch": 2,
    "source_steps": 4,
    "budget_steps": 12,
    "warmup": 2,
    "shards": 2,
}
ARM = "isometric, grown, rule"


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "text"
    file.write_text("All happy families are alike. " * 200)
    return file


def run(monkeypatch: pytest.MonkeyPatch, data: pathlib.Path, *more: str, **sizes: int) -> int:
    flags = [
        part
        for name, value in (SMALL | {"seeds": 1} | sizes).items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    given = ["--data", str(data), "--results", str(data.with_name("rows.jsonl"))]
    given += ["--workdir", str(data.with_name("runs"))]
    monkeypatch.setattr(sys, "argv", ["width", *given, *flags, *more])
    return width.cli()


@pytest.mark.slow
def test_rows_of_equal_cost_that_are_made_once(
    corpus: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    added = []
    for seeds in (1, 2, 2):
        assert run(monkeypatch, corpus, "--arms", ARM, seeds=seeds) == 0
        added.append(int(capsys.readouterr().out.split()[0]))
    # What has a row is not run again.
    assert added == [1, 1, 0]
    rows = read(corpus.with_name("rows.jsonl"))
    assert [(row["candidate"], row["seed"]) for row in rows] == [(ARM, 0), (ARM, 1)]
    assert rows[0]["losses"] != rows[1]["losses"]
    for row in rows:
        assert row["status"] == "ok" and row["exact"]
        assert abs(row["flops"] - row["budget"]) <= row["step_flops"] / 2
        # A run evaluates at its start and its end.
        assert row["at_flops"] == [row["flops"] - row["steps"] * row["step_flops"], row["flops"]]
        assert len(row["losses"]) == 2
        # Growing changes nothing; training does.
        assert row["losses"][0] == pytest.approx(row["source_losses"][-1], abs=1e-4)
        assert row["losses"][-1] != row["losses"][0]
        assert len(row["last_shards"]) == SMALL["shards"]
        assert str(corpus) not in json.dumps(row)
        assert row["requires"] == ["epsilon × 0.5 (embed)"]
    # Three seeds of every arm are the least that makes a table.
    assert sections(rows) == []


@pytest.mark.slow
def test_arms_share_runs_and_sources(
    corpus: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One run a target and state; what is there is not trained again when the rows are lost."""
    results, here = corpus.with_name("rows.jsonl"), corpus.with_name("runs") / "seed-0"
    arms = ["stack, reset", "zeroed-interleave, reset", "zeroed-interleave, grown, no rule"]
    found = []
    for _ in range(2):
        assert run(monkeypatch, corpus, "--arms", "small, continued", *arms) == 0
        assert capsys.readouterr().out.startswith("4 rows")
        found.append(read(results))
        results.unlink()
    assert found[0] == found[1]
    rows = {row["candidate"]: row for row in found[0]}
    scratch, stack, zeroed, grown = rows.values()
    whole = SMALL["source_steps"] + grown["steps"]
    assert {path.name for path in here.iterdir()} == {
        "small, continued", "stack, reset + zeroed-interleave, reset", arms[2],
        "source, cosine of 4", f"source, cosine of {whole}",
    }  # fmt: skip
    assert stack["source_losses"] == zeroed["source_losses"] != grown["source_losses"]
    assert stack["losses"] != zeroed["losses"]
    # All begin with one initialisation; where the cosine is longer, training goes otherwise.
    assert scratch["source_losses"] == [] and scratch["steps"] == SMALL["budget_steps"]
    assert scratch["losses"][0] == stack["source_losses"][0] == grown["source_losses"][0]
    transfers = {
        each["name"]: each["transfer"]
        for name in ("stack, reset + zeroed-interleave, reset", arms[2])
        for each in directory.read(here / name).config["pool"]
    }
    reset = {"moments": "reset", "schedule": "restart"}
    carried = {"moments": "grow", "schedule": "continue"}
    assert transfers == {arms[0]: reset, arms[1]: reset, arms[2]: carried}
    # Data goes on where the small model's stopped.
    assert directory.read(here / arms[2]).config["task"]["position"] == SMALL["source_steps"]


def test_arms_are_what_they_are_called(corpus: pathlib.Path) -> None:
    """Exact where they say so, and of equal cost within half a step."""
    experiment = width.Experiment(width.Config(data=str(corpus), **SMALL), Silent())
    source = SMALL["source_steps"] * experiment.flops["small"]
    for arm in width.ARMS.values():
        spent = experiment.steps(arm) * experiment.flops[arm.target]
        spent += source if arm.operator else 0
        assert abs(spent - experiment.budget) <= experiment.flops[arm.target] / 2
        if "width" in arm.family:
            plan = experiment.plan(arm)
            assert plan.exact_by_table == (arm.family == "width")


@pytest.mark.parametrize(
    "sizes, more, problem",
    [
        ({}, ("--arms", "isometric"), "there is no arm 'isometric'"),
        ({"budget_steps": 4}, (), "leaves none after the 4"),
        ({"seeds": 0}, (), "--seeds is 0"),
        ({"window": 10**6}, (), "give more text or a smaller window"),
        ({"grown_heads": 1, "heads": 2}, ("--arms", ARM), "growth adds entries"),
    ],
)  # fmt: skip
def test_bad_input(
    sizes: dict[str, int],
    more: tuple[str, ...],
    problem: str,
    corpus: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, corpus, *more, **sizes) == 2
    assert problem in capsys.readouterr().err
    assert not corpus.with_name("rows.jsonl").exists()


def made(**finals: float) -> list[Row]:
    """Rows of three seeds, in which arms of a family end where it is said, and all others at 2."""
    return [
        {
            "config": SMALL | {"corpus": "0123456789abcdef"},
            "candidate": name,
            "seed": seed,
            "source_losses": [3.0] if arm.operator else [],
            "losses": [3.25, 2.0],
            "last_shards": [
                finals.get(arm.family.replace(" ", "_"), 2.0) + noise + seed * 0.0001
                for noise in (0.0, 0.5, 0.25)
            ],
            "steps": 5,
            "parameters": 1234,
            "budget": 1e9,
            "commit": "c" * 40,
            "versions": {"jax": "1"},
            "device": "cpu",
            "cores": 2,
        }
        for name, arm in width.ARMS.items()
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    "ends, verdict",
    [
        ({"depth": 1.0, "width": 1.5}, "Depth beats width here"),
        ({"depth": 1.5, "width": 1.0}, "The claim is refuted: width beats depth here"),
        ({}, "Whether depth beats width, 3 seeds do not decide"),
    ],
)
def test_the_answer_follows_the_rows(ends: dict[str, float], verdict: str) -> None:
    (part,) = sections(made(**ends))
    assert verdict in part
    assert all(f"| {name} |" in part for name in width.ARMS)
    assert "| 0.2500 |" in part
    # A seed that lacks an arm does not count.
    assert sections(made(**ends)[:-1]) == []


def test_an_arm_that_failed_is_said_to_have() -> None:
    rows = made(width=1.0)
    for row in rows:
        if row["candidate"].startswith("zero-pad"):
            row |= {"last_shards": None, "losses": [None, None]}
    (part,) = sections(rows)
    assert part.count("failed, failed, failed") == 3
    assert "the best exact width arm (isometric, reset)" in part
