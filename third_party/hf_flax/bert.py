"""FlaxBertForMaskedLM of Hugging Face transformers 4.57.6 (Apache-2.0): post-norm, heads flattened with their size."""

from transformers import BertConfig

from lagjax.axes import Axes, Dot, Elementwise, Residual

_LAYER = r"bert/encoder/layer/(?P<layers>\d+)/"


def axes(config: BertConfig) -> Axes:
    """The table of a model of this configuration, which alone tells the number of heads."""
    return Axes(
        {
            "bert/embeddings/word_embeddings/embedding": "=vocab >embed",
            "bert/embeddings/position_embeddings/embedding": "<positions >embed",
            "bert/embeddings/token_type_embeddings/embedding": "<types >embed",
            _LAYER + "attention/self/(query|key)/kernel": "<embed >(heads qk)",
            _LAYER + "attention/self/(query|key)/bias": ">(heads qk)",
            _LAYER + "attention/self/value/kernel": "<embed >(heads v)",
            _LAYER + "attention/self/value/bias": ">(heads v)",
            _LAYER + "attention/output/dense/kernel": "<(heads v) >embed+",
            _LAYER + "intermediate/dense/kernel": "<embed >mlp",
            _LAYER + "intermediate/dense/bias": ">mlp",
            _LAYER + "output/dense/kernel": "<mlp >embed+",
            _LAYER + "(attention/)?output/dense/bias": ">embed+",
            _LAYER + "(attention/)?output/LayerNorm/(scale|bias)": "embed",
            "(bert/embeddings|cls/predictions/transform)/LayerNorm/(scale|bias)": "embed",
            "cls/predictions/transform/dense/kernel": "<embed >embed",
            "cls/predictions/transform/dense/bias": ">embed",
            "cls/predictions/bias": ">vocab",
        },
        kinds={
            "embed": Residual(norm="layer", pre=False),
            "qk": Dot(rope=None),
            "mlp": Elementwise(config.hidden_act),
        },
        sizes={"heads": config.num_attention_heads},
    )
