"""A density model: its loss in nats is below 0, as a continuous likelihood may be above 1.

The run must end with a decision and a page, whatever it compares with.
"""

import jax.numpy as jnp
import pytest

import lagjax
from lagjax.select.decision import start_choice
from tests import toy
from tests.cases.runs import small


def density(model):
    """Predicts the next value of a narrow signal, under a Gaussian of a small fixed scale."""

    def loss(params, batch, key):
        mean = model.apply(params, batch)[..., 0] * 0.01
        truth = (batch[:, 1:] - 7.5) * 0.001
        nats = 0.5 * ((truth - mean) / 0.02) ** 2 + jnp.log(0.02) + 0.5 * jnp.log(2 * jnp.pi)
        return nats.sum(), nats.size

    return model._replace(loss=loss)


@pytest.mark.parametrize("compare", ["none", "start", "all"])
def test_ends_with_a_page(compare, tmp_path):
    names, target = ("stack", "random-top"), density(toy.LARGE)
    pool = [each._replace(target=target) for each in toy.pool(*names)]
    trained = lagjax.Trained(toy.PARAMS)
    options = {"pool": pool, "model": density(toy.SMALL), "compare": compare}
    options |= {"horizon": 16, "lag": 4}
    decision = small.search(tmp_path, trained, **options)
    assert decision.losses_at_lag[decision.winner] < 0
    assert (tmp_path / "report.html").is_file()


def test_the_choice_at_the_start():
    assert start_choice({"a": -1.0, "b": -2.0}) == "b"
