"""Models fused with themselves keep their function; different ones without norms are averaged; bad
sources are refused.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import transformer
from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Lookup, Residual, Units
from lagjax.growth.depth import Scaled, Stack
from lagjax.growth.operator import Grow
from lagjax.model import Model
from tests.growth import checks
from tests.growth.test_moe import DENSE, KEY, computed, difference, drawn, planned

TOKENS = np.arange(5)[None]


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


AXES = Axes(
    {
        "embed": "<vocab >embed",
        "in": "#layers <embed >(mlp | mlp)",
        "bias": "#layers >(mlp | mlp)",
        "out": "#layers <mlp >embed+",
        "head": "<embed >vocab",
        "shift": ">vocab",
    },
    {
        "embed": Residual(None, True),
        "mlp": Units("relu", gated=True),
        "vocab": Lookup(),
    },
)


@functools.cache
def plain(embed, mlp, layers=1, vocab=5):
    """A net without norms, whose gates and values are one array."""
    shapes = {
        "embed": (vocab, embed),
        "in": (layers, embed, 2 * mlp),
        "bias": (layers, 2 * mlp),
        "out": (layers, mlp, embed),
        "head": (embed, vocab),
        "shift": (vocab,),
    }

    def init(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items())
        }

    def apply(params, batch):
        x = params["embed"][batch]
        for w, bias, out in zip(params["in"], params["bias"], params["out"]):
            gate, value = jnp.split(x @ w + bias[None, None], 2, -1)
            x = x + (jax.nn.relu(gate) * value) @ out
        return x @ params["head"] + params["shift"][None, None]

    return Model(init, None, AXES, apply)


SMALL = plain(2, 3)


@functools.cache
def sources(count):
    return tuple(SMALL.init(jax.random.key(seed)) for seed in range(count))


def fuse(params, target, depth=None):
    return jax.jit(lambda params: Grow(depth=depth, fuse=True)(KEY, params, AXES, target))(params)


@pytest.mark.parametrize(
    "operator, config, changes",
    [
        # Tied, so that the logits are twice as large unless the plan's requirement is met.
        (Grow(fuse=True), DENSE, {"width": 8, "kv": 2, "mlp": 10}),
        # A mixture whose heads and experts' units both models share, and a layer more.
        (
            Grow(depth=Scaled(Stack()), fuse=True),
            dataclasses.replace(
                DENSE,
                norm="layer",
                positions="rope",
                tied=False,
                experts=3,
                top=2,
                implementation="unrolled",
            ),
            {"layers": 2, "width": 12, "head_dim": 6, "experts": 9},
        ),
    ],
    ids=["twice", "three times"],
)
def test_a_model_fused_with_itself_keeps_its_function(operator, config, changes):
    target = dataclasses.replace(config, **changes)
    plan = planned(operator, config, target)
    assert plan.exact_by_table
    target = transformer.required(target, plan.requires, config)
    small, large = transformer.model(config), transformer.model(target)
    params = drawn(config)
    times = target.width // config.width
    fused = jax.jit(lambda params: operator(KEY, (params,) * times, small.axes, large))(params)
    # Gradients are compared where layers are not added: those would need zeros.
    gradients = config.layers == target.layers
    before, slopes = computed(config, gradients)(params)
    after, found = computed(target, gradients)(fused)
    assert difference(before, after) < 1e-12
    for path, moment in plan.moments(slopes, found, 1).items() if gradients else ():
        np.testing.assert_allclose(found[path], moment, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count, layers", [(2, 1), (3, 2)])
def test_different_models_without_norms_are_averaged(count, layers):
    target = plain(2 * count, 3 * count, layers)
    depth = Scaled(Stack()) if layers > 1 else None
    fused = fuse(sources(count), target, depth)
    outputs = [jax.jit(SMALL.apply)(one, TOKENS) for one in sources(count)]
    assert difference(outputs[0], outputs[1]) > 0.1
    mean = sum(outputs) / count
    assert difference(mean, jax.jit(target.apply)(fused, TOKENS)) < 1e-12


def test_models_lie_beside_each_other():
    one, two = ({name: np.asarray(x) for name, x in params.items()} for params in sources(2))
    made = fuse(sources(2), plain(4, 6))
    zeros = np.zeros((3, 2))
    expected = {
        "embed": np.hstack([one["embed"], two["embed"]]),
        "out": np.block([[one["out"][0], zeros], [zeros, two["out"][0]]])[None],
        # Gates before values, each of both models.
        "bias": np.hstack(
            [x["bias"][:, part] for part in (np.s_[:3], np.s_[3:]) for x in (one, two)]
        ),
        "head": np.vstack([one["head"], two["head"]]) / 2,
        "shift": (one["shift"] + two["shift"]) / 2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-15)


def test_what_both_share_reads_the_average():
    """The units stay as many: each reads half of either model's stream, and writes to both."""
    one, two = sources(2)
    made = fuse((one, two), plain(4, 3))
    np.testing.assert_allclose(made["in"], np.concatenate([one["in"], two["in"]], 1) / 2)
    np.testing.assert_array_equal(made["out"], np.concatenate([one["out"], two["out"]], 2))
    np.testing.assert_allclose(made["bias"], (one["bias"] + two["bias"]) / 2)


def test_a_part_of_an_array_that_stays_as_large_is_averaged():
    axes = Axes({"w": ">(many | few)", "v": "<many", "u": "<few"})
    one = {"w": jnp.arange(5.0), "v": jnp.ones(2), "u": jnp.ones(3)}
    two = {"w": 10 + jnp.arange(5.0), "v": jnp.ones(2), "u": jnp.ones(3)}
    large = checks.shapes({"w": (7,), "v": (4,), "u": (3,)})
    made = Grow(fuse=True)(KEY, (one, two), axes, checks.target(axes, large))
    np.testing.assert_array_equal(made["w"], [0, 1, 10, 11, 7, 8, 9])


@pytest.mark.parametrize(
    "params, target, message",
    [
        (1, plain(4, 6), "two models or more"),
        (3, plain(4, 6), r"3 models .* \['embed', 'mlp'\] are 2 times as .*give 2, or"),
        (2, plain(4, 9), r"'mlp' has size 3 .* and 9 in .*fusing 2 .* takes 6"),
        (2, plain(3, 3), r"'embed' has size 2 .* and 3 in .*takes 4"),
        (2, plain(1, 3), r"'embed' has size 2 .* and 1 in .*takes 4"),
        (2, SMALL, "no axis of the target is larger"),
        (2, plain(4, 6, vocab=10), r"'vocab' grows from 5 to 10 in .*data index it"),
        (2, plain(4, 6, layers=2), "'layers' has 2 layers, the source's 1"),
    ],
)
def test_targets_that_cannot_be(params, target, message):
    with pytest.raises(ValueError, match=message):
        fuse(sources(params), target)


def test_sources_that_cannot_be():
    one = sources(1)[0]
    with pytest.raises(ValueError, match="two models or more"):
        Grow(fuse=True)(KEY, one, AXES, plain(4, 6))
    other = plain(2, 4).init(KEY)
    with pytest.raises(
        ValueError,
        match=r"has bias \(1, 6\) where model 3 has bias \(1, 8\); .* of one shape",
    ):
        fuse((one, one, other), plain(6, 9))
    rows = Axes({"w(?P<layers>\\d+)": "<x >y"}, {"x": Channels()})
    deep = {f"w{i}": jnp.zeros((2, 2)) for i in range(2)}
    with pytest.raises(ValueError, match="has 1 parameters, model 2 has 2"):
        Grow(fuse=True)(KEY, ({"w0": deep["w0"]}, deep), rows, plain(4, 6))
