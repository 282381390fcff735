"""The command line that all experiments share: flags, exit codes, and where messages go."""

import dataclasses
import sys
from collections.abc import Callable

import pytest

from experiments.cli import command

Captured = pytest.CaptureFixture[str]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is asked."""

    steps: int = 3
    """How many steps."""


def run(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[Config], None], *flags: str, **more: str
) -> int:
    monkeypatch.setattr(sys, "argv", ["toy", *flags])
    return command(main, "toy", Config, "A toy.", **more)()


def test_flags_are_the_fields(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    seen: list[Config] = []
    assert run(monkeypatch, seen.append, "--steps", "5") == 0
    assert seen == [Config(5)]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, seen.append, "--help")
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert "A toy." in told and "How many steps." in told


@pytest.mark.parametrize("error", [ValueError("no [steps] left"), OSError("the disk is full")])
def test_errors_are_told_without_a_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def main(config: Config) -> None:
        raise error

    assert run(monkeypatch, main) == 2
    assert capsys.readouterr() == ("", f"toy: {error}\n")


def test_a_mistake_in_the_code_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(config: Config) -> None:
        raise TypeError("a mistake")

    with pytest.raises(TypeError):
        run(monkeypatch, main)


def test_an_interrupt_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def main(config: Config) -> None:
        raise KeyboardInterrupt

    assert run(monkeypatch, main, interrupted="interrupted; nothing is lost") == 130
    assert capsys.readouterr() == ("", "\ninterrupted; nothing is lost\n")
