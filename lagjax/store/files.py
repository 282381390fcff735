"""Files that neither a kill nor a full disk harms: replaced whole, or appended to and cut back."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file whole: a reader, or a kill, sees the old one or the new one.

    Raises OSError, with the remedy, where it cannot be written; then the old one stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with remedy(path):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append(path: pathlib.Path, content: bytes) -> None:
    """Adds to the end of a file; what was added is on disk when this returns.

    Raises OSError, with the remedy, where it cannot be written; then nothing was added.
    """
    # Unbuffered: what a full disk has refused shall not be tried again on closing.
    with remedy(path), path.open("ab", buffering=0) as file:
        end, rest = file.seek(0, os.SEEK_END), memoryview(content)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


@contextlib.contextmanager
def remedy(path: pathlib.Path) -> Iterator[None]:
    """Adds to an OSError what is kept and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}: {path} could not be written, and what stood there "
            "stands; make room, and give the same command again: it goes on",
        ) from error


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file.

    Raises ValueError, with the remedy, where it is damaged.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error}; restore it, or start in a new directory"
        ) from None
    return found


def read_lines(path: pathlib.Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """The complete lines of a JSON-lines file.

    A last line that a kill or a full disk cut short is left out, and with `mend` cut off, so that
    the next one does not continue it.

    Raises ValueError, with the number, for another line that is no JSON.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if mend and len(whole) < len(content):
        os.truncate(path, len(whole))
    lines = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            lines.append(json.loads(line))
            if not isinstance(lines[-1], dict):
                raise ValueError("it is no JSON object")  # noqa: TRY004
        except ValueError:
            shown = line[:80].decode("utf-8", "replace")
            raise ValueError(
                f"{path} is damaged in line {number}: {shown!r}; restore it, or start in a new "
                "directory"
            ) from None
    return lines
