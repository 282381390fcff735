"""The benchmark in small: its last line, its counts, and the model that it compares with."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.models import gpt

SMALL = [
    "--rounds", "1", "--steps", "2", "--layers", "1", "--width", "16",
    "--grown-parameters", "100000", "--candidates", "2",
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
        assert row[name] is None if name in absent else row[name] > 0
    assert row["compilations_per_group"] == 1
    assert 0.8 < row["peak_memory_ratio"] < 1.2
    assert row["config"]["steps"] == 2 and row["versions"]["jax"] == jax.__version__
    assert all(name in benchmark.sections([row])[0] for name in benchmark.GOALS)


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
