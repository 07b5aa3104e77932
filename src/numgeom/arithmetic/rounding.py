"""How is a bound computed so that its own rounding cannot make it too small?

This module (with `lower_bounds` for the other direction) is the only one that rounds outward.
Every function returns a float64 number or tensor that is at least the exact result for its float64
arguments, and larger only by a few units roundoff per operation and a few subnormal spacings.

Contract, for all functions:

- Bounds are nonnegative, and so are arguments, except where a docstring says "any sign". Nobody
  checks that entry by entry.
- Infinity means that nothing is known, and NaN is read as infinity: no function returns NaN.
  Nothing makes an infinite bound finite again: 0 * inf = inf, inf / inf = inf, and x / inf = inf
  too, since the divisor of an upper bound must be a lower bound.
- Exact zeros stay exact: 0 + 0 = 0, and 0 * b = 0 for finite b.
- Tensors are float64, Python numbers float (or int up to 2^53); both may be mixed.
- The arithmetic is that of `assumptions`. Each call tests the flushing of its own thread;
  `assumptions.require_ieee_float64` tests all threads.

Why it holds: u = 2^-53, TINY = 2^-1074 the spacing of subnormal numbers. A result s >= 2^-1022,
rounded to nearest, is below the exact one by at most half its spacing, and
fl(s * (1 + 2u)) >= s + spacing(s), so one multiplication covers the rounding. Below 2^-1022 sums
are exact, and products and quotients are off by at most TINY/2, so adding TINY covers them. The
square root of a tensor is not rounded correctly by torch's CPU kernels (0.53 spacings measured, see
`accuracy`); it is taken to be within two spacings.
"""

import functools
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import overload

import torch
from torch import Tensor

from numgeom.arithmetic.assumptions import require_usable
from numgeom.arithmetic.formats import FormatError, float64

UNIT_ROUNDOFF = float64.unit_roundoff
TINY = float64.smallest_subnormal
_COVER = 1.0 + 2.0 * UNIT_ROUNDOFF
# fl(s * (1 + 8u)) >= s + 4 spacing(s), and the exact root may be in the next binade.
_ROOT_COVER = 1.0 + 8.0 * UNIT_ROUNDOFF


@overload
def add_up(a: float, b: float) -> float: ...
@overload
def add_up(a: Tensor, b: Tensor | float) -> Tensor: ...
@overload
def add_up(a: float, b: Tensor) -> Tensor: ...
def add_up(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """Upper bound of a + b."""
    require_usable(a, b)
    total = a + b
    total *= _COVER
    return _known(total)


@overload
def mul_up(a: float, b: float) -> float: ...
@overload
def mul_up(a: Tensor, b: Tensor | float) -> Tensor: ...
@overload
def mul_up(a: float, b: Tensor) -> Tensor: ...
def mul_up(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """Upper bound of a * b; 0 * inf = inf."""
    require_usable(a, b)
    product = a * b
    product *= _COVER
    if not _is_large(product):
        product += _tiny_if((a > 0) & (b > 0))
    return _known(product)


@overload
def div_up(a: float, b: float) -> float: ...
@overload
def div_up(a: Tensor, b: Tensor | float) -> Tensor: ...
@overload
def div_up(a: float, b: Tensor) -> Tensor: ...
def div_up(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    """Upper bound of a / b, for b a lower bound of the divisor; a / 0 = a / inf = inf."""
    require_usable(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        dividend, divisor = as_tensors(a, b)
        quotient = dividend / divisor
        quotient *= _COVER
        if _is_large(quotient) and divisor.numel() and bool(divisor.amax() < math.inf):
            return _known(quotient)  # a divisor of 0 gave infinity or NaN, as it should
        quotient += _tiny_if(dividend > 0)
        return _known(quotient.masked_fill_((divisor == 0) | torch.isinf(divisor), math.inf))
    if b == 0 or math.isinf(b):
        return math.inf
    return _known((a / b) * _COVER + (TINY if a > 0 else 0.0))


def ratio_up(a: float, b: float) -> float:
    """The smallest float64 number that is at least a / b, for a >= 0 and finite b > 0.

    Unlike `div_up` it adds nothing to an exact quotient, as a number needs that is shown.
    """
    if not math.isfinite(a):
        return math.inf
    exact = Fraction(a) / Fraction(b)
    try:
        return _fraction_up(exact)
    except OverflowError:
        return math.inf


@overload
def sqrt_up(a: float) -> float: ...
@overload
def sqrt_up(a: Tensor) -> Tensor: ...
def sqrt_up(a: Tensor | float) -> Tensor | float:
    """Upper bound of the square root of a."""
    require_usable(a)
    if isinstance(a, Tensor):
        return _known(torch.sqrt(a) * _ROOT_COVER)
    return math.sqrt(a) * _COVER if a >= 0 else math.inf


def difference_up(x: Tensor, y: Tensor) -> Tensor:
    """Upper bound of |x - y|, any sign, for tensors of any two floating-point dtypes.

    Equal finite entries give 0. Where an entry is not finite the difference is unknown: inf.

    Returns:
        float64 tensor of the broadcast shape.
    """
    require_usable()
    difference = x.detach().to(torch.float64) - y.detach().to(torch.float64)
    return _known(difference.abs() * _COVER)


@overload
def next_up(x: float) -> float: ...
@overload
def next_up(x: Tensor) -> Tensor: ...
def next_up(x: Tensor | float) -> Tensor | float:
    """Step to the next larger float64 number, any sign: at least y, if x = fl(y).

    inf and NaN give inf, -inf gives the most negative finite number.
    """
    require_usable(x)
    if isinstance(x, Tensor):
        infinity = torch.full((), math.inf, dtype=x.dtype, device=x.device)
        return _known(torch.nextafter(x, infinity))
    return _known(math.nextafter(x, math.inf))


@functools.lru_cache(maxsize=4096)
def gamma_up(count: int, unit_roundoff: float) -> float:
    """Upper bound of gamma_n = n u / (1 - n u) (Higham 2002, lemma 3.1), n = count.

    |product of n factors (1 + d_i)^(+-1) - 1| <= gamma_n whenever all |d_i| <= u.

    Args:
        count: n, the number of roundings on the longest path.
        unit_roundoff: u of the format that accumulates.

    Returns:
        gamma_n rounded up to the next float64 number; 0 for n = 0.

    Raises:
        FormatError: if n u >= 1, where gamma_n is undefined, or n < 0, or u is not in [0, 1).

    Example:
        >>> gamma_up(1, 0.25) - 1 / 3 < 1e-16
        True
    """
    nu = _total_roundoff(count, unit_roundoff)
    return _fraction_up(nu / (1 - nu))


@overload
def cover_roundings(value: float, count: int, *, unit_roundoff: float = ...) -> float: ...
@overload
def cover_roundings(value: Tensor, count: int, *, unit_roundoff: float = ...) -> Tensor: ...
def cover_roundings(
    value: Tensor | float, count: int, *, unit_roundoff: float = UNIT_ROUNDOFF
) -> Tensor | float:
    """Upper bound of a nonnegative quantity of which a computed value is at hand.

    If value >= exact * (1 - u)^n, then exact <= value / (1 - n u) <= result. So it is for sums of
    n + 1 nonnegative numbers in any order, for dot products of n of them, and, with n/2 + 1 in
    place of n, for 2-norms of n entries, as long as no product underflows.

    Args:
        value: The computed value, as float64 (converting to it is exact).
        count: n, the largest number of roundings that met any part of the value.
        unit_roundoff: u of the format that the value was computed in.

    Raises:
        FormatError: if n u >= 1.
    """
    require_usable(value)
    return _known(value * _cover_factor(count, unit_roundoff))


@overload
def sum_up(terms: Iterable[float]) -> float: ...
@overload
def sum_up(
    terms: Tensor, dim: int | tuple[int, ...] | None = ..., *, keepdim: bool = ...
) -> Tensor: ...
def sum_up(
    terms: Tensor | Iterable[float],
    dim: int | tuple[int, ...] | None = None,
    *,
    keepdim: bool = False,
) -> Tensor | float:
    """Upper bound of a sum, whatever the order of summation.

    Args:
        terms: float64 tensor, or Python floats.
        dim: Dimensions of the tensor to sum over; None for all of them, () for none.
        keepdim: Whether these dimensions stay, with size 1.
    """
    if not isinstance(terms, Tensor):
        require_usable()
        try:
            return _known(math.fsum(terms) * _COVER)  # fsum rounds once (Shewchuk 1997)
        except OverflowError:
            return math.inf
    require_usable(terms)
    dims = _dims(terms, dim)
    total = torch.sum(terms, dims, keepdim=keepdim) if dims else terms
    return cover_roundings(total, max(0, _count(terms, dims) - 1))


def matmul_up(a: Tensor, b: Tensor) -> Tensor:
    """Upper bound of a matrix product, in any BLAS order, with FMA or without.

    Each of the k = a.shape[-1] products meets at most k roundings and one underflow, so that
    exact <= (computed + k TINY/2) / (1 - u)^k; the underflow counts only where one can happen.
    An entry of which every product has a zero factor is 0. Assumes that the product sums up its
    own k products: no Strassen-like scheme, no emulation of float64 by shorter formats.

    Args:
        a: Left factor, shape [..., m, k].
        b: Right factor, shape [..., k, n].

    Returns:
        Upper bound, shape [..., m, n]. Infinite all along a row of a or a column of b that has an
        entry that is not finite (0 * inf = inf), even if the BLAS skips zeros.
    """
    require_usable(a, b)
    if a.dim() < 2 or b.dim() < 2:
        raise FormatError(
            f"matmul_up takes matrices or batches of them, not shapes {list(a.shape)} and "
            f"{list(b.shape)}. Add the missing dimension."
        )
    k = a.shape[-1]
    product = torch.matmul(a, b)
    if k == 0 or product.numel() == 0:
        return product
    # k + 1: one more for the addition of the underflow term.
    bound = product * _cover_factor(k + 1, UNIT_ROUNDOFF)
    if _smallest_positive(a) * _smallest_positive(b) < 2.0 * float64.smallest_normal:
        support = torch.matmul((a > 0).to(a.dtype), (b > 0).to(b.dtype)) > 0
        bound = bound + _tiny_if(support) * (k + 2)
    finite_rows = torch.isfinite(a).all(-1).unsqueeze(-1)
    finite_columns = torch.isfinite(b).all(-2).unsqueeze(-2)
    return _known(torch.where(finite_rows & finite_columns, bound, math.inf))


def norm_up(
    x: Tensor, dim: int | tuple[int, ...] | None = None, *, keepdim: bool = False
) -> Tensor:
    """Upper bound of the 2-norm of x, any sign, without overflow or underflow on the way.

    Each slice is scaled by a power of two that brings its largest entry into [1/2, 1).

    Args:
        x: float64 tensor.
        dim: Dimensions over which the entries are taken together; None for all, () for none.
        keepdim: Whether these dimensions stay, with size 1.
    """
    require_usable(x)
    dims = _dims(x, dim)
    count = _count(x, dims)
    magnitude = x.abs()
    if x.numel() == 0:
        return torch.sum(magnitude, dims, keepdim=keepdim) if dims else magnitude
    largest = torch.amax(magnitude, dims, keepdim=True) if dims else magnitude
    exponent = torch.frexp(largest).exponent.to(torch.int64)
    exponent = torch.where(torch.isfinite(largest), exponent, 0)
    low = exponent // 2
    high = exponent - low
    scaled = magnitude * _power_of_two(-low) * _power_of_two(-high)
    squares = torch.sum(scaled * scaled, dims, keepdim=True) if dims else scaled * scaled
    # n roundings per square. Entries that underflowed took less than n 2^-1073 from a sum that is
    # at least 1/4: the one rounding more pays for that.
    norm = sqrt_up(cover_roundings(squares, count + 1))
    norm = norm * _power_of_two(low) * _power_of_two(high) + _tiny_if(largest > 0)
    norm = _known(torch.where(largest == 0, 0.0, norm))
    return norm if keepdim or not dims else norm.squeeze(dims)


def as_tensors(a: Tensor | float, b: Tensor | float) -> tuple[Tensor, Tensor]:
    """Operands of a division, of which at least one is a tensor, both as tensors.

    Between a tensor and a Python number torch may multiply by a rounded reciprocal instead.
    """
    device = next(operand.device for operand in (a, b) if isinstance(operand, Tensor))
    wide = {"dtype": torch.float64, "device": device}
    return torch.as_tensor(a, **wide), torch.as_tensor(b, **wide)


@overload
def _known(bound: float) -> float: ...
@overload
def _known(bound: Tensor) -> Tensor: ...
@overload
def _known(bound: Tensor | float) -> Tensor | float: ...
def _known(bound: Tensor | float) -> Tensor | float:
    """NaN, which knows nothing, becomes infinity; in place, since bounds are fresh tensors."""
    if isinstance(bound, Tensor):
        return bound.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    return math.inf if math.isnan(bound) else bound


def _is_large(bound: Tensor | float) -> bool:
    """Whether TINY is lost beside every entry, so that adding it changes nothing."""
    if isinstance(bound, Tensor):
        return bound.numel() > 0 and bool(bound.amin() > 1e-290)
    return bound > 1e-290


def all_finite(x: Tensor) -> bool:
    """Whether no entry is infinite or NaN."""
    # The sum of entries of which one is not finite is not; it is much faster than to look at each.
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def _tiny_if(mask: Tensor | bool) -> Tensor | float:
    return mask * TINY if not isinstance(mask, Tensor) else mask.to(torch.float64) * TINY


def _total_roundoff(count: int, unit_roundoff: float) -> Fraction:
    """N u, exactly; refused unless it is in [0, 1)."""
    if count < 0 or not 0.0 <= unit_roundoff < 1.0:
        raise FormatError(
            f"A bound on n roundings of relative size u needs n >= 0 and 0 <= u < 1, not "
            f"n = {count}, u = {unit_roundoff!r}."
        )
    nu = count * Fraction(unit_roundoff)
    if nu >= 1:
        raise FormatError(
            f"gamma_n is undefined for n = {count} roundings of unit roundoff u = "
            f"{unit_roundoff!r}: n u >= 1. Sums of this length have no a-priori bound in this "
            "format; accumulate in a wider one, or bound the sum block by block."
        )
    return nu


@functools.lru_cache(maxsize=4096)
def _cover_factor(count: int, unit_roundoff: float) -> float:
    """A number F >= 1 with fl(value * F) >= value / (1 - n u) for all normal float64 values."""
    if count == 0:
        return 1.0
    nu = _total_roundoff(count, unit_roundoff)
    return _fraction_up(1 / ((1 - nu) * (1 - Fraction(UNIT_ROUNDOFF))))


def _fraction_up(exact: Fraction) -> float:
    nearest = float(exact)
    return nearest if nearest >= exact else math.nextafter(nearest, math.inf)


def _dims(x: Tensor, dim: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(x.dim()))
    return (dim,) if isinstance(dim, int) else dim


def _count(x: Tensor, dims: tuple[int, ...]) -> int:
    """Number of terms that are summed up into one entry over the dims."""
    return math.prod(x.shape[d] for d in dims)


def _smallest_positive(x: Tensor) -> float:
    return float(torch.where(x > 0, x, math.inf).amin())


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent as float64, for int64 exponents from -1022 to 1023."""
    return ((exponent + 1023) << 52).view(torch.float64)
