"""The audit: every candidate of the quickstart trained to the horizon, as rows and as a section.

    python -m experiments.quickstart --audit --workdir RUN
    python -m experiments.tables RUN

The second adds the rows of a finished audit, and makes the tables.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.rows import Row, alike, markdown
from lagjax.analysis.audit import Audit, audit, matrix
from lagjax.analysis.crossing import stretched
from lagjax.report import content, sentences
from lagjax.store import directory

UNIT = "nats per token"
FINAL = ("Candidate", "Final loss", "of the seeds", "Above the best")


def rows_of(run: Path) -> list[Row]:
    """A row for each candidate and seed; raises ValueError for no audit, or one not finished."""
    config, lines, decision, _ = directory.read(run)
    horizon = config.get("task", {}).get("horizon")
    if config.get("compare") != "all" or decision is None:
        raise ValueError(f"{run} is no finished audit; run it with --audit to its end")
    curves: dict[tuple[str, int], list[Row]] = {}
    for line in lines:
        if line["phase"] != "source":
            curves.setdefault((line["candidate"], line["seed"]), []).append(line)
    found = []
    for member in [*config["pool"], *config.get("baseline_pool", [])]:
        for seed in range(config["task"]["seeds"]):
            curve = curves.get((member["name"], seed), [])
            ends = member.get("horizon", horizon)
            if not curve or (curve[-1]["step"] < ends and curve[-1]["status"] == "ok"):
                raise ValueError(
                    f"{run}: {member['name']} with seed {seed} has not come to step {ends}; "
                    "run the same command again, and it goes on"
                )
            found.append(
                {
                    "question": "audit",
                    "config": config["arguments"],
                    "candidate": member["name"],
                    "operator": member["operator"],
                    "control": member["role"] != "candidate",
                    "role": member["role"],
                    "horizon": ends,
                    "seed": seed,
                    "steps": [line["step"] for line in curve],
                    "losses": [line["valid_loss"] for line in curve],
                    "status": curve[-1]["status"],
                    "commit": config["versions"]["commit"],
                    "versions": config["versions"],
                    "device": config["device"],
                    "cores": config["cores"],
                }
            )
    return found


def sections(rows: list[Row]) -> list[str]:
    """A part for each configuration and device."""
    return [_section(group) for group in alike(rows)]


def _section(rows: list[Row]) -> str:
    row, config = rows[0], rows[0]["config"]
    apart = [each for each in rows if each.get("role") == "baseline"]
    rows = [each for each in rows if each.get("role") != "baseline"]
    names = list(dict.fromkeys(each["candidate"] for each in rows))
    seeds = sorted({each["seed"] for each in rows})
    curves = {(each["candidate"], each["seed"]): _aligned(each, rows) for each in rows}
    steps, losses_TxCxS = matrix(curves, names, seeds)
    controls = frozenset(each["candidate"] for each in rows if each["control"])
    found = audit(names, controls, steps, losses_TxCxS)
    if found is None:
        raise ValueError(f"fewer than two of {names} have ended; add an audit that has")
    told = content.audit_table(found)
    state = {"reset": "reset", "grow": "grown"}[config["moments"]]
    rate = {"restart": "warmed up again", "continue": "continued"}[config["schedule"]]
    data = "the standard library" if config["data"] is None else config["data"]
    return (
        f"## Audit: optimizer state {state}, learning rate {rate}\n"
        f"`python -m experiments.quickstart --audit{_flags(config)}`: a GPT of width "
        f"{config['width']} grows from {config['layers']} to\n"
        f"{_grown(config)} after {config['source_steps']} steps on {data}, "
        f"{config['horizon']} steps more,\n"
        f"{len(names)} candidates, {found.seeds} seeds. Commit {str(row['commit'])[:12]}, "
        f"jax {row['versions']['jax']}, {row['device']}, {row['cores']} cores.\n\n"
        f"{' '.join(sentences.audited(found, UNIT))}\n\n"
        f"{markdown(told.headings, [each.cells for each in told.rows])}\n"
        f"{sentences.audit_about(UNIT)}\n\n"
        f"{markdown(FINAL, _finals(found, dict(zip(names, losses_TxCxS[-1]))))}"
        f"{_beside(apart)}"
    )


def _aligned(row: Row, rows: list[Row]) -> dict[int, float | None]:
    """A curve by step; one of another horizon, which costs as much, by the steps of the others."""
    horizon, curve = row["config"]["horizon"], dict(zip(row["steps"], row["losses"]))
    own = row.get("horizon", horizon)
    alike = [each for each in rows if each.get("horizon", horizon) == horizon]
    steps = next((each["steps"] for each in alike if None not in each["losses"]), None)
    if own == horizon or steps is None:
        return curve
    finite = {step: loss for step, loss in curve.items() if loss is not None}
    found = stretched(finite, own, horizon, steps)
    return {step: None if np.isnan(loss) else loss for step, loss in found.items()}


def _beside(rows: list[Row]) -> str:
    """The ends of what was not grown."""
    ends: dict[str, list[float]] = {}
    for row in rows:
        if row["status"] == "ok":
            ends.setdefault(row["candidate"], []).append(row["losses"][-1])
    told = [f"{name} {np.mean(losses):.4f}" for name, losses in ends.items()]
    return f"\nFor as many FLOPs, means over seeds: {', '.join(told)}.\n" if told else ""


def _finals(found: Audit, ends: dict[str, NDArray[np.float64]]) -> list[tuple[str, ...]]:
    """A line for each candidate, best first, then those that failed."""
    best = found.final[found.best] or 0.0
    ended = {name: loss for name, loss in found.final.items() if loss is not None}
    lines = [
        (
            name,
            f"{ended[name]:.4f}",
            ", ".join(f"{x:.4f}" for x in ends[name]),
            f"{ended[name] - best:.4f}".replace("-", "−"),
        )
        for name in sorted(ended, key=lambda name: ended[name])
    ]
    return lines + [(name, "failed", "", "") for name in ends if name not in ended]


def _grown(config: Row) -> str:
    """To what size."""
    width = f"width {config.get('grown_width') or 2 * config['width']}"
    deep = f"{config['grown_layers']} layers"
    return {"width": width, "both": f"{deep}, {width}, or both"}.get(config.get("grow", ""), deep)


def _flags(config: Row) -> str:
    """What was given beside `--audit`, as far as it changes the question."""
    usual = {"moments": "reset", "schedule": "restart", "data": None, "seed": 0}
    usual |= {"grow": "depth", "grown_width": None, "matched": None}
    changed = [name for name, value in usual.items() if config.get(name, value) != value]
    return "".join(f" --{name.replace('_', '-')} {config[name]}" for name in changed)
