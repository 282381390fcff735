"""Curves compared at equal cost, on hand-made ones."""

import numpy as np
import pytest

from lagjax.analysis.crossing import compare, interpolated


def test_between_evaluations_losses_fall_with_the_logarithm() -> None:
    found = interpolated({0: 4.0, 1: 3.0, 100: 1.0}, [0, 0.5, 1, 10, 100, 101])
    assert found[:5] == pytest.approx([4.0, 3.5, 3.0, 2.0, 1.0]) and np.isnan(found[5])


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        # Behind at first, ahead from the middle of [1, 100] on, on the logarithm.
        ({0: 5.0, 1: 4.0, 100: 1.0}, {0: 3.0, 1: 3.0, 100: 2.0}, (100, 1.0, 10.0)),
        # Within the part that is linear.
        ({0: 5.0, 1: 2.0}, {0: 4.0, 1: 3.0}, (1, 1.0, 0.5)),
        # Ahead throughout, level at the start but for rounding.
        ({0: 3.0 + 1e-7, 1: 2.0}, {0: 3.0, 1: 2.5}, (1, 0.5, None)),
        # Ahead, and overtaken; twice, of which the last counts.
        ({0: 3.0, 1: 2.0, 100: 2.0}, {0: 4.0, 1: 3.0, 100: 1.0}, (100, -1.0, 10.0)),
        (
            {0: 2.0, 1: 3.0, 10: 1.0, 100: 3.0, 1000: 0.0},
            {0: 3.0, 1: 2.0, 10: 2.0, 100: 2.0, 1000: 1.0},
            (1000, 1.0, 100 * 10**0.5),
        ),
        # Of different lengths and at other points.
        ({0: 4.0, 10: 2.0, 1000: 0.0}, {0: 4.0, 100: 2.0}, (100, 1.0, None)),
        ({0: 1.0}, {5: 1.0}, None),
        ({}, {5: 1.0}, None),
        ({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}, (1, 0.0, None)),
    ],
)
def test_where_curves_cross(own: dict, other: dict, expected: tuple | None) -> None:
    found = compare(own, other)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.reach == expected[0] and found.difference == pytest.approx(expected[1])
        crossing = expected[2]
        assert found.crossing == (crossing if crossing is None else pytest.approx(crossing))
