"""What a run directory says, worked out once: every section and every picture draws from this."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lagjax.analysis import agreement
from lagjax.analysis.audit import Audit, audit
from lagjax.analysis.crossing import stretched
from lagjax.jobs import RAW, Json, Line, Trial
from lagjax.report import watched as watching
from lagjax.report.curve import Curve
from lagjax.select.decision import start_choice
from lagjax.store import directory

PHASES = ("source", "probe", "continue")
LINE = ("phase", "candidate", "seed", "step", "valid_loss", "status")
CHOICE = ("winner", "runner_up", "outcome", "lag", "margin", "margin_interval", "ranking")
DECISION = (*CHOICE, "losses_at_start", "losses_at_lag", "status", "ledger")


class Entry(NamedTuple):
    """A member of the pool: `role` is "candidate", "control" or "baseline", `horizon` the steps of
    its full training and `step_flops` what one costs, where the run says so.
    """

    name: str
    operator: str = ""
    role: str = "candidate"
    word: str | None = None
    exact: bool | None = None
    horizon: int | None = None
    step_flops: float | None = None


class Facts(NamedTuple):
    """A run, ready to be told; losses are in `unit`.

    `lag` is the decision's, or the last step that every live candidate has reached while there is
    no decision. `lags` says how far each was to be probed, where the run says so. `at_start` and
    `at_lag` are seed means, None where a candidate failed or has not come that far. `apart` are
    controls and baselines: they have a rank in no table and cannot win. `metrics` are the run's
    own, by candidate: the last step measured, and the means over the seeds that came that far.
    `watched` and `watched_on` are probes and continuations by training losses, where validation is
    rare.
    """

    config: Json
    lines: list[Line]
    decision: Json | None
    rounds: list[Json]
    pool: dict[str, Entry]
    apart: frozenset[str]
    source: Curve | None
    unkept: Mapping[str, str]
    probes: dict[str, Curve]
    continued: dict[str, Curve]
    watched: dict[str, Curve]
    watched_on: dict[str, Curve]
    seeds: int
    unit: str
    horizon: int | None
    lag: int | None
    lags: dict[str, int]
    at_start: dict[str, float | None]
    at_lag: dict[str, float | None]
    status: dict[str, str]
    start_choice: str | None
    metrics: dict[str, tuple[int, dict[str, float | None]]]
    audit: Audit | None

    @property
    def winner(self) -> str | None:
        return self.decision["winner"] if self.decision else None

    @property
    def runner_up(self) -> str | None:
        return self.decision["runner_up"] if self.decision else None

    @property
    def ranking(self) -> list[str]:
        """Candidates, best first: as decided, or by the losses at the lag while nothing is."""
        if self.decision:
            order = self.decision["ranking"]
        else:
            live = {name: loss for name, loss in self.at_lag.items() if loss is not None}
            order = sorted(live, key=lambda name: live[name])
        return [name for name in order if name not in self.apart]

    @property
    def best(self) -> str | None:
        """The winner, or the best so far."""
        return self.winner or next(iter(self.ranking), None)

    @property
    def drawn(self) -> list[tuple[str, Curve]]:
        """All curves; those of baselines, whose length is what it costs, as far as others go."""
        after = self.watched_on if self.watched else self.continued
        found = [*self.shown.items(), *after.items()]
        others = [step for name, curve in found if not self.baseline(name) for step in curve.losses]
        end = max(others, default=0)
        return [(n, curve.until(end) if self.baseline(n) else curve) for n, curve in found]

    @property
    def shown(self) -> dict[str, Curve]:
        """The probes as they are drawn: by training losses where validation is rare."""
        return self.watched or self.probes

    @property
    def weights(self) -> str:
        """Those that the decision compared."""
        return str((self.decision or {}).get("weights", RAW))

    @property
    def drawn_loss(self) -> str:
        """What the curves are of."""
        return "training loss" if self.watched else "validation loss"

    def baseline(self, name: str) -> bool:
        """Whether it is what growing is compared with."""
        return name in self.pool and self.pool[name].role == "baseline"

    def horizon_of(self, name: str) -> int | None:
        """The steps of its full training."""
        own = self.pool[name].horizon if name in self.pool else None
        return self.horizon if own is None else own

    def failed(self, name: str) -> bool:
        """Whether it has failed; a policy may also have stopped it, which its status says too."""
        if name in self.probes:
            return self.probes[name].failed is not None
        return self.status.get(name, "ok") != "ok"

    def part(self, name: str) -> str:
        """What is most worth seeing about a candidate: it decides how it looks."""
        if name == self.winner:
            return "winner"
        if name == self.runner_up:
            return "runner"
        if name == self.start_choice:
            return "start"
        if self.failed(name):
            return "failed"
        return self.pool[name].role if name in self.apart else "other"


def gather(run: directory.RunData, losses: Mapping[Trial, NDArray[np.float32]]) -> Facts:
    """Works out the facts of a run and of its training losses; raises ValueError where the files
    are not those of a run.
    """
    _check(run)
    config, curves, decision, rounds = run
    lines = [line for line in curves if line["phase"] in PHASES]
    task = config.get("task") or {}
    source, probed, after = (
        by_candidate(line for line in lines if line["phase"] == phase) for phase in PHASES
    )
    pool = _pool(run, (*probed, *after))
    apart = frozenset(name for name, entry in pool.items() if entry.role != "candidate")
    probes = {name: mean_over_seeds(found) for name, found in probed.items()}
    lags = {name: step for each in rounds for name, step in (each.get("until") or {}).items()}
    lag = _common_step(probes, lags)
    status = {name: curve.failed or "ok" for name, curve in probes.items()}
    for name, found in after.items():
        status.setdefault(name, mean_over_seeds(found).failed or "ok")
    at_start = {name: curve.losses.get(0) for name, curve in probes.items()}
    at_lag = {name: curve.losses.get(lag or 0) for name, curve in probes.items()}
    if decision:
        lag, lags = decision["lag"], (decision.get("lags") or {}) | lags
        status |= decision["status"]
        at_start |= decision["losses_at_start"]
        at_lag = dict(decision["losses_at_lag"])
    onward = {name: continuation(probed.get(name, []), found) for name, found in after.items()}
    watched, watched_on = {}, {}
    if watching.rare(probes):
        ends = {name: (0, max(curve.losses)) for name, curve in probes.items() if curve.losses}
        watched = watching.curves(losses, ends)
        ends = {n: (min(x.losses), max(x.losses)) for n, x in onward.items() if x.losses}
        watched_on = watching.curves(losses, ends)
    seen = {line["seed"] for line in lines if line["phase"] == "probe"}
    seeds = int(task.get("seeds") or len(seen) or 1)
    return Facts(
        config=config,
        lines=lines,
        decision=decision,
        rounds=rounds,
        pool=pool,
        apart=apart,
        source=mean_over_seeds(source["source"]) if source else None,
        unkept=config.get("unkept") or {},
        probes={name: probes[name] for name in pool if name in probes},
        continued=onward,
        watched={name: watched[name] for name in pool if name in watched},
        watched_on=watched_on,
        seeds=seeds,
        unit=str(task.get("unit") or "nats per token"),
        horizon=task.get("horizon"),
        lag=lag,
        lags=lags,
        at_start=at_start,
        at_lag=at_lag,
        status=status,
        start_choice=start_choice({name: at_start.get(name) for name in pool}, apart),
        metrics=_metrics(lines),
        audit=_audit(lines, pool, apart, seeds, task.get("horizon"))
        if config.get("compare") == "all"
        else None,
    )


def mean_over_seeds(lines: Iterable[Line]) -> Curve:
    """The curve of one candidate in one phase."""
    by_seed: dict[int, dict[int, float | None]] = {}
    bad: list[tuple[int, str]] = []
    for line in lines:
        by_seed.setdefault(line["seed"], {})[line["step"]] = line["valid_loss"]
        if line["valid_loss"] is None:
            bad.append((line["step"], str(line["status"])))
    failed_at, failed = min(bad, default=(np.inf, None))
    common = sorted(set.intersection(*map(set, by_seed.values())))
    losses = {
        step: sum(of_seed[step] or 0.0 for of_seed in by_seed.values()) / len(by_seed)
        for step in common
        if step < failed_at
    }
    return Curve(losses, failed)


def continuation(probe: Iterable[Line], after: list[Line]) -> Curve:
    """What comes after the probe, from the probe's last step on.

    Only the seeds that went on are averaged, at the joint too, so that the line starts where these
    very trainings stood.
    """
    seeds, first = {line["seed"] for line in after}, min(line["step"] for line in after)
    own = [line for line in probe if line["seed"] in seeds and line["step"] < first]
    last = max((line["step"] for line in own), default=None)
    return mean_over_seeds([line for line in own if line["step"] == last] + after)


def ranks(losses: Mapping[str, float | None]) -> dict[str, int]:
    """Ranks from 1, the lowest loss first; those that `level` makes equal share the best place."""
    found = level(losses)
    places = zip(found, agreement.ranks(list(found.values())))
    return {name: place for name, place in places if place is not None}


def level(losses: Mapping[str, float | None]) -> dict[str, float]:
    """The losses there are, those within `START_TOLERANCE` above another set to that one.

    All exact operators start at one loss, and a rounding error is no order among them.
    """
    found: dict[str, float] = {}
    lead = -np.inf
    for loss, name in sorted((loss, name) for name, loss in losses.items() if loss is not None):
        if loss - lead > agreement.START_TOLERANCE * abs(loss):
            lead = loss
        found[name] = lead
    return {name: found[name] for name in losses if name in found}


def spent(facts: Facts) -> dict[str, tuple[float, float, float]]:
    """FLOPs, tokens and seconds by purpose: counts go on from a probe to the horizon."""
    last: dict[tuple[str, str, int], Line] = {}
    for line in facts.lines:
        last[line["phase"], line["candidate"], line["seed"]] = line
    found: dict[str, tuple[float, float, float]] = {}
    for (phase, name, seed), line in last.items():
        kept = name == facts.winner and seed == 0
        purpose = {
            "source": "Training the small model",
            "probe": "Probe of the winner, kept" if kept else "Probes that were not kept",
        }.get(phase, "Winner after the lag" if kept else "Others after the lag, for comparison")
        if phase == "probe" and not facts.decision:
            purpose = "Probes so far"
        if facts.baseline(name):
            purpose = "Baselines, apart"
        before = last.get(("probe", name, seed), {}) if phase == "continue" else {}
        keys = ("flops", "tokens", "seconds")
        more = [(line.get(key) or 0) - (before.get(key) or 0) for key in keys]
        flops, tokens, seconds = found.get(purpose, (0.0, 0.0, 0.0))
        found[purpose] = (flops + more[0], tokens + more[1], seconds + more[2])
    return found


def by_candidate(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Lines, each candidate's together."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["candidate"], []).append(line)
    return found


def _pool(run: directory.RunData, probed: Iterable[str]) -> dict[str, Entry]:
    """The pool as configured, what a policy added, then whoever else turns up in the files."""
    given = [*(run.config.get("pool") or []), *(run.config.get("baseline_pool") or [])]
    given += [entry for each in run.rounds for entry in each.get("candidates") or []]
    pool = {
        entry["name"]: Entry(**{key: entry[key] for key in Entry._fields if key in entry})
        for entry in given
    }
    for name in (*probed, *(run.decision or {}).get("status", ())):
        pool.setdefault(name, Entry(name))
    return pool


def _common_step(probes: Mapping[str, Curve], lags: Mapping[str, int]) -> int | None:
    """The last step that all have reached that are alive and still in the race."""
    furthest = max(lags.values(), default=0)
    live = [
        set(curve.losses)
        for name, curve in probes.items()
        if not curve.failed and lags.get(name, furthest) == furthest
    ]
    return max(set.intersection(*live), default=None) if live else None


def _metrics(lines: Iterable[Line]) -> dict[str, tuple[int, dict[str, float | None]]]:
    told = [line for line in lines if line["phase"] != "source" and line.get("metrics")]
    found = {}
    for name, own in by_candidate(told).items():
        step = max(line["step"] for line in own)
        last = [line["metrics"] for line in own if line["step"] == step]
        means = {}
        for metric in last[0]:
            values = [of_seed.get(metric) for of_seed in last]
            means[metric] = None if None in values else float(np.mean(np.array(values, float)))
        found[name] = (step, means)
    return found


def _audit(
    lines: Iterable[Line],
    pool: Mapping[str, Entry],
    apart: frozenset[str],
    seeds: int,
    horizon: int | None,
) -> Audit | None:
    """The audit, where every candidate was trained to its end with each seed, or failed.

    Those of other horizons are compared at the same share of theirs, interpolated where they were
    not evaluated. Baselines are no way to grow, and are left out.
    """
    names = [name for name, entry in pool.items() if entry.role != "baseline"]
    trials = [[(name, seed) for seed in range(seeds)] for name in names]
    found: dict[tuple[str, int], dict[int, float]] = {trial: {} for row in trials for trial in row}
    for line in lines:
        if line["phase"] != "source":
            loss = np.nan if line["valid_loss"] is None else line["valid_loss"]
            found.setdefault((line["candidate"], line["seed"]), {})[line["step"]] = loss
    whole = {
        trial: losses
        for trial, losses in found.items()
        if trial[0] in names and np.isfinite([*losses.values()]).all()
    }
    if not horizon or not whole:
        return None
    ends = {name: pool[name].horizon or horizon for name in names}
    if any(ends[name] not in losses for (name, _), losses in whole.items()):
        return None
    alike = [set(losses) for (name, _), losses in whole.items() if ends[name] == horizon]
    if not alike:
        return None
    steps = sorted(set.intersection(*alike))
    for (name, seed), losses in found.items():
        if ends.get(name, horizon) != horizon:
            found[name, seed] = stretched(losses, ends[name], horizon, steps)
    losses_TxCxS = [
        [[found[trial].get(step, np.nan) for trial in row] for row in trials] for step in steps
    ]
    return audit(names, apart, steps, np.array(losses_TxCxS, float))


def _check(run: directory.RunData) -> None:
    """Says what is wrong with files that are not a run's, before anything stumbles over it."""
    entries = [*(run.config.get("pool") or [])]
    for file, keys, rows in (
        ("curves.jsonl", LINE, run.curves),
        ("rounds.jsonl", ("round", "answer"), run.rounds),
    ):
        for number, line in enumerate(rows, 1):
            if lacking := _lacking(keys, line):
                raise ValueError(f"Line {number} of {file} lacks {lacking}.")
            entries += line.get("candidates") or []
    for entry in entries:
        if lacking := _lacking(("name",), entry):
            raise ValueError(f"A member of the pool lacks {lacking}: {entry!r:.80}.")
    if run.decision is not None and (lacking := _lacking(DECISION, run.decision)):
        raise ValueError(
            f"decision.json lacks {lacking}; delete it and run the same command again."
        )


def _lacking(keys: Iterable[str], found: object) -> str:
    if not isinstance(found, dict):
        return "all its keys (it is not a JSON object)"
    return ", ".join(key for key in keys if key not in found)
