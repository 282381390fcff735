"""Jobs: when is evaluated, and what a step is called."""

import math

import pytest

from lagjax.jobs import Job, Trial, evaluation_steps


@pytest.mark.parametrize("horizon", [1, 2, 16, 24, 800, 10_000])
def test_evaluation_steps(horizon: int) -> None:
    steps = evaluation_steps(horizon, horizon // 3 + 1)
    assert steps[0] == 0 and steps[-1] == horizon
    assert horizon // 3 + 1 in steps
    assert list(steps) == sorted(set(steps))
    assert len(steps) <= 18 + math.log(horizon, 4) + 17


def test_a_job_knows_what_was_probed_before() -> None:
    rows = (Trial("a", 0), None, Trial("b", 0))
    job = Job(rows, 4, 20, (0, 8, 20), "continue", 8)
    assert [job.phase_at(step) for step in (0, 8, 9, 20)] == [
        "probe",
        "probe",
        "continue",
        "continue",
    ]
    assert Job(rows, 4, 20, (0, 20), "source").phase_at(0) == "source"
    assert job.trials == (Trial("a", 0), Trial("b", 0))
