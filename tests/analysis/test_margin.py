"""Paired margins: intervals that hold what they say, over shards and seeds and over steps."""

import numpy as np
import pytest
from scipy import stats

from lagjax.analysis.margin import margin, steps_margin

SHARDS = 8


def test_margin_with_one_seed_is_the_paired_t_interval() -> None:
    random = np.random.default_rng(1)
    one, other = random.normal(size=(2, 1, SHARDS))
    found = margin(one, other, np.full(SHARDS, 50.0))
    expected = stats.ttest_rel(other[0], one[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_margin_weighs_shards_by_their_tokens() -> None:
    found = margin(np.array([[0.0, 0.0]]), np.array([[1.0, 4.0]]), np.array([3.0, 1.0]))
    assert found.mean == pytest.approx((3 * 1.0 + 4.0) / 4)


def test_margin_of_one_number_has_no_interval() -> None:
    found = margin(np.zeros((1, 1)), np.ones((1, 1)), np.ones(1))
    assert (found.mean, found.low, found.high) == (1.0, -np.inf, np.inf)


def test_margin_covers_the_truth() -> None:
    """Seeds and shards both vary: 95 % intervals hold the truth in about 95 of 100 cases."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        seeds, shards = random.normal(size=(4, 1)), random.normal(size=(1, SHARDS))
        differences = 0.3 + 0.2 * seeds + 0.3 * shards + 0.1 * random.normal(size=(4, SHARDS))
        found = margin(np.zeros_like(differences), differences, np.ones(SHARDS))
        held += found.low <= 0.3 <= found.high
    assert 930 <= held <= 990


def test_a_margin_of_steps_is_that_of_batch_means() -> None:
    """Nine steps of one seed are three batches of three; over two seeds six."""
    one, other = np.zeros((1, 9)), np.arange(9.0)[None]
    found = steps_margin(one, other)
    assert found.mean == 4
    expected = stats.ttest_1samp([1.0, 4.0, 7.0], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    two = steps_margin(np.zeros((2, 9)), np.concatenate([other, other + 1]))
    assert two.mean == 4.5
    expected = stats.ttest_1samp([1.0, 4.0, 7.0, 2.0, 5.0, 8.0], 0).confidence_interval(0.95)
    assert (two.low, two.high) == pytest.approx((expected.low, expected.high))
    # Who is lower, and what lies beyond whole batches counts in the mean.
    assert steps_margin(other, one).mean == -4
    assert steps_margin(np.zeros((1, 10)), np.arange(10.0)[None]).mean == 4.5


def test_a_margin_of_one_batch_has_no_interval() -> None:
    found = steps_margin(np.zeros((1, 1)), np.ones((1, 1)))
    assert (found.mean, found.low, found.high) == (1.0, -np.inf, np.inf)
    assert np.isfinite(steps_margin(np.zeros((2, 1)), np.array([[1.0], [2.0]])).low)


def test_a_margin_of_steps_covers_the_truth() -> None:
    """Though neighbouring differences are correlated: intervals of single steps are too narrow."""
    random = np.random.default_rng(3)
    held = narrow = 0
    for _ in range(500):
        noise = random.normal(size=406)
        # A moving average over seven steps.
        differences = 0.1 + np.convolve(noise, np.ones(7) / 7, "valid")[None]
        found = steps_margin(np.zeros_like(differences), differences)
        held += found.low <= 0.1 <= found.high
        single = stats.ttest_1samp(differences[0], 0.1).pvalue
        narrow += single >= 0.05
    assert 0.91 <= held / 500 <= 0.98
    assert narrow / 500 < 0.7
