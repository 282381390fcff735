"""A learning rate is changed, and the script run again in the same folder.

What was trained at the old rate must not be passed off as trained at the new one: another optimizer
is another run, to be refused or computed anew.
"""

import jax
import numpy as np
import pytest

import lagjax
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept


class Stop(Exception):
    pass


RUN = {"horizon": 8, "lag": 4}


def other_rate(path):
    """What a run at the new rate says where there is an old one, or None where it is refused."""
    try:
        return small.search(path, lagjax.Trained(toy.PARAMS), rate=1e-1, **RUN)
    except ValueError:
        return None


def test_a_finished_run(tmp_path):
    small.search(tmp_path / "old", lagjax.Trained(toy.PARAMS), **RUN)
    again = other_rate(tmp_path / "old")
    assert not again or again.losses_at_lag == other_rate(tmp_path / "new").losses_at_lag


def test_an_interrupted_run(tmp_path):
    def stop(event):
        # The first of two candidates is probed.
        if any(line["step"] == 4 for line in toy.curve(tmp_path / "old", "zeroed-stack")):
            raise Stop

    with pytest.raises(Stop):
        told = toy.Told(stop)
        small.search(tmp_path / "old", lagjax.Trained(toy.PARAMS), progress=told, **RUN)
    assert not toy.curve(tmp_path / "old", "stack")
    again = other_rate(tmp_path / "old")
    assert not again or again.losses_at_lag == other_rate(tmp_path / "new").losses_at_lag


def test_the_small_model(tmp_path):
    one = small.source(tmp_path, 8, rate=1e-2)
    try:
        other = small.source(tmp_path, 8, rate=1e-4)
    except ValueError:
        return
    first, second = (jax.tree.leaves(each.params) for each in (one, other))
    assert not all(np.array_equal(x, y) for x, y in zip(first, second))
