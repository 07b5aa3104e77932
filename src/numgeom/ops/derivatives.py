"""What are the first two derivatives of the elementary functions over a box?

Textbook formulas, in forms that do not cancel where the function saturates. Outside of a
function's domain the answer is the whole line.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.ops import intervals
from numgeom.ops.intervals import Interval, growing, reciprocal, times_constant

LN_2 = 0.69314718055994530941723212145818
LN_10 = 2.30258509299404568401799145468436
TWO_OVER_SQRT_PI = 1.12837916709551257389615890312155
HALF_SQRT_PI = 0.88622692545275801364908374167057


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Enclosures of f'(x), and of f''(x) once it is asked for, over a box."""

    first: Interval
    curvature: Callable[[], Interval]

    @property
    def second(self) -> Interval:
        """An enclosure of f''(x)."""
        return self.curvature()


@dataclass(frozen=True)
class Elementary:
    """A function of one real number.

    Attributes:
        compute: How torch computes it.
        derivatives: Enclosures of its first two derivatives.
        points: Arguments at which the value is a float64 number, and these values; infinities
            stand for limits, at an end of the domain from inside.
        width: Length of the range of its values.
        domain: Where it is defined, in words.
        above: The accuracy table covers arguments larger than this.
    """

    compute: Callable[[Tensor], Tensor]
    derivatives: Callable[[Interval], Derivatives]
    points: tuple[tuple[float, float], ...] = ()
    width: float = math.inf
    domain: str = "the reals"
    above: float = -math.inf


def _exp(x: Interval) -> Derivatives:
    value = intervals.exp(x)
    return Derivatives(value, lambda: value)


def _exp2(x: Interval) -> Derivatives:
    first = times_constant(growing("exp2", torch.exp2, x, limits=(0.0, math.inf)), LN_2)
    return Derivatives(first, lambda: times_constant(first, LN_2))


def _log(x: Interval) -> Derivatives:
    inverse = reciprocal(x.restricted(0.0, math.inf, closed=False))
    return Derivatives(inverse, lambda: -inverse.square())


def _log_to_base(natural_log: float) -> Callable[[Interval], Derivatives]:
    def derivatives(x: Interval) -> Derivatives:
        positive = x.restricted(0.0, math.inf, closed=False)
        first = reciprocal(times_constant(positive, natural_log))
        return Derivatives(first, lambda: -first * reciprocal(positive))

    return derivatives


def _log1p(x: Interval) -> Derivatives:
    inverse = reciprocal(x.restricted(-1.0, math.inf, closed=False) + 1.0)
    return Derivatives(inverse, lambda: -inverse.square())


def _sqrt(x: Interval) -> Derivatives:
    first = 0.5 * reciprocal(intervals.sqrt(x))
    return Derivatives(first, lambda: -0.5 * first * reciprocal(x))


def _rsqrt(x: Interval) -> Derivatives:
    inverse = reciprocal(x.restricted(0.0, math.inf, closed=False))
    first = -0.5 * inverse * intervals.sqrt(inverse)
    return Derivatives(first, lambda: -1.5 * first * inverse)


def _reciprocal(x: Interval) -> Derivatives:
    inverse = reciprocal(x)
    square = inverse.square()
    return Derivatives(-square, lambda: 2.0 * (square * inverse))


def _square(x: Interval) -> Derivatives:
    return Derivatives(2.0 * x, lambda: intervals.constant(2.0, x))


def _sin(x: Interval) -> Derivatives:
    return Derivatives(intervals.cos(x), lambda: -intervals.sin(x))


def _cos(x: Interval) -> Derivatives:
    return Derivatives(-intervals.sin(x), lambda: -intervals.cos(x))


def _tan(x: Interval) -> Derivatives:
    secant = reciprocal(intervals.cos(x))
    first = secant.square()
    return Derivatives(first, lambda: 2.0 * (intervals.sin(x) * secant * first))


def _asin(x: Interval) -> Derivatives:
    # 1 - x^2 without cancellation at the ends of the domain
    inside = x.restricted(-1.0, 1.0, closed=False)
    inverse = reciprocal((1.0 - inside) * (1.0 + inside))
    first = intervals.sqrt(inverse)
    return Derivatives(first, lambda: inside * first * inverse)


def _acos(x: Interval) -> Derivatives:
    arcsine = _asin(x)
    return Derivatives(-arcsine.first, lambda: -arcsine.second)


def _atan(x: Interval) -> Derivatives:
    first = reciprocal(1.0 + x.square())
    return Derivatives(first, lambda: -2.0 * (x * first.square()))


def _hyperbolic_sine(x: Interval) -> Interval:
    return growing("sinh", torch.sinh, x)


def _hyperbolic_cosine(x: Interval) -> Interval:
    return 0.5 * (intervals.exp(x) + intervals.exp(-x))


def _sinh(x: Interval) -> Derivatives:
    return Derivatives(_hyperbolic_cosine(x), lambda: _hyperbolic_sine(x))


def _cosh(x: Interval) -> Derivatives:
    return Derivatives(_hyperbolic_sine(x), lambda: _hyperbolic_cosine(x))


def _tanh(x: Interval) -> Derivatives:
    # 1 - tanh(x)^2 = 4 s(2x) s(-2x), with s the sigmoid
    product = intervals.sigmoid(2.0 * x) * intervals.sigmoid(-2.0 * x)
    first = (4.0 * product).within(0.0, 1.0)
    return Derivatives(first, lambda: -2.0 * (intervals.tanh(x) * first))


def _asinh(x: Interval) -> Derivatives:
    inverse = reciprocal(1.0 + x.square())
    first = intervals.sqrt(inverse)
    return Derivatives(first, lambda: -x * first * inverse)


def _acosh(x: Interval) -> Derivatives:
    inside = x.restricted(1.0, math.inf, closed=False)
    inverse = reciprocal((inside - 1.0) * (inside + 1.0))
    first = intervals.sqrt(inverse)
    return Derivatives(first, lambda: -inside * first * inverse)


def _atanh(x: Interval) -> Derivatives:
    inside = x.restricted(-1.0, 1.0, closed=False)
    first = reciprocal((1.0 - inside) * (1.0 + inside))
    return Derivatives(first, lambda: 2.0 * (inside * first.square()))


def _sigmoid(x: Interval) -> Derivatives:
    above, below = intervals.sigmoid(x), intervals.sigmoid(-x)
    first = (above * below).within(0.0, 0.25)
    return Derivatives(first, lambda: first * (below - above))


def _erf(x: Interval) -> Derivatives:
    first = times_constant(intervals.exp(-x.square()), TWO_OVER_SQRT_PI)
    return Derivatives(first, lambda: -2.0 * (x * first))


def _erfc(x: Interval) -> Derivatives:
    error = _erf(x)
    return Derivatives(-error.first, lambda: -error.second)


def _erfinv(x: Interval) -> Derivatives:
    value = growing("erfinv", torch.erfinv, x.restricted(-1.0, 1.0, closed=False))
    first = times_constant(intervals.exp(value.square()), HALF_SQRT_PI)
    return Derivatives(first, lambda: 2.0 * (value * first.square()))


def _digamma(x: Interval) -> Derivatives:
    # psi' is decreasing and psi'' = -2 zeta(3, x) lies in [-1/x^2 - 1/x^3, 0] for x > 0:
    # zeta(3, x) <= 1/x^3 + integral of t^-3 from x on.
    positive = x.restricted(0.0, math.inf, closed=False)
    first = -growing("trigamma", lambda t: -torch.polygamma(1, t), positive)
    inverse = reciprocal(positive)
    bound = inverse.square() * (1.0 + 2.0 * inverse)
    return Derivatives(first, lambda: Interval(-bound.hi, torch.zeros_like(bound.hi)))


def _lgamma(x: Interval) -> Derivatives:
    positive = x.restricted(0.0, math.inf, closed=False)
    return Derivatives(
        growing("digamma", torch.digamma, positive), lambda: _digamma(positive).first
    )


def _i0(x: Interval) -> Derivatives:
    # I0' = I1 and I0'' = (I0 + I2)/2, between I0/2 and I0, since 0 <= I2 <= I0.
    size = growing("i0", torch.special.i0, x.abs(), limits=(1.0, math.inf))
    first = growing("i1", torch.special.i1, x)
    return Derivatives(first, lambda: Interval(0.5 * size.lo, size.hi))


def _i1(x: Interval) -> Derivatives:
    # I1' = (I0 + I2)/2 and |I1''| = |3 I1 + I3|/4 <= |I1|, since |I3| <= |I1|.
    bent = growing("i1", torch.special.i1, x).magnitude()
    return Derivatives(_i0(x).second, lambda: Interval(-bent, bent))


INF = math.inf

ELEMENTARY: dict[str, Elementary] = {
    "exp": Elementary(torch.exp, _exp, ((-INF, 0.0), (0.0, 1.0), (INF, INF))),
    "exp2": Elementary(torch.exp2, _exp2, ((-INF, 0.0), (0.0, 1.0), (1.0, 2.0), (INF, INF))),
    "expm1": Elementary(torch.expm1, _exp, ((-INF, -1.0), (0.0, 0.0), (INF, INF))),
    "log": Elementary(torch.log, _log, ((0.0, -INF), (1.0, 0.0), (INF, INF)), domain="x > 0"),
    "log2": Elementary(
        torch.log2,
        _log_to_base(LN_2),
        ((0.0, -INF), (1.0, 0.0), (2.0, 1.0), (INF, INF)),
        domain="x > 0",
    ),
    "log10": Elementary(
        torch.log10,
        _log_to_base(LN_10),
        ((0.0, -INF), (1.0, 0.0), (10.0, 1.0), (INF, INF)),
        domain="x > 0",
    ),
    "log1p": Elementary(
        torch.log1p, _log1p, ((-1.0, -INF), (0.0, 0.0), (INF, INF)), domain="x > -1"
    ),
    "sqrt": Elementary(torch.sqrt, _sqrt, ((0.0, 0.0), (1.0, 1.0), (INF, INF)), domain="x >= 0"),
    "rsqrt": Elementary(torch.rsqrt, _rsqrt, ((1.0, 1.0), (INF, 0.0)), domain="x > 0"),
    "reciprocal": Elementary(
        torch.reciprocal, _reciprocal, ((1.0, 1.0), (-1.0, -1.0), (INF, 0.0)), domain="x not 0"
    ),
    "square": Elementary(torch.square, _square, ((0.0, 0.0), (1.0, 1.0), (-1.0, 1.0), (INF, INF))),
    "sin": Elementary(torch.sin, _sin, ((0.0, 0.0),), 2.0),
    "cos": Elementary(torch.cos, _cos, ((0.0, 1.0),), 2.0),
    "tan": Elementary(torch.tan, _tan, ((0.0, 0.0),), domain="cos x not 0"),
    "asin": Elementary(torch.asin, _asin, ((0.0, 0.0),), domain="|x| <= 1"),
    "acos": Elementary(torch.acos, _acos, ((1.0, 0.0),), domain="|x| <= 1"),
    "atan": Elementary(torch.atan, _atan, ((0.0, 0.0),), 3.1415926535897936),
    "sinh": Elementary(torch.sinh, _sinh, ((-INF, -INF), (0.0, 0.0), (INF, INF))),
    "cosh": Elementary(torch.cosh, _cosh, ((-INF, INF), (0.0, 1.0), (INF, INF))),
    "tanh": Elementary(torch.tanh, _tanh, ((-INF, -1.0), (0.0, 0.0), (INF, 1.0)), 2.0),
    "asinh": Elementary(torch.asinh, _asinh, ((-INF, -INF), (0.0, 0.0), (INF, INF))),
    "acosh": Elementary(torch.acosh, _acosh, ((1.0, 0.0), (INF, INF)), domain="x >= 1"),
    "atanh": Elementary(
        torch.atanh, _atanh, ((-1.0, -INF), (0.0, 0.0), (1.0, INF)), domain="|x| < 1"
    ),
    "sigmoid": Elementary(torch.sigmoid, _sigmoid, ((-INF, 0.0), (0.0, 0.5), (INF, 1.0)), 1.0),
    "erf": Elementary(torch.erf, _erf, ((-INF, -1.0), (0.0, 0.0), (INF, 1.0)), 2.0),
    "erfc": Elementary(torch.erfc, _erfc, ((-INF, 2.0), (0.0, 1.0), (INF, 0.0)), 2.0),
    "erfinv": Elementary(
        torch.erfinv, _erfinv, ((-1.0, -INF), (0.0, 0.0), (1.0, INF)), domain="|x| < 1"
    ),
    "lgamma": Elementary(
        torch.lgamma, _lgamma, ((1.0, 0.0), (2.0, 0.0)), domain="x > 0", above=0.0
    ),
    "i0": Elementary(torch.special.i0, _i0, ((0.0, 1.0),)),
    "i1": Elementary(torch.special.i1, _i1, ((0.0, 0.0),)),
    "digamma": Elementary(torch.digamma, _digamma, domain="x > 0", above=0.0),
}
