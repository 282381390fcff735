"""The command line of an experiment."""

from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from lagjax.progress import Terminal

Config = TypeVar("Config")


def command(
    main: Callable[[Config], Any],
    name: str,
    config: type[Config],
    doc: str | None,
    interrupted: str = "interrupted",
) -> Callable[[], int]:
    """The function that `python -m experiments.NAME` calls; it returns the exit code.

    Flags and their help are the fields of `config` with the text below each. The exit code is 0; 2
    for input that does not fit or a file that cannot be read or written, with the reason on
    standard error and no traceback; 130 when interrupted, with `interrupted` there, which says what
    of the work is kept.
    """

    def cli() -> int:
        errors = Terminal(stderr=True, soft_wrap=True, highlight=False)
        try:
            main(tyro.cli(config, description=doc))
        except (ValueError, OSError) as error:
            errors.print(f"{name}: {error}", markup=False)
            return 2
        except KeyboardInterrupt:
            errors.print(f"\n{interrupted}", markup=False)
            return 130
        return 0

    return cli
