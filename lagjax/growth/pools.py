"""Pools: the named operators to choose among."""

from collections import Counter
from collections.abc import Callable, Sequence

import jax

from lagjax.algebra.axes import Axes
from lagjax.algebra.layout import Params
from lagjax.algebra.proof import Requirement
from lagjax.growth.depth import (
    Block,
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
from lagjax.growth.operator import Grow
from lagjax.growth.width import (
    Aki,
    Average,
    BlockDiagonal,
    ByKind,
    Centred,
    Isometric,
    Net2Net,
    NoisySplit,
    Paired,
    RandomIn,
    RandomPad,
    Tile,
    ZeroPad,
)
from lagjax.model import Model
from lagjax.task import Candidate, Transfer

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
"""The strategies of the literature by name. Their order breaks ties, and is that of a first
experience: one small model on one text, copies before fresh layers, in between before on top. It is
a prior and no result.
"""

FROM_NONE: dict[str, Strategy] = {
    "zeroed": Fresh(zero=True),
    "half": Scaled(Fresh(), 0.5),
    "random": Fresh(),
}
"""The strategies for a source that has no layers in some stack, and so none to copy (Bu 2025, arXiv
2511.04981, who adds random ones).
"""

_NOISE = NoisySplit()
WIDTH: dict[str, ByKind] = {
    "isometric": ByKind(Isometric(_NOISE), Net2Net(split=_NOISE), ZeroPad(), layer=Average(_NOISE)),
    "zero-pad": ByKind(ZeroPad(), RandomIn(), ZeroPad(), layer=Centred()),
    "paired": ByKind(ZeroPad(), Paired(), ZeroPad(), layer=Centred()),
    "tile-noise": ByKind(Tile(_NOISE), Tile(_NOISE), Tile(_NOISE)),
    "block-diagonal": ByKind(BlockDiagonal(), BlockDiagonal(), ZeroPad()),
    "tile": ByKind(Tile(), Tile(), Tile()),
    "net2net": ByKind(Net2Net(), Net2Net(), ZeroPad()),
    "aki": ByKind(Aki(), Aki(), ZeroPad()),
    "random-pad": ByKind(RandomPad(), RandomPad(), RandomPad()),
}
"""The expansions of the literature by name; their order breaks ties: any size before whole
multiples, exact before not.
"""

CONTINUED = Transfer("grow", "continue")
"""The state grown, and the rate where it was."""
CONTROLS: dict[str, Strategy] = {"reversed": Reversed(), "shuffled": Shuffled()}
"""Strategies that destroy the order of the layers: what any other should beat."""


def width(
    params: Params,
    source: Axes,
    target: Model,
    required: Callable[[tuple[Requirement, ...]], Model] | None = None,
    deeper: Strategy | None = None,
    continued: int = 0,
) -> tuple[Candidate, ...]:
    """The width pool: each expansion of `WIDTH` that can grow the one model into the other.

    Args:
        params: the small model's parameters, or their shapes.
        source: its axes table.
        target: the large model.
        required: makes the large model as a plan requires it, with another epsilon say; without it
            candidates whose requirements are not met are only nearly exact.
        deeper: adds layers in the same step.
        continued: how many of the first also take part with the state grown, `both_ways`.

    Raises:
        ValueError: where none can; what each says against it.
    """
    key = jax.random.key(0)
    small = source.layout(params)
    large = target.layout()
    pool, reasons = [], []
    for name, kinds in WIDTH.items():
        operator = Grow(depth=deeper, width=kinds)
        try:
            plan = operator.plan(key, small, large)
        except ValueError as error:
            reasons.append(f"  {name}: {error}")
            continue
        asked = required(plan.requires) if required and plan.requires else target
        pool.append(Candidate(name, operator, asked))
    if not pool:
        raise ValueError("no expansion grows this target:\n" + "\n".join(reasons))
    return both_ways(pool, continued)


def both_ways(
    pool: Sequence[Candidate],
    best: int = 3,
    transfer: Transfer = CONTINUED,
) -> tuple[Candidate, ...]:
    """A pool whose first candidates also take part with another transfer, `"stack, continued"`: an
    operator may start better with the small model's state and rate than reset and warmed up anew.

    `run` refuses these where the small model has no optimizer state.

    Args:
        pool: in the order of a prior, as that of `depth` and `width`.
        best: how many of the first whose operator is linear, no controls or baselines.
        transfer: of those that are added, at the end of the pool.
    """
    linear = [one for one in pool if one.role == "candidate" and hasattr(one.operator, "plan")]
    more = [
        one._replace(name=f"{one.name}, continued", transfer=transfer)
        for one in linear[: max(best, 0)]
    ]
    return (*pool, *more)


def depth(
    params: Params, source: Axes, target: Model, controls: bool = True, continued: int = 0
) -> tuple[Candidate, ...]:
    """The depth pool: `DEPTH`, each third of the net copied after itself, and one control; where a
    stack of the source has no layers, `FROM_NONE`.

    Strategies that come to the same word for these depths are one candidate, under the first name.

    Args:
        params: the small model's parameters, or their shapes.
        source: its axes table.
        target: the large model.
        controls: whether the reversed stack takes part.
        continued: how many of the first also take part with the state grown, `both_ways`.
    """
    key = jax.random.key(0)
    small = source.layout(params)
    large = target.layout()
    # A block lies within layers of one kind; of the kinds that grow, the one with the fewest layers
    # sets the limit.
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
        f"block-{start}": Block(start, size) for start in range(0, layers - size + 1, size)
    }
    strategies: dict[str, Strategy] = {}
    # Only fresh layers can be added to none.
    none = not all(small.stacks.values())
    for name, strategy in (FROM_NONE if none else DEPTH).items():
        strategies |= {name: strategy} | (blocks if name == "midas" else {})
    pool: dict[tuple[tuple[str, object], ...], Candidate] = {}
    for name, strategy in strategies.items():
        operator = Grow(depth=strategy)
        words = tuple(operator.plan(key, small, large).words.items())
        pool.setdefault(words, Candidate(name, operator, target))
    if controls and not none:
        reverse = Grow(depth=CONTROLS["reversed"])
        words = tuple(reverse.plan(key, small, large).words.items())
        # One layer has no order to destroy.
        pool.setdefault(words, Candidate("reversed", reverse, target, role="control"))
    return both_ways(tuple(pool.values()), continued)
