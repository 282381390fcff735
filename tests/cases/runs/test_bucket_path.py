"""A bucket as the run directory, as on TPUs, and a path under the home directory with a tilde.

Neither may become a folder of that name in the working directory without a word.
"""

import pytest

from tests.cases.runs import small


@pytest.mark.parametrize("path", ["gs://my-bucket/grow/run1", "s3://my-bucket/run1", "~/runs/a"])
def test_no_folder_of_that_name(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        small.source(path, 1)
    except ValueError as error:
        assert path.split("/")[0] in str(error)
    assert not list((tmp_path / "here").iterdir())
