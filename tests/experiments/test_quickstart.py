"""The quickstart from its command line, in small, on text in another language."""

import json
import pathlib
import sys

import pytest

from experiments import quickstart
from lagjax import directory

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
    "--shards",
    "3",
    "--source-steps",
    "6",
    "--warmup",
    "2",
    "--horizon",
    "12",
    "--lag",
    "4",
    "--lanes",
    "1",
]


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of two Greek texts and a file that is no text."""
    folder = tmp_path / "greek"
    folder.mkdir()
    for name in ("alpha", "beta"):
        line = f"{name}: \u1f04\u03bd\u03b4\u03c1\u03b1 \u03bc\u03bf\u03b9 \u1f14\u03bd\u03bd\u03b5\u03c0\u03b5\n"
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
    assert None not in [
        line["lr"] for line in record.curves if line["step"] > 0
    ] and any(rate for rate in rates if rate)
    # Again, with another lag: refused by the field's name, and nothing is lost.
    before = (run / "decision.json").read_text()
    monkeypatch.setattr(sys, "argv", [*command[:-4], "--lag", "5", "--lanes", "1"])
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
