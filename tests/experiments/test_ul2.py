"""UL2's two models: T5.1.1's sizes, who sees whom, both stacks grow, and runs on dict batches."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from experiments.data import denoisers
from experiments.models import ul2, ul2_decoder
from lagjax.algebra.layout import flatten
from lagjax.growth.depth import Scaled, Stack
from lagjax.growth.operator import Grow
from lagjax.optimizer.reading import read
from lagjax.store import directory
from tests.experiments.test_denoisers import IDS, SPECIAL, windows
from tests.growth import models

# Sizes differ from axis to axis, so that none can be taken for another.
SIZES = {"width": 12, "heads": 3, "head_dim": 5, "mlp": 14, "vocab": 320}
# One body for each stack compiles in a third of the time.
SIZES |= {"buckets": 8, "max_distance": 16, "scanned": True}
PAIR = ul2.Config(encoder_layers=2, decoder_layers=1, **SIZES)
ALONE = ul2_decoder.Config(layers=2, **SIZES)
DEEPER = {
    PAIR: dataclasses.replace(PAIR, encoder_layers=4, decoder_layers=2),
    ALONE: dataclasses.replace(ALONE, layers=4),
}
SHAPES = {PAIR: denoisers.Pairs(24, 24), ALONE: denoisers.Joined(40)}
BOTH = pytest.mark.parametrize("config", [PAIR, ALONE], ids=["pair", "alone"])
KEY = jax.random.key(0)


def model(config: Any) -> lagjax.Model:
    return (ul2 if isinstance(config, ul2.Config) else ul2_decoder).model(config)


@functools.cache
def deeper(config: Any) -> lagjax.Model:
    """The one that it grows into, with an initialisation that compiles at once."""
    return models.filled(model(DEEPER[config]))


@functools.cache
def drawn(config: Any) -> Any:
    """Parameters of which none has the value of an initialisation."""
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: draw.normal(0, 0.5, x.shape).astype(x.dtype), model(config).shapes()
    )


@functools.cache
def applied(config: Any) -> Any:
    return jax.jit(model(config).apply)


@functools.cache
def valid(config: Any) -> denoisers.Shards:
    return denoisers.shards(windows, IDS, 3, SHAPES[config])


def test_the_published_numbers_of_parameters() -> None:
    """Those of google/t5-v1_1-base and -small: 247.6 and 77.0 million.

    By hand, of base: attention 4 x 768 x 768, MLP 3 x 768 x 2048, a norm 768; 12 layers of one
    attention and two norms, 12 of two and three; two tables of 32 x 12; two last norms; embedding
    and head, 32,128 x 768 each.
    """
    for config, expected in ((ul2.BASE, 247_577_856), (ul2.SMALL, 76_961_152)):
        shapes = model(dataclasses.replace(config, scanned=True)).shapes()
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == expected


def test_tables() -> None:
    layout = model(PAIR).layout()
    assert layout.sizes == {
        "embed": 12, "heads": 3, "qk": 5, "v": 5, "mlp": 14, "vocab": 320, "buckets": 8,
    }  # fmt: skip
    assert layout.stacks == {"enc": 2, "dec": 1}
    assert model(ALONE).layout().stacks == {"layers": 2}


@BOTH
def test_scanned_and_unrolled_are_one_function(config: Any) -> None:
    other = dataclasses.replace(config, scanned=False)
    layout, stacked = model(other).layout(), flatten(drawn(config))
    assert {leaf.name for leaf in layout.leaves} == {x.name for x in model(config).layout().leaves}
    leaves = [
        stacked[leaf.name][leaf.layer[0][1]] if leaf.layer else stacked[leaf.name]
        for leaf in layout.leaves
    ]
    params = jax.tree.unflatten(jax.tree.structure(model(other).shapes()), leaves)
    batch = valid(config).batches[0]
    chex.assert_trees_all_close(
        applied(other)(params, batch), applied(config)(drawn(config), batch), rtol=1e-4, atol=1e-5
    )


def changed(config: Any, name: str, column: int) -> np.ndarray:
    """Which logits change with one token of the first text: bool [T]."""
    batch = valid(config).batches[0]
    other = batch[name].copy()
    other[0, column] = (other[0, column] + 7) % 300 + 1
    before, after = (
        applied(config)(drawn(config), batch | {name: tokens}) for tokens in (batch[name], other)
    )
    np.testing.assert_array_equal(before[1:], after[1:])
    return np.asarray(jnp.abs(before - after)[0].max(-1) > 1e-5)


def test_a_decoder_alone_sees_all_inputs_and_no_later_target() -> None:
    prefix = int(valid(ALONE).batches[0]["prefix"][0])
    assert changed(ALONE, "tokens", 2).all()
    assert changed(ALONE, "tokens", prefix - 1).all()
    at = np.arange(40)
    np.testing.assert_array_equal(changed(ALONE, "tokens", prefix), at >= prefix)
    np.testing.assert_array_equal(changed(ALONE, "tokens", prefix + 3), at >= prefix + 3)


def test_a_decoder_sees_all_inputs_but_padding_and_no_later_target() -> None:
    batch = valid(PAIR).batches[0]
    assert changed(PAIR, "inputs", 3).all()
    np.testing.assert_array_equal(changed(PAIR, "targets", 4), np.arange(24) > 4)
    longer = batch | {"inputs": np.pad(batch["inputs"], ((0, 0), (0, 5)))}
    same = jax.jit(model(PAIR).apply)(drawn(PAIR), longer)
    np.testing.assert_allclose(applied(PAIR)(drawn(PAIR), batch), same, rtol=1e-4, atol=1e-5)


def test_buckets() -> None:
    """T5's, by 8 buckets up to a distance of 16: keys before, keys after, keys before alone."""
    both = ul2.buckets(PAIR, 24, 24, both=True)
    assert both[20, :21][::-1].tolist() == [0, 1, *4 * [2], *15 * [3]]
    assert both[0, 1:].tolist() == [5, *4 * [6], *18 * [7]]
    before = ul2.buckets(PAIR, 24, 24, both=False)
    assert before[20, :21][::-1].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, *4 * [6], *9 * [7]]
    assert not before[0].any()


@BOTH
def test_the_loss_is_that_of_the_targets(config: Any) -> None:
    # Dropout is for training only.
    loss = jax.jit(model(dataclasses.replace(config, dropout=0.3)).loss)
    batch, params = valid(config).batches[6], drawn(config)
    nats, count = loss(params, batch, None)
    assert count == valid(config).counts[6]
    targets, weights = ul2.scored(batch)
    logp = jax.nn.log_softmax(applied(config)(params, batch))
    chosen = np.take_along_axis(np.asarray(logp), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, -(chosen * weights).sum(), rtol=1e-5)
    # Padding does not count, whatever stands there.
    name = "tokens" if config is ALONE else "targets"
    other = np.where(batch["weights"] > 0, batch[name], batch[name] + 9 * (batch[name] == 0))
    np.testing.assert_allclose(loss(params, batch | {name: other}, None)[0], nats, rtol=1e-6)
    one, other, again = (loss(params, batch, jax.random.key(n))[0] for n in (1, 2, 1))
    assert one != other
    assert one == again


def test_the_loss_starts_near_that_of_a_uniform_guess() -> None:
    fresh, batch = jax.jit(model(ALONE).init)(KEY), valid(ALONE).batches[6]
    nats, count = jax.jit(ul2.weighted)(applied(ALONE)(fresh, batch), batch)
    assert nats / count == pytest.approx(math.log(320), abs=1)


@BOTH
def test_depth_grows_every_stack(config: Any) -> None:
    small, large = model(config), deeper(config)
    pool = {x.name: x for x in lagjax.pools.depth(drawn(config), small.axes, large)}
    zeroed = pool["zeroed-interleave"].operator
    words = zeroed.plan(KEY, small.layout(), large.layout()).words
    assert {stack: str(word) for stack, word in words.items()} == (
        {"layers": "0 0* 1 1*"} if config is ALONE else {"enc": "0 0* 1 1*", "dec": "0 0*"}
    )
    certificate = lagjax.certify(
        zeroed, small, large, drawn(config), valid(config).batches[:2], steps=2
    )
    assert certificate.kind == "exact"
    assert max(certificate.max_diff.values()) < 1e-5
    plan = pool["stack"].operator.plan(KEY, small.layout(), large.layout())
    assert not plan.exact_by_table
    # The tables of positions are no part of a layer: whatever the word, there is one.
    tables = [leaf for leaf in small.layout().leaves if "_bias" in leaf.name]
    assert len(tables) == len(words)
    assert not any(leaf.layer or dim.stack for leaf in tables for dim in leaf.dims)


def test_stacks_grow_by_words_of_their_own() -> None:
    taller = model(dataclasses.replace(PAIR, decoder_layers=2))
    small = model(PAIR)
    pool = lagjax.pools.depth(drawn(PAIR), small.axes, taller, controls=False)
    for each in pool:
        words = each.operator.plan(KEY, small.layout(), taller.layout()).words
        assert str(words["enc"]) == "0 1"
    grow = Grow(depth={"enc": Stack(), "dec": Scaled(Stack())})
    assert grow.plan(KEY, small.layout(), taller.layout()).exact_by_table


@BOTH
def test_width_grows_exactly_given_an_epsilon(config: Any) -> None:
    wide = dataclasses.replace(config, width=24, heads=6, mlp=28, head_dim=7)
    module, small = (ul2 if config is PAIR else ul2_decoder), model(config)
    required = functools.partial(module.required, wide)
    pool = lagjax.pools.width(drawn(config), small.axes, module.model(wide), required)
    pool = {each.name: each for each in pool}
    assert {"isometric", "zero-pad", "net2net", "aki"} <= pool.keys()
    for name in ("isometric", "zero-pad"):
        each = pool[name]
        assert each.operator.plan(KEY, small.layout(), each.target.layout()).exact_by_table
    if config is ALONE:
        # The other has all that it has, and cross-attention; compiling takes the time.
        return
    batch = valid(config).batches[0]
    target = models.filled(each.target)
    grown = jax.jit(lambda p: each.operator(KEY, p, small.axes, target))(drawn(config))
    np.testing.assert_allclose(
        jax.jit(each.target.apply)(grown, batch),
        applied(config)(drawn(config), batch),
        rtol=1e-3,
        atol=1e-4,
    )


def test_adafactor_grows_with_the_model() -> None:
    tx, params = ul2.optimizer(ul2.inverse_root(4)), drawn(ALONE)
    rules = {jax.tree_util.keystr(keys): rule for keys, rule in read(tx, params).items()}
    assert all(rule.kind != "refused" for rule in rules.values())
    second = [rule.power for path, rule in rules.items() if "[0].v[" in path]
    assert second == [2] * len(jax.tree.leaves(params))
    gradients = jax.tree.map(np.sign, params)
    updates, state = jax.jit(tx.update)(gradients, jax.jit(tx.init)(params), params)
    # A first step is the rate times the size of the parameter, whatever the gradient's.
    step, leaf = (tree["layers"]["attn"]["q"]["kernel"] for tree in (updates, params))
    size = np.sqrt(np.mean(leaf**2))
    np.testing.assert_allclose(step, -0.5 * size * np.sign(leaf), rtol=1e-3)
    assert state[1].hyperparams["learning_rate"] == 0.5
    with pytest.raises(ValueError, match="method='adamw'"):
        ul2.optimizer(0.01, weight_decay=0.1)


@BOTH
def test_infilling_is_the_share_of_text_guessed(config: Any) -> None:
    shards = valid(config).batches[:3]
    found = ul2.infilled(model(config), drawn(config), shards, SPECIAL.all)
    for (right, count), batch in zip(found, shards):
        guessed = np.asarray(applied(config)(drawn(config), batch)).argmax(-1)
        targets, weights = ul2.scored(batch)
        # Text is 200 and above.
        text = (weights > 0) & (targets >= 200)
        assert count == text.sum()
        assert right == (guessed == targets)[text].sum()


@BOTH
def test_a_run(config: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lagjax.report, "write", lambda path: path)
    small, large = model(config), deeper(config)
    params = jax.tree.map(lambda x: 0.3 * x, drawn(config))
    method = "adafactor" if config is PAIR else "adamw"
    tx = ul2.optimizer(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 6), method)
    names = ("zeroed-stack", "stack")
    pool = lagjax.pools.depth(params, small.axes, large, controls=False)
    task = lagjax.Task(
        small,
        lagjax.Trained(params, jax.jit(tx.init)(params)),
        tx,
        denoisers.batches(windows, IDS, 4, SHAPES[config]),
        valid(config).batches,
        6,
        transfer=lagjax.Transfer("grow", "restart"),
    )
    pool = tuple(each for each in pool if each.name in names)
    decision = lagjax.run(task, pool, lagjax.FixedLag(3), tmp_path / "run", candidates_at_once=1)
    record = directory.read(tmp_path / "run")
    last = [x for x in record.curves if (x["candidate"], x["step"]) == (decision.winner, 6)]
    assert len(last) == 1
    assert last[0]["lr"] is not None
    losses = denoisers.by_denoiser(
        valid(config).names, last[0]["valid_loss_shards"], valid(config).counts
    )
    assert list(losses) == [each.name for each in denoisers.UL2]
    total = np.average(list(losses.values()), weights=valid(config).counts)
    assert total == pytest.approx(last[0]["valid_loss"], rel=1e-6)


def test_what_does_not_fit_is_named_with_its_remedy() -> None:
    with pytest.raises(ValueError, match="decoder_layers=0: expected at least 1"):
        dataclasses.replace(PAIR, decoder_layers=0)
    with pytest.raises(ValueError, match=r"buckets=6 and max_distance=16: .* multiple of 4"):
        dataclasses.replace(ALONE, buckets=6)
