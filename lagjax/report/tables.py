"""The sentences and rows that page and terminal share, as plain text ready to print."""

from typing import Any, NamedTuple

from lagjax.analysis.agreement import START_TOLERANCE
from lagjax.report.curves import Line
from lagjax.report.facts import Facts, ranks

NOTHING = "–"


class Row(NamedTuple):
    """A candidate, told in one line of the table."""

    name: str
    operator: str
    notes: tuple[str, ...]
    start_rank: str
    lag_rank: str
    start_loss: str
    lag_loss: str
    final_loss: str
    status: str
    failed: bool


class Cost(NamedTuple):
    """A purpose on which compute was spent."""

    purpose: str
    flops: str
    share: str
    tokens: str
    seconds: str


def candidates(facts: Facts) -> list[Row]:
    """A row for each candidate: the ranking first, then who failed, then the controls."""
    order = facts.ranking
    others = [entry.name for entry in facts.pool if entry.name not in order]
    others.sort(key=lambda name: name in facts.controls)
    compared = {
        name: loss
        for name in order + others
        if (loss := facts.at_start.get(name)) is not None and name not in facts.controls
    }
    start_ranks = ranks(compared)
    operators = {entry.name: entry.operator for entry in facts.pool}
    rows = []
    for name in order + others:
        status = facts.status.get(name, "not started")
        rows.append(
            Row(
                name=name,
                operator=operators[name],
                notes=_notes(facts, name),
                start_rank=_rank(start_ranks.get(name), list(start_ranks.values())),
                lag_rank=str(order.index(name) + 1) if name in order else NOTHING,
                start_loss=nats(facts.at_start.get(name)),
                lag_loss=nats(facts.at_lag.get(name)),
                final_loss=_final(facts, name),
                status=status,
                failed=status not in ("ok", "not started"),
            )
        )
    return rows


def headings(facts: Facts) -> tuple[str, ...]:
    """The headings of the columns of `candidates`, the name's first."""
    lag = (
        "at the lag"
        if facts.decision
        else "so far"
        if facts.lag is None
        else f"at step {facts.lag}"
    )
    return (
        "Candidate",
        "Rank right after growing",
        f"Rank {lag}",
        "Loss right after growing",
        f"Loss {lag}",
        "Final loss",
        "Status",
    )


def sentence(facts: Facts) -> str:
    """What was chosen, in one sentence."""
    decision = facts.decision
    if not decision:
        if not facts.probes:
            return "This run has not grown its model yet, so nothing has been chosen."
        reached = (
            "" if facts.lag is None else f", all of those still alive to step {_count(facts.lag)}"
        )
        return (
            f"This run has not chosen yet: {len(facts.probes)} of {len(facts.pool)} candidates (controls among them) "
            f"have been probed so far{reached}."
        )
    count = len(facts.pool) - len(facts.controls)
    lag, winner = _count(decision["lag"]), facts.winner
    if winner is None:
        return f"Nothing was chosen: all {count} candidates failed."
    if decision["outcome"] == "tie":
        tied = tied_with_leader(facts)
        return (
            f"{winner} was kept out of {count} candidates, although it is not clearly the best: after {lag} steps "
            f"{_listed(tied)} are tied, and {winner} comes first of them in the pool."
        )
    against = ""
    if decision["runner_up"] is not None and decision["margin"] is not None:
        against = (
            f", where its validation loss was {signed(decision['margin'])} nats per token below that of the runner-up, "
            f"{decision['runner_up']}"
        )
    return f"{winner} was chosen out of {count} candidates after {lag} training steps{against}."


def tied_with_leader(facts: Facts) -> list[str]:
    """The tied candidates in the pool's order, the leader and the winner among them."""
    decision = facts.decision or {}
    tied = {*decision.get("tied", ()), facts.winner, *facts.ranking[:1]}
    return [entry.name for entry in facts.pool if entry.name in tied]


def outcome(facts: Facts) -> tuple[str, str]:
    """The outcome as one of the decision's words, and what the word means."""
    word = facts.decision["outcome"] if facts.decision else "unfinished"
    return word, {
        "clear": "the winner's lead is larger than the noise",
        "tie": "the lead is within the noise; the earliest of the tied in the pool's order is kept",
        "all_failed": "no candidate reached the lag with a finite loss",
        "unfinished": "the run has not decided yet",
    }.get(word, "")


def margin(facts: Facts) -> tuple[str, str]:
    """The margin in nats per token, and its interval."""
    decision = facts.decision or {}
    if decision.get("margin") is None:
        return NOTHING, "no runner-up to compare with"
    interval = decision.get("margin_interval")
    if interval is None:
        return signed(decision["margin"]), "nats per token; no interval"
    return (
        signed(decision["margin"]),
        f"nats per token; 95 % interval {signed(interval[0])} to {signed(interval[1])}",
    )


def overhead(facts: Facts) -> tuple[str, str]:
    """What the search cost beyond the winner's own training, in full runs, and the share of training every candidate."""
    ledger = (facts.decision or {}).get("ledger") or {}
    if ledger.get("overhead") is None:
        return NOTHING, ""
    share = ledger.get("budget_share")
    whole = (
        ""
        if share is None
        else f"; the whole search costs {100 * share:.1f} % of training every candidate to the end"
    )
    return f"{ledger['overhead']:.3f}", f"full runs spent on what was not kept{whole}"


def ledger(facts: Facts) -> list[Cost]:
    """What was spent, by purpose. FLOPs are the decision's, or added up from the curves where it does not list them."""
    spent = _spent(facts)
    given = (facts.decision or {}).get("ledger") or {}
    full = given.get("full_run_flops")
    rows = []
    for purpose, key in (
        ("Training the small model", None),
        ("Probe of the winner, kept", None),
        ("Probes so far", None),
        ("Probes that were not kept", "losers_flops"),
        ("Evaluations", "evaluation_flops"),
        ("Fitting operators", "fit_flops"),
        ("Winner after the lag", None),
        ("Others after the lag, for comparison", None),
    ):
        flops, tokens, seconds = spent.get(purpose, (None, None, None))
        if key and given.get(key) is not None:
            flops = given[key]
        if flops is not None:
            share = f"{flops / full:.3f}" if full else NOTHING
            rows.append(Cost(purpose, quantity(flops), share, quantity(tokens), duration(seconds)))
    if full:
        rows.append(Cost("One full run, for scale", quantity(full), "1.000", NOTHING, NOTHING))
    return rows


def ledger_line(facts: Facts) -> str:
    """The ledger in one line."""
    given = (facts.decision or {}).get("ledger")
    if not given:
        return "The ledger is written with the decision."
    parts = (
        [f"overhead {given['overhead']:.3f} full runs"] if given.get("overhead") is not None else []
    )
    if given.get("budget_share") is not None:
        parts.append(f"budget share {100 * given['budget_share']:.1f} %")
    if given.get("full_run_flops") is not None:
        parts.append(f"one full run {quantity(given['full_run_flops'])} FLOPs")
    if given.get("seconds") is not None:
        parts.append(duration(given["seconds"]))
    return "Ledger: " + ", ".join(parts) + "."


def how(facts: Facts) -> list[tuple[str, str]]:
    """How the decision was made: a term and what it was, line by line."""
    decision, config = facts.decision or {}, facts.config
    word, meaning = outcome(facts)
    lines = [("Outcome", f"{word}: {meaning}")]
    if config.get("policy"):
        lines.append(("Policy", str(config["policy"])))
    if decision:
        lines.append(
            (
                "Lag",
                f"{_count(decision['lag'])} steps" + _part(decision["lag"], facts.horizon),
            )
        )
    if facts.horizon:
        lines.append(("Horizon", f"{_count(facts.horizon)} steps, the length of the full run"))
    lines.append(
        (
            "Seeds",
            f"{facts.seeds}" + ("; losses are means over them" if facts.seeds > 1 else ""),
        )
    )
    if decision.get("margin") is not None:
        value, detail = margin(facts)
        lines.append(
            (
                "Margin",
                f"{value} {detail}; runner-up minus winner at the lag, paired over validation shards",
            )
        )
    if decision.get("outcome") == "tie":
        lines.append(("Tied", ", ".join(tied_with_leader(facts))))
    if facts.start_choice is not None:
        lines.append(("Loss right after growing would have chosen", _start_choice(facts)))
    return lines


def nats(value: float | None) -> str:
    """Nats per token."""
    return NOTHING if value is None else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference in nats per token, with a true minus sign."""
    return f"{value:.4f}".replace("-", "\u2212")


def quantity(value: float | None) -> str:
    """A count that may be huge, to three digits."""
    if value is None:
        return NOTHING
    if abs(value) < 1e5:
        return f"{value:,.0f}".replace(",", "\u2009")
    digits, power = f"{value:.2e}".split("e")
    return f"{digits} × 10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def duration(seconds: float | None) -> str:
    """Seconds, as a person says them."""
    if seconds is None:
        return NOTHING
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _notes(facts: Facts, name: str) -> tuple[str, ...]:
    roles = {
        "winner": name == facts.winner,
        "runner-up": name == facts.runner_up,
        "lowest right after growing": name == facts.start_choice,
        "control": name in facts.controls,
    }
    return tuple(note for note, holds in roles.items() if holds)


def _rank(rank: float | None, everyone: list[float]) -> str:
    """A place; tied ones get the best of the places they share, and an equals sign."""
    if rank is None:
        return NOTHING
    tied = everyone.count(rank)
    return f"{rank:.0f}" if tied == 1 else f"{rank - (tied - 1) / 2:.0f}="


def _final(facts: Facts, name: str) -> str:
    curve = facts.continued.get(name) or facts.probes.get(name)
    if curve is None or not curve.steps:
        return NOTHING
    if curve.failed:
        return "failed" if name in facts.continued else NOTHING
    if facts.horizon is None or curve.steps[-1] < facts.horizon:
        return (
            f"{curve.losses[-1]:.4f} at step {curve.steps[-1]}"
            if name in facts.continued
            else NOTHING
        )
    return nats(curve.losses[-1])


def _start_choice(facts: Facts) -> str:
    name = facts.start_choice or NOTHING
    lowest = facts.at_start.get(name)
    equal = [
        other
        for other, loss in facts.at_start.items()
        if lowest is not None
        and loss is not None
        and abs(loss - lowest) <= START_TOLERANCE * lowest
    ]
    if len(equal) > 1:
        name += f" (one of {len(equal)} that start equal, the first by the alphabet)"
    if facts.start_choice == facts.winner:
        return f"{name}, the same candidate"
    if facts.winner is None or facts.horizon is None:
        return name
    ends = [
        curve.at(facts.horizon)
        for who in (name, facts.winner)
        if (curve := facts.continued.get(who))
    ]
    if len(ends) < 2 or ends[0] is None or ends[1] is None:
        return f"{name}; it was not trained to the horizon"
    more = ends[0] - ends[1]
    return f"{name}; at the horizon its loss is {abs(more):.4f} nats per token {'above' if more >= 0 else 'below'} the winner's"


def _spent(facts: Facts) -> dict[str, tuple[float, float, float]]:
    """FLOPs, tokens and seconds by purpose: a candidate's counts go on from its probe to the horizon."""
    last: dict[tuple[str, str, int], Line] = {}
    for line in facts.lines:
        last[line["phase"], line["candidate"], line["seed"]] = line
    spent: dict[str, tuple[float, float, float]] = {}
    for (phase, candidate, seed), line in last.items():
        winner = candidate == facts.winner
        if phase == "source":
            purpose = "Training the small model"
        elif phase == "probe":
            purpose = (
                "Probe of the winner, kept"
                if winner and seed == 0
                else "Probes that were not kept"
                if facts.decision
                else "Probes so far"
            )
        else:
            purpose = (
                "Winner after the lag"
                if winner and seed == 0
                else "Others after the lag, for comparison"
            )
        before = last.get(("probe", candidate, seed), {}) if phase == "continue" else {}
        flops, tokens, seconds = spent.get(purpose, (0.0, 0.0, 0.0))
        spent[purpose] = (
            flops + (line.get("flops") or 0.0) - (before.get("flops") or 0.0),
            tokens + (line.get("tokens") or 0) - (before.get("tokens") or 0),
            seconds + (line.get("seconds") or 0.0) - (before.get("seconds") or 0.0),
        )
    return spent


def _count(value: Any) -> str:
    return f"{value:,}".replace(",", "\u2009") if isinstance(value, int) else str(value)


def _part(lag: int | None, horizon: int | None) -> str:
    return f", {100 * lag / horizon:.1f} % of the horizon" if lag and horizon else ""


def _listed(names: list[str]) -> str:
    return names[0] if len(names) < 2 else ", ".join(names[:-1]) + " and " + names[-1]
