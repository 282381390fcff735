"""What a search cost, by hand-made numbers."""

import pytest

from lagjax.analysis.ledger import ledger


def test_ledger() -> None:
    found = ledger(
        candidates=4,
        full_run_flops=100.0,
        losers_flops=30.0,
        evaluation_flops=5.0,
        fit_flops=5.0,
        seconds=1.0,
    )
    assert found.overhead == pytest.approx(0.4)
    assert found.budget_share == pytest.approx(0.35)
