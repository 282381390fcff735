"""Pools: the named operators to choose among."""

from collections import Counter
from typing import NamedTuple

import jax

from lagjax.axes import Axes, Params
from lagjax.growth.depth import (
    Block,
    Depth,
    Fresh,
    Interleave,
    Last,
    Lidas,
    Midas,
    Overlap,
    Reversed,
    Scaled,
    Shuffled,
    Stack,
    Strategy,
)
from lagjax.growth.plan import Growth
from lagjax.model import Model


class Candidate(NamedTuple):
    """An operator applied to one small model.

    Attributes:
        name: in tables, curves and checkpoints.
        operator: fills the target's parameters.
        target: the large model; candidates of one target are probed under one compiled step.
        control: it is only there to be beaten, and cannot win.
        fit_flops: what making the operator cost, for the ledger.
    """

    name: str
    operator: Growth
    target: Model
    control: bool = False
    fit_flops: float = 0.0


DEPTH: dict[str, Strategy] = {
    "zeroed-interleave": Scaled(Interleave()),
    "zeroed-stack": Scaled(Stack()),
    "stack": Stack(),
    "half-stack": Scaled(Stack(), 0.5),
    "overlap": Overlap(),
    "lidas": Lidas(),
    "interleave": Interleave(),
    "midas": Midas(),
    "identity-between": Fresh("between", zero=True),
    "random-between": Fresh("between"),
    "last": Last(),
    "identity-top": Fresh("top", zero=True),
    "random-top": Fresh("top"),
    "random-middle": Fresh("middle"),
    "random-bottom": Fresh("bottom"),
}
"""The strategies of the literature by name. Their order breaks ties, and is that of a first experience: one small
model on one text, copies before fresh layers, in between before on top. It is a prior and no result."""

CONTROLS: dict[str, Strategy] = {"reversed": Reversed(), "shuffled": Shuffled()}
"""Strategies that destroy the order of the layers: what any other should beat."""


def depth(
    params: Params, source: Axes, target: Model, controls: bool = True
) -> tuple[Candidate, ...]:
    """The depth pool: `DEPTH`, each third of the net copied after itself, and one control.

    Strategies that come to the same word for these depths are one candidate, under the first name.

    Args:
        params: the small model's parameters, or their shapes.
        source: its axes table.
        target: the large model.
        controls: whether the reversed stack takes part.
    """
    key = jax.random.key(0)
    small = source.layout(params)
    large = target.axes.layout(jax.eval_shape(target.init, key))
    # A block lies within layers of one kind; of the kinds that grow, the one with the fewest layers sets the limit.
    layers = min(
        (
            count
            for stack in small.stacks.keys() & large.stacks.keys()
            for kind, count in Counter(small.layer_kinds(stack)).items()
            if large.layer_kinds(stack).count(kind) > count
        ),
        default=1,
    )
    size = max(1, layers // 3)
    blocks: dict[str, Strategy] = {
        f"block-{start}": Block(start, size)
        for start in range(0, layers - size + 1, size)
    }
    strategies: dict[str, Strategy] = {}
    for name, strategy in DEPTH.items():
        strategies |= {name: strategy} | (blocks if name == "midas" else {})
    pool: dict[tuple[tuple[str, object], ...], Candidate] = {}
    for name, strategy in strategies.items():
        operator = Depth(strategy)
        words = tuple(operator.plan(key, small, large).words.items())
        pool.setdefault(words, Candidate(name, operator, target))
    if controls:
        reverse = Depth(CONTROLS["reversed"])
        words = tuple(reverse.plan(key, small, large).words.items())
        # One layer has no order to destroy.
        pool.setdefault(words, Candidate("reversed", reverse, target, control=True))
    return tuple(pool.values())
