"""A small run, as the cases of runs make it; the net and its data are tests/toy.py's."""

import functools
import pathlib
from collections.abc import Callable

import numpy as np
import optax

import lagjax
from tests import toy

# One optimizer of a rate, so that runs of it are alike.
adam = functools.cache(optax.adam)
Feed = Callable[[int, int], np.ndarray]


def source(
    path: pathlib.Path | str, steps: int = 32, rate: float = 1e-2, **options: object
) -> lagjax.Trained:
    """The small model, trained in a run directory; the large one begins with the first batch."""
    options = {"progress": toy.Told()} | options
    tx = adam(rate)
    made = lagjax.train(toy.SMALL, tx, toy.batch, toy.VALID, steps, path, **options)
    return made._replace(position=0)


def search(
    path: pathlib.Path | str,
    trained: lagjax.Trained,
    *names: str,
    rate: float = 1e-2,
    batch: Feed = toy.batch,
    horizon: int = 32,
    lag: int = 8,
    **options: object,
) -> lagjax.Decision:
    """A run of the candidates of these names, or of `pool`."""
    pool = options.pop("pool", None) or toy.pool(*(names or ("stack", "zeroed-stack")))
    policy = options.pop("policy", lagjax.FixedLag(lag))
    task = lagjax.Task(
        options.pop("model", toy.SMALL),
        trained,
        adam(rate),
        batch,
        options.pop("valid", toy.VALID),
        horizon,
        **{name: options.pop(name) for name in ("seeds", "engine") if name in options},
    )
    options = {"candidates_at_once": 1, "progress": toy.Told()} | options
    return lagjax.run(task, pool, policy, path, **options)
