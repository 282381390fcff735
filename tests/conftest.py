"""Every test runs on the CPU, which stands for eight devices, and broadcasting between ranks is an error."""

import os

# Read when JAX starts; all but the tests of placement use the first device.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

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
