"""GLUE as TFDS's own code describes it, prepared offline with a few examples of ours."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow_datasets
from scipy import stats
from tensorflow_datasets.text import glue as published

from experiments.data import glue, masked, subwords

SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
PAD, CLS, SEP, _ = range(4)
COUNT = 10
MATCHED, MISMATCHED = "validation_matched", "validation_mismatched"
TASKS = {
    "cola": (["sentence"], ["unacceptable", "acceptable"], ["matthews"]),
    "sst2": (["sentence"], ["negative", "positive"], ["accuracy"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"], ["accuracy", "f1"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"], ["accuracy", "f1"]),
    "stsb": (["sentence1", "sentence2"], [], ["pearson", "spearman"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], ["accuracy"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], ["accuracy"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], ["accuracy"]),
    "wnli": (["sentence1", "sentence2"], ["not_entailment", "entailment"], ["accuracy"]),
}
"""Fields and classes as TFDS's code has them, metrics as the benchmark reports them."""

Example = tuple[tuple[str, ...], float]


def example(name: str, split: str, number: int) -> Example:
    """Texts of all lengths, which name themselves and a special token, and a label."""
    fields, classes, _ = TASKS[name]
    lengths = (number * 7 % 10, number * 3 % 10)
    texts = tuple(
        f"{split} {field} {number} [SEP] déjà" + " x" * length
        for field, length in zip(fields, lengths)
    )
    return texts, number % len(classes) if classes else number / 2


def validation(name: str) -> list[str]:
    return [MATCHED, MISMATCHED] if name == "mnli" else ["validation"]


class Glue(published.Glue, skip_registration=True):  # type: ignore[call-arg]
    """TFDS's own name, configs, version and features."""

    LEFT_OUT: str | None = None
    UNLABELLED: tuple[str, ...] = ("test", "test_matched", "test_mismatched")

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[object]]:
        tests = [split.replace("validation", "test") for split in self.validation]
        splits = ["train", *self.validation, *tests]
        return {split: self._examples(split) for split in splits if split != self.LEFT_OUT}

    @property
    def validation(self) -> list[str]:
        return validation(self.builder_config.name)

    def _examples(self, split: str) -> Iterator[tuple[int, dict[str, object]]]:
        name = self.builder_config.name
        for number in range(COUNT):
            texts, label = example(name, split, number)
            label = -1 if split in self.UNLABELLED else label
            yield number, dict(zip(TASKS[name][0], texts)) | {"label": label, "idx": number}


def prepare(task: str, root: pathlib.Path, form: str = "array_record") -> None:
    Glue(config=task, data_dir=root, file_format=form).download_and_prepare()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("datasets")
    for task in TASKS:
        prepare(task, made)
    return made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> subwords.Subwords:
    made = tmp_path_factory.mktemp("texts")
    for number in range(30):
        (made / f"{number}.txt").write_text(f"{number} sentence {number} x x x x x")
    return subwords.load(made, 270, SPECIALS, tmp_path_factory.mktemp("cache"))


def examples(corpus: subwords.Subwords, name: str, batch: masked.Batch) -> list[Example]:
    """What a batch's rows of weight 1 say, each part in its place."""
    found = []
    for tokens, segments, label, weight in zip(
        *(batch[key] for key in ("tokens", "segments", "labels", "weights"))
    ):
        ends = np.flatnonzero(tokens == SEP)
        assert len(ends) == len(TASKS[name][0])
        assert tokens[0] == CLS and not tokens[ends[-1] + 1 :].any()
        expected = np.zeros(len(tokens))
        expected[ends[0] + 1 : ends[-1] + 1] = 1
        np.testing.assert_array_equal(segments, expected)
        starts = [0, *ends[:-1]]
        texts = tuple(corpus.decode(tokens[a + 1 : b]) for a, b in zip(starts, ends))
        assert weight in (0, 1)
        found += [(texts, label.item())] * int(weight)
    return found


@pytest.mark.parametrize("name", TASKS)
def test_a_task_comes_back_whole(root: pathlib.Path, corpus: subwords.Subwords, name: str) -> None:
    _, classes, metrics = TASKS[name]
    task = glue.load(name, corpus, 4, 128, root)
    assert task.labels == tuple(classes)
    assert list(task.metrics) == metrics
    assert list(task.shards) == validation(name)
    for split, shards in task.shards.items():
        found = [each for batch in shards for each in examples(corpus, name, batch)]
        assert sorted(found) == sorted(example(name, split, n) for n in range(COUNT))
        assert [batch["weights"].sum() for batch in shards] == [4, 4, 2]
    # Two epochs, of which the first ends within a batch.
    batches = [task.train(0, step) for step in range(5)]
    found = [each for batch in batches for each in examples(corpus, name, batch)]
    expected = sorted(example(name, "train", n) for n in range(COUNT))
    assert sorted(found[:COUNT]) == sorted(found[COUNT:]) == expected
    assert found[:COUNT] != found[COUNT:]
    label = "float32" if name == "stsb" else "int32"
    for batch in (*batches, *(x for shards in task.shards.values() for x in shards)):
        assert {key: (x.shape, x.dtype.name) for key, x in batch.items()} == {
            "tokens": ((4, 128), "int32"),
            "segments": ((4, 128), "int32"),
            "labels": ((4,), label),
            "weights": ((4,), "float32"),
        }


def test_batches_are_pure_functions_of_seed_and_step(
    root: pathlib.Path, corpus: subwords.Subwords
) -> None:
    keys = [(seed, step) for seed in range(3) for step in range(6)]

    def made(keys: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        task = glue.load("mrpc", corpus, 4, 64, root)
        np.random.seed(3)  # A global generator must not matter.
        return {key: task.train(*key)["tokens"].tobytes() for key in keys}

    one = made(keys)
    assert one == made(keys[::-1])
    assert len(set(one.values())) == len(keys)


def test_a_batch_may_have_more_examples_than_there_are(
    root: pathlib.Path, corpus: subwords.Subwords
) -> None:
    task = glue.load("rte", corpus, 32, 64, root)
    assert task.train(0, 1)["weights"].sum() == 32
    (shard,) = task.shards["validation"]
    assert shard["weights"].tolist() == [1] * COUNT + [0] * 22
    assert (shard["tokens"][COUNT:] == shard["tokens"][COUNT - 1]).all()


def published_cut(a: list[int], b: list[int], room: int) -> None:
    """`_truncate_seq_pair` of google-research/bert's run_classifier.py."""
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()


@pytest.mark.parametrize("window", [5, 6, 40, 41, 65])
def test_the_longer_text_is_cut(root: pathlib.Path, corpus: subwords.Subwords, window: int) -> None:
    expected, cut = [], set()
    for number in range(COUNT):
        a, b = (corpus.encode(each).tolist() for each in example("mrpc", "validation", number)[0])
        lengths = len(a), len(b)
        published_cut(a, b, window - 3)
        cut.add((len(a) < lengths[0], len(b) < lengths[1]))
        row = [CLS, *a, SEP, *b, SEP]
        expected.append(row + [PAD] * (window - len(row)))
    # In the widest window every case, in the others both are cut.
    assert cut == ({(True, True)} if window < 65 else {(x, y) for x in (0, 1) for y in (0, 1)})
    shards = glue.load("mrpc", corpus, 5, window, root).shards["validation"]
    found = np.concatenate([batch["tokens"] for batch in shards]).tolist()
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("window", [3, 20])
def test_one_text_is_cut_at_the_window(
    root: pathlib.Path, corpus: subwords.Subwords, window: int
) -> None:
    (shard,) = glue.load("cola", corpus, COUNT, window, root).shards["validation"]
    texts = (corpus.encode(example("cola", "validation", n)[0][0]) for n in range(COUNT))
    expected = sorted([CLS, *ids[: window - 2], SEP] for ids in texts)
    assert sorted(shard["tokens"].tolist()) == expected
    assert not shard["segments"].any()


def test_test_splits_are_never_read(
    root: pathlib.Path, corpus: subwords.Subwords, tmp_path: pathlib.Path
) -> None:
    for name in ("mrpc", "mnli"):
        shutil.copytree(root / "glue" / name, tmp_path / "glue" / name)
    files = list(tmp_path.rglob("*-test*"))
    assert len(files) >= 3
    for file in files:
        file.unlink()
    assert glue.load("mrpc", corpus, 4, 64, tmp_path).shards.keys() == {"validation"}
    assert glue.load("mnli", corpus, 4, 64, tmp_path).shards.keys() == {MATCHED, MISMATCHED}


def test_metrics() -> None:
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    given = np.array([1, 1, 1, 0, 0, 1, 0, 0])
    # 3 true and 1 false positives, 2 true and 2 false negatives.
    assert glue.METRICS["accuracy"](given, labels) == 5 / 8
    assert glue.METRICS["f1"](given, labels) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    expected = (3 * 2 - 1 * 2) / np.sqrt((3 + 1) * (3 + 2) * (2 + 1) * (2 + 2))
    assert glue.METRICS["matthews"](given, labels) == pytest.approx(expected)
    random = np.random.default_rng(0)
    scores = random.integers(0, 6, 50).astype(np.float32)
    predicted = np.round(scores + random.normal(size=50), 0).astype(np.float32)
    for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        found = glue.METRICS[name](predicted, scores)
        assert found == pytest.approx(of(predicted, scores).statistic, abs=1e-6)
    # A model that says the same of all.
    for name in ("matthews", "pearson", "spearman"):
        assert glue.METRICS[name](np.full(50, np.float32(0.1)), scores) == 0
    assert glue.METRICS["f1"](np.zeros(8), np.zeros(8)) == 0


def test_evaluation_counts_each_example_once(root: pathlib.Path, corpus: subwords.Subwords) -> None:
    task = glue.load("mrpc", corpus, 4, 64, root)
    shards = task.shards["validation"]
    right = {
        id(batch): np.where(batch["weights"] > 0, batch["labels"], 1 - batch["labels"])
        for batch in shards
    }
    assert task.evaluate(lambda x: right[id(x)]) == {"validation": {"accuracy": 1, "f1": 1}}
    # Half of the labels are 1; of F1's shares, the mean of two shards would be another.
    found = task.evaluate(lambda x: np.ones(4, int))
    assert found == {"validation": {"accuracy": 0.5, "f1": pytest.approx(2 / 3)}}
    with pytest.raises(ValueError, match=r"shape \(4, 2\), expected \(4,\): .*argmax"):
        task.evaluate(lambda x: np.zeros((4, 2)))
    mnli = glue.load("mnli", corpus, 4, 64, root)
    found = mnli.evaluate(lambda x: np.zeros(4, int))
    assert found == {MATCHED: {"accuracy": 0.4}, MISMATCHED: {"accuracy": 0.4}}


@pytest.mark.parametrize(
    ("name", "sizes", "says"),
    [
        ("ax", (4, 64), "glue/ax has no training split: .*load 'mnli'"),
        ("mnli_matched", (4, 64), "glue/mnli_matched has no training split: .*load 'mnli'"),
        ("mrcp", (4, 64), r"no task 'mrcp' in GLUE: \['cola', .*did you mean 'mrpc'"),
        ("mrpc", (0, 64), "batch_size=0, window=64: expected at least 1"),
        ("mrpc", (4, 4), "window=4: expected at least 1, and 5,"),
        ("cola", (4, 2), "window=2: expected at least 1, and 3,"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_named_with_its_remedy(
    root: pathlib.Path, corpus: subwords.Subwords, name: str, sizes: tuple[int, int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        glue.load(name, corpus, *sizes, root)


def test_specials_are_asked_for(root: pathlib.Path, corpus: subwords.Subwords) -> None:
    for specials in ({"[PAD]": 0, "[SEP]": 1}, {"[CLS]": 0, "[SEP]": 1, "[PAD]": 2}):
        other = dataclasses.replace(corpus, specials=specials)
        with pytest.raises(ValueError, match=r"expected \[PAD\], with id 0, \[CLS\] and \[SEP\]"):
            glue.load("mrpc", other, 4, 64, root)


def test_data_of_another_make(
    corpus: subwords.Subwords, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("mrpc", tmp_path / "parquet", "parquet")
    for folder, name, value in (
        ("split", "LEFT_OUT", "validation"),
        ("label", "UNLABELLED", ("train",)),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(Glue, name, value)
            prepare("mrpc", tmp_path / folder)
    for folder, says in (
        ("parquet", "glue/mrpc/2.0.0 is prepared in .* as parquet"),
        # The test split is there.
        ("split", r"glue/mrpc/2.0.0 lacks \['validation'\]; it has .*'test'.*prepare it again"),
        ("label", "10 of 10 examples of 'train' have the label -1, .*prepare it again"),
    ):
        with pytest.raises(ValueError, match=says):
            glue.load("mrpc", corpus, 4, 64, tmp_path / folder)


def test_what_cannot_be_prepared_says_what_would_help(
    corpus: subwords.Subwords, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> None:
        raise OSError("no network")

    # The one thing that is not real: the network, which tests must not use.
    monkeypatch.setattr(tensorflow_datasets.core.download.DownloadManager, "download", offline)
    with pytest.raises(ValueError, match="OSError: no network") as raised:
        glue.load("mrpc", corpus, 4, 64, tmp_path)
    assert "builder('glue/mrpc:2.0.0', data_dir='datasets')" in str(raised.value)
