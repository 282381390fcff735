"""Result rows and the tables made from them.

    python -m experiments.tables                    # experiments/README.md from experiments/results/*.jsonl
    python -m experiments.tables RUN [RUN ...]      # the same, after adding the rows of finished audits

A row is one candidate with one seed, or one benchmark, with everything needed to repeat it. No number in the tables is
typed: a test fails where README.md is not what the committed rows give.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from lagjax.analysis.audit import Audit, audit
from lagjax.report import content, sentences
from lagjax.store import directory

HERE = Path(__file__).parent
Row = dict[str, Any]
UNIT = "nats per token"

HEAD = """# What the experiments found
Made by `python -m experiments.tables` from the rows in `results/`; do not edit. Losses are validation losses in nats per
token. Every row has its configuration, seed, commit, versions and device.
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to add before the tables are made."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories of finished audits; rows of the same configuration are replaced."""
    results: Path = HERE / "results"
    """The folder of the rows."""
    readme: Path = HERE / "README.md"
    """Where the tables go."""
    front: Path = HERE.parent / "README.md"
    """Where the table of operators goes, between its marks."""


def main(arguments: Arguments) -> None:
    """Adds rows and writes the tables."""
    # All are read before any is written: one bad directory changes nothing.
    added = [row for run in arguments.runs for row in audit_rows(run)]
    if added:
        arguments.results.mkdir(exist_ok=True)
        store(arguments.results / "audit.jsonl", added)
    directory.write_atomically(arguments.readme, render(arguments.results))
    if found := read(arguments.results / "conformance.jsonl"):
        text = with_operators(arguments.front.read_text(), found)
        directory.write_atomically(arguments.front, text)


def audit_rows(run: Path) -> list[Row]:
    """A row for each candidate and seed of an audit; raises ValueError where the run is none, or not finished."""
    config, lines, decision = directory.read(run)
    horizon = config.get("task", {}).get("horizon")
    if config.get("compare") != "all" or decision is None:
        raise ValueError(f"{run} is no finished audit; run it with --audit to its end")
    curves: dict[tuple[str, int], list[Row]] = {}
    for line in lines:
        if line["phase"] != "source":
            curves.setdefault((line["candidate"], line["seed"]), []).append(line)
    rows = []
    for member in config["pool"]:
        for seed in range(config["task"]["seeds"]):
            curve = curves.get((member["name"], seed), [])
            if not curve or (curve[-1]["step"] < horizon and curve[-1]["status"] == "ok"):
                raise ValueError(
                    f"{run}: {member['name']} with seed {seed} has not come to step {horizon}; run the same command "
                    "again, and it goes on"
                )
            rows.append(
                {
                    "question": "audit",
                    "config": config["arguments"],
                    "candidate": member["name"],
                    "operator": member["operator"],
                    "control": member["control"],
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
    return rows


def store(path: Path, rows: list[Row]) -> None:
    """Adds rows to a file, in place of those of the same configuration, seed, candidate and device."""

    def same(row: Row) -> str:
        keys = ("question", "config", "candidate", "seed", "device")
        return json.dumps([row.get(key) for key in keys], sort_keys=True)

    new = {same(row) for row in rows}
    kept = [row for row in read(path) if same(row) not in new]
    text = "".join(json.dumps(row) + "\n" for row in kept + rows)
    directory.write_atomically(path, text)


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def render(results: Path) -> str:
    """The tables of all rows, as Markdown."""
    groups: dict[str, list[Row]] = {}
    for row in read(results / "audit.jsonl"):
        key = json.dumps([row["config"], row["device"]], sort_keys=True)
        groups.setdefault(key, []).append(row)
    parts = [HEAD, *map(_audit, groups.values())]
    if found := read(results / "benchmark.jsonl"):
        parts.append(_benchmark(found))
    parts += _width(read(results / "width.jsonl"))
    if found := read(results / "scale.jsonl"):
        parts.append(_scale(found))
    return "\n".join(parts)


MARKS = "<!-- operators -->", "<!-- end of operators -->"


def with_operators(text: str, rows: list[Row]) -> str:
    """A text with the table of operators between its marks; raises ValueError where it has none."""
    before, found, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not found or not end:
        raise ValueError(
            f"the text has no marks {MARKS[0]} and {MARKS[1]}; put them where the table of operators is to go"
        )
    return f"{before}{MARKS[0]}\n{_operators(rows)}{MARKS[1]}{after}"


def _operators(rows: list[Row]) -> str:
    """A line for each operator: where it is exact, what it then asks, what was measured there; else how far off it is."""
    head = (
        "Operator",
        "Exact on",
        "asks for",
        "float64",
        "float32",
        "bfloat16",
        "elsewhere",
        "dead",
        "twins apart",
    )
    lines = []
    for name in dict.fromkeys(row["operator"] for row in rows):
        mine = [row for row in rows if row["operator"] == name]
        exact = [row for row in mine if row["proved"].startswith("exact")]
        others = [
            row["max_diff_f64"] for row in mine if row not in exact and row["proved"] != "refused"
        ]
        asks = sorted({need.split()[0] for row in exact for need in row["requires"]})
        twins = [x for row in mine if (x := row["twin_distance"]) is not None]

        def worst(key: str, exact: list[Row] = exact) -> str:
            return f"{max(row[key] for row in exact):.0e}" if exact else "–"

        lines.append(
            (
                name,
                f"{len(exact)} of {len(mine)}",
                ", ".join(asks) or "–",
                *(worst(f"max_diff_{key}") for key in ("f64", "f32", "bf16")),
                f"{np.median(others):.0e}" if others else "–",
                f"{max(row['dead_fraction'] or 0 for row in mine):.0%}",
                ("never" if min(twins) < 1e-6 else f"{min(twins):.0e}") if twins else "–",
            )
        )
    return _table(head, lines)


def _audit(rows: list[Row]) -> str:
    config, versions = rows[0]["config"], rows[0]["versions"]
    found, names, ends = _computed(rows)
    told = content.audit_table(found)
    state = {"reset": "reset", "grow": "grown"}[config["moments"]]
    rate = {"restart": "warmed up again", "continue": "continued"}[config["schedule"]]
    data = "the standard library" if config["data"] is None else config["data"]
    return f"""## Audit: optimizer state {state}, learning rate {rate}
`python -m experiments.quickstart --audit{_flags(config)}`: a GPT of width {config["width"]} grows from {config["layers"]} to
{config["grown_layers"]} layers after {config["source_steps"]} steps on {data}, {config["horizon"]} steps more,
{len(names)} candidates, {found.seeds} seeds. Commit {str(rows[0]["commit"])[:12]}, jax {versions["jax"]}, {rows[0]["device"]}, {rows[0]["cores"]} cores.

{" ".join(sentences.audited(found, UNIT))}

{_table(told.headings, [row.cells for row in told.rows])}
{sentences.audit_about(UNIT)}

{_table(("Candidate", "Final loss", "of the seeds", "Above the best"), _finals(found, names, ends))}"""


def _computed(rows: list[Row]) -> tuple[Audit, list[str], np.ndarray]:
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    whole = [row for row in rows if row["status"] == "ok"]
    steps = sorted(set.intersection(*(set(row["steps"]) for row in whole)))
    losses = np.full((len(steps), len(names), len(seeds)), np.nan)
    for row in rows:
        at = dict(zip(row["steps"], row["losses"]))
        losses[:, names.index(row["candidate"]), seeds.index(row["seed"])] = [
            np.nan if at.get(step) is None else at[step] for step in steps
        ]
    controls = frozenset(row["candidate"] for row in rows if row["control"])
    found = audit(names, controls, steps, losses)
    if found is None:
        raise ValueError(f"fewer than two of {names} have ended; add an audit that has")
    return found, names, losses[-1]


def _finals(found: Audit, names: list[str], ends: np.ndarray) -> list[tuple[str, ...]]:
    best = found.final[found.best] or 0.0
    ended = {name: loss for name, loss in found.final.items() if loss is not None}
    order = sorted(ended, key=lambda name: ended[name])
    rows = [
        (
            name,
            f"{ended[name]:.4f}",
            ", ".join(f"{x:.4f}" for x in ends[names.index(name)]),
            f"{ended[name] - best:.4f}".replace("-", "−"),
        )
        for name in order
    ]
    failed = [(name, "failed", "", "") for name in names if name not in ended]
    return rows + failed


def _flags(config: Row) -> str:
    """What was given beside `--audit`, as far as it changes the question."""
    flags = {
        "moments": "reset",
        "schedule": "restart",
        "data": None,
        "seed": 0,
    }
    return "".join(
        f" --{name} {config[name]}" for name, usual in flags.items() if config[name] != usual
    )


def _benchmark(rows: list[Row]) -> str:
    from experiments import benchmark

    described = [
        (
            f"{row['device']}, {row['cores']} cores",
            str(row["commit"])[:12],
            *("–" if row[name] is None else f"{row[name]:.3g}" for name in benchmark.GOALS),
        )
        for row in rows
    ]
    goals = ("goal", "", *(f"≤ {goal:g}" for goal in benchmark.GOALS.values()))
    head = ("Device", "Commit", *(f"`{name}`" for name in benchmark.GOALS))
    return f"""## Benchmark
`python -m experiments.benchmark`: ratios, each measured within one run.

{_table(head, [goals, *described])}"""


def _width(rows: list[Row]) -> list[str]:
    """A part for each configuration and device of which three seeds are whole."""
    from experiments import width

    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row["config"], row["device"]], sort_keys=True)
        groups.setdefault(key, []).append(row)
    parts = []
    for group in groups.values():
        found, row = width.Findings(group), group[0]
        if not found.seeds:
            continue
        config = row["config"]
        commits = dict.fromkeys(str(each["commit"])[:12] for each in group)
        parts.append(f"""## Width against depth
`python -m experiments.width`: a transformer of {config["layers"]} layers and {config["heads"]} heads of size {config["head_dim"]} grows after {config["source_steps"]} steps to
{config["grown_layers"]} layers, or to {config["grown_heads"]} heads and {config["grown_heads"] / config["heads"]:g} times its width. Every arm costs {row["budget"]:.3g} FLOPs, {config["budget_steps"]} steps of the small model,
of which the small model's training takes its part. {len(found.seeds)} seeds, text {config["corpus"][:12]}. Commit {", ".join(commits)}, jax {row["versions"]["jax"]}, {row["device"]}, {row["cores"]} cores.

{" ".join(found.sentences())}

{_table(width.HEADINGS, found.lines())}
Jump is the change of the loss by growing; above and its interval are against the small model, continued. Intervals are 95 %, of
differences paired by seed and validation shard.

{_table(width.PARTS, found.parts())}
Differences of final losses, the arm's less the other's: below 0 the arm is better.
""")
    return parts


def _scale(rows: list[Row]) -> str:
    from experiments import scale

    described = [
        (*scale.line(row), f"{row['device']}, {row['cores']} cores, {str(row['commit'])[:12]}") for row in rows
    ]  # fmt: skip
    return f"""## Scale
`python -m experiments.scale`: growing by `lagjax.growth.leafwise` in a process of its own. Bytes moved are the source's, read, and the target's,
written. Memory is that of the whole process. A copy is of as many bytes as the target has, into new memory, as growing is.

{_table((*scale.HEADINGS, "Device, commit"), described)}"""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def cli() -> int:
    """The command line: exit code 2 for a run that is no finished audit."""
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except ValueError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"tables: {error}", markup=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(cli())
