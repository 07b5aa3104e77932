"""How far is a guess of a transposed product off?

Reverse passes are torch's own, and nothing is known of what they round, nor is it asked whether
they are right. They are compared with forward passes of fresh vectors: `probes` says what follows.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, gamma_up
from numgeom.certificate.draws import Draws
from numgeom.certificate.probes import ProbePlan, guess_error

# How many fresh vectors judge a guess. What a pass rounds is divided by eps' (`probes`), which is
# near 1e-3 for four vectors and 3e-2 for eight.
HALF = 4  # of the probes that half a power step starts from
LANES = 8  # where they are pushed for this alone


@dataclass(frozen=True)
class Witnesses:
    """Fresh vectors w_j, and what a forward pass made of them.

    Attributes:
        branch: Starts the source of the vectors anew.
        values: B (w_j + omega_j), [lanes, *shape], by row.
        rounding: Eps_p of that pass.
        shapes: A tensor of the shape of each column, in the order in which they were drawn.
        dimension: The number of entries of a vector.
        lanes: How many vectors.
    """

    branch: Callable[[], Draws]
    values: Mapping[fx.Node, Tensor]
    rounding: float
    shapes: Mapping[fx.Node, Tensor]
    dimension: int
    lanes: int = LANES

    def errors(
        self, y: Mapping[fx.Node, Tensor], x: Mapping[fx.Node, Tensor], chance: float
    ) -> list[float]:
        """Bounds of ||B^T y - x||, one per lane.

        Args:
            y: Vectors that the witnesses do not depend on, [k, *shape], by row.
            x: Guesses of B^T y, by column; 0 where they are missing.
            chance: That one of the bounds fails.
        """
        count = len(next(iter(y.values())))
        zeros = torch.zeros(count, self.lanes, dtype=torch.float64)
        left, right, most = zeros, zeros, 0
        for node, values in y.items():
            if node in self.values:  # elsewhere nothing arrives
                part, n = inner(values, self.values[node])
                left, most = left + part, max(most, n)
        draws = self.branch()
        for node, like in self.shapes.items():
            w = draws.times(torch.ones(()).to(like), self.lanes, like)
            if node in x:
                part, n = inner(x[node], w)
                right, most = right + part, max(most, n)
        gaps = (left - right).abs().amax(1)
        sizes = norms(x.values(), count)
        reach = norms(y.values(), count) * float(norms(self.values.values(), self.lanes).amax())
        reach = reach + sizes * math.sqrt(self.dimension)
        # Each product meets `most` roundings in its node and one per node; then one difference.
        off = reach * gamma_up(most + len(y) + len(self.shapes) + 8, UNIT_ROUNDOFF) * (1 + 1e-9)
        plan = ProbePlan(self.lanes, chance / count, self.dimension)
        return [
            guess_error(gap, size, roundoff=roundoff, rounding=self.rounding, plan=plan)
            for gap, size, roundoff in zip(gaps.tolist(), sizes.tolist(), off.tolist(), strict=True)
        ]


def inner(a: Tensor, b: Tensor) -> tuple[Tensor, int]:
    """Inner products of all lanes of a with all lanes of b; and how many roundings each term met.

    Summed in blocks, so that they are few.
    """
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    n = a.shape[1]
    block = max(1, math.isqrt(n))
    whole = n // block * block
    found = torch.zeros(len(a), len(b), dtype=torch.float64)
    if whole:
        left = a[:, :whole].reshape(len(a), -1, block).transpose(0, 1)
        right = b[:, :whole].reshape(len(b), -1, block).permute(1, 2, 0)
        found = torch.bmm(left, right).sum(0).cpu()
    if whole < n:
        found = found + (a[:, whole:] @ b[:, whole:].T).cpu()
    return found, block + n // block + 4


def norms(vectors: Iterable[Tensor], lanes: int) -> Tensor:
    """Upper bounds of the 2-norms of vectors that are stored node by node."""
    squares = torch.zeros(lanes, dtype=torch.float64)
    for part in vectors:
        squares += torch.linalg.vector_norm(part.reshape(lanes, -1), dim=1).square().cpu()
    return squares.sqrt() * (1 + 1e-9) + 1e-150
