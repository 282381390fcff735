"""Growing is tested on models so small that compiling them is most of the time: let XLA be quick
rather than clever.
"""

import jax
import pytest


@pytest.fixture(autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
