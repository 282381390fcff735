"""The pictures of the tables, drawn from the same rows; `python -m experiments.tables` makes them.

The rows' digest stands in each, so that a test can tell a picture of other rows.
"""

import hashlib
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from experiments.evidence_findings import FIRST, means, verdicts
from experiments.rows import Row, alike

LOOKS = {
    "raw": ("#444444", "o", "the weights"),
    "average": ("#0b6bcb", "s", "their average"),
    "tail": ("#5aa9e6", "^", "the mean of the last"),
    "anneal": ("#c2571a", "D", "an annealed copy"),
    "window": ("#8a8a8a", "x", "training losses"),
}


def digest(rows: Sequence[Row]) -> str:
    """Of rows, whatever their order."""
    text = sorted(json.dumps(row, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:16]


def evidence(rows: list[Row]) -> Figure:
    """Regret against what the choice costs, a panel for each regime."""
    groups = alike(rows)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    panels = np.atleast_1d(figure.subplots(1, len(groups)))
    signals = [each.signal for each in verdicts(rows)]
    best = {
        name: next((each for each in signals if each.startswith(start)), name)
        for name, start in (("average", "ema"), ("tail", "tail"))
    }
    for panel, group in zip(panels, groups):
        regime, first = group[0]["regime"], FIRST * group[0]["config"]["horizon"]
        regret, cost = means(group, "regret_nats"), means(group, "cost")
        for name, (color, marker, label) in LOOKS.items():
            signal = best.get(name, name)
            points = sorted(
                (cost[key], regret[key])
                for key in regret
                if key[:2] == (regime, signal) and key[2] >= first
            )
            if points:
                panel.plot(
                    *zip(*points),
                    color=color,
                    marker=marker,
                    markersize=4,
                    linewidth=1.3,
                    label=label + (f", {signal}" if signal != name else ""),
                )
        panel.axhspan(0, group[0]["noise_floor"], color="#000000", alpha=0.07, linewidth=0)
        panel.set(title=regime, xlabel="full runs that the choice costs")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("regret, nats per token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def regimes(rows: list[Row]) -> Figure:
    """How well losses rank candidates as their ends do, by the share of the horizon, a panel for
    each task.
    """
    tasks = [row for row in rows if row["question"] == "numbers"]
    columns = min(4, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(11, 2.3 * lines + 0.5), layout="constrained")
    FigureCanvasSVG(figure)
    panels = np.atleast_1d(figure.subplots(lines, columns, sharey=True, squeeze=False)).ravel()
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    for panel, row in zip(panels, tasks):
        # The start has no logarithm; it stands left of the first step.
        first = next(share for share in row["shares"] if share)
        shares = [share or first / 2 for share in row["shares"]]
        for name, look in (("spearman", "raw"), ("spearman of averages", "average")):
            color, marker, label = LOOKS[look]
            found = [np.nan if x is None else x for x in row[name]]
            panel.plot(shares, found, color=color, linewidth=1.3, label=label)
            panel.plot(shares[0], found[0], color=color, marker=marker, markersize=4)
        panel.axhline(0.8, color="#000000", alpha=0.25, linewidth=0.8)
        panel.set_xscale("log")
        panel.set_ylim(-1.05, 1.05)
        panel.set_title(textwrap.fill(f"{row['task']}: {row['regime']}", 38), fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("Spearman")
    for panel in panels[-columns:]:
        panel.set_xlabel("share of the horizon")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


PICTURES: dict[str, Callable[[list[Row]], Figure]] = {
    "evidence.jsonl": evidence,
    "regimes.json": regimes,
}
"""What draws the rows of a file."""


def save(figure: Figure, path: Path, rows: Sequence[Row]) -> None:
    """As an SVG that is the same each time."""
    with mpl.rc_context({"svg.hashsalt": "lagjax", "font.family": "DejaVu Sans"}):
        told = {"Date": None, "Description": f"rows {digest(rows)}"}
        figure.savefig(path, format="svg", metadata=told)
