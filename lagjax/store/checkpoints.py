"""Checkpoints: what a trial needs to go on, and the trained model in it for whoever wants that
alone.

RUN/checkpoints/TRIAL/STEP holds three items of Orbax's: `trained`, a `Trained` as nested
dictionaries; `state`, what else the training loop carries (dropout keys, say); `meta`, JSON. Arrays
stand under their paths, so that any reader of Orbax opens them and no class has to be found again.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from lagjax.engine import Trained
from lagjax.fingerprint import digest
from lagjax.jobs import Json, Trial
from lagjax.store.losses import file_name

KEPT = 2
"""Checkpoints kept of each trial, so that one that is damaged has a predecessor."""

Nested = dict[str, Any]
"""Arrays under the parts of their paths."""


class Damaged(ValueError):
    """A checkpoint that cannot be read, or that is not what was saved."""


class Checkpoints:
    """The checkpoints of a run's trials. Workers save and restore; the driver alone prunes.

    Args:
        root: RUN/checkpoints.
    """

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())

    def close(self) -> None:
        """Ends what Orbax keeps running."""
        self._orbax.close()

    def steps(self, trial: Trial) -> list[int]:
        """The steps of a trial's checkpoints, latest first."""
        folder = self.root / file_name(trial)
        found = (
            [int(x.name) for x in folder.iterdir() if x.name.isdecimal()] if folder.is_dir() else []
        )
        return sorted(found, reverse=True)

    def save(self, trial: Trial, step: int, trained: Trained, state: Any, meta: Json) -> None:
        """Writes a checkpoint, whole or not at all, in place of one of the same step.

        Args:
            trial: whose.
            step: at which it stands.
            trained: the model; not saved twice, so `state` shall not hold its arrays again.
            state: what else the training loop carries.
            meta: what is no array; JSON.
        """
        target = self.root / file_name(trial) / str(step)
        shutil.rmtree(target, ignore_errors=True)
        arrays = {"trained": nested(trained._asdict()), "state": nested(state)}
        items = {
            name: ocp.args.StandardSave(full)
            for name, tree in arrays.items()
            if (full := _full(tree))
        }
        empty = {"empty": made} if (made := _empty(arrays["trained"])) else {}
        told = ocp.args.JsonSave({"digest": digest(arrays), **empty, **meta})
        try:
            self._orbax.save(target.absolute(), ocp.args.Composite(meta=told, **items))
        except Exception as error:
            # Orbax raises whatever its storage does; what it left takes room that is missing.
            for left in target.parent.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
            raise OSError(
                f"the checkpoint {target} could not be written ({_reason(error)}), and those "
                "before it stand; make room where the disk is full, and give the same command "
                "again: it goes on"
            ) from error

    def restore(
        self, trial: Trial, step: int, trained: Trained, state: Any
    ) -> tuple[Trained, Any, Json]:
        """What was saved.

        Args:
            trial: whose.
            step: one of `steps(trial)`.
            trained: its structure, with shapes and dtypes, and with shardings where it shall not
                lie on the first device.
            state: likewise.

        Raises:
            Damaged: where it cannot be read, or is not what was saved.
        """
        like = {"trained": nested(trained._asdict()), "state": nested(state)}
        items = {
            name: ocp.args.StandardRestore(_placed(full))
            for name, tree in like.items()
            if (full := _full(tree))
        }
        path = self.root / file_name(trial) / str(step)
        try:
            found = self._orbax.restore(
                path.absolute(), ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
            )
            arrays: Nested = {
                name: _completed(found[name] if name in items else {}, _empty(tree))
                for name, tree in like.items()
            }
            if digest(arrays) != found["meta"]["digest"]:
                raise ValueError("its values are not those that were saved")
        except Exception as error:  # noqa: BLE001 - Orbax raises whatever its storage does.
            raise Damaged(f"the checkpoint {path} is damaged ({_reason(error)})") from None
        made = Trained(**filled(trained._asdict(), arrays["trained"]))
        return made, filled(state, arrays["state"]), found["meta"]

    def read(self, trial: Trial, step: int) -> tuple[Nested, Json]:
        """The trained model of a checkpoint as nested dictionaries, and what was saved with it.

        Raises Damaged, with the remedy, where it cannot be read.
        """
        path = (self.root / file_name(trial) / str(step)).absolute()
        try:
            shapes = ocp.StandardCheckpointHandler().metadata(path / "trained").tree
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
            found = self._orbax.restore(
                path,
                ocp.args.Composite(
                    meta=ocp.args.JsonRestore(), trained=ocp.args.StandardRestore(_placed(like))
                ),
            )
            meta = found["meta"]
            return _completed(found["trained"], meta.get("empty", [])), meta
        except Exception as error:  # noqa: BLE001 - as in `restore`.
            raise Damaged(
                f"the checkpoint {path} is damaged ({_reason(error)}); restore it, or delete that "
                "folder and give the run's command again, which goes on from the one before"
            ) from None

    def prune(self, trial: Trial, step: int, keep: int = KEPT) -> None:
        """Removes all but the latest checkpoints up to a step; later ones are somebody's work in
        progress.
        """
        for old in [each for each in self.steps(trial) if each <= step][keep:]:
            self._remove(trial, old)

    def cut(self, trial: Trial, step: int) -> None:
        """Removes a trial's checkpoints after a step: what they follow was never put on record."""
        for later in [each for each in self.steps(trial) if each > step]:
            self._remove(trial, later)

    def sweep(self) -> None:
        """Removes what saves that were interrupted left."""
        for left in self.root.glob("*/*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)

    @property
    def bytes(self) -> int:
        """What all of them take on the disk."""
        return sum(x.stat().st_size for x in self.root.rglob("*") if x.is_file())

    def _remove(self, trial: Trial, step: int) -> None:
        folder = self.root / file_name(trial)
        shutil.rmtree(folder / str(step), ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def nested(tree: Any) -> Nested:
    """The leaves of any pytree as nested dictionaries."""
    found: Nested = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        *parts, last = [_name(key) for key in keys] or [""]
        at = found
        for part in parts:
            at = at.setdefault(part, {})
        at[last] = jnp.asarray(leaf) if isinstance(leaf, int | float) else leaf
    return found


def _full(tree: Nested) -> Nested:
    """Nested dictionaries without arrays that have no entries: Orbax writes none."""
    inner = {name: _full(x) if isinstance(x, dict) else x for name, x in tree.items()}
    return {name: x for name, x in inner.items() if (x if isinstance(x, dict) else x.size)}


def _empty(tree: Nested) -> list[list[Any]]:
    """Of arrays without entries, as of a stack of no layers, the path, shape and dtype."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    told = [[[_name(key) for key in keys], [*x.shape], str(x.dtype)] for keys, x in leaves]
    return [one for one in told if 0 in one[1]]


def _completed(tree: Nested, empty: Sequence[Sequence[Any]]) -> Nested:
    """Nested dictionaries with the arrays that `_empty` tells of."""
    for (*parts, last), shape, dtype in empty:
        at = tree
        for part in parts:
            at = at.setdefault(part, {})
        at[last] = jnp.zeros(shape, dtype)
    return tree


def filled(like: Any, values: Mapping[str, Any]) -> Any:
    """The tree `like`, its leaves taken from nested dictionaries."""

    def leaf(keys: Sequence[Any], _: Any) -> Any:
        at: Any = values
        for key in keys or [""]:
            at = at[_name(key) if keys else ""]
        return at

    return jax.tree_util.tree_map_with_path(leaf, like)


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _placed(tree: Any) -> Any:
    """Shapes that say where their arrays shall lie."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        at = getattr(x, "sharding", None) or here
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)

    return jax.tree.map(placed, tree)
