"""Sparse upcycling: a dense net becomes a mixture of experts, every expert a copy of the MLP it had
(Komatsuzaki et al. 2022, arXiv 2212.05055).

More experts of a mixture are width: `Grow(width={"experts": Tile()})`, exact where each token then
takes as many times more, or `Duplicate()`, where it takes as many as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lagjax.algebra.layout import Layout, Params
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.pieces import pieces_of, split
from lagjax.model import Batch, Model, mean_loss


@dataclass(frozen=True)
class Upcycle:
    """Makes a mixture of experts of a dense net: `Grow(experts=Upcycle())`, wider and deeper in the
    same step where asked.

    Exact whatever the fresh router does, where the weights of a token's experts sum to 1 (kind
    `Experts`) and no token is dropped. Where the router's softmax runs over all experts, before the
    choice, they do not: then say no kind.

    Of the dense MLP's gradient an expert receives the part that its tokens' weights make up. The
    parts sum to the whole, so moments begin with a part of 1/N each: right for the first in
    expectation. The second, 1/N², holds where the gradient is the same for all tokens; where it is
    mostly noise it would be 1/(N top), as an expert sees fewer tokens.

    A router of which each token takes one expert, with weight 1, has no gradient: let `top` be 2 at
    least.

    Attributes:
        axis: the experts, which the target's table has and the source's lacks.
        noise: on every copy but the first, relative to the size of the parameter; more than 0 is
            not exact.
    """

    axis: str = "experts"
    noise: float = 0.0

    def maps(self, source: Layout, target: Layout) -> dict[str, AxisMap]:
        """The map of the experts; raises ValueError for a source that has some, and for a target
        without.
        """
        if has := source.having(self.axis):
            raise ValueError(
                f"axis {self.axis!r} is in the source already, in its {has[0]}; to have more of "
                f"them, use Grow(width={{{self.axis!r}: Tile()}})"
            )
        if self.axis not in target.sizes or not target.having(self.axis):
            raise ValueError(
                f"the target has no axis {self.axis!r}, though it should have many for "
                f"{source.leaves[0]} and the source's other leaves to become; its table has "
                f"{sorted(target.sizes)}: name another, Upcycle(axis=...), or mark it"
            )
        experts = np.zeros(target.sizes[self.axis], int)
        return {self.axis: AxisMap(1, experts, jitter=self.noise)}

    def routers(self, source: Layout, target: Layout) -> frozenset[str]:
        """The names of what chooses among the experts: the source has nothing that it could be
        grown from.
        """
        names = {leaf.name for leaf in source.leaves}
        return frozenset(
            leaf.name
            for leaf in target.leaves
            if leaf.name not in names
            and any((self.axis, ">") in piece.axes for piece in pieces_of(leaf.dims))
        )


@dataclass(frozen=True)
class Duplicate:
    """More experts and a longer router, each token taking as many as before, `0 1 2 0 0`: an
    expansion, `Grow(width={"experts": Duplicate()})` (expert upcycling, Dwivedi et al. 2026, arXiv
    2604.19835).

    More experts, as many as the target has. Exact where a token takes one expert and nothing
    sets copies apart: whichever copy it is, is the same. Of more than one, copies take the
    places of others. Without noise the router never prefers one copy to another, and a choice
    by the lowest number leaves the others unused.

    Attributes:
        scores: of each old expert, how much it is worth copying, above 0; the next copy is of the
            one with the highest score for each copy that it has. By use: the tokens that it takes,
            as the training loop counts them. By gradient: `by_gradient`. None: all alike.
        noise: on every copy but the first, relative to the size of the parameter; more than 0 is
            not exact.
    """

    scores: tuple[float, ...] | None = None
    noise: float = 0.0

    def map(self, old: int, new: int, /) -> AxisMap:
        scores = np.ones(old) if self.scores is None else np.asarray(self.scores, float)
        if scores.shape != (old,) or not (np.isfinite(scores) & (scores >= 0)).all():
            raise ValueError(
                f"{self}: {old} experts are to be copied; give {old} scores, none below 0, or none"
            )
        source, copies = list(range(old)), np.ones(old)
        for _ in range(new - old):
            source.append(int(np.argmax(scores / copies)))
            copies[source[-1]] += 1
        return AxisMap(old, np.array(source), jitter=self.noise, rivals=True)


def by_gradient(
    params: Params, model: Model, batches: Sequence[Batch], axis: str = "experts"
) -> tuple[float, ...]:
    """Scores for `Duplicate`: the root of the summed squares of each expert's gradient, over its
    parameters in all layers and over the batches.

    Args:
        params: the small model's.
        model: it.
        batches: of training data, at least one.
        axis: the experts.

    Raises:
        ValueError: for a model whose table has no such axis, and for no batches.
    """
    layout = model.axes.layout(params)
    if not layout.having(axis) or not batches:
        raise ValueError(
            f"the table has the axes {sorted(layout.sizes)}, and {len(batches)} batches are given; "
            f"give an axis of experts in place of {axis!r}, and at least one batch"
        )
    gradient = jax.jit(jax.grad(lambda params, batch: mean_loss(*model.loss(params, batch, None))))
    total = np.zeros(layout.sizes[axis])
    for batch in batches:
        found = layout.values(gradient(params, batch))
        for leaf in layout.having(axis):
            parts = split(found[leaf.path], leaf.dims, layout.extents)
            for piece, value in zip(pieces_of(leaf.dims), parts):
                # What writes along the axis chooses among the experts, and is none of theirs.
                if (at := piece.at(axis, "")) is not None:
                    rows = jnp.moveaxis(value, at, 0).reshape(len(total), -1)
                    total += np.asarray(jnp.square(rows).sum(1), float)
    return tuple(np.sqrt(total).tolist())
