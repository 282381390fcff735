"""An engine of the user's own that reports a constant learning rate as a plain number.

As a reading, `(1e-2, 0)`, and alone it must be recorded.
"""

import json

import pytest

import lagjax
from tests import quick, toy
from tests.cases.runs import small

no_page, groups_kept = quick.no_page, quick.groups_kept


def engine_with(rate):
    def engine(target, tx):
        base = lagjax.from_loss(target, tx)

        def step(state, batch):
            state, metrics = base.step(state, batch)
            return state, {"loss": metrics["loss"], "lr": rate, "windows": (4, 1)}

        return base._replace(step=step)

    return engine


@pytest.mark.parametrize("rate", [(1e-2, 0), 1e-2])
def test_is_recorded(rate, tmp_path):
    trained = lagjax.Trained(toy.PARAMS)
    small.search(tmp_path, trained, horizon=8, lag=4, engine=engine_with(rate))
    last = json.loads((tmp_path / "curves.jsonl").read_text().splitlines()[-1])
    assert last["lr"] == pytest.approx(1e-2)
    assert last["metrics"]["windows"] == 4
