"""FlaxT5ForConditionalGeneration of Hugging Face transformers 4.57.6 (Apache-2.0).

An encoder and a decoder stack. The second number of a path, `block/3/layer/1`, tells sublayers
apart and is literal. Block 0 holds the relative positions of its whole stack; their row comes
without a capture, so that they are no part of layer 0.
"""

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, Heads, Lookup, Residual, RMSNorm, Units

_ENC = r"encoder/block/(?P<enc>\d+)/layer/"
_DEC = r"decoder/block/(?P<dec>\d+)/layer/"
_BIAS = "(en|de)coder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding"

T5 = Axes(
    {
        "shared/embedding": "=vocab >embed",
        _BIAS: "<buckets >heads",
        _ENC + "0/SelfAttention/q/kernel": "<embed >(heads qk)",
        _ENC + "0/SelfAttention/k/kernel": "<embed >(heads <qk)",
        _ENC + "0/SelfAttention/v/kernel": "<embed >(heads v)",
        _ENC + "0/SelfAttention/o/kernel": "<(heads v) >embed+",
        _ENC + "1/DenseReluDense/wi/kernel": "<embed >mlp",
        _ENC + "1/DenseReluDense/wo/kernel": "<mlp >embed+",
        _ENC + "[01]/layer_norm/weight": "embed",
        _DEC + "[01]/(Self|EncDec)Attention/q/kernel": "<embed >(heads qk)",
        _DEC + "[01]/(Self|EncDec)Attention/k/kernel": "<embed >(heads <qk)",
        _DEC + "[01]/(Self|EncDec)Attention/v/kernel": "<embed >(heads v)",
        _DEC + "[01]/(Self|EncDec)Attention/o/kernel": "<(heads v) >embed+",
        _DEC + "2/DenseReluDense/wi/kernel": "<embed >mlp",
        _DEC + "2/DenseReluDense/wo/kernel": "<mlp >embed+",
        _DEC + "[012]/layer_norm/weight": "embed",
        "(en|de)coder/final_layer_norm/weight": "embed",
    },
    kinds={
        "embed": Residual(RMSNorm(), pre=True),
        "heads": Heads(),
        # T5 does not divide its scores by the root of a head's size.
        "qk": Dot(rope=None, scaled=False),
        "v": Channels(),
        "mlp": Units("relu"),
        "vocab": Lookup(),
        "buckets": Lookup(),
    },
)
