"""A batch function that draws from numpy's global generator, or from an iterator, as most loaders do.

Candidates must not be compared on different data without a word: one operator under two names has
to tie exactly, or the function is refused.
"""

import numpy as np
import pytest

import lagjax
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept


def rows():
    return np.stack([toy.batch(5, index) for index in range(64)]).reshape(-1, 9)


def pure():
    return toy.batch


def global_generator():
    state = np.random.RandomState(0)
    return lambda seed, step: rows()[state.choice(256, 4)]


def endless():
    batches = (rows()[np.random.default_rng(i).choice(256, 4)] for i in range(10**9))
    return lambda seed, step: next(batches)


def finite():
    batches = (rows()[i : i + 4] for i in range(0, 200, 4))
    return lambda seed, step: next(batches)


@pytest.mark.parametrize("feed", [pure, global_generator, endless, finite])
def test_twins_tie(feed, tmp_path):
    (stack,) = toy.pool("stack")
    twins = [stack._replace(name="one"), stack._replace(name="other")]
    trained = lagjax.Trained(toy.PARAMS)
    try:
        decision = small.search(tmp_path, trained, pool=twins, batch=feed(), horizon=8, lag=4)
    except ValueError:
        assert feed is not pure
        return
    one, other = decision.losses_at_lag.values()
    assert one == other
