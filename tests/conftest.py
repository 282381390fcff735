"""Every test runs on the CPU, and broadcasting between ranks is an error."""

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Helpers that assert; pytest explains only what it is told to rewrite.
pytest.register_assert_rewrite("tests.growth.checks")
