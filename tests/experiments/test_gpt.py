"""The byte GPT: its parameters and table, what it may not see, layouts, loss, learning."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.models import gpt

SMALL = gpt.Config(layers=2, width=16, heads=2, window=8)
SCANNED = dataclasses.replace(SMALL, scanned=True)
BATCH = np.random.default_rng(0).integers(0, 256, (4, 9)).astype(np.uint8)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(gpt.model(SMALL).init)(jax.random.key(0))


def loss(config: gpt.Config, params: Any, batch: Any, key: Any = None) -> Any:
    """The sum of nats and the count, compiled."""
    return jax.jit(gpt.model(config).loss)(params, batch, key)


def logits(config: gpt.Config, params: Any, batch: Any = BATCH) -> jax.Array:
    """Logits [B, T, vocab], compiled."""
    return jax.jit(gpt.model(config).apply)(params, batch)


def restack(unrolled: dict[str, Any]) -> dict[str, Any]:
    """`layers_0/...`, `layers_1/...` -> `layers/...` with a leading layer axis."""
    rest = {name: leaf for name, leaf in unrolled.items() if "layers_" not in name}
    layers = [unrolled[f"layers_{i}"] for i in range(len(unrolled) - len(rest))]
    return rest | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def test_shapes() -> None:
    layer = {
        "attn_norm": {"scale": (16,)},
        "attn": {
            "q": {"kernel": (16, 2, 8)},
            "k": {"kernel": (16, 2, 8)},
            "v": {"kernel": (16, 2, 8)},
            "out": {"kernel": (2, 8, 16)},
        },
        "mlp_norm": {"scale": (16,)},
        "mlp": {
            "up": {"kernel": (16, 64), "bias": (64,)},
            "down": {"kernel": (64, 16), "bias": (16,)},
        },
    }
    rest = {
        "embed": {"embedding": (256, 16)},
        "positions": {"embedding": (8, 16)},
        "final_norm": {"scale": (16,)},
    }
    unrolled = jax.eval_shape(gpt.model(SMALL).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, unrolled) == rest | {
        "layers_0": layer,
        "layers_1": layer,
    }
    stack = jax.tree.map(lambda s: (2, *s), layer, is_leaf=lambda x: isinstance(x, tuple))
    scanned = jax.eval_shape(gpt.model(SCANNED).init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, scanned) == rest | {"layers": stack}


def test_sizes_are_free_of_each_other() -> None:
    config = gpt.Config(3, 12, 5, 8, vocab=100, mlp=20, head_dim=4)
    model = gpt.model(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    layout = model.axes.layout(params)
    assert layout.stacks == {"layers": 3}
    assert layout.sizes == {
        "vocab": 100,
        "embed": 12,
        "positions": 8,
        "heads": 5,
        "qk": 4,
        "v": 4,
        "mlp": 20,
    }
    chex.assert_shape(jax.eval_shape(model.apply, params, BATCH), (4, 8, 100))


def test_the_tables_of_both_layouts_name_the_same_parameters() -> None:
    names = []
    for config in (SMALL, SCANNED):
        model = gpt.model(config)
        layout = model.axes.layout(jax.eval_shape(model.init, jax.random.key(0)))
        names.append({leaf.name for leaf in layout.leaves})
    assert names[0] == names[1]


def test_no_position_sees_a_later_one(params: Any) -> None:
    """Losses [T] by position embeddings [T, width]: gradients are exactly 0 above the diagonal."""
    model = gpt.model(SMALL)

    def nats(positions: jax.Array) -> jax.Array:
        outputs = model.apply(params | {"positions": {"embedding": positions}}, BATCH)
        targets = jnp.asarray(BATCH[:, 1:], jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        return losses.sum(0)

    jacobian = jax.jit(jax.jacrev(nats))(params["positions"]["embedding"])
    reaches = np.asarray(jnp.abs(jacobian).max(-1))
    assert (reaches[np.triu_indices(8, 1)] == 0).all()
    assert (reaches[np.tril_indices(8)] > 0).all()


def test_scanned_and_unrolled_are_one_function(params: Any) -> None:
    stacked = restack(params)
    fresh = jax.eval_shape(gpt.model(SCANNED).init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(stacked, fresh)

    def both(config: gpt.Config, params: Any) -> Any:
        return jax.jit(jax.value_and_grad(gpt.model(config).loss, has_aux=True))(
            params, BATCH, None
        )

    value, gradient = both(SMALL, params)
    again, in_stack = both(SCANNED, stacked)
    chex.assert_trees_all_close(value, again, rtol=1e-6)
    chex.assert_trees_all_close(restack(gradient), in_stack, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scanned", [False, True])
def test_layers_start_different(scanned: bool) -> None:
    config = SCANNED if scanned else SMALL
    params = jax.jit(gpt.model(config).init)(jax.random.key(0))
    kernels = (params if scanned else restack(params))["layers"]["mlp"]["up"]["kernel"]
    assert abs(np.corrcoef(kernels[0].ravel(), kernels[1].ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("layers", [1, 12])
def test_the_loss_starts_near_that_of_a_uniform_guess(layers: int) -> None:
    config = gpt.Config(layers, 64, 4, 8, scanned=True)
    params = jax.jit(gpt.model(config).init)(jax.random.key(1))
    nats, count = loss(config, params, BATCH)
    assert count == 4 * 8
    assert nats / count == pytest.approx(math.log(256), abs=0.1)


def test_sums_and_counts_of_shards_add_up(params: Any) -> None:
    whole = loss(SMALL, params, BATCH)
    parts = [loss(SMALL, params, BATCH[rows]) for rows in (slice(1), slice(1, 4))]
    chex.assert_trees_all_close(jax.tree.map(jnp.add, *parts), whole, rtol=1e-6)
    chex.assert_shape(whole, ())


def test_a_shorter_input_is_a_prefix(params: Any) -> None:
    prefix = logits(SMALL, params, BATCH[:, :5])
    chex.assert_trees_all_close(prefix, logits(SMALL, params)[:, :4], atol=1e-6)


def test_bytes_and_wider_integers_are_the_same_tokens(params: Any) -> None:
    wide = loss(SMALL, params, BATCH.astype(np.int32))
    chex.assert_trees_all_equal(loss(SMALL, params, BATCH), wide)


def test_float64_throughout() -> None:
    config = dataclasses.replace(SMALL, dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        params = jax.jit(gpt.model(config).init)(jax.random.key(0))
        chex.assert_type(jax.tree.leaves(params), np.float64)
        chex.assert_type(loss(config, params, BATCH), np.float64)
        exact = np.asarray(logits(config, params))
        # Two layouts agree to the last digits only where no step was rounded to float32.
        scanned = dataclasses.replace(config, scanned=True)
        again = np.asarray(logits(scanned, restack(params)))
        single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert np.abs(exact - again).max() < 1e-14
    assert 1e-9 < np.abs(exact - np.asarray(logits(SMALL, single))).max() < 1e-5


def test_half_precision_has_logits_in_single(params: Any) -> None:
    half = logits(dataclasses.replace(SMALL, dtype="bfloat16"), params)
    chex.assert_type(half, jnp.float32)
    assert 0 < jnp.abs(half - logits(SMALL, params)).max() < 0.02


@pytest.mark.parametrize("scanned", [False, True])
def test_dropout_needs_a_key_and_follows_it(params: Any, scanned: bool) -> None:
    still = SCANNED if scanned else SMALL
    config = dataclasses.replace(still, dropout=0.5)
    params = restack(params) if scanned else params
    keys = jax.random.split(jax.random.key(1), 2)
    one, other = (loss(config, params, BATCH, key)[0] for key in keys)
    assert one != other
    assert one == loss(config, params, BATCH, keys[0])[0]
    without = loss(still, params, BATCH)[0]
    assert loss(config, params, BATCH)[0] == without
    assert loss(still, params, BATCH, keys[0])[0] == without


def test_the_logit_scale_multiplies_the_logits(params: Any) -> None:
    scaled = logits(dataclasses.replace(SMALL, logit_scale=0.5), params)
    chex.assert_trees_all_close(scaled, 0.5 * logits(SMALL, params), atol=1e-7)


def test_equal_configs_are_one_model() -> None:
    assert gpt.model(gpt.Config(2, 16, 2, 8)) is gpt.model(SMALL)


def test_it_learns_a_repeating_string() -> None:
    model = gpt.model(dataclasses.replace(SMALL, width=32))
    text = np.frombuffer(b"abcdefgh" * 8, np.uint8)
    batch = jnp.stack([text[i : i + 9] for i in range(8)])
    tx = optax.adamw(1e-2)

    def mean(params: Any) -> jax.Array:
        nats, count = model.loss(params, batch, None)
        return nats / count

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, state = carry
        loss, gradient = jax.value_and_grad(mean)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    params = jax.jit(model.init)(jax.random.key(0))
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30)[1])
    losses = train((params, tx.init(params)))
    assert losses[0] > 5
    # Knowing the eight letters, but not which comes next, gives ln 8.
    assert losses[-1] < 0.5 * math.log(8)


def test_what_does_not_fit_is_named_with_its_remedy(params: Any) -> None:
    with pytest.raises(ValueError, match=r"\(4, 9\), expected .* T <= window=8"):
        gpt.model(SMALL).loss(params, np.zeros((4, 10), np.uint8), None)
    with pytest.raises(ValueError, match="width=16 does not divide into heads=3"):
        gpt.Config(2, 16, 3, 8)
    with pytest.raises(ValueError, match="layers=-1: a GPT needs at least 0"):
        gpt.Config(-1, 16, 2, 8)
