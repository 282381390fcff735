"""Models fused with themselves keep their function; different ones without norms are averaged; bad sources are refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import transformer
from lagjax.axes import Axes, Elementwise, Lookup, Residual, flatten
from lagjax.growth.depth import Depth, Scaled, Stack
from lagjax.growth.fusion import Fuse, fuse_states
from lagjax.growth.state import scale_by_growth
from lagjax.model import Model
from tests.growth.test_moe import BATCH, DENSE, KEY, difference, drawn, planned



@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def table(units):
    return Axes(
        {
            "embed": "<vocab >embed",
            "in": "#layers <embed >(left | right)",
            "bias": "#layers >(left | right)",
            "out": "#layers <left >embed+",
            "head": "<embed >vocab",
            "shift": ">vocab",
        },
        {
            "embed": Residual(None, True),
            "left": Elementwise("relu", gated=True),
            "right": Elementwise("identity", gated=True),
            "vocab": Lookup(),
        },
        {"left": units, "right": units},
    )


@functools.cache
def plain(embed, units, layers=2, vocab=5):
    """A net without norms, whose gates and values are one array."""
    shapes = {
        "embed": (vocab, embed),
        "in": (layers, embed, 2 * units),
        "bias": (layers, 2 * units),
        "out": (layers, units, embed),
        "head": (embed, vocab),
        "shift": (vocab,),
    }

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(key, shape)
            for key, (name, shape) in zip(keys, shapes.items())
        }

    def apply(params, batch):
        x = params["embed"][batch]
        for w, bias, out in zip(params["in"], params["bias"], params["out"]):
            left, right = jnp.split(x @ w + bias[None, None], 2, -1)
            x = x + (jax.nn.relu(left) * right) @ out
        return x @ params["head"] + params["shift"][None, None]

    return Model(init, None, table(units), apply)
