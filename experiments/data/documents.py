"""Corpora as documents, each wholly for training or wholly for validation::

    corpus = documents.load("novels")                   # or None, or "tfds:lm1b"
    split = documents.split(corpus)
    train = [x.content for x in corpus.read() if split.part(x) == "train"]

A file is a document, and so is a record of a TensorFlow dataset. A file of more than `LARGE` bytes
holds several: it is cut at the titles of WikiText's articles where it has some, else at blank lines
before a line that is not indented. Joined again, the documents of a file are that file.
"""

import hashlib
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from experiments.data import text

LARGE = text.BLOCK
"""Files of more bytes are cut into documents, none longer but where an article is."""
SMALL = LARGE // 4
"""A document ends with the first paragraph that ends after so many bytes."""

# " = Title = " between blank lines; a section's title has more signs.
_TITLE = re.compile(rb"(?<=\n) ?\n(?= = [^=\n][^\n]* = \n ?\n)")
_PARAGRAPH = re.compile(rb"\n[ \t\r]*\n(?=\S)")

_WIKITEXT = (
    "WikiText-2 (Merity et al., 2016, arXiv:1609.07843): wiki.valid.tokens and wiki.test.tokens "
    "of wikitext-2-v1.zip, in a folder as valid.txt and test.txt"
)
_VIM = (
    "the manual of Vim: /usr/share/vim/vim90/doc/*.txt of Debian's package vim-runtime, version "
    "2:9.0.1378-2+deb12u2, in a folder of their own"
)
KNOWN = {
    "9f16410a66d15dbc35a9dde3cbfc16303704931644b5a01e0e38ca4309085c6a": (_WIKITEXT, "CC BY-SA 3.0"),
    "e0f2a77aa6395f15c9e90b32e6a6cffe6e2b0680970dbf581052a7f80d02bbe4": (
        _VIM,
        "Open Publication License 1.0 or later, no options",
    ),
}
"""Digest of a corpus -> its public source and its licence."""


class Document(NamedTuple):
    """A document.

    Attributes:
        content: its text, UTF-8.
        held_out: whether its corpus has it for validation; None where the corpus does not say.
    """

    content: bytes
    held_out: bool | None


class Corpus(NamedTuple):
    """Where documents come from.

    Attributes:
        read: the documents, in an order that does not change; called as often as wanted.
        digest: SHA-256, hexadecimal, as of `text.load` and `tfds.load`.
        left_out: number of files or records left out because they are no text.
        origin: where they came from, for people to read.
        source: where others find them.
        licence: of the text; None where it is not known.
    """

    read: Callable[[], Iterator[Document]]
    digest: str
    left_out: int
    origin: str
    source: str
    licence: str | None


def load(
    data: Path | str | None, data_dir: Path | str | None = None, encoding: str | None = None
) -> Corpus:
    """Opens a corpus; raises ValueError as `text.load` and `tfds.load` do.

    Args:
        data: a file, a folder, `tfds:NAME[/CONFIG][:VERSION][:FIELD]`, or None for the standard
            library.
        data_dir: where TensorFlow datasets are kept.
        encoding: of files that are not UTF-8 and have no byte order mark.
    """
    if str(data).startswith("tfds:"):
        return _dataset(str(data).removeprefix("tfds:"), data_dir)
    files = text.read_files(data, encoding)

    def read() -> Iterator[Document]:
        for content in files.texts.values():
            for each in cut(content):
                yield Document(each, None)

    source, licence = KNOWN.get(files.digest, (files.origin, None))
    if data is None:
        source = f"the standard library of Python {platform.python_version()}"
        licence = "Python Software Foundation License 2"
    return Corpus(read, files.digest, len(files.left_out), files.origin, source, licence)


def _dataset(name: str, data_dir: Path | str | None) -> Corpus:
    # An import of a second, which only these datasets need.
    from experiments.data import tfds

    dataset = tfds.opened(name, data_dir)
    digest, counts = dataset.digest(dataset.parts)
    if not counts["train"]:
        raise tfds.without_text(name, dataset)
    own = sum(counts.values()) > counts["train"]

    def read() -> Iterator[Document]:
        for split, records in dataset.parts.items():
            for record in records:
                yield Document(record, split != "train" if own else None)

    left_out = dataset.found - sum(counts.values())
    return Corpus(read, digest, left_out, dataset.origin, dataset.origin, dataset.licence)


def cut(content: bytes) -> Iterator[bytes]:
    """The documents of a file's text, UTF-8: joined, they are the text."""
    titles = [each.end() for each in _TITLE.finditer(content)] if len(content) > LARGE else []
    if titles:
        for start, end in zip([0, *titles], [*titles, len(content)], strict=True):
            yield content[start:end]
        return
    start = 0
    while start < len(content):
        end = _end(content, start)
        yield content[start:end]
        start = end


def _end(content: bytes, start: int) -> int:
    """Where a document ends that starts there: at a paragraph, else a line, else a character."""
    last = start + LARGE
    if last >= len(content):
        return len(content)
    if paragraph := _PARAGRAPH.search(content, start + SMALL, last):
        return paragraph.end()
    if line := content.rfind(b"\n", start, last) + 1:
        return line
    while content[last] & 0xC0 == 0x80:
        last -= 1
    return last


class Split(NamedTuple):
    """Which documents are for validation.

    Attributes:
        held_out: their keys.
        documents: number of all documents.
    """

    held_out: frozenset[int]
    documents: int

    def part(self, document: Document) -> Literal["train", "valid"] | None:
        """None for a document of a corpus' training part that is in its validation part too."""
        if key(document.content) not in self.held_out:
            return "train"
        return None if document.held_out is False else "valid"


def key(content: bytes) -> int:
    """The first 8 bytes of the SHA-256 of a document."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def split(corpus: Corpus) -> Split:
    """The validation part that a corpus has, or else a twentieth of its documents.

    Which twentieth says each document's own hash, so that no other document, and no order of them,
    matters, and the same text is never on both sides. Where it says none, as of few documents, the
    one with the lowest hash is taken. Raises ValueError where nothing is left for training.
    """
    own, chosen = set(), set()
    count, lowest = 0, 2**64
    for count, document in enumerate(corpus.read(), 1):
        found = key(document.content)
        lowest = min(lowest, found)
        if document.held_out:
            own.add(found)
        elif document.held_out is None and text.is_validation(found):
            chosen.add(found)
    divided = Split(frozenset(own or chosen or {lowest}), count)
    if not any(divided.part(each) == "train" for each in corpus.read()):
        raise ValueError(
            f"{corpus.origin}: all of its documents ({count}) are for validation, none for "
            f"training; give more, or files of more than {LARGE:,} bytes, which are cut into "
            "several"
        )
    return divided
