"""Mixtures of experts out of dense nets, and more experts out of few: the function, the gradients,
what is refused.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import transformer
from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import flatten
from lagjax.growth.depth import Scaled, Stack
from lagjax.growth.experts import Upcycle
from lagjax.growth.operator import Grow
from lagjax.growth.width import Isometric, Net2Net, Noisy, Tile
from tests.growth import checks

KEY = jax.random.key(1)
DENSE = transformer.Config(
    layers=1,
    width=4,
    kv=1,
    group=2,
    head_dim=2,
    mlp=5,
    window=5,
    vocab=7,
    norm="rms",
    pre=True,
    positions="learned",
    tied=True,
    gated=True,
    dtype="float64",
)
MIXTURE = dataclasses.replace(DENSE, experts=4, top=2)
BATCH = np.random.default_rng(0).integers(7, size=(3, 6), dtype=np.int32)
OUT, ROUTER = "layers/mlp/down/kernel", "layers/mlp/router/kernel"


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def drawn(config):
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.5, x.shape).astype(x.dtype)),
        jax.eval_shape(transformer.model(config).init, KEY),
    )


def planned(operator, config, target):
    layouts = [
        model.axes.layout(jax.eval_shape(model.init, KEY))
        for model in map(transformer.model, (config, target))
    ]
    return operator.plan(KEY, *layouts)


@functools.cache
def computed(config, gradients):
    """Parameters → outputs, and by path the gradients of their sum with fixed weights, where asked
    for.
    """
    weights = np.random.default_rng(1).normal(size=(3, 5, 7))

    def both(params):
        if not gradients:
            return transformer.model(config).apply(params, BATCH), {}
        outputs, back = jax.vjp(
            lambda params: transformer.model(config).apply(params, BATCH), params
        )
        return outputs, flatten(back(jnp.asarray(weights))[0])

    return jax.jit(both)


def grown(operator, config, target, gradients=False):
    """The plan, and what the small model computes and the large one, made as the plan requires."""
    plan = planned(operator, config, target)
    target = transformer.required(target, plan.requires, config)
    small, large = transformer.model(config), transformer.model(target)
    params = drawn(config)
    made = jax.jit(lambda params: operator(KEY, params, small.axes, large))(params)
    return plan, *(
        computed(one, gradients)(values) for one, values in ((config, params), (target, made))
    )


def difference(small, large):
    return float(jnp.abs(large - small).max() / jnp.abs(small).max())


def test_upcycling_keeps_the_function():
    plan, (before, slopes), (after, gradients) = grown(
        Grow(experts=Upcycle()), DENSE, MIXTURE, gradients=True
    )
    assert plan.exact_by_table and not plan.requires
    assert difference(before, after) < 1e-12
    # Experts share their tokens, and so the gradient: what moments suppose is right in the sum.
    moments = plan.moments(slopes, gradients, 1)
    for path in (OUT, "layers/mlp/up/bias"):
        assert difference(slopes[path], gradients[path].sum(1)) < 1e-10
        assert difference(slopes[path], moments[path].sum(1)) < 1e-10
    assert np.abs(gradients[ROUTER]).max() > 0


def test_upcycling_with_width_and_depth():
    shape = {
        "norm": "layer",
        "tied": False,
        "gated": False,
        "implementation": "unrolled",
    }
    config = dataclasses.replace(DENSE, **shape)
    target = dataclasses.replace(MIXTURE, **shape, top=3, layers=2, width=8, mlp=10)
    operator = Grow(depth=Scaled(Stack()), width=Tile(), experts=Upcycle())
    plan, (before, _), (after, _) = grown(operator, config, target)
    assert plan.exact_by_table and difference(before, after) < 1e-12


def test_noise_sets_copies_apart_and_is_not_exact():
    plan = planned(Grow(experts=Upcycle(noise=0.01)), DENSE, MIXTURE)
    assert not plan.exact_by_table and all(one.small for one in plan.violations)
    (source,) = flatten(drawn(DENSE))[OUT]
    (kernel,) = flatten(jax.jit(plan.params)(drawn(DENSE), drawn(MIXTURE)))[OUT]
    np.testing.assert_array_equal(kernel[0], source)
    noise = np.asarray(kernel[1:]) - np.asarray(source)
    assert 0.005 < noise.std() / np.sqrt(np.mean(np.square(source))) < 0.015
    assert not np.allclose(noise[0], noise[1], atol=1e-4)


def test_layers_may_be_mixtures_in_turn():
    """Only the second layer has experts; the first layer's MLP stays as it is."""
    rows = {r"l/(?P<layers>\d+)/up": "up: <embed >mlp"}
    mixed = {
        "l/(?P<layers>1)/up": "up: >experts <embed >mlp",
        "l/(?P<layers>1)/router": "router: <embed >experts",
        **rows,
    }
    small = {f"l/{i}/up": (2, 3) for i in range(2)}
    large = checks.shapes({**small, "l/1/up": (4, 2, 3), "l/1/router": (2, 4)})
    params = checks.numbered(checks.shapes(small))
    made = Grow(experts=Upcycle())(KEY, params, Axes(rows), checks.target(Axes(mixed), large))
    np.testing.assert_array_equal(made["l/0/up"], params["l/0/up"])
    np.testing.assert_array_equal(made["l/1/up"], [params["l/1/up"]] * 4)
    assert (made["l/1/router"] == checks.FRESH).all()


def test_twice_the_experts_for_twice_as_many_a_token():
    """Also the first moment's rule: copies that are alike have the gradient that the slopes say."""
    operator, target = (
        Grow(width={"experts": Tile()}),
        dataclasses.replace(MIXTURE, experts=8),
    )
    plan, (before, slopes), (after, gradients) = grown(operator, MIXTURE, target, gradients=True)
    assert plan.exact_by_table
    assert [str(x) for x in plan.requires] == ["top × 2 (experts)"]
    assert difference(before, after) < 1e-12
    for path, moment in plan.moments(slopes, gradients, 1).items():
        np.testing.assert_allclose(gradients[path], moment, rtol=1e-9, atol=1e-12)
    assert not np.allclose(gradients[OUT][0, 0], slopes[OUT][0, 0])


def test_experts_that_are_not_copied_whole_are_not_proved():
    target = dataclasses.replace(MIXTURE, experts=8)
    for way in (Isometric(), Noisy()):
        assert not planned(Grow(width={"experts": way}), MIXTURE, target).exact_by_table
    # One expert twice: the others would weigh less.
    uneven = dataclasses.replace(MIXTURE, experts=5)
    assert not planned(Grow(width={"experts": Net2Net()}), MIXTURE, uneven).exact_by_table


def test_a_target_without_experts():
    with pytest.raises(ValueError, match=r"no axis 'experts', .* for embed/embedding \(7, 4\) and"):
        planned(Grow(experts=Upcycle()), DENSE, DENSE)
    with pytest.raises(ValueError, match="no axis 'mixture'"):
        planned(Grow(experts=Upcycle("mixture")), DENSE, MIXTURE)


def test_a_source_with_experts():
    with pytest.raises(
        ValueError,
        match=r"'experts' is in the source already, in its layers/mlp/down/bias .*use Grow\(width=\{'experts': Tile\(\)\}\)",
    ):
        planned(Grow(experts=Upcycle()), MIXTURE, dataclasses.replace(MIXTURE, experts=8))


def test_what_it_was_not_told_to_grow():
    with pytest.raises(ValueError, match="axis 'mlp' has size 5 .* and 6 in"):
        planned(Grow(experts=Upcycle()), DENSE, dataclasses.replace(MIXTURE, mlp=6))
    with pytest.raises(ValueError, match="'layers' has 2 layers, the source's 1"):
        planned(Grow(experts=Upcycle()), DENSE, dataclasses.replace(MIXTURE, layers=2))
