"""What users of such tools meet: each file is one of their situations, told by its docstring."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def as_users_have_it() -> Iterator[None]:
    """Models of users broadcast between ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield
