"""Numbers as scripts give them: a lag computed with numpy, a horizon written 3.2e1.

They must do what the integer does, or be refused by a ValueError before anything is computed.
"""

import pathlib

import numpy as np
import pytest

import lagjax
from lagjax.store.directory import read
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept
VARIANTS = {
    "numpy lag": {"policy": lagjax.FixedLag(np.int64(10))},
    "float lag": {"policy": lagjax.FixedLag(1e1)},
    "float horizon": {"horizon": 3.2e1},
    "numpy horizon": {"horizon": np.int64(32)},
    "numpy seeds": {"seeds": np.int64(1)},
    "arguments": {"arguments": {"rate": np.float32(1e-2), "folder": pathlib.Path("/data")}},
}


def found(path, trained, **changes):
    """What came of a run, or None where it was refused."""
    try:
        decision = small.search(path, trained, lag=10, **changes)
    except ValueError:
        assert not (path / "curves.jsonl").exists()
        return None
    steps = [line["step"] for line in toy.curve(path, decision.winner)]
    saved = sorted(each.name for each in (path / "checkpoints").glob("*/*"))
    assert read(path).decision["lag"] == decision.lag
    return decision.winner, decision.lag, type(decision.lag), steps, saved


@pytest.fixture(scope="module")
def with_integers(tmp_path_factory):
    """What comes of the run that all are compared with; made once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lagjax.report, "write", lambda path: path)
        return found(tmp_path_factory.mktemp("int") / "run", lagjax.Trained(toy.PARAMS))


@pytest.mark.parametrize("name", VARIANTS)
def test_does_what_the_integer_does(name, tmp_path, with_integers):
    made = found(tmp_path / "run", lagjax.Trained(toy.PARAMS), **VARIANTS[name])
    assert made is None or made == with_integers


def test_a_float_lag_off_the_grid(tmp_path):
    trained = lagjax.Trained(toy.PARAMS)
    changes = {"horizon": 64, "lag": 7}
    try:
        made = small.search(tmp_path / "float", trained, **changes, policy=lagjax.FixedLag(7e0))
    except ValueError:
        return
    wanted = small.search(tmp_path / "int", trained, **changes)
    assert made.losses_at_lag == wanted.losses_at_lag
