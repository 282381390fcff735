"""Text as subwords: a vocabulary trained on the corpus, and documents as ids in ArrayRecord.

    python -m experiments.data.subwords --data novels --vocab 1024

The vocabulary is a byte-level BPE (Sennrich et al., 2016, arXiv:1508.07909; over bytes: GPT-2,
Radford et al., 2019), so that no text is unknown, trained by Hugging Face's `tokenizers` on the
training documents alone. The same corpus gives the same files, byte for byte; they are made once::

    corpus = subwords.load("novels", vocab=1024)
    corpus.decode(corpus.train[0])                      # a document, as it was
    batch = subwords.batches(corpus, batch_size=8, window=64)
    batch(seed=0, step=3)                               # int32 [8, 65]
    subwords.shards(corpus, n_shards=8, batch_size=8, window=64)
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from experiments.cli import command
from experiments.data import documents

SPECIALS = ("[PAD]", "[SEP]")
"""What a language model needs: nothing, and the end of a document."""

_FORMAT = 1
_PARTS = ("train", "valid")
_CHUNK = 256
_LIBRARIES = ("tokenizers", "array_record")

Told = Callable[[str, int, int | None], None]
"""Is told what is done, of how many documents, of how many in all (None: not known yet)."""


class Documents(Protocol):
    """Documents as ids, by random access."""

    lengths: NDArray[np.int64]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.int32]: ...


KEPT = 2**26
"""Ids of a file that stay in memory once they are read, at most: small corpora are read once."""


class Stored:
    """Documents in an ArrayRecord file, opened at the first access; what is pickled is its path.

    Attributes:
        lengths: ids of each document, int64 [N].
    """

    def __init__(self, path: Path, lengths: NDArray[np.int64], dtype: str) -> None:
        self.path, self.lengths, self.dtype = path, lengths, dtype
        self._reader: ArrayRecordReader | None = None
        self._kept: dict[int, NDArray[np.int32]] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        if index in self._kept:
            return self._kept[index]
        if self._reader is None:
            # No read-ahead: most accesses are far from the last.
            self._reader = ArrayRecordReader(
                str(self.path), options="readahead_buffer_size:0,max_parallelism:0"
            )
        [record] = self._reader.read([index])
        found = np.frombuffer(record, self.dtype).astype(np.int32)
        if self.lengths.sum() <= KEPT:
            found.flags.writeable = False
            self._kept[index] = found
        return found

    def close(self) -> None:
        """Closes the file; the next access opens it again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_reader": None, "_kept": {}}


@dataclass(frozen=True, eq=False)
class Subwords:
    """A corpus as ids of subwords; it can be pickled.

    Attributes:
        train: its training documents.
        valid: its validation documents.
        vocab: number of ids.
        specials: name -> id of those that no text has.
        digest: SHA-256, hexadecimal, of the corpus.
        origin: where it came from, for people to read.
        tokenizer: makes ids of text.
        facts: what its datasheet says, as `about` gives it.
    """

    train: Stored
    valid: Stored
    vocab: int
    specials: Mapping[str, int]
    digest: str
    origin: str
    tokenizer: Tokenizer
    facts: Mapping[str, object]

    def encode(self, content: str) -> NDArray[np.int32]:
        """The ids of a text; a special's name in it is text like any other."""
        return np.array(_encode(self.tokenizer, [content])[0], np.int32)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of ids, with the names of specials; a cut character becomes U+FFFD."""
        found = np.asarray(ids, np.int64)
        if found.size and not (0 <= found.min() and found.max() < self.vocab):
            raise ValueError(
                f"ids from {found.min()} to {found.max()}: expected 0 to {self.vocab - 1}, those "
                "of this vocabulary; decode with the corpus that encoded them"
            )
        return self.tokenizer.decode(found.tolist(), skip_special_tokens=False)

    def special(self, name: str) -> int:
        """The id of a special; ValueError where there is none of this name."""
        if name not in self.specials:
            raise ValueError(
                f"there is no special {name!r}; there are {list(self.specials)}: choose one, or "
                f"load the corpus with specials={[*self.specials, name]}"
            )
        return self.specials[name]

    def close(self) -> None:
        """Closes the files."""
        self.train.close()
        self.valid.close()


def load(
    data: Path | str | None = None,
    vocab: int = 1024,
    specials: Sequence[str] = SPECIALS,
    folder: Path | str | None = None,
    *,
    data_dir: Path | str | None = None,
    encoding: str | None = None,
    told: Told | None = None,
) -> Subwords:
    """A corpus as subwords, made where it has not been.

    What is made lies in a folder of `folder`, named by the corpus' digest, the vocabulary's size
    and the specials. It appears whole or not at all: what a killed process leaves is made again. Of
    several processes one makes it while the others wait.

    Args:
        data: a file, a folder, `tfds:NAME[/CONFIG][:VERSION][:FIELD]`, or None for the standard
            library; cut into documents and split as in `experiments.data.documents`.
        vocab: number of ids: specials, the 256 bytes, and what is learned.
        specials: names of ids from 0 that no text has; the first is for padding by custom.
        folder: for all that is made; by default `lagjax/subwords` in the user's cache.
        data_dir: where TensorFlow datasets are kept.
        encoding: of files that are not UTF-8 and have no byte order mark.
        told: is told how far the making is.

    Raises:
        ValueError: for a corpus that cannot be read or has one document, specials that text could
            contain, and a vocabulary that is too small for the bytes or too large for the corpus.
    """
    specials = tuple(specials)
    _check(vocab, specials)
    told = told or (lambda *_: None)
    told("reading", 0, None)
    corpus = documents.load(data, data_dir, encoding)
    root = Path(folder) if folder else _cache()
    root.mkdir(parents=True, exist_ok=True)
    path = root / _name(corpus.digest, vocab, specials)
    with _alone(path.with_suffix(".lock")):
        if not _is_whole(path):
            _make(path, corpus, vocab, specials, told)
    return _read(path, corpus, specials)


def about(corpus: Subwords) -> dict[str, object]:
    """What a datasheet says of a corpus: JSON, and nothing of this machine's but the origin.

    `source` is where others find the text; it is the origin, and `licence` is None, where that is
    not known. `documents`, `tokens` and `bytes` are those of `train` and `valid`; `repeated` are
    training documents left out because the corpus' own validation part has them too.
    """
    return dict(corpus.facts)


def windows(ids: Documents, separator: int) -> Callable[[int, int, int, int], NDArray[np.int32]]:
    """Windows at random places, by (seed, step, count, length): int32 [count, length].

    They are cut from all documents one after the other, each followed by the separator. Raises
    ValueError where all of them are shorter than a window.
    """
    stream = _Stream(ids, separator)

    def window(seed: int, step: int, count: int, length: int) -> NDArray[np.int32]:
        places = stream.size - length + 1
        if places < 1:
            raise ValueError(
                f"{stream.size} ids for training, separators included, but one window needs "
                f"{length}; give more text or a smaller window"
            )
        # As for bytes: any step's windows without those before it, the same in every numpy.
        bits = np.random.Philox(key=seed, counter=[0, step, 0, 0]).random_raw(count)
        return stream.cut((bits % np.uint64(places)).astype(np.int64), length)

    return window


def valid_windows(ids: Documents, separator: int, count: int, length: int) -> NDArray[np.int32]:
    """Disjoint windows, evenly spread over all documents: int32 [count, length].

    Each document is followed by the separator. Raises ValueError where the windows do not fit.
    """
    stream = _Stream(ids, separator)
    if stream.size < count * length:
        raise ValueError(
            f"{stream.size} ids for validation, separators included, but {count} windows of "
            f"{length} need {count * length}; give more text, or fewer or smaller windows"
        )
    return stream.cut(np.arange(count, dtype=np.int64) * stream.size // count, length)


def batches(
    corpus: Subwords, batch_size: int, window: int, separator: str = "[SEP]"
) -> Callable[[int, int], NDArray[np.int32]]:
    """Training batches by (seed, step), int32 [batch_size, window + 1], as of `text.batches`."""
    cut = windows(corpus.train, corpus.special(separator))
    cut(0, 0, 1, window + 1)  # Says at once where the text is too short.
    return lambda seed, step: cut(seed, step, batch_size, window + 1)


def shards(
    corpus: Subwords, n_shards: int, batch_size: int, window: int, separator: str = "[SEP]"
) -> tuple[NDArray[np.int32], ...]:
    """Validation shards, each int32 [batch_size, window + 1], as of `text.shards`."""
    count = n_shards * batch_size
    found = valid_windows(corpus.valid, corpus.special(separator), count, window + 1)
    return tuple(np.split(found, n_shards))


class _Stream:
    """All documents one after the other, each followed by the separator."""

    def __init__(self, ids: Documents, separator: int) -> None:
        self._ids, self._separator = ids, separator
        self._ends = np.cumsum(ids.lengths + 1)
        self.size = int(self._ends[-1]) if len(ids) else 0

    def cut(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        """The windows that begin there: int32 [len(starts), length]."""
        found = np.full((len(starts), length), self._separator, np.int32)
        numbers = np.searchsorted(self._ends, starts, side="right")
        for row, start, number in zip(found, starts.tolist(), numbers.tolist(), strict=True):
            offset = start - (int(self._ends[number - 1]) if number else 0)
            at = 0
            while at < length:
                piece = self._ids[number][offset : offset + length - at]
                row[at : at + len(piece)] = piece
                # The separator stands there already.
                at += len(piece) + 1
                number, offset = number + 1, 0
        return found


def _check(vocab: int, specials: tuple[str, ...]) -> None:
    if len(set(specials)) < len(specials):
        raise ValueError(f"specials {list(specials)}: one is there twice; give each once")
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    # A vocabulary never joins what is split before it: no text can have such an id.
    for name in specials:
        if len(split(name)) < 2:
            raise ValueError(
                f"the special {name!r} could be a piece of text; give a name of letters and "
                "punctuation, as '[PAD]' or '</s>'"
            )
    least = len(specials) + 256
    if vocab < least:
        raise ValueError(
            f"vocab={vocab}: there are 256 bytes and {len(specials)} specials; give at least "
            f"{least}"
        )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lagjax/subwords"


def _name(digest: str, vocab: int, specials: tuple[str, ...]) -> str:
    asked = hashlib.sha256(json.dumps([_FORMAT, digest, vocab, specials]).encode())
    return f"{digest[:12]}-{vocab}-{asked.hexdigest()[:12]}"


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Waits until no other process is in here with this lock."""
    with lock.open("a") as file:
        # The kernel releases it when the process ends, however it ends.
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(path: Path) -> bool:
    """Whether all files are there in full."""
    try:
        sizes = json.loads((path / "meta.json").read_text())["sizes"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _make(
    path: Path, corpus: documents.Corpus, vocab: int, specials: tuple[str, ...], told: Told
) -> None:
    split = documents.split(corpus)
    tokenizer = _train(corpus, split, vocab, specials, told)
    made = path.with_suffix(".incomplete")
    for old in (made, path):
        shutil.rmtree(old, ignore_errors=True)
    made.mkdir()
    tokenizer.save(str(made / "tokenizer.json"))
    counts = _write(made, corpus, split, tokenizer, told)
    meta = {
        "digest": corpus.digest,
        "vocab": vocab,
        "specials": specials,
        **counts,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "sizes": {each.name: each.stat().st_size for each in sorted(made.iterdir())},
    }
    (made / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    made.rename(path)


def _train(
    corpus: documents.Corpus,
    split: documents.Split,
    vocab: int,
    specials: tuple[str, ...],
    told: Told,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def texts() -> Iterator[str]:
        for number, document in enumerate(corpus.read(), 1):
            if split.part(document) == "train":
                yield document.content.decode()
            told("vocabulary", number, split.documents)

    tokenizer.train_from_iterator(texts(), trainer)
    found = tokenizer.get_vocab_size()
    if found < vocab:
        raise ValueError(
            f"vocab={vocab}: {corpus.origin} gives {found} ids and no more; give at most {found}, "
            "or more text"
        )
    return tokenizer


def _write(
    folder: Path,
    corpus: documents.Corpus,
    split: documents.Split,
    tokenizer: Tokenizer,
    told: Told,
) -> dict[str, object]:
    """Writes the ids of both parts and the documents' lengths; returns what was counted."""
    dtype = _dtype(tokenizer.get_vocab_size())
    lengths: dict[str, list[int]] = {part: [] for part in _PARTS}
    sizes = dict.fromkeys(_PARTS, 0)
    done = repeated = 0
    with contextlib.ExitStack() as stack:
        files = {}
        for part in _PARTS:
            file = str(folder / f"{part}.array_record")
            # A record to a group: a document is read without its neighbours.
            files[part] = ArrayRecordWriter(file, options="group_size:1")
            stack.callback(files[part].close)
        reading = corpus.read()
        while chunk := list(itertools.islice(reading, _CHUNK)):
            found = _encode(tokenizer, [each.content.decode() for each in chunk])
            for document, ids in zip(chunk, found, strict=True):
                if (part := split.part(document)) is None:
                    repeated += 1
                    continue
                files[part].write(np.array(ids, dtype).tobytes())
                lengths[part].append(len(ids))
                sizes[part] += len(document.content)
            done += len(chunk)
            told("tokens", done, split.documents)
    for part in _PARTS:
        np.save(folder / f"{part}.lengths.npy", np.array(lengths[part], np.int64))
    return {
        "documents": {part: len(lengths[part]) for part in _PARTS},
        "tokens": {part: sum(lengths[part]) for part in _PARTS},
        "bytes": sizes,
        "repeated": repeated,
    }


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    # Off, a special's name in a text would be the special. Neither files nor pickles keep it.
    tokenizer.encode_special_tokens = True
    return [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _dtype(vocab: int) -> str:
    """Little-endian on every machine."""
    return "<u2" if vocab <= 2**16 else "<i4"


def _read(path: Path, corpus: documents.Corpus, specials: tuple[str, ...]) -> Subwords:
    meta = json.loads((path / "meta.json").read_text())
    train, valid = (
        Stored(
            path / f"{part}.array_record",
            np.load(path / f"{part}.lengths.npy"),
            _dtype(meta["vocab"]),
        )
        for part in _PARTS
    )
    told = ("vocab", "specials", "documents", "tokens", "bytes", "repeated", "versions")
    facts = {
        "source": corpus.source,
        "licence": corpus.licence,
        "sha256": corpus.digest,
        "left_out": corpus.left_out,
        **{name: meta[name] for name in told},
    }
    return Subwords(
        train,
        valid,
        meta["vocab"],
        {name: number for number, name in enumerate(specials)},
        corpus.digest,
        corpus.origin,
        Tokenizer.from_file(str(path / "tokenizer.json")),
        facts,
    )


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to make subwords of."""

    data: str | None = None
    """A file or a folder of text in any language, or a TensorFlow dataset as
    tfds:NAME[/CONFIG][:VERSION][:FIELD]; by default Python's standard library."""
    vocab: int = 1024
    """Number of ids."""
    specials: tuple[str, ...] = SPECIALS
    """Names of the first of them, that no text has."""
    folder: Path | None = None
    """Where to keep what is made; by default lagjax/subwords in the user's cache."""
    data_dir: Path | None = None
    """Where TensorFlow datasets are kept; by default their own place."""
    encoding: str | None = None
    """Of files that are not UTF-8, as latin-1."""


def main(given: Arguments) -> None:
    """Makes the subwords, and prints what a datasheet says of them."""
    began = time.monotonic()
    errors = Console(stderr=True)
    bar = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    columns = (TextColumn("{task.description}"), *bar)
    with Progress(
        *columns, console=errors, transient=True, disable=not errors.is_terminal
    ) as shown:
        add = functools.cache(functools.partial(shown.add_task, total=None))

        def told(what: str, done: int, of: int | None) -> None:
            shown.update(add(what), completed=done, total=of)

        corpus = load(
            given.data,
            given.vocab,
            given.specials,
            given.folder,
            data_dir=given.data_dir,
            encoding=given.encoding,
            told=told,
        )
    facts = about(corpus)
    for name in ("source", "licence", "sha256", "left_out", "vocab", "repeated"):
        print(f"{name}: {facts[name]}")
    for part, ids in (("train", corpus.train), ("valid", corpus.valid)):
        size, count = facts["bytes"][part], facts["tokens"][part]
        print(
            f"{part}: {len(ids):,} documents, {size:,} bytes, {count:,} tokens, "
            f"{count / size:.3f} tokens per byte"
        )
    print(f"{time.monotonic() - began:.1f} s; kept in {corpus.train.path.parent}")


cli = command(main, "subwords", Arguments, __doc__, "interrupted; nothing is kept of it")


if __name__ == "__main__":
    sys.exit(cli())
