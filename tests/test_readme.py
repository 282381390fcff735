"""What the README shows is true: its example runs, and its commands are those of CI."""

import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import lagjax
from lagjax.growth import width
from lagjax.store import directory
from tests import quick, toy
from tests.growth import models

compile_quickly = quick.compile_quickly

HERE = pathlib.Path(__file__).parent.parent
README = (HERE / "README.md").read_text()


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


def test_your_own_model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    lines = [line for line in example.splitlines() if line.strip()]
    table = [line for line in lines if line.strip().startswith('r"')]
    assert len(lines) - len(table) < 15
    monkeypatch.chdir(tmp_path)
    params = Net(layers=2).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    names = {"jax": jax, "lagjax": lagjax, "optax": optax, "Net": Net, "params": params}
    namespace = names | {"batch": toy.batch, "valid": toy.VALID}
    exec(example, namespace)  # noqa: S102
    decision = namespace["decision"]
    assert decision.outcome in ("clear", "tie")
    assert decision.lag == 20
    assert len(decision.ranking) >= 12
    record = directory.read(tmp_path / "runs/mine")
    assert max(line["step"] for line in record.curves) == 100
    assert (tmp_path / "runs/mine/report.html").is_file()


def test_certifying(capsys: pytest.CaptureFixture[str]) -> None:
    _, example = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small, large = models.bare(4, 6, layers=2), models.bare(4, 10, layers=4)
    names = {"lagjax": lagjax, "width": width, "small": small, "large": large}
    params = models.drawn(small)
    exec(example, names | {"params": params, "batches": [models.BATCH]})  # noqa: S102
    assert capsys.readouterr().out.startswith("exact\noutputs differ by ")


def test_two_commands_of_one_line_each() -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    first, second = block.strip().splitlines()
    assert first.startswith("python3 -m venv .venv ") and "experiments.quickstart" in first
    assert second.startswith("python3 -m venv .venv-test ") and second.endswith(
        "pytest -n 2 --dist worksteal --cov"
    )


def test_every_flag_of_the_readme_exists() -> None:
    quickstart = pytest.importorskip("experiments.quickstart")
    for flag in re.findall(r"^\| `--([a-z]+)", README, re.MULTILINE):
        assert flag == "help" or flag in quickstart.Config.__dataclass_fields__


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_every_public_name_exists(document: str) -> None:
    """As a user would reach it, with nothing imported but lagjax."""
    named = re.findall(r"\blagjax((?:\.[A-Za-z_]+)+)(?![\w/])", (HERE / document).read_text())
    assert named
    code = "import lagjax\n" + "\n".join(f"lagjax{name}" for name in sorted(set(named)))
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
