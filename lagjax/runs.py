"""A search, from the small model to the large one trained: resumable at any instant.

A policy is asked what it wants to know; each of its answers is a round. A round becomes jobs, an
executor does them, what it did is committed, and the policy is asked again, until it decides. The
winner goes on to the horizon.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import optax

from lagjax import arguments as given
from lagjax import averages, checks, identity, report
from lagjax.baselines import wanted
from lagjax.engine import Averaged, Engine, Trained, from_loss
from lagjax.evidence import Evidence, Known
from lagjax.executors.serial import SERIAL
from lagjax.executors.workload import Executor, Workload
from lagjax.feed import Feed
from lagjax.fingerprint import described, digest, environment
from lagjax.growth.operator import FromScratch
from lagjax.initial import Group, trial_key
from lagjax.jobs import SOURCE, Job, Trial, evaluation_steps
from lagjax.mesh import placement
from lagjax.model import Batch, Key, Model
from lagjax.progress import Display, Progress, shown
from lagjax.search import Search, carry_out, choose, cost, go_on, join_baselines
from lagjax.select.decision import Decision, Policy
from lagjax.store.checkpoints import Checkpoints, filled
from lagjax.store.directory import Store, checkpointed, read
from lagjax.store.files import write_atomically
from lagjax.task import Candidate, Task

ENVIRONMENT = ("versions", "device", "cores")
"""Sections of config.json that may change while a run is interrupted."""


def run(
    task: Task,
    pool: Sequence[Candidate],
    policy: Policy,
    workdir: str | pathlib.Path,
    *,
    executor: Executor = SERIAL,
    compare: Literal["none", "start", "all"] = "none",
    baselines: bool = False,
    keep: Literal["winner", "all"] = "winner",
    arguments: Mapping[str, object] | None = None,
    candidates_at_once: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    fully_sharded: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
) -> Decision:
    """Grows a model in every way of the pool, probes as the policy asks, chooses one, and trains it
    to the horizon.

    Call it again with the same arguments after an interruption, however abrupt: it goes on, and
    ends with the decision and the curves of a run that was not interrupted. `load` gives the
    winner.

    Args:
        task: the small model, and how the large one is trained.
        pool: the candidates; ties are broken in their order.
        policy: says what to probe, and decides.
        workdir: the run directory.
        executor: does the work; by default here, a job after another.
        compare: what else is trained to the horizon, to show what the choice was worth: "start",
            the candidate that the loss right after growing would have chosen (`start_choice`);
            "all", every candidate with every seed: an audit, which is also evaluated more often at
            first.
        baselines: whether to train, after the choice, what growing is compared with: "not growing",
            the small model trained on, and "from scratch", the winner's target, each for the FLOPs
            of the winner's full training, with seed 0. An audit has them with every seed. Those of
            the pool are taken in their place, and what they cost is no part of the overhead.
        keep: whose checkpoints stay when all is done; those of losers go when the decision is
            written.
        arguments: what config.json shall record of the caller's own choices.
        candidates_at_once: how many run at once; by default what fits the memory and measures
            faster.
        mesh: devices to spread over, with an axis "data", "candidates" or both; by default the
            first alone.
        fully_sharded: whether parameters and optimizer state are spread over "data" as well as the
            batches.
        checkpoint_seconds: the time between checkpoints; the end of each probe is always saved.
        progress: what is shown; by default one line on the terminal.

    Returns:
        The decision.

    Raises:
        ValueError: for a task, a pool or a directory that does not fit; nothing is written then.
            For a policy that asks for what there is not or what it has seen, or that answers
            otherwise than before on resuming.
    """
    root = given.folder(workdir)
    given.choice(compare, "compare", ("none", "start", "all"))
    given.choice(keep, "keep", ("winner", "all"))
    if candidates_at_once is not None:
        candidates_at_once = given.whole(candidates_at_once, "candidates_at_once")
    checkpoint_seconds = given.real(checkpoint_seconds, "checkpoint_seconds")
    task = checks.checked(task, pool)
    # Averages are not grown.
    source = task.source._replace(averages={})
    task = task._replace(batch=Feed(task.batch), source=source)
    placed = placement(mesh, fully_sharded)
    progress, checkpoints = progress or Display(), root / "checkpoints"

    def key(trial: Trial) -> Key:
        return trial_key(task.seed, trial)

    shards, digested = checks.shards(task.valid), digest(task.source.params)
    work = Workload(task, {}, {}, key, shards, placed, checkpoints, checkpoint_seconds, digested)
    known = work.join(pool)
    against, extra, notes = wanted(work, known, baselines, compare == "all")
    # Asked before anything is written, so that a policy that does not fit leaves nothing behind.
    nothing = Evidence.nothing(known, task)
    checks.check_answer(policy, checks.ask(policy, nothing), nothing)
    with shown(progress), Store(root, progress.note) as store:
        store.configure(_configuration(work, known), ENVIRONMENT)
        store.configure(
            {
                "arguments": given.plain(arguments or {}),
                "policy": described(policy),
                "compare": compare,
                "baselines": list(against),
                "keep": keep,
                "candidates_at_once": candidates_at_once or "measured",
            }
        )
        identity.check(store, work, known)
        for note in notes:
            progress.note(note)
        sizes = [work.groups[name].state_bytes for name in known for _ in range(task.seeds)]
        sizes += extra * (task.seeds if compare == "all" else 1)
        checks.check_disk(store.checkpoints, sizes)
        audit = compare == "all"
        search = Search(
            work, store, executor, progress, known, candidates_at_once, audit, {}, set(), against
        )
        decision, evidence = choose(search, policy)
        compared = join_baselines(search, decision, evidence)
        seeds = range(task.seeds if compare == "all" else 1)
        ahead = {
            Trial(name, seed): each.horizon for seed in seeds for name, each in compared.items()
        }
        decision = decision._replace(ledger=cost(search, evidence, decision, ahead))
        text = json.dumps(decision.as_json(), indent=1, allow_nan=False) + "\n"
        write_atomically(store.path / "decision.json", text)
        go_on(search, decision, ahead, compare, keep)
        # The decision stands: nothing about a picture, a font or a disk may cost the caller it.
        try:
            report.write(store.path)
        except Exception as error:  # noqa: BLE001
            progress.note(f"no report.html was made: {type(error).__name__}: {error}")
    return decision


def _configuration(work: Workload, known: Mapping[str, Known]) -> dict[str, object]:
    """What a run must have in common with the one that it goes on with."""
    task = work.task
    position = int(task.source.position)
    furthest = max(each.horizon for each in known.values())
    last = task.batch(task.seeds - 1, position + furthest - 1)
    data = (task.batch(0, position), last, list(task.valid))
    opt_state = task.source.opt_state
    return {
        "task": {
            "horizon": task.horizon,
            "matched": task.matched,
            "seeds": task.seeds,
            "seed": task.seed,
            "transfer": task.transfer._asdict(),
            "source": work.source,
            "opt_state": None if opt_state is None else digest(opt_state),
            "step": int(task.source.step),
            "position": position,
            "data": digest(data),
            "valid": digest(list(task.valid)),
            "averages": averages.described(task.averages, task.horizon),
            "unit": next(iter(work.groups.values())).engine.unit,
        },
        "pool": [work.entry(each) for each in known.values()],
        "placement": work.placed and work.placed.described(),
        **environment(),
    }


def train(
    model: Model,
    tx: optax.GradientTransformation | None,
    batch: Callable[[int, int], Batch],
    valid: Sequence[Batch],
    steps: int,
    workdir: str | pathlib.Path,
    *,
    seed: int = 0,
    engine: Callable[[Model, optax.GradientTransformation | None], Engine] = from_loss,
    executor: Executor = SERIAL,
    arguments: Mapping[str, object] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    fully_sharded: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: Progress | None = None,
) -> Trained:
    """Trains a small model in a run directory, or takes it from there; the phase "source" of its
    curves.

    Args:
        model: the small model.
        tx: its optimizer; None where `engine` has its own.
        batch: `(seed, step)` → batch, a pure function.
        valid: validation shards, batches of one shape.
        steps: how many.
        workdir: the run directory, the same one that `run` is given afterwards.
        seed: fixes the initialisation and the order of the data.
        engine: `(model, tx)` → its training loop.
        executor, arguments, mesh, fully_sharded, checkpoint_seconds, progress: as in `run`.

    Returns:
        The model, trained.

    Raises:
        ValueError: for a loss of the wrong shape or not finite, or a directory with another run.
    """
    root = given.folder(workdir)
    steps = given.whole(steps, "the number of steps of the small model")
    seed = given.whole(seed, "the seed", least=None)
    checkpoint_seconds = given.real(checkpoint_seconds, "checkpoint_seconds")
    progress, batch = progress or Display(), Feed(batch)
    placed = placement(mesh, fully_sharded)
    # A source is a trial like others, whose operator takes nothing from the model before it.
    candidate, trial = Candidate(SOURCE, FromScratch(), model), Trial(SOURCE, seed)
    task = Task(model, Trained({}), tx, batch, valid, steps, engine=engine)
    group = Group(task, candidate, checks.shards(valid), placed)
    work = Workload(
        task,
        {SOURCE: candidate},
        {SOURCE: group},
        lambda trial: jax.random.key(trial.seed),
        group.shards,
        placed,
        root / "checkpoints",
        checkpoint_seconds,
        digest({}),
    )
    data = (batch(seed, 0), batch(seed, steps - 1), list(valid))
    section = {
        "steps": steps,
        "seed": seed,
        "shapes": checks.shapes(group.like),
        "data": digest(data),
        "valid": digest(list(valid)),
        "placement": placed and placed.described(),
    }
    with shown(progress), Store(root, progress.note) as store:
        sections = {"arguments": given.plain(arguments or {}), "source": section}
        store.configure({**sections, **environment()}, ENVIRONMENT)
        identity.check(store, work, [SOURCE])
        checks.check_disk(store.checkpoints, [group.state_bytes])
        search = Search(work, store, executor, progress, {}, 1, True, {}, set(), ())
        store.rewind(trial, steps)
        carry_out(search, [Job((trial,), 1, steps, evaluation_steps(steps), "source")])
        if (line := store.curves.of(trial)[-1])["status"] != "ok":
            at_once = "; it shall return a sum and its count" if line["step"] == 0 else ""
            raise ValueError(
                f"the small model cannot be trained: {line['status']}{at_once}; check its loss "
                "and its data, or lower its learning rate, and start in a new directory"
            )
    return load(root, model, tx=tx, candidate=SOURCE, seed=seed)


def load(
    workdir: str | pathlib.Path,
    like: Model | None = None,
    *,
    tx: optax.GradientTransformation | None = None,
    candidate: str | None = None,
    seed: int = 0,
    step: int | None = None,
    average: str | None = None,
) -> Trained:
    """A trained model of a run: by default the winner at its latest checkpoint.

    Args:
        workdir: the run directory.
        like: the model that it is of, whose own tree the parameters come in; without it nested
            dictionaries.
        tx: its optimizer, whose own tree the optimizer's state comes in; without it nested
            dictionaries.
        candidate: another's name; "source" is the small model.
        seed: of the trial.
        step: of the checkpoint.
        average: a name of the task's averages: then parameters and collections are its.

    Raises:
        ValueError: where the run has not decided, there is no such checkpoint (with those that are
            there), or it is of another model than `like` or another optimizer than `tx`.
    """
    root = given.folder(workdir)
    decision = read(root).decision
    if candidate is None:
        candidate = decision["winner"] if decision else None
        if candidate is None:
            why = (
                "has not decided yet: finish it"
                if decision is None
                else "has no winner: all failed"
            )
            raise ValueError(f"{root} {why}, or name a candidate: load(RUN, candidate=...)")
    trial = Trial(candidate, seed)
    step = checkpointed(root, trial, step)
    with contextlib.closing(Checkpoints(root / "checkpoints")) as checkpoints:
        found, _ = checkpoints.read(trial, step)
    found = {"opt_state": None, "collections": {}, "averages": {}, **found}
    if average is not None:
        if average not in found["averages"]:
            raise ValueError(
                f"{root} keeps no average {average!r} of candidate {candidate!r}; it keeps "
                f"{sorted(found['averages'])}: Task(averages=...) says which"
            )
        found |= {"collections": {}, **found["averages"][average]}
    whose = f"candidate {candidate!r} of {root}"
    if like is not None:
        shapes = jax.eval_shape(like.init, jax.random.key(0))
        remedy = "the model that it was grown into"
        checks.check_like(found["params"], shapes, whose, "like", remedy)
        found["params"] = filled(shapes, found["params"])
        for name, one in found["averages"].items():
            found["averages"][name] = one | {"params": filled(shapes, one["params"])}
    if tx is not None:
        shapes = jax.eval_shape(tx.init, found["params"])
        remedy = "the optimizer that trained it, or leave it out"
        checks.check_like(found["opt_state"], shapes, whose, "tx", remedy)
        found["opt_state"] = filled(shapes, found["opt_state"])
    found["averages"] = {name: Averaged(**one) for name, one in found["averages"].items()}
    return Trained(**found)
