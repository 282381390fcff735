"""Operators that take nothing or everything."""

from dataclasses import dataclass

from lagjax.algebra.axes import Axes, Params
from lagjax.model import Key, Model


@dataclass(frozen=True)
class FromScratch:
    """The target as it is initialised; a baseline."""

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params:
        return target.init(key)
