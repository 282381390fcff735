"""Growing models that nearly fill the memory: one compiled program for each leaf, run one after
another.

One program for the whole tree holds temporaries of many leaves at a time, as many as XLA finds
convenient: 18 times the largest leaf where noise is drawn. Here the operator is traced once and cut
into its leaves, and what a leaf does not need is dropped::

    params = lagjax.leafwise.apply(operator, key, params, source.axes, target, shardings)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Var, jaxpr_as_fun
from jax.extend.random import define_prng_impl
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Params
from lagjax.model import Growth, Key, Model


def apply(
    operator: Growth,
    key: Key,
    params: Params,
    source: Axes,
    target: Model,
    shardings: Any = None,
) -> Params:
    """The operator's call under jit, with the target's shardings; `params` is left alone, and
    shares no memory with the result.

    Beside source and target a device holds, while a leaf is made, what XLA plans for that leaf
    (`CompiledGrowth.temporary` is the most):

    * nothing where layers or entries are copied, scaled, zeroed or averaged, and for jitter;
    * at most about the leaf where fresh values are chosen from: those of a stack are made whole
      first;
    * nothing for noise either, since it is drawn, cancelled and added in place.

    Over several devices an axis that grows where it is cut is collected on each, 1.6 leaves at
    most. A source on other devices than the target's is brought there whole for each leaf. The bits
    are those of one device, but where sums are taken: means, the size of noise, what cancels it.

    Compiles at each call; see `compiled` to grow several models of the same shapes.

    Args:
        operator: any growth operator that can be traced.
        key: a typed key, not traced.
        params: the small model's parameters, jax or numpy arrays, on any devices.
        source: its axes table.
        target: the large model. `target.init` is only traced; of its values those are computed that
            the operator uses.
        shardings: of the result, one for all leaves or a tree of them; by default JAX decides:
            where the source is.

    Raises:
        ValueError: as the operator does, and for shardings of another structure than the target's
            parameters.
    """
    return compiled(operator, key, params, source, target, shardings)(key, params)


class LeafProgram(NamedTuple):
    """What makes one leaf.

    Attributes:
        run: the compiled program; the same for leaves that differ only in their inputs.
        inputs: the positions of its inputs among derived keys and leaves of the source.
        places: for each input the sharding to bring it to first, None where it can stay.
    """

    run: jax.stages.Compiled
    inputs: tuple[int, ...]
    places: tuple[Sharding | None, ...]


@dataclass(frozen=True)
class CompiledGrowth:
    """A compiled growth: `(key, params)` → the large model's parameters, for source parameters of
    the shapes it was made for.

    Attributes:
        keys: derives from the key what the leaves draw from.
        programs: for each leaf of the target.
        tree: the structure of the target's parameters.
    """

    keys: Callable[[Key], list[Any]]
    programs: tuple[LeafProgram, ...]
    tree: Any

    def __call__(self, key: Key, params: Params) -> Params:
        inputs = [*self.keys(_fused(key)), *jax.tree.leaves(params)]
        made = []
        for program in self.programs:
            given = [
                inputs[at] if place is None else jax.device_put(inputs[at], place)
                for at, place in zip(program.inputs, program.places)
            ]
            # Waits: the temporaries of two leaves shall not be held at once.
            made.append(jax.block_until_ready(program.run(*given)))
        return jax.tree.unflatten(self.tree, made)

    @property
    def temporary(self) -> int:
        """The most bytes a program holds beside its inputs and its leaf, by XLA's own plan."""
        plans = [program.run.memory_analysis() for program in self.programs]
        return max(int(plan.temp_size_in_bytes) for plan in plans if plan is not None)


def compiled(
    operator: Growth,
    key: Key,
    params: Params,
    source: Axes,
    target: Model,
    shardings: Any = None,
) -> CompiledGrowth:
    """Compiles what `apply` runs; `params` may be `jax.ShapeDtypeStruct`, with the shardings that
    the arrays will have.

    Leaves that are made alike, such as those of unrolled layers, are compiled once.
    """
    closed, like = jax.make_jaxpr(
        lambda key, params: operator(key, params, source, target), return_shape=True
    )(_fused(key), params)
    leaves, tree = jax.tree.flatten(like)
    wanted = _spread(shardings, like)
    needed, _ = dce_jaxpr(closed.jaxpr, [True] * len(leaves), instantiate=True)
    first, rest = _keys_first(needed)
    derived = [jax.ShapeDtypeStruct(*_described(var)) for var in first.outvars]
    inputs = [*derived, *jax.tree.leaves(params)]
    found: dict[Any, jax.stages.Compiled] = {}
    programs = []
    for index in range(len(leaves)):
        one, used = dce_jaxpr(rest, [index == at for at in range(len(leaves))])
        at = tuple(position for position, kept in enumerate(used) if kept)
        places = tuple(_place(inputs[position], wanted[index]) for position in at)
        given = [
            inputs[position]
            if place is None
            else jax.ShapeDtypeStruct(
                inputs[position].shape, inputs[position].dtype, sharding=place
            )
            for position, place in zip(at, places)
        ]
        call = jaxpr_as_fun(ClosedJaxpr(one, closed.consts))
        lowered = jax.jit(lambda *x, call=call: call(*x)[0], out_shardings=wanted[index]).lower(
            *given
        )
        # The text has every constant; where inputs lie it tells in part.
        same = (
            lowered.as_text(),
            wanted[index],
            tuple(getattr(x, "sharding", None) for x in given),
        )
        if same not in found:
            found[same] = lowered.compile()
        programs.append(LeafProgram(found[same], at, places))
    # Not compiled: one operation a key, and all of them are the same few.
    keys = jaxpr_as_fun(ClosedJaxpr(first, ()))
    return CompiledGrowth(keys, tuple(programs), tree)


def _spread(shardings: Any, like: Params) -> list[Sharding | None]:
    """A sharding for each leaf."""
    count = len(jax.tree.leaves(like))
    if shardings is None or isinstance(shardings, Sharding):
        return [shardings] * count
    found: Any = jax.tree.structure(shardings)
    if found != jax.tree.structure(like):
        raise ValueError(
            f"the shardings have the structure {found}, the target's parameters "
            f"{jax.tree.structure(like)}; give one for each parameter, or one for all"
        )
    return jax.tree.leaves(shardings)


def _place(value: Any, wanted: Sharding | None) -> Sharding | None:
    """Where an input has to be brought so that the leaf can be made on its own devices; None where
    it can stay.
    """
    held = getattr(value, "sharding", None)
    if wanted is None or held is None or not getattr(value, "committed", True):
        return None
    if held.device_set == wanted.device_set:
        return None
    if isinstance(wanted, NamedSharding):
        return NamedSharding(wanted.mesh, PartitionSpec())
    return wanted


def _described(var: Any) -> tuple[tuple[int, ...], Any]:
    return tuple(var.aval.shape), var.aval.dtype


def _keys_first(jaxpr: Jaxpr) -> tuple[Jaxpr, Jaxpr]:
    """Cuts a program of a key and a source into one that derives keys, and one that takes these in
    place of the key.

    Leaves that draw from keys of their own are alike without what derived them.
    """
    key = jaxpr.invars[0]
    known, first, rest = {key}, [], []
    for eqn in jaxpr.eqns:
        read = {var for var in eqn.invars if isinstance(var, Var)}
        if read <= known and all(map(_of_keys, eqn.outvars)):
            known.update(eqn.outvars)
            first.append(eqn)
        else:
            rest.append(eqn)
    later = {var for eqn in rest for var in eqn.invars if isinstance(var, Var)}
    later.update(var for var in jaxpr.outvars if isinstance(var, Var))
    made = [key, *(var for eqn in first for var in eqn.outvars)]
    handed = [var for var in made if var in later]
    unnamed = jaxpr.debug_info.with_unknown_names()
    return (
        jaxpr.replace(constvars=(), invars=[key], outvars=handed, eqns=first, debug_info=unnamed),
        jaxpr.replace(invars=[*handed, *jaxpr.invars[1:]], eqns=rest, debug_info=unnamed),
    )


def _of_keys(var: Any) -> bool:
    """Whether it is of the kind that keys are derived by: keys, and numbers folded in."""
    shape, dtype = _described(var)
    return _typed(dtype) or (shape == () and bool(jnp.issubdtype(dtype, jnp.integer)))


def _fused(key: Key) -> Key:
    """The same key, but one whose bits XLA makes where they are used.

    On CPUs JAX draws in a loop over whole arrays, which holds three to five times what it draws; as
    plain arithmetic of each entry's number nothing is held, the bits are the same, and are made
    several times faster. Keys that are not Threefry's stay as they are.
    """
    # A Threefry of our own, because with that of JAX 0.10 fresh values and noise still hold three
    # leaves and more: tests/growth/test_leafwise.py fails without it. When it does not, this goes.
    flags: Any = jax.config
    if not _typed(key.dtype) or jax.random.key_impl(key) != _NAME:
        return key
    if not flags.jax_threefry_partitionable:
        return key
    # From the host, so that it lies on no device in particular.
    data: Any = np.asarray(jax.random.key_data(key))
    fused: Key = jax.random.wrap_key_data(data, impl=_FUSED)
    return fused


def _typed(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _plain(data: jax.Array) -> Key:
    key: Key = jax.random.wrap_key_data(data, impl=_NAME)
    return key


def _bits(data: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    """Threefry-2x32 of 20 rounds (Salmon et al. 2011) of each entry's number, as JAX draws it."""
    if math.prod(shape) >= 2**32:
        return jax.random.bits(_plain(data), shape, f"uint{width}")
    number, step = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        number += np.uint32(step) * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        step *= shape[axis]
    keys = [
        jnp.broadcast_to(x, shape)
        for x in (data[0], data[1], data[0] ^ data[1] ^ np.uint32(0x1BD11BDA))
    ]
    a, b = keys[0], number + keys[1]
    for group in range(5):
        for by in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            a += b
            b = a ^ ((b << np.uint32(by)) | (b >> np.uint32(32 - by)))
        a += keys[(group + 1) % 3]
        b += keys[(group + 2) % 3] + np.uint32(group + 1)
    if width == 64:
        return (a.astype(jnp.uint64) << np.uint64(32)) | b.astype(jnp.uint64)
    return (a ^ b).astype(f"uint{width}")


_NAME = "threefry2x32"
_FUSED = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jax.random.key_data(jax.random.key(seed, impl=_NAME)),
    split=lambda data, shape: jax.random.key_data(jax.random.split(_plain(data), shape)),
    random_bits=_bits,
    fold_in=lambda data, number: jax.random.key_data(jax.random.fold_in(_plain(data), number)),
    name=f"{_NAME}, fused",
    tag="fused",
)
