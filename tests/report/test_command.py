"""`python -m lagjax`: what it prints, and how it fails."""

import json
import re
from xml.etree import ElementTree

import pytest
import synthetic_runs

import lagjax
from lagjax import __main__ as command


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"lagjax {lagjax.__version__}\n"


def test_report_prints_the_path(tmp_path, capsys):
    synthetic_runs.make(tmp_path)
    assert command.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("outcome", ["clear", "tie", "all_failed", None])
def test_show(tmp_path, capsys, monkeypatch, outcome):
    monkeypatch.setenv("COLUMNS", "120")
    names = ("[bold]first[/bold]", "[/oops]", "third")
    decision = synthetic_runs.make(tmp_path, names=names, outcome=outcome)
    assert command.main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    if decision and decision["winner"]:
        assert f"{decision['winner']} was " in out
        assert "Overhead 0.672 full runs" in out and "Winner after the lag" in out
    assert (outcome or "unfinished") in out


def test_show_cuts_no_column_at_80(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    synthetic_runs.make(tmp_path, racing=True, baseline=True, metrics=True)
    assert command.main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Status" in out and max(map(len, out.splitlines())) <= 80
    # What the page has in tables, the terminal has too.
    assert all(title in out for title in ("The rounds", "valid_accuracy", "The ledger", "Policy"))


def test_show_json_is_the_file(tmp_path, capsys):
    decision = synthetic_runs.make(tmp_path)
    assert command.main(["show", "--json", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out == (tmp_path / "decision.json").read_text()
    assert json.loads(out) == decision


@pytest.mark.parametrize("name", ["report", "show"])
@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (None, None, "no run directory"),
        ("config.json", "{", "config.json"),
        ("config.json", "[1]", "config.json"),
        ("config.json", '{"pool": [{"control": true}]}', "are of format 1"),
        ("config.json", '{"format": 2, "pool": [{"role": "control"}]}', "pool lacks name"),
        ("rounds.jsonl", '{"round": 0}\n', "Line 1 of rounds.jsonl lacks answer"),
        ("rounds.jsonl", '{"round": 0, "answer": "Add", "candidates": [1]}\n', "pool lacks"),
        ("curves.jsonl", "{}\n", "Line 1 of curves.jsonl"),
        ("curves.jsonl", "oops\n", "curves.jsonl"),
        ("decision.json", '{"winner": 1}', "decision.json lacks"),
    ],
)
def test_bad_directory(tmp_path, capsys, name, file, text, says):
    if file:
        synthetic_runs.make(tmp_path)
        (tmp_path / file).write_text(text)
    code = command.main([name, str(tmp_path)])
    found = capsys.readouterr()
    assert code == 2 and found.out == ""
    assert found.err.startswith("lagjax: ") and says in found.err


def test_json_of_no_run(tmp_path, capsys):
    assert command.main(["show", "--json", str(tmp_path)]) == 2
    assert "no run directory" in capsys.readouterr().err


def test_json_of_an_unfinished_run(tmp_path, capsys):
    synthetic_runs.make(tmp_path, outcome=None)
    assert command.main(["show", "--json", str(tmp_path)]) == 2
    assert "no decision.json yet" in capsys.readouterr().err


def test_report_writes_a_picture(tmp_path, capsys):
    """A document of its own, in the colours of whoever shows it."""
    synthetic_runs.make(tmp_path / "run")
    made = tmp_path / "curves.svg"
    assert command.main(["report", str(tmp_path / "run"), "--picture", str(made)]) == 0
    assert capsys.readouterr().out == f"{made}\n"
    root = ElementTree.parse(made).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not (tmp_path / "run/report.html").exists()
    text = made.read_text("utf-8")
    used, known = (set(re.findall(x, text)) for x in (r"var\(--(\w+)\)", r"--(\w+):"))
    assert used <= known and text.count("prefers-color-scheme") == 1
    synthetic_runs.make(tmp_path / "none", outcome=None, phases=("source",))
    assert command.main(["report", str(tmp_path / "none"), "--picture", str(made)]) == 2
    assert "no candidate that was measured; let the run go on" in capsys.readouterr().err
