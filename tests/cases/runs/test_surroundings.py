"""A finished run is shown where the surroundings are unusual.

usetex in matplotlibrc, a notebook's or a window's backend, ASCII output, another time zone, another
folder, python -O, 30 columns: each must give the page or the table, without a word on stderr.
"""

import os
import subprocess
import sys

import matplotlib
import pytest

from tests import toy
from tests.cases.runs import small

pytestmark = pytest.mark.slow
NAME = "größer 1"
SURROUNDINGS = {
    # Where there is no LaTeX.
    "usetex": ("report", (), {"MPLCONFIGDIR": "rc", "PATH": ""}),
    # Which its processes inherit, and another environment may lack.
    "a notebook's backend": (
        "report",
        (),
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    ),
    "a window's backend": ("report", (), {"MPLBACKEND": "TkAgg"}),
    "LC_ALL=C": ("show", (), {"LC_ALL": "C"}),
    "ASCII": ("show", (), {"PYTHONIOENCODING": "ascii"}),
    "no UTF-8 mode": (
        "show",
        (),
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ),
    "30 columns": ("show", (), {"COLUMNS": "30"}),
    "-O, another time zone": ("show", ("-O",), {"TZ": "Asia/Kathmandu"}),
}


def finish(path):
    first, *others = toy.pool("stack", "zeroed-stack")
    pool = [first._replace(name="größer → tiefer"), *others]
    return small.search(path, small.source(path, 16), pool=pool, horizon=16, lag=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("surroundings")
    finish(made / NAME)
    (made / "rc").mkdir()
    (made / "rc" / "matplotlibrc").write_text(
        "text.usetex: True\naxes.formatter.use_locale: True\nfont.family: NoSuchFont\n"
    )
    return made


@pytest.mark.parametrize(("name", "flags", "more"), SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_is_shown(name, flags, more, folder):
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))
    }
    command = [sys.executable, *flags, "-m", "lagjax", name, NAME]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | {"JAX_PLATFORMS": "cpu"} | more,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr.decode(errors="replace").strip()) == (0, "")


def test_where_the_process_itself_uses_tex(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with matplotlib.rc_context({"text.usetex": True}):
        assert finish(folder / NAME).winner
    assert (folder / NAME / "report.html").is_file()
