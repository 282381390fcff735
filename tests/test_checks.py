"""What a policy may not answer is refused with its name, before training where that can be."""

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

import lagjax
from lagjax import Add, Decision, Evidence, Probe, decide
from lagjax.checks import check_answer
from tests import quick, toy
from tests.made import evidence, known

no_page, groups_kept = quick.no_page, quick.groups_kept


def go(path: pathlib.Path, policy: Callable, **options: object) -> Decision:
    options = {"progress": toy.Told(), "candidates_at_once": 1, **options}
    return lagjax.run(toy.task(horizon=8), toy.pool("stack"), policy, path, **options)


@dataclass(frozen=True)
class Says:
    """Always the same."""

    answer: object

    def __call__(self, evidence: Evidence, /) -> object:
        return self.answer

    def __repr__(self) -> str:
        return "MyPolicy()"


WON = decide(evidence({"stack": {2: 1.0}}))
(STACK,) = toy.pool("stack")
AT_ONCE = {
    "a number": (
        4,
        "answers 4; expected Probe(until), Anneal(), Add(candidates) or a Decision,",
    ),
    "nothing": (None, "answers None; expected"),
    "an unknown name": (Probe(4, ("x",)), "asks for the candidates ['x']; there are ['stack']"),
    "an unknown name with a step": (Probe({"x": 4}), "asks for the candidates ['x']"),
    "no name": (Probe(4, ()), "asks for {} and has seen the steps {}: it would ask for ever"),
    "step 0": (
        Probe(0),
        "asks for step 0 of 'stack'; expected a whole number from 1 to its horizon, 8",
    ),
    "beyond the horizon": (Probe(9), "asks for step 9 of 'stack'"),
    "half a step": (Probe({"stack": 2.5}), "asks for step 2.5 of 'stack'"),
    "a decision at once": (WON, "decides before any probe; let it answer Probe(step) first"),
    "adding nothing": (
        Add(()),
        "adds no candidates; let it answer Probe(step) or decide(evidence)",
    ),
}


@pytest.mark.parametrize("name", AT_ONCE)
def test_known_before_anything_is_trained(name: str, tmp_path: pathlib.Path) -> None:
    answer, says = AT_ONCE[name]
    with pytest.raises(ValueError) as raised:
        go(tmp_path / "run", Says(answer))
    assert str(raised.value).startswith("MyPolicy() ") and says in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [("stack", "2 candidates named 'stack'"), ("source", "named 'source'"), ("", "named ''")],
)
def test_names_that_are_taken(name: str, says: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=says):
        go(tmp_path / "run", Says(Add((STACK._replace(name=name),))))
    assert not (tmp_path / "run").exists()


def test_a_candidate_that_cannot_be_grown_is_not_added(tmp_path: pathlib.Path) -> None:
    bad = lagjax.Candidate("bad", STACK.operator, toy.model(1))
    with pytest.raises(ValueError, match="candidate 'bad': .*growth adds"):
        go(tmp_path, lambda evidence: Add((STACK._replace(name="good"), bad)))
    assert not (tmp_path / "rounds.jsonl").exists() and not (tmp_path / "curves.jsonl").exists()


def test_one_that_asks_for_ever(tmp_path: pathlib.Path) -> None:
    """`Probe(5)` again and again: it is trained to 5 once."""
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"lambda.* asks for \{'stack': 5\}.*\{'stack': 5\}: .*for ever"
        ):
            go(tmp_path, lambda evidence: Probe(5))
    assert toy.curve(tmp_path, "stack")[-1]["step"] == 5
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 1


def test_answers_are_judged_by_what_was_seen() -> None:
    """By hand-made evidence: who is further stays, somebody has to go on."""
    found = evidence(
        {"a": {4: 1.0}, "b": {8: 2.0}}, [known("a"), known("b"), known("c", role="control")]
    )
    for answer in (
        Probe(8),
        Probe({"a": 5, "b": 2}),
        Probe(1, ("c",)),
        decide(found),
        decide(found)._replace(winner=None),
    ):
        check_answer("it", answer, found)
    for answer in (Probe(8, ("b",)), Probe({"a": 4, "b": 7})):
        with pytest.raises(ValueError, match="would ask for ever"):
            check_answer("it", answer, found)
    for winner in ("c", "x"):
        with pytest.raises(
            ValueError, match=rf"'it' chooses '{winner}'; it may choose one of \['a', 'b'\]"
        ):
            check_answer("it", decide(found)._replace(winner=winner), found)


def test_who_is_further_stays_there(tmp_path: pathlib.Path) -> None:
    """Asking all for an earlier step takes nothing back."""

    def policy(found: Evidence) -> object:
        if not found.asked:
            return Probe(5, ("stack",))
        if found.reached("random-top") < 0:
            return Probe(3)
        assert found.asked == {"stack": 5, "random-top": 3}
        assert found.steps("stack") == (0, 5)
        return decide(found)

    pool = toy.pool("stack", "random-top")
    lagjax.run(toy.task(horizon=8), pool, policy, tmp_path, progress=toy.Told())


@dataclass
class Moody:
    """Keeps something from call to call."""

    steps: list[int]
    calls: list[int] = field(default_factory=list)

    def __call__(self, found: Evidence, /) -> object:
        self.calls.append(found.frontier)
        return decide(found) if found.frontier >= 4 else Probe(found.frontier + self.steps[0])

    def __repr__(self) -> str:
        return "Moody()"


def test_an_impure_one_is_found_out_on_resuming(tmp_path: pathlib.Path) -> None:
    first = go(tmp_path, Moody([2]))
    assert first.lag == 4
    files = {x: x.read_bytes() for x in tmp_path.rglob("*") if x.is_file()}
    with pytest.raises(
        ValueError, match=r"round 0.*'stack': 2.*Moody\(\) answers.*'stack': 3.*pure"
    ):
        go(tmp_path, Moody([3]))
    changed = {x.name for x in files if x.read_bytes() != files[x]}
    assert changed <= {"lock"}
    assert go(tmp_path, Moody([2])) == first


def test_what_a_policy_sees_again(tmp_path: pathlib.Path) -> None:
    """Resumed with a record that goes on to the horizon, it sees what it saw: to the number."""
    seen: list[str] = []

    def policy(found: Evidence) -> object:
        told = {
            "losses": {name: [found.loss(name, step) for step in range(9)] for name in found.known},
            "train": {str(trial): x.tolist() for trial, x in found.train.items()},
            "lines": {str(trial): list(x) for trial, x in found.lines.items()},
            "spent": found.spent,
            "asked": dict(found.asked),
        }
        seen.append(json.dumps(told))
        return decide(found) if found.frontier >= 4 else Probe(found.frontier + 2)

    go(tmp_path, policy)
    first = list(dict.fromkeys(seen))
    assert len(first) == 3
    seen.clear()
    go(tmp_path, policy)
    assert list(dict.fromkeys(seen)) == first
