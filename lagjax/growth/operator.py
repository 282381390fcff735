"""The one composition: depth, width, experts and fusion, together or alone, are one growth
operator.

What each of them does stands in its own file as data, a word or a map; here they become a Plan, and
the Plan the parameters. Two more operators grow nothing, `Same` and `FromScratch`: what every
growth is to be compared with.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Layout, Params
from lagjax.algebra.plan import Perturb, Plan
from lagjax.algebra.words import Word
from lagjax.buffers import own
from lagjax.growth import fusion
from lagjax.growth.depth import DepthLike, words
from lagjax.growth.experts import Upcycle
from lagjax.growth.width import WidthLike, maps
from lagjax.model import Key, Linear, Model


@dataclass(frozen=True, kw_only=True, repr=False)
class Grow:
    """Grows a model: `Grow(depth=Stack())`, `Grow(width={"mlp": Net2Net()})`, or several at once.

    What a larger target asks for and no field says is an error that names it. Exact where
    `plan(...).exact_by_table` says so and what `plan(...).requires` names is met.

    Attributes:
        depth: a strategy, a word as text (`"0 0* 1 1*"`), or stack → either: `{"encoder": Stack(),
            "decoder": "0 0* 1"}`.
        width: an expansion for every axis that differs in size, one for each kind of axis
            (`ByKind`), or axis → expansion.
        experts: makes a mixture of experts of a dense net.
        fuse: takes a tuple of models instead of one, and puts them beside each other along every
            axis that grows (Deep Fusion, `lagjax.growth.fusion`): `Grow(fuse=True)(key, (params,
            others), source.axes, target)`.
        perturb: shrinks all that is grown, pads it with zeros and adds the target's initialisation
            (shrink, zero-pad, perturb): `Grow(depth=Fresh(), width=ZeroPad(), perturb=Perturb(0.4,
            1.0))`. Never exact, but for (1, 0).
    """

    depth: DepthLike | None = None
    width: WidthLike | None = None
    experts: Upcycle | None = None
    fuse: bool = False
    perturb: Perturb | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            if isinstance(given := getattr(self, name), Mapping):
                # Operators are hashed: equal ones compile once.
                object.__setattr__(self, name, tuple(given.items()))
        # A word that is none shall not wait for its first plan to say so.
        depth = self.depth
        for each in [how for _, how in depth] if isinstance(depth, tuple) else [depth]:
            if isinstance(each, str):
                Word.parse(each)
        if self.fuse and any(x is not None for x in (self.width, self.experts, self.perturb)):
            raise ValueError(
                f"{self}: fused models lie beside each other along every axis that grows; leave "
                "out width=, experts= and perturb="
            )
        if self.perturb and not np.isfinite([self.perturb.shrink, self.perturb.noise]).all():
            raise ValueError(f"{self.perturb}: a factor is not finite; give two numbers")

    def __repr__(self) -> str:
        written = []
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) != field.default:
                named = dict(value) if isinstance(value, tuple) else value
                written.append(f"{field.name}={named!r}")
        return f"{type(self).__qualname__}({', '.join(written)})"

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params:
        """The grown parameters; raises ValueError as `plan` does, and for sources that cannot be
        fused.
        """
        if not self.fuse:
            return grow(self, key, params, source, target)
        layout = fusion.common(params, source)
        plan = self.plan(key, layout, target.layout())
        return fusion.fused(plan, params, target.init(key))

    def plan(self, key: Key, source: Layout, target: Layout, /) -> Plan:
        """The word of every stack and the map of every axis; of a fusion, what becomes of a model
        fused with itself.

        Raises ValueError for a stack or an axis that shrinks, or grows though nothing says how, and
        as the strategies do.
        """
        routers = self.experts.routers(source, target) if self.experts else frozenset()
        # Layers are compared by their parameters, of which the source's lack the router.
        dense = dataclasses.replace(
            target, leaves=tuple(leaf for leaf in target.leaves if leaf.name not in routers)
        )
        made = self.experts.maps(source, target) if self.experts else {}
        layers = words(self.depth, source, dense)
        made |= fusion.maps(source, target) if self.fuse else maps(self.width, source, target)
        return Plan(source, target, layers, made, key, routers, self.perturb)


@dataclass(frozen=True)
class Same:
    """Not growing: the small model as it is. A baseline, whose target is the small model."""

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params:
        return grow(self, key, params, source, target)

    def plan(self, key: Key, source: Layout, target: Layout, /) -> Plan:
        """Nothing changes; raises ValueError for a target that is another model."""
        try:
            return Grow().plan(key, source, target)
        except ValueError as error:
            raise ValueError(
                f"{self} grows nothing, so that its target must be the small model itself: {error}"
            ) from None


@dataclass(frozen=True)
class FromScratch:
    """The target's own initialisation, whatever the small model has learned. A baseline."""

    def __call__(self, key: Key, params: Params, source: Axes, target: Model, /) -> Params:
        del params, source
        return target.init(key)


def grow(operator: Linear, key: Key, params: Params, source: Axes, target: Model) -> Params:
    """Applies a linear operator: its `__call__`, in one line.

    `target.init` runs whole when called eagerly; under `jax.jit`, fresh values that the plan does
    not use cost nothing.
    """
    plan = operator.plan(key, source.layout(params), target.layout())
    return own(plan.params(params, target.init(key)), params)
