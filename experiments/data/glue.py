"""The tasks of GLUE, to fine-tune a BERT on (Wang et al. 2018, arXiv 1804.07461), from TensorFlow
Datasets and without TensorFlow::

    corpus = subwords.load("novels", 8192, ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    task = glue.load("mrpc", corpus, batch_size=32, window=128)
    task.train(0, 3)["tokens"]                          # of seed 0 and step 3: int32 [32, 128]
    task.shards["validation"]                           # batches of the same shape
    task.evaluate(lambda batch: np.argmax(logits(batch), axis=1))   # accuracy and F1

A batch is a dict of arrays: `tokens` and `segments`, int32 [B, T], `[CLS] A [SEP] B [SEP]` filled
up with [PAD], and 1 from B's first token to the last [SEP], else 0; `labels`, int32 [B], or of a
regression float32; `weights`, float32 [B], 1, and 0 for rows that fill up the last batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from experiments.data import tfds
from experiments.data.masked import Batch, Tokens
from experiments.data.subwords import Subwords

Numbers = NDArray[np.number]
Metric = Callable[[Numbers, Numbers], float]
"""Of predictions and labels, [N] both: numbers of classes, or of a regression its values."""
# Apart from what `experiments.data.masked` draws with a seed.
_ORDER = 4


def accuracy(predictions: Numbers, labels: Numbers) -> float:
    """The share of predictions that are right."""
    return float(np.mean(predictions == labels))


def f1(predictions: Numbers, labels: Numbers) -> float:
    """F1 of class 1; 0 where it is neither predicted nor there."""
    found, there = predictions == 1, labels == 1
    return float(2 * np.sum(found & there) / max(1, np.sum(found) + np.sum(there)))


def pearson(predictions: Numbers, labels: Numbers) -> float:
    """Pearson's correlation; 0 where all predictions, or all labels, are the same."""
    if any(np.all(each == each[0]) for each in (predictions, labels)):
        return 0.0
    return float(np.corrcoef(predictions, labels)[0, 1])


def spearman(predictions: Numbers, labels: Numbers) -> float:
    """Spearman's rank correlation, of ties the mean rank; 0 as of `pearson`."""
    return pearson(rankdata(predictions), rankdata(labels))


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy, "f1": f1, "matthews": pearson, "pearson": pearson, "spearman": spearman,
}  # fmt: skip
"""Matthews' correlation of two classes is Pearson's of their numbers."""


class _Row(NamedTuple):
    """What TFDS calls A and B, what the benchmark reports, and validation splits."""

    fields: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)


_TASKS = {
    "cola": _Row(("sentence",), ("matthews",)),
    "sst2": _Row(("sentence",)),
    "mrpc": _Row(("sentence1", "sentence2"), ("accuracy", "f1")),
    "qqp": _Row(("question1", "question2"), ("accuracy", "f1")),
    "stsb": _Row(("sentence1", "sentence2"), ("pearson", "spearman")),
    "mnli": _Row(
        ("premise", "hypothesis"), validation=("validation_matched", "validation_mismatched")
    ),
    "qnli": _Row(("question", "sentence")),
    "rte": _Row(("sentence1", "sentence2")),
    "wnli": _Row(("sentence1", "sentence2")),
}


@dataclass(frozen=True, eq=False)
class Task:
    """A task of GLUE; its test splits, which have no labels, are never read.

    Attributes:
        labels: names of the classes by their numbers; () of a regression.
        train: seed, step -> batch, a pure function: each example once an epoch, in another order
            for each seed and epoch.
        shards: validation split -> batches of the shape of `train`'s, each example once; the rows
            of weight 0 repeat the last one.
        metrics: name -> what the benchmark reports, not in percent.
    """

    labels: tuple[str, ...]
    train: Callable[[int, int], Batch]
    shards: Mapping[str, tuple[Batch, ...]]
    metrics: Mapping[str, Metric]

    def evaluate(self, predict: Callable[[Batch], Numbers]) -> dict[str, dict[str, float]]:
        """Validation split -> metric -> value, over all of its examples at once.

        Args:
            predict: batch -> predictions [B], as a `Metric` takes them; ValueError for others.
        """
        found = {}
        for split, shards in self.shards.items():
            given = np.array([predict(batch) for batch in shards])
            weights, labels = (
                np.array([x[name] for x in shards]) for name in ("weights", "labels")
            )
            if given.shape != labels.shape:
                raise ValueError(
                    f"predictions have shape {given.shape[1:]}, expected {labels.shape[1:]}: one "
                    "number for each example, as the argmax of its logits"
                )
            real = weights > 0
            found[split] = {
                name: of(given[real], labels[real]) for name, of in self.metrics.items()
            }
        return found


def load(
    name: str,
    corpus: Subwords,
    batch_size: int,
    window: int = 128,
    data_dir: Path | str | None = None,
) -> Task:
    """Loads a task; where A and B are too long, the longer one is cut, as in BERT's code.

    All examples become subwords here, at 0.2 ms each: a minute and a half for mnli, the largest.

    Args:
        name: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte or wnli.
        corpus: makes subwords; its specials are [PAD], with id 0, [CLS], [SEP] and any others.
        batch_size: number of examples, B.
        window: tokens of an example with its special ones, T; 8 bytes of memory each.
        data_dir: as of `tfds.load`.

    Raises:
        ValueError: for a task that does not exist or has no training split, specials that are
            missing, too small a batch or window, and as `tfds.load` does.
    """
    if name in ("ax", "mnli_matched", "mnli_mismatched"):
        raise ValueError(
            f"glue/{name} has no training split: it is for models trained on mnli; load 'mnli', "
            "which has both of its validation splits"
        )
    if name not in _TASKS:
        raise ValueError(f"no task {name!r} in GLUE: {[*_TASKS]}{tfds.nearest(name, _TASKS)}")
    fields, metrics, validation = _TASKS[name]
    if corpus.specials.get("[PAD]") != 0 or not {"[CLS]", "[SEP]"} <= corpus.specials.keys():
        raise ValueError(
            f"the special tokens are {dict(corpus.specials)}; expected [PAD], with id 0, [CLS] and "
            "[SEP]: make the subwords with them, [PAD] first"
        )
    if batch_size < 1 or window < 1 + 2 * len(fields):
        raise ValueError(
            f"batch_size={batch_size}, window={window}: expected at least 1, and "
            f"{1 + 2 * len(fields)}, a token of each text with [CLS] and a [SEP] for each"
        )
    builder = tfds.prepared(f"glue/{name}", data_dir)
    there = {*builder.info.splits, *builder.info.features}
    if missing := {"train", *validation, *fields, "label"} - there:
        raise ValueError(
            f"{builder.info.full_name} lacks {sorted(missing)}; it has {sorted(there)}: prepare it "
            "again, by TFDS's own code"
        )
    labels = tuple(getattr(builder.info.features["label"], "names", ()))
    read = functools.partial(_read, builder, fields, bool(labels), corpus, window)
    return Task(
        labels,
        _train(read("train"), batch_size),
        {split: _shards(read(split), batch_size) for split in validation},
        {metric: METRICS[metric] for metric in metrics},
    )


def _read(
    builder: Any, fields: tuple[str, ...], classes: bool, corpus: Subwords, window: int, split: str
) -> Batch:
    """All examples of a split as one batch without weights."""
    count = builder.info.splits[split].num_examples
    tokens, segments = np.zeros((2, count, window), np.int32)
    labels = np.zeros(count, np.int32 if classes else np.float32)
    for row, record in enumerate(tfds.records(builder, split)):
        texts = [corpus.encode(record[field].decode()) for field in fields]
        ids, first = _joined(texts, corpus.specials, window)
        tokens[row, : len(ids)] = ids
        segments[row, first : len(ids)] = 1
        labels[row] = record["label"]
    if bad := int(np.sum(labels < 0)):
        raise ValueError(
            f"{builder.info.full_name}: {bad} of {count} examples of {split!r} have the label -1, "
            "expected in test splits only; prepare it again"
        )
    return {"tokens": tokens, "segments": segments, "labels": labels}


def _joined(texts: list[Tokens], specials: Mapping[str, int], window: int) -> tuple[Tokens, int]:
    """[CLS] A [SEP] B [SEP], or [CLS] A [SEP], and how many tokens come before B."""
    room = window - 1 - len(texts)
    # As if tokens were cut one by one from the longer text, and from B where they are alike.
    second = min(sum(map(len, texts[1:])), max(room - len(texts[0]), room // 2))
    first = min(len(texts[0]), room - second)
    ids = [specials["[CLS]"], *texts[0][:first], specials["[SEP]"]]
    for text in texts[1:]:
        ids += [*text[:second], specials["[SEP]"]]
    return np.array(ids, np.int32), first + 2


def _train(examples: Batch, batch_size: int) -> Callable[[int, int], Batch]:
    count = len(examples["labels"])

    @functools.lru_cache(maxsize=2)
    def order(seed: int, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed, epoch, _ORDER)).permutation(count)

    def batch(seed: int, step: int) -> Batch:
        places = range(step * batch_size, (step + 1) * batch_size)
        rows = [order(seed, place // count)[place % count] for place in places]
        return _batch(examples, rows, batch_size)

    return batch


def _shards(examples: Batch, batch_size: int) -> tuple[Batch, ...]:
    count = len(examples["labels"])
    return tuple(
        _batch(examples, np.minimum(range(start, start + batch_size), count - 1), count - start)
        for start in range(0, count, batch_size)
    )


def _batch(examples: Batch, rows: Sequence[int] | NDArray[np.integer], real: int) -> Batch:
    """These rows of the examples, all from the number `real` on with weight 0."""
    weights = (np.arange(len(rows)) < real).astype(np.float32)
    return {name: column[rows] for name, column in examples.items()} | {"weights": weights}
