"""What a result is known again by: a digest of arrays, how a value prints, and the versions of the
software.
"""

import functools
import hashlib
import os
import pathlib
import platform
import re
import subprocess
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PACKAGES = ("lagjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def digest(tree: Any) -> str:
    """A hash of a tree's structure, shapes, dtypes and values."""
    found = hashlib.blake2b(digest_size=16)
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        found.update(f"{jax.tree_util.keystr(keys)} {array.dtype} {np.shape(leaf)}".encode())
        found.update(array.view(np.uint8).data if array.size else b"")
    return found.hexdigest()


def described(value: object) -> str:
    """How a value prints, without addresses, which no two processes share: a function is its
    name.
    """
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def versions() -> dict[str, str | None]:
    """Of lagjax, with its commit, of Python and of the packages that numbers depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str | None]:
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def _commit() -> str | None:
    """The commit of the checkout that lagjax is imported from, `+` where it was changed; None
    outside a checkout.
    """
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        found = subprocess.run(
            [*git, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            check=False,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def environment() -> dict[str, object]:
    """Where the run is made: versions, device, cores."""
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "device": f"{device.platform}: {device.device_kind} × {jax.device_count()}",
        "cores": _cores(),
    }


def _cores() -> int | None:
    """Those that this process may use, where the system says it; macOS does not."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
