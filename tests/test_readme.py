"""What the README shows is true: its examples run, and its commands are those of CI."""

import dataclasses
import functools
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import lagjax
from lagjax.growth import width
from lagjax.store import directory
from tests import toy
from tests.growth import models

HERE = pathlib.Path(__file__).parent.parent
README = (HERE / "README.md").read_text()
EXAMPLE, BASELINES, POLICY, ENGINE, CERTIFYING = re.findall(
    r"```python\n(.*?)```", README, re.DOTALL
)
NAMES = {
    "batch": toy.batch,
    "dataclasses": dataclasses,
    "jax": jax,
    "lagjax": lagjax,
    "nnx": nnx,
    "optax": optax,
    "valid": toy.VALID,
}


class Block(nn.Module):
    """A gated MLP, pre-norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.RMSNorm(name="norm")(x)
        up, gate = (nn.Dense(16, use_bias=False, name=name)(y) for name in ("up", "gate"))
        return x + nn.Dense(8, use_bias=False, name="down")(up * nn.silu(gate))


class Net(nn.Module):
    """What a reader of the README has: a Flax module that lagjax has never seen."""

    layers: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(16, 8, name="embed")
        x = embed(tokens)
        for layer in range(self.layers):
            x = Block(name=f"layers_{layer}")(x)
        return embed.attend(nn.RMSNorm(name="final_norm")(x))


class NnxBlock(nnx.Module):
    """`Block`."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.up, self.gate = (nnx.Linear(8, 16, use_bias=False, rngs=rngs) for _ in range(2))
        self.down = nnx.Linear(16, 8, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x)
        return x + self.down(self.up(y) * nnx.silu(self.gate(y)))


class NnxNet(nnx.Module):
    """`Net`, whose parameters have the same paths."""

    def __init__(self, layers: int, rngs: nnx.Rngs) -> None:
        self.layers = layers
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        for layer in range(layers):
            setattr(self, f"layers_{layer}", NnxBlock(rngs))
        self.final_norm = nnx.RMSNorm(8, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        for layer in range(self.layers):
            x = getattr(self, f"layers_{layer}")(x)
        return self.embed.attend(self.final_norm(x))


def loss(apply: Callable[[jax.Array], jax.Array], shards: int = len(toy.VALID)) -> float:
    """The validation loss of a model on the first shards, by nothing but its outputs."""
    tokens = jnp.stack(toy.VALID[:shards])
    logits = jax.vmap(apply)(tokens[..., :-1])
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[..., 1:])
    return float(nats.mean())


def test_your_own_model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in EXAMPLE.splitlines() if line.strip()]
    table = [line for line in lines if line.strip().startswith('r"')]
    assert len(lines) - len(table) < 15
    monkeypatch.chdir(tmp_path)
    # However slow the machine is, the last two checkpoints are those of the lag and of the end.
    monkeypatch.setattr(lagjax, "run", functools.partial(lagjax.run, checkpoint_seconds=1e9))
    params = Net(layers=2).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    names = NAMES | {"Net": Net, "params": params}
    exec(EXAMPLE, names)  # noqa: S102
    decision, large, trained = (names[name] for name in ("decision", "large", "trained"))
    assert decision.outcome in ("clear", "tie")
    assert decision.lag == 20
    assert len(decision.ranking) >= 12
    assert (tmp_path / "runs/mine/report.html").is_file()

    def of(params: object, shards: int = len(toy.VALID)) -> float:
        return loss(lambda tokens: Net(layers=4).apply({"params": params}, tokens), shards)

    assert jax.tree.structure(trained.params) == jax.tree.structure(large.init(jax.random.key(0)))
    last = directory.read(tmp_path / "runs/mine").curves[-1]
    assert (last["candidate"], last["step"], int(trained.step)) == (decision.winner, 100, 100)
    assert of(trained.params) == pytest.approx(last["valid_loss"], rel=1e-5)
    # It was chosen by the average that a task keeps.
    assert decision.weights == "average"
    at_lag = lagjax.load("runs/mine", large, step=decision.lag, average="average")
    (line,) = toy.curve(pathlib.Path("runs/mine"), decision.winner)[1:2]
    shards = len(line["valid_loss_shards"])
    assert line["step"] == decision.lag and shards < len(toy.VALID)
    assert of(at_lag.params, shards) == pytest.approx(
        decision.losses_at_lag[decision.winner], rel=1e-5
    )


@pytest.mark.slow
def test_your_own_model_in_nnx(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the words of the README's sentence on nnx; with its baselines, which are no candidates."""
    split, merge, init, whole = re.findall(
        r"`((?:graph, params = |lambda key: )?nnx\..*?)`", README.partition("## Your own model")[2]
    )
    given = {
        "def model_of(net):\n": f"def model_of(net):\n    {split}\n",
        'lambda key: net.init(key, batch(0, 0)[:, :-1])["params"]': init.replace("4", "net.layers"),
        'net.apply({"params": params}, ': f"{merge}(",
        "Net(layers=2)": "Net(2, nnx.Rngs(0))",
        "Net(layers=4)": "Net(4, nnx.Rngs(0))",
        "horizon=100": "horizon=20",
        '"runs/mine")': '"runs/mine", keep="all")',
        "task = ": f"pool = pool[:3]\n{BASELINES}task = ",
    }
    example = EXAMPLE
    for linen, other in given.items():
        assert linen in example
        example = example.replace(linen, other)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lagjax.runs.report, "write", lambda path: path)
    params = nnx.state(NnxNet(2, nnx.Rngs(3)), nnx.Param)
    names = NAMES | {"Net": NnxNet, "params": params}
    exec(example, names)  # noqa: S102
    decision, small, large = (names[name] for name in ("decision", "small", "large"))
    assert len(decision.ranking) == 5
    assert decision.winner not in ("not growing", "from scratch")
    grown = large, nnx.graphdef(NnxNet(4, nnx.Rngs(0)))
    for name in decision.ranking:
        model, graph = (
            (small, nnx.graphdef(NnxNet(2, nnx.Rngs(0)))) if name == "not growing" else grown
        )
        # By the average, as it was chosen.
        at, weights = decision.lags[name], decision.weights
        trained = lagjax.load("runs/mine", model, candidate=name, step=at, average=weights)
        assert isinstance(trained.params, nnx.State)
        net = eval(whole, {"nnx": nnx, "graph": graph, "trained": trained})
        assert loss(net, 2) == pytest.approx(decision.losses_at_lag[name], rel=1e-5)


def test_a_policy_and_a_training_loop_of_your_own(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lagjax.runs.report, "write", lambda path: path)
    names = dict(NAMES)
    exec(POLICY + ENGINE, names)  # noqa: S102
    task = toy.task(engine=names["averaging"], horizon=16)
    decision = lagjax.run(task, toy.pool(), names["Halving"](4), tmp_path, progress=toy.Told())
    assert sorted(decision.status.values()) == [
        "ok",
        *["stopped at step 4"] * 2,
        "stopped at step 8",
    ]
    assert decision.lag == 16
    trained = lagjax.load(tmp_path, toy.LARGE, tx=task.tx)
    last = toy.curve(tmp_path, decision.winner)[-1]
    for params, found in (
        (trained.params, last["valid_loss"]),
        (trained.collections["average"], last["metrics"]["valid_averaged"]),
    ):
        assert loss(
            lambda x, params=params: toy.LARGE.apply(params, jnp.pad(x, ((0, 0), (0, 1))))
        ) == (pytest.approx(found, rel=1e-5))
    assert last["valid_loss"] != last["metrics"]["valid_averaged"]


def test_certifying(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = models.bare(4, 6, layers=2), models.bare(4, 10, layers=4)
    names = {"lagjax": lagjax, "width": width, "small": small, "large": large}
    params = models.drawn(small)
    exec(CERTIFYING, names | {"params": params, "batches": [models.BATCH]})  # noqa: S102
    assert capsys.readouterr().out.startswith("exact\noutputs differ by ")


def test_two_commands_of_one_line_each() -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    first, second = block.strip().splitlines()
    assert first.startswith("python3 -m venv .venv ") and "experiments.quickstart" in first
    assert second.startswith("python3 -m venv .venv-test ") and second.endswith(
        "pytest -n 2 --dist worksteal"
    )


def test_every_flag_of_the_readme_exists() -> None:
    quickstart = pytest.importorskip("experiments.quickstart")
    flags = re.findall(r"`--([a-z-]+)", README)
    assert len(flags) > 8
    for flag in flags:
        name = flag.replace("-", "_")
        assert name == "help" or name in quickstart.Config.__dataclass_fields__


def test_every_public_name_exists() -> None:
    """As a user would reach it, with nothing imported but lagjax."""
    code = "import lagjax\n"
    for document in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        named = re.findall(r"\blagjax((?:\.[A-Za-z_]+)+)(?![\w/])", (HERE / document).read_text())
        assert named, document
        code += "".join(f"lagjax{name}  # {document}\n" for name in sorted(set(named)))
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
