"""Growth records: operators as JSON, refusals that say the remedy, and replays that are
identical.
"""

import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lagjax
from lagjax.algebra.words import Layer, Word
from lagjax.executors import worker
from lagjax.fingerprint import digest, versions
from lagjax.growth import pools
from lagjax.growth.depth import Block, Fresh, Midas, Scaled, Shuffled, Stack
from lagjax.growth.experts import Upcycle
from lagjax.growth.operator import FromScratch, Grow, Same
from lagjax.growth.width import Net2Net, Noisy, NoisySplit, Tile
from lagjax.initial import Group
from lagjax.store import directory
from lagjax.store.record import GrowthRecord, decode, encode
from tests import quick, toy

no_page, groups_kept = quick.no_page, quick.groups_kept

KEY = jax.random.key(3)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True)
class Fitted:
    """An operator that holds what fitting gave: like `Grow(depth=Stack())`, plus `shift` on the
    embedding.
    """

    shift: Any

    def __call__(self, key, params, source, target):
        grown = Grow(depth=Stack())(key, params, source, target)
        return {**grown, "embed": grown["embed"] + self.shift}


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("value",)
    value: Any


def recorded(operator: Any) -> GrowthRecord:
    """The record of the operator's call on the toy's parameters."""
    return GrowthRecord(encode(operator), encode(KEY), digest(toy.PARAMS), versions())


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize(
    "value",
    [
        Grow(depth=Scaled(Stack(), 0.5)),
        Grow(depth={"layers": "0 0* 1 1*"}),
        Grow(depth={"encoder": Scaled(Scaled(Midas())), "decoder": "0 new*0.5"}),
        Grow(depth=Block(0, size=2)),
        Grow(depth=Shuffled(7)),
        Grow(depth=Fresh("between", zero=True)),
        Grow(depth=Stack(), width={"mlp": Net2Net(), "embed": Noisy(Tile(NoisySplit(0.2)))}),
        Grow(width=pools.WIDTH["zero-pad"]),
        Grow(depth="0 0", experts=Upcycle(noise=0.1)),
        Grow(depth=Stack(), fuse=True),
        Same(),
        FromScratch(),
        Word((Layer(None, 0.1), Layer(2, -0.0))),
        Pair((), ((True, 1, 1.0), None)),
        Pair(float("inf"), -float("inf")),
        Pair((("a", 1e-300),), "é\n"),
        Slotted(2**80),
        Pair(np.float32(0.1), np.int64(3)),
    ],
    ids=repr,
)
def test_an_operator_comes_back_as_it_was(value: Any) -> None:
    found = decode(through_json(encode(value)))
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int4", "int8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_arrays_keep_kind_dtype_shape_and_bytes(
    make: Callable, dtype: str, shape: tuple[int, ...]
) -> None:
    array = make(np.arange(np.prod(shape)).reshape(shape).astype(np.dtype(dtype)))
    found = decode(through_json(encode(Fitted(array)))).shift
    assert isinstance(found, jax.Array) == isinstance(array, jax.Array)
    assert (found.dtype, found.shape) == (array.dtype, shape)
    assert np.asarray(found).tobytes() == np.asarray(array).tobytes()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_keep_their_implementation(impl: str) -> None:
    key = jax.random.key(5, impl=impl)
    found = decode(through_json(encode(key)))
    assert found.dtype == key.dtype
    assert (jax.random.key_data(found) == jax.random.key_data(key)).all()


def test_what_cannot_be_recorded_is_named_with_a_remedy() -> None:
    @dataclass(frozen=True)
    class Local:
        pass

    for bad, says in (
        (
            Grow(depth=(("layers", lambda old, new: None),)),
            r"operator.depth\[0\]\[1\] is <function.*frozen dataclass",
        ),
        (Fitted(((), [1])), r"operator.shift\[1\] is \[1\], of type list.*tuple"),
        (Fitted({"a": 1}), "operator.shift is {'a': 1}, of type dict.*a mapping's items"),
        (Fitted(Local()), "operator.shift is of the class .*Local.*top level"),
        (Fitted(np.array([None])), "operator.shift is an array of object"),
        (Fitted(jnp.asarray(0.5)), "operator.shift is an array of the weak type"),
    ):
        with pytest.raises(ValueError, match=says):
            encode(bad)


def test_records_of_other_versions_are_refused() -> None:
    data = encode(Grow(depth=Block(0)))
    for name in ("lagjax.growth.depth:Missing", "nowhere.at.all:Grow", "math:pi", ""):
        with pytest.raises(ValueError, match="not found here; install"):
            decode({**data, "class": name})
    with pytest.raises(ValueError, match="had \\['what'\\] when the record was made"):
        decode({**data, "fields": {"what": 1}})
    with pytest.raises(ValueError, match="has the fields None"):
        decode({"class": "builtins:dict", "fields": {}})
    with pytest.raises(ValueError, match="a growth record has the fields"):
        GrowthRecord.from_json({"operator": data})
    wide = encode(Fitted(np.zeros(2)))
    wide["fields"]["shift"]["array"] = "jax"
    with pytest.raises(ValueError, match="float64, which JAX makes float32"):
        decode(wide)


@pytest.mark.parametrize(
    "operator",
    [
        Grow(depth=Fresh("between")),
        Grow(depth={"layers": "0 new*0.5 1 1*"}),
        Fitted(jnp.full((1, toy.WIDTH), 0.3, jnp.bfloat16)),
    ],
    ids=["fresh", "word", "fitted"],
)
def test_a_replay_is_the_identical_tree(operator: Any) -> None:
    made = recorded(operator)
    again = GrowthRecord.from_json(through_json(made.to_json()))
    assert again == made
    grow = jax.jit(lambda key, params: operator(key, params, toy.AXES, toy.LARGE))
    grown = grow(KEY, toy.PARAMS)
    chex.assert_trees_all_equal(again.replay(toy.PARAMS, toy.AXES, toy.LARGE), grown, strict=True)


def test_other_parameters_are_refused() -> None:
    made = recorded(Grow(depth=Stack()))
    for other in (
        jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-6), toy.PARAMS),
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), toy.PARAMS),
        {**toy.PARAMS, "layers": {"up": toy.PARAMS["layers"]["up"]}},
    ):
        with pytest.raises(ValueError, match=f"made of others, with {made.source}"):
            made.replay(other, toy.AXES, toy.LARGE)


def test_a_runs_checkpoints_hold_the_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, original = {}, Group.begin

    def begin(self: Group, candidate: lagjax.Candidate, key: jax.Array, seed: int) -> Any:
        state = original(self, candidate, key, seed)
        begun[candidate.name, seed] = jax.device_get(state.params)  # Training takes the buffers.
        return state

    monkeypatch.setattr(Group, "begin", begin)
    unnamed = type("Unnamed", (Grow,), {"__module__": "nowhere"})(depth=Stack())
    pool = (
        *toy.pool("half-stack", "random-between"),
        lagjax.Candidate("unnamed", unnamed, toy.LARGE, role="control"),
    )

    told = toy.Told()
    # The winner goes on from its checkpoint, with the record that it finds there.
    task, policy = toy.task(seeds=2, horizon=8), lagjax.FixedLag(4)
    options = {"candidates_at_once": 1, "keep": "all", "progress": told}
    lagjax.run(task, pool, policy, tmp_path / "run", **options)
    config = directory.read(tmp_path / "run").config
    for (name, seed), grown in begun.items():
        if name == "unnamed":
            continue
        found = directory.growth(tmp_path / "run", name, seed)
        assert found.source == config["task"]["source"]
        assert found.versions == config["versions"]
        again = found.replay(toy.PARAMS, toy.AXES, toy.LARGE)
        chex.assert_trees_all_equal(again, grown, strict=True)
    assert len(begun) == 6
    (note,) = told.notes
    assert "candidate 'unnamed' will not say how it was grown: operator is of" in note
    with pytest.raises(ValueError, match="hold no growth record"):
        directory.growth(tmp_path / "run", "unnamed")
    with pytest.raises(ValueError, match="no checkpoint of 'x' with"):
        directory.growth(tmp_path / "run", "x")


def test_a_trial_that_goes_on_keeps_its_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its versions are those that it was grown with."""

    def interrupt(event: Any) -> None:
        if event.step >= 2:
            raise KeyboardInterrupt

    options = {"candidates_at_once": 1, "checkpoint_seconds": 0.0, "compare": "all"}
    arguments = (toy.task(horizon=4), toy.pool("stack"), lagjax.FixedLag(4), tmp_path)
    monkeypatch.setattr(worker, "versions", lambda: {"jax": "0.1"})
    with pytest.raises(KeyboardInterrupt):
        lagjax.run(*arguments, **options, progress=toy.Told(interrupt))
    monkeypatch.setattr(worker, "versions", lambda: {"jax": "0.2"})
    lagjax.run(*arguments, **options, progress=toy.Told())
    assert directory.growth(tmp_path, "stack").versions == {"jax": "0.1"}


def test_versions_are_each_callers_own() -> None:
    versions().clear()
    assert "commit" in versions()
