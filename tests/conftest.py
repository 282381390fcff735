"""Every test runs on the CPU, which stands for eight devices, and broadcasting between ranks is an
error.
"""

import gc
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator

FLAGS = ["--xla_force_host_platform_device_count=8"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Halves the time of compiling. An XLA that does not know a flag ends the process.
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
# Read when JAX starts; all but the tests of placement use the first device.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# Many tests compile the same programs. Each process of the suite has a folder of its own, and
# starts with nothing. The smallest, of single operations, take longer to write than they save.
_compiled = tempfile.mkdtemp(prefix="lagjax-compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"
# Tests spend most of their time compiling, and next to none in what was compiled: XLA is quick
# rather than clever, in the processes that tests start as well.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import hypothesis
import jax
import pytest

# Traces make many objects and few circles.
gc.set_threshold(200_000, 20, 100)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Helpers that assert; pytest explains only what it is told to rewrite.
pytest.register_assert_rewrite("tests.growth.checks")

# The same examples in every run, however long one takes on a busy machine.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")


LONG = {
    "test_ends_as_if_not_killed",
    "test_a_small_one_goes_through",
    "test_a_small_bert_goes_through",
    "test_a_kill_at_any_event_changes_no_bit",
    "test_the_committed_verdicts_are_those_of_the_committed_curves",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end a worker would wait for another's."""
    items.sort(key=lambda item: getattr(item, "originalname", item.name) not in LONG)


@pytest.fixture
def double() -> Iterator[None]:
    """In float64, where rounding hides nothing."""
    with jax.enable_x64(True):
        yield


def pytest_unconfigure() -> None:
    # Not at exit: the suite's workers leave without.
    shutil.rmtree(_compiled, ignore_errors=True)
