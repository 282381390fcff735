"""algebra/ is read from the bottom: each file imports those before it, and nothing else of lagjax."""

import ast
from pathlib import Path

import lagjax.algebra

ORDER = (
    "maps",
    "uses",
    "kinds",
    "notation",
    "axes",
    "pieces",
    "words",
    "fit",
    "proof",
    "plan",
    "provenance",
)
FOLDER = Path(lagjax.algebra.__file__).parent


def imported(file):
    """The modules of lagjax that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)]
        if isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{file.name} imports by dots"
            is_package = node.module == "lagjax.algebra"
            names = [f"{node.module}.{x}" for x in names] if is_package else [node.module]
        elif not isinstance(node, ast.Import):
            continue
        yield from (name for name in names if name.partition(".")[0] == "lagjax")


def test_imports_run_one_way():
    files = {file.stem: file for file in FOLDER.glob("*.py") if file.stem != "__init__"}
    assert files.keys() == set(ORDER)
    for number, name in enumerate(ORDER):
        before = {f"lagjax.algebra.{other}" for other in ORDER[:number]}
        assert set(imported(files[name])) <= before, name
