"""Evidence from hand-made numbers."""

from collections.abc import Mapping, Sequence

import numpy as np

from lagjax.evidence import Evidence, Known
from lagjax.jobs import Trial
from lagjax.task import Candidate

SHARDS = 8


def known(name: str, *, role: str = "candidate", **changes: object) -> Known:
    """Only the costs of a candidate: 10 FLOPs a step, 3 an evaluation, 100 steps."""
    one = Candidate(name, None, None, role)  # type: ignore[arg-type]
    return Known(one, None, None, None, 10.0, 3.0, 100)._replace(**changes)


def evidence(
    losses: Mapping[str, Mapping[int, object]],
    pool: Sequence[Known] | None = None,
    *,
    seeds: int = 1,
    spread: float = 0.0,
    train: Mapping[str, object] | None = None,
    counts: object = None,
) -> Evidence:
    """Name → step → losses `[seeds, shards]`, or their mean, about which shards are spread."""
    draw = np.random.default_rng(1)
    found = {each.candidate.name: each for each in pool or map(known, losses)}
    lines: dict[Trial, list] = {}
    for name, curve in losses.items():
        for step, given in curve.items():
            table = np.asarray(given, np.float64)
            if not table.ndim:
                noise = draw.normal(size=(seeds, SHARDS))
                table = table + spread * (noise - noise.mean())
            seeds = len(table)
            for seed, shards in enumerate(table):
                ok = bool(np.isfinite(shards).all())
                status = "ok" if ok else "loss not finite at step 2"
                if not ok:
                    found[name] = found[name]._replace(status=status)
                line = {
                    "step": step,
                    "valid_loss_shards": [float(x) for x in shards],
                    "status": status,
                }
                lines.setdefault(Trial(name, seed), []).append(line)
    asked = {name: max(curve) for name, curve in losses.items() if curve}
    made = {
        Trial(name, seed): row
        for name, table in (train or {}).items()
        for seed, row in enumerate(np.asarray(table, np.float32))
    }
    weights = np.full(SHARDS, 100.0) if counts is None else np.asarray(counts, np.float64)
    return Evidence(found, asked, lines, made, weights, 100, seeds, 0, 0.0)
