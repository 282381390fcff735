"""What long work shows: a terminal that fails must not end it, and gets its cursor back."""

import io

import pytest
from rich.console import Console

from lagjax.progress import Display, Event, Silent, shown

EVENT = Event("probe", "größer → tiefer", 3, 8, 1.5, 1.4, 100.0, 0.4, 7.0)


def test_elsewhere_than_on_a_terminal_it_is_a_line():
    stream = io.StringIO()
    Display(Console(file=stream, width=200))(EVENT)
    assert stream.getvalue().split() == (
        [
            "probe",
            "40%",
            "größer",
            "→",
            "tiefer",
            "step",
            "3/8",
            "train",
            "1.400",
            "valid",
            "1.500",
            "100",
            "tokens/s",
            "7",
            "s",
            "left",
        ]
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stream_that_was_closed_ends_nothing(terminal):
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=terminal))
    stream.close()
    with display:
        display(EVENT)
        display.note("a note")


def test_a_stream_without_the_sign_ends_nothing():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Display(Console(file=stream))(EVENT)


def test_a_terminal_gets_its_cursor_back():
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=True))
    with pytest.raises(KeyboardInterrupt), shown(display):
        display(EVENT)
        assert stream.getvalue().count("\x1b[?25l") == 1 and "\x1b[?25h" not in stream.getvalue()
        raise KeyboardInterrupt
    assert stream.getvalue().count("\x1b[?25h") == 1


def test_one_that_is_no_context_manager_is_left_alone():
    with shown(Silent()) as progress:
        assert progress is None
