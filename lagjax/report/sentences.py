"""What a report says in sentences, and how it writes numbers: plain text, ready to print."""

from collections.abc import Sequence

from lagjax import progress
from lagjax.analysis.audit import Audit
from lagjax.jobs import RAW
from lagjax.report.facts import Facts, ranks

NOTHING = "–"


def title(facts: Facts) -> str:
    """A few words for the tab of a browser."""
    word, _ = outcome(facts)
    return f"{facts.winner} chosen ({word})" if facts.winner else f"lagjax run: {word}"


def sentence(facts: Facts) -> str:
    """What was chosen, in one sentence."""
    decision, able = facts.decision, len(facts.pool) - len(facts.apart)
    if not decision:
        if not facts.probes:
            return "This run has not grown its model yet, so nothing has been chosen."
        among = f" ({apart(facts)} among them)" if facts.apart else ""
        reached = facts.lag is not None
        return (
            f"This run has not chosen yet: {len(facts.probes)} of {len(facts.pool)} "
            f"candidates{among} have been probed so far"
            + (f", all of those still alive to step {count(facts.lag)}." if reached else ".")
        )
    winner = facts.winner
    if winner is None:
        return f"Nothing was chosen: all {able} candidates failed."
    lag = f"{'up to ' if len(set(facts.lags.values())) > 1 else ''}{count(decision['lag'])}"
    if decision["outcome"] == "tie":
        return (
            f"{winner} was kept out of {able} candidates, although it is not clearly the best: "
            f"after {lag} steps {listed(tied(facts))} are tied, and {winner} comes first of them "
            "in the pool."
        )
    against = ""
    if facts.runner_up is not None and decision["margin"] is not None:
        against = (
            f", where its validation loss was {number(decision['margin'])} {facts.unit} below "
            f"that of the runner-up, {facts.runner_up}"
        )
    return f"{winner} was chosen out of {able} candidates after {lag} training steps{against}."


def summary(facts: Facts) -> list[tuple[str, str, str]]:
    """The outcome, the margin and the cost: a term, its value, and what that means."""
    found = [("Outcome", *outcome(facts))]
    if facts.decision:
        found.append(("Margin over the runner-up", *margin(facts)))
        found.append(("Overhead of the search", *overhead(facts)))
    return found


def footer(facts: Facts) -> str:
    """What holds for every number of the report."""
    seeds = (
        f" Up to the lag they are means over {facts.seeds} seeds; after it, over the seeds that "
        "were trained on."
    )
    return (
        f"Losses are validation losses in {facts.unit}; lower is "
        f"better.{seeds if facts.seeds > 1 else ''}"
    )


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
    """The margin, and its interval."""
    decision = facts.decision or {}
    if decision.get("margin") is None:
        return NOTHING, "no runner-up to compare with"
    interval = decision["margin_interval"]
    return number(decision["margin"]), facts.unit + (
        "; 95 % interval {} to {}".format(*map(number, interval)) if interval else "; no interval"
    )


def overhead(facts: Facts) -> tuple[str, str]:
    """What was spent beside the winner's own training, in full runs; its share of training all."""
    ledger = (facts.decision or {}).get("ledger") or {}
    if ledger.get("overhead") is None:
        return NOTHING, "no ledger"
    told = "full runs spent on what was not kept"
    if (share := ledger.get("budget_share")) is not None:
        told += f"; the whole search costs {100 * share:.1f} % of training every candidate"
        told += " to the end"
    return f"{ledger['overhead']:.3f}", told


def tied(facts: Facts) -> list[str]:
    """The tied candidates in the pool's order, the leader and the winner among them."""
    found = {*(facts.decision or {}).get("tied", ()), facts.winner, *facts.ranking[:1]}
    return [name for name in facts.pool if name in found]


def audit_about(unit: str) -> str:
    """What the columns of the audit's table mean."""
    return (
        "What the losses at each step would have told about the end. The correlations of a seed's "
        "losses with its own final ones are means over seeds, controls left out but in one "
        f"column. Regret is what the lowest loss at the step loses at the end, in {unit}; "
        "normalised, a random choice has 1, and what lies within the noise floor 0. Top 1 and top "
        "3 say how often the lowest at the step ends lowest, and how often what ends lowest is "
        "among the three lowest."
    )


def audited(found: Audit, unit: str) -> list[str]:
    """What the table of the audit does not say."""
    lowest = number(found.final[found.best])
    told = [f"{found.best} ended lowest, at {lowest}."]
    told.append(f"A random choice loses {number(found.random_regret)} {unit} against it.")
    if found.noise_floor is None:
        told.append("One seed gives no noise floor: any of these may be luck.")
    else:
        told.append(
            "The noise floor, two standard errors of the difference of two candidates over "
            f"{found.seeds} seeds, is {number(found.noise_floor)} {unit}."
        )
    if found.between_seeds is not None:
        told.append(
            "Spearman's correlation of the final losses of two seeds is "
            f"{number(found.between_seeds, 2)}: no step can be expected to tell more about a "
            "fresh run."
        )
    bend = found.transition
    if bend.step is None:
        told.append(f"No transition was found: {bend.reason}.")
    else:
        told.append(
            f"The curves bend at step {bend.step:.0f} (95 % interval {bend.low:.0f} to "
            f"{bend.high:.0f}, over candidates; two segments gain {bend.gain:.0f} in BIC over "
            "one): the transition."
        )
    return told


def how(facts: Facts) -> list[tuple[str, str]]:
    """How the decision was made: a term and what it was, line by line."""
    decision, lags = facts.decision or {}, facts.lags.values()
    terms = {"Outcome": "{}: {}".format(*outcome(facts))}
    if facts.config.get("policy"):
        terms["Policy"] = str(facts.config["policy"])
    if decision:
        terms["Lag"] = f"{count(decision['lag'])} steps"
        if decision["lag"] and (horizon := facts.horizon_of(facts.winner or "")):
            terms["Lag"] += f", {100 * decision['lag'] / horizon:.1f} % of the horizon"
        if len({*lags}) > 1:
            terms["Lag"] += f"; by candidate from {count(min(lags))} to {count(max(lags))}"
    if facts.weights != RAW:
        terms["Compared"] = f"the losses of the weights {facts.weights!r}"
    if facts.horizon:
        terms["Horizon"] = f"{count(facts.horizon)} steps, the length of the full run"
        if len({facts.horizon_of(name) for name in facts.pool if not facts.baseline(name)}) > 1:
            terms["Horizon"] += "; of other targets, the steps that cost as many FLOPs"
    terms["Seeds"] = f"{facts.seeds}{'; losses are means over them' * (facts.seeds > 1)}"
    if decision.get("margin") is not None:
        terms["Margin"] = (
            "{} {}; runner-up minus winner at the lag, paired over validation shards"
        ).format(*margin(facts))
    if decision.get("outcome") == "tie":
        terms["Tied"] = ", ".join(tied(facts))
    if facts.start_choice is not None:
        terms["Loss right after growing would have chosen"] = _start_choice(facts)
    return [*terms.items()]


def _start_choice(facts: Facts) -> str:
    """What the loss right after growing would have chosen, and where that would have ended."""
    name = told = facts.start_choice or NOTHING
    places = ranks({n: loss for n, loss in facts.at_start.items() if n not in facts.apart})
    equal = [*places.values()].count(1)
    if equal > 1:
        told += f" (one of {equal} that start equal, the first by the alphabet)"
    if name == facts.winner:
        return f"{told}, the same candidate"
    if facts.winner is None or facts.horizon is None:
        return told
    mine, best = (
        facts.continued[who].losses.get(facts.horizon_of(who) or 0)
        if who in facts.continued
        else None
        for who in (name, facts.winner)
    )
    if mine is None or best is None:
        return f"{told}; it was not trained to the horizon"
    return (
        f"{told}; at the horizon its loss is {number(abs(mine - best))} {facts.unit} "
        f"{'above' if mine >= best else 'below'} the winner's"
    )


def at_lag(facts: Facts, name: str) -> str:
    """The loss at the lag, or where one ended that was taken out of the race before."""
    loss, curve = facts.at_lag.get(name), facts.probes.get(name)
    if loss is None and curve and curve.losses and not curve.failed:
        return f"{number(curve.last)} at step {count(max(curve.losses))}"
    return number(loss)


def final(facts: Facts, name: str) -> str:
    """The loss at the horizon, or how far one has come that goes on after the lag."""
    curve = facts.continued.get(name) or facts.probes.get(name)
    if not curve or not curve.losses:
        return NOTHING
    step = max(curve.losses)
    if step == facts.horizon_of(name) and not curve.failed:
        return number(curve.last)
    if name not in facts.continued:
        return NOTHING
    return "failed" if curve.failed else f"{number(curve.last)} at step {count(step)}"


def apart(facts: Facts) -> str:
    """Those that cannot win, in words."""
    roles = sorted({facts.pool[name].role for name in facts.apart}, reverse=True)
    return " and ".join(f"{role}s" for role in roles)


def number(value: float | None, digits: int = 4) -> str:
    """A loss, a difference or a correlation, with a true minus sign and no sign on a zero."""
    if value is None:
        return NOTHING
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\u2212")


def count(value: int | None) -> str:
    """Steps, by thousands."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\u2009")


def quantity(value: float | None) -> str:
    """A count that may be huge, to three digits."""
    if value is None:
        return NOTHING
    if abs(value) < 1e5:
        return count(round(value))
    digits, power = f"{value:.2e}".split("e")
    return f"{digits} × 10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def duration(seconds: float | None) -> str:
    """Seconds, in words."""
    return NOTHING if seconds is None else progress.duration(seconds)


def listed(names: Sequence[str]) -> str:
    """Names as a person lists them."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def on_shards(facts: Facts) -> str:
    """What the first evaluation of probes is of, where that is fewer validation shards than the
    small model ended on: an exact candidate begins at its loss on these.
    """
    ends = [line["valid_loss_shards"] for line in facts.lines if line["phase"] == "source"]
    starts = [line for line in facts.lines if line["phase"] == "probe" and line["step"] == 0]
    begun = [shards for line in starts if (shards := line["valid_loss_shards"])]
    few = min(map(len, begun), default=0)
    if not ends or not 0 < few < len(ends[-1]) or None in ends[-1][:few]:
        return ""
    counts = facts.config.get("shard_tokens") or [1.0] * few
    own = sum(x * count for x, count in zip(ends[-1][:few], counts)) / sum(counts[:few])
    return (
        f" Right after growing losses are of the first {few} of {len(ends[-1])} validation shards, "
        f"on which the small model ended at {number(own)}."
    )
