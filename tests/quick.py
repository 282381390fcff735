"""For modules whose tests spend most of their time drawing pages."""

import pytest

from lagjax import report


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no page, in each module that takes this name from here: it takes longer than they."""
    monkeypatch.setattr(report, "write", lambda path: path)
