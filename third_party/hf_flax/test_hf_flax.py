"""The tables fit the parameters of the real classes, and growing goes by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from transformers import BertConfig, GPT2Config, T5Config

from experiments.models import ul2
from lagjax.algebra.layout import flatten
from lagjax.certify.certify import difference, plan_of
from lagjax.growth.depth import Fresh
from lagjax.growth.operator import Grow
from lagjax.growth.width import Average, BlockDiagonal, Net2Net, Tile
from lagjax.growth.width import NoisySplit as Noise
from lagjax.model import Model
from tests.growth import checks
from third_party.hf_flax import bert, gpt2, t5


@pytest.fixture(autouse=True)
def ranks_may_differ():
    with jax.numpy_rank_promotion("allow"):
        yield


def shapes(name, config):
    """The parameters' shapes; nothing is initialised or downloaded."""
    return getattr(transformers, name)(config, _do_init=False).params_shape_tree


def test_pinned_version():
    assert transformers.__version__ == "4.57.6"


def bert_config(layers):
    return BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=6,
    )


def test_bert():
    table = bert.axes(bert_config(2))
    small, large = (shapes("FlaxBertForMaskedLM", bert_config(layers)) for layers in (2, 4))
    layout = checks.table(table, small, large)
    checks.scanning(table, small)
    assert layout.sizes == {
        "embed": 8, "heads": 2, "qk": 4, "v": 4, "mlp": 12, "vocab": 13, "positions": 6, "types": 2,
    }  # fmt: skip
    assert layout.stacks == {"layers": 2}
    first, second = layout.layer_kinds("layers")
    assert first == second
    assert len(first) == 16
    # BERT normalises after the addition: not even layers that add nothing keep its function.
    plan = Grow(depth=Fresh(zero=True)).plan(checks.KEY, layout, table.layout(large))
    assert not plan.exact_by_table


def test_gpt2():
    config = {
        "vocab_size": 13,
        "n_embd": 8,
        "n_head": 2,
        "n_positions": 6,
        "n_inner": 12,
    }
    table = gpt2.axes(GPT2Config(**config))
    small, large = (
        shapes("FlaxGPT2LMHeadModel", GPT2Config(**config, n_layer=layers)) for layers in (2, 4)
    )
    layout = checks.table(table, small, large)
    checks.scanning(table, small)
    assert layout.sizes == {
        "embed": 8, "heads": 2, "qk": 4, "v": 4, "mlp": 12, "vocab": 13, "positions": 6,
    }  # fmt: skip
    assert layout.stacks == {"layers": 2}
    assert Grow(depth=Fresh(zero=True)).plan(checks.KEY, layout, table.layout(large)).exact_by_table


@pytest.mark.parametrize("way", [Tile(Noise()), BlockDiagonal(), Average()], ids=str)
def test_gpt2_grows_wider_and_keeps_its_function(way):
    """Queries, keys and values in one transposed array, heads flattened: the real classes agree."""
    sizes = {"vocab_size": 13, "n_positions": 6, "n_layer": 2}
    small = GPT2Config(**sizes, n_embd=8, n_head=2, n_inner=12)
    width = 16 if isinstance(way, BlockDiagonal | Tile) else 12
    large = GPT2Config(**sizes, n_embd=width, n_head=width // 4, n_inner=24)
    ways = {"embed": way, "heads": Net2Net() if width == 12 else way, "mlp": Tile()}

    def model(config, logits=1.0, epsilon=1.0):
        config = GPT2Config(**config.to_dict() | {"layer_norm_epsilon": 1e-5 * epsilon})
        net = transformers.FlaxGPT2LMHeadModel(config, _do_init=False)
        tokens = jnp.arange(5)[None]

        def apply(params, batch):
            inputs = (batch, jnp.ones_like(batch), jnp.arange(5)[None])
            return logits * net.module.apply({"params": params}, *inputs).logits

        def init(key):
            inputs = (tokens, jnp.ones_like(tokens), tokens)
            return net.module.init(key, *inputs)["params"]

        return Model(init, None, gpt2.axes(config), apply)

    one, other = model(small), model(large)
    draw = np.random.default_rng(0)
    shape = jax.eval_shape(one.init, checks.KEY)
    params = jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape).astype(x.dtype), shape)
    plan = plan_of(Grow(width=ways), checks.KEY, one, other, params)
    assert plan.exact_by_table
    other = model(large, **{x.what: x.value for x in plan.requires})
    grown = jax.jit(lambda p: Grow(width=ways)(checks.KEY, p, one.axes, other))(params)
    tokens = draw.integers(13, size=(3, 5))
    assert difference(one, other, params, grown, tokens) < 1e-5


def test_t5(monkeypatch):
    # Removed from JAX since; transformers 4.57.6 still writes jnp.clip(x, a_max=...).
    clip = jnp.clip
    monkeypatch.setattr(jnp, "clip", lambda x, a_min=None, a_max=None: clip(x, a_min, a_max))
    sizes = {
        "vocab_size": 13,
        "d_model": 8,
        "d_kv": 3,
        "d_ff": 12,
        "num_heads": 2,
        "relative_attention_num_buckets": 5,
    }
    small, large = (
        shapes(
            "FlaxT5ForConditionalGeneration",
            T5Config(**sizes, num_layers=enc, num_decoder_layers=dec),
        )
        for enc, dec in ((2, 1), (4, 3))
    )
    layout = checks.table(t5.T5, small, large)
    checks.scanning(t5.T5, small)
    # No sizes were given: the buckets' row tells the heads.
    assert layout.sizes == {
        "embed": 8,
        "heads": 2,
        "qk": 3,
        "v": 3,
        "mlp": 12,
        "vocab": 13,
        "buckets": 5,
    }
    assert layout.stacks == {"enc": 2, "dec": 1}
    assert len(layout.layer_kinds("enc")[0]) == 8
    assert len(layout.layer_kinds("dec")[0]) == 13
    plan = Grow(depth={"enc": "0 0* 1 1*", "dec": "0 new* 0*"}).plan(
        checks.KEY, layout, t5.T5.layout(large)
    )
    assert plan.exact_by_table


def test_the_experiments_encoder_decoder_is_t5(monkeypatch):
    """Same parameters, same logits as T5.1.1, with padding, and distances in shared buckets."""
    clip = jnp.clip
    monkeypatch.setattr(jnp, "clip", lambda x, a_min=None, a_max=None: clip(x, a_min, a_max))
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "width": 8, "heads": 2, "head_dim": 3}
    sizes |= {"mlp": 12, "vocab": 13, "buckets": 8, "max_distance": 12}
    ours = ul2.model(ul2.Config(**sizes))
    config = T5Config(
        vocab_size=13,
        d_model=8,
        d_kv=3,
        d_ff=12,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    theirs = transformers.FlaxT5ForConditionalGeneration(config, _do_init=False)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: draw.normal(0, 0.5, x.shape).astype(x.dtype), theirs.params_shape_tree
    )
    flat = flatten(params)

    def at(path):
        stack, *rest = path.split("/")
        if stack in ("embed", "head"):
            return flat[{"embed": "shared/embedding", "head": "lm_head/kernel"}[stack]]
        name, what = stack.split("_")
        where = {"enc": "encoder", "dec": "decoder"}[name]
        if what == "bias":
            return flat[f"{where}/block/0/layer/0/SelfAttention/relative_attention_bias/embedding"]
        if what == "norm":
            return flat[f"{where}/final_layer_norm/weight"]
        part, inner = rest[0].removesuffix("_norm"), rest[1]
        layer = {"attn": 0, "cross": 1, "mlp": 1 if name == "enc" else 2}[part]
        module = {"attn": "SelfAttention", "cross": "EncDecAttention", "mlp": "DenseReluDense"}
        weight = {"out": "o", "gate": "wi_0", "up": "wi_1", "down": "wo"}.get(inner, inner)
        here = f"{where}/block/{what}/layer/{layer}"
        if inner == "scale":
            return flat[f"{here}/layer_norm/weight"]
        return flat[f"{here}/{module[part]}/{weight}/kernel"]

    shapes = ours.shapes()
    leaves = [at(path).reshape(leaf.shape) for path, leaf in flatten(shapes).items()]
    grown = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    assert sum(x.size for x in leaves) == sum(x.size for x in flat.values())
    batch = {"inputs": draw.integers(1, 13, (3, 20)), "targets": draw.integers(1, 13, (3, 18))}
    batch["inputs"][:, 15:] = 0
    before = np.pad(batch["targets"][:, :-1], ((0, 0), (1, 0)))
    inputs = batch["inputs"], batch["inputs"] != 0, before, jnp.ones_like(before)
    logits = jax.jit(lambda params: theirs(*inputs, params=params).logits)(params)
    found = jax.jit(ours.apply)(grown, batch)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
