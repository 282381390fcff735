"""What a worker has to know, and what an executor is."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import jax

from lagjax import checks
from lagjax.certify import readings
from lagjax.evidence import Known
from lagjax.fingerprint import described
from lagjax.initial import Group
from lagjax.jobs import Job, Json, Trial, Update
from lagjax.mesh import Placement
from lagjax.model import Batch, Key
from lagjax.task import Candidate, Task


class Workload(NamedTuple):
    """One search, for those who do its work.

    Attributes:
        task: the small model, and how large ones are trained.
        candidates: by name; they become more as a policy adds some.
        groups: name of a candidate → what it shares with others of its target; likewise.
        key: the key of a trial.
        shards: the validation shards, `[shards, ...]`.
        placed: the devices; None for the first alone.
        checkpoints: RUN/checkpoints.
        checkpoint_seconds: the time between checkpoints; the end of a job is always saved.
        source: digest of the small model's parameters, for growth records.
    """

    task: Task
    candidates: dict[str, Candidate]
    groups: dict[str, Group]
    key: Callable[[Trial], Key]
    shards: Batch
    placed: Placement | None
    checkpoints: pathlib.Path
    checkpoint_seconds: float
    source: str

    def join(self, candidates: Sequence[Candidate]) -> dict[str, Known]:
        """Makes candidates part of the work, and says what is known of them.

        Raises ValueError for one that cannot be grown; then none of them is.
        """
        joined: dict[str, Group] = {}
        known = {}
        for one in candidates:
            there = [*self.groups.values(), *joined.values()]
            group = next((each for each in there if each.target == one.target), None)
            grower = checks.check_growth(one, self.task, self.placed)
            with checks.naming(one):
                group = group or Group(self.task, one, self.shards, self.placed, grower)
            checks.check_state(one, group, grower)
            joined[one.name] = group
            known[one.name] = Known(one, *self._planned(one), *group.costs, self.task.horizon)
        self.groups.update(joined)
        self.candidates.update((one.name, one) for one in candidates)
        return known

    def _planned(self, one: Candidate) -> tuple[str | None, bool | None, str | None]:
        """The word by which a candidate's layers grow, whether its plan is exact, and what to doubt
        first; None where it has none.
        """
        if not hasattr(one.operator, "plan"):
            return None, None, None
        key = jax.random.key(0)
        large = one.target.layout()
        small = self.task.model.axes.layout(self.task.source.params)
        plan = one.operator.plan(key, small, large)
        words = [str(word) for word in plan.words.values()]
        if len(words) > 1:
            words = [f"{stack}: {word}" for stack, word in zip(plan.words, words)]
        return "; ".join(words) or None, plan.exact_by_table, readings.suspect(plan)

    def fits(self, names: Mapping[str, object]) -> float:
        """FLOPs of making these candidates' operators, and of measuring their moments."""
        total = 0.0
        for name in names:
            group, one = self.groups[name], self.candidates[name]
            total += one.fit_flops + self.task.seeds * group.measured(one) * group.costs.step
        return total

    def entry(self, known: Known) -> Json:
        """A candidate as config.json and rounds.jsonl have it."""
        one = known.candidate
        return {
            "name": one.name,
            "operator": described(one.operator),
            "role": one.role,
            "word": known.word,
            "exact": known.exact,
            "transfer": self.task.transfer_of(one)._asdict(),
            "target": checks.shapes(self.groups[one.name].like),
            "step_flops": known.step_flops,
        }


class Executor(Protocol):
    """Does jobs, in any order and on any machine. It writes checkpoints, never the record, and
    removes nothing.

    What it yields is committed before it is asked for more.
    """

    def __call__(self, work: Workload, jobs: Sequence[Job], /) -> Iterator[Update]: ...
