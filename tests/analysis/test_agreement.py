"""Agreement of rankings, by hand-made numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lagjax.analysis.agreement import agreement, ranks


def test_agreement() -> None:
    found = agreement([1.0, 2.0, 3.0, None], [2.0, 4.0, 7.0, 1.0])
    assert found.spearman == pytest.approx(1) and found.kendall == pytest.approx(1)
    assert found.pearson is not None and found.pearson < 1
    assert agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == (None, None, None)
    assert agreement([1.0, 2.0], [1.0, 2.0]) == (None, None, None)


@given(st.lists(st.floats(-5, 5), min_size=3, unique=True))
def test_agreement_sees_ranks_only(losses: list[float]) -> None:
    shuffled = np.random.default_rng(0).permutation(losses).tolist()
    found = agreement(losses, shuffled)
    if found.spearman is not None:
        assert found.spearman == pytest.approx(agreement(ranks(losses), ranks(shuffled)).spearman)


def test_ranks() -> None:
    assert ranks([2.0, 1.0, 2.0, None, 3.0]) == [2, 1, 2, None, 4]
