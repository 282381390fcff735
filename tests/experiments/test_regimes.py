"""Effects of factors: known by hand on made-up audits."""

import itertools

import numpy as np
import pytest

from experiments import regimes, verdicts
from experiments.regimes import Told

STEPS = (0, 1, 2, 4, 8, 16)
FACTORS = ("a", "b", "c", "d")
UP, DOWN = np.arange(8.0), np.arange(8.0)[::-1]


def told(turn: int, averaged: int) -> Told:
    """Weights rank as at the end from the evaluation `turn` on, averages from `averaged` on."""
    losses, others = (
        np.stack([UP if at >= first else DOWN for at in range(len(STEPS))])[:, :, None]
        + np.array([0.0, 0.1, 0.2])
        for first in (turn, averaged)
    )
    # The best, which ends a whole nat below the next, is exact, and the worst has random layers.
    exact, fresh = (np.arange(8) == at for at in (0, 7))
    return Told(STEPS, np.linspace(0, 1, len(STEPS)), losses, others, exact, fresh)


def half_fraction() -> list[tuple[dict[str, bool], Told]]:
    """The rate after growing, b, makes the start mislead; nothing else does anything."""
    found = []
    for a, b, c in itertools.product((False, True), repeat=3):
        levels = dict(zip(FACTORS, (a, b, c, (a + b + c) % 2 == 1)))
        found.append((levels, told(4, 2) if b else told(0, 0)))
    return found


def test_an_effect_is_that_of_its_factor() -> None:
    found = {(x.factor, x.number): x for x in regimes.effects(half_fraction(), 50)}
    spearman = found["b", "Spearman at the start"]
    assert spearman.levels == pytest.approx((1, -1)) and spearman.clear
    weights = found["b", "share of the horizon from which on weights tell"]
    averages = found["b", "share of the horizon from which on averages tell"]
    rates = found["b", "share of the summed learning rate from which on weights tell"]
    assert [x.levels for x in (weights, averages, rates)] == [(0, 8 / 16), (0, 2 / 16), (0, 0.8)]
    regret = found["b", "normalised regret of the start's choice"]
    assert regret.levels == pytest.approx((0, 2))
    ahead = {x.number: x.levels for x in found.values() if "ends below" in x.number}
    assert [*ahead.values()] == [pytest.approx((1, 1)), pytest.approx((-7, -7))]
    others = [x for (factor, _), x in found.items() if factor != "b"]
    assert all(x.effect == pytest.approx(0) and not x.clear for x in others) and len(others) == 21


def test_a_ranking_that_never_settles_tells_at_the_end() -> None:
    one = told(5, 6)
    assert regimes.sooner(one, one.losses, regimes.shares(one)) == 1
    # The averages end otherwise than the weights.
    assert regimes.sooner(one, one.averaged, regimes.shares(one)) == 1


def test_draws_at_once_tell_what_each_does() -> None:
    draw = np.random.default_rng(0)
    losses, averaged = draw.normal(size=(2, len(STEPS), 8, 3))
    # Of equal losses nothing is ranked, and all are chosen.
    losses[0] = 1.0
    one = told(0, 0)._replace(losses=losses, averaged=averaged)
    seeds, members = draw.integers(3, size=(50, 3)), draw.integers(8, size=(50, 8))
    many = one.drawn(seeds, members)
    assert many.losses.shape == (50, len(STEPS), 8, 3)
    for name, number in regimes.ALL.items():
        alone = [
            number(one._replace(losses=losses[:, at][..., now], averaged=averaged[:, at][..., now]))
            for now, at in zip(seeds, members)
        ]
        np.testing.assert_allclose(number(many), alone, err_msg=name)
    rises = [verdicts.rise(losses[:, at][..., now], STEPS) for now, at in zip(seeds, members)]
    np.testing.assert_allclose(verdicts.rise(many.losses, STEPS), rises)


def test_the_two_that_tell_least_alike() -> None:
    """Of audits with other evaluations too, and where all begin alike, which says nothing."""
    short = told(1, 0)
    short = short._replace(
        steps=(*STEPS[:2], *STEPS[3:]),
        losses=np.delete(short.losses, 2, axis=0),
        averaged=np.delete(short.averaged, 2, axis=0),
    )
    alike = told(2, 0)
    alike.losses[0] = 1.0
    audits = {"early": told(0, 0), "short": short, "alike": alike, "late": told(4, 3)}
    assert regimes.farthest(audits) == ("early", "late")


def test_a_factor_needs_both_levels() -> None:
    with pytest.raises(ValueError, match=r"'b' has the levels \['True'\] in these 4 audits"):
        regimes.effects([each for each in half_fraction() if each[0]["b"]], 10)


def test_what_failed_takes_no_part_and_averages_begin_as_weights_do() -> None:
    losses = told(4, 2).losses
    losses[-1, 2, 0] = np.nan
    names, words = tuple(map(str, range(8))), ("0 1", "0 new", "0 new", "0 1 new*", *["0 0"] * 4)
    ended = verdicts.Ended(names, words, np.arange(8) == 3, STEPS, losses)
    averaged = np.full_like(losses, 7.0)
    averaged[0] = np.nan
    found = regimes.told_of(ended, averaged, np.array([0.0, 2.0, 2.0, 2.0, 2.0, 2.0]))
    assert found.losses.shape == (6, 7, 3) and (found.averaged[0] == found.losses[0]).all()
    # The third is gone; new layers that are zeroed are exact, not random.
    assert found.exact.tolist() == [False, False, True] + [False] * 4
    assert found.fresh.tolist() == [False, True] + [False] * 5
    # One step of a half, one, two, four and eight of the full rate.
    assert found.rates == pytest.approx(np.array([0, 0.5, 1.5, 3.5, 7.5, 15.5]) / 15.5)
