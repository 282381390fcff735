"""What a stranger adds, without touching lagjax: a depth strategy, an expansion, a norm, a metric,
a collection, an executor, a policy with a feature of its own, a section of the page.

CONTRIBUTING.md says where each goes inside.
"""

import pathlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lagjax
from lagjax import report
from lagjax.algebra.kinds import Norm
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.words import Word
from lagjax.executors.serial import Serial
from lagjax.executors.workload import Workload
from lagjax.growth.depth import Scaled
from lagjax.growth.width import Isometric, Net2Net
from lagjax.jobs import Job, Update
from lagjax.report import content
from lagjax.report.facts import Facts
from lagjax.store import directory
from tests import toy

HORIZON, DECAY = 8, 0.25


def go(path: pathlib.Path, page: bool = False, **given: object) -> lagjax.Decision:
    """A short run of the toy net; the task's fields and `run`'s keywords are given alike."""
    changes = {name: given.pop(name) for name in lagjax.Task._fields if name in given}
    pool, policy = given.pop("pool", toy.pool("stack")), given.pop("policy", lagjax.FixedLag(4))
    task = toy.task(**{"horizon": HORIZON} | changes)
    given = {"progress": toy.Told(), "checkpoint_seconds": 1e9} | given
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr(report, "write", lambda path: path)
        return lagjax.run(task, pool, policy, path, **given)


# Operators: a word, a map.


@dataclass(frozen=True)
class Mirror:
    """The net, and its mirror image on top: `0 1 2 2 1 0`."""

    def word(self, old: int, new: int, /) -> Word:
        there_and_back = [*range(old), *reversed(range(old))]
        return Word.parse(" ".join(str(there_and_back[i % (2 * old)]) for i in range(new)))


@dataclass(frozen=True)
class OfTheFirst:
    """The old entries, then copies of the first: `0 1 2 0 0`."""

    def map(self, old: int, new: int, /) -> AxisMap:
        return AxisMap(old, np.array([*range(old), *[0] * (new - old)]))


def wide(key: jax.Array) -> dict:
    """Four layers of 24 hidden units, where the small net has two of 16."""
    keys, params = jax.random.split(key), toy.LARGE.init(key)
    up, down = jax.random.normal(keys[0], (4, 8, 24)), jax.random.normal(keys[1], (4, 24, 8))
    return params | {"layers": {"up": up, "down": down}}


def test_a_strategy_and_an_expansion_are_certified() -> None:
    kinds = {"embed": lagjax.Residual(lagjax.RMSNorm()), "mlp": lagjax.Units("tanh")}
    axes = lagjax.Axes(dict(toy.AXES.rows), kinds)
    small, large = toy.SMALL._replace(axes=axes), toy.LARGE._replace(axes=axes, init=wide)
    operator = lagjax.Grow(depth=Scaled(Mirror()), width={"mlp": OfTheFirst()})
    found = lagjax.certify(operator, small, large, toy.PARAMS, toy.VALID[:2], steps=2)
    assert found.kind == "exact"
    assert found.max_diff["float32"] < 1e-4
    # Copies that are read alike stay alike.
    assert found.twins["mlp"] < 1e-6
    plain = lagjax.Grow(depth=Mirror(), width={"mlp": OfTheFirst()})
    layouts = axes.layout(toy.PARAMS), axes.layout(jax.eval_shape(wide, jax.random.key(0)))
    plan = plain.plan(jax.random.key(0), *layouts)
    assert not plan.exact_by_table
    assert {why.axis for why in plan.violations} == {"layers"}


# A norm.


@dataclass(frozen=True)
class MaxNorm(Norm):
    """Division by the largest size: it does not notice how often an entry is copied, if whole."""

    centred: ClassVar[bool] = False

    def gain(self, grown: AxisMap, /) -> float:
        return 1.0

    def lengths(self, grown: AxisMap, /) -> str | None:
        whole = (grown.scale[~grown.fresh] == 1).all()
        return None if whole else "scaled copies change the largest"

    def means(self, grown: AxisMap, /) -> str | None:
        return None


def max_normed(width: int, norm: Norm) -> lagjax.Model:
    """Two matrices with a norm and its scale between them; predicts a token from the one before."""
    rows = {"in": "<vocab >embed", "scale": "embed", "out": "<embed >logits"}
    kinds = {"embed": lagjax.Residual(norm)} | dict.fromkeys(("vocab", "logits"), lagjax.Channels())

    def init(key: jax.Array) -> dict[str, jax.Array]:
        shapes = {"in": (toy.VOCAB, width), "scale": (width,), "out": (width, toy.VOCAB)}
        keys = jax.random.split(key, 3)
        return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    def logits(params: dict[str, jax.Array], batch: jax.Array) -> jax.Array:
        h = params["in"][batch[:, :-1]]
        h = h / jnp.abs(h).max(axis=-1, keepdims=True)
        return (h * params["scale"][None, None]) @ params["out"]

    def loss(params: dict[str, jax.Array], batch: jax.Array, key: object) -> tuple:
        nats = optax.softmax_cross_entropy_with_integer_labels(logits(params, batch), batch[:, 1:])
        return nats.sum(), nats.size

    return lagjax.Model(init, loss, lagjax.Axes(rows, kinds), logits)


def test_a_norm() -> None:
    """What it notices is proved from it alone, and measured."""
    small, large = max_normed(6, MaxNorm()), max_normed(9, MaxNorm())
    params = small.init(jax.random.key(3))
    uneven = lagjax.Grow(width={"embed": Net2Net()})
    found = lagjax.certify(uneven, small, large, params, toy.VALID[:2], steps=1)
    assert (found.kind, found.requires) == ("exact", ())
    layouts = [model.axes.layout(params) for model in (small, max_normed(6, lagjax.RMSNorm()))]
    shapes = jax.eval_shape(large.init, jax.random.key(0))
    for layout, way, reason in (
        (layouts[0], Isometric(), "scaled copies change the largest"),
        (layouts[1], Net2Net(), "copied unequally often, which the norm notices"),
    ):
        kinds = dict(layout.kinds)
        target = lagjax.Axes(dict(small.axes.rows), kinds).layout(shapes)
        plan = lagjax.Grow(width={"embed": way}).plan(jax.random.key(0), layout, target)
        (why,) = plan.violations
        assert reason in why.why


# A metric and a collection, of a training loop.


def averaging(model: lagjax.Model, tx: optax.GradientTransformation) -> lagjax.Engine:
    """Measures how many tokens are predicted right; keeps a running average of the parameters."""
    plain = lagjax.from_loss(model, tx)

    def right(params: object, batch: jax.Array) -> tuple:
        hits = model.apply(params, batch).argmax(axis=-1) == batch[:, 1:]
        return hits.sum(), hits.size

    def init(trained: lagjax.Trained, key: jax.Array) -> tuple:
        average = trained.collections.get("average", trained.params)
        return plain.init(trained, key), average

    def step(state: tuple, batch: jax.Array) -> tuple:
        inner, metrics = plain.step(state[0], batch)
        average = optax.incremental_update(plain.trained(inner).params, state[1], DECAY)
        return (inner, average), metrics

    def evaluate(state: tuple, batch: jax.Array) -> dict:
        accuracy = right(plain.trained(state[0]).params, batch)
        return plain.evaluate(state[0], batch) | {"accuracy": accuracy}

    def trained(state: tuple) -> lagjax.Trained:
        return plain.trained(state[0])._replace(collections={"average": state[1]})

    return lagjax.Engine(init, step, evaluate, trained)


def counted(facts: Facts) -> content.Section:
    """A section of the page."""
    return content.Section("Counted", "", (f"There are {len(facts.pool)} of them.",))


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of it, whose small model has an average of its own, and a section added to its page."""
    path = tmp_path_factory.mktemp("averaged") / "run"
    source = lagjax.Trained(toy.PARAMS, collections={"average": _doubled(toy.PARAMS)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "SECTIONS", (*content.SECTIONS, counted))
        go(path, page=True, source=source, engine=averaging)
    return path


def _doubled(tree: dict) -> dict:
    return jax.tree.map(lambda x: 2 * x, tree)


def test_a_metric_is_recorded_and_shown(averaged: pathlib.Path) -> None:
    last = toy.curve(averaged, "stack")[-1]
    params = lagjax.load(averaged, toy.LARGE).params
    hits = [toy.LARGE.apply(params, x).argmax(axis=-1) == x[:, 1:] for x in toy.VALID]
    assert last["metrics"] == {"valid_accuracy": pytest.approx(np.mean(hits))}
    page = (averaged / "report.html").read_text()
    assert "valid_accuracy" in page


def test_a_section_of_the_page(averaged: pathlib.Path) -> None:
    assert "<h2>Counted</h2><p>There are 1 of them.</p>" in (averaged / "report.html").read_text()


def test_a_collection_grows_and_comes_out(averaged: pathlib.Path) -> None:
    """The average of a plain loop, which begins at what the small model's became."""
    tx, stack = toy.tx(), np.array([0, 1, 0, 1])
    params = toy.PARAMS | {"layers": jax.tree.map(lambda x: x[stack], toy.PARAMS["layers"])}
    average, state = _doubled(params), tx.init(params)

    @jax.jit
    def step(params: dict, state: object, batch: jax.Array) -> tuple:
        gradient = jax.grad(lambda p: jnp.divide(*toy.LARGE.loss(p, batch, None)))(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for number in range(HORIZON):
        params, state = step(params, state, toy.batch(0, number))
        average = jax.tree.map(lambda x, y: DECAY * x + (1 - DECAY) * y, params, average)
    found = lagjax.load(averaged, toy.LARGE)
    chex.assert_trees_all_close(found.collections["average"], average, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(found.params, params, rtol=1e-3, atol=1e-5)


# An executor.


@dataclass(frozen=True)
class Backwards:
    """Does the last job first."""

    def __call__(self, work: Workload, jobs: Sequence[Job], /) -> Iterator[Update]:
        yield from Serial()(work, jobs[::-1])


def test_an_executor(tmp_path: pathlib.Path) -> None:
    """The order of jobs leaves no trace in the record."""
    pool = toy.pool("stack", "random-top")
    one, other = (
        go(tmp_path / name, pool=pool, compare="all", executor=executor)
        for name, executor in (("forwards", Serial()), ("backwards", Backwards()))
    )
    assert one._replace(ledger=None) == other._replace(ledger=None)
    assert toy.without_times(tmp_path / "forwards") == toy.without_times(tmp_path / "backwards")
    first = [directory.read(tmp_path / x).curves[0]["candidate"] for x in ("forwards", "backwards")]
    assert first == ["stack", "random-top"]


# A policy, and the feature that it looks at.


def speed(losses: Sequence[float]) -> float:
    """A feature of a curve: by what share its loss falls at each evaluation, on average."""
    return float(-np.diff(np.log(losses)).mean())


@dataclass(frozen=True)
class Fastest:
    """Takes the candidate whose validation loss falls fastest, wherever it stands."""

    step: int

    def __call__(self, evidence: lagjax.Evidence, /) -> lagjax.Probe | lagjax.Decision:
        if evidence.frontier < self.step:
            return lagjax.Probe(self.step)
        found = {}
        for name in evidence.ranking(self.step):
            losses = [evidence.loss(name, step) for step in evidence.steps(name)]
            found[name] = speed(losses)
        return lagjax.decide(evidence, self.step)._replace(winner=max(found, key=found.get))


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, lagjax.Decision]:
    """A run of it, in which the strategy from above competes with others."""
    path = tmp_path_factory.mktemp("raced") / "run"
    mirror = lagjax.Candidate("mirror", lagjax.Grow(depth=Mirror()), toy.LARGE)
    return path, go(path, pool=(*toy.pool("stack"), mirror), policy=Fastest(6), keep="all")


def test_a_strategy_in_a_run(raced: tuple[pathlib.Path, lagjax.Decision]) -> None:
    """It is described as those of lagjax are, and its record replays to the same tree."""
    path, decision = raced
    assert set(decision.ranking) == {"stack", "mirror"}
    _, entry = directory.read(path).config["pool"]
    assert (entry["word"], entry["exact"]) == ("0 1 1 0", False)
    grown = directory.growth(path, "mirror").replay(toy.PARAMS, toy.AXES, toy.LARGE)
    expected = jax.tree.map(lambda x: x[np.array([0, 1, 1, 0])], toy.PARAMS["layers"])
    chex.assert_trees_all_equal(grown["layers"], expected)


def test_a_policy(raced: tuple[pathlib.Path, lagjax.Decision]) -> None:
    path, decision = raced
    lines = {name: toy.curve(path, name) for name in decision.ranking}
    fallen = {
        name: found[0]["valid_loss"] / next(x for x in found if x["step"] == 6)["valid_loss"]
        for name, found in lines.items()
    }
    assert decision.winner == max(fallen, key=fallen.get)
    assert directory.read(path).decision["winner"] == decision.winner
    assert toy.curve(path, decision.winner)[-1]["step"] == HORIZON
