"""What a run directory says, worked out once: the page, its charts and the terminal all draw from this."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lagjax.analysis.agreement import START_TOLERANCE
from lagjax.analysis.audit import Audit, audit
from lagjax.report import curves
from lagjax.report.curves import Curve
from lagjax.select.decision import start_choice
from lagjax.store import directory

DECISION = (
    "winner",
    "runner_up",
    "outcome",
    "lag",
    "margin",
    "margin_interval",
    "ranking",
    "losses_at_start",
    "losses_at_lag",
    "status",
    "ledger",
)
LINE = ("phase", "candidate", "seed", "step", "valid_loss", "status")


class Entry(NamedTuple):
    """A member of the pool."""

    name: str
    operator: str
    control: bool


class Facts(NamedTuple):
    """A run, ready to be told.

    `lag` is the decision's, or the last step that every live candidate has reached while there is no decision.
    `at_start` and `at_lag` are seed means in nats per token, None where a candidate failed or has not come that far.
    """

    config: dict[str, Any]
    lines: list[curves.Line]
    decision: dict[str, Any] | None
    pool: tuple[Entry, ...]
    source: Curve | None
    probes: dict[str, Curve]
    continued: dict[str, Curve]
    seeds: int
    lag: int | None
    horizon: int | None
    at_start: dict[str, float | None]
    at_lag: dict[str, float | None]
    status: dict[str, str]
    start_choice: str | None
    audit: Audit | None

    @property
    def winner(self) -> str | None:
        return self.decision["winner"] if self.decision else None

    @property
    def runner_up(self) -> str | None:
        return self.decision["runner_up"] if self.decision else None

    @property
    def ranking(self) -> list[str]:
        """Names without the controls, best first: as decided, or by the losses at the lag while nothing is decided."""
        if self.decision:
            order = self.decision["ranking"]
        else:
            live = {name: x for name, x in self.at_lag.items() if x is not None}
            order = sorted(live, key=lambda name: live[name])
        return [name for name in order if name not in self.controls]

    @property
    def controls(self) -> frozenset[str]:
        return frozenset(entry.name for entry in self.pool if entry.control)


def gather(record: directory.RunData) -> Facts:
    """Works out the facts of a run.

    Raises ValueError where the files are not those of a run.
    """
    config, lines, decision, _ = record
    _check(config, lines, decision)
    pool = _pool(config, lines, decision)
    names = [entry.name for entry in pool]
    probe_lines = curves.by_candidate(lines, "probe")
    probes = {
        name: curves.mean_over_seeds(probe_lines[name]) for name in names if name in probe_lines
    }
    continued = {
        name: curves.continuation(probe_lines.get(name, []), after)
        for name, after in curves.by_candidate(lines, "continue").items()
    }
    source = curves.by_candidate(lines, "source").get("source")
    task = config.get("task") or {}
    lag = decision["lag"] if decision else _common_step(probes.values())
    status = {name: probes[name].failed or "ok" for name in probes}
    at_start = {name: probes[name].at(0) for name in probes}
    at_lag = {name: None if lag is None else probes[name].at(lag) for name in probes}
    if decision:
        status |= decision["status"]
        at_start |= decision["losses_at_start"]
        at_lag |= decision["losses_at_lag"]
    seen = {line["seed"] for line in lines if line["phase"] == "probe"}
    return Facts(
        config=config,
        lines=lines,
        decision=decision,
        pool=pool,
        source=curves.mean_over_seeds(source) if source else None,
        probes=probes,
        continued=continued,
        seeds=int(task.get("seeds") or len(seen) or 1),
        lag=lag,
        horizon=task.get("horizon"),
        at_start=at_start,
        at_lag=at_lag,
        status=status,
        start_choice=start_choice(
            {name: at_start.get(name) for name in names},
            [entry.name for entry in pool if entry.control],
        ),
        audit=_audit(config, lines, pool),
    )


def _audit(
    config: dict[str, Any], lines: Iterable[curves.Line], pool: Iterable[Entry]
) -> Audit | None:
    """The audit, where every candidate was trained to the horizon with every seed, or failed before."""
    task = config.get("task") or {}
    if config.get("compare") != "all" or not task.get("horizon"):
        return None
    found: dict[tuple[str, int], dict[int, float]] = {
        (entry.name, seed): {} for entry in pool for seed in range(task["seeds"])
    }
    failed = set()
    for line in lines:
        if line["phase"] != "source":
            lane, loss = (line["candidate"], line["seed"]), line["valid_loss"]
            found[lane][line["step"]] = np.nan if loss is None else loss
            failed |= {lane} if loss is None else set()
    whole = [losses for lane, losses in found.items() if lane not in failed]
    if not whole or any(task["horizon"] not in losses for losses in whole):
        return None
    steps = sorted(set.intersection(*map(set, whole)))
    losses = [
        [
            [found[entry.name, seed].get(step, np.nan) for seed in range(task["seeds"])]
            for entry in pool
        ]
        for step in steps
    ]
    controls = frozenset(entry.name for entry in pool if entry.control)
    return audit([entry.name for entry in pool], controls, steps, np.array(losses, float))


def ranks(losses: Mapping[str, float]) -> dict[str, float]:
    """Ranks from 1, the lowest loss first; those tied within a relative 1e-5 share the mean of their places."""
    groups: list[list[str]] = []
    for name in sorted(losses, key=lambda name: losses[name]):
        lead = losses[groups[-1][0]] if groups else None
        if lead is not None and losses[name] - lead <= START_TOLERANCE * abs(lead):
            groups[-1].append(name)
        else:
            groups.append([name])
    found: dict[str, float] = {}
    place = 1
    for group in groups:
        found |= dict.fromkeys(group, place + (len(group) - 1) / 2)
        place += len(group)
    return found


def _common_step(probes: Iterable[Curve]) -> int | None:
    live = [set(curve.steps) for curve in probes if not curve.failed]
    return max(set.intersection(*live), default=None) if live else None


def _pool(
    config: dict[str, Any],
    lines: list[curves.Line],
    decision: dict[str, Any] | None,
) -> tuple[Entry, ...]:
    """The pool as configured, then whoever else turns up in the files."""
    entries = {
        entry["name"]: Entry(
            entry["name"],
            str(entry.get("operator", "")),
            entry.get("role") not in (None, "candidate"),
        )
        for entry in config.get("pool") or []
    }
    others = [*curves.by_candidate(lines, "probe"), *(decision or {}).get("status", ())]
    for name in others:
        entries.setdefault(name, Entry(name, "", False))
    return tuple(entries.values())


def _check(config: Any, lines: list[Any], decision: Any) -> None:
    """Says what is wrong with files that are not a run's, before anything stumbles over it."""
    if lacking := _lacking((), config):
        raise ValueError(f"config.json lacks {lacking}, so this is no run directory.")
    for number, line in enumerate(lines, 1):
        lacking = _lacking(LINE, line)
        if lacking:
            raise ValueError(f"Line {number} of curves.jsonl lacks {lacking}.")
    if decision is not None and (lacking := _lacking(DECISION, decision)):
        raise ValueError(
            f"decision.json lacks {lacking}; delete it and run the same command again."
        )


def _lacking(keys: tuple[str, ...], found: Any) -> str:
    if not isinstance(found, dict):
        return "all its keys (it is not a JSON object)"
    return ", ".join(key for key in keys if key not in found)
