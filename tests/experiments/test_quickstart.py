"""The quickstart from its command line, in small, on text in another language."""

import dataclasses
import json
import pathlib
import sys

import jax
import pytest

import lagjax
from experiments import quickstart, tables
from experiments.models import gpt
from experiments.rows import read
from lagjax.store import directory

SMALL = [
    "--layers", "1", "--grown-layers", "2", "--width", "16", "--heads", "2", "--window", "16",
    "--batch", "4", "--shards", "3", "--source-steps", "6", "--warmup", "2", "--horizon", "12",
    "--lag", "4", "--candidates-at-once", "1",
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of two Greek texts and a file that is no text."""
    folder = tmp_path / "greek"
    folder.mkdir()
    for name in ("alpha", "beta"):
        line = f"{name}: ἄνδρα μοι ἔννεπε\n"
        (folder / f"{name}.txt").write_text(line * 300, encoding="utf-8")
    (folder / "picture").write_bytes(bytes(range(256)))
    return folder


def test_from_text_to_report(
    corpus: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    command = ["quickstart", "--data", str(corpus), "--workdir", str(run), *SMALL]
    monkeypatch.setattr(sys, "argv", command)
    assert quickstart.cli() == 0
    printed = capsys.readouterr().out
    record = directory.read(run)
    assert record.decision is not None
    assert record.decision["winner"] in printed
    assert str(run / "report.html") in printed
    assert record.config["arguments"]["files"] == 2
    assert record.config["arguments"]["horizon"] == 12
    phases = {line["phase"] for line in record.curves}
    assert phases == {"source", "probe", "continue"}
    rates = [line["lr"] for line in record.curves if line["phase"] == "probe"]
    assert None not in [line["lr"] for line in record.curves if line["step"] > 0] and any(
        rate for rate in rates if rate
    )
    # Again, with another lag: refused by the field's name, and nothing is lost.
    before = (run / "decision.json").read_text()
    monkeypatch.setattr(sys, "argv", [*command[:-4], "--lag", "5", "--candidates-at-once", "1"])
    assert quickstart.cli() == 2
    assert "arguments.lag is 4 there and 5 here" in capsys.readouterr().err
    assert (run / "decision.json").read_text() == before
    json.loads(before)


def test_help_says_what_every_flag_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart", "--help"])
    with pytest.raises(SystemExit) as stop:
        quickstart.cli()
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in quickstart.Config.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in text
    assert text.count("(default:") >= len(quickstart.Config.__dataclass_fields__) - 2


def test_what_grows() -> None:
    """Pools by flag, their targets, and a width that does not fit."""
    size = gpt.Config(2, 16, 2, 16)
    config = quickstart.Config(layers=2, grown_layers=4, width=16, heads=2)

    def found(**changes: object) -> tuple[dict[str, int], set[int]]:
        pool = quickstart.candidates(dataclasses.replace(config, **changes), size)
        shapes = [one.target.layout().sizes for one in pool]
        return {one.name: each["embed"] for one, each in zip(pool, shapes)}, {
            one.target.layout().stacks["layers"] for one in pool
        }

    names, layers = found()
    assert {*names.values()} == {16} and layers == {4} and "stack" in names
    names, layers = found(grow="width")
    assert list(names) == list(lagjax.pools.WIDTH) and {*names.values()} == {32} and layers == {2}
    assert {*found(grow="width", grown_width=24)[0].values()} == {24}
    names, layers = found(grow="both")
    assert len(names) == 3 * quickstart.FEW and layers == {2, 4}
    assert names["zeroed-interleave"] == 16 and names["isometric"] == 32
    assert names["isometric + zeroed-interleave"] == 32
    # What is exact by its table is so because the target is as the operator requires it.
    pool = quickstart.candidates(dataclasses.replace(config, grow="both"), size)
    small = gpt.model(size)
    layout = small.layout()
    exact = [
        one.name
        for one in pool
        if one.operator.plan(jax.random.key(0), layout, one.target.layout()).exact_by_table
    ]
    assert {"isometric", "isometric + zeroed-interleave"} <= {*exact}
    for width in (16, 20):
        with pytest.raises(ValueError, match=f"--grown-width {width} .* larger multiple of 8"):
            found(grow="width", grown_width=width)


@pytest.mark.slow
def test_widths_and_depths_matched_by_flops(
    corpus: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["quickstart", "--data", str(corpus), "--workdir", str(tmp_path / "run"), *SMALL]
    monkeypatch.setattr(sys, "argv", [*command, "--grow", "both", "--baselines"])
    assert quickstart.cli() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "rowing paid" in printed or "rowing did not pay" in printed
    record = directory.read(tmp_path / "run")
    entries = [*record.config["pool"], *record.config["baseline_pool"]]
    costs = [entry["horizon"] * entry["step_flops"] for entry in entries]
    assert len({entry["horizon"] for entry in entries}) >= 4
    assert all(abs(x - costs[0]) < entry["step_flops"] for x, entry in zip(costs, entries))
    # Every schedule falls to its own end.
    ends = {x["candidate"]: x["lr"] for x in record.curves if x["phase"] == "continue"}
    assert max(ends.values()) < 0.3 * 3e-3


@pytest.mark.slow
def test_audit_over_devices_to_rows_and_tables(
    corpus: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every trial ends; the audit is printed, its rows are stored once, and the table is theirs."""
    run, results = tmp_path / "run", tmp_path / "results"
    options = ["--audit", "--mesh", "2", "2", "--seeds", "2", "--schedule", "continue"]
    options += ["--keep", "all"]
    command = ["quickstart", "--data", str(corpus), "--workdir", str(run)]
    monkeypatch.setattr(sys, "argv", [*command, *SMALL[:-2], *options, "--candidates-at-once", "4"])
    assert quickstart.cli() == 0
    assert "Spearman" in capsys.readouterr().out
    record = directory.read(run)
    assert list(record.config["grouping"].values()) == [4] and record.config["keep"] == "all"
    assert not {"candidates_at_once", "keep", "workdir"} & record.config["arguments"].keys()
    ends = {
        (line["candidate"], line["seed"])
        for line in record.curves
        if line["step"] == 12 and line["phase"] == "continue"
    }
    members = [*record.config["pool"], *record.config["baseline_pool"]]
    assert ends == {(member["name"], seed) for member in members for seed in (0, 1)}
    # One cosine over both models' steps, so that the rate goes on where the small model's stood.
    rates = {(line["phase"], line["step"]): line["lr"] for line in record.curves if line["lr"]}
    assert 0.5 * rates["source", 6] < rates["probe", 1] < rates["source", 6]
    # One layer has no order to reverse: this pool has no controls of its own.
    for member in record.config["pool"]:
        member["role"] = {"stack": "control", "half-stack": "baseline"}.get(
            member["name"], "candidate"
        )
    (run / "config.json").write_text(json.dumps(record.config))
    readme = tmp_path / "README.md"
    more = ["--results", str(results), "--readme", str(readme)]
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["tables", str(run), *more])
        assert tables.cli() == 0
    rows = read(results / "audit.jsonl")
    assert len(rows) == len(ends)
    assert all(len(row["losses"]) == len(row["steps"]) for row in rows)
    assert {row["candidate"] for row in rows if row["control"]} == {
        "stack",
        "half-stack",
        "not growing",
        "from scratch",
    }
    assert {row["commit"] for row in rows} == {record.config["versions"]["commit"]}
    text = readme.read_text()
    assert text == tables.render(results)
    assert "For as many FLOPs, means over seeds: " in text and "not growing" in text
    assert "learning rate continued" in text and "| 12 | 1.00 |" in text
    monkeypatch.setattr(sys, "argv", ["tables", str(tmp_path), *more])
    assert tables.cli() == 2
    assert "no run directory" in capsys.readouterr().err


def test_another_seed_is_another_initialisation(
    corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart.lagjax, "run", lambda *_, **__: None)
    monkeypatch.setattr(quickstart.report, "show", lambda _: None)
    found = []
    for seed in ("0", "1"):
        run = tmp_path / seed
        command = ["quickstart", "--data", str(corpus), "--workdir", str(run), "--seed", seed]
        monkeypatch.setattr(sys, "argv", [*command, *SMALL])
        assert quickstart.cli() == 0
        found.append(directory.read(run).curves[0]["valid_loss"])
    # Untrained, on the same validation shards.
    assert found[0] != found[1]


def test_a_mesh_of_more_devices_than_there_are(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["quickstart", "--workdir", str(tmp_path / "run"), "--mesh", "8", "2"]
    monkeypatch.setattr(sys, "argv", command)
    assert quickstart.cli() == 2
    assert "needs 16 devices, and there are 8" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
