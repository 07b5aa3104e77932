"""How is a lower bound computed so that its own rounding cannot make it too large?

The counterpart of `rounding`, for what stands in a denominator or has to stay clear of zero. Every
function returns a float64 number or tensor that is at most the exact result for its float64
arguments. Where nothing is known (NaN) the lower bound is 0, or -inf if results may be negative.
Arguments are nonnegative except where a docstring says "any sign"; tensors are float64.

Why it holds: if s is y rounded to nearest, the next smaller number than s is at most y, with
underflow and overflow as well.
"""

import math
from typing import overload

import torch
from torch import Tensor

from numgeom.arithmetic.assumptions import require_usable
from numgeom.arithmetic.formats import FormatError, float64
from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, as_tensors, next_up


@overload
def next_down(x: float) -> float: ...
@overload
def next_down(x: Tensor) -> Tensor: ...
@overload
def next_down(x: Tensor | float) -> Tensor | float: ...
def next_down(x: Tensor | float) -> Tensor | float:
    """Step to the next smaller float64 number, any sign: at most y, if x = fl(y).

    -inf and NaN give -inf, inf gives the largest finite number.
    """
    if isinstance(x, Tensor):
        return -next_up(-x)
    return -next_up(-x)


@overload
def sub_down(a: float, b: float) -> float: ...
@overload
def sub_down(a: Tensor, b: Tensor | float) -> Tensor: ...
@overload
def sub_down(a: float, b: Tensor) -> Tensor: ...
def sub_down(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """Lower bound of a - b, any sign; inf - inf = -inf."""
    require_usable(a, b)
    return next_down(a - b)


@overload
def mul_down(a: float, b: float) -> float: ...
@overload
def mul_down(a: Tensor, b: Tensor | float) -> Tensor: ...
@overload
def mul_down(a: float, b: Tensor) -> Tensor: ...
def mul_down(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """Lower bound of a * b; 0 * inf = 0."""
    require_usable(a, b)
    return _at_least_zero(next_down(a * b))


@overload
def div_down(a: float, b: float) -> float: ...
@overload
def div_down(a: Tensor, b: Tensor | float) -> Tensor: ...
@overload
def div_down(a: float, b: Tensor) -> Tensor: ...
def div_down(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """Lower bound of a / b, for b an upper bound of the divisor; 0 / 0 = x / inf = 0."""
    require_usable(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        dividend, divisor = as_tensors(a, b)
        return _at_least_zero(next_down(dividend / divisor))
    if b == 0:
        return float64.largest if a > 0 else 0.0
    return _at_least_zero(next_down(a / b))


@overload
def sqrt_down(a: float) -> float: ...
@overload
def sqrt_down(a: Tensor) -> Tensor: ...
def sqrt_down(a: Tensor | float) -> Tensor | float:
    """Lower bound of the square root of a; 0 where a is NaN or negative."""
    require_usable(a)
    if isinstance(a, Tensor):
        # The kernels' roots are within two spacings, so 8u cover them.
        root = torch.sqrt(a).clamp_max(float64.largest)
        return (root * (1.0 - 8.0 * UNIT_ROUNDOFF)).nan_to_num(nan=0.0)
    return _at_least_zero(next_down(math.sqrt(a))) if a >= 0 else 0.0


def sum_down(
    terms: Tensor, dim: int | tuple[int, ...] | None = None, *, keepdim: bool = False
) -> Tensor:
    """Lower bound of a sum, whatever the order of summation; 0 where a term is NaN.

    computed <= exact (1 + u)^(n-1), and (1 - (n+1) u) (1 + u)^n <= 1; sums up to 2^-1021 are
    exact.

    Args:
        terms: float64 tensor.
        dim: Dimensions to sum over; None for all of them, () for none.
        keepdim: Whether these dimensions stay, with size 1.

    Raises:
        FormatError: if n u >= 1/2.
    """
    require_usable(terms)
    dims = tuple(range(terms.dim())) if dim is None else (dim,) if isinstance(dim, int) else dim
    count = math.prod(terms.shape[d] for d in dims)
    if not count * UNIT_ROUNDOFF < 0.5:
        raise FormatError(f"sum_down: {count} terms are too many for float64. Sum block by block.")
    total = torch.sum(terms, dims, keepdim=keepdim) if dims else terms
    shrunk = total.clamp_max(float64.largest) * (1.0 - (count + 1) * UNIT_ROUNDOFF)
    return torch.where(total <= 2.0 * float64.smallest_normal, total, shrunk).nan_to_num(nan=0.0)


def norm_down(x: Tensor) -> float:
    """Lower bound of the 2-norm of all entries of x, any sign; 0 where one is not finite.

    Neither overflows nor underflows on the way: entries are scaled by a power of two that brings
    the largest into [1/2, 1), and those below 2^-500 after that, whose squares would round as
    subnormal numbers, are left out.

    Raises:
        FormatError: if n u >= 1/2 for the n entries of x.
    """
    require_usable(x)
    largest = float(x.abs().max()) if x.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return 0.0
    exponent = math.frexp(largest)[1]
    low = exponent // 2
    scaled = x.abs() * math.ldexp(1.0, -low) * math.ldexp(1.0, low - exponent)
    scaled = torch.where(scaled < 2.0**-500, 0.0, scaled)
    root = sqrt_down(float(sum_down(next_down(scaled * scaled).clamp_min_(0.0))))
    size = min(root * math.ldexp(1.0, low) * math.ldexp(1.0, exponent - low), float64.largest)
    return _at_least_zero(next_down(size))


@overload
def _at_least_zero(x: float) -> float: ...
@overload
def _at_least_zero(x: Tensor) -> Tensor: ...
@overload
def _at_least_zero(x: Tensor | float) -> Tensor | float: ...
def _at_least_zero(x: Tensor | float) -> Tensor | float:
    if isinstance(x, Tensor):
        return x.clamp_min(0.0)
    return max(0.0, x)
