"""What a report says, as data: sections of paragraphs, tables and pictures, each written once.

`html.py` and `terminal.py` render them. A column of the candidates' table is a line in
`candidates`; a section is a function in `SECTIONS`, which returns None where it has nothing to say.
"""

import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lagjax.analysis.agreement import agreement
from lagjax.analysis.audit import Audit
from lagjax.jobs import RAW
from lagjax.report import bounce, charts, equal, sentences, worth
from lagjax.report.facts import Facts, level, ranks, spent
from lagjax.report.sentences import NOTHING, count, duration, listed, number, quantity


class Row(NamedTuple):
    """A row of a table. `part` is a candidate's, as in `Facts`; so is that of a note (part, text).

    `code` are lines that a page shows below the first cell.
    """

    cells: tuple[str, ...]
    part: str = ""
    notes: tuple[tuple[str, str], ...] = ()
    code: tuple[str, ...] = ()


class Table(NamedTuple):
    """Columns are of numbers, but for the first and those in `words`."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    words: tuple[str, ...] = ()


class Figure(NamedTuple):
    """A picture, drawn when a page is made, and what to know about it."""

    draw: Callable[[Facts], str]
    about: str = ""


class Code(NamedTuple):
    """Text to keep as it is, out of the way until asked for."""

    text: str


Block = str | Table | Figure | Code


class Section(NamedTuple):
    """`about` says how to read it; what the run has to say stands in `body`."""

    title: str
    about: str
    body: tuple[Block, ...]


def sections(facts: Facts) -> list[Section]:
    """What there is to say of this run, in order."""
    return [section for make in SECTIONS if (section := make(facts))]


def candidates(facts: Facts) -> Section | None:
    """How each began, stood at the lag and ended."""
    order = facts.ranking
    names = _in_order(facts)
    decided = "at the lag" if facts.decision else f"at step {count(facts.lag)}"
    lag = "so far" if facts.lag is None else decided
    start = ranks({n: loss for n, loss in facts.at_start.items() if n not in facts.apart})
    ties, both = [*start.values()], equal.equal(facts)
    columns: dict[str, Callable[[str], str]] = {
        "Exact": lambda name: (
            "claimed, not kept" if name in facts.unkept else EXACT[facts.pool[name].exact]
        ),
        "Rank right after growing": lambda name: (
            f"{start[name]}{'=' * (ties.count(start[name]) > 1)}" if name in start else NOTHING
        ),
        f"Rank {lag}": lambda name: str(order.index(name) + 1) if name in order else NOTHING,
        "Loss right after growing": lambda name: number(facts.at_start.get(name)),
        f"Loss {lag}": lambda name: sentences.at_lag(facts, name),
        **equal.columns(both),
        "Final loss": lambda name: sentences.final(facts, name),
        "Status": lambda name: facts.status.get(name, "not started"),
    }
    about = (
        "One line for each candidate, best first. An equals sign marks a tie. The final loss is "
        "given where the candidate was trained to the end." + sentences.on_shards(facts)
    )
    if any(entry.exact is not None for entry in facts.pool.values()):
        about += (
            " An exact one begins as the very function that the small model is, if its table tells "
            "all that the model does."
        )
    if both:
        about += equal.both_ways(both)
    if facts.weights != RAW:
        about += (
            f" Losses at the lag are those of the weights {facts.weights!r}, the final ones not."
        )
    if facts.seeds > 1:
        about += f" Losses at growing and at the lag are means over {facts.seeds} seeds."
    cells = {heading: [cell(name) for name in names] for heading, cell in columns.items()}
    # A column in which nobody has anything is left out.
    cells = {heading: found for heading, found in cells.items() if {*found} != {NOTHING}}
    rows = tuple(_candidate(facts, name, rest) for name, *rest in zip(names, *cells.values()))
    table = Table(("Candidate", *cells), rows, ("Status",))
    told = tuple(f"{text}." for text in facts.unkept.values())
    return Section("The candidates", about, (*told, table)) if rows else None


def training(facts: Facts) -> Section | None:
    """The curves; the small model's end alone while there are no others."""
    source = facts.source if facts.source and facts.source.losses else None
    if not any(curve.losses for curve in facts.probes.values()):
        if not source:
            return None
        told = (
            f"It has been trained for {count(max(source.losses))} steps; its validation loss is "
            f"{number(source.last)} {facts.unit}. No candidate has been measured yet."
        )
        return Section("The small model", "", (told,))
    apart = sentences.apart(facts)
    about = (
        f"{facts.drawn_loss.capitalize()} of each candidate while it trains. Steps are on a "
        "logarithmic axis"
    )
    about += (
        ". Validation is too rare to be drawn: each point is the mean over the steps before it, a "
        "quarter of them and 50 at most, of batches that are the same for all."
        if facts.watched
        else "; step 0, right after growing, stands at its left edge."
    )
    if facts.decision:
        about += " The vertical line is the lag."
    if facts.seeds > 1:
        about += (
            f" Up to the lag each line is the mean over {facts.seeds} seeds; after it, the mean "
            "over the seeds that were trained on, so a line may step there."
        )
    if source:
        told = f"where the small model's validation loss ended, at {number(source.last)}"
        about += f" The dashed level is {told}."
    if apart:
        about += f" The axis is set by the pool; {apart} may lie outside it."
    body = [Figure(charts.curves)]
    if facts.best in facts.probes and len(facts.probes.keys() - facts.apart) > 1:
        best = "the winner's" if facts.winner else "that of the best so far"
        left_out = " and ".join(filter(None, (apart, "failed candidates"))).capitalize()
        below = (
            f"The same probes by how much their loss, in {facts.unit}, lies above {best} at the "
            f"same step: zero is level with it, below zero is ahead of it. {left_out} are left "
            "out; a straggler may lie above the edge."
        )
        body.append(Figure(charts.probes, below))
    return Section("Loss while training", about, tuple(body))


def growing(facts: Facts) -> Section | None:
    """Whether growing pays: the winner beside what is not grown; the picture alone without that."""
    told, picture = worth.against(facts), Figure(worth.by_flops)
    if not told:
        drawn = any(curve.losses for curve in facts.probes.values()) and equal.differing(facts)
        return Section("At equal FLOPs", worth.AXIS, (picture,)) if drawn else None
    lines = tuple(Row(row, facts.part(row[0])) for row in worth.rows(facts, told))
    body = (" ".join(worth.verdict(facts, told)), picture, Table(worth.HEADINGS, lines))
    return Section("Does growing pay?", worth.about(facts), body)


def start_against_lag(facts: Facts) -> Section | None:
    """Whether the start foretells the lag."""
    pairs = charts.pairs(facts)
    if not facts.lag or len(pairs) < 2:
        return None
    start, end = (level({name: pair[i] for name, pair in pairs.items()}) for i in (0, 1))
    found = agreement([*start.values()], [*end.values()]).spearman
    told = (
        "The rank correlation of the two cannot be computed from so few or so equal losses."
        if found is None
        else f"Spearman's rank correlation of the two is {number(found, 2)} over {len(pairs)} "
        "candidates: 1 would mean that training does not change the order, 0 that the start says "
        "nothing about it."
    )
    about = (
        f"Does the loss right after growing foretell the loss at step {count(facts.lag)}? Each "
        "dot is a candidate, its number the rank at the lag, as in the table; lower is better."
    )
    if facts.apart:
        about += f" {sentences.apart(facts).capitalize()} are left out."
    body = (told, Figure(charts.start_against_lag))
    return Section("Right after growing, and at the lag", about, body)


def ranking(facts: Facts) -> Section | None:
    """How the order came about."""
    about = (
        f"The rank of each candidate in the probes, by {facts.drawn_loss}. Lines that cross are "
        "candidates that change places; where they stop crossing, the order has settled. Tied "
        "candidates share a place."
    )
    if not facts.lag or not facts.best or len(facts.probes.keys() - facts.apart) < 2:
        return None
    return Section("The ranking over time", about, (Figure(charts.ranking),))


def bounces(facts: Facts) -> Section | None:
    """What averages of the weights say beside the weights."""
    found = bounce.bounce(facts)
    if not found:
        return None
    lines = tuple(Row(row, facts.part(row[0])) for row in bounce.rows(found))
    body = (bounce.told(found, facts.unit), Table(bounce.HEADINGS, lines))
    return Section("Bounce and crossing", bounce.ABOUT, body)


def rounds(facts: Facts) -> Section | None:
    """What the policy asked for, where it asked more than once."""
    if sum(each["answer"] == "Probe" for each in facts.rounds) < 2:
        return None
    rows = []
    for each in facts.rounds:
        until = each.get("until") or {}
        names = [*until, *(entry["name"] for entry in each.get("candidates") or [])]
        if each["answer"] == "Decision":
            names = [facts.winner] if facts.winner else []
        who = listed(names) if len(names) < 9 else f"{len(names)} of {len(facts.pool)}"
        ends = dict.fromkeys(
            map(count, (min(until.values()), max(until.values())) if until else ())
        )
        cells = (str(each["round"]), each["answer"], who, " to ".join(ends) or NOTHING)
        rows.append(Row(cells))
    about = "Each answer of the policy: to probe candidates to a step, to add some, or to decide."
    headings = ("Round", "Answer", "Candidates", "To step")
    return Section("The rounds", about, (Table(headings, tuple(rows), headings[1:3]),))


def metrics(facts: Facts) -> Section | None:
    """The run's own metrics at the end."""
    names = dict.fromkeys(metric for _, found in facts.metrics.values() for metric in found)
    rows = []
    for name in _in_order(facts):
        step, found = facts.metrics.get(name, (None, {}))
        values = [number(found.get(metric)) for metric in names]
        rows.append(Row((name, count(step), *values), facts.part(name)))
    about = (
        "What else was measured, where each candidate was measured last; means over the seeds "
        "that came that far. Names with valid_ are of the validation data."
    )
    table = Table(("Candidate", "At step", *names), tuple(rows))
    return Section("The metrics", about, (table,)) if names else None


def audited(facts: Facts) -> Section | None:
    """What each step would have told, where every candidate was trained to the end."""
    found = facts.audit
    if not found:
        return None
    body = (
        " ".join(sentences.audited(found, facts.unit)),
        Figure(charts.foresight, "Bars span the seeds; the band is the transition's interval."),
        Figure(charts.regret),
        audit_table(found),
    )
    return Section("The audit", sentences.audit_about(facts.unit), body)


def audit_table(found: Audit) -> Table:
    """A row for each step."""
    moments = found.moments
    columns = {
        "Step": [str(each.step) for each in moments],
        "Spearman": [number(each.agreement.spearman, 2) for each in moments],
        "of the seeds": [
            " to ".join(number(end, 2) for end in each.spread or ()) or NOTHING for each in moments
        ],
        "with controls": [number(each.with_controls.spearman, 2) for each in moments],
        "Kendall": [number(each.agreement.kendall, 2) for each in moments],
        "Pearson": [number(each.agreement.pearson, 2) for each in moments],
        "Regret": [number(each.regret) for each in moments],
        "normalised": [number(each.normalised, 2) for each in moments],
        "Top 1": [f"{each.top1:.0%}" for each in moments],
        "Top 3": [f"{each.top3:.0%}" for each in moments],
    }
    return Table((*columns,), tuple(map(Row, zip(*columns.values()))))


def ledger(facts: Facts) -> Section | None:
    """What was spent. FLOPs are the decision's, or those of the curves where it lists none."""
    given = (facts.decision or {}).get("ledger") or {}
    full, costs = given.get("full_run_flops"), spent(facts)
    rows = []
    for purpose, key in PURPOSES.items():
        flops, tokens, seconds = costs.get(purpose, (None, None, None))
        flops = given.get(key, flops)
        if flops is not None and (flops or key != "baseline_flops"):
            share = f"{flops / full:.3f}" if full else NOTHING
            rows.append(Row((purpose, quantity(flops), share, quantity(tokens), duration(seconds))))
    if full:
        rows.append(Row(("One full run, for scale", quantity(full), "1.000", NOTHING, NOTHING)))
    about = (
        "What the run spent, by purpose. Overhead is what was not kept (probes, evaluations, "
        "fits) over one full run of the large model; the budget share sets the whole search "
        "against training every candidate to the end. Baselines are no part of either."
    )
    headings = ("Purpose", "FLOPs", "In full runs", "Training tokens", "Time")
    body: tuple[Block, ...] = (Table(headings, tuple(rows)),)
    if given:
        total = "Overhead {} {}.".format(*sentences.overhead(facts))
        if given.get("seconds") is not None:
            total += f" Time in all: {duration(given['seconds'])}."
        body += (total,)
    return Section("The ledger", about, body) if rows else None


PURPOSES = {
    "Training the small model": "",
    "Probe of the winner, kept": "",
    "Probes so far": "",
    "Probes that were not kept": "losers_flops",
    "Evaluations": "evaluation_flops",
    "Fitting operators": "fit_flops",
    "Winner after the lag": "",
    "Others after the lag, for comparison": "",
    "Baselines, apart": "baseline_flops",
}
"""In the order of the ledger, each with the decision's name for its FLOPs where it has one."""


def how(facts: Facts) -> Section:
    """How the decision was made."""
    about = (
        "The candidate with the lowest mean validation loss at the lag leads. If its paired "
        "margin over every other is clear of noise, it is the winner; otherwise the earliest of "
        "the tied in the pool's order is kept."
        if facts.decision
        else "This run has no decision yet; run the same command again and it goes on where it "
        "stopped."
    )
    rows = tuple(map(Row, sentences.how(facts)))
    return Section("The decision and how it was made", about, (Table(("", ""), rows, ("",)),))


def configuration(facts: Facts) -> Section:
    """The run's config.json."""
    text = json.dumps(facts.config, indent=2, ensure_ascii=False)
    about = "Everything needed to repeat the run, as in config.json."
    return Section("Configuration", about, (Code(text),))


SECTIONS: tuple[Callable[[Facts], Section | None], ...] = (
    candidates,
    training,
    growing,
    start_against_lag,
    ranking,
    bounces,
    rounds,
    metrics,
    audited,
    ledger,
    how,
    configuration,
)


EXACT = {True: "yes", False: "no", None: NOTHING}


def _in_order(facts: Facts) -> list[str]:
    """The ranking first, then who failed, then controls and baselines."""
    rest = [name for name in facts.pool if name not in facts.ranking]
    return [*facts.ranking, *sorted(rest, key=lambda name: name in facts.apart)]


def _candidate(facts: Facts, name: str, cells: Iterable[str]) -> Row:
    entry, failed = facts.pool[name], facts.failed(name)
    notes = {
        ("winner", "winner"): name == facts.winner,
        ("runner", "runner-up"): name == facts.runner_up,
        ("start", "lowest right after growing"): name == facts.start_choice,
        (entry.role, entry.role): name in facts.apart,
    }
    told = entry.word and entry.word not in entry.operator
    code = (entry.operator, f"word: {entry.word}" if told else "")
    return Row(
        (name, *cells),
        "failed" if failed else facts.part(name),
        tuple(note for note, holds in notes.items() if holds),
        tuple(filter(None, code)),
    )
