"""Averaged weights and annealed copies: what they are, what they cost, and that no kill shows."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax import annealing, initial
from lagjax.averages import Averager
from lagjax.engine import Engine
from lagjax.jobs import ANNEAL, Trial
from lagjax.store.losses import Losses
from tests import quick, toy

no_page, groups_kept = quick.no_page, quick.groups_kept
AVERAGES = {"ema": lagjax.Ema(1 / 6), "tail": lagjax.Tail(1 / 8)}
"""Over 24 steps: a half-life of 4, and the last 3."""
STACK = toy.pool("stack")


@pytest.fixture(autouse=True)
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of at most five steps, so that there are checkpoints between evaluations."""
    monkeypatch.setattr(initial, "LENGTH", 5)


def go(path: pathlib.Path, policy: object = None, **changes: object) -> lagjax.Decision:
    options = {"progress": toy.Told(), "candidates_at_once": 1, "keep": "all"}
    names = (*options, "compare", "checkpoint_seconds")
    options |= {name: changes.pop(name) for name in names if name in changes}
    pool = changes.pop("pool", STACK)
    task = toy.task(**{"averages": AVERAGES, **changes})
    return lagjax.run(task, pool, policy or lagjax.FixedLag(8), path, **options)


def grown() -> dict:
    # One program; and in numpy what is computed of it compiles none.
    grow = jax.jit(lambda params: STACK[0].operator(jax.random.key(0), params, toy.AXES, toy.LARGE))
    return jax.device_get(grow(toy.PARAMS))


def plain(steps: int, annealed: tuple[int, int] = (0, 0)) -> list[dict]:
    """The parameters after each step, by a loop that is written out; from the first of `annealed`
    on, updates shrink to 0 over its second.
    """
    params, tx = grown(), toy.tx()
    state, found = jax.jit(tx.init)(params), []

    @jax.jit
    def train(params: dict, state: object, batch: np.ndarray, share: float) -> tuple:
        def mean(params: dict) -> jax.Array:
            total, count = toy.LARGE.loss(params, batch, None)
            return total / count

        updates, state = tx.update(jax.grad(mean)(params), state, params)
        moved = jax.tree.map(lambda x, u: x + share * u, params, updates)
        return moved, state

    for step in range(steps):
        begin, length = annealed
        share = 1 - (step - begin) / length if length and step >= begin else 1.0
        params, state = train(params, state, toy.batch(0, step), share)
        found.append(jax.device_get(params))
    return found


def loss(params: dict, shards: int = len(toy.VALID)) -> float:
    pairs = [jax.jit(toy.LARGE.loss)(params, x, None) for x in toy.VALID[:shards]]
    return sum(float(total) for total, _ in pairs) / sum(int(count) for _, count in pairs)


def test_averages_are_those_of_a_plain_loop(tmp_path: pathlib.Path) -> None:
    go(tmp_path / "run")
    weights, decay = plain(24), 0.5 ** (1 / 4)
    expected = {}
    ema = grown()
    for step, now in enumerate(weights, 1):
        ema = jax.tree.map(lambda a, x: decay * a + (1 - decay) * x, ema, now)
        # The last multiple of 3 steps, and those since.
        first = (step - 1) // 3 * 3
        tail = jax.tree.map(lambda *xs: sum(xs) / len(xs), *weights[first:step])
        expected[step] = {"ema": ema, "tail": tail}
    for step in (8, 24):
        found = lagjax.load(tmp_path / "run", toy.LARGE, step=step)
        for name, params in expected[step].items():
            chex.assert_trees_all_close(found.averages[name].params, params, rtol=1e-5, atol=1e-7)
            only = lagjax.load(tmp_path / "run", toy.LARGE, step=step, average=name)
            chex.assert_trees_all_equal(only.params, found.averages[name].params)
    lines = {line["step"]: line for line in toy.curve(tmp_path / "run", "stack")}
    for step in (8, 24):
        for name, params in expected[step].items():
            read = lines[step]["averages"][name]
            shards = len(read["valid_loss_shards"])
            assert read["valid_loss"] == pytest.approx(loss(params, shards), rel=1e-5)
    # Right after growing they are the weights themselves.
    assert lines[0]["averages"]["ema"]["valid_loss"] == lines[0]["valid_loss"]
    with pytest.raises(ValueError, match=r"no average 'x' of .*'stack'; it keeps \['ema', 'tail'"):
        lagjax.load(tmp_path / "run", toy.LARGE, average="x")


def test_averages_change_nothing_else(tmp_path: pathlib.Path) -> None:
    go(tmp_path / "with")
    go(tmp_path / "without", averages={}, valid=toy.VALID)
    one, other = (Losses(tmp_path / x / "steps").of(Trial("stack", 0)) for x in ("with", "without"))
    np.testing.assert_array_equal(one, other)


class Both:
    """Anneals at 4, probes to 8, decides by an average."""

    def __call__(self, evidence: lagjax.Evidence) -> object:
        if evidence.frontier < 4:
            return lagjax.Probe(4)
        if not evidence.annealed("stack", 4):
            return lagjax.Anneal(0.5)
        if evidence.frontier < 8:
            return lagjax.Probe(8)
        return lagjax.decide(evidence, 8, "ema")

    def __repr__(self) -> str:
        return "Both()"


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_kill_at_any_event_changes_no_bit(at_once: int, tmp_path: pathlib.Path) -> None:
    pool = toy.pool("stack", "random-top")
    options = {"pool": pool, "candidates_at_once": at_once, "horizon": 16}
    events = toy.Told()
    whole = go(tmp_path / "whole", Both(), **options, progress=events)
    assert whole.weights == "ema"

    def stopping(at: int) -> toy.Told:
        seen = [0]

        def then(event: object) -> None:
            seen[0] += 1
            if seen[0] == at:
                raise KeyboardInterrupt

        return toy.Told(then)

    path = tmp_path / "cut"
    for _ in range(2 * len(events.events)):
        try:
            again = go(path, Both(), **options, progress=stopping(2), checkpoint_seconds=0.0)
            break
        except KeyboardInterrupt:
            pass
    assert again._replace(ledger=None) == whole._replace(ledger=None)
    assert toy.without_times(path) == toy.without_times(tmp_path / "whole")
    for name in ("stack", "random-top"):
        found = [
            lagjax.load(x, toy.LARGE, candidate=name).averages for x in (path, tmp_path / "whole")
        ]
        chex.assert_trees_all_equal(*found)


def test_an_annealed_copy_is_that_of_a_plain_loop(tmp_path: pathlib.Path) -> None:
    """And the trial goes on as if there had been none."""
    go(tmp_path / "run", Both(), averages={"ema": lagjax.Ema(0.1)})
    lines = toy.curve(tmp_path / "run", "stack")
    (line,) = [line for line in lines if line["phase"] == ANNEAL]
    assert (line["step"], line["steps"], line["status"]) == (4, 2, "ok")
    annealed = plain(6, (4, 2))[-1]
    shards = len(line["valid_loss_shards"])
    assert line["valid_loss"] == pytest.approx(loss(annealed, shards), rel=1e-5)
    last = next(line for line in lines if line["step"] == 24)
    assert last["valid_loss"] == pytest.approx(loss(plain(24)[-1]), rel=1e-5)


def test_what_they_cost(tmp_path: pathlib.Path) -> None:
    decision = go(tmp_path / "run", Both(), averages={"ema": lagjax.Ema(0.1)}, horizon=16)
    step, forward = 3 * 2 * 32 * 1152, 2 * 32 * 1152
    # Nobody loses but the copy, two steps of it. Evaluations of two shards: the start, two steps
    # with an average each, the copy.
    assert decision.ledger.losers_flops == 2 * step
    assert decision.ledger.evaluation_flops == (1 + 2 + 1 + 2) * 2 * forward


def test_a_choice_by_an_average(tmp_path: pathlib.Path) -> None:
    pool = toy.pool("stack", "random-top", "identity-top")
    decision = go(tmp_path / "run", lagjax.FixedLag(8, weights="tail"), pool=pool, seeds=2)
    assert decision.weights == "tail"
    for name, at_lag in decision.losses_at_lag.items():
        lines = [x for seed in (0, 1) for x in toy.curve(tmp_path / "run", name, seed)]
        of_tail = [x["averages"]["tail"]["valid_loss"] for x in lines if x["step"] == 8]
        assert at_lag == pytest.approx(np.mean(of_tail), rel=1e-6)
    assert decision.ranking == tuple(sorted(decision.losses_at_lag, key=decision.losses_at_lag.get))
    with pytest.raises(ValueError, match=r"no weights 'mean'; there are \['raw', 'ema', 'tail'"):
        go(tmp_path / "none", lagjax.FixedLag(8, weights="mean"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("averages", "says"),
    [
        ({"raw": lagjax.Ema(0.1)}, "named 'raw', which means other weights"),
        ({"x": 0.9}, r"'x' is 0.9; give a rule, as lagjax.Ema"),
        ({"x": lagjax.Ema(0.0)}, "its length is a share of the horizon"),
        ({"x": lagjax.Tail(1.5)}, "above 0 and at most 1"),
    ],
)
def test_averages_that_are_refused(averages: dict, says: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=says):
        go(tmp_path / "run", averages=averages)
    assert not (tmp_path / "run").exists()


def test_parameters_that_are_computed_cannot_be_averaged(tmp_path: pathlib.Path) -> None:
    def engine(model: lagjax.Model, tx: object) -> Engine:
        made = lagjax.from_loss(model, tx)

        def trained(state: object) -> lagjax.Trained:
            found = made.trained(state)
            return found._replace(params=jax.tree.map(lambda x: x + 1, found.params))

        return made._replace(trained=trained)

    with pytest.raises(ValueError, match="its `trained` computes them; .* leave the averages out"):
        go(tmp_path / "run", engine=engine)


def test_halves_are_averaged_in_float32_and_counts_are_not() -> None:
    """State that is no parameter is averaged where it floats."""

    def init(trained: lagjax.Trained, key: jax.Array) -> lagjax.Trained:
        return trained

    def step(state: lagjax.Trained, batch: jax.Array) -> tuple:
        moved = {"mean": state.collections["mean"] + 1.0, "count": state.collections["count"] + 1}
        params = jax.tree.map(lambda x: x + 1, state.params)
        return state._replace(params=params, collections=moved), {"loss": (0.0, 1)}

    inner = Engine(init, step, lambda state, batch: {"loss": (0.0, 1)}, lambda state: state)
    averager = Averager(inner, {"ema": lagjax.Ema(1 / 100)}, 100)
    begin = lagjax.Trained(
        {"w": jnp.full(2, 256, jnp.bfloat16)},
        collections={"mean": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)},
    )
    state = jax.jit(averager.engine.init)(begin, jax.random.key(0))
    state, _ = averager.engine.step(state, jnp.zeros(()))
    # Half of a step by 1 (which bfloat16 does not hold at 256: it stays), and by 1.
    assert [x.dtype for x in state.means["ema"]] == [jnp.float32, jnp.float32]
    found = averager.engine.trained(state)
    assert found.averages["ema"].params["w"].dtype == jnp.bfloat16
    assert float(found.averages["ema"].collections["mean"]) == 0.5
    assert int(found.averages["ema"].collections["count"]) == 1


class Again(Both):
    """Anneals twice at the same step."""

    def __call__(self, evidence: lagjax.Evidence) -> object:
        return lagjax.Anneal() if evidence.frontier else lagjax.Probe(4)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lagjax.Anneal(candidates=("x",)), r"anneals \['x'\]; those that have been trained"),
        (lagjax.Anneal(0.0), "a share above 0"),
    ],
)
def test_annealings_that_are_refused(answer: object, says: str, tmp_path: pathlib.Path) -> None:
    def policy(evidence: lagjax.Evidence) -> object:
        return answer if evidence.frontier else lagjax.Probe(4)

    with pytest.raises(ValueError, match=says):
        go(tmp_path / "run", policy)


def test_an_annealing_that_was_seen_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"anneals \['stack'\] where it has seen them annealed"):
        go(tmp_path / "again", Again())


def test_sgd_with_momentum_is_annealed_by_its_rate() -> None:
    """A share of each update is that share of the rate: the same as a schedule to 0."""

    def task_engine(tx: optax.GradientTransformation) -> Engine:
        return lagjax.from_loss(toy.LARGE, tx)

    params = STACK[0].operator(jax.random.key(0), toy.PARAMS, toy.AXES, toy.LARGE)
    constant = optax.sgd(0.1, momentum=0.9)
    engine = task_engine(constant)
    start = engine.init(lagjax.Trained(params, constant.init(params)), jax.random.key(0))
    wrapped = annealing.annealed(engine, jax.eval_shape(lambda: start))
    state = annealing.begin(start, 4)
    falling = optax.sgd(lambda count: 0.1 * (1 - count / 4), momentum=0.9)
    other = task_engine(falling)
    expected = other.init(lagjax.Trained(params, falling.init(params)), jax.random.key(0))
    step, plain_step = jax.jit(wrapped.step), jax.jit(other.step)
    for index in range(4):
        state, _ = step(state, toy.batch(0, index))
        expected, _ = plain_step(expected, toy.batch(0, index))
    chex.assert_trees_all_close(
        wrapped.trained(state).params, other.trained(expected).params, rtol=1e-5, atol=1e-6
    )
