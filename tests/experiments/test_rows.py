"""Rows are stored once, and the tables are made of them."""

import pathlib

import pytest

from experiments import curves, tables
from experiments.rows import HERE, RESULTS, alike, markdown, read, store


def row(seed: int, **more: object) -> dict[str, object]:
    return {"question": "toy", "config": {"steps": 3}, "seed": seed, "device": "cpu", **more}


def test_a_row_takes_the_place_of_the_one_that_it_repeats(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "results" / "toy.jsonl"
    assert read(path) == []
    store(path, [row(0, loss=1.0), row(1, loss=2.0)])
    store(path, [row(0, loss=0.5), row(0, config={"steps": 4}, loss=3.0)])
    assert [found["loss"] for found in read(path)] == [2.0, 0.5, 3.0]


@pytest.mark.parametrize("key", ["question", "config", "candidate", "seed", "device"])
def test_rows_that_differ_are_all_kept(key: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "toy.jsonl"
    store(path, [row(0)])
    store(path, [row(0) | {key: "another"}])
    assert len(read(path)) == 2


def test_groups_are_of_one_configuration_and_device() -> None:
    rows = [row(0), row(0, device="gpu"), row(1), row(0, config={"steps": 4})]
    assert alike(rows) == [[rows[0], rows[2]], [rows[1]], [rows[3]]]


def test_a_table() -> None:
    expected = "| Arm | Loss |\n| --- | ---: |\n| stack | 1.5 |\n"
    assert markdown(("Arm", "Loss"), [("stack", "1.5")]) == expected


def test_the_committed_tables_are_those_of_the_committed_rows() -> None:
    assert (HERE / "README.md").read_text() == tables.render(RESULTS)


def test_the_front_page_has_what_choices_lose() -> None:
    readme = (HERE.parent / "README.md").read_text()
    assert tables.with_table("choices", readme, read(RESULTS / "regimes.json")) == readme


def test_what_is_missing_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "gpt-1.npz").touch()
    store(tmp_path / "benchmark.jsonl", [row(0, device="gpu: NVIDIA H200 × 1")])
    store(tmp_path / "one_shot.jsonl", [row(0, device="cpu: cpu × 1")])
    [said] = tables._missing(tmp_path)
    assert "tasks of the bank: gpt-2, " in said and "gpt-1," not in said
    assert "`one_shot.jsonl` from a GPU: `python -m experiments.one_shot" in said
    assert "benchmark" not in said
    for name in curves.TASKS:
        (tmp_path / "curves" / f"{name}.npz").touch()
    store(tmp_path / "one_shot.jsonl", [row(1, device="gpu: NVIDIA H200 × 1")])
    assert tables._missing(tmp_path) == []
