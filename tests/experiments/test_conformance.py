"""The certificates of all operators: a quick subset is made here, the committed rows are checked,
and the README shows them.
"""

import itertools
import json

import pytest

from experiments import conformance, tables
from experiments.rows import HERE, RESULTS, read

ROWS = read(RESULTS / "conformance.jsonl")
# What must be exact on at least one family.
EXACT = (
    "tile",
    "tile-noise",
    "net2net (mlp)",
    "net2net (heads)",
    "zero-pad (residual)",
    "centred (residual)",
    "average (residual)",
    "isometric (residual)",
    "block-diagonal",
    "head size, zero-pad",
    "head size, duplicated",
    "group duplication",
    "zeroed-interleave",
    "zeroed-stack",
    "identity-between",
    "identity-top",
    "self-fusion",
    "upcycling",
    "masked units, at 0",
    "masked layers, at 0",
)


def test_every_pair_of_choices_occurs():
    seen = {
        pair
        for family in conformance.families()
        for pair in itertools.combinations(family.items(), 2)
    }
    choices = conformance.CHOICES
    for one, other in itertools.combinations(choices, 2):
        assert seen >= set(
            itertools.product(
                [(one, x) for x in choices[one]], [(other, y) for y in choices[other]]
            )
        )


def test_rows_are_made_once(tmp_path, monkeypatch, capsys):
    names = ("isometric (residual)", "net2net (residual)", "masked layers, at 0")
    monkeypatch.setattr(conformance, "CASES", {name: conformance.CASES[name] for name in names})
    (post,) = (
        x for x in conformance.families() if conformance.name_of(x).startswith("post RMSNorm MQA")
    )
    monkeypatch.setattr(conformance, "families", lambda: [post])
    # What other tests of this process have compiled is still of use to them.
    monkeypatch.setattr(conformance.jax, "clear_caches", lambda: None)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"operator": "gone", "model": "x"}) + "\n")
    conformance.main(conformance.Arguments(results=path))
    made = path.read_text()
    exact, inexact, refused = map(json.loads, made.splitlines())
    assert [x["proved"] for x in (exact, inexact, refused)] == [
        "exact given",
        "none",
        "refused",
    ]
    assert [x["claimed"] for x in (exact, inexact, refused)] == [
        "exact",
        "not exact",
        "not exact",
    ]
    assert exact["max_diff_f64"] <= 1e-10 < inexact["max_diff_f64"]
    assert exact["max_diff_f32"] <= 1e-4
    assert exact["agrees"]
    assert exact["requires"] == ["epsilon × 0.666667 (embed)"]
    assert "pre-norm" in refused["violations"][0]
    capsys.readouterr()
    conformance.main(conformance.Arguments(results=path))
    assert path.read_text() == made
    assert not capsys.readouterr().err


def test_committed_rows_are_complete_and_true():
    found = {(row["operator"], row["model"]) for row in ROWS}
    for family, (name, case) in itertools.product(
        conformance.families(), conformance.CASES.items()
    ):
        small = conformance.config_of(family, **case.small)
        applies = case.grown(small) is not None
        assert ((name, conformance.name_of(family)) in found) is applies
    for row in ROWS:
        assert row["agrees"], row["operator"]
        assert row["proved"].startswith("exact") is (row["claimed"] == "exact"), (
            row["operator"],
            row["model"],
        )
        if row["proved"].startswith("exact"):
            assert row["max_diff_f64"] <= 1e-10
            assert row["max_diff_f32"] <= 1e-4
    assert {row["operator"] for row in ROWS if row["proved"].startswith("exact")} >= set(EXACT)


def test_the_readme_shows_the_committed_rows():
    readme = (HERE.parent / "README.md").read_text()
    assert tables.with_table("operators", readme, ROWS) == readme
    assert readme.count("| tile | 12 of 12 |") == 1
    with pytest.raises(ValueError, match="has no marks <!-- operators -->"):
        tables.with_table("operators", "nothing", ROWS)
