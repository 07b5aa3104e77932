"""Which values does an expression take while its arguments run through a box?

Outward-rounded interval arithmetic on tensors. It serves to bound slopes and curvatures over a
box of errors, so it aims at boxes that are narrow next to the scale on which the function changes:
there the bounds are tight, and on wide boxes they are only valid.

An `Interval` holds real numbers; NaN and values outside of a function's domain widen it to the
whole line. The arithmetic is IEEE 754 (rounding to nearest, then one step outward); elementary
functions come from torch with the error that `numgeom.arithmetic.accuracy` allows them.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.arithmetic.accuracy import Accuracy
from numgeom.arithmetic.lower_bounds import next_down
from numgeom.arithmetic.reliance import accuracy_of
from numgeom.arithmetic.rounding import TINY, UNIT_ROUNDOFF, all_finite, next_up

Number = float | int


def elementary_error(name: str, y: Tensor, *arguments: Tensor) -> Tensor:
    """Upper bound of |y - f(x)| for y computed by torch; infinite if nobody measured f.

    Args:
        name: The function's name in the accuracy table.
        y: What torch computed, float64.
        *arguments: What it was computed from.
    """
    entry = accuracy_of(name, y.dtype, device=y.device.type)
    if entry is None:
        return torch.full_like(y, math.inf)
    return entry.error_up(y, *arguments)


def _relative_error(name: str, device: str) -> tuple[float, float]:
    """Numbers k and c with |y - f(x)| + 2u |y| <= k |y| + c, generously; infinite if unknown.

    ulps * ulp(f(x)) <= ulps (2u |f(x)| + TINY), and |f(x)| <= |y| (1 + 4u ulps) + ...; three ulps
    more pay for that and for the rounding of the bound itself, as long as ulps < 2^25.
    """
    entry = accuracy_of(name, torch.float64, device=device)
    return (math.inf, math.inf) if entry is None else _generous(entry)


@functools.cache
def _generous(entry: Accuracy) -> tuple[float, float]:
    if entry.allowed_ulps > 2.0**25 or entry.floor.argument != 0.0:
        return math.inf, math.inf
    floor = entry.floor.bound_up(entry.format)
    constant = 2.0 * float(floor) + (entry.allowed_ulps + 3.0) * TINY
    return (entry.allowed_ulps + 3.0) * 2.0 * UNIT_ROUNDOFF, constant


@dataclass(frozen=True, eq=False)
class Interval:
    """All real numbers from `lo` to `hi`, entry by entry; float64 tensors of one shape."""

    lo: Tensor
    hi: Tensor

    @classmethod
    def exact(cls, x: Tensor) -> "Interval":
        """The interval that holds x alone; the whole line where x is not finite."""
        if all_finite(x):
            return cls(x, x)
        return _interval(torch.where(torch.isfinite(x), x, math.nan), x)

    @classmethod
    def around(cls, x: Tensor, r: Tensor | None) -> "Interval":
        """The numbers within r of x."""
        if r is None:
            return cls.exact(x)
        lo = torch.where(r > 0, next_down(x - r), x)
        hi = torch.where(r > 0, next_up(x + r), x)
        return _interval(lo, torch.where(torch.isfinite(x), hi, math.nan))

    def __neg__(self) -> "Interval":
        return Interval(-self.hi, -self.lo)

    def __add__(self, other: "Interval | Number") -> "Interval":
        b = _coerce(other, self)
        return _interval(next_down(self.lo + b.lo), next_up(self.hi + b.hi))

    def __sub__(self, other: "Interval | Number") -> "Interval":
        b = _coerce(other, self)
        return _interval(next_down(self.lo - b.hi), next_up(self.hi - b.lo))

    def __mul__(self, other: "Interval | Number") -> "Interval":
        if not isinstance(other, Interval):
            ends = (_product(self.lo, other), _product(self.hi, other))
            lo, hi = ends if other >= 0 else ends[::-1]
            return _interval(next_down(lo), next_up(hi))
        if self.is_positive() and other.is_positive():
            lo, hi = _product(self.lo, other.lo), _product(self.hi, other.hi)
            return _interval(next_down(lo), next_up(hi))
        products = [_product(a, b) for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        lo = torch.minimum(
            torch.minimum(products[0], products[1]), torch.minimum(products[2], products[3])
        )
        hi = torch.maximum(
            torch.maximum(products[0], products[1]), torch.maximum(products[2], products[3])
        )
        return _interval(next_down(lo), next_up(hi))

    def __truediv__(self, other: "Interval | Number") -> "Interval":
        return self * reciprocal(_coerce(other, self))

    def __radd__(self, other: Number) -> "Interval":
        return self + other

    def __rsub__(self, other: Number) -> "Interval":
        return -self + other

    def __rmul__(self, other: Number) -> "Interval":
        return self * other

    def __rtruediv__(self, other: Number) -> "Interval":
        return reciprocal(self) * other

    def expand(self, shape: torch.Size) -> "Interval":
        """The same intervals, repeated to a larger shape."""
        return Interval(self.lo.expand(shape), self.hi.expand(shape))

    def select(self, here: Tensor, other: "Interval", there: Tensor) -> "Interval":
        """This interval where `here`, another one where `there`, both of them elsewhere."""
        lo = torch.where(there, other.lo, torch.minimum(self.lo, other.lo))
        hi = torch.where(there, other.hi, torch.maximum(self.hi, other.hi))
        return Interval(torch.where(here, self.lo, lo), torch.where(here, self.hi, hi))

    def square(self) -> "Interval":
        """The squares of the numbers: never negative."""
        size = self.abs()
        lo = next_down(size.lo * size.lo).clamp_min(0.0)
        return _interval(lo, next_up(size.hi * size.hi))

    def is_positive(self) -> bool:
        """Whether no entry can be negative."""
        return not bool((self.lo < 0).any())

    def abs(self) -> "Interval":
        """The absolute values of the numbers."""
        a, b = self.lo.abs(), self.hi.abs()
        inside = (self.lo <= 0) & (self.hi >= 0)
        return Interval(torch.where(inside, 0.0, torch.minimum(a, b)), torch.maximum(a, b))

    def magnitude(self) -> Tensor:
        """The least upper bound of the absolute values."""
        return torch.maximum(self.lo.abs(), self.hi.abs())

    def within(self, lo: float, hi: float) -> "Interval":
        """Intersect with bounds that are known from elsewhere."""
        return Interval(self.lo.clamp(lo, hi), self.hi.clamp(lo, hi))

    def restricted(self, lo: float, hi: float, *, closed: bool = True) -> "Interval":
        """The same interval; the whole line where it leaves the domain from lo to hi."""
        inside = (self.lo >= lo) & (self.hi <= hi)
        if not closed:
            inside = inside & (self.lo > lo) & (self.hi < hi)
        return _interval(torch.where(inside, self.lo, math.nan), self.hi)

    def whole_power(self, n: int) -> "Interval":
        """The n-th power of the numbers, for a whole number n of either sign."""
        if n < 0:
            return reciprocal(self.whole_power(-n))
        if n == 0:
            return constant(1.0, self)
        if n % 2 == 0:
            return self.square() if n == 2 else self.square().whole_power(n // 2)
        if n == 1:
            return self
        # An odd power grows, so each end is a power of its own.
        low = _point(self.lo) * _point(self.lo).whole_power(n - 1)
        high = _point(self.hi) * _point(self.hi).whole_power(n - 1)
        return _interval(low.lo, high.hi)


def constant(value: float, like: Interval) -> Interval:
    """An exact number, as an interval of the shape of another."""
    full = torch.full_like(like.lo, value)
    return Interval(full, full)


def enclosed(value: float) -> tuple[float, float]:
    """Neighbours of a constant that was rounded to nearest: they enclose the real one."""
    return math.nextafter(value, -math.inf), math.nextafter(value, math.inf)


def times_constant(x: Interval, value: float) -> Interval:
    """X times a real constant of which `value` is the nearest float64 number."""
    lo, hi = enclosed(value)
    return x * Interval(torch.full_like(x.lo, lo), torch.full_like(x.lo, hi))


def reciprocal(x: Interval) -> Interval:
    """1 / x; the whole line where x may be 0."""
    one = torch.ones_like(x.lo)
    apart = (x.lo > 0) | (x.hi < 0)
    lo = torch.where(apart, next_down(one / x.hi), math.nan)
    return _interval(lo, next_up(one / x.lo))


def sqrt(x: Interval) -> Interval:
    """The square root; the whole line where x may be negative."""
    inside = x.restricted(0.0, math.inf)
    lo = next_down(torch.sqrt(inside.lo)).clamp_min(0.0)
    lo = torch.where(torch.isinf(inside.lo), math.nan, lo)
    return _interval(lo, next_up(torch.sqrt(inside.hi)))


def growing(
    name: str,
    function: Callable[[Tensor], Tensor],
    x: Interval,
    *,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """An increasing elementary function of x; `limits` bound its values."""
    relative, constant = _relative_error(name, x.lo.device.type)
    low = function(x.lo)
    high = low if x.hi is x.lo else function(x.hi)
    lo = low - (low.abs() * relative + constant)
    hi = high + (high.abs() * relative + constant)
    # Where the kernel overflows nothing is known but the limits.
    lo = torch.nan_to_num(lo, nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    hi = torch.nan_to_num(hi, nan=math.inf, posinf=math.inf, neginf=-math.inf)
    return Interval(lo.clamp(*limits), hi.clamp(*limits))


def exp(x: Interval) -> Interval:
    """The exponential function."""
    return growing("exp", torch.exp, x, limits=(0.0, math.inf))


def expm1(x: Interval) -> Interval:
    """exp(x) - 1, without cancellation."""
    return growing("expm1", torch.expm1, x, limits=(-1.0, math.inf))


def log(x: Interval) -> Interval:
    """The natural logarithm; the whole line where x may be 0 or less."""
    inside = (x.lo > 0) & torch.isfinite(x.lo)
    safe = Interval(torch.where(inside, x.lo, 1.0), torch.where(inside, x.hi, 1.0))
    value = growing("log", torch.log, safe)
    return _interval(torch.where(inside, value.lo, math.nan), value.hi)


def log1p(x: Interval) -> Interval:
    """log(1 + x); the whole line where x may be -1 or less."""
    inside = x.lo > -1
    safe = Interval(torch.where(inside, x.lo, 0.0), torch.where(inside, x.hi, 0.0))
    value = growing("log1p", torch.log1p, safe)
    return _interval(torch.where(inside, value.lo, math.nan), value.hi)


def tanh(x: Interval) -> Interval:
    """The hyperbolic tangent."""
    return growing("tanh", torch.tanh, x, limits=(-1.0, 1.0))


def sigmoid(x: Interval) -> Interval:
    """1 / (1 + exp(-x))."""
    return growing("sigmoid", torch.sigmoid, x, limits=(0.0, 1.0))


def erf(x: Interval) -> Interval:
    """The error function."""
    return growing("erf", torch.erf, x, limits=(-1.0, 1.0))


def erfc(x: Interval) -> Interval:
    """1 - erf(x), without cancellation."""
    return -growing("erfc", lambda t: -torch.erfc(t), x, limits=(-2.0, 0.0))


def sin(x: Interval) -> Interval:
    """The sine: that of the midpoint, give or take the radius."""
    return _wave("sin", torch.sin, x)


def cos(x: Interval) -> Interval:
    """The cosine: that of the midpoint, give or take the radius."""
    return _wave("cos", torch.cos, x)


def _wave(name: str, function: Callable[[Tensor], Tensor], x: Interval) -> Interval:
    """A function with slope at most 1 and values in [-1, 1]."""
    middle = (x.lo / 2 + x.hi / 2).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    reach = torch.maximum(next_up(x.hi - middle), next_up(middle - x.lo))
    y = function(middle)
    error = next_up(elementary_error(name, y, middle) + reach)
    return _interval(next_down(y - error), next_up(y + error)).within(-1.0, 1.0)


def _interval(lo: Tensor, hi: Tensor) -> Interval:
    """From lo to hi; where either is NaN, the whole line."""
    unknown = torch.isnan(lo) | torch.isnan(hi)
    return Interval(torch.where(unknown, -math.inf, lo), torch.where(unknown, math.inf, hi))


def _point(x: Tensor) -> Interval:
    return Interval(x, x)


def _coerce(value: Interval | Number, like: Interval) -> Interval:
    return value if isinstance(value, Interval) else constant(float(value), like)


def _product(a: Tensor, b: Tensor | Number) -> Tensor:
    """A product of two ends: 0 times an infinite end is 0, for the numbers inside are finite."""
    return torch.nan_to_num(a * b, nan=0.0, posinf=math.inf, neginf=-math.inf)
