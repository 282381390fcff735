"""Paired margins: intervals that hold what they say, over shards and seeds and over steps."""

import numpy as np
import pytest
from scipy import stats

from lagjax.analysis.margin import (
    METHODS,
    Estimate,
    combined,
    margin,
    of_shards,
    of_steps,
    steps_margin,
    window,
)

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


def drifting(random: np.random.Generator, steps: int, jitter: float, drift: float) -> tuple:
    """Paired differences of the losses of `2 * steps` steps, and the mean of the later half.

    The measured shape: noise of the batch with a sd of 0.0131, a true difference that jitters
    within a few steps, and one that drifts over the window.
    """
    noise = random.normal(size=2 * steps) * 0.0131
    rough = np.convolve(random.normal(size=2 * steps + 4), np.ones(5) / 5**0.5, "valid")
    slope = random.normal() * drift * np.arange(2 * steps) / steps
    truth = jitter * rough + slope
    return (truth + noise)[None, :steps], truth[steps:].mean()


@pytest.mark.parametrize(("jitter", "drift"), [(0.0, 0.0), (0.005, 0.0), (0.005, 0.003)])
def test_the_windows_interval_covers_what_comes_next(jitter: float, drift: float) -> None:
    """The mean of as many steps more, nine times out of ten, where a plain interval does not."""
    random, held = np.random.default_rng(4), dict.fromkeys(METHODS, 0)
    for _ in range(800):
        differences, coming = drifting(random, 50, jitter, drift)
        for method in METHODS:
            found = of_steps(np.zeros_like(differences), differences, method).margin
            held[method] += found.low <= coming <= found.high
    assert held["twice iid"] / 800 >= 0.9
    if drift:
        assert max(held["iid"], held["newey-west"]) / 800 < 0.9


def test_the_methods_by_hand() -> None:
    x = np.array([1.0, 2.0, 4.0, 7.0, 11.0, 16.0, 22.0, 29.0, 37.0, 46.0])
    variance = x.var(ddof=1) / 10
    assert METHODS["iid"](x) == pytest.approx((variance, 9))
    assert METHODS["twice iid"](x) == pytest.approx((4 * variance, 9))
    means = [1.5, 5.5, 13.5, 25.5, 41.5]
    assert METHODS["blocks"](x) == pytest.approx((np.var(means, ddof=1) / 5, 4))
    # Two lags at ten steps, of weights 2/3 and 1/3.
    rest = x - x.mean()
    long = rest @ rest + 2 * (2 / 3 * rest[1:] @ rest[:-1] + 1 / 3 * rest[2:] @ rest[:-2])
    assert METHODS["newey-west"](x) == pytest.approx((long / 100, 9))


def test_a_window_adds_what_seeds_differ_by() -> None:
    """Two seeds apart by far: the error is that of two numbers."""
    steps = np.random.default_rng(5).normal(size=(2, 40)) * 1e-3 + [[1.0], [3.0]]
    found = of_steps(np.zeros_like(steps), steps)
    expected = of_shards(np.zeros((2, 1)), steps.mean(axis=1, keepdims=True), np.ones(1))
    assert found.mean == pytest.approx(2.0, abs=1e-3)
    assert found.variance == pytest.approx(expected.variance, rel=1e-3)
    assert found.dof == pytest.approx(1.0, rel=1e-3)


def test_windows() -> None:
    assert [window(step) for step in (0, 3, 4, 100, 200, 800)] == [0, 0, 1, 25, 50, 50]
    one = of_steps(np.zeros((1, 1)), np.ones((1, 1)))
    assert (one.mean, one.margin.low) == (1.0, -np.inf)


def test_estimates_are_combined_by_one_weight() -> None:
    """Whatever the pairs' own variances: differences of a and b, b and c add up to a and c."""
    valid = [Estimate(1.0, 4.0, 5), Estimate(2.0, 1.0, 5), Estimate(3.0, 3.0, 5)]
    steps = [Estimate(2.0, 1.0, 9), Estimate(2.0, 2.0, 9), Estimate(4.0, 1.0, 9)]
    ab, bc, ac = combined(list(zip(valid, steps)))
    assert ab.mean + bc.mean == pytest.approx(ac.mean)
    # Variances of 8 and 4 in all: a third of validation, two of the window.
    assert ab.mean == pytest.approx(1.0 / 3 + 2.0 * 2 / 3)
    assert ab.variance == pytest.approx(4.0 / 9 + 1.0 * 4 / 9)
    assert 5 < ab.dof < 14
