"""Subwords: what documents are, that none is on both sides, and that files are made once."""

import json
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets

from experiments.data import documents, subwords, text, text_folder
from experiments.models import gpt

WIKITEXT = pathlib.Path(__file__).parents[3] / "shared" / "data" / "wikitext2"
WORDS = ["the", "river", "of", "<unk>", "runs", "déjà", "vu", "[PAD]", "日本語", "@-@", "\u2028"]
VOCAB = 300


def article(number: int, length: int = 300) -> str:
    """An article as WikiText has it, with a section, and a line of text that is like a title."""
    words = np.random.default_rng(number).choice(WORDS, length)
    body = " ".join(words)
    return f" \n = Article {number} = \n \n {body} \n = no title = \n \n = = Section = = \n \n {body} \n"


def tree(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    """Name -> content and time of every file."""
    files = (each for each in sorted(folder.rglob("*")) if each.is_file())
    return {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in files}


def held_out(content: str, wanted: bool) -> str:
    """The text with a number after it with which its hash puts it into validation, or does not."""
    numbered = (f"{content} {number}" for number in range(1000))
    return next(
        each for each in numbered if text.is_validation(documents.key(each.encode())) == wanted
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    made = tmp_path_factory.mktemp("texts") / "wiki"
    made.mkdir()
    articles = [article(number) for number in range(60)]
    (made / "valid.txt").write_text("".join(articles[:20]), newline="")
    (made / "test.txt").write_text("".join(articles[20:]), newline="")
    (made / "note.txt").write_bytes("\ufeffnot\r\nan\tarticle ".encode())
    (made / "empty.txt").touch()
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(folder: pathlib.Path, cache: pathlib.Path) -> subwords.Subwords:
    return subwords.load(folder, VOCAB, folder=cache)


def stream(ids: subwords.Documents, separator: int) -> np.ndarray:
    return np.concatenate([np.append(each, separator) for each in ids])


def test_every_document_comes_back_as_it_was(
    folder: pathlib.Path, corpus: subwords.Subwords
) -> None:
    train, valid = ([corpus.decode(each) for each in ids] for ids in (corpus.train, corpus.valid))
    found = sorted(train + valid)
    read = documents.load(folder).read()
    assert found == sorted(document.content.decode() for document in read)
    # A file that is cut: an article each. The shorter ones are whole, and a mark is no text.
    articles = [article(number).encode() for number in range(60)]
    whole = b"".join(articles)
    assert (folder / "test.txt").stat().st_size > documents.LARGE
    cuts = [each.decode() for each in documents.cut(whole)]
    assert "".join(cuts).encode() == whole and len(cuts) == 60
    assert all(f"= Article {number} =" in each for number, each in enumerate(cuts))
    assert "not\r\nan\tarticle " in found
    assert not set(train) & set(valid) and train and valid
    for ids in (corpus.train, corpus.valid):
        assert ids.lengths.dtype == np.int64
        assert ids.lengths.tolist() == [len(each) for each in ids]
        assert ids[0].dtype == np.int32 and np.array_equal(ids[-1], ids[len(ids) - 1])
        with pytest.raises(IndexError):
            ids[len(ids)]


@pytest.mark.parametrize(
    ("unit", "begins"),
    [
        ("def f(x):\n    y = x\n\n    return y\n\n\n", "def "),  # paragraphs, not indented ones
        ("a line, no paragraph\n", "a "),
        ("語り得ぬものについては", None),  # neither
    ],
)  # fmt: skip
def test_long_files_are_cut_where_it_disturbs_least(unit: str, begins: str | None) -> None:
    content = (unit * 10_000).encode()
    found = list(documents.cut(content))
    assert b"".join(found) == content
    assert max(map(len, found)) <= documents.LARGE
    assert len(found) > len(content) / documents.LARGE
    for each in found:
        assert each.decode().startswith(begins or "")
    short = content[: documents.LARGE]
    assert list(documents.cut(short)) == [short] and list(documents.cut(b"")) == []


def test_the_standard_library_as_documents() -> None:
    found = documents.load(None)
    assert found.digest == text.load().digest
    assert found.source.startswith("the standard library of Python 3.") and found.licence
    contents = [document.content for document in found.read()]
    files = text.read_files(None).texts
    assert b"".join(contents) == b"".join(files.values())
    assert max(map(len, contents)) <= documents.LARGE
    assert len(files) < len(contents) < 2 * len(files)


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason=f"WikiText-2 is not in {WIKITEXT}")
def test_wikitext_is_known_and_cut_into_its_articles(tmp_path: pathlib.Path) -> None:
    for name in ("valid.txt", "test.txt"):
        shutil.copy(WIKITEXT / name, tmp_path)
    found = documents.load(tmp_path)
    assert "WikiText-2" in found.source and found.licence == "CC BY-SA 3.0"
    # As many articles as its authors state for these two parts.
    assert sum(1 for _ in found.read()) == 60 + 60


def test_the_side_of_a_document_is_its_own(tmp_path: pathlib.Path) -> None:
    def sides() -> dict[bytes, str | None]:
        found = documents.load(tmp_path)
        split = documents.split(found)
        return {each.content: split.part(each) for each in found.read()}

    (tmp_path / "one.txt").write_text("one")
    with pytest.raises(ValueError, match=r"documents \(1\) are for validation, none for training"):
        sides()
    (tmp_path / "two.txt").write_text("two")
    # Neither hash says validation: the lowest is taken, until one does.
    assert not any(text.is_validation(documents.key(each)) for each in sides())
    low = min(sides(), key=documents.key)
    assert [each for each, side in sides().items() if side == "valid"] == [low]
    for number in range(100):
        (tmp_path / f"{number}.txt").write_text(str(number))
    first = sides()
    assert 1 <= sum(side == "valid" for side in first.values()) < 15
    (tmp_path / "0.txt").rename(tmp_path / "z.txt")
    (tmp_path / "another.txt").write_text("one more")
    (tmp_path / "copy.txt").write_text("one")
    again = sides()
    assert {each: again[each] for each in first} == first


def test_the_vocabulary_is_that_of_the_training_documents(tmp_path: pathlib.Path) -> None:
    texts = {"learned": held_out("abracadabra " * 50, False)}
    texts["unseen"] = held_out("simsalabim " * 500, True)
    texts |= {f"more {number}": held_out(article(number, 40), False) for number in range(3)}
    for name, content in texts.items():
        (tmp_path / f"{name}.txt").write_text(content)
    found = subwords.load(tmp_path, 290, folder=tmp_path / ".cache")
    assert len(found.encode(" abracadabra")) == 1
    assert len(found.encode(" simsalabim")) > 7
    assert (len(found.train), len(found.valid)) == (4, 1)


def test_no_text_has_a_special(corpus: subwords.Subwords) -> None:
    assert corpus.specials == {"[PAD]": 0, "[SEP]": 1}
    assert min(each.min() for each in [*corpus.train, *corpus.valid]) >= 2
    for each in (corpus, pickle.loads(pickle.dumps(corpus))):
        ids = each.encode("[PAD] and\x01[SEP]")
        assert ids.min() >= 2 and ids.dtype == np.int32
        assert each.decode(ids) == "[PAD] and\x01[SEP]"
    assert corpus.decode([0, *corpus.encode("a"), 1]) == "[PAD]a[SEP]"
    # All ids are used, so that the head of a model has no entry that is never trained.
    assert corpus.vocab == VOCAB == corpus.tokenizer.get_vocab_size()
    with pytest.raises(ValueError, match="ids from 3 to 300: expected 0 to 299, those of this"):
        corpus.decode([3, 300])


def test_a_window_is_a_pure_function_of_seed_and_step(corpus: subwords.Subwords) -> None:
    whole = stream(corpus.train, 1)
    window = subwords.windows(corpus.train, 1)
    late = window(3, 1000, 8, 700)
    again = subwords.windows(pickle.loads(pickle.dumps(corpus.train)), 1)
    for step in range(3):
        again(3, step, 8, 700)
    assert np.array_equal(again(3, 1000, 8, 700), late)
    assert late.shape == (8, 700) and late.dtype == np.int32
    assert not np.array_equal(window(3, 1001, 8, 700), late)
    assert not np.array_equal(window(4, 1000, 8, 700), late)
    # The places are those of bytes: text.batches, whose own test has golden ones.
    places = text.Corpus(np.arange(whole.size), whole[:0], "", 1, 0, "places")
    for length in (1, 65, int(corpus.train.lengths.max()) + 500):
        expected = text.batches(places, 8, length - 1)(3, 7)
        assert np.array_equal(window(3, 7, 8, length), whole[expected])


class Short:
    """Documents of 0, 1, 2 and 3 ids, from 10 on."""

    lengths = np.arange(4)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> np.ndarray:
        return np.arange(index, dtype=np.int32) + 10


def test_windows_reach_every_place_across_documents() -> None:
    whole = [1, 10, 1, 10, 11, 1, 10, 11, 12, 1]
    window = subwords.windows(Short(), 1)
    drawn = {tuple(row) for step in range(20) for row in window(0, step, 8, 4).tolist()}
    assert drawn == {tuple(whole[start : start + 4]) for start in range(7)}
    assert window(0, 0, 1, 10).tolist() == [whole]
    with pytest.raises(ValueError, match="^10 ids for training, .* needs 11; give more text"):
        window(0, 0, 1, 11)
    assert subwords.valid_windows(Short(), 1, 3, 3).tolist() == [whole[:3], whole[3:6], whole[6:9]]
    assert subwords.valid_windows(Short(), 1, 2, 3).tolist() == [whole[:3], whole[5:8]]
    with pytest.raises(ValueError, match="^10 ids for validation, .* 2 windows of 6 need 12; give"):
        subwords.valid_windows(Short(), 1, 2, 6)


def test_a_gpt_runs_on_subwords(corpus: subwords.Subwords) -> None:
    batch = subwords.batches(corpus, 4, 16)(0, 0)
    shards = subwords.shards(corpus, 2, 4, 16)
    assert batch.shape == (4, 17) and [shard.shape for shard in shards] == [(4, 17)] * 2
    whole = stream(corpus.valid, 1)
    spread = np.arange(8) * whole.size // 8
    assert np.array_equal(np.concatenate(shards), whole[spread[:, None] + np.arange(17)])
    model = gpt.model(gpt.Config(layers=1, width=8, heads=1, window=16, vocab=corpus.vocab))
    params = jax.jit(model.init)(jax.random.key(0))
    nats, count = jax.jit(model.loss, static_argnums=2)(params, batch, None)
    assert abs(nats / count - np.log(VOCAB)) < 0.5
    with pytest.raises(ValueError, match=r"no special '</s>'; there are \['\[PAD\]', '\[SEP\]'\]"):
        subwords.batches(corpus, 4, 16, "</s>")
    with pytest.raises(ValueError, match="ids for training.*needs 10000001"):
        subwords.batches(corpus, 4, 10_000_000)


def test_files_are_made_once(
    folder: pathlib.Path, cache: pathlib.Path, corpus: subwords.Subwords, tmp_path: pathlib.Path
) -> None:
    path = corpus.train.path.parent
    before = tree(path)

    def told(what: str, done: int, of: int | None) -> None:
        assert what == "reading", "made again"

    again = subwords.load(folder, VOCAB, folder=cache, told=told)
    assert tree(path) == before
    assert all(map(np.array_equal, again.train, corpus.train))
    assert subwords.about(again) == subwords.about(corpus)
    # Elsewhere, of a corpus at another place: the same bytes.
    shutil.copytree(folder, tmp_path / "wiki")
    elsewhere = subwords.load(tmp_path / "wiki", VOCAB, folder=tmp_path / "cache")
    contents = {name: content for name, (content, _) in before.items()}
    found = tree(elsewhere.train.path.parent)
    assert {name: content for name, (content, _) in found.items()} == contents
    assert elsewhere.train.path.parent.name == path.name
    # Anything else is another folder.
    (tmp_path / "wiki" / "note.txt").write_text("another note")
    others = [
        subwords.load(folder, VOCAB + 1, folder=cache),
        subwords.load(folder, VOCAB, ("[SEP]", "[PAD]"), folder=cache),
        subwords.load(tmp_path / "wiki", VOCAB, folder=cache),
    ]
    assert len({each.train.path for each in [corpus, *others]}) == 4
    assert others[1].specials == {"[SEP]": 0, "[PAD]": 1}
    assert tree(path) == before


KILLED = """
import os, signal, sys
from experiments.data import subwords

def told(what, done, of):
    if what == "tokens":
        os.kill(os.getpid(), signal.SIGKILL)

subwords.load(sys.argv[1], int(sys.argv[2]), folder=sys.argv[3], told=told)
"""


def test_what_is_not_whole_is_made_again(
    folder: pathlib.Path, corpus: subwords.Subwords, tmp_path: pathlib.Path
) -> None:
    whole = {name: content for name, (content, _) in tree(corpus.train.path.parent).items()}
    command = [sys.executable, "-c", KILLED, str(folder), str(VOCAB), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    [left] = [each for each in tmp_path.iterdir() if each.is_dir()]
    assert left.suffix == ".incomplete" and "meta.json" not in tree(left)
    # And damage from outside: a file lost, one cut short, a description that is no JSON.
    path = tmp_path / corpus.train.path.parent.name
    for damage in (
        lambda: None,
        lambda: (path / "meta.json").write_text("{"),
        lambda: (path / "tokenizer.json").unlink(),
        lambda: (path / "train.array_record").write_bytes(b"short"),
    ):
        damage()
        again = subwords.load(folder, VOCAB, folder=tmp_path)
        assert {name: content for name, (content, _) in tree(path).items()} == whole
        assert np.array_equal(again.train[0], corpus.train[0])
        assert [each for each in tmp_path.iterdir() if each.is_dir()] == [path]


def test_a_file_is_closed_and_opened_again(corpus: subwords.Subwords) -> None:
    first = corpus.train[0]
    reader = corpus.train._reader
    assert reader is not None and reader.is_open()
    corpus.close()
    assert not reader.is_open()
    assert np.array_equal(corpus.train[0], first)


class Repeating(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A test split, of which a quarter is in the training split too; and records without text."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self) -> tensorflow_datasets.core.DatasetInfo:
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict({"text": features.Text()}),
            license="CC0",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict:
        return {"train": self._generate_examples(0, 60), "test": self._generate_examples(55, 75)}

    def _generate_examples(self, start: int, end: int):
        yield 0, {"text": ""}
        for number in range(start, end):
            yield number + 1, {"text": f"record {number} of the river"}


def test_records_of_datasets_are_documents(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    Repeating(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    found = subwords.load("tfds:repeating:text", 262, folder=tmp_path / "cache", data_dir=tmp_path)
    train, valid = ([found.decode(each) for each in ids] for ids in (found.train, found.valid))
    assert train == [f"record {number} of the river" for number in range(55)]
    assert valid == [f"record {number} of the river" for number in range(55, 75)]
    facts = subwords.about(found)
    assert (facts["repeated"], facts["left_out"], facts["licence"]) == (5, 2, "CC0")
    assert facts["source"] == "tfds:repeating:1.0.0:text"
    # The same corpus as bytes has the same digest.
    from experiments.data import tfds

    assert found.digest == tfds.load("repeating", tmp_path).digest
    # A folder of the user's, as the shipped builder prepares it.
    name = text_folder.prepare(folder, "wiki", tmp_path)
    found = subwords.load(name, VOCAB, folder=tmp_path / "cache", data_dir=tmp_path)
    builder = tensorflow_datasets.builder("text_folder/wiki", data_dir=tmp_path)
    records = {
        split: [each["text"].decode() for each in builder.as_data_source(split)]
        for split in ("train", "validation")
    }
    assert [found.decode(each) for each in found.valid] == records["validation"]
    # Articles have the same lines twice, and so stretches may be the same.
    once = [each for each in records["train"] if each not in records["validation"]]
    assert [found.decode(each) for each in found.train] == once
    assert subwords.about(found)["repeated"] == len(records["train"]) - len(once)


@pytest.mark.parametrize(
    ("vocab", "specials", "says"),
    [
        (257, ("[PAD]", "[SEP]"), "vocab=257: there are 256 bytes and 2 specials; give at least 258"),
        (300, ("[PAD]", "[PAD]"), "specials ['[PAD]', '[PAD]']: one is there twice; give each once"),
        (300, ("PAD",), "the special 'PAD' could be a piece of text; give a name of letters and punctuation, as '[PAD]' or '</s>'"),
        (300, ("",), "the special '' could be a piece of text; give a name of letters and punctuation, as '[PAD]' or '</s>'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    folder: pathlib.Path, tmp_path: pathlib.Path, vocab: int, specials: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ValueError) as raised:
        subwords.load(folder, vocab, specials, tmp_path)
    assert str(raised.value) == says
    assert not list(tmp_path.iterdir())


def test_a_corpus_that_does_not_do_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no text: 0 empty files"):
        subwords.load(tmp_path / "empty", folder=tmp_path / "cache")
    (tmp_path / "small").mkdir()
    for name in ("one", "two"):
        (tmp_path / "small" / f"{name}.txt").write_text(f"{name} aa aa")
    with pytest.raises(ValueError) as raised:
        subwords.load(tmp_path / "small", 400, folder=tmp_path / "cache")
    assert str(raised.value) == (
        f"vocab=400: the folder {tmp_path}/small gives 262 ids and no more; give at most 262, or "
        "more text"
    )
    assert not [each for each in (tmp_path / "cache").iterdir() if each.is_dir()]


def test_the_command_prints_a_datasheet(
    folder: pathlib.Path,
    cache: pathlib.Path,
    corpus: subwords.Subwords,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--data", str(folder), "--vocab", str(VOCAB), "--folder", str(cache)]
    monkeypatch.setattr(sys, "argv", ["subwords", *arguments])
    assert subwords.cli() == 0
    told = capsys.readouterr().out
    facts = json.loads(json.dumps(subwords.about(corpus)))
    assert f"sha256: {corpus.digest}\n" in told and facts["sha256"] == corpus.digest
    assert facts["tokens"] == {
        "train": corpus.train.lengths.sum(),
        "valid": corpus.valid.lengths.sum(),
    }
    size = sum(file.stat().st_size for file in folder.iterdir()) - 3  # the byte order mark
    assert sum(facts["bytes"].values()) == size
    rate = facts["tokens"]["train"] / facts["bytes"]["train"]
    assert f"{facts['tokens']['train']:,} tokens, {rate:.3f} tokens per byte" in told
    monkeypatch.setattr(sys, "argv", ["subwords", "--data", str(folder / "nothing")])
    assert subwords.cli() == 2
    assert "nothing does not exist" in capsys.readouterr().err
