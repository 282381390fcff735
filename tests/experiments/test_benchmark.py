"""The benchmark in small: its last line, its counts, and the model that it compares with."""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import types
from contextlib import nullcontext

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.models import gpt
from lagjax.initial import Group
from lagjax.jobs import evaluated
from lagjax.probe import Program
from lagjax.store import directory
from tests import quick

SMALL = [
    "--rounds", "1", "--steps", "2", "--layers", "2", "--width", "16",
    "--grown-parameters", "100000", "--candidates", "2",
    "--runs", "1", "--pool", "2", "--unrolled-layers", "2", "--horizon", "8",
]  # fmt: skip


@pytest.mark.slow
def test_the_last_line_is_the_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *SMALL])
    assert benchmark.cli() == 0
    printed = capsys.readouterr().out
    row = json.loads(printed.splitlines()[-1])
    absent = () if importlib.util.find_spec("torch") else ("step_vs_torch",)
    for name in benchmark.GOALS:
        assert name in printed
        # PyTorch is not among the requirements.
        # So short a search takes less than 15 s beside its steps.
        timed = name == "wall_vs_steps"
        assert row[name] is None if name in absent else timed or row[name] > 0
    assert row["compilations_per_group"] == 1
    assert 0.8 < row["peak_memory_ratio"] < 1.2
    assert row["config"]["steps"] == 2 and row["versions"]["jax"] == jax.__version__
    assert all(name in benchmark.sections([row])[0] for name in benchmark.GOALS)


SEARCH = benchmark.Config(layers=2, width=16, pool=2, unrolled_layers=2, horizon=8)


def test_a_share_is_what_the_ledger_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Counted again from the record: every evaluation and every step of the two probes."""
    monkeypatch.setattr(benchmark.tempfile, "TemporaryDirectory", lambda: nullcontext(tmp_path))
    found = benchmark._share(SEARCH, 2)
    run = directory.read(tmp_path)
    task, pool = benchmark.search(SEARCH, True)
    group = Group(task, pool[0], np.stack(task.valid), None)
    probed = [line for line in run.curves if line["step"] <= 2]
    assert {line["candidate"] for line in probed} == {each.name for each in pool[:2]}
    evaluations = sum(map(evaluated, probed)) / len(task.valid) * group.costs.evaluation
    assert found == pytest.approx(evaluations / (evaluations + 2 * 2 * group.costs.step))
    # Nobody goes on to the horizon for it.
    assert max(line["step"] for line in run.curves) < SEARCH.horizon


def test_a_search_is_timed_with_its_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock of a process that began 1000 s ago; a step takes as long as `advance` does."""
    monkeypatch.setattr(Group, "program", Group.program)
    made: list[int] = []
    original = Group.program

    def program(self: Group, at_once: int) -> Program:
        plain = original(self, at_once)

        def advance(*given: object) -> object:
            made.append(int(given[-1]))
            # A step and a tenth of a second by the clock below, whatever it is really.
            clock[0] += 0.1 * made[-1]
            return plain.advance(*given)

        return plain._replace(advance=advance)

    clock = [0.0]
    monkeypatch.setattr(Group, "program", program)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(quick.report, "write", lambda path: path)
    begun = benchmark.time.time() - 1000
    benchmark.child(str(begun), json.dumps(dataclasses.asdict(SEARCH)), "false")
    seconds, steps = json.loads(capsys.readouterr().out)
    # Two candidates to a quarter of the horizon, and the winner from there to its end.
    assert sum(made) == 2 * 2 + 6
    assert steps == pytest.approx(0.1 * sum(made))
    assert 1000 < seconds < 1000 + benchmark.time.time() - begun


def test_the_worse_of_two_models_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {True: (35.0, 10.0), False: (31.0, 10.0)}
    monkeypatch.setattr(benchmark, "timed", lambda config, scanned: times[scanned])
    bench = types.SimpleNamespace(config=dataclasses.replace(SEARCH, runs=3))
    assert benchmark.wall_vs_steps(bench) == [2.0, 2.0, 2.0]


def test_rows_of_before_have_no_ratio_for_what_is_new() -> None:
    old = dict.fromkeys(benchmark.GOALS, 1.0) | {"device": "cpu", "cores": 2, "commit": "a"}
    del old["wall_vs_steps"]
    (table,) = benchmark.sections([old])
    line = table.splitlines()[-1]
    assert line.split("|")[3:-1].count(" – ") == 1


def test_compilations_are_counted() -> None:
    """One that happens is seen, one that does not is not."""
    with benchmark.compiled("advance") as names:

        def advance(x: jax.Array) -> jax.Array:
            return x * 2

        def other(x: jax.Array) -> jax.Array:
            return x * 3

        for size in (1, 2):
            for function in (advance, advance, other):
                jax.jit(function)(np.ones(size))
    assert len(names) == 2


def test_paired_is_the_ratio_of_one_to_the_other() -> None:
    clock = iter(range(1000))
    calls: list[str] = []
    slow = lambda: calls.append("slow") or [next(clock) for _ in range(3)]
    fast = lambda: calls.append("fast")
    original = benchmark.time.perf_counter
    benchmark.time.perf_counter = lambda: next(clock)
    try:
        assert benchmark.paired(slow, fast, 3) == [4.0, 4.0, 4.0]
    finally:
        benchmark.time.perf_counter = original
    # In turn, and the first round warms up.
    assert calls == ["slow", "fast", "fast", "slow"] * 2


def test_a_name_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--only", "growth_vs_copi"])
    assert benchmark.cli() == 2
    assert "did you mean 'growth_vs_copy'" in capsys.readouterr().err


def test_the_torch_model_is_the_same() -> None:
    """Same weights, same loss, same gradient."""
    torch = pytest.importorskip("torch")
    from experiments.models import gpt_torch

    config = gpt.Config(layers=2, width=16, heads=2, window=8)
    model = gpt.model(config)
    params = model.init(jax.random.key(0))
    batch = np.random.default_rng(0).integers(256, size=(3, 9))
    net = gpt_torch.from_jax(config, jax.device_get(params))
    assert sum(x.numel() for x in net.parameters()) == sum(x.size for x in jax.tree.leaves(params))

    def mean(params: object) -> jax.Array:
        total, count = model.loss(params, batch, None)
        return total / count

    loss, grads = jax.value_and_grad(mean)(params)
    theirs = net(torch.from_numpy(batch))
    theirs.backward()
    assert theirs.item() == pytest.approx(float(loss), abs=1e-5)
    np.testing.assert_allclose(
        net.embed.weight.grad.numpy(), grads["embed"]["embedding"], atol=1e-5
    )
    np.testing.assert_allclose(
        net.layers[1].out.weight.grad.numpy(),
        grads["layers_1"]["attn"]["out"]["kernel"].reshape(16, 16).T,
        atol=1e-5,
    )


def test_a_part_takes_no_whole_rows_place() -> None:
    with pytest.raises(ValueError, match="--only data_vs_step is a part of one; leave out either"):
        benchmark.main(benchmark.Config(only=("data_vs_step",), record=True))
