"""The command line: `python -m lagjax report RUN` makes a page, `show RUN` prints the decision."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import lagjax
from lagjax import report
from lagjax.progress import Terminal
from lagjax.store import directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 where the run directory cannot be read or written."""
    parser = argparse.ArgumentParser(prog="python -m lagjax", description=lagjax.__doc__)
    parser.add_argument("--version", action="version", version=f"lagjax {lagjax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    page = commands.add_parser(
        "report", help="make RUN/report.html from the run directory, and print its path"
    )
    text = commands.add_parser(
        "show", help="print what the run chose, how surely, and what it cost"
    )
    for command in (page, text):
        command.add_argument("run", metavar="RUN", type=pathlib.Path, help="a run directory")
    page.add_argument(
        "--picture",
        metavar="FILE",
        type=pathlib.Path,
        help="write the curves alone, as an SVG, instead of the page",
    )
    text.add_argument("--json", action="store_true", help="print decision.json as it is")
    given = parser.parse_args(arguments)
    try:
        if given.command == "report":
            made = (
                report.picture(given.run, given.picture)
                if given.picture
                else report.write(given.run)
            )
            Terminal().print(str(made), markup=False, soft_wrap=True)
        elif given.json:
            _print_decision(given.run)
        else:
            report.show(given.run)
    except (ImportError, OSError, ValueError) as error:
        print(f"lagjax: {error}", file=sys.stderr)
        return 2
    return 0


def _print_decision(run: pathlib.Path) -> None:
    if directory.read(run).decision is None:
        raise ValueError(
            f"{run} has no decision.json yet; run the same command again to finish the run."
        )
    sys.stdout.write((run / "decision.json").read_text())


if __name__ == "__main__":
    sys.exit(main())
