"""TensorFlow Datasets, prepared offline by real builders and read without TensorFlow."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets

from experiments import data, quickstart
from experiments.data import text, text_folder, tfds

WIKITEXT = pathlib.Path(__file__).parents[3] / "shared" / "data" / "wikitext2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Real English text, or where that is absent, lines of words; a file of another language."""
    made = tmp_path_factory.mktemp("texts")
    if WIKITEXT.is_dir():
        content = (WIKITEXT / "valid.txt").read_bytes()[:200_000].decode(errors="ignore")
    else:
        random = np.random.default_rng(0)
        words = np.array(["the", "river", "of", "time", "runs", "dry"])
        content = "\n".join(" ".join(random.choice(words, 12)) for _ in range(3000))
    (made / "a.txt").write_text(content, encoding="utf-8")
    # One long line without a newline: it is cut between characters.
    (made / "b.txt").write_text("語り得ぬものについては" * 2000, encoding="utf-8")
    (made / "empty.txt").write_text("")
    return made


@pytest.fixture(scope="module")
def prepared(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("datasets")
    assert text_folder.prepare(folder, "novels", root) == "tfds:text_folder/novels"
    return root


class Pairs(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Two fields of text, one of numbers, and nothing but a training split."""

    VERSION = tensorflow_datasets.core.Version("1.2.0")
    SPLITS = ("train",)
    FIELDS = ("title", "body")

    def _info(self) -> tensorflow_datasets.core.DatasetInfo:
        features = tensorflow_datasets.features
        texts = {name: features.Text() for name in self.FIELDS}
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(texts | {"n": features.Scalar(np.int32)}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict:
        return dict.fromkeys(self.SPLITS, self._generate_examples())

    def _generate_examples(self):
        for n in range(100):
            texts = {name: f"{name} {n} " + "x" * n for name in self.FIELDS}
            yield n, texts | {"n": n}


class Single(Pairs):
    """One field of text that is not named text, and records without text."""

    FIELDS = ("words",)

    def _generate_examples(self):
        for n, record in super()._generate_examples():
            yield n, record | ({"words": ""} if n % 2 else {})


class Unsplit(Pairs):
    """No training split."""

    SPLITS = ("tran",)


class Strings(Pairs):
    """Strings not declared as text, one of them not always UTF-8; and more splits than are read."""

    SPLITS = ("extra", "test", "train", "validation")

    def _info(self) -> tensorflow_datasets.core.DatasetInfo:
        features = {"words": np.str_, "raw": np.object_, "many": {"words": np.str_}}
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=tensorflow_datasets.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict:
        return {split: self._of(split) for split in self.SPLITS}

    def _of(self, split: str):
        for n in range(100):
            raw = b"\xff" if n % 4 else b"text"
            yield n, {"words": f"{split} {n}", "raw": raw, "many": {"words": "a"}}


class Held(Strings):
    """No validation split."""

    SPLITS = ("extra", "test", "train")


class Pictures(Pairs):
    """Cannot be prepared without TensorFlow."""

    def _info(self) -> tensorflow_datasets.core.DatasetInfo:
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {"picture": features.Image(shape=(2, 2, 3)), "text": features.Text()}
            ),
        )

    def _generate_examples(self):
        yield 0, {"picture": np.zeros((2, 2, 3), np.uint8), "text": "caption"}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("others")
    for builder in (Pairs, Single, Unsplit, Strings, Held):
        builder(data_dir=root, file_format="array_record").download_and_prepare()
    Pairs(data_dir=root / "parquet", file_format="parquet").download_and_prepare()
    return root


def test_a_folder_comes_back_whole_and_in_order(
    folder: pathlib.Path, prepared: pathlib.Path
) -> None:
    corpus = tfds.load("text_folder/novels", prepared)
    files = text.read_files(folder).texts
    whole = b"\n".join(files.values())
    train, valid = corpus.train.tobytes(), corpus.valid.tobytes()
    source = tensorflow_datasets.builder("text_folder/novels", data_dir=prepared)
    records = {
        record["stretch"]: record["text"]
        for split in source.as_data_source().values()
        for record in split
    }
    # Cut at the ends of lines, or within a long line: nothing but newlines is lost or added.
    joined = b"\n".join(records[number] for number in sorted(records))
    assert joined.replace(b"\n", b"") == whole.replace(b"\n", b"")
    assert len(records) == corpus.files > 100
    assert all(len(record) <= len(whole) // 100 for record in records.values())
    assert joined.startswith(train[:1000])
    # From everywhere: both files are in both parts.
    assert "語".encode() in valid and "語".encode() in train
    assert 0.03 < len(valid) / len(whole) < 0.08
    assert text.batches(corpus, 4, 16)(0, 0).shape == (4, 17)
    assert text.shards(corpus, 2, 4, 16)[0].dtype == np.uint8


def test_the_digest_is_that_of_the_records(
    folder: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = tfds.load("text_folder/novels", prepared)
    text_folder.prepare(folder, "novels", tmp_path)
    assert tfds.load("text_folder/novels", tmp_path).digest == first.digest
    (tmp_path / "more.txt").write_text("line\n" * 1000)
    text_folder.prepare(tmp_path / "more.txt", "more", tmp_path)
    assert tfds.load("text_folder/more", tmp_path).digest != first.digest
    # The same name and version, and one letter that differs.
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed / "texts")
    with (changed / "texts" / "a.txt").open("r+") as file:
        file.write("#")
    text_folder.prepare(changed / "texts", "novels", changed)
    assert tfds.load("text_folder/novels", changed).digest != first.digest


def test_another_text_under_the_same_name_is_refused(
    folder: pathlib.Path, prepared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert text_folder.prepare(folder, "novels", prepared)  # as it is: no work
    (tmp_path / "a.txt").write_text("other\n" * 500)
    with pytest.raises(ValueError, match="other text under the name 'novels'"):
        text_folder.prepare(tmp_path, "novels", prepared)
    for name in ("a/b", "1.0.0", "1984"):  # the last two would be taken for versions
        with pytest.raises(ValueError, match="letters, digits and underscores"):
            text_folder.prepare(tmp_path, name, prepared)


def test_text_that_cannot_be_prepared(tmp_path: pathlib.Path) -> None:
    file, root = tmp_path / "a.txt", tmp_path / "root"
    file.write_bytes("déjà vu\n".encode("latin-1") * 100)
    with pytest.raises(ValueError, match=r"a\.txt has no text: .*1 that are not.*UTF-8.*encoding"):
        text_folder.prepare(file, "a", root)
    file.write_text("語り得ぬもの")  # 18 bytes, six characters
    with pytest.raises(ValueError, match="too little text to split; give more"):
        text_folder.prepare(file, "a", root)
    assert not root.exists()
    file.write_text("line\n" * 100)
    with pytest.raises(ValueError, match="cannot be written.*another --data-dir"):
        text_folder.prepare(file, "a", file)


def test_a_file_whose_name_is_not_unicode(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    pathlib.Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("a\n" * 500)
    text_folder.prepare(folder, "odd", tmp_path)
    corpus = tfds.load("text_folder/odd", tmp_path)
    assert corpus.train.tobytes().startswith(b"a\na\n")


def test_the_commands(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder to a corpus in processes of their own, of which none imports TensorFlow."""
    made = subprocess.run(
        [sys.executable, "-m", "experiments.data.text_folder", str(folder)]
        + ["--data-dir", str(tmp_path), "--name", "b"],
        capture_output=True,
        text=True,
        check=True,
    )
    flags = made.stdout.splitlines()[-1].split("quickstart ")[1].split()
    assert flags == ["--data", "tfds:text_folder/b", "--data-dir", str(tmp_path)]
    # An older dataset is known too, which TFDS's own import of all does not reach here.
    code = (
        "import pathlib, sys; from experiments import quickstart; from experiments.data import "
        "tfds; tfds._check_known(tfds.parse('wiki40b/en'), pathlib.Path('nowhere')); "
        f"print(quickstart.load(quickstart.Config(data={flags[1]!r}, "
        f"data_dir={flags[3]!r})).digest); assert 'tensorflow' not in sys.modules"
    )
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    config = quickstart.Config(data=flags[1], data_dir=tmp_path)
    assert read.stdout.split()[-1] == quickstart.load(config).digest
    monkeypatch.setattr(sys, "argv", ["text_folder", str(tmp_path / "nothing")])
    assert text_folder.cli() == 2


def test_only_a_training_split_is_cut(others: pathlib.Path) -> None:
    corpus = tfds.load("pairs:1.2.0:body", others)
    records = [f"body {n} " + "x" * n for n in range(100)]
    train, valid = text.split(np.frombuffer("\n".join(records).encode(), np.uint8))
    np.testing.assert_array_equal(corpus.train, train)
    np.testing.assert_array_equal(corpus.valid, valid)
    assert (corpus.files, corpus.skipped) == (100, 0)
    assert corpus.digest != tfds.load("pairs:title", others).digest


def test_the_only_text_is_found_and_empty_records_are_left_out(
    others: pathlib.Path,
) -> None:
    corpus = tfds.load("single", others)
    assert (corpus.files, corpus.skipped) == (50, 50)
    assert corpus.train.tobytes().startswith(b"words 0 \nwords 2 xx\n")


def test_validation_comes_before_test_and_nothing_else_is_read(
    others: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(others, tmp_path, dirs_exist_ok=True)
    unread = ["strings/**/*-extra.*", "strings/**/*-test.*", "held/**/*-extra.*"]
    for file in [file for pattern in unread for file in tmp_path.glob(pattern)]:
        file.unlink()
    for name, second in (("strings", "validation"), ("held", "test")):
        corpus = tfds.load(f"{name}:words", tmp_path)
        for part, split in ((corpus.train, "train"), (corpus.valid, second)):
            assert part.tobytes().decode().split("\n") == [f"{split} {n}" for n in range(100)]
        assert (corpus.files, corpus.skipped) == (200, 0)
        # Where it came from is also what reads it again.
        assert corpus.origin == f"tfds:{name}:1.2.0:words"
        again = tfds.load(corpus.origin.removeprefix("tfds:"), tmp_path)
        assert again.digest == corpus.digest


def test_records_that_are_not_text_are_left_out(others: pathlib.Path) -> None:
    corpus = tfds.load("strings:raw", others)
    assert (corpus.files, corpus.skipped) == (50, 150)
    assert corpus.train.tobytes() == b"\n".join([b"text"] * 25)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("text_foldr", "no dataset 'text_foldr'.*did you mean 'text_folder'"),
        ("ag_news_subst", "did you mean 'ag_news_subset'"),
        ("text_folder", r"several configs; say which.*\['novels'\]"),
        ("text_folder/novel", "no config 'novel'.*did you mean 'novels'"),
        ("text_folder/novels:2.0.0", r"no version 2.0.0; it has \['1.0.0'\]"),
        ("text_folder/novels:txt", "no field 'txt'.*did you mean 'text'"),
        ("text_folder/novels:stretch", "is Scalar, not text"),
        ("text_folder/novels:text:more", r"expected tfds:NAME\[/CONFIG\]"),
        ("", "is no dataset"),
        ("imdb_reviews/plain_txt", "no config 'plain_txt'.*did you mean 'plain_text'"),
        # The version is that of the config, and right; no download is begun for the field.
        ("imdb_reviews/plain_text:1.0.0:txt", r"no field 'txt'; .*\['text'\]"),
        ("imdb_reviews:1.0.1", r"no version 1.0.1; it has \['1.0.0'\]; did you mean"),
        ("mnist", r"no fields of text; its fields are \['image', 'label'\]"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_named_with_the_nearest(
    prepared: pathlib.Path, name: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        tfds.load(name, prepared)


@pytest.mark.parametrize(
    ("name", "root", "says"),
    [
        ("pairs", "", "2 fields of text: body, title; say which"),
        ("strings", "", "2 fields of text: raw, words; say which"),
        ("strings:many", "", "is FeaturesDict, not text"),
        ("unsplit:body", "", r"no split 'train'; it has \['tran'\]; did you mean 'tran'"),
        ("pairs:body", "parquet", "as parquet, which cannot be read safely"),
    ],
)  # fmt: skip
def test_datasets_of_another_make(others: pathlib.Path, name: str, root: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tfds.load(name, others / root)


def test_what_cannot_be_prepared_says_what_would_help(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    # The one thing that is not real: the network, which tests must not use.
    builder = tensorflow_datasets.builder_cls("ag_news_subset")
    monkeypatch.setattr(builder, "_split_generators", offline)
    with pytest.raises(ValueError, match="OSError: no network") as raised:
        tfds.load("ag_news_subset:title", tmp_path)
    assert "--data-dir" in str(raised.value)
    # The command that it gives is one that TFDS understands.
    command = str(raised.value).partition("python -c ")[2].strip('"')
    compile(command, "remedy", "exec")
    name = re.search(r"builder\('(.+?)'", command)[1]
    again = tensorflow_datasets.builder(name, data_dir=tmp_path)
    assert again.info.full_name == "ag_news_subset/1.0.0"


def test_what_needs_another_package_says_which(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match="prepared here: .*tensorflow.*--data-dir"):
        tfds.load("pictures", tmp_path)

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'pandas'")

    monkeypatch.setattr(tensorflow_datasets, "builder_cls", missing)
    with pytest.raises(ValueError, match="code of dices.*'pandas'.*install it"):
        tfds.load("dices", tmp_path)


def test_without_tensorflow_datasets_the_command_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.delitem(sys.modules, "experiments.data.tfds")
    monkeypatch.delattr(data, "tfds")
    monkeypatch.setattr(sys, "argv", ["quickstart", "--data", "tfds:pairs:body"])
    assert quickstart.cli() == 2
    assert "pip install 'lagjax[experiments]'" in capsys.readouterr().err


def test_lost_records_are_noticed(others: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tensorflow_datasets.builder("pairs", data_dir=others)
    real = builder.info.splits["train"].num_examples
    monkeypatch.setattr(type(builder.info.splits["train"]), "num_examples", real + 1)
    with pytest.raises(ValueError, match="holds 100 records, its description says 101"):
        list(tfds.records(builder, "train"))
