"""Factors: the named axes of one array that grow, and what becomes of its values along them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.axes import Kind, Lookup
from lagjax.algebra.maps import AxisMap, along, scaled
from lagjax.model import Key


class GrownAxis(NamedTuple):
    """A grown axis of one leaf: its position in the unfolded array, its role there, its kind and its map."""

    name: str
    at: int
    role: str
    kind: Kind | None
    map: AxisMap

    @property
    def reads(self) -> bool:
        """Whether the leaf reads along it; what the data index is written."""
        return self.role == "<" and not isinstance(self.kind, Lookup)

    def grow(self, value: Any) -> Any:
        """The values that come from the small model, new entries 0 or, where the map says so, means."""
        if self.role in ("<", "=", ">") and not self.reads:
            return self.map.write(value, self.at)
        return self.map.apply(value, self.at, self.map.factors(self.role, self.kind))


def parameter(
    value: Any, later: Any, fresh: Any, factors: Sequence[GrownAxis], key: Key | None
) -> Any:
    """Grows a parameter along its axes: first where it writes, then where it reads what is written."""
    size = jnp.sqrt(jnp.mean(jnp.square(value)))
    writing = [factor for factor in factors if not factor.reads]
    reading = [factor for factor in factors if factor.reads]
    for axis in writing:
        ahead = axis.map.ahead
        grown, later = axis.grow(value), axis.grow(later)
        value = jnp.where(along(ahead, grown, axis.at) > 0, later, grown)
    for axis in reading:
        value = axis.grow(value)
        if axis.map.diagonal:
            value = _diagonal(value, axis, writing)
        if axis.map.noise:
            key, one = _split(key, axis)
            noise = size * axis.map.noise * jax.random.normal(one, value.shape, value.dtype)
            value = value + axis.map.free(noise, axis.at)
    for axis in factors:
        if axis.map.jitter:
            key, one = _split(key, axis)
            noise = size * axis.map.jitter * jax.random.normal(one, value.shape, value.dtype)
            value = value + noise * along(axis.map.copy > 0, value, axis.at)
    if any(axis.map.fresh.any() for axis in factors):
        made, blank = fresh.astype(value.dtype), np.zeros((1,) * value.ndim, bool)
        for axis in factors:
            made = scaled(
                axis.map.twins(made, axis.at),
                axis.map.fill(axis.role, axis.kind),
                axis.at,
            )
            column = [1] * value.ndim
            column[axis.at] = -1
            blank = blank | axis.map.fresh.reshape(column)
        value = jnp.where(blank, value + made, value)
    return value


def _split(key: Key | None, axis: GrownAxis) -> tuple[Key, Key]:
    if key is None:
        raise ValueError(
            f"the map of axis {axis.name!r} draws noise, but its plan has no key; give Plan(..., key=key)"
        )
    first, second = jax.random.split(key)
    return first, second


def _diagonal(value: Any, reader: GrownAxis, writing: Sequence[GrownAxis]) -> Any:
    """Lets each copy read of its own number only, where an axis that is written has as many copies."""
    count = int(reader.map.counts.max())
    for writer in writing:
        if int(writer.map.counts.max()) == count and writer.role == ">":
            same = (
                np.expand_dims(writer.map.copy, 1) == np.expand_dims(reader.map.copy, 0)
            ).astype(float)
            shape = [1] * value.ndim
            shape[writer.at], shape[reader.at] = same.shape
            if writer.at > reader.at:
                same = same.T
            return value * jnp.asarray(count * same.reshape(shape), value.dtype)
    return value


def moment(value: Any, fresh: Any, factors: Sequence[GrownAxis], power: int) -> Any:
    """Grows statistics of the gradient along their parameter's axes."""
    blank = np.zeros((1,) * value.ndim, bool)
    for axis in factors:
        slopes = axis.map.slopes(axis.role, axis.kind) ** power
        value = axis.map.apply(value, axis.at, slopes)
        column = [1] * value.ndim
        column[axis.at] = -1
        blank = blank | axis.map.fresh.reshape(column)
    return jnp.where(blank, fresh.astype(value.dtype), value) if blank.any() else value
