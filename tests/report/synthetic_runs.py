"""Run directories made up from a few numbers, for the tests of the report."""

import json
import math
import pathlib
from typing import Any

import numpy as np

from lagjax.jobs import Trial
from lagjax.store.losses import Losses

NAMES = (
    "stack", "interleave", "block(1)", "learned (LiGO)", "zero-new", "half-new", "wide-then-deep",
    "fpi", "aki", "net2net", '<b>&"x"', "gradmax", "random-new",
)  # fmt: skip
CONTROLS = ("from scratch", "shuffled")
AGAINST = ("not growing", "from scratch")
BASELINE, ADDED = "small model goes on", "0 0* 1 1 1"
EXACT = ("zero-new", "half-new", "fpi")
STEPS = (0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 150, 200, 250)
FIRST, LAG, HORIZON = 60, 250, 5000
FAILED, STOPPED = "loss not finite at step 40", "stopped at step 60"
LATER = (300, 400, 600, 1000, 1500, 2000, 3000, 4000, 5000)


def make(
    root: pathlib.Path,
    *,
    names: tuple[str, ...] = NAMES,
    seeds: int = 1,
    failed: tuple[str, ...] = (),
    outcome: str | None = "clear",
    phases: tuple[str, ...] = ("source", "probe", "continue"),
    controls: bool = True,
    audit: bool = False,
    racing: bool = False,
    baseline: bool = False,
    metrics: bool = False,
    shift: float = 0.0,
    unit: str = "nats per token",
    against: str | None = None,
    targets: bool = False,
    rare: bool = False,
    bounce: float = 0.0,
) -> dict[str, Any] | None:
    """Writes a run directory; returns its decision (None with outcome None: an unfinished run).

    `racing`: all are probed to FIRST, ADDED is added by the policy and follows, and the best four
    go on to LAG. `shift` is taken off every loss, so that losses may be negative. `against` adds
    the baselines that a run adds, without controls: "paid", "lost" or "level" with not growing at
    the end, "failed", or "begun". `targets`: every other candidate's steps cost twice as much.
    `rare`: probes are evaluated at their start and end only, and all training losses are there.
    `bounce`: an average is that much lower than the weights, and as much more for every next one.
    """
    controls = controls and against is None
    root.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(7)
    names += (ADDED,) * racing
    pool = names + CONTROLS * controls + (BASELINE,) * baseline
    failed = pool if outcome == "all_failed" else failed
    start = {name: 3.1 if name in EXACT else 3.15 + draw.gamma(2.0, 0.5) for name in names}
    floor = {name: 2.5 + draw.normal(0, 0.03) for name in names}
    slow = {name: draw.uniform(3, 12) * (1 + 2 * (name in EXACT)) for name in names}
    start |= dict.fromkeys(CONTROLS, 5.55) | {BASELINE: 3.1}
    floor |= dict.fromkeys(CONTROLS, 2.9) | {BASELINE: 2.6}
    slow |= dict.fromkeys(CONTROLS, 90.0) | {BASELINE: 40.0}
    best = min(
        (name for name in names if name not in failed),
        key=lambda name: floor[name],
        default=names[0],
    )
    if outcome == "tie":
        floor[best] = sorted(floor[name] for name in names)[1] - 1e-4

    def loss(name: str, step: int, seed: int) -> float:
        decay = (1 + step / slow[name]) ** -0.9
        drift = 0.08 * math.log1p(step / 250)
        wobble = 0 if step == 0 else 0.002 * math.sin(seed + 3 * math.log1p(step) + len(name))
        return float(floor[name] + (start[name] - floor[name]) * decay - drift + wobble) - shift

    def mean(name: str, step: int) -> float:
        return sum(loss(name, step, seed) for seed in range(seeds)) / seeds

    ahead = [name for name in names if name not in failed]
    if racing:
        ahead = sorted(ahead, key=lambda name: mean(name, FIRST))[:4]
    lags = {name: LAG if name in ahead or not racing else FIRST for name in pool}

    def line(
        phase: str,
        name: str,
        seed: int,
        step: int,
        value: float | None,
        status: str = "ok",
    ) -> dict[str, Any]:
        scale = 0.25 if phase == "source" else price(name)
        lower = bounce * (1 + [*pool, *AGAINST, "source"].index(name))
        averages = {"ema": {"valid_loss": value and value - lower, "valid_loss_shards": []}}
        return ({"averages": averages} if bounce else {}) | {
            "phase": phase, "candidate": name, "seed": seed, "step": step, "valid_loss": value,
            "valid_loss_shards": [] if value is None else [value - 0.01, value + 0.01],
            "train_loss": None if step == 0 else value, "grad_norm": None, "update_norm": None,
            "lr": None, "tokens": step * 8192, "flops": scale * step * 2.4e12,
            "seconds": step * 0.021, "status": status,
            "metrics":
                {"valid_accuracy": value and 0.5 - 0.1 * value, "lr": 3e-4} if metrics else None,
        }  # fmt: skip

    def price(name: str) -> float:
        dear = targets and name in names and names.index(name) % 2
        return {"not growing": 0.5}.get(name, 2.0 if dear else 1.0)

    lines = []
    if "source" in phases:
        lines += [
            line("source", "source", 0, s, 3.0 - shift + 2.5 / (1 + s / 50))
            for s in (0, 100, 500, 2000)
        ]
    if "probe" in phases:
        for name in pool:
            for seed in range(seeds):
                for step in (
                    s for s in ((0, LAG) if rare else STEPS) if s <= (lags[name] if outcome else 80)
                ):
                    if name in failed and step >= 40:
                        lines.append(line("probe", name, seed, step, None, FAILED))
                        break
                    lines.append(line("probe", name, seed, step, loss(name, step, seed)))

    decision = None
    if outcome and "probe" in phases:
        at_lag = {
            name: None if name in failed or lags[name] < LAG else mean(name, LAG) for name in pool
        }
        order = sorted(ahead, key=lambda name: at_lag[name] or 0.0)
        tied = sorted(order[:2], key=pool.index) if outcome == "tie" else order[:1]
        winner = tied[0] if ahead else None
        runner = next((name for name in order if name != winner), None)
        margin = None if runner is None or winner is None else at_lag[runner] - at_lag[winner]
        decision = {
            "winner": winner, "runner_up": runner, "outcome": outcome, "lag": LAG, "margin": margin,
            "margin_interval": None if margin is None else [margin - 0.004, margin + 0.004],
            "ranking": sorted(
                (name for name in pool if at_lag[name] is not None),
                key=lambda name: at_lag[name] or 0.0,
            ),
            "losses_at_start": {name: mean(name, 0) for name in pool}, "losses_at_lag": at_lag,
            "status": {
                name: FAILED if name in failed else "ok" if lags[name] == LAG else STOPPED
                for name in pool
            },
            "weights": "ema" if rare else "raw", "tied": tied, "lags": dict.fromkeys(pool, LAG),
            "ledger": {
                "overhead": 0.6721, "budget_share": 1.6721 / len(pool),
                "full_run_flops": 2.4e12 * HORIZON, "evaluation_flops": 3.1e13,
                "losers_flops": 2.4e12 * LAG * (len(pool) * seeds - 1), "fit_flops": 4.4e12,
                "seconds": 412.5,
            },
        }  # fmt: skip
        if "continue" in phases and winner is not None:
            first = min(names, key=lambda name: (round(start[name], 4), name))
            on = [(name, 0) for name in dict.fromkeys((winner, first))]
            if audit:
                on = [(name, seed) for name in pool if name not in failed for seed in range(seeds)]
            for name, seed in on:
                lines += [
                    line("continue", name, seed, step, loss(name, step, seed)) for step in LATER
                ]
        if against and winner is not None:
            for name in AGAINST:
                for step in (0, 2, 5, 10, 40, 100, 400, 1000, 2500, 4000, 5000, 7500, 10000):
                    done = step * price(name)
                    if done > (400 if against == "begun" else HORIZON):
                        continue
                    end = {"paid": 2.6, "begun": 2.6}.get(against, loss(winner, HORIZON, 0))
                    end -= 0.2 * (against == "lost")
                    # Ahead at once and then slow, or slow throughout.
                    value = 3.1 - (3.1 - end) * math.log1p(done / 9) / math.log1p(HORIZON / 9)
                    if against == "paid":
                        value = 2.6 + 0.5 * (1 + done / 2) ** -2
                    if name == "from scratch":
                        value = 2.8 + 3 * (1 + done / 90) ** -0.9
                    bad = against == "failed" and name == "not growing" and step > 2500
                    lines.append(
                        line("continue", name, 0, step, None, "loss not finite at step 3000")
                        if bad
                        else line("continue", name, 0, step, value)
                    )
                    if against == "level" and name == "not growing":
                        lines[-1]["valid_loss_shards"] = [value - 0.4, value + 0.4]
                    if bad:
                        break
    roles = dict.fromkeys(AGAINST, "baseline")
    roles |= dict.fromkeys(CONTROLS if controls else (), "control") | {BASELINE: "baseline"}
    entries = {
        name: {
            "name": name, "operator": f"Grow(depth={name!r})", "role": roles.get(name, "candidate"),
            "word": "0 0* 1 1*" if name == "half-new" else None,
            "exact": {"half-new": True, "fpi": False}.get(name),
            "transfer": {"moments": "reset", "schedule": "restart"},
            "target": 0, "step_flops": 2.4e12 * price(name),
            "horizon": round(HORIZON / price(name)) if name in AGAINST else HORIZON,
        }
        for name in (*pool, *AGAINST)
    }  # fmt: skip
    config = {
        "format": 2, "task": {"horizon": HORIZON, "seeds": seeds, "seed": 0, "unit": unit},
        "pool": [entries[name] for name in pool if name != ADDED],
        "policy": "FixedLag(steps=250)",
        "compare": "all" if audit else "start",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "device": "cpu", "cores": 2, "arguments": {"workdir": str(root.name), "steps": HORIZON},
    }  # fmt: skip
    if against and decision:
        config["baseline_pool"] = [entries[name] for name in AGAINST]
    answers: list[dict[str, Any]] = []
    if "probe" in phases and racing:
        answers = [
            {"answer": "Probe", "until": {name: FIRST for name in pool if name != ADDED}},
            {"answer": "Add", "candidates": [entries[ADDED]]},
            {"answer": "Probe", "until": {ADDED: FIRST}},
            {"answer": "Probe", "until": dict.fromkeys(ahead, LAG)},
        ]
    elif "probe" in phases:
        answers = [{"answer": "Probe", "until": dict.fromkeys(pool, LAG)}]
    answers += [{"answer": "Decision", **decision}] if decision else []
    rounds = [{"round": number, **answer} for number, answer in enumerate(answers)]
    if rare:
        losses = Losses(root / "steps")
        ends = {(x["candidate"], x["seed"]): x["step"] for x in lines if x["phase"] != "source"}
        for (name, seed), end in ends.items():
            values = [loss(name, step, seed) for step in range(1, end + 1)]
            losses.add(Trial(name, seed), np.array(values, np.float32))
    (root / "config.json").write_text(json.dumps(config))
    (root / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rounds))
    (root / "curves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if decision is not None:
        (root / "decision.json").write_text(json.dumps(decision, indent=2))
    return decision
