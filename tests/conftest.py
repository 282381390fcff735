"""Every test runs on the CPU, and broadcasting between ranks is an error."""

import hypothesis
import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Helpers that assert; pytest explains only what it is told to rewrite.
pytest.register_assert_rewrite("tests.growth.checks")

# The same examples in every run, however long one takes on a busy machine.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")
