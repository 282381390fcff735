"""Numbers, choices and paths as callers give them: whole floats and NumPy's numbers count as what
they stand for, all else is refused with what was found and what was expected.
"""

import contextlib
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np


def whole(value: object, what: str, least: int | None = 1, most: int | None = None) -> int:
    """A whole number: 20, `np.int64(20)` and 2e1 are; "20", 20.5, nan and True are not."""
    number = integral(value)
    if number is None or (least is not None and number < least) or (most and number > most):
        upwards = "" if least is None else f", at least {least}"
        upwards = f" from {least} to {most}" if most else upwards
        raise ValueError(f"{what} is {value!r}; give a whole number{upwards}")
    return number


def integral(value: object) -> int | None:
    """The whole number that a value is, or None."""
    if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        return None
    return int(value) if math.isfinite(value) else None


def real(value: object, what: str, least: float = 0.0) -> float:
    """A finite number that is not below `least`."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and number >= least:
            return number
    raise ValueError(f"{what} is {value!r}; give a number, at least {least:g}")


def choice(value: object, what: str, known: Sequence[str]) -> None:
    """Raises ValueError where a value is none of those that are known."""
    if value not in known:
        raise ValueError(f"{what} is {value!r}; expected one of {tuple(known)}")


def folder(path: object, what: str = "the run directory") -> pathlib.Path:
    """A local folder, absolute, so that a later change of the working directory does not matter.

    Raises ValueError for what is no path, and for one in a bucket: the files of a run are locked
    and appended to, which buckets cannot do.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ValueError(f"{what} is {path!r}; give the path of a folder")
    if found := re.match(r"([a-z][a-z0-9+.-]+):/", str(path), re.IGNORECASE):
        raise ValueError(
            f"{what} {path} lies in {found[1]}:, and its files are locked and appended to, which "
            "needs a file system; give a local folder, and copy it when the run is done"
        )
    return pathlib.Path(path).expanduser().absolute()


def plain(values: Mapping[str, object]) -> dict[str, object]:
    """Values as JSON has them: NumPy's numbers as numbers, what it does not know as text."""
    return {str(name): _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


@contextlib.contextmanager
def inside(what: str) -> Iterator[None]:
    """Says of an error inside a function of the caller's which function it was, and where."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:
        raise ValueError(f"{what} raised {type(error).__name__}: {error}") from error
