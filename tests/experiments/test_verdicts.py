"""Verdicts on claims: known by hand on made-up audits."""

import numpy as np
import pytest

from experiments import verdicts
from experiments.verdicts import Ended, Part, kind_of

STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
WORDS = {
    "zeroed-interleave": "0 0* 1 1* 2 2*",
    "identity-top": "0 1 2 new* new* new*",
    "stack": "0 1 2 0 1 2",
    "block-1": "0 1 1 1 1 2",
    "interleave": "0 0 1 1 2 2",
    "random-top": "0 1 2 new new new",
}
TWICE = [*WORDS, *(f"{name}, again" for name in WORDS)]
EXACT = np.array([True, True, False, False, False, False] * 2)


def made(start: list[float], end: list[float], turn: int, noise: float = 1e-4) -> Ended:
    """Losses that follow `start` before the step `turn`, and `end` from there on, each of them twice
    and a little above; three seeds that differ by noise.
    """
    draw = np.random.default_rng(0)
    start, end = ([*losses, *(loss + 0.01 for loss in losses)] for losses in (start, end))
    curve = [start if step < turn else end for step in STEPS]
    losses = np.array(curve)[:, :, None] + noise * draw.normal(size=(len(STEPS), len(end), 3))
    losses[0] = np.array(start)[:, None]
    return Ended(tuple(TWICE), (*WORDS.values(),) * 2, EXACT, STEPS, losses)


LEAP = made([1.0, 1.0, 1.5, 1.4, 1.3, 1.2], [1.5, 1.4, 1.0, 1.1, 1.2, 1.3], 16)
"""What is low at the start is high at the end, from step 16 on."""
STEADY = made([1.0, 1.0, 1.2, 1.3, 1.4, 1.5], [1.0, 1.02, 1.2, 1.3, 1.4, 1.5], 1)
"""What is low at the start ends low."""


def answers(ended: Ended) -> dict[str, str]:
    return {each.hypothesis: each.answer for each in verdicts.judge(ended, 200)}


def test_a_leap_is_what_the_paper_says() -> None:
    assert answers(LEAP) == {
        "H1": "supported", "H2": "supported", "H3": "supported",
        "H5": "supported", "H6": "refuted", "H7": "supported",
    }  # fmt: skip
    found = {each.hypothesis: each.parts for each in verdicts.judge(LEAP, 50)}
    assert found["H3"][0].what.endswith("at step 16")
    # The best exact member ends 0.4 above the best; the copies (1.0, 1.1) 0.15 below interleaving.
    assert found["H1"][1].value == pytest.approx(0.4 - LEAP.floor, abs=1e-3)
    assert [part.value for part in found["H5"]] == pytest.approx([-0.15, -0.25], abs=1e-3)


def test_where_the_start_tells_there_is_nothing_to_wait_for() -> None:
    assert answers(STEADY) == {
        "H1": "refuted", "H2": "refuted", "H3": "supported",
        "H5": "supported", "H6": "supported", "H7": "refuted",
    }  # fmt: skip


def test_where_seeds_disagree_nothing_is_concluded() -> None:
    losses = STEADY.losses.copy()
    copies = np.array([kind_of(word) == "neighbour" for word in STEADY.words])
    losses[-1, copies] += np.array([-1.0, 0.0, 1.0])
    assert answers(STEADY._replace(losses=losses))["H5"] == "inconclusive"


def test_a_claim_needs_its_members() -> None:
    few = Ended(LEAP.names[2:5], LEAP.words[2:5], EXACT[2:5], STEPS, LEAP.losses[:, 2:5])
    few = few._replace(words=("0 1 0 1", "0 0 0 1", "1 1 0 1"))
    assert {*answers(few)} == {"H1", "H2", "H3"}
    (h1, *_) = verdicts.judge(few, 50)
    assert len(h1.parts) == 1


def test_spearman_is_each_seeds_own() -> None:
    losses = np.array([[[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    assert verdicts.spearmans(losses) == pytest.approx([0.0, 1.0])


def test_a_rise_is_within_a_factor_of_steps() -> None:
    """The ranking turns between 1 and 8: within a factor of 3 only half of the way."""
    orders = {0: [3, 2, 1], 1: [3, 2, 1], 3: [2, 3, 1], 8: [1, 2, 3], 9: [1, 2, 3]}
    losses = np.array([*orders.values()], float)[:, :, None]
    assert verdicts.spearmans(losses) == pytest.approx([-1, -1, -0.5, 1, 1])
    assert verdicts.rise(losses, (*orders,)) == pytest.approx(1.5)
    assert verdicts.rise(losses[:3], (0, 1, 3)) == pytest.approx(
        verdicts.spearmans(losses[:3])[2] - verdicts.spearmans(losses[:3])[1]
    )
    assert verdicts.rise(losses, (0, 1, 4, 16, 64)) == 0


def test_settled_is_for_good_and_within_half() -> None:
    up, down = [1, 2, 3], [3, 2, 1]
    losses = np.array([down, up, down, up, up, up], float)[:, :, None]
    assert verdicts.settled(losses, (0, 1, 2, 4, 8, 16)) == 3
    assert verdicts.settled(losses, (0, 1, 2, 9, 12, 16)) is None


def test_equal_starts_count_as_equal() -> None:
    """Rounding ranks no exact members."""
    losses = LEAP.losses.copy()
    losses[0, 1] += 1e-7
    ready = LEAP._replace(losses=losses).ready()
    assert (ready.losses[0, 0] == ready.losses[0, 1]).all()
    assert (losses[0, 1] > losses[0, 0]).all()


def test_what_failed_takes_no_part() -> None:
    losses = LEAP.losses.copy()
    losses[-1, 2, 1] = np.nan
    assert LEAP._replace(losses=losses).ready().names == (*LEAP.names[:2], *LEAP.names[3:])


@pytest.mark.parametrize(
    ("low", "high", "above", "answer"),
    [
        (0.6, 0.7, True, "supported"), (0.4, 0.6, True, "inconclusive"),
        (0.3, 0.4, True, "refuted"), (0.3, 0.4, False, "supported"),
        (0.6, 0.7, False, "refuted"), (0.5, 0.5, False, "supported"),
    ],
)  # fmt: skip
def test_a_part_goes_by_its_interval(low: float, high: float, above: bool, answer: str) -> None:
    assert Part("", (low + high) / 2, (low, high), 0.5, above).answer == answer


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("0 1 2 0 1 2", "neighbour"), ("0 0 0 0 1 2", "neighbour"), ("0 0 1 1 2 2", "interleaved"),
        ("0 0 1 2 2 3", "interleaved"), ("0 0* 1 1* 2 2*", "zeroed interleaved"),
        ("0 1 2 0* 1* 2*", "other"), ("0 1 2 0*0.5 1*0.5 2*0.5", "other"),
        ("0 0*0.5 1 1*0.5", "other"), ("0 new 1 new", "random"), ("0 new* 1 new*", "other"),
        ("enc: 0 0 1 1; dec: 0 1 0 1", "interleaved"), ("0 1 2", "other"), ("", "other"),
    ],
)  # fmt: skip
def test_kinds_of_words(word: str, kind: str) -> None:
    assert kind_of(word) == kind


def test_intervals_of_three_seeds_are_narrow() -> None:
    """As the page says: of normal draws they hold the mean three times in four."""
    draw, held = np.random.default_rng(0), 0
    for _ in range(200):
        losses = draw.normal(size=(1, 1, 3))
        low, high = verdicts.interval(
            lambda x: x.mean(axis=(-3, -2, -1)), losses, 100, candidates=False
        )
        held += low <= 0 <= high
    assert 0.65 < held / 200 < 0.85


def test_where_nothing_can_be_exact_zeroed_copies_need_not_be() -> None:
    """With norms after each addition; where others are exact, they must be too."""
    none = np.zeros(12, bool)
    others = EXACT & [not word.startswith("0 0*") for word in (*WORDS.values(),) * 2]
    assert answers(STEADY._replace(exact=none))["H6"] == "supported"
    assert answers(STEADY._replace(exact=others))["H6"] == "refuted"
    assert "H7" not in answers(STEADY._replace(exact=none))
