"""How far can a bilinear op move and round, when each entry of y is a sum of products?

Let y_o = sum_t a_t b_t with at most n terms t per entry o, for instance a matrix product or a
convolution, and write A * B for the op applied to tensors A and B. Then

    |(a + e_a) * (b + e_b) - a * b| <= r_a * |b| + (|a| + r_a) * r_b,
    |fl(a * b) - a * b|            <= gamma_n |a| * |b| + underflow, in any order, with FMA or not.

Each product meets one rounding of its own and at most n - 1 of the additions (Higham 2002, sec.
3.1); two more are granted. A product below the normal range is off by at most TINY / 2 besides.
Multiplicity. Let e = r e', s > 0 be a scale of y, Q = r_a * r_b and M = max(Q / s). The remainder
is R_o = sum_t c_ot a'_t b'_t with nonnegative c_ot that add up to Q_o. By Cauchy and Schwarz

    |R_o / s_o|^2 <= M sum_t (c_ot / s_o) a'_t^2 b'_t^2 <= M^2 sum_t a'_t^2 b'_t^2.

If every pair of an entry of a and one of b occurs in at most N entries of y, then summing over o
gives |R / s| <= sqrt(N) M |a'| |b'| in the 2-norm. The multiplicity is sqrt(N).

Assumed: each entry is summed up from its own products, in float64. No FFT, Winograd or Strassen
scheme, no emulation by shorter formats. On the CPU torch has none for float64: convolutions are
im2col with a matrix product, or sums over the taps of dilated kernels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from numgeom.arithmetic.formats import float64
from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    all_finite,
    cover_roundings,
    gamma_up,
    mul_up,
)
from numgeom.ops.entry import Bound

Multiply = Callable[[Tensor, Tensor], Tensor]


def bilinear_up(multiply: Multiply, a: Tensor, b: Tensor, terms: int) -> Tensor:
    """Upper bound of A * B for nonnegative A, B; an unknown factor (inf) makes its entries inf.

    Each computed product is at least exact (1 - u)^n less n TINY / 2 of underflow, so the bound
    covers n + 1 roundings and adds (n + 2) TINY where a product may underflow.

    Args:
        multiply: The op, evaluated in float64.
        a: First factor, nonnegative.
        b: Second factor, nonnegative.
        terms: n, the largest number of products in one entry.
    """
    everything = all_finite(a) and all_finite(b)
    if everything:
        bound = cover_roundings(multiply(a, b), terms + 1)
    else:
        known_a, known_b = torch.isfinite(a), torch.isfinite(b)
        bound = cover_roundings(
            multiply(torch.where(known_a, a, 0.0), torch.where(known_b, b, 0.0)), terms + 1
        )
    if underflow_possible(a, b):
        bound = add_up(bound, _support(multiply, a, b) * ((terms + 2) * TINY))
    if not everything:
        known_a, known_b = torch.isfinite(a), torch.isfinite(b)
        lost = multiply((~known_a).to(a), torch.ones_like(b))
        lost = lost + multiply(torch.ones_like(a), (~known_b).to(b))
        bound = torch.where(lost > 0, math.inf, bound)
    return bound


def bilinear_rounding(
    multiply: Multiply, a: Tensor, b: Tensor, terms: int, *, addend: Bound = None
) -> Tensor:
    """Upper bound of |fl(a * b + c) - (a * b + c)|, any signs.

    It is 0 where every product has a zero factor, and c = 0.

    Args:
        multiply: The op, evaluated in float64.
        a: First factor.
        b: Second factor.
        terms: n, the largest number of products in one entry.
        addend: |c|, which takes part in the sum; None where there is none.
    """
    left, right = a.abs(), b.abs()
    size = bilinear_up(multiply, left, right, terms)
    size = size if addend is None else add_up(size, addend)
    bound = mul_up(size, gamma_up(terms + 2, UNIT_ROUNDOFF)) if terms else torch.zeros_like(size)
    if underflow_possible(left, right):
        bound = add_up(bound, _support(multiply, a, b) * ((terms + 1) * TINY))
    return bound


def bilinear_spread(
    multiply: Multiply, a: Tensor, b: Tensor, radii: tuple[Bound, Bound], terms: int
) -> Bound:
    """Upper bound of |(a + e_a) * (b + e_b) - a * b| for all |e| <= r."""
    r_a, r_b = radii
    if r_a is None and r_b is None:
        return None
    if r_b is None:
        assert r_a is not None
        return bilinear_up(multiply, r_a, b.abs(), terms)
    if r_a is None:
        return bilinear_up(multiply, a.abs(), r_b, terms)
    first = bilinear_up(multiply, r_a, b.abs(), terms)
    return add_up(first, bilinear_up(multiply, add_up(a.abs(), r_a), r_b, terms))


def bilinear_second_order(multiply: Multiply, radii: tuple[Bound, Bound], terms: int) -> Bound:
    """Upper bound of |e_a * e_b|; None where one of the factors is exact: the op is linear then."""
    r_a, r_b = radii
    if r_a is None or r_b is None:
        return None
    return bilinear_up(multiply, r_a, r_b, terms)


def underflow_possible(a: Tensor, b: Tensor) -> bool:
    """Whether a product of two nonzero entries may lie below the normal range."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    return _smallest(a) * _smallest(b) < 2.0 * float64.smallest_normal


def _smallest(x: Tensor) -> float:
    least = float(x.amin())
    return least if least > 0.0 else float(torch.where(x > 0, x, math.inf).amin())


def _support(multiply: Multiply, a: Tensor, b: Tensor) -> Tensor:
    """One where an entry has a product of two nonzero factors, else zero."""
    return (multiply((a != 0).to(a), (b != 0).to(b)) > 0).to(torch.float64)
