"""Ops that compute every entry on its own, from their documentation."""

import math
from collections.abc import Callable
from typing import Any

from flint import arb

from tests.oracle.choices import truths
from tests.oracle.numbers import (
    INFINITY,
    ONE,
    ZERO,
    Numbers,
    UnsupportedError,
    elementwise,
    filled,
    floor,
    is_at_most,
    is_equal,
    is_less,
    is_minus_infinity,
    larger,
    magnitude,
    mapped,
    numbers,
    real,
    sign,
    smaller,
    truncated,
)

# -- arithmetic ----------------------------------------------------------------------------


def add(x: Any, y: Any, *, alpha: Any = 1) -> Numbers:
    return mapped(lambda a, b: a + real(alpha) * b, x, y)


def sub(x: Any, y: Any, *, alpha: Any = 1) -> Numbers:
    return mapped(lambda a, b: a - real(alpha) * b, x, y)


def rsub(x: Any, y: Any, alpha: Any = 1) -> Numbers:
    return sub(y, x, alpha=alpha)


def div(x: Any, y: Any, *, rounding_mode: str | None = None) -> Numbers:
    whole = {None: lambda q: q, "floor": floor, "trunc": truncated}[rounding_mode]
    return mapped(lambda a, b: whole(a / b), x, y)


def rounded(x: Any, *, decimals: int = 0) -> Numbers:
    if decimals:
        raise UnsupportedError("round to decimals")

    def one(v: arb) -> arb:
        below = floor(v)
        rest = v - below
        if is_equal(rest, real(0.5)):
            return below if int(below.unique_fmpz()) % 2 == 0 else below + 1
        return below if is_less(rest, real(0.5)) else below + 1

    return mapped(one, x)


def power(x: arb, y: arb) -> arb:
    if y.is_integer():
        n = int(y.unique_fmpz())
        return x**n if n >= 0 else ONE / x**-n
    if is_equal(x, ZERO):
        return ZERO if is_less(ZERO, y) else INFINITY
    return (x.log() * y).exp()


def lerp(start: Any, end: Any, weight: Any) -> Numbers:
    return mapped(lambda a, b, w: a + w * (b - a), start, end, weight)


def addcmul(x: Any, a: Any, b: Any, *, value: Any = 1) -> Numbers:
    return mapped(lambda s, p, q: s + real(value) * p * q, x, a, b)


def addcdiv(x: Any, a: Any, b: Any, *, value: Any = 1) -> Numbers:
    return mapped(lambda s, p, q: s + real(value) * p / q, x, a, b)


# -- functions -----------------------------------------------------------------------------


def exp(x: arb) -> arb:
    return ZERO if is_minus_infinity(x) else x.exp()


def log(x: arb) -> arb:
    return -INFINITY if x == 0 else x.log()


def sigmoid(x: arb) -> arb:
    return ONE / (ONE + exp(-x))


def normal_cdf(x: arb) -> arb:
    return (ONE + (x / arb(2).sqrt()).erf()) / 2


def sinc(x: arb) -> arb:
    return ONE if x == 0 else (arb.pi() * x).sin() / (arb.pi() * x)


def entropy(x: arb) -> arb:
    return ZERO if x == 0 else -x * x.log()


def times_log(x: arb, y: arb) -> arb:
    return ZERO if is_equal(x, ZERO) else x * y.log()


def times_log1p(x: arb, y: arb) -> arb:
    return ZERO if is_equal(x, ZERO) else x * y.log1p()


def log_add_exp(x: arb, y: arb) -> arb:
    return y + (ONE + (x - y).exp()).log()


def log_add_exp2(x: arb, y: arb) -> arb:
    two = arb(2).log()
    return y + (ONE + ((x - y) * two).exp()).log() / two


def polygamma(n: int, x: Any) -> Numbers:
    if n == 0:
        return mapped(lambda v: v.digamma(), x)
    factor = real((-1) ** (n + 1) * math.factorial(n))
    return mapped(lambda v: factor * arb.zeta(arb(n + 1), v), x)


def logit(x: Any, eps: Any = None) -> Numbers:
    inside = x if eps is None else clamp(x, eps, ONE - real(eps))
    return mapped(lambda v: (v / (ONE - v)).log(), inside)


def logit_backward(g: Any, x: Any, eps: Any = None) -> Numbers:
    def slope(v: arb) -> arb:
        inside = eps is None or (is_at_most(real(eps), v) and is_at_most(v, ONE - real(eps)))
        return ONE / (v * (ONE - v)) if inside else ZERO

    return mapped(lambda a, v: a * slope(v), g, x)


# -- pieces --------------------------------------------------------------------------------


def clamp(x: Any, low: Any = None, high: Any = None) -> Numbers:
    x = numbers(x)
    x = x if low is None else mapped(larger, x, low)
    return x if high is None else mapped(smaller, x, high)


def threshold_backward(g: Any, x: Any, limit: Any) -> Numbers:
    return mapped(lambda a, v: a if is_less(real(limit), v) else ZERO, g, x)


def hardtanh_backward(g: Any, x: Any, low: Any, high: Any) -> Numbers:
    def one(a: arb, v: arb) -> arb:
        return a if is_less(real(low), v) and is_less(v, real(high)) else ZERO

    return mapped(one, g, x)


def _outside(x: Any, limit: Any, shift: bool) -> Numbers:
    """Hard and soft shrinkage."""
    c = real(limit)
    step = c if shift else ZERO

    def one(v: arb) -> arb:
        return v - step if is_less(c, v) else v + step if is_less(v, -c) else ZERO

    return mapped(one, x)


def _outside_backward(g: Any, x: Any, limit: Any) -> Numbers:
    c = real(limit)
    return mapped(lambda a, v: a if is_less(c, v) or is_less(v, -c) else ZERO, g, x)


def native_dropout_backward(g: Any, mask: Any, scale: Any) -> Numbers:
    return mapped(lambda a, m: a * m * real(scale), g, mask)


def nan_to_num(x: Any, *_: Any, **__: Any) -> Numbers:
    if not all(v.is_finite() for v in numbers(x).reshape(-1)):
        raise UnsupportedError("nan_to_num of what is not finite")
    return numbers(x)


def copy_sign(x: arb, y: arb) -> arb:
    return magnitude(x) if is_less(ZERO, y) else -magnitude(x)


def _filled_like(value: Any) -> Callable[..., Numbers]:
    return lambda x, *_, **__: filled(x.shape, value)


def _trunc_mod(x: arb, y: arb) -> arb:
    return x - truncated(x / y) * y


def _floor_mod(x: arb, y: arb) -> arb:
    return x - floor(x / y) * y


UNARY: dict[str, Callable[[arb], arb]] = {
    "neg": lambda x: -x,
    "exp": exp,
    "exp2": lambda x: (x * arb(2).log()).exp(),
    "expm1": lambda x: x.expm1(),
    "log": log,
    "log2": lambda x: log(x) / arb(2).log(),
    "log10": lambda x: log(x) / arb(10).log(),
    "log1p": lambda x: x.log1p(),
    "sqrt": lambda x: x.sqrt(),
    "rsqrt": lambda x: ONE / x.sqrt(),
    "reciprocal": lambda x: ONE / x,
    "square": lambda x: x * x,
    "abs": magnitude,
    "sign": sign,
    "sgn": sign,
    "sin": lambda x: x.sin(),
    "cos": lambda x: x.cos(),
    "tan": lambda x: x.tan(),
    "asin": lambda x: x.asin(),
    "acos": lambda x: x.acos(),
    "atan": lambda x: x.atan(),
    "sinh": lambda x: x.sinh(),
    "cosh": lambda x: x.cosh(),
    "tanh": lambda x: x.tanh(),
    "asinh": lambda x: x.asinh(),
    "acosh": lambda x: x.acosh(),
    "atanh": lambda x: x.atanh(),
    "sigmoid": sigmoid,
    "erf": lambda x: x.erf(),
    "erfc": lambda x: x.erfc(),
    "erfinv": lambda x: x.erfinv(),
    "lgamma": lambda x: x.lgamma(),
    "digamma": lambda x: x.digamma(),
    "floor": floor,
    "ceil": lambda x: -floor(-x),
    "trunc": truncated,
    "frac": lambda x: x - truncated(x),
    "deg2rad": lambda x: x * arb.pi() / 180,
    "rad2deg": lambda x: x * 180 / arb.pi(),
    "angle": lambda x: arb.pi() if is_less(x, ZERO) else ZERO,
    "sinc": sinc,
    "i0": lambda x: x.bessel_i(ZERO),
    "special_i1": lambda x: x.bessel_i(ONE),
    "special_i0e": lambda x: x.bessel_i(ZERO) * (-abs(x)).exp(),
    "special_i1e": lambda x: x.bessel_i(ONE) * (-abs(x)).exp(),
    "special_ndtr": normal_cdf,
    "special_log_ndtr": lambda x: ((-x / arb(2).sqrt()).erfc() / 2).log(),
    "special_ndtri": lambda x: arb(2).sqrt() * (2 * x - 1).erfinv(),
    "special_entr": entropy,
    "special_erfcx": lambda x: (x * x).exp() * x.erfc(),
}

BINARY: dict[str, Callable[[arb, arb], arb]] = {
    "mul": lambda a, b: a * b,
    "pow": power,
    "fmod": _trunc_mod,
    "remainder": _floor_mod,
    "floor_divide": lambda a, b: floor(a / b),
    "maximum": larger,
    "minimum": smaller,
    "fmax": larger,
    "fmin": smaller,
    "clamp_min": larger,
    "clamp_max": smaller,
    "atan2": lambda y, x: arb.atan2(y, x),
    "hypot": lambda a, b: (a * a + b * b).sqrt(),
    "logaddexp": log_add_exp,
    "logaddexp2": log_add_exp2,
    "xlogy": times_log,
    "special_xlogy": times_log,
    "special_xlog1py": times_log1p,
    "copysign": copy_sign,
    "heaviside": lambda x, y: y if is_equal(x, ZERO) else (ONE if is_less(ZERO, x) else ZERO),
    "special_zeta": lambda s, x: arb.zeta(s, x),
}

ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{name: elementwise(f) for name, f in UNARY.items()},
    **{name: elementwise(f) for name, f in BINARY.items()},
    "add": add,
    "sub": sub,
    "rsub": rsub,
    "div": div,
    "round": rounded,
    "lerp": lerp,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "polygamma": polygamma,
    "logit": logit,
    "logit_backward": logit_backward,
    "clamp": clamp,
    "hardtanh": lambda x, low=-1.0, high=1.0: clamp(x, low, high),
    "threshold": lambda x, limit, value: mapped(
        lambda v: v if is_less(real(limit), v) else real(value), x
    ),
    "threshold_backward": threshold_backward,
    "hardtanh_backward": hardtanh_backward,
    "softshrink": lambda x, limit=0.5: _outside(x, limit, shift=True),
    "hardshrink": lambda x, limit=0.5: _outside(x, limit, shift=False),
    "softshrink_backward": _outside_backward,
    "hardshrink_backward": _outside_backward,
    "native_dropout_backward": native_dropout_backward,
    "nan_to_num": nan_to_num,
    "ones_like": _filled_like(1),
    "zeros_like": _filled_like(0),
    "empty_like": _filled_like(0),
    "full_like": lambda x, value, **_: filled(x.shape, value),
    "logical_not": lambda x: ~truths(x),
    "logical_and": lambda x, y: truths(x) & truths(y),
    "logical_or": lambda x, y: truths(x) | truths(y),
}
