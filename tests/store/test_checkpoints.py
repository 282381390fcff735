"""Checkpoints: what is saved comes back, what is damaged is named."""

import pathlib

import jax.numpy as jnp
import pytest

from lagjax.engine import Trained
from lagjax.jobs import Trial
from lagjax.store.checkpoints import Checkpoints, Damaged

A = Trial("a/b c", 0)


def test_checkpoints_come_back_as_they_were(tmp_path: pathlib.Path) -> None:
    trained = Trained({"a": {"b": jnp.arange(3.0)}}, (jnp.ones(2, jnp.bfloat16), ()), {}, 3, 5)
    state = {"0": jnp.int32(7)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(A, 4, trained, state, {"growth": None, "tokens": 1.5})
    # In place of one of the same step.
    checkpoints.save(A, 4, trained._replace(step=4), state, {"growth": {"x": 1}, "tokens": 2.5})
    found, rest, meta = checkpoints.restore(A, 4, trained, state)
    assert (int(found.step), int(found.position), int(rest["0"])) == (4, 5, 7)
    assert found.opt_state[0].dtype == jnp.bfloat16 and found.opt_state[1] == ()
    assert found.params["a"]["b"].tolist() == [0.0, 1.0, 2.0]
    assert (meta["growth"], meta["tokens"]) == ({"x": 1}, 2.5)
    data, told = checkpoints.read(A, 4)
    assert data["params"]["a"]["b"].tolist() == [0.0, 1.0, 2.0] and told == meta
    # What an interrupted save leaves goes on opening.
    left = tmp_path / "a%2Fb%20c-0" / "6.orbax-checkpoint-tmp-1"
    left.mkdir()
    assert checkpoints.steps(A) == [4]
    checkpoints.sweep()
    assert not left.exists()
    with pytest.raises(Damaged, match="4 is damaged"):
        checkpoints.restore(A, 4, trained._replace(params={"a": {"c": jnp.zeros(3)}}), state)
    checkpoints.close()
