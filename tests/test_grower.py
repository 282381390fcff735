"""What a trial begins with: each function of a candidate is traced once in a run, and the grown
parameters are those of the operator's call alone.
"""

import collections
import pathlib
from dataclasses import dataclass
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax.grower import Grower
from lagjax.growth import width
from lagjax.growth.depth import Fresh, Stack
from lagjax.growth.operator import FromScratch, Grow, Same
from tests import quick, toy

no_page = quick.no_page

KEY = jax.random.key(3)
TRACED: collections.Counter = collections.Counter()


@dataclass(frozen=True)
class Counted:
    """An operator that counts its calls."""

    name: str
    base: Any

    def __call__(self, key, params, source, target):
        TRACED[self.name] += 1
        return self.base(key, params, source, target)

    def plan(self, key, source, target):
        return self.base.plan(key, source, target)


@dataclass(frozen=True)
class Elsewhere:
    """Draws what is new from a key of its own, too."""

    base: ClassVar = Grow(depth=Fresh("between"))

    def __call__(self, key, params, source, target):
        grown = self.base(key, params, source, target)
        other = target.init(jax.random.fold_in(key, 7))
        return jax.tree.map(lambda one, another: one + 0.1 * another, grown, other)


def counted(model: lagjax.Model) -> lagjax.Model:
    """The model, each trace of its functions counted."""

    def init(key):
        TRACED["init"] += 1
        return model.init(key)

    def loss(params, batch, key):
        TRACED["evaluation" if key is None else "step"] += 1
        return model.loss(params, batch, key)

    return lagjax.Model(init, loss, model.axes)


@pytest.mark.parametrize("transfer", [lagjax.Transfer(), lagjax.Transfer("grow", "continue")])
def test_everything_is_traced_once(tmp_path: pathlib.Path, transfer: lagjax.Transfer) -> None:
    TRACED.clear()
    large = counted(toy.LARGE)
    pool = [
        lagjax.Candidate(each.name, Counted(each.name, each.operator), large)
        for each in toy.pool("stack", "half-stack", "random-top")
    ]
    source = lagjax.Trained(toy.PARAMS, toy.tx().init(toy.PARAMS))
    task = toy.task(source=source, seeds=2, horizon=6, transfer=transfer)
    lagjax.run(task, pool, lagjax.FixedLag(3), tmp_path, progress=toy.Told())
    names = [each.name for each in pool]
    assert TRACED == dict.fromkeys([*names, "init", "step", "evaluation"], 1)


NOISE = width.NoisySplit(0.1)


@pytest.mark.parametrize(
    ("operator", "layers", "size", "apart"),
    [
        (Grow(depth=Stack()), 4, 8, False),
        (Grow(depth=Fresh("between")), 4, 8, True),
        (Grow(depth=Fresh("top", zero=True)), 4, 8, True),
        (Grow(depth={"layers": "0 new*0.5 1 1*0.3"}), 4, 8, False),
        # The sum of a copy and noise is rounded once where both are made in one loop.
        (
            Grow(
                depth=Fresh("top"), width={"embed": width.Isometric(NOISE), "mlp": width.Net2Net()}
            ),
            4,
            12,
            False,
        ),
        (
            Grow(depth=Stack(), width={"embed": width.RandomPad(), "mlp": width.Net2Net()}),
            4,
            12,
            False,
        ),
        (Elsewhere(), 4, 8, False),
        (FromScratch(), 4, 12, True),
        (Same(), 2, 8, False),
    ],
)
def test_the_bits_are_those_of_the_call_alone(
    operator: Any, layers: int, size: int, apart: bool
) -> None:
    large = toy.model(layers, size)
    grower = Grower(toy.task(), lagjax.Candidate("one", operator, large), None)
    grown = grower(KEY, toy.PARAMS)
    assert grower.apart is apart
    alone = jax.jit(lambda key, params: operator(key, params, toy.AXES, large))(KEY, toy.PARAMS)
    chex.assert_trees_all_equal(grown, alone, strict=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(grower.shapes, grown)
    # Nothing that trains on takes the small model's memory over.
    small = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(toy.PARAMS)}
    assert not small & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(grown)}


def test_an_initialisation_that_nothing_uses_is_not_made() -> None:
    made = []

    def init(key: jax.Array) -> dict:
        def zero() -> np.ndarray:
            made.append(key)
            return np.zeros((), np.float32)

        # Kept only where its value is.
        zeros = jax.pure_callback(zero, jax.ShapeDtypeStruct((), jnp.float32))
        return jax.tree.map(lambda x: x + zeros, toy.LARGE.init(key))

    target = toy.LARGE._replace(init=init)
    for operator, uses in ((Grow(depth=Stack()), False), (Grow(depth=Fresh("top")), True)):
        made.clear()
        jax.block_until_ready(
            Grower(toy.task(), lagjax.Candidate("one", operator, target), None)(KEY, toy.PARAMS)
        )
        assert bool(made) is uses


def test_a_state_has_memory_of_its_own() -> None:
    """An engine may keep a tree twice, or the small model's arrays: each is taken over alone."""

    def twice(model: lagjax.Model, tx: Any) -> lagjax.Engine:
        plain = lagjax.from_loss(model, tx)

        def init(trained, key):
            return plain.init(trained, key), trained.params, trained.opt_state

        def step(state, batch):
            made, metrics = plain.step(state[0], batch)
            return (made, *state[1:]), metrics

        return lagjax.Engine(
            init,
            step,
            lambda state, batch: plain.evaluate(state[0], batch),
            lambda state: plain.trained(state[0]),
        )

    source = lagjax.Trained(toy.PARAMS, toy.tx().init(toy.PARAMS))
    task = toy.task(source=source, engine=twice, transfer=lagjax.Transfer("reset", "continue"))
    (candidate,) = toy.pool("stack")
    group = lagjax.initial.Group(task, candidate, np.stack(toy.VALID), None)
    state = group.begin(candidate, KEY, 0)
    # The key has no pointer, and is the training loop's own.
    leaves = jax.tree.leaves((state[0][:3], state[1:], source.params, source.opt_state))
    places = [x.unsafe_buffer_pointer() for x in leaves if x.size]
    assert len(places) == len(set(places))
