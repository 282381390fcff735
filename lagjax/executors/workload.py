"""What a worker has to know, and what an executor is."""

import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import jax

from lagjax import checks
from lagjax.certify import readings
from lagjax.evidence import Known
from lagjax.fingerprint import described
from lagjax.grower import Grower
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

    def join(
        self, candidates: Sequence[Candidate], full_run_flops: float | None = None
    ) -> dict[str, Known]:
        """Makes candidates part of the work, and says what is known of them.

        Args:
            candidates: those that join.
            full_run_flops: of the full training that theirs are matched with; by default that of
                the first of all that can win.

        Raises:
            ValueError: for one that cannot be grown; then none of them is.
        """
        joined: dict[str, Group] = {}
        known = {}
        growers = {one.name: checks.check_growth(one, self.task, self.placed) for one in candidates}
        made = list(dict.fromkeys(self.groups.values()))
        if full_run_flops is None:
            everyone = [*self.candidates.values(), *candidates]
            first = next(each for each in everyone if each.role == "candidate")
            group = self.groups.get(first.name) or self._group(first, growers[first.name], made)
            full_run_flops = self.task.horizon * group.costs.step
        for one in candidates:
            group = self._group(one, growers[one.name], made, full_run_flops)
            checks.check_state(one, group, growers[one.name])
            joined[one.name] = group
            known[one.name] = Known(one, *self._planned(one), *group.costs, group.task.horizon)
        self.groups.update(joined)
        self.candidates.update((one.name, one) for one in candidates)
        return known

    def _group(
        self,
        one: Candidate,
        grower: Grower,
        made: list[Group],
        full_run_flops: float | None = None,
    ) -> Group:
        """The group of a candidate: one of those made, or a new one, which is added to them."""
        alike, horizon = [each for each in made if each.target == one.target], self.task.horizon
        with checks.naming(one):
            if not alike:
                alike = [Group(self.task.at(horizon), one, self.shards, self.placed, grower)]
            if full_run_flops is not None:
                horizon = self.task.horizon_of(one, alike[0].costs.step, full_run_flops)
            group = next((each for each in alike if each.task.horizon == horizon), None)
            group = group or Group(self.task.at(horizon), one, self.shards, self.placed, grower)
        if group not in made:
            made.append(group)
        return group

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

    def fits(self, names: Iterable[str]) -> float:
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
            "horizon": known.horizon,
        }


class Executor(Protocol):
    """Does jobs, in any order and on any machine. It writes checkpoints, never the record, and
    removes nothing.

    What it yields is committed before it is asked for more.
    """

    def __call__(self, work: Workload, jobs: Sequence[Job], /) -> Iterator[Update]: ...
