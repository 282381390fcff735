"""For modules whose tests spend most of their time compiling, or drawing pages."""

from collections.abc import Iterator

import jax
import pytest

from lagjax import report


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """XLA is quick rather than clever, in each module that takes this name from here."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no page, in each module that takes this name from here: it takes longer than they."""
    monkeypatch.setattr(report, "write", lambda path: path)
