"""The audit on losses whose answers are known."""

import numpy as np
import pytest

from lagjax.analysis.audit import audit, matrix
from lagjax.analysis.transition import transition

NAMES = ("a", "b", "c", "d", "reversed")
CONTROLS = frozenset({"reversed"})
STEPS = (0, 10, 20)


def losses(*rows: list[float]) -> np.ndarray:
    """[steps, candidates, 1] from a row for each step."""
    return np.array(rows)[:, :, None]


def test_a_start_that_misleads_and_a_lag_that_does_not() -> None:
    found = audit(
        NAMES,
        CONTROLS,
        STEPS,
        losses(
            [1.0, 2.0, 3.0, 4.0, 9.0],
            [4.0, 3.0, 2.0, 1.0, 9.0],
            [4.0, 3.0, 2.0, 1.0, 9.0],
        ),
    )
    assert found is not None
    start, lag, end = found.moments
    assert start.agreement == pytest.approx((-1, -1, -1))
    assert start.spread == pytest.approx((-1, -1))
    # The control is worst at both ends, and so lifts the correlation: Spearman of (1 2 3 4 5) and
    # (4 3 2 1 5).
    assert start.with_controls.spearman == pytest.approx(0.0)
    assert lag.agreement == end.agreement == pytest.approx((1, 1, 1))
    assert found.best == "d" and found.final["reversed"] == 9.0
    # The pool's mean without the control is 2.5.
    assert found.random_regret == pytest.approx(1.5)
    assert (start.regret, start.normalised) == pytest.approx((3.0, 2.0))
    assert (lag.regret, lag.normalised, lag.top1, lag.top3) == (0, 0, 1, 1)
    assert (start.top1, start.top3) == (0, 0)
    assert found.noise_floor is None and found.between_seeds is None


def test_equal_losses_are_shared_and_controls_are_not_chosen() -> None:
    found = audit(
        NAMES,
        CONTROLS,
        STEPS,
        losses(
            [2.0, 2.0 + 1e-6, 2.0, 2.0, 1.0],
            [1.0, 2.0, 3.0, 4.0, 0.5],
            [1.0, 2.0, 3.0, 4.0, 0.5],
        ),
    )
    assert found is not None
    start = found.moments[0]
    assert found.best == "a"
    assert start.regret == pytest.approx(found.random_regret) == 1.5
    assert (start.top1, start.top3) == pytest.approx((0.25, 0.75))


def test_failed_candidates_count_as_the_worst_that_ended() -> None:
    nan = np.nan
    found = audit(
        NAMES,
        CONTROLS,
        STEPS,
        losses(
            [1.0, 2.0, 3.0, 4.0, 5.0],
            [nan, 2.0, 3.0, 4.0, 5.0],
            [nan, 2.0, 3.0, 4.0, 5.0],
        ),
    )
    assert found is not None
    assert found.final["a"] is None and found.best == "b"
    assert found.moments[0].regret == pytest.approx(2.0)  # chose a, judged as d
    assert found.moments[1].regret == 0
    assert found.random_regret == pytest.approx(1.0)


def test_fewer_than_two_that_ended_are_no_audit() -> None:
    row = [1.0, np.nan, np.nan, np.nan, 2.0]
    assert audit(NAMES, CONTROLS, STEPS, losses(row, row, row)) is None


def test_a_matrix_has_the_steps_that_all_share_and_nothing_after_a_failure() -> None:
    curves = {
        ("a", 0): {0: 3.0, 5: 2.5, 10: 2.0},
        ("a", 1): {10: 2.1, 0: 3.1},
        ("b", 0): {0: 4.0, 5: None},
        ("b", 1): {0: 4.1, 5: 3.9, 10: 3.0},
        ("other", 0): {0: 1.0},
    }
    steps, found = matrix(curves, ("b", "a"), (0, 1))
    assert steps == [0, 10]
    nan = np.nan
    np.testing.assert_array_equal(found, [[[4.0, 4.1], [3.0, 3.1]], [[nan, 3.0], [2.0, 2.1]]])


def test_a_matrix_of_a_trial_that_has_not_begun_has_no_steps() -> None:
    steps, found = matrix({("a", 0): {0: 1.0}, ("b", 0): {0: 1.0}}, ("a", "b"), (0, 1))
    assert steps == [] and found.shape == (0, 2, 2)
    assert audit(("a", "b"), frozenset(), steps, found) is None


def test_a_matrix_of_failures_alone_has_no_steps() -> None:
    steps, found = matrix({("a", 0): {0: None}}, ("a",), (0,))
    assert steps == [] and found.shape == (0, 1, 1)


def test_noise_floor_is_that_of_replicates_and_robust() -> None:
    """Known noise of 0.01 on every seed of 400 candidates, and a tenth of them wild."""
    random = np.random.default_rng(0)
    truth = random.normal(2, 0.1, size=(400, 1)) + np.array([[0.0, 0.3, -0.2]])
    scale = np.where(np.arange(400) < 40, 1.0, 0.01)[:, None]
    end = truth + scale * random.normal(size=(400, 3))
    names = tuple(str(index) for index in range(400))
    found = audit(names, frozenset(), (0, 1), np.stack([end, end]))
    assert found is not None and found.noise_floor is not None
    # 2 √(2 · 0.01² / 3), a little more for the wild ones.
    assert 0.9 < found.noise_floor / (2 * np.sqrt(2e-4 / 3)) < 1.35


def test_regret_within_the_noise_is_normalised_to_none() -> None:
    end = np.array([[1.00, 1.06], [1.02, 1.00], [1.50, 1.45]])
    found = audit(("a", "b", "c"), frozenset(), (0, 1), np.stack([end, end]))
    assert found is not None and found.noise_floor is not None
    # Seed 0 prefers a, whose mean is worse than b's by 0.02.
    assert found.best == "b" and found.moments[0].regret == pytest.approx(0.01)
    assert found.noise_floor > 0.01 and found.moments[0].normalised == 0
    assert found.moments[0].top1 == 0.5
    # Seeds rank their own ends perfectly, and each other's not.
    assert found.moments[0].agreement.spearman == 1
    assert found.between_seeds == pytest.approx(0.5)


STEPS_LONG = (0, 1, 2, 4, 8, 16, 32, 50, *range(100, 801, 50))


def curves(knot: float, noise: float, number: int = 12) -> np.ndarray:
    """Two power laws that meet at a knot, with multiplicative noise."""
    random = np.random.default_rng(1)
    x = np.log(np.maximum(STEPS_LONG, 1))[:, None]
    first = random.uniform(-0.02, 0.02, number)
    second = random.uniform(-0.15, -0.1, number)
    logs = 0.7 + first * x + (second - first) * np.maximum(0, x - np.log(knot))
    return np.exp(logs + noise * random.normal(size=logs.shape))


@pytest.mark.parametrize("knot", [20.0, 100.0])
def test_transition_finds_the_knot(knot: float) -> None:
    found = transition(STEPS_LONG, curves(knot, 0.003))
    assert found.step is not None and found.low is not None and found.high is not None
    assert found.step == pytest.approx(knot, rel=0.15)
    assert found.low <= found.step <= found.high
    assert 0.8 * knot < found.low and found.high < 1.25 * knot


def test_transition_says_when_there_is_none() -> None:
    straight = transition(STEPS_LONG, curves(1e9, 0.003))
    assert straight.step is None and "one segment" in straight.reason
    late = transition(STEPS_LONG, curves(780.0, 0.0001))
    assert late.step is None and late.reason
    short = transition((0, 1, 2), np.ones((3, 4)))
    assert short.step is None and "at least" in short.reason


def test_transition_leaves_out_curves_that_failed() -> None:
    whole = curves(100.0, 0.003)
    broken = whole.copy()
    broken[10:, 0] = np.nan
    assert transition(STEPS_LONG, broken) == transition(STEPS_LONG, whole[:, 1:])
