"""Corpora: what is read, how it is split, and what the probe relies on in batches and shards."""

import bz2
import codecs
import gzip
import lzma
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from experiments.data import text

PANGRAMS = {
    "ελληνικά": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ",
    "日本語": "いろはにほへと ちりぬるを わかよたれそ。",
    "עברית": "דג סקרן שט בים מאוכזב ולפתע מצא חברה. ",
}


def corpus_of(folder: Path, content: bytes) -> text.Corpus:
    """The corpus of one file with this content."""
    file = folder / "text.txt"
    file.write_bytes(content)
    return text.load(file)


def positions(n_train: int, n_valid: int) -> text.Corpus:
    """A corpus whose tokens are their own positions, so that a window shows where it was taken."""
    return text.Corpus(np.arange(n_train), np.arange(n_valid), "", 1, 0, "positions")


@pytest.fixture(scope="module")
def library() -> text.Corpus:
    return text.load()


def test_the_standard_library_is_a_corpus_of_its_own(library: text.Corpus) -> None:
    size = library.train.size + library.valid.size
    assert 5e6 < size < 30e6
    assert 0.03 < library.valid.size / size < 0.07
    assert library.train.dtype == library.valid.dtype == np.uint8
    assert sysconfig.get_path("stdlib") in library.origin
    assert text.load().digest == library.digest


def test_the_standard_library_comes_without_tests_and_packages() -> None:
    texts = text.read_files(None).texts
    names = list(texts)
    assert names == sorted(names)
    assert {"abc.py", "json/decoder.py", "zoneinfo/__init__.py"} <= set(names)
    assert all(name.endswith(".py") for name in names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idlelib", "lib2to3", "turtledemo"}
    assert not folders & {"site-packages", "dist-packages", "__pycache__"}
    assert not any("_sysconfigdata" in name or "config-" in name for name in names)


def test_an_interpreter_without_sources_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    with pytest.raises(ValueError, match="cannot be read.*give another path"):
        text.load()
    (tmp_path / "stdlib").mkdir()
    with pytest.raises(ValueError, match="standard library.*no text.*give a file"):
        text.load()


TEXT = "déjà vu, " * 100
STORED = {
    "a.txt": TEXT.encode(),
    "marked.txt": TEXT.encode("utf-8-sig"),
    "wide.txt": TEXT.encode("utf-16"),
    "wider.txt": TEXT.encode("utf-32"),
    "swapped.txt": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "a.txt.gz": gzip.compress(TEXT.encode()),
    "a.txt.XZ": lzma.compress(TEXT.encode("utf-16")),
    "a.bz2": bz2.compress(TEXT.encode()),
}


@pytest.mark.parametrize("name", STORED)
def test_text_is_read_however_it_is_stored(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(STORED[name])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(STORED[name])
    for path in (tmp_path / name, tmp_path / "folder"):
        found = text.read_files(path)
        assert b"".join(found.texts.values()).decode() == TEXT and not found.left_out


def test_another_encoding_is_read_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(ValueError, match="no text: 0 empty files, and 1 .*the encoding"):
        text.load(tmp_path / "latin.txt")
    (tmp_path / "note.txt").write_text("ü", encoding="utf-8")
    left_out = text.load(tmp_path)
    assert left_out.left_out == ("latin.txt",)
    assert left_out.summary().endswith("not UTF-8 text: 1 (latin.txt)")
    found = text.read_files(tmp_path, "latin-1")
    assert b"".join(found.texts.values()).decode() == TEXT + "ü" and not found.left_out
    with pytest.raises(ValueError, match="encoding 'latin-3000' is none"):
        text.load(tmp_path, "latin-3000")


def test_a_damaged_archive_is_left_out(tmp_path: Path) -> None:
    for name in ("a.txt.gz", "a.txt.XZ", "a.bz2"):
        (tmp_path / name).write_bytes(STORED[name][:-9])
    (tmp_path / "b.txt").write_text("text")
    assert text.read_files(tmp_path).left_out == ("a.bz2", "a.txt.XZ", "a.txt.gz")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one.txt").write_text("one")
    (tmp_path / "books" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "books" / "round").symlink_to(tmp_path / "books")
    assert text.read_files(tmp_path / "books").texts == {"linked/one.txt": b"one"}


def test_a_folder_is_its_text_files_sorted_by_relative_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.txt").write_text("second")
    (tmp_path / "b.txt").write_text("first.")  # "." comes before "/"
    (tmp_path / "c.md").write_text("third.")
    (tmp_path / ".hidden").write_text("not")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("this")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\xff")
    (tmp_path / "table.bin").write_bytes(b"text\0until a NUL byte")
    found = text.read_files(tmp_path)
    texts, skipped = found.texts, len(found.left_out)
    assert b"".join(texts.values()) == b"first.secondthird."
    assert skipped == 2
    corpus = text.load(tmp_path)
    assert (corpus.files, corpus.skipped) == (3, 2)


@pytest.mark.parametrize("language", PANGRAMS)
def test_any_language_is_its_bytes(tmp_path: Path, language: str) -> None:
    content = PANGRAMS[language] * 100
    (tmp_path / f"{language}.txt").write_text(content, encoding="utf-8")
    corpus = text.load(tmp_path)
    size = len(content.encode())
    assert corpus.train.size + corpus.valid.size == size > len(content)
    assert corpus.skipped == 0
    assert text.batches(corpus, 2, 16)(0, 0).shape == (2, 17)


def test_the_digest_is_of_names_and_content_only(tmp_path: Path) -> None:
    def digest(folder: str, files: dict[str, str], mtime: int = 0) -> str:
        for name, content in files.items():
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            os.utime(file, (mtime, mtime))
        return text.load(tmp_path / folder).digest

    files = {"a.txt": "one", "b/c.txt": "two"}
    first = digest("first", files)
    assert digest("elsewhere/again", files, mtime=10**9) == first
    others = [
        {"a.txt": "one", "b/c.txt": "twO"},
        {"a.txt": "one", "b/d.txt": "two"},
        {"a.txt": "onet", "b/c.txt": "wo"},
        {"a.txt": "one"},
    ]
    digests = {digest(f"other {i}", other) for i, other in enumerate(others)}
    assert len(digests | {first}) == 1 + len(others)


@pytest.mark.parametrize("n_bytes", [170, 1000, 20_000, 300_000, 12_000_000])
def test_the_split_shares_nothing_loses_nothing_and_takes_from_everywhere(
    n_bytes: int,
) -> None:
    train, valid = text.split(np.arange(n_bytes))
    seen = np.bincount(np.concatenate([train, valid]), minlength=n_bytes)
    assert (seen == 1).all()
    assert 0.03 < valid.size / n_bytes < 0.07
    blocks = np.split(valid, np.flatnonzero(np.diff(valid) != 1) + 1)
    assert len(blocks) >= 8
    assert max(map(len, blocks)) <= text.BLOCK
    begins = np.array([block[0] for block in blocks]) / n_bytes
    assert begins[0] < 0.1 and begins[-1] > 0.85 and np.diff(begins).max() < 0.15


def test_the_bytes_of_the_split_are_those_of_the_file(tmp_path: Path) -> None:
    content = (np.random.default_rng(0).integers(1, 128, 50_000, np.uint8)).tobytes()
    corpus = corpus_of(tmp_path, content)
    train, valid = text.split(np.frombuffer(content, np.uint8))
    assert np.array_equal(corpus.train, train)
    assert np.array_equal(corpus.valid, valid)


def test_a_batch_is_a_pure_function_of_seed_and_step(library: text.Corpus) -> None:
    batch = text.batches(library, 16, 64)
    late = batch(3, 1000)
    again = text.batches(text.load(), 16, 64)
    for step in range(5):
        again(3, step)
    assert np.array_equal(again(3, 1000), late)
    assert late.shape == (16, 65)
    assert late.dtype == np.uint8
    assert not np.array_equal(batch(3, 1001), late)
    assert not np.array_equal(batch(4, 1000), late)


def test_batches_are_the_same_on_every_machine() -> None:
    """Golden bytes: a change here changes the data order of every committed result."""
    whole = np.arange(256 * 40, dtype=np.int64).astype(np.uint8)
    corpus = text.Corpus(*text.split(whole), "", 1, 0, "here")
    assert text.batches(corpus, 4, 1)(7, 11)[:, 0].tolist() == [108, 13, 249, 58]


def test_batches_reach_every_offset_of_train_and_nothing_else() -> None:
    batch = text.batches(positions(50, 0), 64, 8)
    drawn = np.concatenate([batch(0, step) for step in range(20)])
    assert (np.diff(drawn, axis=1) == 1).all()
    assert set(drawn[:, 0]) == set(range(50 - 8))


def test_shards_are_the_same_for_everyone(library: text.Corpus) -> None:
    shards = text.shards(library, 4, 16, 64)
    assert [shard.shape for shard in shards] == [(16, 65)] * 4
    assert all(shard.dtype == np.uint8 for shard in shards)
    assert all(map(np.array_equal, shards, text.shards(text.load(), 4, 16, 64)))


@pytest.mark.parametrize("n_valid", [60, 61, 67, 1000])
def test_shards_are_disjoint_windows_spread_evenly(n_valid: int) -> None:
    windows = np.concatenate(text.shards(positions(100, n_valid), 2, 3, 9))
    assert (np.diff(windows, axis=1) == 1).all()
    assert len(np.unique(windows)) == windows.size
    steps = np.diff(windows[:, 0])
    assert steps.min() >= 10
    assert steps.max() - steps.min() <= 1
    assert n_valid - steps.max() - 1 <= windows[-1, 0] <= n_valid - 10


def test_shards_that_do_not_fit_say_what_is_needed() -> None:
    with pytest.raises(ValueError, match=r"59 bytes.*2 shards of 3 windows.*need 60; give"):
        text.shards(positions(100, 59), 2, 3, 9)


def test_what_cannot_be_read_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="nothing-here does not exist; give a text"):
        text.load(tmp_path / "nothing-here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is neither a file nor a folder; give"):
        text.load(tmp_path / "pipe")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match=r"empty\.txt has no text: 1 empty.*give a"):
        text.load(tmp_path / "empty.txt")
    (tmp_path / "binary").mkdir()
    with pytest.raises(ValueError, match="binary has no text: 0 empty files, and 0"):
        text.load(tmp_path / "binary")
    (tmp_path / "binary" / "one.bin").write_bytes(b"\0")
    with pytest.raises(ValueError, match="binary has no text: 0 empty files, and 1"):
        text.load(tmp_path / "binary")

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ValueError, match=r"empty\.txt cannot be read \(Permission denied\)"):
        text.load(tmp_path / "empty.txt")


@pytest.mark.parametrize("n_bytes", [1, 10, 64])
def test_a_text_shorter_than_a_window(tmp_path: Path, n_bytes: int) -> None:
    corpus = corpus_of(tmp_path, b"a" * n_bytes)
    with pytest.raises(ValueError, match=r"bytes for training.* needs 65; give more text"):
        text.batches(corpus, 16, 64)
    with pytest.raises(ValueError, match=r"bytes for validation.*need 65; give more text"):
        text.shards(corpus, 1, 1, 64)
