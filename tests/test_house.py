"""The house: imports run one way, files are small, a task takes few stops, types say what a thing
is.
"""

import ast
import pathlib
import re

import pytest

import lagjax
from tests.stops import stops

ROOT = pathlib.Path(lagjax.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

ORDER = re.findall(
    r"[\w.]+",
    """
    __main__ __init__
    runs search evaluations baselines claims identity executors.serial executors.worker executors.tally
    executors.workload checks initial grower
    growth.pools growth.masked growth.gradmax growth.learned growth.leafwise growth.operator
    growth.fusion growth.experts growth.width growth.depth
    certify.certify certify.blame certify.readings
    state optimizer.reading optimizer.course optimizer.places optimizer.rules optimizer.scaling
    buffers
    report.__init__ report.terminal report.html report.content report.bounce report.worth
    report.equal report.charts report.sentences report.facts report.watched report.curve
    select.fixed select.decision evidence task
    probe store.directory store.checkpoints store.losses store.curves store.files store.record
    averages annealing engine feed model
    algebra.provenance algebra.plan algebra.fit algebra.proof algebra.words algebra.pieces
    algebra.axes algebra.layout algebra.kinds algebra.uses algebra.notation algebra.maps
    analysis.audit analysis.transition analysis.crossing analysis.margin analysis.agreement analysis.ledger
    progress jobs mesh flops fingerprint arguments
    """,
)
"""From the top down: a file imports only what stands after it."""

LONGER = {
    "algebra.axes": "the notation's rules and their messages, each with its remedy",
    "algebra.kinds": "a dataclass for each kind of axis, with all of its rules",
    "algebra.plan": "parameters, moments and other state by one plan, each in its unit and dtype",
    "algebra.pieces": "what becomes of one part of an array, for every role",
    "certify.certify": "proof and five measurements, which share what they compile",
    "evidence": "all that a policy may ask of the record",
    "executors.worker": "a job's course, what is measured on the way, and its checkpoints",
    "growth.depth": "a dataclass for each strategy of the literature",
    "growth.gradmax": "a measurement column by column, and the operator that it makes",
    "growth.width": "a dataclass for each expansion of the literature",
    "probe": "the program, its placement, and how many trials it takes at once",
    "report.charts": "six pictures, whose labels must not lie on each other",
    "report.content": "every section of the page, once",
    "report.facts": "all that pages of unfinished and failed runs must not stumble over",
    "store.directory": "opening, configuring and committing, with what each refuses",
    "state": "carrying, measuring and collections, with what is refused",
    "runs": "what `run`, `train` and `load` promise, in full",
}
"""Files over 300 lines, each with its reason; 400 is the most for any."""
LINES = 16_300
"""Of all files together: to be lowered as they become fewer."""


def name_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: pathlib.Path) -> set[str]:
    """The modules of lagjax that a file imports, at its top or inside a function."""
    known = {name_of(file) for file in FILES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {_inner(alias.name, known) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # Either a module of a package, or a name of a module or of a package's face.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(_inner(whole, known) or _inner(node.module, known))
    return found - {name_of(path), ""}


def _inner(module: str, known: set[str]) -> str:
    """A module of lagjax as `ORDER` has it; nothing for others."""
    if module == "lagjax":
        return "__init__"
    name = module.removeprefix("lagjax.")
    return next((x for x in (name, f"{name}.__init__") if module != name and x in known), "")


def test_every_file_has_its_place() -> None:
    there = {name_of(file) for file in FILES if file.read_text().strip()}
    assert there == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path: pathlib.Path) -> None:
    if name_of(path) in ORDER:
        place = ORDER.index(name_of(path))
        up = [name for name in imported(path) if ORDER.index(name) < place]
        assert not up, f"{name_of(path)} imports {up}, which stand above it"


def test_analysis_knows_numpy_only() -> None:
    for path in (ROOT / "analysis").glob("*.py"):
        assert "jax" not in re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE)


def test_files_are_small() -> None:
    lines = {name_of(file): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: count for name, count in lines.items() if count > 400}
    assert not {name: n for name, n in lines.items() if n > 300}.keys() - LONGER.keys()
    assert not {name for name in LONGER if lines[name] <= 300}
    assert sum(lines.values()) <= LINES


def test_types_say_what_a_thing_is() -> None:
    found = sum(len(re.findall(r"\bAny\b", file.read_text())) for file in FILES)
    assert found <= 150


def test_a_task_takes_few_stops(tmp_path: pathlib.Path) -> None:
    found = stops(tmp_path / "run")
    assert found[0] == "runs.py:run"
    assert len(found) < 20
