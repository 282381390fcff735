"""A finished audit as it is kept: every curve, in one compressed file of NumPy's.

curves = bank.Curves.load(bank.CURVES / "evidence-quickstart.npz")
curves.valid["raw"]         # [candidates, seeds, evaluations]
curves.train                # [candidates, seeds, steps], the loss of every step's batch
curves.row                  # what it takes to run it again, and where it was made
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from experiments.rows import RESULTS, Row
from experiments.verdicts import Ended
from lagjax.algebra.layout import Params, flatten
from lagjax.analysis.crossing import stretched
from lagjax.jobs import ANNEAL, RAW, SOURCE, Line, Trial, evaluated
from lagjax.model import Model
from lagjax.store import directory
from lagjax.store.losses import Losses

CURVES = RESULTS / "curves"


class Baseline(NamedTuple):
    """What growing is compared with, trained for as many FLOPs as the winner.

    Attributes:
        steps: of its evaluations.
        valid: validation losses of the weights, `[seeds, evaluations]`.
        train: the training loss of every step, `[seeds, steps]`.
        step_flops: of one training step.
    """

    steps: tuple[int, ...]
    valid: NDArray[np.float64]
    train: NDArray[np.float32]
    step_flops: float


class Curves(NamedTuple):
    """An audit's curves, of able candidates first.

    Attributes:
        names: of the candidates, `able` of which may win.
        able: how many.
        steps: of the evaluations.
        valid: weights → validation losses `[candidates, seeds, evaluations]`; NaN where there are
            none.
        train: the training loss of every step `[candidates, seeds, steps]`; NaN after the end.
        norms: the gradient's norm and the learning rate at the evaluations, `[2, candidates, seeds,
            evaluations]`.
        shards: validation losses of the weights, `[candidates, seeds, evaluations, shards]`.
        evaluation: FLOPs of an evaluation over those of a training step.
        words: where the layers of each come from; none in files of before.
        exact: whether each is exact by its table, `[candidates]`; likewise.
        horizons: steps of each one's full training; likewise.
        step_flops: of each one's training step; likewise.
        baselines: name → its curves.
        source: the small model's, of its one seed.
        row: the configuration and where it was made.
    """

    names: tuple[str, ...]
    able: int
    steps: tuple[int, ...]
    valid: dict[str, NDArray[np.float64]]
    train: NDArray[np.float32]
    norms: NDArray[np.float64]
    shards: NDArray[np.float64]
    evaluation: float
    words: tuple[str, ...] = ()
    exact: NDArray[np.bool_] = np.zeros(0, bool)
    horizons: tuple[int, ...] = ()
    step_flops: tuple[float, ...] = ()
    baselines: Mapping[str, Baseline] = {}
    source: Baseline | None = None
    row: Mapping[str, Any] = {}

    @classmethod
    def read(cls, run: Path) -> Self:
        """Those of a finished run directory."""
        config, lines, decision, _ = directory.read(run)
        if decision is None:
            raise ValueError(f"{run} has not decided; run the same command again")
        pool = sorted(config["pool"], key=lambda entry: entry["role"] != "candidate")
        names, seeds = [entry["name"] for entry in pool], config["task"]["seeds"]
        # Of the source there is one, whatever the seed.
        own = [line for line in lines if line["candidate"] in names]
        steps = sorted({line["step"] for line in own})
        shape = len(names), seeds, len(steps)
        averages = config["task"].get("averages") or {}
        annealed = [ANNEAL] if any(line["phase"] == ANNEAL for line in own) else []
        valid = {weights: np.full(shape, np.nan) for weights in (RAW, *averages, *annealed)}
        norms = np.full((2, *shape), np.nan)
        shards = np.full((*shape, len(config["shard_tokens"])), np.nan)
        for line in own:
            at = names.index(line["candidate"]), line["seed"], steps.index(line["step"])
            of = ANNEAL if line["phase"] == ANNEAL else RAW
            for weights, read in {of: line, **line.get("averages", {})}.items():
                valid[weights][at] = _number(read["valid_loss"])
            if of == RAW:
                norms[(slice(None), *at)] = [_number(line[name]) for name in ("grad_norm", "lr")]
                given = line["valid_loss_shards"]
                shards[at][: len(given)] = [_number(x) for x in given]
        losses = Losses(run / "steps")
        train = _train(losses, names, range(seeds), max(entry["horizon"] for entry in pool))
        probed = [x for x in own if x["phase"] in ("probe", ANNEAL)]
        count = sum(map(evaluated, probed)) / len(config["shard_tokens"])
        evaluation = decision["ledger"]["evaluation_flops"] / count / pool[0]["step_flops"]
        able = sum(entry["role"] == "candidate" for entry in pool)
        against = {
            entry["name"]: _baseline(entry, lines, losses, range(seeds))
            for entry in config.get("baseline_pool", [])
        }
        trained = [line for line in lines if line["candidate"] == SOURCE]
        small = None
        if trained:
            last = trained[-1]
            cost = last["flops"] / max(last["step"], 1)
            entry = {"name": SOURCE, "horizon": last["step"], "step_flops": cost}
            small = _baseline(entry, lines, losses, (last["seed"],))
        return cls(
            (*names,),
            able,
            (*steps,),
            valid,
            train,
            norms,
            shards,
            evaluation,
            tuple(entry["word"] or "" for entry in pool),
            np.array([bool(entry["exact"]) for entry in pool]),
            tuple(entry["horizon"] for entry in pool),
            tuple(entry["step_flops"] for entry in pool),
            against,
            small,
        )

    def save(self, path: Path) -> None:
        """As a compressed file of NumPy's, losses as float32."""
        path.parent.mkdir(parents=True, exist_ok=True)
        many: dict[str, Any] = {f"valid {name}": _small(x) for name, x in self.valid.items()}
        more = {f"baseline {name}": one for name, one in self.baselines.items()}
        for name, one in (more | ({SOURCE: self.source} if self.source else {})).items():
            many |= {f"{name} {field}": x for field, x in one._asdict().items()}
            many[f"{name} valid"] = _small(one.valid)
        plain = "names", "able", "steps", "train", "evaluation", "words", "exact", "horizons"
        many |= {field: getattr(self, field) for field in (*plain, "step_flops")}
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                norms=_small(self.norms),
                shards=_small(self.shards),
                row=json.dumps(self.row),
                **many,
            )

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` made, now or before there were words, baselines and rows."""
        found = np.load(path)
        valid = {
            name.removeprefix("valid "): found[name].astype(np.float64)
            for name in found.files
            if name.startswith("valid ")
        }
        own = cls(
            tuple(found["names"].tolist()),
            int(found["able"]),
            tuple(found["steps"].tolist()),
            valid,
            found["train"],
            found["norms"].astype(np.float64),
            found["shards"].astype(np.float64),
            float(found["evaluation"]),
        )
        if "row" not in found.files:
            return own

        def one(name: str) -> Baseline:
            return Baseline(
                tuple(found[f"{name} steps"].tolist()),
                found[f"{name} valid"].astype(np.float64),
                found[f"{name} train"],
                float(found[f"{name} step_flops"]),
            )

        kept = [x[:-6] for x in found.files if x.startswith("baseline ") and x.endswith(" steps")]
        return own._replace(
            words=tuple(found["words"].tolist()),
            exact=found["exact"],
            horizons=tuple(found["horizons"].tolist()),
            step_flops=tuple(found["step_flops"].tolist()),
            baselines={name.removeprefix("baseline "): one(name) for name in kept},
            source=one(SOURCE) if f"{SOURCE} steps" in found.files else None,
            row=json.loads(str(found["row"])),
        )

    def ended(self, weights: str = RAW) -> Ended:
        """The candidates' losses, for verdicts; those of other horizons at the same share of
        each.
        """
        horizon = self.horizons[0]
        losses = self.valid[weights][: self.able].copy()
        steps = [step for step in self.steps if step <= horizon]
        for index, own in enumerate(self.horizons[: self.able]):
            if own != horizon:
                for seed, curve in enumerate(losses[index]):
                    known = {s: x for s, x in zip(self.steps, curve) if np.isfinite(x)}
                    there = stretched(known, own, horizon, steps) if known else {}
                    losses[index, seed, : len(steps)] = [there.get(s, np.nan) for s in steps]
        # An evaluation of another horizon's only is none of the first's.
        common = [at for at, _ in enumerate(steps) if np.isfinite(losses[0, :, at]).any() or not at]
        return Ended(
            self.names[: self.able],
            self.words[: self.able],
            self.exact[: self.able],
            tuple(steps[at] for at in common),
            losses[:, :, common].transpose(2, 0, 1),
        )


def source_path(path: Path) -> Path:
    """Where a task's small model is kept, beside its curves."""
    return path.with_suffix(".source.npz")


def save_params(path: Path, params: Params) -> None:
    """Keeps a small model's parameters, by their paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: np.asarray(x) for name, x in flatten(params).items()})


def read_params(path: Path, model: Model) -> Params:
    """What `save_params` kept, as the model's own tree."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    with np.load(path) as found:
        leaves = [jnp.asarray(found[name]) for name in flatten(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def facts(run: Path) -> Row:
    """What else a row says of a finished run directory."""
    config, lines, decision, _ = directory.read(run)
    failed = [line for line in lines if line["status"] != "ok"]
    ends = {(line["candidate"], line["seed"]): line["seconds"] for line in lines}
    return {
        "winner": decision and decision["winner"],
        "failed": sorted({f"{line['candidate']}, seed {line['seed']}" for line in failed}),
        "unit": config["task"]["unit"],
        "shard_tokens": config["shard_tokens"],
        "digests": {name: config["task"][name] for name in ("source", "data", "valid")},
        "seconds": sum(ends.values()),
    }


def _baseline(entry: Row, lines: list[Line], losses: Losses, seeds: Sequence[int]) -> Baseline:
    """A baseline's curves in a run directory."""
    own = [line for line in lines if line["candidate"] == entry["name"]]
    steps = sorted({line["step"] for line in own})
    valid = np.full((len(seeds), len(steps)), np.nan)
    for line in own:
        at = seeds.index(line["seed"]), steps.index(line["step"])
        valid[at] = _number(line["valid_loss"])
    train = _train(losses, [entry["name"]], seeds, entry["horizon"])[0]
    return Baseline((*steps,), valid, train, entry["step_flops"])


def _train(
    losses: Losses, names: list[str], seeds: Sequence[int], horizon: int
) -> NDArray[np.float32]:
    train = np.full((len(names), len(seeds), horizon), np.nan, np.float32)
    for one, name in enumerate(names):
        for at, seed in enumerate(seeds):
            found = losses.of(Trial(name, seed))
            train[one, at, : len(found)] = found
    return train


def _number(x: float | None) -> float:
    return np.nan if x is None else x


def _small(x: NDArray[np.float64]) -> NDArray[np.float32]:
    return x.astype(np.float32)
