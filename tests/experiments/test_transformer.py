"""The transformer with every choice: three implementations, what it may not see, its experts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import gpt, transformer
from lagjax.algebra.kinds import LayerNorm, Lookup, Residual, Units
from lagjax.algebra.layout import flatten

# Sizes differ from axis to axis, so that none can be taken for another. Together these have every
# choice.
LEARNED = transformer.Config(
    layers=2,
    width=6,
    kv=5,
    group=1,
    head_dim=4,
    mlp=10,
    window=8,
    vocab=11,
    norm="layer",
    pre=True,
    positions="learned",
    tied=True,
    gated=False,
)
ROPE = dataclasses.replace(
    LEARNED,
    kv=1,
    group=3,
    norm="rms",
    pre=False,
    positions="rope",
    tied=False,
    gated=True,
    biases=False,
    frequencies=(0.7, 0.2),
)
EXPERTS = dataclasses.replace(
    LEARNED,
    kv=2,
    group=3,
    positions="relative",
    tied=False,
    gated=True,
    experts=4,
    top=2,
    logit_scale=0.5,
)
CONFIGS = {"learned": LEARNED, "rope": ROPE, "experts": EXPERTS}
BATCH = np.random.default_rng(0).integers(11, size=(2, 8), dtype=np.int32)


def shapes(config: transformer.Config) -> Any:
    return jax.eval_shape(transformer.model(config).init, jax.random.key(0))


def drawn(config: transformer.Config) -> Any:
    """Parameters of which none has the value of an initialisation."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(draw.normal(0, 0.5, x.shape).astype(x.dtype)), shapes(config)
    )


@functools.cache
def compiled(config: transformer.Config) -> Callable[[Any, Any], jax.Array]:
    return jax.jit(transformer.model(config).apply)


def moved(params: Any, config: transformer.Config) -> Any:
    """Scanned parameters in another implementation, paired by the names in its table."""
    stacked, target = flatten(params), shapes(config)
    leaves = [
        stacked[leaf.name][leaf.layer[0][1]] if leaf.layer else stacked[leaf.name]
        for leaf in transformer.model(config).axes.layout(target).leaves
    ]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


@pytest.mark.parametrize("implementation", ["unrolled", "nnx"])
@pytest.mark.parametrize("name", CONFIGS)
def test_implementations_agree(name: str, implementation: Any) -> None:
    config, params = CONFIGS[name], drawn(CONFIGS[name])
    other = dataclasses.replace(config, implementation=implementation)
    logits = compiled(config)(params, BATCH)
    chex.assert_shape(logits, (2, 7, 11))
    np.testing.assert_allclose(
        compiled(other)(moved(params, other), BATCH), logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_future_tokens_change_nothing(name: str) -> None:
    config, params = CONFIGS[name], drawn(CONFIGS[name])
    changed = BATCH.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    before, after = (compiled(config)(params, batch) for batch in (BATCH, changed))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before - after)[:, 3:].max(-1) > 1e-4).all()


def test_equals_gpt() -> None:
    config = dataclasses.replace(LEARNED, norm="rms", biases=False, epsilon=1e-6)
    params = drawn(config)
    theirs = gpt.Config(2, 6, 5, 8, vocab=11, mlp=10, head_dim=4, scanned=True)
    target = jax.eval_shape(gpt.model(theirs).init, jax.random.key(0))
    ours = flatten(params)
    # It has biases in its MLP only, and no axis of groups.
    leaves = [
        ours[path].reshape(leaf.shape) if path in ours else jnp.zeros(leaf.shape)
        for path, leaf in flatten(target).items()
    ]
    expected = jax.jit(gpt.model(theirs).apply)(
        jax.tree.unflatten(jax.tree.structure(target), leaves), BATCH
    )
    np.testing.assert_allclose(compiled(config)(params, BATCH), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("identical", [True, False])
def test_experts_equal_a_dense_net(identical: bool) -> None:
    """Identical experts under any router; the first of different ones, where zeros tie them."""
    config = dataclasses.replace(EXPERTS, top=2 if identical else 1)
    dense = drawn(dataclasses.replace(EXPERTS, experts=0, top=1))
    mixture = drawn(config)
    experts = mixture["layers"]["mlp"]
    for name, linear in dense["layers"]["mlp"].items():
        for kind, value in linear.items():
            old = experts[name][kind]
            new = jnp.broadcast_to(value[:, None], old.shape)
            experts[name][kind] = new if identical else old.at[:, 0].set(value)
    if not identical:
        experts["router"]["kernel"] = jnp.zeros_like(experts["router"]["kernel"])
    np.testing.assert_allclose(
        compiled(config)({**dense, "layers": {**dense["layers"], "mlp": experts}}, BATCH),
        compiled(dataclasses.replace(EXPERTS, experts=0, top=1))(dense, BATCH),
        rtol=1e-4,
        atol=1e-5,
    )


def test_default_frequencies() -> None:
    default = dataclasses.replace(ROPE, frequencies=None)
    given = dataclasses.replace(ROPE, frequencies=(1.0, 0.01))
    params = drawn(default)
    np.testing.assert_array_equal(compiled(default)(params, BATCH), compiled(given)(params, BATCH))


def test_table() -> None:
    layout = transformer.model(EXPERTS).axes.layout(shapes(EXPERTS))
    rows = {leaf.name: " ".join(map(str, leaf.dims)) for leaf in layout.leaves}
    assert rows["layers/attn/k/kernel"] == "#layers <embed >kv <qk"
    assert rows["layers/mlp/down/bias"] == "#layers experts >embed+"
    assert rows["layers/mlp_norm/bias"] == "#layers +embed"
    assert rows["relative/embedding"] == "<buckets >kv >group"
    assert layout.stacks == {"layers": 2}
    assert layout.sizes["buckets"] == 8
    assert layout.kinds["embed"] == Residual(LayerNorm(), pre=True)
    assert layout.kinds["mlp"] == Units("silu", gated=True)
    assert layout.kinds["buckets"] == Lookup()
    dense = dataclasses.replace(EXPERTS, experts=0, top=1, implementation="nnx")
    leaves = transformer.model(dense).axes.layout(shapes(dense)).leaves
    assert set(rows) - {leaf.name for leaf in leaves} == {"layers/mlp/router/kernel"}


@pytest.mark.parametrize("name", CONFIGS)
def test_dtypes(name: str) -> None:
    """float64 from end to end, and bfloat16 with logits in float32."""
    narrow = dataclasses.replace(CONFIGS[name], dtype="bfloat16")
    chex.assert_trees_all_equal_dtypes(
        jax.eval_shape(transformer.model(narrow).apply, shapes(narrow), BATCH),
        jnp.float32(0),
    )
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIGS[name], dtype="float64")
        params = shapes(config)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(float)}
        program = jax.make_jaxpr(transformer.model(config).apply)(params, BATCH)
        assert "f32" not in str(program)


def test_initial_loss() -> None:
    """About that of guessing."""
    model = transformer.model(ROPE)
    # This generator compiles in half the time.
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"))
    nats, count = jax.jit(model.loss)(params, BATCH, None)
    assert count == 14
    assert abs(nats / count - np.log(11)) < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv": 0}, "kv=0: expected at least 1"),
        ({"experts": -1}, "experts=-1: expected at least 0"),
        ({"norm": "batch"}, "norm='batch': expected one of 'rms', 'layer'"),
        ({"positions": None}, "positions=None: expected one of"),
        ({"implementation": "haiku"}, "implementation='haiku'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"top": 2}, "top=2 with experts=0"),
        ({"positions": "rope", "head_dim": 3}, "head_dim=3"),
        ({"frequencies": (1.0, 0.1)}, "frequencies with positions='learned'"),
        ({"positions": "rope", "frequencies": (1.0,)}, "1 frequencies, expected"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LEARNED, **change)


def test_too_long() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 9\), expected .* window=8"):
        transformer.model(LEARNED).apply(drawn(LEARNED), np.zeros((2, 10), np.int32))
