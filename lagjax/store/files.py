"""Files that no kill harms: replaced whole, or appended to and cut back."""

import json
import os
import pathlib
from typing import Any


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file whole: a reader, or a kill, sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def append(path: pathlib.Path, content: bytes) -> None:
    """Adds to the end of a file; what was added is on disk when this returns."""
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


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
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise ValueError(
                f"{path} is damaged in line {number}: {line[:80]!r}; restore it, or start in a new "
                "directory"
            ) from None
    return lines
