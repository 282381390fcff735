"""Files that neither a kill nor a full disk harms."""

import contextlib
import resource

import pytest

from lagjax.store.files import append, read_lines, write_atomically


@contextlib.contextmanager
def full():
    """No file may grow beyond 100 bytes, as on a disk that is full.

    No fixture: it would hold for the log that pytest writes as well.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_is_not_added_in_part(tmp_path):
    path = tmp_path / "lines"
    append(path, b'{"a": 1}\n')
    with full(), pytest.raises(OSError, match=r"lines could not .*make room.*same command"):
        append(path, b"x" * 200)
    assert path.read_bytes() == b'{"a": 1}\n'
    append(path, b'{"b": 2}\n')
    assert read_lines(path) == [{"a": 1}, {"b": 2}]


def test_what_cannot_be_replaced_stays(tmp_path):
    path = tmp_path / "config.json"
    write_atomically(path, "{}")
    with full(), pytest.raises(OSError, match="make room"):
        write_atomically(path, "x" * 200)
    assert path.read_text() == "{}" and [x.name for x in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("line", [b"{", b"\xff\xfe", b"3"])
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"b": 2}\n')
    with pytest.raises(ValueError, match=r"damaged in line 2: .*restore"):
        read_lines(path)
