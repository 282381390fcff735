"""What growing is compared with: at equal FLOPs, after the choice, apart from the search's cost."""

import pathlib

import jax
import optax
import pytest

import lagjax
from lagjax.evidence import Evidence
from lagjax.jobs import evaluated
from lagjax.report import equal, facts
from lagjax.store import directory
from tests import quick, toy

no_page, groups_kept = quick.no_page, quick.groups_kept

BOTH = ("not growing", "from scratch")
WIDE = toy.model(2, 2 * toy.WIDTH)
WIDER = lagjax.Candidate("wider", lagjax.Grow(width=lagjax.growth.width.Tile()), WIDE)


def go(root: pathlib.Path, **options: object) -> lagjax.Decision:
    changes = {name: options.pop(name) for name in lagjax.Task._fields if name in options}
    options = {"pool": toy.pool("stack", "random-top"), "policy": lagjax.FixedLag(4)} | options
    pool, policy = options.pop("pool"), options.pop("policy")
    return lagjax.run(toy.task(**changes), pool, policy, root, progress=toy.Told(), **options)


def horizons(root: pathlib.Path) -> dict[str, tuple[int, float]]:
    """Name → the last step of its curve, and what was trained for it."""
    lines = directory.read(root).curves
    return {x["candidate"]: (x["step"], x["flops"]) for x in lines}


def test_both_end_at_the_flops_of_the_winners_full_training(tmp_path: pathlib.Path) -> None:
    decision = go(tmp_path, baselines=True, tx=toy.schedule)
    record, ends = directory.read(tmp_path), horizons(tmp_path)
    assert decision.winner not in BOTH and not set(BOTH) & {*decision.ranking, *decision.status}
    full = ends[decision.winner][1]
    step, flops = ends["not growing"]
    small = flops / step
    assert step > 24 and abs(flops - full) <= small / 2
    assert ends["from scratch"] == ends[decision.winner]
    # Each schedule ends at its own horizon: the mean rate since the last evaluation is small there.
    for name in (*BOTH, decision.winner):
        rates = [x["lr"] for x in toy.curve(tmp_path, name) if x["lr"]]
        assert rates[-1] == min(rates) < 3e-3 / ends[name][0] * 3
    assert {x["phase"] for name in BOTH for x in toy.curve(tmp_path, name)} == {"continue"}
    entries = {x["name"]: x for x in record.config["baseline_pool"]}
    assert {x["role"] for x in entries.values()} == {"baseline"}
    assert entries["not growing"]["horizon"] == step
    # The small model goes on from where it was.
    small_loss = toy.SMALL.loss(toy.PARAMS, jax.numpy.concatenate(toy.VALID), None)
    begins = toy.curve(tmp_path, "not growing")[0]["valid_loss"]
    assert begins == pytest.approx(float(small_loss[0] / small_loss[1]), rel=1e-5)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, lagjax.Decision]:
    """A run with both, of one plain schedule."""
    path = tmp_path_factory.mktemp("beside") / "run"
    return path, go(path, baselines=True, tx=toy.schedule(24))


def test_they_cost_the_search_nothing(
    beside: tuple[pathlib.Path, lagjax.Decision], tmp_path: pathlib.Path
) -> None:
    without, (path, beside) = go(tmp_path, tx=toy.schedule(24)), beside
    one, other = without.ledger._asdict(), beside.ledger._asdict()
    spent = other.pop("baseline_flops")
    ends = horizons(path)
    assert one.pop("baseline_flops") == 0
    assert spent == pytest.approx(sum(ends[name][1] for name in BOTH))
    assert (one.pop("seconds"), other.pop("seconds")) and one == other
    assert beside._replace(ledger=None) == without._replace(ledger=None)
    mine = [x for x in toy.without_times(path) if x["candidate"] not in BOTH]
    assert mine == toy.without_times(tmp_path)


def test_those_of_the_pool_take_their_place_and_are_not_charged(tmp_path: pathlib.Path) -> None:
    own = lagjax.Candidate("mine", lagjax.Same(), toy.SMALL, "baseline")
    pool = (own, *toy.pool("stack", "random-top"))
    seen: list[Evidence] = []

    def policy(evidence: Evidence) -> object:
        seen.append(evidence)
        return lagjax.FixedLag(share=0.25)(evidence)

    decision = go(tmp_path / "a", pool=pool, policy=policy, baselines=True)
    alone = go(tmp_path / "b", policy=lagjax.FixedLag(share=0.25))
    ends = horizons(tmp_path / "a")
    assert {"mine", "from scratch"} < ends.keys() and "not growing" not in ends
    assert ends["mine"][1] == pytest.approx(ends[decision.winner][1], rel=0.03)
    # A share is of each one's own horizon.
    assert decision.lags["mine"] == round(0.25 * seen[0].known["mine"].horizon) > 6
    assert decision.lags["stack"] == 6 and decision.winner != "mine"
    for field in ("overhead", "budget_share", "losers_flops", "evaluation_flops"):
        assert getattr(decision.ledger, field) == getattr(alone.ledger, field)
    probed = seen[-1].known["mine"]
    lines = [x for x in toy.curve(tmp_path / "a", "mine") if x["phase"] == "probe"]
    shards = sum(map(evaluated, lines)) / len(toy.VALID)
    whole = probed.horizon * probed.step_flops + shards * probed.evaluation_flops
    scratch = ends["from scratch"][1]
    assert decision.ledger.baseline_flops == pytest.approx(whole + scratch)
    # Nor does a policy see them as spent.
    others = [seen[-1].known[name] for name in ("stack", "random-top")]
    every = [seen[-1].lines[name, 0] for name in ("stack", "random-top")]
    counts = [sum(map(evaluated, lines)) / len(toy.VALID) for lines in every]
    assert seen[-1].spent == pytest.approx(
        sum(6 * x.step_flops + n * x.evaluation_flops for x, n in zip(others, counts))
    )


def test_an_audit_has_them_with_every_seed(tmp_path: pathlib.Path) -> None:
    go(tmp_path, compare="all", seeds=2, horizon=8, policy=lagjax.FixedLag(2))
    for name in BOTH:
        for seed in (0, 1):
            assert toy.curve(tmp_path, name, seed)[-1]["step"] >= 8
    assert not list((tmp_path / "checkpoints").glob("not*"))


def test_pools_matched_by_flops(tmp_path: pathlib.Path) -> None:
    pool = (*toy.pool("stack"), WIDER)
    decision = go(
        tmp_path / "flops", pool=pool, matched="flops", tx=toy.schedule, compare="all",
        policy=lagjax.FixedLag(share=0.5),
    )  # fmt: skip
    ends = horizons(tmp_path / "flops")
    # The horizon is that of the first that can win.
    assert ends["stack"][0] == 24 != ends["wider"][0]
    step_flops = ends["wider"][1] / ends["wider"][0]
    assert ends["wider"][0] == round(ends["stack"][1] / step_flops)
    assert decision.lags == {"stack": 12, "wider": round(ends["wider"][0] / 2)}
    rates = [x["lr"] for x in toy.curve(tmp_path / "flops", "wider") if x["lr"]]
    assert rates[-1] == min(rates) < 3e-3 / 5
    # An audit compares each at its own end, and has no baselines in it.
    whole = facts.gather(directory.read(tmp_path / "flops"), {})
    both, told = equal.equal(whole), whole.audit
    assert both is not None and both.steps == decision.lags["wider"]
    assert both.lag_is == "flops" and "Rank at equal FLOPs" not in equal.columns(both)
    assert (
        told is not None and told.moments[-1].step == 24 and set(told.final) == {"stack", "wider"}
    )
    last = toy.curve(tmp_path / "flops", "wider")[-1]["valid_loss"]
    assert told.final["wider"] == pytest.approx(last)
    go(tmp_path / "steps", pool=pool, compare="all")
    ends = horizons(tmp_path / "steps")
    assert ends["wider"][0] == ends["stack"][0] == 24


def test_one_plain_schedule_serves_every_horizon(
    beside: tuple[pathlib.Path, lagjax.Decision],
) -> None:
    rates = {x["step"]: x["lr"] for x in toy.curve(beside[0], "not growing") if x["step"] > 24}
    assert max(rates) > 24 and rates[max(rates)] == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tx": optax.adamw}, ["tx is <function adamw", "function that makes one"]),
        ({"tx": lambda horizon: 3e-4}, ["tx at the horizon 24 is 0.0003"]),
        ({"tx": lambda horizon: 1 / 0}, ["as a function of the horizon", "ZeroDivisionError"]),
        ({"matched": "tokens"}, ["matched is 'tokens'", "flops"]),
        (
            {"pool": (toy.pool("stack")[0]._replace(name="from scratch"),), "baselines": True},
            ["named 'from scratch'", "another name"],
        ),
        (
            {"model": lagjax.Model(None, None, toy.AXES), "baselines": True},
            ["'not growing' trains the small model on", "Task.model", "init and loss"],
        ),
    ],
)  # fmt: skip
def test_what_is_refused(change: dict, told: list[str], tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError) as caught:
        go(tmp_path / "run", **change)
    assert all(text in str(caught.value) for text in told), caught.value
    assert not (tmp_path / "run").exists()


def test_an_audit_without_a_small_model_that_trains(tmp_path: pathlib.Path) -> None:
    told = toy.Told()
    task = toy.task(model=lagjax.Model(None, None, toy.AXES), horizon=6)
    pool = toy.pool("stack", "random-top")
    lagjax.run(task, pool, lagjax.FixedLag(2), tmp_path, compare="all", progress=told)
    assert [note for note in told.notes if "'not growing'" in note and "left out" in note]
    assert "from scratch" in horizons(tmp_path) and "not growing" not in horizons(tmp_path)


def test_a_policy_cannot_add_one_of_their_names(tmp_path: pathlib.Path) -> None:
    def policy(evidence: Evidence) -> object:
        taken = toy.pool("stack")[0]._replace(name="not growing")
        return lagjax.Add((taken,)) if evidence.asked else lagjax.Probe(2)

    with pytest.raises(ValueError, match="named 'not growing', as a baseline"):
        go(tmp_path, policy=policy, baselines=True)


def test_from_scratch_takes_neither_moments_nor_collections(tmp_path: pathlib.Path) -> None:
    source = lagjax.Trained(toy.PARAMS, jax.jit(toy.schedule(24).init)(toy.PARAMS))
    go(tmp_path, source=source, transfer=lagjax.Transfer("grow"), tx=toy.schedule, baselines=True)
    assert horizons(tmp_path)["from scratch"][0] == 24
