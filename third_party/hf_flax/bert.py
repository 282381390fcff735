"""FlaxBertForMaskedLM of Hugging Face transformers 4.57.6 (Apache-2.0).

Post-norm, heads flattened with their size.
"""

from transformers import BertConfig

from lagjax.algebra.axes import Axes
from lagjax.algebra.kinds import Channels, Dot, Heads, LayerNorm, Lookup, Residual, Units

_LAYER = r"bert/encoder/layer/(?P<layers>\d+)/"


def axes(config: BertConfig) -> Axes:
    """The table of a model of this configuration, which alone tells the number of heads."""
    return Axes(
        {
            "bert/embeddings/word_embeddings/embedding": "=vocab >embed",
            "bert/embeddings/position_embeddings/embedding": "<positions >embed",
            "bert/embeddings/token_type_embeddings/embedding": "<types >embed",
            _LAYER + "attention/self/query/kernel": "<embed >(heads qk)",
            _LAYER + "attention/self/query/bias": ">(heads qk)",
            # A key reads the axis that its query writes.
            _LAYER + "attention/self/key/kernel": "<embed >(heads <qk)",
            _LAYER + "attention/self/key/bias": ">(heads <qk)",
            _LAYER + "attention/self/value/kernel": "<embed >(heads v)",
            _LAYER + "attention/self/value/bias": ">(heads v)",
            _LAYER + "attention/output/dense/kernel": "<(heads v) >embed+",
            _LAYER + "intermediate/dense/kernel": "<embed >mlp",
            _LAYER + "intermediate/dense/bias": ">mlp",
            _LAYER + "output/dense/kernel": "<mlp >embed+",
            _LAYER + "(attention/)?output/dense/bias": ">embed+",
            _LAYER + "(attention/)?output/LayerNorm/scale": "embed",
            _LAYER + "(attention/)?output/LayerNorm/bias": "+embed",
            "(bert/embeddings|cls/predictions/transform)/LayerNorm/scale": "embed",
            "(bert/embeddings|cls/predictions/transform)/LayerNorm/bias": "+embed",
            "cls/predictions/transform/dense/kernel": "<embed >embed",
            "cls/predictions/transform/dense/bias": ">embed",
            "cls/predictions/bias": ">vocab",
        },
        kinds={
            # The head's transform writes along it, and is activated.
            "embed": Residual(LayerNorm(), pre=False, activation=config.hidden_act),
            "heads": Heads(),
            "qk": Dot(rope=None),
            "v": Channels(),
            "mlp": Units(config.hidden_act),
            "vocab": Lookup(),
            "positions": Lookup(),
            "types": Lookup(),
        },
        sizes={"heads": config.num_attention_heads},
    )
