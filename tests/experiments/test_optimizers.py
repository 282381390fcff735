"""The states of all optimizers: some rows are made anew, the committed ones are checked, and the
README shows them.
"""

import pytest

from experiments import optimizers, tables
from experiments.rows import HERE, RESULTS, read

ROWS = {row["optimizer"]: row for row in read(RESULTS / "optimizers.jsonl")}


@pytest.mark.parametrize("name", ["adagrad", "rprop", "lars", "snapshot", "momo", "fromage"])
def test_a_row_made_anew_is_the_committed_one(name):
    name = f"contrib.{name}" if name == "momo" else name
    made = optimizers.row(name, optimizers.factories()[name])
    for key in ("outcome", "rules", "why", "worst"):
        assert made[key] == ROWS[name][key]
    assert made["difference"] == pytest.approx(ROWS[name]["difference"], abs=1e-6)


def test_committed_rows_are_complete_and_as_measured():
    assert list(ROWS) == list(optimizers.factories())
    for row in ROWS.values():
        outcomes = ("carried", "anew", "refused", "no state", "not run")
        assert row["outcome"] in outcomes
        # Yogi's first value, 1e-6, is in its means.
        assert (row["difference"] or 0) < (1e-4 if "yogi" in row["optimizer"] else 1e-6)
        assert bool(row["why"]) is (row["outcome"] in ("refused", "not run"))


def test_the_readme_shows_them():
    readme = (HERE.parent / "README.md").read_text()
    assert tables.with_table("optimizers", readme, list(ROWS.values())) == readme
