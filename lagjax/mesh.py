"""Placement: which devices hold which part of the trials' states and of the batches.

A mesh has up to two axes. Along "candidates" every device trains other trials; along "data" the
devices share each batch, as `pmap` of old did, and fully sharded they share parameters and
optimizer state as well. Results differ from those of one device by rounding only.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

CANDIDATES, DATA = "candidates", "data"


class Placement(NamedTuple):
    """Devices and what is spread over them; made by `placement`.

    Attributes:
        mesh: with the axes "candidates" and "data", of size 1 where there is nothing to spread.
        fully_sharded: whether each leaf of a state is cut along its largest axis that divides over
            "data".
    """

    mesh: Mesh
    fully_sharded: bool = False

    @property
    def candidates(self) -> int:
        """How many groups of devices train other trials."""
        return int(self.mesh.shape[CANDIDATES])

    def described(self) -> dict[str, Any]:
        """For config.json: a run goes on with the placement that it began with."""
        return {**self.mesh.shape, "fully_sharded": self.fully_sharded}

    def spread(self, at_once: int, batch: Any, shard: Any) -> tuple[str, ...]:
        """The mesh axes over which batches are cut: one trial alone has all devices, where its
        batch divides over them.

        Raises ValueError where a batch does not divide over "data".
        """
        sizes = [x.shape[0] for x in jax.tree.leaves((batch, shard)) if x.shape]
        if at_once == 1 and all(size % self.mesh.size == 0 for size in sizes):
            return CANDIDATES, DATA
        for size in sizes:
            if size % self.mesh.shape[DATA]:
                raise ValueError(
                    f"a batch has {size} rows, which do not divide over the "
                    f"{self.mesh.shape[DATA]} devices of the mesh's axis {DATA!r}; give batches "
                    "and validation shards of a multiple, or a smaller axis"
                )
        return (DATA,)

    def state(self, like: Any, axes: tuple[str, ...], stacked: bool) -> Any:
        """The shardings of a trial's state, or of several along a leading axis; `like` is one's
        shapes.
        """
        lead = (CANDIDATES,) if stacked else ()

        def sharding(x: Any) -> NamedSharding:
            spec: list[Any] = [None] * len(x.shape)
            count = int(np.prod([self.mesh.shape[axis] for axis in axes]))
            fitting = [i for i, size in enumerate(x.shape) if size % count == 0]
            if self.fully_sharded and fitting:
                spec[max(fitting, key=lambda i: x.shape[i])] = axes
            return NamedSharding(self.mesh, PartitionSpec(*lead, *spec))

        return jax.tree.map(sharding, like)

    def rows(self, batches: Any, axes: tuple[str, ...], leading: int) -> Any:
        """The shardings of batches with `leading` axes before that of their rows."""
        none = (None,) * leading

        def sharding(x: Any) -> NamedSharding:
            cut = (axes,) if len(x.shape) > leading else ()
            return NamedSharding(self.mesh, PartitionSpec(*none, *cut))

        return jax.tree.map(sharding, batches)

    def whole(self, *lead: str) -> NamedSharding:
        """What every device has a copy of, or one part along `lead`."""
        return NamedSharding(self.mesh, PartitionSpec(*lead))


def placement(mesh: Mesh | None, fully_sharded: bool = False) -> Placement | None:
    """Checks a mesh, and gives it both axes; None stands for the first device alone.

    Raises ValueError for axes of other names, and for full sharding without a mesh.
    """
    if mesh is None:
        if fully_sharded:
            raise ValueError(
                "fully_sharded needs devices to spread over; give a mesh with an axis 'data'"
            )
        return None
    if not isinstance(mesh, Mesh):
        raise ValueError(  # noqa: TRY004
            f"the mesh is {mesh!r}; give a jax.sharding.Mesh: jax.make_mesh((4, 2), "
            f"({CANDIDATES!r}, {DATA!r}))"
        )
    unknown = set(mesh.axis_names) - {CANDIDATES, DATA}
    if unknown or not mesh.axis_names:
        raise ValueError(
            f"the mesh has the axes {mesh.axis_names}; expected {CANDIDATES!r}, {DATA!r} or both: "
            f"jax.make_mesh((4, 2), ({CANDIDATES!r}, {DATA!r}))"
        )
    sizes = [mesh.shape.get(axis, 1) for axis in (CANDIDATES, DATA)]
    in_order = mesh.axis_names[0] == CANDIDATES or len(mesh.axis_names) == 1
    devices = mesh.devices if in_order else mesh.devices.T
    # Shardings are given for what goes in and out; XLA finds those between.
    both = Mesh(devices.reshape(sizes), (CANDIDATES, DATA), axis_types=(AxisType.Auto,) * 2)
    return Placement(both, fully_sharded)
