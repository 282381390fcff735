"""BERT: its sizes and table, its objective, its optimizer, how it grows, and a search over it."""

import dataclasses
import pathlib
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from experiments.data import masked
from experiments.models import bert, gpt
from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import flatten
from lagjax.engine import Trained
from lagjax.growth.operator import Grow
from lagjax.state import carry
from lagjax.store import directory
from tests import quick
from tests.growth import models

no_page = quick.no_page

SPECIALS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}
POST = bert.Config(layers=2, width=8, heads=2, window=16, vocab=24, mlp=12)
PRE = dataclasses.replace(POST, post_norm=False)
KEY = jax.random.key(0)
log_softmax = jax.jit(jax.nn.log_softmax)


class Alphabets:
    """Documents that count through the vocabulary, from 4 on, each from a place of its own."""

    def __init__(self, *lengths: int) -> None:
        self.lengths = np.array(lengths, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return (4 + (7 * index + np.arange(self.lengths[index])) % 20).astype(np.int32)


DOCUMENTS = Alphabets(50, 6, 40, 9)
BATCH = masked.batches(DOCUMENTS, SPECIALS, POST.vocab, 4, 16)
# Some of its rows are shorter, with one token to predict where others have two.
PADDED = next(batch for step in range(99) if not (batch := BATCH(0, step))["weights"].all())
VALID = masked.shards(DOCUMENTS, SPECIALS, POST.vocab, 3, 4, 16)


def drawn(model: lagjax.Model) -> Any:
    """Parameters in which no mistake hides: biases that are not 0, scales that differ."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: draw.normal(0.3 * (x.ndim == 1), 0.3, x.shape).astype(x.dtype),
        jax.eval_shape(model.init, KEY),
    )


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn(bert.model(POST))


def restack(unrolled: dict[str, Any]) -> dict[str, Any]:
    """`layers_0/...`, `layers_1/...` -> `layers/...` with a leading layer axis."""
    rest = {name: leaf for name, leaf in unrolled.items() if "layers_" not in name}
    layers = [unrolled[f"layers_{i}"] for i in range(len(unrolled) - len(rest))]
    return rest | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}


@pytest.mark.parametrize(
    "config, encoder, whole",
    [
        (bert.BASE, 109_482_240, 110_106_428),
        (dataclasses.replace(bert.BASE, scanned=False, post_norm=False), 109_482_240, 110_106_428),
        (bert.LARGE, 335_141_888, 336_226_108),
    ],
)
def test_published_sizes(config: bert.Config, encoder: int, whole: int) -> None:
    found = flatten(jax.eval_shape(bert.model(config).init, KEY))
    assert sum(x.size for x in found.values()) == whole
    heads = ("mlm_", "next/")
    assert sum(x.size for path, x in found.items() if not path.startswith(heads)) == encoder


@pytest.mark.parametrize("config", [POST, PRE, bert.SMALL, bert.TINY])
def test_sizes_are_those_of_the_config(config: bert.Config) -> None:
    names = []
    for scanned in (False, True):
        model = bert.model(dataclasses.replace(config, scanned=scanned))
        layout = model.layout()
        assert layout.stacks == {"layers": config.layers}
        assert layout.sizes == {
            "vocab": config.vocab,
            "embed": config.width,
            "positions": config.window,
            "segments": 2,
            "heads": config.heads,
            "qk": config.width // config.heads,
            "v": config.width // config.heads,
            "mlp": config.mlp or 4 * config.width,
            "pooled": config.width,
        }
        names.append({leaf.path.replace("layers_0", "layers") for leaf in layout.leaves})
    assert names[1] <= names[0]


@pytest.mark.parametrize("config", [POST, PRE])
def test_scanned_and_unrolled_are_one_function(config: bert.Config) -> None:
    scanned = bert.model(dataclasses.replace(config, scanned=True))
    model, batch = bert.model(config), BATCH(0, 0)
    params = drawn(model)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        restack(params), jax.eval_shape(scanned.init, KEY)
    )
    one = jax.jit(model.apply)(params, batch)
    chex.assert_shape(one, (4, 2 * 24 + 2))
    chex.assert_trees_all_close(one, jax.jit(scanned.apply)(restack(params), batch), atol=1e-5)


def test_nothing_attends_to_padding(params: Any) -> None:
    apply = jax.jit(bert.model(POST).apply)
    lengths = (PADDED["tokens"] != 0).sum(1)
    at, shorter = lengths.argmin(), lengths.min()
    row = {name: x[at : at + 1] for name, x in PADDED.items()}
    cut = row | {name: row[name][:, :shorter] for name in ("tokens", "segments")}
    chex.assert_trees_all_close(apply(params, cut), apply(params, row), atol=1e-5)
    # Everything else is seen, from both sides.
    for place in range(1, shorter):
        other = row | {"tokens": row["tokens"].copy()}
        other["tokens"][:, place] = 23 - row["tokens"][:, place] % 7
        if (other["tokens"] != row["tokens"]).any():
            assert (apply(params, other)[:, -2:] != apply(params, row)[:, -2:]).any()


def test_the_objective_is_the_published_one_and_adds_up(params: Any) -> None:
    model = bert.model(POST)
    loss, measured = jax.jit(model.loss), jax.jit(bert.measured)
    for batch in (PADDED, VALID[0]):
        outputs = np.asarray(jax.jit(model.apply)(params, batch), np.float64)
        tokens, pairs = outputs[:, :-2].reshape(4, 2, 24), outputs[:, -2:]
        nats = -np.take_along_axis(np.asarray(log_softmax(tokens)), batch["targets"][..., None], 2)[
            ..., 0
        ]
        follows = -np.asarray(log_softmax(pairs))[np.arange(4), batch["next"]]
        total, count = loss(params, batch, None)
        count = float(count)
        assert count == batch["weights"].sum()
        per_row = (nats * batch["weights"]).sum(1) + follows * batch["weights"].sum(1)
        assert total == pytest.approx(per_row.sum(), rel=1e-5)
        found = measured(outputs.astype(np.float32), batch)
        means = {name: float(x / n) for name, (x, n) in found.items()}
        assert means["mlm_nats"] == pytest.approx((nats * batch["weights"]).sum() / count, rel=1e-5)
        assert means["next_nats"] == pytest.approx(follows.mean(), rel=1e-5)
        assert means["next_accuracy"] == np.mean(pairs.argmax(1) == batch["next"])
        hits = (tokens.argmax(2) == batch["targets"]) * batch["weights"]
        assert means["mlm_accuracy"] == pytest.approx(hits.sum() / count)
        parts = [
            loss(params, {name: x[rows] for name, x in batch.items()}, None)
            for rows in (slice(2), slice(2, 4))
        ]
        chex.assert_trees_all_close(jax.tree.map(jnp.add, *parts), (total, count), rtol=1e-5)
        # Of rows with equally many predictions, the sum of the two means.
        same = batch | {"weights": np.ones((4, 2), np.float32)}
        total, count = loss(params, same, None)
        assert total / count == pytest.approx(nats.mean() + follows.mean(), rel=1e-5)


def test_it_learns_and_its_accuracy_tells() -> None:
    model, batch = bert.model(dataclasses.replace(POST, layers=1, width=32)), VALID[0]
    tx = bert.optimizer(model.axes, bert.schedule(3e-3, warmup=20, steps=80))

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, state = carry

        def mean(params: Any) -> jax.Array:
            nats, count = model.loss(params, batch, None)
            return nats / count

        loss, gradient = jax.value_and_grad(mean)(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), loss

    params = jax.jit(model.init)(KEY)
    train = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), length=80))
    (params, _), losses = train(params)
    # As good as a uniform guess at the start.
    assert losses[0] == pytest.approx(np.log(24) + np.log(2), abs=0.1)
    each = [bert.accuracy(model, params, [shard]) for shard in VALID]
    assert each[0] == (1, 1)
    assert each[1].tokens < 1
    # Of all shards, each with its own count.
    counts = [shard["weights"].sum() for shard in VALID]
    whole = bert.accuracy(model, params, VALID)
    tokens = np.average([one.tokens for one in each], weights=counts)
    assert whole.tokens == pytest.approx(tokens)
    assert whole.pairs == pytest.approx(np.mean([one.pairs for one in each]))
    with pytest.raises(ValueError, match="no shards"):
        bert.accuracy(model, params, [])


def test_dropout_needs_a_key_and_half_precision_has_logits_in_single(params: Any) -> None:
    batch = BATCH(0, 0)
    still = jax.jit(bert.model(POST).loss)(params, batch, None)
    noisy = jax.jit(bert.model(dataclasses.replace(POST, dropout=0.5)).loss)
    one, other = (noisy(params, batch, jax.random.key(seed))[0] for seed in (1, 2))
    assert len({float(one), float(other), float(still[0])}) == 3
    assert noisy(params, batch, None)[0] == pytest.approx(float(still[0]), rel=1e-6)
    half = bert.model(dataclasses.replace(POST, dtype="bfloat16"))
    chex.assert_type(jax.eval_shape(half.apply, params, batch), jnp.float32)
    with jax.enable_x64(True):
        double = bert.model(dataclasses.replace(POST, dtype="float64", param_dtype="float64"))
        shapes = jax.eval_shape(double.init, KEY)
        chex.assert_type(jax.tree.leaves(shapes), np.float64)
        chex.assert_type(jax.eval_shape(double.loss, shapes, batch, None), np.float64)


def test_the_optimizer_is_the_published_one() -> None:
    """Against the formulas, over steps that are clipped and steps that are not."""
    table = Axes({"matrix": "<inp >out", "bias": ">out", "scale": "out"})
    draw = np.random.default_rng(0)
    params = {"matrix": draw.normal(size=(3, 2)), "bias": draw.normal(size=2)}
    params["scale"] = draw.normal(size=2)
    tx = bert.optimizer(table, bert.schedule(0.5, warmup=4, steps=10), weight_decay=0.01)
    mine = jax.tree.map(lambda x: x.astype(np.float32), params)
    state = jax.jit(tx.init)(mine)

    @jax.jit
    def step(grads: Any, state: Any, mine: Any) -> Any:
        updates, state = tx.update(grads, state, mine)
        return optax.apply_updates(mine, updates), state

    first = {name: np.zeros_like(x) for name, x in params.items()}
    second = {name: np.zeros_like(x) for name, x in params.items()}
    # Half of the gradients are within the clip.
    for number, size in enumerate((3.0, 0.1, 1e-6, 2.0, 0.1, 5.0, 0.2, 1.0, 0.1, 1.0, 1.0)):
        grads = {name: size * draw.normal(size=x.shape) for name, x in params.items()}
        mine, state = step(jax.tree.map(lambda x: x.astype(np.float32), grads), state, mine)
        norm = np.sqrt(sum((x**2).sum() for x in grads.values()))
        rate = 0.5 * (number / 4 if number < 4 else max(0, 1 - number / 10))
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(rate, abs=1e-7)
        for name, x in grads.items():
            x = x / max(norm, 1.0)
            first[name] = 0.9 * first[name] + 0.1 * x
            second[name] = 0.999 * second[name] + 0.001 * x**2
            taken = first[name] / (np.sqrt(second[name]) + 1e-6)
            taken += 0.01 * params[name] * (name == "matrix")
            params[name] = params[name] - rate * taken
        chex.assert_trees_all_close(
            mine, {name: x.astype(np.float32) for name, x in params.items()}, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    "model",
    [
        *(
            bert.model(dataclasses.replace(config, scanned=scanned))
            for config in (POST, PRE)
            for scanned in (False, True)
        ),
        gpt.model(gpt.Config(2, 8, 2, 8)),
    ],
)
def test_norms_and_biases_do_not_decay(model: lagjax.Model) -> None:
    shapes = jax.eval_shape(model.init, KEY)
    for path, decays in flatten(bert.decayed(model.axes, shapes)).items():
        assert decays == bool(re.search("kernel|embedding", path)), path


def test_its_state_grows() -> None:
    # Scanned, its state has a few leaves instead of a hundred.
    small, large = (
        bert.model(dataclasses.replace(POST, layers=layers, scanned=True)) for layers in (2, 4)
    )
    params, large = drawn(small), models.filled(large)
    tx = bert.optimizer(small.axes, bert.schedule(0.5, warmup=10, steps=100))
    operator = Grow(depth="0 0*0.5 1 new")
    plan = operator.plan(KEY, small.axes.layout(params), large.layout())

    @jax.jit
    def trained_and_grown(params: Any) -> tuple[Any, Any, Any]:
        state = tx.init(params)
        for number in (1, 2, 3):
            _, state = tx.update(optax.tree.scale(0.1 * number, params), state, params)
        grown = operator(KEY, params, small.axes, large)
        made = carry(plan, state, params, grown, tx, "continue")
        # The next step takes it.
        return state, made, tx.update(grown, made, grown)[0]

    state, made, updates = jax.device_get(trained_and_grown(params))
    old, new = (one.inner_state[1] for one in (state, made))
    assert made.count == 3
    # Both means are in proportion to what they are of.
    for power, (before, after) in enumerate(zip(old, new, strict=True), 1):
        for layer, (source, inner) in enumerate([(0, 1), (0, 0.5), (1, 1), (0, 0)]):
            for path, found in flatten(after["layers"]).items():
                outputs = path in ("attn/out/kernel", "attn/out/bias", "mlp/down/kernel")
                outputs = outputs or path == "mlp/down/bias"
                scale = inner**power if inner != 0.5 or not outputs else 1.0
                expected = flatten(before["layers"])[path][source] * scale
                np.testing.assert_allclose(found[layer], expected, rtol=1e-6, err_msg=path)
        chex.assert_trees_all_equal(
            *({name: x[name] for name in x if name != "layers"} for x in (before, after))
        )
    chex.assert_tree_all_finite(updates)


def apart(small: lagjax.Model, large: lagjax.Model, operator: Grow, params: Any) -> np.ndarray:
    """How far the grown model's outputs are from the small one's, [B, P * vocab + 2]."""

    # What the larger one would begin with takes longer to compile than all else.
    begun = models.filled(large)

    @jax.jit
    def difference(params: Any) -> jax.Array:
        grown = operator(KEY, params, small.axes, begun)
        return large.apply(grown, PADDED) - small.apply(params, PADDED)

    return np.abs(difference(params))


def test_blank_layers_are_exact_in_pre_norm_only() -> None:
    pair = {
        config: [bert.model(dataclasses.replace(config, layers=layers)) for layers in (2, 4)]
        for config in (PRE, POST)
    }
    small, large = pair[PRE]
    pool = lagjax.pools.depth(small.shapes(), small.axes, large)
    blank = next(one.operator for one in pool if one.name == "zeroed-interleave")
    found = lagjax.certify(blank, small, models.filled(large), drawn(small), [PADDED], steps=1)
    assert found.kind == "exact"
    assert found.max_diff["float32"] < 1e-5
    assert found.dead_fraction == 0
    post, deep = pair[POST]
    plan = blank.plan(KEY, post.layout(), deep.layout())
    assert {one.axis for one in plan.violations} == {"layers"}
    assert all("pre-norm net only" in one.why for one in plan.violations)
    # A norm of what was normed already is another one, where scales differ.
    assert apart(post, deep, blank, drawn(post)).max() > 0.1


def wider(config: bert.Config, width: int, operator: Grow) -> tuple[lagjax.Model, Any]:
    """The larger model as it is required to be, and the plan of its growth."""
    large = dataclasses.replace(config, width=width, heads=width // 4, mlp=24)
    shapes = jax.eval_shape(bert.model(config).init, KEY)
    plan = operator.plan(KEY, bert.model(config).axes.layout(shapes), bert.model(large).layout())
    return bert.required(large, plan.requires), plan


def test_widths_that_keep_the_function() -> None:
    operator = Grow(width=lagjax.pools.WIDTH["tile"])
    post, pre = (dataclasses.replace(config, layers=1) for config in (POST, PRE))
    small, (large, plan) = bert.model(post), wider(post, 16, operator)
    assert [str(one) for one in plan.requires] == ["logits × 0.5 (embed)"]
    assert not plan.violations
    assert apart(small, large, operator, drawn(small)).max() < 1e-4
    # The stream of a pre-norm net may be given means, but the head's gelu of a mean is no mean.
    operator = Grow(width=lagjax.pools.WIDTH["isometric"])
    small, (large, plan) = bert.model(pre), wider(pre, 12, operator)
    assert [one.why for one in plan.violations] == ["gelu is not linear: copies must be whole"]
    found = apart(small, large, operator, drawn(small))
    assert found[:, :-2].max() > 1e-2
    # The other head, which has a width of its own, notices nothing.
    assert found[:, -2:].max() < 1e-4


@pytest.mark.slow
def test_a_search_over_it(tmp_path: pathlib.Path) -> None:
    small, large = (bert.model(dataclasses.replace(POST, layers=layers)) for layers in (1, 2))
    shapes = jax.eval_shape(small.init, KEY)

    def tx(steps: int) -> optax.GradientTransformation:
        return bert.optimizer(small.axes, bert.schedule(1e-2, 2, steps))

    source = lagjax.train(small, tx(6), BATCH, VALID, 4, tmp_path, engine=bert.engine)
    task = lagjax.Task(
        small,
        source,
        tx,
        lambda seed, step: BATCH(1 + seed, step),
        VALID,
        horizon=6,
        transfer=lagjax.Transfer("grow", "restart"),
        engine=bert.engine,
    )
    pool = lagjax.pools.depth(shapes, small.axes, large)[:2]
    decision = lagjax.run(task, pool, lagjax.FixedLag(2), tmp_path)
    assert decision.winner in [one.name for one in pool]
    record = directory.read(tmp_path)
    last = next(
        line for line in record.curves if (line["candidate"], line["step"]) == (decision.winner, 6)
    )
    won = lagjax.load(tmp_path)
    assert isinstance(won, Trained)
    found = bert.accuracy(large, won.params, VALID)
    assert last["metrics"]["valid_mlm_accuracy"] == pytest.approx(found.tokens)
    assert last["metrics"]["valid_next_accuracy"] == pytest.approx(found.pairs)
    nats = [last["metrics"][f"valid_{name}_nats"] for name in ("mlm", "next")]
    assert last["valid_loss"] == pytest.approx(sum(nats), rel=0.05)
    assert last["lr"] == pytest.approx(1e-2 * (1 - 5 / 6))
