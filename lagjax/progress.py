"""What long work shows while it goes on."""

import contextlib
import time
from typing import IO, NamedTuple, Protocol, Self, cast

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lagjax.jobs import Advance, Trial


class Event(NamedTuple):
    """Where the work stands.

    Attributes:
        phase: "source", "probe" or "continue".
        candidates: the candidate at work, or how many are.
        step: training steps made.
        until: the step at which they stop.
        valid_loss: the last one measured, nats per token, the mean over the candidates at work;
            None before the first.
        train_loss: likewise.
        tokens_per_second: of training, evaluations and saving included; None before the first step.
        share: how much of the phase is done, 0 to 1, by FLOPs.
        seconds_left: until the phase ends; None before the first step.
    """

    phase: str
    candidates: str
    step: int
    until: int
    valid_loss: float | None
    train_loss: float | None
    tokens_per_second: float | None
    share: float
    seconds_left: float | None


class Progress(Protocol):
    """Is told of every step forward, and of what the user should know."""

    def __call__(self, event: Event, /) -> None: ...

    def note(self, text: str, /) -> None: ...


class Meter:
    """Tells a progress how far a round of jobs has come."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phase: dict[Trial, str] = {}
        self._at: dict[Trial, int] = {}
        self._until: dict[Trial, int] = {}
        self._cost: dict[Trial, float] = {}
        self._began, self._flops, self._tokens = time.monotonic(), 0.0, 0.0

    def expect(self, trial: Trial, phase: str, at: int, until: int, cost: float) -> None:
        """A trial stands at a step and shall come to another; `cost` in FLOPs a step."""
        self._phase[trial], self._at[trial] = phase, at
        self._until[trial], self._cost[trial] = until, cost

    def show(self, advance: Advance) -> None:
        """Tells of steps that were made."""
        self._at |= dict.fromkeys(advance.trials, advance.step)
        self._flops += advance.flops
        self._tokens += advance.tokens
        # Clocks may be too coarse to tell a first step from the start.
        elapsed = max(time.monotonic() - self._began, 1e-9)
        whole = sum(self._until[trial] * cost for trial, cost in self._cost.items())
        done = sum(self._at[trial] * cost for trial, cost in self._cost.items())
        first, *others = advance.trials
        self._progress(
            Event(
                self._phase[first],
                f"{len(others) + 1} candidates" if others else first.candidate,
                advance.step,
                self._until[first],
                advance.valid_loss,
                advance.train_loss,
                self._tokens / elapsed,
                done / whole if whole else 1.0,
                max(whole - done, 0.0) * elapsed / self._flops if self._flops else None,
            )
        )


def shown(progress: Progress) -> contextlib.AbstractContextManager[object]:
    """Leaves a progress that is a context manager, as `Display` is, however the work ends: a
    terminal must get its cursor back.
    """
    if isinstance(progress, contextlib.AbstractContextManager):
        return progress
    return contextlib.nullcontext()


class Terminal(Console):
    """The caller's own stream, which shows a question mark where it lacks a sign.

    A terminal of ASCII must cost nobody a table; a test, a notebook may put another stream there.
    """

    @property  # type: ignore[misc]
    def file(self) -> IO[str]:
        """The stream, which is looked up anew each time."""
        return cast(IO[str], _Lenient(super().file))


class _Lenient:
    """A stream that does not mind signs that it cannot encode."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(text.encode(encoding, "replace").decode(encoding))


class Silent:
    """Shows nothing but notes."""

    def __call__(self, event: Event, /) -> None:
        del event

    def note(self, text: str, /) -> None:
        Terminal(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


class Display:
    """One line on a terminal that is kept up to date, and a line every few seconds elsewhere."""

    def __init__(self, console: Console | None = None, seconds: float = 10.0) -> None:
        self._console = console or Terminal(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._seconds = seconds
        self._phase, self._printed = "", 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._live.stop()

    def __call__(self, event: Event, /) -> None:
        # A terminal that is closed, or lacks a sign, must not end the work.
        with contextlib.suppress(OSError, ValueError):
            self._show(event)

    def _show(self, event: Event) -> None:
        if self._console.is_terminal:
            self._live.start()
            self._live.update(_table(event), refresh=True)
            if event.share >= 1:
                self._live.stop()
        elif (
            event.phase != self._phase
            or time.monotonic() - self._printed > self._seconds
            or event.share >= 1
        ):
            self._printed = time.monotonic()
            self.note("  ".join(cell for cell in _cells(event) if cell))
        self._phase = event.phase

    def note(self, text: str, /) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table(event: Event) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(*_cells(event))
    return table


def _cells(event: Event) -> tuple[str, ...]:
    return (
        f"{event.phase} {event.share:4.0%}",
        event.candidates,
        f"step {event.step}/{event.until}",
        "" if event.train_loss is None else f"train {event.train_loss:.3f}",
        "" if event.valid_loss is None else f"valid {event.valid_loss:.3f}",
        "" if event.tokens_per_second is None else f"{event.tokens_per_second:,.0f} tokens/s",
        "" if event.seconds_left is None else f"{duration(event.seconds_left)} left",
    )


def duration(seconds: float) -> str:
    """A time in words: `7 s`, `3 min`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
