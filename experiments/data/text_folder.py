"""Prepares a folder of text as a TensorFlow Dataset, offline and without TensorFlow.

    python -m experiments.data.text_folder FOLDER --name novels
    python -m experiments.quickstart --data tfds:text_folder/novels

Records are stretches of the files, cut at the ends of lines, in the order of the files' names;
every twentieth is for validation, as in `experiments.data.text`.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tyro

from experiments.cli import command
from experiments.data import text


# Not among the datasets that a name alone can prepare: it needs a folder. Prepared, it is read from
# its files.
class TextFolder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A folder's text files; its config is the name that the folder is given.

    Records are {"text", "file", "stretch"}: UTF-8 text without the newline that ends it, the
    relative name of its file, and its place among the stretches of all files.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, corpus: text.Files, name: str, data_dir: Path | str | None = None) -> None:
        self._corpus = corpus
        super().__init__(
            data_dir=data_dir,
            config=tfds.core.BuilderConfig(name=name),
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="A folder of text.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "file": tfds.features.Text(),
                    "stretch": tfds.features.Scalar(np.int64),
                }
            ),
            # The order of the files is the order of the text.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict({"digest": self._corpus.digest}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {
            "train": self._generate_examples(False),
            "validation": self._generate_examples(True),
        }

    def _generate_examples(self, validation: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (name, stretch) in enumerate(_records(self._corpus.texts)):
            if text.is_validation(number) == validation:
                # Not every name of a file is UTF-8, and a record's text is.
                file = os.fsencode(name).decode(errors="replace")
                yield (
                    number,
                    {"text": stretch.decode(), "file": file, "stretch": number},
                )


def _records(texts: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The stretches of all files, each with the name of its file."""
    size = text.block_size(sum(map(len, texts.values())))
    for name, content in texts.items():
        for stretch in _stretches(content, size):
            yield name, stretch


def _stretches(content: bytes, size: int) -> Iterator[bytes]:
    """Cuts a text after about `size` bytes, at the end of a line.

    A longer line is cut between two characters.
    """
    start = 0
    while start < len(content):
        end = min(start + size, len(content))
        if end < len(content):
            line = content.rfind(b"\n", start, end)
            if line > start:
                # The newline stands between records when they are read.
                yield content[start:line]
                start = line + 1
                continue
            while content[end] & 0xC0 == 0x80:
                end += 1
                if end == len(content):
                    break
        yield content[start:end].removesuffix(b"\n")
        start = end


def prepare(folder: Path | str, name: str, data_dir: Path | str | None = None) -> str:
    """Prepares a folder or a file, where that has not been done; returns what `--data` takes.

    Raises ValueError for a folder without text or with too little, a name or a file that does not
    do, where other text is prepared under this name, and where nothing can be written.
    """
    corpus = text.read_files(folder)
    if not name.isidentifier():
        raise ValueError(
            f"the name {name!r} does not do for a dataset; give letters, digits and underscores, "
            "a letter first, as --name"
        )
    if not any(text.is_validation(number) for number, _ in enumerate(_records(corpus.texts))):
        raise ValueError(f"{corpus.origin} has too little text to split; give more")
    try:
        return _prepared(corpus, name, data_dir)
    except OSError as error:
        raise ValueError(
            f"{error.filename or data_dir} cannot be written ({error.strerror}); give another "
            "--data-dir"
        ) from error


def _prepared(corpus: text.Files, name: str, data_dir: Path | str | None) -> str:
    builder = TextFolder(corpus, name, data_dir)
    if builder.info.splits:
        found = (builder.info.metadata or {}).get("digest")
        if found != corpus.digest:
            raise ValueError(
                f"{builder.data_path} holds other text under the name {name!r}; give another "
                "--name, or remove it"
            )
    else:
        builder.download_and_prepare()
    return f"tfds:text_folder/{name}"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to prepare."""

    folder: tyro.conf.Positional[Path]
    """A file or a folder of text in any language."""
    name: str | None = None
    """Under which name; by default the folder's."""
    data_dir: Path | None = None
    """Where datasets are kept; by default TFDS's own place."""


def main(given: Arguments) -> None:
    """Prepares the folder, and prints the command that reads it."""
    name = given.name or given.folder.resolve().stem
    found = prepare(given.folder, name, given.data_dir)
    where = ["--data-dir", str(given.data_dir)] if given.data_dir else []
    print("python -m experiments.quickstart", shlex.join(["--data", found, *where]))


cli = command(main, "text_folder", Arguments, __doc__)


if __name__ == "__main__":
    sys.exit(cli())
