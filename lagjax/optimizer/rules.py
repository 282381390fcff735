"""Rules: what becomes of each part of an optimizer's state when the model grows."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import optax

from lagjax.algebra.layout import Params

OptState: TypeAlias = Any
Given: TypeAlias = Literal[0, 1, 2, "keep", "anew", "schedule"]
"""A rule that a user gives."""


class Rule(NamedTuple):
    """What becomes of one leaf.

    Attributes:
        kind: "statistic", which grows as its parameter's gradient; "kept" with the statistics
            beside it, as it is; "schedule", which begins where the caller says; "anew"; "refused".
        power: the order of a statistic in the gradient.
        odd: it changes sign with the gradient.
        growth: its order in the factors of a `scale_by_growth` that stands before it.
        start: the value from which it starts and which it keeps, beside what gradients add to it.
        counts: a schedule's step count.
        why: it is refused.
    """

    kind: Literal["statistic", "kept", "schedule", "anew", "refused"]
    power: int = 0
    odd: bool = False
    growth: int = 0
    start: float = 0.0
    counts: bool = False
    why: str = ""

    def __str__(self) -> str:
        orders = ("by its sign" if self.odd else "as it is", "by c", "by c²")
        return orders[self.power] if self.kind == "statistic" else self.kind


@functools.partial(jax.tree_util.register_dataclass, data_fields=["state"], meta_fields=["rules"])
@dataclasses.dataclass(frozen=True)
class Ruled:
    """A state with rules of its own: `(pattern of paths, rule)`, the first match wins."""

    state: OptState
    rules: tuple[tuple[str, Given], ...]


def grown_by(
    tx: optax.GradientTransformation, rules: Mapping[str, Given]
) -> optax.GradientTransformationExtraArgs:
    """A transformation that says how its own state grows, where running it does not tell.

    It updates as `tx` does, and may stand anywhere in a chain::

        optax.chain(grown_by(optax.adafactor(None), {".*/v_row|.*/v_col": "anew"}), ...)

    Args:
        tx: what is wrapped.
        rules: pattern → rule. A pattern matches the whole path of a part of the state of `tx`, the
            parameter's left out: `nu`, or `0/nu` in a chain; the first match wins. Rules are the
            order in the gradient, 0, 1 or 2, of what has the parameters' shapes (0: of updates
            whose scale is gone, which change sign with the gradient); "keep", "anew", or
            "schedule", which begins where the caller of `carry` says.

    Raises ValueError for another rule.
    """
    known = Given.__args__  # type: ignore[attr-defined]
    for pattern, rule in rules.items():
        if rule not in known:
            raise ValueError(f"rule {pattern!r}: {rule!r}; expected one of {known}")
    inner, said = optax.with_extra_args_support(tx), tuple(rules.items())

    def init(params: Params) -> Ruled:
        return Ruled(inner.init(params), said)

    def update(
        updates: optax.Updates, state: OptState, params: Params | None = None, **more: Any
    ) -> tuple[optax.Updates, OptState]:
        updates, made = inner.update(updates, state.state, params, **more)
        return updates, Ruled(made, said)

    return optax.GradientTransformationExtraArgs(init, update)
