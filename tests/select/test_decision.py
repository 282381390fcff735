"""Policies, decisions, margins, agreement, the ledger: by hand-made numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lagjax.analysis.agreement import agreement, ranks
from lagjax.analysis.ledger import ledger
from lagjax.analysis.margin import margin
from lagjax.select.decision import Decision, FixedLag, Probes, decide, start_choice

SHARDS = 8


def probes(
    *means: float, spread: float = 0.0, controls: tuple[str, ...] = (), seeds: int = 1
) -> Probes:
    """Candidates a, b, ... with these mean losses at step 4; shards share most of their noise."""
    random = np.random.default_rng(0)
    common = random.normal(size=(seeds, SHARDS))
    own = random.normal(size=(len(means), seeds, SHARDS))
    own -= own.mean(axis=-1, keepdims=True)
    losses = np.array(means)[:, None, None] + common - common.mean(-1, keepdims=True) + spread * own
    names = tuple("abcdefgh"[: len(means)])
    start = np.full_like(losses, 9.0)
    status = {
        name: "ok" if np.isfinite(x) else "loss not finite at step 2"
        for name, x in zip(names, means)
    }
    return Probes(
        names,
        frozenset(controls),
        (0, 4),
        np.stack([start, losses]),
        np.full(SHARDS, 100.0),
        status,
    )


def test_clear() -> None:
    decision = decide(probes(3.0, 2.0, 2.5, spread=0.01), 4)
    assert (decision.winner, decision.runner_up, decision.outcome) == (
        "b",
        "c",
        "clear",
    )
    assert decision.ranking == ("b", "c", "a")
    assert decision.margin == pytest.approx(0.5)
    assert decision.margin_interval is not None
    assert decision.margin_interval[0] < 0.5 < decision.margin_interval[1]
    assert decision.tied == ("b",)


def test_common_noise_does_not_matter() -> None:
    """Shards differ by ±1 nat, the candidates by 0.1: only pairing can tell."""
    assert decide(probes(2.1, 2.0, spread=0.01), 4).outcome == "clear"


def test_tie_keeps_the_earliest_of_the_tied() -> None:
    decision = decide(probes(5.0, 2.001, 2.0, 2.002, spread=0.1), 4)
    assert (decision.winner, decision.runner_up, decision.outcome) == ("b", "c", "tie")
    assert decision.tied == ("b", "c", "d")
    assert decision.margin == pytest.approx(-0.001)
    assert decision.ranking[0] == "c"


def test_failed_and_controls_cannot_win() -> None:
    decision = decide(probes(np.nan, 1.0, 2.0, 3.0, spread=0.01, controls=("b",)), 4)
    assert (decision.winner, decision.runner_up) == ("c", "d")
    assert decision.ranking == ("b", "c", "d")
    assert decision.losses_at_lag["a"] is None
    assert decision.status["a"] != "ok"


def test_all_failed() -> None:
    decision = decide(probes(np.nan, np.nan), 4)
    assert (decision.winner, decision.outcome, decision.margin) == (
        None,
        "all_failed",
        None,
    )


def test_a_pool_of_one() -> None:
    decision = decide(probes(2.0), 4)
    assert (decision.winner, decision.runner_up, decision.outcome, decision.margin) == (
        "a",
        None,
        "clear",
        None,
    )


def test_fixed_lag_asks_then_decides() -> None:
    found = probes(2.0, 3.0, spread=0.01)
    assert FixedLag(7)(found, 100) == 7
    assert isinstance(FixedLag(4)(found, 100), Decision)
    assert isinstance(FixedLag(share=0.04)(found, 100), Decision)


@pytest.mark.parametrize(
    "policy",
    [FixedLag(), FixedLag(3, 0.1), FixedLag(101), FixedLag(0), FixedLag(share=1.5)],
)
def test_a_lag_that_does_not_fit(policy: FixedLag) -> None:
    with pytest.raises(ValueError, match="horizon"):
        policy.lag(100)


def test_start_choice_breaks_ties_by_the_alphabet() -> None:
    losses = {"e": 1.0, "c": 2.0, "a": 3.0, "b": 2.0 + 1e-6, "d": None}
    assert start_choice(losses, {"e"}) == "b"
    assert start_choice({"a": 2.001, "b": 2.0}) == "b"
    assert start_choice({"a": None}) is None


def test_margin_with_one_seed_is_the_paired_t_interval() -> None:
    random = np.random.default_rng(1)
    one, other = random.normal(size=(2, 1, SHARDS))
    found = margin(one, other, np.full(SHARDS, 50.0))
    expected = stats.ttest_rel(other[0], one[0]).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_margin_weighs_shards_by_their_tokens() -> None:
    found = margin(np.array([[0.0, 0.0]]), np.array([[1.0, 4.0]]), np.array([3.0, 1.0]))
    assert found.mean == pytest.approx((3 * 1.0 + 4.0) / 4)


def test_margin_of_one_number_has_no_interval() -> None:
    found = margin(np.zeros((1, 1)), np.ones((1, 1)), np.ones(1))
    assert (found.mean, found.low, found.high) == (1.0, -np.inf, np.inf)


def test_margin_covers_the_truth() -> None:
    """Seeds and shards both vary: 95 % intervals hold the truth in about 95 of 100 cases, and not in all."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        seeds, shards = random.normal(size=(4, 1)), random.normal(size=(1, SHARDS))
        differences = 0.3 + 0.2 * seeds + 0.3 * shards + 0.1 * random.normal(size=(4, SHARDS))
        found = margin(np.zeros_like(differences), differences, np.ones(SHARDS))
        held += found.low <= 0.3 <= found.high
    assert 930 <= held <= 990


def test_agreement() -> None:
    found = agreement([1.0, 2.0, 3.0, None], [2.0, 4.0, 7.0, 1.0])
    assert found.spearman == pytest.approx(1) and found.kendall == pytest.approx(1)
    assert found.pearson is not None and found.pearson < 1
    assert agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == (None, None, None)
    assert agreement([1.0, 2.0], [1.0, 2.0]) == (None, None, None)


@given(st.lists(st.floats(-5, 5), min_size=3, unique=True))
def test_agreement_sees_ranks_only(losses: list[float]) -> None:
    shuffled = np.random.default_rng(0).permutation(losses).tolist()
    found = agreement(losses, shuffled)
    if found.spearman is not None:
        assert found.spearman == pytest.approx(agreement(ranks(losses), ranks(shuffled)).spearman)


def test_ranks() -> None:
    assert ranks([2.0, 1.0, 2.0, None, 3.0]) == [2, 1, 2, None, 4]


def test_ledger() -> None:
    found = ledger(
        candidates=4,
        full_run_flops=100.0,
        losers_flops=30.0,
        evaluation_flops=5.0,
        fit_flops=5.0,
        seconds=1.0,
    )
    assert found.overhead == pytest.approx(0.4)
    assert found.budget_share == pytest.approx(0.35)
