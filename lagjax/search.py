"""The rounds of a search: a policy is asked, its answer becomes jobs, what they bring is committed,
until it decides.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lagjax import baselines, checks, claims, evaluations, identity
from lagjax.analysis.ledger import Ledger, ledger
from lagjax.evidence import Evidence, Known, gather
from lagjax.executors.workload import Executor, Workload
from lagjax.initial import Group
from lagjax.jobs import Job, Json, Note, Segment, Trial, evaluated
from lagjax.progress import Meter, Progress
from lagjax.select.decision import Add, Anneal, Answer, Decision, Policy, Probe, start_choice
from lagjax.store.directory import Store

ALL = 2**62
"""A step after any other."""


class Search(NamedTuple):
    """What the parts of one search share.

    Attributes:
        work: for the workers.
        store: the run directory.
        executor: does the jobs.
        progress: what is shown.
        known: name → what is known of a candidate; becomes more as the policy adds some.
        at_once: how many trials run at once; None where that is measured.
        audit: whether evaluations are dense and take all shards; otherwise they are as few as
            `evaluations.planned` says.
        asked: name → the steps that a candidate was asked to be probed to, ascending, each with
            the shards that are enough to evaluate it there; grows with the answers.
        annealed: name and step, where copies were asked to be annealed; likewise.
        baselines: names of those that are trained to their end, the pool's own and others.
    """

    work: Workload
    store: Store
    executor: Executor
    progress: Progress
    known: dict[str, Known]
    at_once: int | None
    audit: bool
    asked: dict[str, dict[int, int]]
    annealed: set[tuple[str, int]]
    baselines: tuple[str, ...]

    def trials(self, names: Sequence[str] | None = None) -> list[Trial]:
        """Every candidate with every seed, candidates of one seed together."""
        seeds = range(self.work.task.seeds)
        among = self.known if names is None else names
        return [Trial(name, seed) for seed in seeds for name in among]

    def evidence(self, additions: int) -> Evidence:
        """What the policy may see."""
        fits = self.work.fits(name for name, each in self.known.items() if not each.baseline)
        asked = {name: max(steps) for name, steps in self.asked.items()}
        task = self.work.task
        return gather(self.store, self.known, asked, self.annealed, additions, task, fits)


def choose(search: Search, policy: Policy) -> tuple[Decision, Evidence]:
    """Asks the policy, and does what it asks for, until it decides."""
    additions = 0
    for number in itertools.count():
        evidence = search.evidence(additions)
        answer = checks.ask(policy, evidence)
        checks.check_answer(policy, answer, evidence)
        if isinstance(answer, Add):
            baselines.check_names(answer.candidates, search.baselines)
            joined = search.work.join(answer.candidates)
            identity.check(search.store, search.work, joined)
            search.known.update(joined)
            additions += 1
        search.store.answer(number, _encoded(answer, search, evidence), policy)
        if isinstance(answer, Decision):
            return answer, evidence
        if isinstance(answer, Anneal):
            steps = answer.steps(evidence)
            carry_out(search, _annealings(search, steps))
            search.annealed.update((name, evidence.reached(name)) for name in steps)
        if isinstance(answer, Probe):
            until = answer.steps(tuple(search.known))
            # Who is further already stays there.
            until = {name: step for name, step in until.items() if step > evidence.reached(name)}
            first, new = not search.asked, [name for name in until if name not in search.asked]
            shards = evaluations.enough(evidence, len(search.work.task.valid))
            for name, step in until.items():
                search.asked.setdefault(name, {})[step] = shards[name]
            carry_out(search, _jobs(search, until))
            if new:
                begun = search.evidence(additions)
                if first:
                    checks.check_start(begun.losses(0))
                claims.check(search.store, begun, new)
    raise AssertionError("a policy decides, or is refused")


def _jobs(search: Search, until: Mapping[str, int], phase: str = "probe") -> list[Job]:
    """A round's jobs: a function of the answers and of config.json, never of how far the work has
    come.
    """
    jobs, groups = [], search.work.groups

    def alike(name: str) -> tuple[Group, tuple[tuple[int, int], ...], int]:
        return groups[name], (*search.asked.get(name, {}).items(),), until[name]

    for one in dict.fromkeys(map(alike, until)):
        names = [name for name in until if alike(name) == one]
        at_once = _at_once(search, one[0])
        trials = search.trials(names)
        for start in range(0, len(trials), at_once):
            rows = tuple(trials[start : start + at_once])
            jobs.append(_job(search, rows, at_once, one[2], phase))
    return jobs


def _job(search: Search, rows: tuple[Trial, ...], at_once: int, until: int, phase: str) -> Job:
    asked = search.asked.get(rows[0].candidate, {})
    found = evaluations.planned(
        search.work, rows[0].candidate, asked, until, phase == "continue", search.audit
    )
    last = max(asked, default=-1)
    return Job(rows, at_once, until, (*found,), phase, last, (*found.values(),))


def _annealings(search: Search, steps: Mapping[str, int]) -> list[Job]:
    """The jobs of annealing copies of candidates, for so many steps each, from where they stand."""
    until = {name: max(search.asked[name]) for name in steps}
    return [job._replace(anneal=steps[job.trials[0].candidate]) for job in _jobs(search, until)]


def carry_out(search: Search, jobs: Sequence[Job]) -> None:
    """Has jobs done, and commits what is done; what the record has already is not done again."""
    store, work, progress = search.store, search.work, search.progress
    for job in jobs:
        store.repair(job.trials, job.evaluations)
    meter = Meter(progress)
    todo = []
    for job in jobs:
        rows = [None if trial and _done(store, job, trial) else trial for trial in job.rows]
        cost = work.groups[job.trials[0].candidate].costs.step
        for trial in job.trials:
            done = max(store.losses.count(trial), 0) if trial in rows else job.until
            meter.expect(trial, job.phase, done, job.until, cost)
        if any(rows):
            todo.append(job._replace(rows=tuple(rows)))
    for update in search.executor(work, todo):
        if isinstance(update, Segment):
            if update.shard_tokens:
                store.longest("shard_tokens", update.shard_tokens)
            store.commit(update)
        elif isinstance(update, Note):
            progress.note(update.text)
        else:
            meter.show(update)


def _done(store: Store, job: Job, trial: Trial) -> bool:
    """Whether the record has what a job would bring of a trial."""
    if not store.reached(trial, job.until):
        return False
    annealed = [line["step"] for line in store.curves.annealed(trial)]
    return not job.anneal or job.until in annealed or store.curves.of(trial)[-1]["status"] != "ok"


def join_baselines(search: Search, decision: Decision, evidence: Evidence) -> dict[str, Known]:
    """What is known of the baselines that are trained to their end; none without a winner."""
    if decision.winner is None or not search.baselines:
        return {}
    best = search.known[decision.winner]
    added = baselines.join(search.work, search.known, best, search.baselines)
    identity.check(search.store, search.work, added)
    search.store.configure({"baseline_pool": [search.work.entry(each) for each in added.values()]})
    own = {name: each for name, each in evidence.known.items() if name in search.baselines}
    return {name: each for name, each in (own | added).items() if each.status == "ok"}


def go_on(
    search: Search, decision: Decision, ahead: Mapping[Trial, int], compare: str, keep: str
) -> None:
    """Trains the winner to the horizon, and what it is compared with; lets the checkpoints of
    others go.

    Args:
        search: what the policy has ended.
        decision: its choice.
        ahead: trial → step, of baselines.
        compare: see `run`.
        keep: see `run`.
    """
    store, known = search.store, search.known
    jobs: list[Job] = []
    if decision.winner is None:
        pass
    elif compare == "all":
        jobs += _jobs(search, {name: each.horizon for name, each in known.items()}, "continue")
    else:
        names = [decision.winner]
        if compare == "start":
            unable = [name for name, each in known.items() if not each.able]
            names += [x for x in [start_choice(decision.losses_at_start, unable)] if x]
        for name in dict.fromkeys(names):
            jobs.append(_job(search, (Trial(name, 0),), 1, known[name].horizon, "continue"))
    going = {trial for job in jobs for trial in job.trials}
    for trial, step in ahead.items():
        if trial not in going:
            jobs.append(_job(search, (trial,), 1, step, "continue"))
    if decision.winner is not None:
        store.rewind(Trial(decision.winner, 0), known[decision.winner].horizon)
    going |= ahead.keys()
    for stays in (going, set()):
        for trial in (*search.trials(), *ahead) if keep == "winner" else ():
            if trial.candidate != decision.winner and trial not in stays:
                store.checkpoints.prune(trial, ALL, keep=0)
        if stays:
            carry_out(search, jobs)


def cost(
    search: Search, evidence: Evidence, decision: Decision, ahead: Mapping[Trial, int]
) -> Ledger:
    """Counts what the probes cost, and what baselines take, to the steps `ahead` of them."""
    losers = evaluations = seconds = 0.0
    apart = sum(
        step * search.work.groups[trial.candidate].costs.step for trial, step in ahead.items()
    )
    for trial, lines in evidence.lines.items():
        known = evidence.known[trial.candidate]
        anneals = evidence.anneals.get(trial, ())
        shards = sum(evaluated(line) for line in (*lines, *anneals))
        taken = shards / len(search.work.task.valid) * known.evaluation_flops
        copies = sum(line["flops"] for line in anneals)
        seconds += search.store.curves.of(trial)[len(lines) - 1]["seconds"]
        if known.baseline:
            apart += taken + copies + (lines[-1]["flops"] if trial not in ahead else 0)
            continue
        evaluations += taken
        losers += copies
        losers += lines[-1]["flops"] if trial != (decision.winner, 0) else 0
    chosen = evidence.known[decision.winner or next(iter(evidence.known))]
    counted = [name for name, known in evidence.known.items() if not known.baseline]
    others = {*evidence.known, *(trial.candidate for trial in ahead)}.difference(counted)
    return ledger(
        candidates=len(counted),
        full_run_flops=chosen.horizon * chosen.step_flops,
        losers_flops=losers,
        evaluation_flops=evaluations,
        fit_flops=search.work.fits(counted),
        baseline_flops=apart + search.work.fits(sorted(others)),
        seconds=seconds,
    )


def _at_once(search: Search, group: Group) -> int:
    """How many trials of a target run at once: measured once and then kept, so that an interrupted
    run repeats itself.
    """
    names = [name for name in search.known if search.work.groups[name] is group]
    wanted, given = len(names) * search.work.task.seeds, search.at_once

    def measure() -> int:
        if given is not None:
            return given if search.work.placed else min(given, wanted)
        candidates = [search.work.candidates[name] for name in names]
        return group.choose_at_once(candidates, search.work.key(Trial(names[0], 0)))

    found = search.store.once(("grouping", checks.shapes(group.like)), measure)
    return int(found)


def _encoded(answer: Answer, search: Search, evidence: Evidence) -> Json:
    """An answer as rounds.jsonl has it."""
    told: Json = {"answer": type(answer).__name__}
    if isinstance(answer, Probe):
        return told | {"until": answer.steps(tuple(search.known))}
    if isinstance(answer, Anneal):
        return told | {"share": answer.share, "steps": answer.steps(evidence)}
    if isinstance(answer, Add):
        names = [candidate.name for candidate in answer.candidates]
        return told | {"candidates": [search.work.entry(search.known[name]) for name in names]}
    return told | answer._replace(ledger=None).as_json()
