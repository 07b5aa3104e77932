"""How large is the 2-norm of a matrix at most?

||M||_2^2 = ||M^T M||_2, so squaring k times and taking the Frobenius norm in the end gives a bound
that is at most n^(2^-k-1) times too large: the power method on all vectors at once. What the
products round is added at every step, so the bound is rigorous.
"""

import math

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    gamma_up,
    mul_up,
    norm_up,
    sqrt_up,
    sum_up,
)

SQUARINGS = 3
LARGEST_SIDE = 2048  # beyond it the squarings would cost more than the bound is worth


def spectral_norm_up(matrices: Tensor, *, squarings: int = SQUARINGS) -> float:
    """Upper bound of the largest 2-norm among matrices.

    The least of: the Frobenius norm, sqrt(||M||_1 ||M||_inf), and the bound by squaring.

    Args:
        matrices: float64 tensor of shape [..., m, n].
        squarings: How often M is squared; each costs a product of the shorter side.

    Returns:
        The bound; 0 for empty matrices, inf where an entry is not finite.
    """
    if matrices.numel() == 0:
        return 0.0
    if not bool(torch.isfinite(matrices).all()):
        return math.inf
    stack = matrices.reshape(-1, *matrices.shape[-2:])
    size = stack.abs()
    rows, columns = sum_up(size, 2).amax(1), sum_up(size, 1).amax(1)
    holder = sqrt_up(torch.stack([rows.amax(), columns.amax()]))
    best = min(float(norm_up(stack, (1, 2)).amax()), mul_up(float(holder[0]), float(holder[1])))
    if best == 0.0 or min(stack.shape[1:]) > LARGEST_SIDE or squarings < 1:
        return best
    return min(best, max(_by_squaring(m, squarings) for m in stack))


def _by_squaring(m: Tensor, squarings: int) -> float:
    """Bound ||M||_2 by ||(M^T M)^(2^(k-1))||_F^(2^-k), with the rounding of every product."""
    if m.shape[0] < m.shape[1]:
        m = m.T
    scale = 2.0 ** math.frexp(float(m.abs().amax()))[1]  # a power of two: scaling is exact
    if not 1e-100 < scale < 1e100:
        return math.inf
    m = m / scale
    added: list[float] = []
    for _ in range(squarings):
        inner = m.shape[0]
        frobenius = float(norm_up(m))
        # |fl(M^T M) - M^T M| <= gamma_n |M|^T |M| + underflow, entry by entry.
        off = mul_up(gamma_up(inner + 2, UNIT_ROUNDOFF), mul_up(frobenius, frobenius))
        added.append(add_up(off, mul_up(float(m.shape[1]), (inner + 2) * TINY)))
        m = m.T @ m
    bound = float(norm_up(m))
    for off in reversed(added):
        bound = sqrt_up(add_up(bound, off))
    return mul_up(bound, scale)
