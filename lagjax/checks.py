"""What is refused before anything is computed, and what a policy may not answer."""

import contextlib
import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from lagjax import arguments, averages
from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Params, flatten
from lagjax.arguments import inside, whole
from lagjax.engine import Trained
from lagjax.evidence import Evidence
from lagjax.grower import Grower
from lagjax.initial import Group
from lagjax.jobs import SOURCE
from lagjax.mesh import Placement
from lagjax.model import Batch
from lagjax.select.decision import Add, Anneal, Answer, Decision, Policy, Probe
from lagjax.store.checkpoints import KEPT, Checkpoints, nested
from lagjax.task import Candidate, Task, Transfer


def checked(task: Task, pool: Sequence[Candidate]) -> Task:
    """The task with whole numbers as such; raises ValueError for a task or a pool that cannot be
    run, with what was found and the remedy.
    """
    if not pool:
        raise ValueError("the pool is empty; give at least one candidate")
    check_names(pool, ())
    for candidate in pool:
        if not callable(candidate.operator):
            raise ValueError(  # noqa: TRY004
                f"candidate {candidate.name!r} has the operator {candidate.operator!r}; give one "
                "that can be called, as Grow(depth=...)"
            )
    if all(candidate.role != "candidate" for candidate in pool):
        raise ValueError(
            "the pool holds controls and baselines only, and none of them can win; give at least "
            "one of role 'candidate'"
        )
    if not isinstance(task.source, Trained):
        raise ValueError(  # noqa: TRY004 - as all that is refused here.
            f"the task's source is of type {type(task.source).__name__}; give the small model and "
            "what was trained of it, Task(model, Trained(params), ...)"
        )
    for model in (task.model, *(candidate.target for candidate in pool)):
        if not isinstance(model.axes, Axes):
            raise ValueError(  # noqa: TRY004
                f"a model's axes are of type {type(model.axes).__name__}; give the table, "
                "lagjax.Axes({pattern: axes})"
            )
    task = task._replace(
        horizon=whole(task.horizon, "the task's horizon"),
        seeds=whole(task.seeds, "the task's seeds"),
        seed=whole(task.seed, "the task's seed", least=None),
    )
    averages.check(task.averages)
    arguments.choice(task.matched, "the task's matched", ("steps", "flops"))
    _check_optimizer(task)
    _check_transfer("the task", task.transfer, task)
    for candidate in pool:
        if candidate.transfer is not None:
            _check_transfer(f"candidate {candidate.name!r}", candidate.transfer, task)
    return task


def _check_optimizer(task: Task) -> None:
    # A method of optax that was not called is none of horizons: it would take it for a rate.
    method = getattr(task.tx, "__module__", "").partition(".")[0] == "optax"
    made, what = task.tx, "tx"
    if callable(task.tx) and not hasattr(task.tx, "update") and not method:
        what = f"tx at the horizon {task.horizon}"
        with inside("the task's tx, as a function of the horizon,"):
            made = task.optimizer
    if made is not None and not hasattr(made, "update"):
        raise ValueError(
            f"the task's {what} is {made!r}; give an optax optimizer, or a function that makes one "
            "for a horizon"
        )


def ask(policy: Policy, evidence: Evidence) -> Answer:
    """A policy's answer; an error inside it is said to be its."""
    with inside(f"the policy {policy!r}"):
        return policy(evidence)


def check_names(added: Sequence[Candidate], there: Sequence[str]) -> None:
    """Raises ValueError for a name that is empty, taken or the small model's."""
    names = [*there, *(candidate.name for candidate in added)]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"the pool has {names.count(name)} candidates named {name!r}; give each a name of "
                "its own"
            )
        if name == SOURCE or not name:
            raise ValueError(
                f"a candidate is named {name!r}, which means the small model; give it another name"
            )


def _check_transfer(whose: str, transfer: Transfer, task: Task) -> None:
    for field, choice, known in (
        ("moments", transfer.moments, ("reset", "grow", "originals", "measure")),
        ("schedule", transfer.schedule, ("restart", "continue")),
    ):
        if field == "schedule" and not isinstance(choice, str):
            whole(choice, f"{whose}'s schedule, where it is a step,", least=0)
        else:
            arguments.choice(choice, f"{whose}'s {field}", known)
    kept = transfer.planned or transfer.schedule != "restart"
    if task.source.opt_state is None and kept:
        raise ValueError(
            f"{whose}'s moments={transfer.moments!r} and schedule={transfer.schedule!r} need the "
            "small model's optimizer state; give Trained(params, opt_state), or reset the moments "
            "and restart the schedule"
        )


def check_growth(candidate: Candidate, task: Task, placement: Placement | None) -> Grower:
    """What grows a candidate; raises ValueError, with its name, where its operator does not fill
    its target.
    """
    target = candidate.target.shapes()
    with naming(candidate):
        grower = Grower(task, candidate, placement)
        if shapes(grower.shapes) != shapes(target):
            raise ValueError("its operator's result differs in shapes from the target")
    return grower


def check_state(candidate: Candidate, group: Group, grower: Grower) -> None:
    """Raises ValueError, with the candidate's name, where it does not begin as others of its target
    do.
    """
    with naming(candidate):
        if shapes(group.shapes(candidate, grower)) != shapes(group.like):
            raise ValueError(
                "its training state differs in shapes from that of the other candidates of its "
                "target"
            )


@contextlib.contextmanager
def naming(candidate: Candidate) -> Iterator[None]:
    """Says of an error which candidate's it is."""
    with inside(f"candidate {candidate.name!r}"):
        yield


def check_answer(policy: object, answer: Answer, evidence: Evidence) -> None:
    """Raises ValueError, with the policy, for an answer that cannot be carried out or that would be
    given for ever.
    """

    def refuse(why: str) -> ValueError:
        return ValueError(f"{policy!r} {why}")

    known, before = evidence.known, f"has seen the steps {dict(evidence.asked)}"
    if isinstance(answer, Decision):
        if not evidence.asked:
            raise refuse("decides before any probe; let it answer Probe(step) first")
        if answer.winner is not None and not (answer.winner in known and known[answer.winner].able):
            raise refuse(
                f"chooses {answer.winner!r}; it may choose one of "
                f"{[name for name, each in known.items() if each.able]}"
            )
    elif isinstance(answer, Add):
        if not answer.candidates:
            raise refuse("adds no candidates; let it answer Probe(step) or decide(evidence)")
        check_names(answer.candidates, tuple(known))
    elif isinstance(answer, Probe):
        try:
            steps = answer.steps(tuple(known))
        except ValueError as error:
            raise refuse(str(error)) from None
        for name, step in steps.items():
            if not isinstance(step, int | np.integer) or not 1 <= step <= known[name].horizon:
                raise refuse(
                    f"asks for step {step!r} of {name!r}; expected a whole number from 1 to its "
                    f"horizon, {known[name].horizon}"
                )
        if all(evidence.reached(name) >= step for name, step in steps.items()):
            raise refuse(
                f"asks for {steps} and {before}: it would ask for ever; let it ask for a later "
                "step or answer decide(evidence)"
            )
    elif isinstance(answer, Anneal):
        try:
            share = arguments.real(answer.share, "the share of an annealing")
            steps = answer.steps(evidence)
        except ValueError as error:
            raise refuse(str(error)) from None
        if not 0 < share or not steps:
            raise refuse(
                f"answers {answer}; expected a share above 0, and candidates that have been trained"
            )
        if again := [name for name in steps if evidence.annealed(name, evidence.reached(name))]:
            raise refuse(f"anneals {again} where it has seen them annealed; it would ask for ever")
    else:
        raise refuse(
            f"answers {answer!r}; expected Probe(until), Anneal(), Add(candidates) or a Decision, "
            "as decide(evidence) makes one"
        )


def check_disk(checkpoints: Checkpoints, sizes: Sequence[int]) -> None:
    """Raises ValueError where the disk has no room for the checkpoints of trials with states of
    these sizes, in bytes.
    """
    # While one is written, its predecessors are still there.
    needed = KEPT * sum(sizes) + max(sizes, default=0)
    free = shutil.disk_usage(checkpoints.root).free
    if needed - checkpoints.bytes > free:
        raise ValueError(
            f"the checkpoints of {len(sizes)} trials take about {_size(needed)}, and "
            f"{checkpoints.root} has {_size(free)} left; free some space, give another directory, "
            "or probe fewer candidates"
        )


def _size(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1000)), 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def shards(valid: Sequence[Batch]) -> Batch:
    """The validation shards along a leading axis; raises ValueError for none, or of different
    shapes.
    """
    if not len(valid):
        raise ValueError(
            "there are no validation shards; give at least one batch, and eight or more for an "
            "interval"
        )
    found = {str(jax.tree.map(np.shape, shard)) for shard in valid}
    if len(found) > 1:
        raise ValueError(
            f"the validation shards have the shapes {sorted(found)}; give batches of one shape, "
            "padded"
        )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *valid)


def shapes(tree: Params) -> str:
    """A hash of a tree's structure, shapes and dtypes."""
    described = [
        (jax.tree_util.keystr(keys), str(x.shape), str(x.dtype))
        for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    return hashlib.blake2b(repr(described).encode(), digest_size=16).hexdigest()


def check_start(losses: Mapping[str, float | None]) -> None:
    """Raises ValueError where no candidate's loss is finite right after growing."""
    if all(loss is None for loss in losses.values()):
        raise ValueError(
            "the loss of every candidate is not finite right after growing; check the loss "
            "function (it shall return a sum and its count), the validation shards and the small "
            "model's parameters"
        )


def check_like(saved: object, like: object, whose: str, given: str, remedy: str) -> None:
    """Raises ValueError where arrays, as nested dictionaries, are not those of a tree of these
    shapes.
    """
    found, wanted = (
        {path: f"{x.dtype}{list(x.shape)}" for path, x in flatten(tree).items()}
        for tree in (saved, nested(like))
    )
    for path in dict.fromkeys([*wanted, *found]):
        if found.get(path) != wanted.get(path):
            raise ValueError(
                f"{whose} has {found.get(path, 'nothing')} at {path!r}, and `{given}` has "
                f"{wanted.get(path, 'nothing')} there; give {remedy}"
            )
