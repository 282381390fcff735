"""Bad input: messages name what was found, what was expected and the remedy; nothing is lost."""

import pathlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import pytest

import lagjax
from experiments import quickstart
from lagjax.algebra.axes import Axes
from lagjax.growth.depth import Stack
from tests import quick, toy

no_page, groups_kept = quick.no_page, quick.groups_kept

RUN = Callable[[pathlib.Path], object]


def run(path: pathlib.Path, pool: object = None, lag: int = 4, **changes: object) -> object:
    pool = toy.pool("stack", "random-top") if pool is None else pool
    names = ("keep", "compare", "candidates_at_once", "mesh", "checkpoint_seconds")
    options = {name: changes.pop(name) for name in names if name in changes}
    options = {"candidates_at_once": 1, "progress": toy.Told(), **options}
    policy = changes.pop("policy", lagjax.FixedLag(lag))
    return lagjax.run(toy.task(**changes), pool, policy, path, **options)


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
    return _with(axes)


def _with(axes: Axes) -> dict[str, object]:
    model = toy.SMALL._replace(axes=axes)
    return {"model": model, "pool": to(toy.LARGE._replace(axes=axes))}


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
    return _with(axes)


def with_transfer(transfer: lagjax.Transfer) -> tuple[lagjax.Candidate, ...]:
    return tuple(each._replace(transfer=transfer) for each in to(toy.LARGE))


def with_dropout(params: dict, batch: jax.Array, key: jax.Array) -> tuple:
    """Draws even in evaluation, where there is no key."""
    kept = jax.random.bernoulli(key, 0.9)
    return toy.LARGE.loss(params, batch, key)[0] * kept, batch.size


@dataclass(frozen=True)
class Bare:
    """An operator that has no plan."""

    def __call__(self, key, params, source, target):
        return lagjax.Grow(depth="0 1 0 1")(key, params, source, target)


@dataclass(frozen=True)
class Other:
    """Grows nothing."""

    def __call__(self, key, params, source, target):
        return params


GROWN = {
    "source": lagjax.Trained(toy.PARAMS, toy.tx().init(toy.PARAMS)),
    "transfer": lagjax.Transfer("grow"),
}
IN_PYTHON: dict[str, tuple[RUN, list[str]]] = {
    "fewer layers": (
        lambda p: run(p, (lagjax.Candidate("one", lagjax.Grow(depth=Stack()), toy.model(1)),)),
        ["candidate 'one'", "1 layers", "2", "growth adds"],
    ),
    "another width": (
        lambda p: run(p, to(toy.model(4, width=16))),
        ["embed", "8", "16", "say how, as in Grow(width={"],
    ),
    "missing row": (lambda p: run(p, **table(down=None)), ["layers/down", "(2, 16, 8)", "add"]),
    "misspelt row": (
        lambda p: run(p, **table(**{"layers/dwon": "#layers <mlp >embed+"})),
        ["layers/dwon", "layers/down", "nearest"],
    ),
    "shadowed row": (lambda p: run(p, **shadowed()), ["layers/up", "layers/.*", "shadowed"]),
    "loss of one number": (
        lambda p: run(p, to(loss_of(lambda params, batch: jnp.zeros(())))),
        ["expected two scalars", "nll.sum()"],
    ),
    "loss for each token": (
        lambda p: run(p, to(loss_of(lambda params, batch: (jnp.zeros(batch.shape), 1)))),
        ["(4, 9)", "expected two scalars"],
    ),
    "loss not finite": (
        lambda p: run(p, to(loss_of(lambda params, batch: (params["embed"].sum() * jnp.nan, 1)))),
        ["not finite right after growing"],
    ),
    "empty pool": (lambda p: run(p, ()), ["pool is empty"]),
    "a name twice": (lambda p: run(p, to(toy.LARGE) * 2), ["'one'", "2 candidates"]),
    "a layer that does not exist": (
        lambda p: run(p, to(toy.LARGE, "0 1 2 1")),
        ["layer 2", "0 to 1"],
    ),
    "a word too short": (lambda p: run(p, to(toy.LARGE, "0 1 1")), ["3 layers", "4"]),
    "no word": (lambda p: run(p, to(toy.LARGE, "0 1 up 1")), ["'up'", "'new'"]),
    "lag beyond the horizon": (lambda p: run(p, lag=25), ["25", "24"]),
    "no validation": (lambda p: run(p, valid=()), ["no validation shards"]),
    "shards of two shapes": (
        lambda p: run(p, valid=(toy.VALID[0], toy.VALID[1][:2])),
        ["(2, 9)", "(4, 9)"],
    ),
    "no optimizer state to grow": (
        lambda p: run(p, transfer=lagjax.Transfer("grow")),
        ["the task's moments='grow'", "Trained(params, opt_state)", "reset"],
    ),
    "a schedule of a candidate's own": (
        lambda p: run(p, with_transfer(lagjax.Transfer("reset", "continue"))),
        ["candidate 'one''s", "schedule='continue'", "restart the schedule"],
    ),
    "no such moments": (
        lambda p: run(p, transfer=lagjax.Transfer("copy")),
        ["the task's moments is 'copy'", "'reset', 'grow', 'originals', 'measure'"],
    ),
    "no such schedule": (
        lambda p: run(p, transfer=lagjax.Transfer("reset", "soon")),
        ["schedule is 'soon'", "'restart', 'continue'"],
    ),
    "moments of an operator without a plan": (
        lambda p: run(p, (lagjax.Candidate("one", Bare(), toy.LARGE),), **GROWN),
        ["Bare()", "not linear", "Transfer(moments='reset')"],
    ),
    "an optimizer state of another": (
        lambda p: run(p, source=lagjax.Trained(toy.PARAMS, ()), transfer=lagjax.Transfer("grow")),
        ["not made by tx.init", "reset the moments"],
    ),
    "the small model's name": (
        lambda p: run(p, (to(toy.LARGE)[0]._replace(name="source"),)),
        ["'source'", "small model", "another name"],
    ),
    "another tree": (
        lambda p: run(p, (lagjax.Candidate("one", Other(), toy.LARGE),)),
        ["candidate 'one'", "differs in shapes from the target"],
    ),
    "no horizon": (lambda p: run(p, horizon=0), ["horizon is 0", "at least 1"]),
    "a horizon as text": (lambda p: run(p, horizon="20"), ["horizon is '20'", "whole number"]),
    "a lag that is no number": (
        lambda p: run(p, lag=float("nan")),
        ["FixedLag", "lag at a horizon of 24 is nan", "whole number from 1 to 24"],
    ),
    "half a lag": (lambda p: run(p, lag=4.5), ["lag at a horizon of 24 is 4.5"]),
    "a share that is none": (
        lambda p: run(p, policy=lagjax.FixedLag(share="x")),
        ["FixedLag", "share is 'x'"],
    ),
    "a policy without an answer": (
        lambda p: run(p, policy=lambda evidence: None),
        ["answers None", "Probe(until)"],
    ),
    "a policy that raises": (
        lambda p: run(p, policy=lambda evidence: evidence.nothing_like_it),
        ["the policy <function", "raised AttributeError", "nothing_like_it"],
    ),
    "no operator": (
        lambda p: run(p, (lagjax.Candidate("one", None, toy.LARGE),)),
        ["candidate 'one'", "operator None", "Grow(depth="],
    ),
    "an operator that raises": (
        lambda p: run(p, (lagjax.Candidate("one", lambda *given: 1 / 0, toy.LARGE),)),
        ["candidate 'one' raised ZeroDivisionError"],
    ),
    "controls alone": (
        lambda p: run(p, tuple(x._replace(role="control") for x in to(toy.LARGE))),
        ["none of them can win", "role 'candidate'"],
    ),
    "no optimizer": (lambda p: run(p, tx=3), ["tx is 3", "optax"]),
    "a table that is none": (
        lambda p: run(p, **_with({"embed": "=vocab >embed"})),
        ["axes are of type dict", "lagjax.Axes("],
    ),
    "a row that is no text": (
        lambda p: Axes({"embed": ("vocab", "embed")}),
        ["row 'embed': ('vocab', 'embed')", "as text"],
    ),
    "a batch that is none": (lambda p: run(p, batch=lambda seed, step: None), ["returned None"]),
    "a batch of lists": (
        lambda p: run(p, batch=lambda seed, step: toy.batch(seed, step).tolist()),
        ["np.asarray"],
    ),
    "a batch of another shape": (
        lambda p: run(p, batch=lambda seed, step: toy.batch(seed, step)[: 4 - (step == 23)]),
        ["seed 0 and step 23", "(3, 9)", "(4, 9)", "pad"],
    ),
    "a batch function that raises": (
        lambda p: run(p, batch=lambda seed, step: {}["x"]),
        ["the batch function <function", "seed 0 and step 0", "KeyError: 'x'"],
    ),
    "a loss that needs its key": (
        lambda p: run(p, to(toy.LARGE._replace(loss=with_dropout))),
        ["candidate 'one'", "evaluating", "key=None", "TypeError"],
    ),
    "a loss that raises": (
        lambda p: run(p, to(loss_of(lambda params, batch: params["nothing"]))),
        ["candidate 'one'", "KeyError: 'nothing'"],
    ),
    "none at once": (
        lambda p: run(p, candidates_at_once=0),
        ["candidates_at_once is 0", "at least 1"],
    ),
    "less than none at once": (
        lambda p: run(p, candidates_at_once=-1),
        ["candidates_at_once is -1"],
    ),
    "no mesh": (lambda p: run(p, mesh="x"), ["mesh is 'x'", "jax.make_mesh"]),
    "no folder": (lambda p: run(None), ["run directory is None"]),
    "a bucket": (lambda p: run("gs://bucket/run"), ["gs:", "local folder"]),
    "a schedule before its start": (
        lambda p: run(p, transfer=lagjax.Transfer("reset", -5)),
        ["the task's schedule", "-5", "at least 0"],
    ),
    "no such comparison": (lambda p: run(p, compare="x"), ["compare is 'x'", "'start'"]),
    "no time between checkpoints": (
        lambda p: run(p, checkpoint_seconds=-1),
        ["checkpoint_seconds is -1"],
    ),
    "a letter that is no layer": (
        lambda p: lagjax.Grow(depth={"layers": "0 x 1"}),
        ["'x' is no layer"],
    ),
    "a word of no layers": (lambda p: lagjax.Grow(depth=""), ["''", "names no layer"]),
    "no seeds": (lambda p: run(p, seeds=0), ["seeds is 0"]),
    "neither tx nor engine": (lambda p: run(p, tx=None), ["neither tx nor an engine"]),
    "under a file": (lambda p: run(_file(p) / "run"), ["file"]),
    "at a file": (lambda p: run(_file(p)), ["file"]),
    "a folder of other things": (lambda p: run(_file(p).parent), ["other files"]),
}


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
    # Only what has to be computed is found when the run has begun.
    assert (path / "config.json").exists() == (name == "loss not finite")


CHANGES = {
    "horizon": (lambda p: run(p, horizon=30), "task.horizon is 24 there and 30 here"),
    "seeds": (lambda p: run(p, seeds=2), "task.seeds"),
    "pool": (lambda p: run(p, toy.pool("stack")), "pool"),
    "lag": (lambda p: run(p, lag=5), "FixedLag(steps=4"),
    "source": (
        lambda p: run(p, source=lagjax.Trained(jax.tree.map(lambda x: x + 1, toy.PARAMS))),
        "task.source",
    ),
    "position": (
        lambda p: run(p, source=lagjax.Trained(toy.PARAMS, position=3)),
        "task.position is 0 there and 3 here",
    ),
    "transfer": (
        lambda p: run(p, transfer=lagjax.Transfer("measure")),
        "task.transfer.moments is 'reset' there and 'measure' here",
    ),
    "a candidate's transfer": (
        lambda p: run(
            p,
            tuple(
                x._replace(transfer=lagjax.Transfer("measure"))
                for x in toy.pool("stack", "random-top")
            ),
        ),
        "pool[0].transfer.moments",
    ),
    "keep": (lambda p: run(p, keep="all"), "keep is 'winner' there and 'all' here"),
    "compare": (lambda p: run(p, compare="start"), "compare is 'none' there"),
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
    "no such data": (
        lambda folder: ["--data", str(folder / "nowhere")],
        ["nowhere", "does not exist"],
    ),
    "empty data": (text_file(""), ["text"]),
    "folder without text": (empty_folder, ["empty"]),
    "shorter than a window": (text_file("too short"), ["9"]),
    "lag beyond the horizon": (lambda folder: ["--lag", "900"], ["900", "800"]),
    "fewer layers": (lambda folder: ["--grown-layers", "2"], ["2 layers", "3"]),
    "mistyped flag": (lambda folder: ["--horizn", "9"], ["--horizon"]),
    "not a number": (lambda folder: ["--lag", "soon"], ["soon"]),
    "heads do not divide": (lambda folder: ["--heads", "5"], ["width=48", "heads=5"]),
    "under a file": (lambda folder: ["--workdir", str(_file(folder / "a") / "run")], ["file"]),
}


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
