"""Numbers, paths and values as callers give them."""

import math
import pathlib

import numpy as np
import pytest

from lagjax import arguments


@pytest.mark.parametrize("value", [20, 2e1, np.int64(20), np.float32(20), np.array(20)])
def test_whole_numbers(value):
    found = arguments.whole(value, "it")
    assert found == 20 and type(found) is int


@pytest.mark.parametrize("value", ["20", 20.5, math.nan, math.inf, True, None, [20], 0, -1])
def test_no_whole_numbers(value):
    with pytest.raises(ValueError, match="the horizon is .*give a whole number, at least 1"):
        arguments.whole(value, "the horizon")


@pytest.mark.parametrize("value", [-1, math.nan, "3", None, True, math.inf])
def test_no_real_numbers(value):
    with pytest.raises(ValueError, match="it is .*at least 0"):
        arguments.real(value, "it")
    assert arguments.real(np.float32(0.5), "it") == 0.5


def test_a_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    assert arguments.folder("runs/a") == tmp_path / "runs/a"
    assert arguments.folder("~/a") == pathlib.Path("/somewhere/a")


@pytest.mark.parametrize("path", [None, 3, "", "gs://bucket/run", pathlib.Path("s3://bucket/run")])
def test_no_folders(path):
    with pytest.raises(ValueError, match="the run directory .*give"):
        arguments.folder(path)


def test_values_as_json_has_them():
    given = {"rate": np.float32(0.5), "at": pathlib.Path("/x"), "n": (np.int64(1), math.nan)}
    assert arguments.plain(given) == {"rate": 0.5, "at": "/x", "n": [1, "nan"]}


def test_whose_error_it_is():
    raised = pytest.raises(ValueError, match="^your loss raised KeyError: 'x'$")
    with raised as found, arguments.inside("your loss"):
        {}["x"]
    assert isinstance(found.value.__cause__, KeyError)
