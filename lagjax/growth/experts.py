"""Sparse upcycling: a dense net becomes a mixture of experts, every expert a copy of the MLP it had
(Komatsuzaki et al. 2022, arXiv 2212.05055).

More experts of a mixture are width: `Grow(width={"experts": Tile()})`, exact where each token then
takes as many times more.
"""

from dataclasses import dataclass

import numpy as np

from lagjax.algebra.layout import Layout
from lagjax.algebra.maps import AxisMap
from lagjax.algebra.pieces import pieces_of


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
