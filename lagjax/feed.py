"""The batches of a task, looked at on their way: all of one shape, and a pure function of seed and
step.

Candidates are compared on the same batches, and a run that was interrupted goes on with them. A
loader that draws from a global generator, or that iterates, gives each candidate others without a
word; so batches are remembered by digest and compared when they are asked for again.
"""

from collections.abc import Callable

import jax
import numpy as np

from lagjax.arguments import inside
from lagjax.fingerprint import described, digest
from lagjax.model import Batch

EVERY = 16
"""Steps between those whose batches are remembered: hashing a batch of images takes its time."""
AGAIN = 128
"""Calls after which a remembered batch is asked for again, even where there is one candidate."""


class Feed:
    """`batch(seed, step)` of a task, checked.

    Args:
        batch: the caller's function.

    Raises:
        ValueError: with the function, seed and step, where it raises, gives something that is no
            batch or is of another shape than the first, or another batch than before.
    """

    def __init__(self, batch: Callable[[int, int], Batch]) -> None:
        self._batch, self._name = batch, f"the batch function {described(batch)}"
        self._like: object = None
        self._seen: dict[tuple[int, int], str] = {}
        self._calls = 0

    def __call__(self, seed: int, step: int) -> Batch:
        found = self._ask(seed, step)
        if self._calls % AGAIN == 0:
            places = list(self._seen)
            self._ask(*places[self._calls // AGAIN % len(places)])
        self._calls += 1
        return found

    def _ask(self, seed: int, step: int) -> Batch:
        where = f"{self._name}, asked for seed {seed} and step {step},"
        with inside(where):
            found = self._batch(seed, step)
        like = form(found, f"{where} returned")
        self._like = like if self._like is None else self._like
        if like != self._like:
            raise ValueError(
                f"{where} returned arrays of {like}; those before were of {self._like}. One "
                "program is compiled for all steps: pad the batches to one shape"
            )
        if step % EVERY == 0 or not self._seen:
            now = digest(found)
            if self._seen.setdefault((seed, step), now) != now:
                raise ValueError(
                    f"{where} returned another batch than before; candidates are compared on the "
                    "same batches, and an interrupted run goes on with them. Make it a pure "
                    "function of its two arguments: draw from np.random.default_rng((seed, step)) "
                    "and index the data instead of iterating over it"
                )
        return found


def form(batch: Batch, what: str) -> str:
    """A batch's structure, shapes and dtypes as text; raises ValueError where it holds no arrays,
    or something else.
    """
    leaves = jax.tree_util.tree_leaves_with_path(batch, is_leaf=lambda x: x is None)
    if not leaves:
        raise ValueError(f"{what} {batch!r}, which holds no arrays; expected a pytree of arrays")
    for path, leaf in leaves:
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array) or leaf.dtype.kind in "OSU":
            found = f"{type(leaf).__name__} {str(leaf)[:40]}"
            raise ValueError(
                f"{what} {found} at {jax.tree_util.keystr(path) or 'its top'}; expected a pytree "
                "of numeric arrays, as np.asarray makes them of lists"
            )
    return str(jax.tree.map(lambda x: f"{jax.dtypes.canonicalize_dtype(x.dtype)}{x.shape}", batch))
