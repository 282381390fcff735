"""The page: one HTML document that needs nothing but itself."""

import html
import json
from collections.abc import Callable, Iterable

from lagjax.report import audit, charts, style, tables
from lagjax.report.facts import Facts

Chart = Callable[[Facts, charts.Sheet], str]

# No script, no request: what the page promises, the browser enforces.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(facts: Facts) -> str:
    """The whole page. The same facts give the same text."""
    parts = [
        _candidates(facts),
        _curves(facts),
        _start_against_lag(facts),
        _ranking(facts),
        _audit(facts),
        _ledger(facts),
        _how(facts),
        _configuration(facts),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_text(_title(facts))}</title>
<style>{style.CSS}</style>
</head>
<body>
<main>
<h1>lagjax: which way to grow the model</h1>
<p class="lead">{_text(tables.sentence(facts))}</p>
{_summary(facts)}
{"".join(parts)}
<footer>Losses are validation losses in nats per token; lower is better.{_seeds(facts)}</footer>
</main>
</body>
</html>
"""


def _title(facts: Facts) -> str:
    word, _ = tables.outcome(facts)
    return f"{facts.winner} chosen ({word})" if facts.winner else f"lagjax run: {word}"


def _seeds(facts: Facts) -> str:
    if facts.seeds < 2:
        return ""
    return f" Up to the lag they are means over {facts.seeds} seeds; after it, over the seeds that were trained on."


def _summary(facts: Facts) -> str:
    if not facts.decision:
        return ""
    word, meaning = tables.outcome(facts)
    tiles = [
        (
            "Outcome",
            f'<span class="{_text(word)}">{_text(word.replace("_", " "))}</span>',
            meaning,
        ),
        ("Margin over the runner-up", *map(_text, tables.margin(facts))),
        ("Overhead of the search", *map(_text, tables.overhead(facts))),
    ]
    return (
        '<dl class="facts">'
        + "".join(
            f'<div><dt>{term}</dt><dd><div class="value">{value}</div><div class="detail">{detail}</div></dd></div>'
            for term, value, detail in tiles
        )
        + "</dl>"
    )


def _candidates(facts: Facts) -> str:
    rows = tables.candidates(facts)
    if not rows:
        return ""
    about = "One line for each candidate, best first. An equals sign marks a tie. The final loss is given where the candidate was trained to the end."
    if facts.seeds > 1:
        about += f" Losses at growing and at the lag are means over {facts.seeds} seeds."
    head = "".join(
        f'<th scope="col"{_class("text") if title == "Status" else ""}>{title}</th>'
        for title in tables.headings(facts)
    )
    return _section("The candidates", about, _table("Candidates", head, map(_candidate, rows)))


def _candidate(row: tables.Row) -> str:
    looks = {
        "winner": "winner",
        "runner-up": "runner",
        "lowest right after growing": "start",
    }
    notes = "".join(
        f' <span class="note {looks.get(note, "")}">{note}</span>' for note in row.notes
    )
    operator = f'<code class="operator">{_text(row.operator)}</code>' if row.operator else ""
    kind = (
        "winner"
        if "winner" in row.notes
        else "failed"
        if row.failed
        else "control"
        if "control" in row.notes
        else ""
    )
    numbers = (
        row.start_rank,
        row.lag_rank,
        row.start_loss,
        row.lag_loss,
        row.final_loss,
    )
    cells = "".join(f"<td>{_text(number)}</td>" for number in numbers)
    bad = " bad" if row.failed else ""
    return (
        f'<tr class="{kind}"><td><span class="name">{_text(row.name)}</span>{notes}{operator}</td>{cells}'
        f'<td class="text{bad}">{_text(row.status)}</td></tr>'
    )


def _curves(facts: Facts) -> str:
    if not any(curve.losses for curve in facts.probes.values()):
        return _source(facts)
    about = (
        "Validation loss of each candidate while it trains. Steps are on a logarithmic axis; step 0, right after "
        "growing, stands at its left edge."
    )
    if facts.decision:
        about += " The vertical line is the lag."
    if facts.seeds > 1:
        about += f" Up to the lag each line is the mean over {facts.seeds} seeds; after it, the mean over the seeds that were trained on, so a line may step there."
    if facts.source and facts.source.losses:
        about += (
            f" The dashed level is where the small model ended, at {facts.source.losses[-1]:.4f}."
        )
    if facts.controls:
        about += " The axis is set by the pool; a control may lie outside it."
    body = _key(facts) + _chart(facts, charts.curves)
    if len(facts.ranking) > 1:
        best = "the winner's" if facts.winner else "that of the best so far"
        body += (
            '<p class="about second">The same probes by how much their loss, in nats per token, lies above '
            f"{best} at the same step: zero is level with it, below zero is ahead of it. "
            "Controls and failed candidates are left out; a straggler may lie above the edge.</p>"
            + _chart(facts, charts.probes)
        )
    return _section("Loss while training", about, body)


def _source(facts: Facts) -> str:
    if not facts.source or not facts.source.losses:
        return ""
    steps, losses = facts.source.steps, facts.source.losses
    return _section(
        "The small model",
        f"It has been trained for {steps[-1]} steps; its validation loss is {losses[-1]:.4f} nats per token. No candidate has been measured yet.",
        "",
    )


def _start_against_lag(facts: Facts) -> str:
    if not facts.lag or len(charts.pairs(facts)) < 2:
        return ""
    correlation = charts.rank_correlation(facts)
    stated = (
        "The rank correlation of the two cannot be computed from so few or so equal losses."
        if correlation is None
        else f"Spearman's rank correlation of the two is {tables.signed(correlation)[:-2]} over {len(charts.pairs(facts))} candidates: "
        "1 would mean that training does not change the order, 0 that the start says nothing about it."
    )
    about = f"Does the loss right after growing foretell the loss at step {facts.lag}? Each dot is a candidate; lower is better. {stated} Controls are left out."
    body = '<p class="about narrow">Numbers are ranks at the lag, as in the table.</p>' + _chart(
        facts, charts.start_against_lag
    )
    return _section("Right after growing, and at the lag", about, body)


def _ranking(facts: Facts) -> str:
    if not facts.lag or len(facts.ranking) < 2:
        return ""
    about = "The rank of each candidate at each evaluation of the probes. Lines that cross are candidates that change places; where they stop crossing, the order has settled. Tied candidates share a place."
    return _section("The ranking over time", about, _chart(facts, charts.ranking))


def _audit(facts: Facts) -> str:
    if not facts.audit:
        return ""
    told = [
        *audit.sentences(facts.audit),
        "In the pictures, bars span the seeds and the band is the transition's interval.",
    ]
    body = f'<p class="about">{_text(" ".join(told))}</p>'
    body += _chart(facts, charts.foresight) + _chart(facts, charts.regret)
    head = "".join(f'<th scope="col">{title}</th>' for title in audit.HEADINGS)
    rows = (
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
        for cells in audit.rows(facts.audit)
    )
    return _section("The audit", audit.ABOUT, body + _table("Audit", head, rows))


def _ledger(facts: Facts) -> str:
    rows = tables.ledger(facts)
    if not rows:
        return ""
    titles = ("Purpose", "FLOPs", "In full runs", "Training tokens", "Seconds")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = ("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    given = (facts.decision or {}).get("ledger") or {}
    about = "What the run spent, by purpose. Overhead is what was not kept (probes, evaluations, fits) over one full run of the large model; the budget share sets the whole search against training every candidate to the end."
    total = ""
    if given:
        value, detail = tables.overhead(facts)
        total = (
            f'<p style="margin-top:12px"><strong>Overhead {_text(value)}</strong> {_text(detail)}.'
        )
        if given.get("seconds") is not None:
            total += f" Time in all: {tables.duration(given['seconds'])}."
        total += "</p>"
    return _section("The ledger", about, _table("Ledger", head, body) + total)


def _how(facts: Facts) -> str:
    lines = "".join(
        f"<dt>{_text(term)}</dt><dd>{_text(what)}</dd>" for term, what in tables.how(facts)
    )
    about = (
        "The candidate with the lowest mean validation loss at the lag leads. If its paired margin over every other is "
        "clear of noise, it is the winner; otherwise the earliest of the tied in the pool's order is kept."
        if facts.decision
        else "This run has no decision yet; run the same command again and it goes on where it stopped."
    )
    return _section("The decision and how it was made", about, f'<dl class="how">{lines}</dl>')


def _configuration(facts: Facts) -> str:
    text = json.dumps(facts.config, indent=2, ensure_ascii=False)
    return f'<section><details><summary>Configuration</summary><p class="about">Everything needed to repeat the run, as in config.json.</p><pre tabindex="0">{_text(text)}</pre></details></section>'


def _key(facts: Facts) -> str:
    """What the looks of the lines mean; only those that occur."""
    roles = {charts.role(facts, name) for name in facts.probes}
    same = facts.winner is not None and facts.start_choice == facts.winner
    texts = {
        "winner": "winner, and lowest right after growing" if same else "winner",
        "runner": "runner-up"
        + (", and lowest right after growing" if facts.start_choice == facts.runner_up else ""),
        "start": "lowest right after growing",
        "other": "other candidates",
        "control": "controls",
        "failed": "failed",
    }
    failed = any(curve.failed for curve in (*facts.probes.values(), *facts.continued.values()))
    items = [
        f'<li class="{role}">{"<em>✕</em>" if role == "failed" else "<i></i>"}{text}</li>'
        for role, text in texts.items()
        if role in roles or (role == "failed" and failed)
    ]
    return f'<ul class="key">{"".join(items)}</ul>'


def _chart(facts: Facts, draw: Chart) -> str:
    return (
        f'<figure><div class="wide">{draw(facts, charts.WIDE)}</div>'
        f'<div class="narrow">{draw(facts, charts.NARROW)}</div></figure>'
    )


def _section(title: str, about: str, body: str) -> str:
    return f'<section><h2>{title}</h2><p class="about">{_text(about)}</p>{body}</section>\n'


def _table(label: str, head: str, rows: Iterable[str]) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _class(name: str) -> str:
    return f' class="{name}"'


def _text(value: str) -> str:
    return html.escape(str(value))
