"""FlaxGPT2LMHeadModel of Hugging Face transformers 4.57.6 (Apache-2.0).

Kernels are transposed, queries, keys and values in one.
"""

from transformers import GPT2Config

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, Heads, LayerNorm, Lookup, Residual, Units

_LAYER = r"transformer/h/(?P<layers>\d+)/"


def axes(config: GPT2Config) -> Axes:
    """The table of a model of this configuration, which alone tells the number of heads."""
    return Axes(
        {
            "transformer/wte/embedding": "=vocab >embed",
            "transformer/wpe/embedding": "<positions >embed",
            _LAYER + "attn/c_attn/kernel": ">(heads qk | heads <qk | heads v) <embed",
            _LAYER + "attn/c_attn/bias": ">(heads qk | heads <qk | heads v)",
            _LAYER + "attn/c_proj/kernel": ">embed+ <(heads v)",
            _LAYER + "mlp/c_fc/kernel": ">mlp <embed",
            _LAYER + "mlp/c_fc/bias": ">mlp",
            _LAYER + "mlp/c_proj/kernel": ">embed+ <mlp",
            _LAYER + "(attn|mlp)/c_proj/bias": ">embed+",
            _LAYER + "ln_[12]/scale": "embed",
            _LAYER + "ln_[12]/bias": "+embed",
            "transformer/ln_f/scale": "embed",
            "transformer/ln_f/bias": "+embed",
        },
        kinds={
            "embed": Residual(LayerNorm(), pre=True),
            "heads": Heads(),
            "qk": Dot(rope=None),
            "v": Channels(),
            "mlp": Units(config.activation_function),
            "vocab": Lookup(),
            "positions": Lookup(),
        },
        sizes={"heads": config.n_head},
    )
