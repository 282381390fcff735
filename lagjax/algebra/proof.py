"""Proofs: whether a plan keeps the function, from table and plan alone, and what it asks of the large model.

A residual stream allows any R that its norm does not notice. With x' = R x and columns of R of one norm κ, RMSNorm gives
R times what it gave, once its scale is multiplied by s = √(κ d/D) and its epsilon by s². LayerNorm also needs (I − J) R = S (I − J), J the
mean and S the copies of R. A tied head computes Rᵀ S = κ I times the logits. Other axes allow what their kind says.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from lagjax.algebra.axes import Dot, Elementwise, Experts, Leaf, Lookup, Residual
from lagjax.algebra.maps import AxisMap

if TYPE_CHECKING:
    from lagjax.algebra.plan import Plan

ZERO_AT_ZERO = (
    "gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
    "identity",
    "attention",
    "gelu_new",
    "gelu_pytorch_tanh",
)
"""Activations that map 0 to 0, so that an entry that nothing writes stays 0."""


class Violation(NamedTuple):
    """Why a plan does not keep the function: the axis or stack, the parameter where one is to blame, the reason."""

    axis: str
    leaf: str | None
    why: str
    small: bool = False
    """Whether the function changes by noise of a chosen size only."""

    def __str__(self) -> str:
        return f"{self.axis!r}{f' in {self.leaf}' if self.leaf else ''}: {self.why}"


class Requirement(NamedTuple):
    """What the large model must do differently for a plan to be exact.

    Attributes:
        what: `epsilon` of the norms or `logits`, to be multiplied by the value; `top`, the number of experts a token takes, likewise;
            `frequencies` of rotary positions, the value says for each new pair which old pair's frequency it has, or −1 for any;
            `inputs`: what is preserved holds for inputs that use the old entries only.
        axis: the axis that asks for it.
        value: the factor, the pairs, or the number of old entries.
    """

    what: Literal["epsilon", "logits", "top", "frequencies", "inputs"]
    axis: str
    value: float | tuple[int, ...]

    def __str__(self) -> str:
        value = f"{self.value:g}" if isinstance(self.value, int | float) else "of old pairs"
        return (
            f"{self.what} {'of the first' if self.what == 'inputs' else '×'} {value} ({self.axis})"
        )


def violations(plan: "Plan") -> tuple[Violation, ...]:
    """Why the plan does not keep the function; none where it does, the requirements met."""
    found = [*_layers(plan)]
    for axis, grown in plan.maps.items():
        found += _axis(plan, axis, grown)
    # Unrolled layers say the same.
    return tuple(dict.fromkeys(found))


def requirements(plan: "Plan") -> tuple[Requirement, ...]:
    """What the large model must do differently: an epsilon, a multiplier of the logits, a table of frequencies."""
    found: list[Requirement] = []
    for axis, grown in plan.maps.items():
        kind = plan.target.kinds.get(axis)
        if isinstance(kind, Residual):
            if kind.norm and not np.isclose(grown.stretch, 1, rtol=1e-12):
                found.append(Requirement("epsilon", axis, grown.stretch**2))
            norm = grown.norms.mean()
            if _tied(plan, axis) and not np.isclose(norm, 1, rtol=1e-12):
                found.append(Requirement("logits", axis, float(1 / norm)))
        elif isinstance(kind, Dot) and kind.rope and not grown.identity:
            found.append(Requirement("frequencies", axis, tuple(_pairs(grown, kind)[0].tolist())))
        elif isinstance(kind, Experts) and axis in plan.source.sizes:
            if (times := grown.new / grown.old) != 1:
                found.append(Requirement("top", axis, times))
        elif isinstance(kind, Lookup) and grown.new > grown.old and not _written(plan, axis):
            found.append(Requirement("inputs", axis, grown.old))
    return tuple(found)


def _layers(plan: "Plan") -> Iterator[Violation]:
    """Every layer that is not an original in its place must have zeroed residual outputs, on an axis that is pre-norm.

    A row that writes this axis without the mark `+` may be an output that was forgotten, and keeps its values: nothing is
    claimed then.
    """
    for stack, word in plan.words.items():
        kept = [layer for layer in word.layers if layer.scale != 0]
        originals = list(range(plan.source.stacks[stack]))
        if [(layer.source, layer.scale) for layer in kept] != [(index, 1.0) for index in originals]:
            yield Violation(stack, None, f"the word '{word}' adds layers that do something")
        elif len(kept) < len(word.layers):
            for leaf in plan.target.leaves:
                if stack in leaf.stacks:
                    yield from _added(plan, stack, leaf)


def _added(plan: "Plan", stack: str, leaf: Leaf) -> Iterator[Violation]:
    for dim in leaf.dims:
        kinds = [
            kind for axis in dim.names if isinstance(kind := plan.target.kinds.get(axis), Residual)
        ]
        if dim.residual and not any(kind.pre for kind in kinds):
            yield Violation(
                stack,
                leaf.name,
                "a layer that adds nothing is the identity in a pre-norm net only; say it by kinds: Residual(..., pre=True)",
            )
        if dim.role == ">" and kinds and not dim.residual:
            yield Violation(
                stack,
                leaf.name,
                f"writes {dim} without the mark '+', and would not be zeroed",
            )


def _axis(plan: "Plan", axis: str, grown: AxisMap) -> Iterator[Violation]:
    kind = plan.target.kinds.get(axis)
    leaves = [(leaf, role) for leaf in plan.target.leaves for role in _roles(leaf, axis)]
    copied = ~grown.fresh
    if grown.ahead.any():
        yield Violation(axis, None, "copies come from the next layer")
    if grown.jitter:
        yield Violation(
            axis,
            None,
            f"copies have noise of {grown.jitter:g} of the parameters' size",
            small=True,
        )
    shares = np.bincount(grown.source[copied], grown.share[copied], grown.old)
    read = any(role == "<" for _, role in leaves) and not isinstance(kind, Lookup)
    if read and not np.allclose(shares, 1, rtol=1e-12):
        yield Violation(
            axis,
            _first(leaves, "<"),
            "the shares in which copies are read do not sum to 1",
        )
    if isinstance(kind, Residual):
        yield from _residual(plan, axis, grown, kind)
    elif isinstance(kind, Lookup):
        yield from _lookup(axis, grown, leaves)
    elif isinstance(kind, Experts):
        if grown.fresh.any() or len(set(grown.counts)) > 1:
            yield Violation(
                axis,
                None,
                "every expert must have equally many copies, and none can be new",
            )
        if (grown.scale[copied] != 1).any() or grown.mean.any():
            yield Violation(
                axis,
                None,
                "copies are scaled, which the softmax over the router's logits notices",
            )
    elif kind is None:
        yield Violation(
            axis,
            leaves[0][0].name,
            f"its kind is not known; say it in the table: kinds={{{axis!r}: ...}}",
        )
    else:
        if not read:
            yield Violation(
                axis,
                leaves[0][0].name,
                "nothing reads along it; mark what does with '<', a key too: '<embed >heads <qk'",
            )
        if isinstance(kind, Dot):
            yield from _dot(axis, grown, kind, leaves)
        else:
            yield from _elementwise(plan, axis, grown, kind)
    if not isinstance(kind, Lookup | Experts):
        yield from _fresh(axis, grown, leaves)


def _residual(plan: "Plan", axis: str, grown: AxisMap, kind: Residual) -> Iterator[Violation]:
    copied = ~grown.fresh
    if not np.allclose(grown.norms, grown.norms[0], rtol=1e-12) and kind.norm:
        yield Violation(
            axis,
            None,
            "entries are copied unequally often, which the norm notices; Isometric() scales copies for it",
        )
        return
    if grown.writes[grown.fresh].any():
        yield Violation(
            axis,
            None,
            "new entries of the residual stream are written, and the norm notices",
        )
    if grown.mean.any() and not kind.pre:
        yield Violation(
            axis,
            None,
            "what is read after the norm differs from the stream, which only a pre-norm net allows",
        )
    if kind.norm == "layer":
        totals = np.bincount(grown.source[copied], grown.scale[copied], grown.old)
        t = (totals + grown.mean.sum() / grown.old) * grown.old / grown.new
        wanted = np.where(copied, t[0] - grown.scale, t[0])
        if not np.allclose(t, t[0], rtol=1e-12) or not np.allclose(
            grown.mean, wanted, rtol=1e-12, atol=1e-12
        ):
            yield Violation(
                axis,
                None,
                "the mean that LayerNorm subtracts changes; Average(), Centred() or a whole multiple keep it",
            )
    elif grown.mean.any():
        yield Violation(axis, None, "adding means changes what RMSNorm measures")
    tied = _tied(plan, axis)
    if tied and grown.mean[copied].any():
        yield Violation(
            axis,
            tied.name,
            "the table is tied: as the head it would have to read what it does not write",
        )


def _lookup(axis: str, grown: AxisMap, leaves: list[tuple[Leaf, str]]) -> Iterator[Violation]:
    kept = np.array_equal(grown.source[: grown.old], np.arange(grown.old))
    if not kept or (grown.scale[: grown.old] != 1).any():
        yield Violation(axis, leaves[0][0].name, "old entries must keep their places and values")
    for leaf, role in leaves:
        if role in ("=", ">") and grown.new > grown.old:
            yield Violation(axis, leaf.name, "new outputs take part of the softmax's mass")


def _dot(
    axis: str, grown: AxisMap, kind: Dot, leaves: list[tuple[Leaf, str]]
) -> Iterator[Violation]:
    for leaf, role in leaves:
        if role in ("", "+"):
            yield Violation(
                axis,
                leaf.name,
                "acts elementwise between the projection and the product; no rule is known",
            )
    if grown.mean.any():
        yield Violation(axis, None, "means are no copies")
    if kind.rope:
        first, second = _pairs(grown, kind)
        scales = grown.scale.reshape((2, -1) if kind.rope == "half" else (-1, 2))
        equal = scales[0] == scales[1] if kind.rope == "half" else scales[:, 0] == scales[:, 1]
        if not np.array_equal(first, second) or not equal.all():
            yield Violation(axis, None, "the two halves of a rotated pair grow differently")


def _elementwise(plan: "Plan", axis: str, grown: AxisMap, kind: Elementwise) -> Iterator[Violation]:
    copied = ~grown.fresh
    if kind.activation != "identity" and ((grown.scale[copied] != 1).any() or grown.mean.any()):
        yield Violation(axis, None, f"{kind.activation} is not linear: copies must be whole")
    silent = grown.fresh & (grown.writes == 0) & (grown.reads != 0)
    if silent.any() and kind.activation not in ZERO_AT_ZERO:
        yield Violation(
            axis,
            None,
            f"new entries are 0, and {kind.activation} of 0 is not known to be 0",
        )
    if silent.any() and kind.activation == "attention":
        for leaf in _shared_values(plan, axis):
            yield Violation(
                axis,
                leaf,
                "new heads attend to values that they share with others and that are not 0; RandomIn() leaves them unread",
            )


def _shared_values(plan: "Plan", axis: str) -> list[str]:
    """What writes the values of heads along an axis without having it itself: queries of a group share theirs."""
    parts = []
    for leaf in plan.target.leaves:
        for part in range(max((len(dim.parts) for dim in leaf.dims), default=0)):
            at = [(dim, part if len(dim.parts) > 1 else 0) for dim in leaf.dims]
            roles = [pair for dim, i in at for pair in zip(dim.parts[i], dim.roles(i))]
            parts.append((leaf.name, roles))
    values = {
        name
        for _, roles in parts
        if (axis, "<") in roles
        for name, role in roles
        if role == "<" and plan.target.kinds.get(str(name)) != Elementwise("attention")
    }
    return [
        leaf
        for leaf, roles in parts
        if any((name, ">") in roles for name in values) and axis not in {name for name, _ in roles}
    ]


def _fresh(axis: str, grown: AxisMap, leaves: list[tuple[Leaf, str]]) -> Iterator[Violation]:
    """What readers take of new entries must cancel over those that hold the same."""
    totals = np.zeros(grown.new)
    np.add.at(totals, grown.twin[grown.fresh], (grown.writes * grown.reads)[grown.fresh])
    if not np.allclose(totals, 0, atol=1e-12):
        yield Violation(axis, _first(leaves, "<"), "new entries are written and read")


def _pairs(grown: AxisMap, kind: Dot) -> tuple[np.ndarray, np.ndarray]:
    """For each new rotated pair the old one, as its first and as its second half tell it; −1 for a new one."""
    half = grown.old // 2
    if kind.rope == "half":
        first, second = grown.source.reshape(2, -1)
        return first, np.where(second < 0, -1, second - half)
    first, second = grown.source.reshape(-1, 2).T
    return np.where(first < 0, -1, first // 2), np.where(second < 0, -1, (second - 1) // 2)


def _roles(leaf: Leaf, axis: str) -> list[str]:
    return [
        role
        for dim in leaf.dims
        for part, names in enumerate(dim.parts)
        for name, role in zip(names, dim.roles(part))
        if name == axis
    ]


def _first(leaves: list[tuple[Leaf, str]], role: str) -> str | None:
    return next((leaf.name for leaf, other in leaves if other == role), None)


def _tied(plan: "Plan", axis: str) -> Leaf | None:
    """The table that is both written along the axis and read as the head."""
    return next(
        (
            leaf
            for leaf in plan.target.leaves
            if any("=" in dim.roles(part) for dim in leaf.dims for part in range(len(dim.parts)))
            and ">" in _roles(leaf, axis)
        ),
        None,
    )


def _written(plan: "Plan", axis: str) -> bool:
    return any(role in ("=", ">") for leaf in plan.target.leaves for role in _roles(leaf, axis))
