"""Bad input: each with a message that names what was found, what was expected and the remedy; nothing is lost."""

import pathlib
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

import lagjax
from experiments import quickstart
from lagjax.algebra.axes import Axes
from lagjax.growth.depth import Stack
from tests import quick, toy

compile_quickly = quick.compile_quickly

RUN = Callable[[pathlib.Path], object]


def run(path: pathlib.Path, pool: object = None, lag: int = 4, **changes: object) -> object:
    pool = toy.pool() if pool is None else pool
    return lagjax.run(
        toy.task(**changes),
        pool,
        lagjax.FixedLag(lag),
        path,
        lanes=1,
        progress=toy.Told(),
    )


def to(target: lagjax.Model, how: object = "0 1 0 1") -> tuple[lagjax.Candidate, ...]:
    return (lagjax.Candidate("one", lagjax.Grow(depth=how), target),)


def table(**changes: str | None) -> dict[str, object]:
    """A task whose axes table has rows changed, added or, with None, left out."""
    rows = dict(toy.AXES.rows)
    for name, axes in changes.items():
        pattern = {"down": "layers/down", "up": "layers/up"}.get(name, name)
        rows.pop(pattern, None)
        if axes is not None:
            rows[pattern] = axes
    axes = Axes(rows, dict(toy.AXES.kinds))
    return {"axes": axes, "pool": to(toy.LARGE._replace(axes=axes))}


def loss_of(returned: Callable[[object, object], object]) -> lagjax.Model:
    return toy.LARGE._replace(loss=lambda params, batch, key: returned(params, batch))


def shadowed() -> dict[str, object]:
    axes = Axes(
        {
            "embed": "=vocab >embed",
            "layers/.*": "#layers a b",
            "layers/up": "#layers <embed >mlp",
        }
    )
    return {"axes": axes, "pool": to(toy.LARGE._replace(axes=axes))}


IN_PYTHON: dict[str, tuple[RUN, list[str]]] = {
    "fewer layers": (lambda p: run(p, (lagjax.Candidate("one", lagjax.Grow(depth=Stack()), toy.model(1)),)), ["1 layers", "2", "growth adds"]),
    "another width": (lambda p: run(p, to(toy.model(4, width=16))), ["embed", "8", "16", "say how, as in Grow(width={"]),
    "missing row": (lambda p: run(p, **table(down=None)), ["layers/down", "(2, 16, 8)", "add"]),
    "misspelt row": (lambda p: run(p, **table(**{"layers/dwon": "#layers <mlp >embed+"})), ["layers/dwon", "layers/down", "nearest"]),
    "shadowed row": (lambda p: run(p, **shadowed()), ["layers/up", "layers/.*", "shadowed"]),
    "loss of one number": (lambda p: run(p, to(loss_of(lambda params, batch: jnp.zeros(())))), ["expected two scalars", "nll.sum()"]),
    "loss for each token": (lambda p: run(p, to(loss_of(lambda params, batch: (jnp.zeros(batch.shape), 1)))), ["(4, 9)", "expected two scalars"]),
    "loss not finite": (lambda p: run(p, to(loss_of(lambda params, batch: (params["embed"].sum() * jnp.nan, 1)))), ["not finite right after growing"]),
    "empty pool": (lambda p: run(p, ()), ["pool is empty"]),
    "a name twice": (lambda p: run(p, to(toy.LARGE) * 2), ["'one'", "2 candidates"]),
    "a layer that does not exist": (lambda p: run(p, to(toy.LARGE, "0 1 2 1")), ["layer 2", "0 to 1"]),
    "a word too short": (lambda p: run(p, to(toy.LARGE, "0 1 1")), ["3 layers", "4"]),
    "no word": (lambda p: run(p, to(toy.LARGE, "0 1 up 1")), ["'up'", "'new'"]),
    "lag beyond the horizon": (lambda p: run(p, lag=25), ["25", "24"]),
    "no validation": (lambda p: run(p, valid=()), ["no validation shards"]),
    "shards of two shapes": (lambda p: run(p, valid=(toy.VALID[0], toy.VALID[1][:2])), ["(2, 9)", "(4, 9)"]),
    "no optimizer state to grow": (lambda p: run(p, moments="grow"), ["opt_state", "reset"]),
    "neither tx nor engine": (lambda p: run(p, tx=None), ["neither tx nor an engine"]),
    "under a file": (lambda p: run(_file(p) / "run"), ["file"]),
    "at a file": (lambda p: run(_file(p)), ["file"]),
    "a folder of other things": (lambda p: run(_file(p).parent), ["other files"]),
}  # fmt: skip


def _file(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    return path


@pytest.mark.parametrize("name", IN_PYTHON)
def test_in_python(name: str, tmp_path: pathlib.Path) -> None:
    call, parts = IN_PYTHON[name]
    path = tmp_path / "some" / "run"
    with pytest.raises(ValueError) as raised:
        call(path)
    for part in parts:
        assert part in str(raised.value)
    if path.is_file():
        assert path.read_text() == "precious"
    assert not (path / "decision.json").exists()


CHANGES = {
    "horizon": (lambda p: run(p, horizon=30), "task.horizon is 24 there and 30 here"),
    "seeds": (lambda p: run(p, seeds=2), "task.seeds"),
    "pool": (lambda p: run(p, toy.pool("stack")), "pool"),
    "lag": (lambda p: run(p, lag=5), "FixedLag(steps=4"),
    "source": (
        lambda p: run(p, params=jax.tree.map(lambda x: x + 1, toy.PARAMS)),
        "task.source",
    ),
    "data": (
        lambda p: run(p, batch=lambda seed, step: toy.batch(seed + 1, step)),
        "task.data",
    ),
    "model": (lambda p: run(p, to(toy.model(6), "0 1 0 1 0 1")), "pool"),
}


def test_a_directory_of_another_configuration(tmp_path: pathlib.Path) -> None:
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.json*")}
    for name, (call, part) in CHANGES.items():
        with pytest.raises(ValueError, match="another configuration") as raised:
            call(tmp_path)
        assert part in str(raised.value), name
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json*")} == before


def text_file(content: str) -> Callable[[pathlib.Path], list[str]]:
    def make(folder: pathlib.Path) -> list[str]:
        (folder / "text").write_text(content)
        return ["--data", str(folder / "text")]

    return make


def empty_folder(folder: pathlib.Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["--data", str(folder / "empty")]


COMMANDS: dict[str, tuple[Callable[[pathlib.Path], list[str]], list[str]]] = {
    "no such data": (lambda folder: ["--data", str(folder / "nowhere")], ["nowhere", "does not exist"]),
    "empty data": (text_file(""), ["text"]),
    "folder without text": (empty_folder, ["empty"]),
    "shorter than a window": (text_file("too short"), ["9"]),
    "lag beyond the horizon": (lambda folder: ["--lag", "900"], ["900", "800"]),
    "fewer layers": (lambda folder: ["--grown-layers", "2"], ["2 layers", "3"]),
    "mistyped flag": (lambda folder: ["--horizn", "9"], ["--horizon"]),
    "not a number": (lambda folder: ["--lag", "soon"], ["soon"]),
    "heads do not divide": (lambda folder: ["--heads", "5"], ["width=64", "heads=5"]),
    "under a file": (lambda folder: ["--workdir", str(_file(folder / "a") / "run")], ["file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_on_the_command_line(
    name: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make, parts = COMMANDS[name]
    arguments = make(tmp_path)
    if "--workdir" not in arguments:
        arguments += ["--workdir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["quickstart", *arguments])
    try:
        code = quickstart.cli()
    except SystemExit as stop:
        code = stop.code
    errors = capfd.readouterr().err
    assert code == 2
    assert "Traceback" not in errors
    for part in parts:
        assert part in errors
    assert not (tmp_path / "run").exists()


def test_no_traceback_from_a_real_process(tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-m", "lagjax", "show", str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no run directory" in done.stderr and "Traceback" not in done.stderr
