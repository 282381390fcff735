"""Text as bytes: of a folder, a file, or the running interpreter's standard library.

The last needs no download. Tokens are the bytes of UTF-8, so that any language works with a
vocabulary of 256. Files in other encodings are converted where a byte order mark or the caller
names theirs, compressed ones are unpacked, links are followed; what is left out is counted and
named::

    corpus = text.load(None)
    batch = text.batches(corpus, batch_size=16, window=64)
    batch(seed=0, step=3)                               # uint8 [16, 65]
    text.shards(corpus, n_shards=4, batch_size=16, window=64)
"""

import bz2
import codecs
import gzip
import hashlib
import lzma
import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BLOCK = 64 * 1024
"""Largest block of the split into training and validation, in bytes."""

# Not the standard library's own source: installed packages, then tests and applications, which some
# distributions leave out, then what the build wrote, which holds the paths of one installation.
_NOT_LIBRARY = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    | {"idlelib", "lib2to3", "turtledemo", "__pycache__"}
)
_BUILD = ("_sysconfigdata", "config-")

_UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text cut into a training and a validation part.

    Attributes:
        train: uint8 [N].
        valid: uint8 [M], M about N / 19.
        digest: SHA-256, hexadecimal, of the files' relative names and bytes.
        files: number of files, or of records, read.
        skipped: number of them left out because they are no text that can be read.
        origin: where it came from, for people to read.
        left_out: names of files left out.
    """

    train: np.ndarray
    valid: np.ndarray
    digest: str
    files: int
    skipped: int
    origin: str
    left_out: tuple[str, ...] = ()

    def summary(self) -> str:
        """What is trained on and what is not, in a line."""
        size = self.train.size + self.valid.size
        told = f"{self.origin}: {self.files} files, {size:,} bytes as UTF-8"
        if not self.skipped:
            return told
        names = ", ".join(self.left_out[:3]) + ", ..." * (len(self.left_out) > 3)
        named = f" ({names})" if names else ""
        return f"{told}; left out because they are not UTF-8 text: {self.skipped}{named}"


def load(path: Path | str | None = None, encoding: str | None = None) -> Corpus:
    """Reads a file, a folder (all its text files), or the standard library.

    The last is read where `path` is None. Files come in the order of their relative names; hidden
    files and folders are left out. Raises ValueError where there is nothing to read, and says what
    would help.

    Args:
        path: of the file or folder.
        encoding: of files that are not UTF-8 and have no byte order mark, as "latin-1".
    """
    files = read_files(path, encoding)
    train, valid = split(np.frombuffer(b"".join(files.texts.values()), np.uint8))
    skipped, count = len(files.left_out), len(files.texts)
    return Corpus(train, valid, files.digest, count, skipped, files.origin, files.left_out)


@dataclass(frozen=True, eq=False)
class Files:
    """The text files of a folder.

    Attributes:
        texts: relative POSIX name -> bytes, UTF-8, in the order of names.
        digest: SHA-256, hexadecimal, of names and bytes.
        left_out: names of the files that are no text that can be read.
        origin: where they came from, for people to read.
    """

    texts: dict[str, bytes]
    digest: str
    left_out: tuple[str, ...]
    origin: str


def read_files(path: Path | str | None, encoding: str | None = None) -> Files:
    """The text files that `load` reads; raises ValueError where there is no text."""
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(
                f"the encoding {encoding!r} is none that Python knows; give one as latin-1, "
                "cp1252 or utf-16-le"
            ) from None
    try:
        texts, left_out, origin = _gather(path, encoding)
    except OSError as error:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}); change its permissions, move it "
            "away, or give another path"
        ) from error
    if not any(texts.values()):
        raise ValueError(
            f"{origin} has no text: {len(texts)} empty files, and {len(left_out)} that are not "
            "UTF-8 or hold NUL bytes (hidden ones are not looked at); give a file or a folder with "
            "text in it, or the encoding of its files"
        )
    return Files(texts, _digest(texts), left_out, origin)


def batches(corpus: Corpus, batch_size: int, window: int) -> Callable[[int, int], np.ndarray]:
    """Training batches by (seed, step): uint8 [batch_size, window + 1], at random offsets.

    A window is `window` inputs and, shifted by one byte, `window` targets. Raises ValueError where
    the training part is shorter than one.
    """
    offsets = corpus.train.size - window
    if offsets < 1:
        raise ValueError(
            f"{corpus.origin}: {corpus.train.size} bytes for training, but one window of {window} "
            f"needs {window + 1}; give more text or a smaller window"
        )
    reach = np.arange(window + 1)

    def batch(seed: int, step: int) -> np.ndarray:
        # A counter-based generator makes any step's batch without those before it. Its raw bits,
        # unlike Generator's methods, are the same in every version of numpy; the bias of % is below
        # 1e-9.
        bits = np.random.Philox(key=seed, counter=[0, step, 0, 0]).random_raw(batch_size)
        starts = (bits % np.uint64(offsets)).astype(np.int64)
        return corpus.train[starts[:, None] + reach]

    return batch


def shards(corpus: Corpus, n_shards: int, batch_size: int, window: int) -> tuple[np.ndarray, ...]:
    """Validation shards, each uint8 [batch_size, window + 1], of disjoint, evenly spread windows.

    A shard is a stretch of the validation part, not a sample of all of it, so that the differences
    between shards show how much the text matters. Raises ValueError where the windows do not fit.
    """
    count = n_shards * batch_size
    needed, found = count * (window + 1), corpus.valid.size
    if found < needed:
        raise ValueError(
            f"{corpus.origin}: {found} bytes for validation, but {n_shards} shards of "
            f"{batch_size} windows of {window + 1} bytes need {needed}; give more text (about "
            f"{20 * needed} bytes), fewer shards, or a smaller batch or window"
        )
    starts = np.arange(count) * found // count
    windows = corpus.valid[starts[:, None] + np.arange(window + 1)]
    return tuple(np.split(windows, n_shards))


def block_size(size: int) -> int:
    """The bytes of a block, of which every twentieth is validation.

    A small text has smaller ones, to give eight.
    """
    return min(BLOCK, max(1, size // 160))


def is_validation(block: int) -> bool:
    """Whether a block, counted from 0, is for validation."""
    return block % 20 == 10


def split(whole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text, uint8 [N], into training and validation.

    Every 20th block is validation, so that both parts hold text from everywhere.

    The end of a sorted list of files would be text of another kind than the rest (in the standard
    library, the packages from `unittest` to `zoneinfo`). Each part is joined without its gaps: a
    window across a seam meets one jump in the text.
    """
    size = block_size(whole.size)
    blocks = [whole[start : start + size] for start in range(0, whole.size, size)]
    train = [each for number, each in enumerate(blocks) if not is_validation(number)]
    # A text of fewer than eleven bytes has no such block; whoever asks for a window is told.
    return np.concatenate(train), np.concatenate(blocks[10::20] or [whole[:0]])


def _gather(
    path: Path | str | None, encoding: str | None
) -> tuple[dict[str, bytes], tuple[str, ...], str]:
    """The texts by name, which files are no text, and where they came from."""
    if path is None:
        root = Path(sysconfig.get_path("stdlib"))
        library = {
            name: file
            for name, file in _files(root, without=_NOT_LIBRARY).items()
            if name.endswith(".py") and not name.startswith(_BUILD)
        }
        return *_texts(library, None), f"the standard library at {root}"
    root = Path(path)
    if root.is_dir():
        return *_texts(_files(root), encoding), f"the folder {root}"
    if root.is_file():
        return *_texts({root.name: root}, encoding), f"the file {root}"
    problem = "is neither a file nor a folder" if root.exists() else "does not exist"
    raise ValueError(
        f"{root} {problem}; give a text file, a folder of text files, or none for the standard "
        "library's sources"
    )


def _files(root: Path, without: frozenset[str] = frozenset()) -> dict[str, Path]:
    """Relative POSIX name -> path, by name, of the files outside hidden folders and those named."""

    def fail(error: OSError) -> None:
        raise error

    files = {}
    seen = set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        # A link to a folder above would lead round for ever.
        if (real := os.path.realpath(folder)) in seen:
            subfolders[:] = []
            continue
        seen.add(real)
        subfolders[:] = [
            name for name in sorted(subfolders) if not name.startswith(".") and name not in without
        ]
        for name in names:
            file = Path(folder, name)
            # Sockets, pipes and dangling links are in the list as well.
            if not name.startswith(".") and file.is_file():
                files[file.relative_to(root).as_posix()] = file
    return dict(sorted(files.items()))


def _texts(
    files: dict[str, Path], encoding: str | None
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files that are text, as UTF-8, and the names of those that are not."""
    texts = {}
    for name, file in files.items():
        content = utf8(file.read_bytes(), file.suffix, encoding)
        if content is not None:
            texts[name] = content
    return texts, tuple(name for name in files if name not in texts)


def utf8(content: bytes, suffix: str = "", encoding: str | None = None) -> bytes | None:
    """A file's text in UTF-8; None where it is none.

    Args:
        content: the file's bytes.
        suffix: the end of its name, which says whether it is compressed.
        encoding: its own, where it is neither UTF-8 nor begins with a byte order mark.
    """
    try:
        content = _UNPACK.get(suffix.lower(), bytes)(content)
        mark = next((name for start, name in _MARKS.items() if content.startswith(start)), None)
        if mark:
            content = content.decode(mark).encode()
        elif encoding and not is_text(content):
            content = content.decode(encoding).encode()
    except (OSError, EOFError, ValueError, lzma.LZMAError):
        return None
    return content if is_text(content) else None


def is_text(content: bytes) -> bool:
    """Whether bytes are UTF-8 without NUL."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _digest(texts: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in texts.items():
        # Lengths first, so that no two corpora run together into the same bytes.
        encoded = os.fsencode(name)
        digest.update(f"{len(encoded)} {len(content)} ".encode())
        digest.update(encoded + content)
    return digest.hexdigest()
