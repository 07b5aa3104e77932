"""What are the entry-by-entry ops over the real numbers? Each in Arb, independent of the package.

An oracle gets one number per argument: Arb balls for entries of tensors and for Python numbers,
plain integers or booleans for entries of such tensors, None and strings as they are.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flint import arb

from tests.ops.laws import Oracle

NAN = arb("nan")
INF = arb("inf")


def entrywise(f: Callable[..., Any]) -> Oracle:
    """Apply a function of numbers to arrays that broadcast."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
        fixed = {k: v for k, v in kwargs.items() if not isinstance(v, np.ndarray)}
        named = [k for k in kwargs if k not in fixed]
        given = [_as_array(a) for a in (*args, *(kwargs[k] for k in named))]
        joint = np.broadcast_arrays(*given)
        result = np.empty(joint[0].shape, dtype=object)
        out = result.reshape(-1)
        flat = [a.reshape(-1) for a in joint]
        for i in range(out.size):
            values = [a[i] for a in flat]
            extra = dict(zip(named, values[len(args) :], strict=True))
            out[i] = f(*values[: len(args)], **{k: _number(v) for k, v in fixed.items()}, **extra)
        return result

    return oracle


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.astype(object)
    array = np.empty((), dtype=object)
    array[()] = _number(value)
    return array


def _number(value: Any) -> Any:
    return arb(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def real(value: Any) -> arb:
    """A number of any kind as an Arb number."""
    return value if isinstance(value, arb) else arb(int(value))


def both(f: Callable[[arb, arb], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: f(real(a), real(b))


def add(a: Any, b: Any, alpha: Any = 1) -> arb:
    return real(a) + real(alpha) * real(b) if alpha != 1 else real(a) + real(b)


def sub(a: Any, b: Any, alpha: Any = 1) -> arb:
    return add(a, b, -real(alpha)) if alpha != 1 else real(a) - real(b)


def rsub(a: Any, b: Any, alpha: Any = 1) -> arb:
    return sub(b, a, alpha)


def divide(a: Any, b: Any, rounding_mode: str | None = None) -> arb:
    a, b = real(a), real(b)
    if rounding_mode is not None:
        return (floor if rounding_mode == "floor" else trunc)(a / b) if b != 0 else NAN
    if b.is_finite() and b.contains(0):
        return NAN
    if not b.is_finite():
        return arb(0) if a.is_finite() else NAN
    return a / b


def floor(x: Any) -> arb:
    return real(x).floor()


def trunc(x: Any) -> arb:
    x = real(x)
    return x.floor() if x >= 0 else x.ceil()


def rounded(x: Any, decimals: Any = 0) -> arb:
    x, half = real(x), arb(1) / 2
    whole = (x + half).floor()
    tie = x + half == whole and (whole / 2).floor() * 2 != whole
    return whole - 1 if tie else whole


def sign(x: Any) -> arb:
    x = real(x)
    return arb(1) if x > 0 else arb(-1) if x < 0 else arb(0)


def fmod(a: Any, b: Any) -> arb:
    a, b = real(a), real(b)
    return a - b * trunc(a / b)


def remainder(a: Any, b: Any) -> arb:
    a, b = real(a), real(b)
    return a - b * (a / b).floor()


def addcmul(s: arb, a: arb, b: arb, value: Any = 1) -> arb:
    return s + real(value) * (a * b)


def addcdiv(s: arb, a: arb, b: arb, value: Any = 1) -> arb:
    return s + real(value) * divide(a, b)


def lerp(start: arb, end: arb, weight: arb) -> arb:
    return start + weight * (end - start)


def maximum(a: Any, b: Any) -> arb:
    a, b = real(a), real(b)
    return a if a >= b else b


def minimum(a: Any, b: Any) -> arb:
    a, b = real(a), real(b)
    return a if a <= b else b


def clamp(x: Any, low: Any = None, high: Any = None) -> arb:
    x = real(x)
    x = x if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


def threshold(x: arb, limit: arb, value: arb) -> arb:
    return x if x > limit else value


def leaky_relu(x: arb, slope: Any = 0.01) -> arb:
    return x if x > 0 else arb(slope) * x


def threshold_backward(g: arb, x: arb, limit: arb) -> arb:
    return g if x > limit else arb(0)


def hardtanh_backward(g: arb, x: arb, low: arb, high: arb) -> arb:
    return g if x > low and x < high else arb(0)


def power(x: Any, y: Any) -> arb:
    x, y = real(x), real(y)
    if y.is_integer():
        n = int(y.fmpq().p) if hasattr(y, "fmpq") else int(y.unique_fmpz())
        if n == 0:
            return arb(1)
        if x == 0:
            return arb(0) if n > 0 else NAN
        return x**n
    if x == 0:
        return arb(0) if y > 0 else NAN
    if not x.is_finite():
        return (INF if y > 0 else arb(0)) if x > 0 else NAN
    return (y * x.log()).exp() if x > 0 else NAN


def log(x: Any) -> arb:
    x = real(x)
    if not x.is_finite():
        return INF if x > 0 else NAN
    return x.log() if x > 0 else -INF if x == 0 else NAN


def exp(x: Any) -> arb:
    x = real(x)
    if not x.is_finite():
        return INF if x > 0 else arb(0)
    return x.exp()


def exp2(x: arb) -> arb:
    return arb(2) ** x if x.is_integer() else (x * arb(2).log()).exp()


def log_to(base: int) -> Callable[[Any], arb]:
    """The logarithm to a base, exact at 1 and at the base itself."""

    def logarithm(x: Any) -> arb:
        return arb(1) if real(x) == base else log(x) / arb(base).log()

    return logarithm


def limit_at_infinity(f: Callable[[arb], arb], below: Any, above: Any) -> Callable[[Any], arb]:
    """A function with the limits that torch gives it at the infinities."""

    def extended(x: Any) -> arb:
        x = real(x)
        if x.is_finite():
            return f(x)
        return real(above) if x > 0 else real(below)

    return extended


def on(domain: Callable[[arb], bool], f: Callable[[arb], arb]) -> Callable[[Any], arb]:
    """A function on its domain; not defined elsewhere."""
    return lambda x: f(real(x)) if domain(real(x)) else NAN


def between_poles(f: Callable[[arb], arb]) -> Oracle:
    """A function on (-1, 1) with infinite limits at both ends."""
    inside = on(lambda x: bool(abs(x) < 1), f)
    return entrywise(lambda x: INF if x == 1 else -INF if x == -1 else inside(x))


def sigmoid(x: arb) -> arb:
    return 1 / (1 + (-x).exp()) if x > 0 else x.exp() / (1 + x.exp())


def _inf(f: Callable[[arb], arb], below: Any, above: Any) -> Oracle:
    return entrywise(limit_at_infinity(f, below, above))


ARITHMETIC: dict[str, Oracle] = {
    "add": entrywise(add),
    "sub": entrywise(sub),
    "rsub": entrywise(rsub),
    "neg": entrywise(lambda x: -real(x)),
    "mul": entrywise(both(lambda a, b: a * b)),
    "div": entrywise(divide),
    "floor_divide": entrywise(lambda a, b: divide(a, b, "floor")),
    "addcmul": entrywise(addcmul),
    "addcdiv": entrywise(addcdiv),
    "lerp": entrywise(lerp),
    "floor": entrywise(floor),
    "ceil": entrywise(lambda x: real(x).ceil()),
    "trunc": entrywise(trunc),
    "round": entrywise(rounded),
    "sign": entrywise(sign),
    "sgn": entrywise(sign),
    "frac": entrywise(lambda x: real(x) - trunc(x)),
    "fmod": entrywise(fmod),
    "remainder": entrywise(remainder),
}

CHOICES: dict[str, Oracle] = {
    "eq": entrywise(both(lambda a, b: bool(a == b))),
    "ne": entrywise(both(lambda a, b: not a == b)),  # noqa: SIM201 - Arb has its own !=
    "lt": entrywise(both(lambda a, b: bool(a < b))),
    "le": entrywise(both(lambda a, b: bool(a <= b))),
    "gt": entrywise(both(lambda a, b: bool(a > b))),
    "ge": entrywise(both(lambda a, b: bool(a >= b))),
    "isnan": entrywise(lambda x: False),
    "isinf": entrywise(lambda x: not x.is_finite()),
    "isfinite": entrywise(lambda x: bool(x.is_finite())),
    "relu": entrywise(lambda x: maximum(x, 0)),
    "maximum": entrywise(maximum),
    "minimum": entrywise(minimum),
    "fmax": entrywise(maximum),
    "fmin": entrywise(minimum),
    "clamp": entrywise(clamp),
    "clamp_min": entrywise(clamp),
    "clamp_max": entrywise(lambda x, high: minimum(x, high)),
    "hardtanh": entrywise(lambda x, low=-1, high=1: clamp(x, low, high)),
    "abs": entrywise(lambda x: abs(real(x))),
    "threshold": entrywise(threshold),
    "leaky_relu": entrywise(leaky_relu),
    "threshold_backward": entrywise(threshold_backward),
    "hardtanh_backward": entrywise(hardtanh_backward),
}

SMOOTH: dict[str, Oracle] = {
    "exp": entrywise(exp),
    "exp2": _inf(exp2, 0, INF),
    "expm1": _inf(arb.expm1, -1, INF),
    "log": entrywise(log),
    "log2": entrywise(log_to(2)),
    "log10": entrywise(log_to(10)),
    "log1p": entrywise(lambda x: real(x).log1p() if x > -1 else log(x + 1)),
    "sqrt": entrywise(on(lambda x: bool(x >= 0), arb.sqrt)),
    "rsqrt": entrywise(on(lambda x: bool(x > 0), arb.rsqrt)),
    "reciprocal": entrywise(lambda x: divide(1, x)),
    "square": entrywise(lambda x: real(x) * real(x)),
    "pow": entrywise(power),
    "sin": entrywise(arb.sin),
    "cos": entrywise(arb.cos),
    "tan": entrywise(arb.tan),
    "asin": entrywise(on(lambda x: bool(abs(x) <= 1), arb.asin)),
    "acos": entrywise(on(lambda x: bool(abs(x) <= 1), arb.acos)),
    "atan": entrywise(arb.atan),
    "sinh": _inf(arb.sinh, -INF, INF),
    "cosh": _inf(arb.cosh, INF, INF),
    "tanh": _inf(arb.tanh, -1, 1),
    "asinh": _inf(arb.asinh, -INF, INF),
    "acosh": entrywise(on(lambda x: bool(x >= 1), arb.acosh)),
    "atanh": between_poles(arb.atanh),
    "sigmoid": _inf(sigmoid, 0, 1),
    "erf": _inf(arb.erf, -1, 1),
    "erfc": _inf(arb.erfc, 2, 0),
    "erfinv": between_poles(arb.erfinv),
    "lgamma": entrywise(on(lambda x: bool(x > 0), arb.lgamma)),
    "digamma": entrywise(on(lambda x: bool(x > 0), arb.digamma)),
}


def gelu(x: arb, approximate: str = "none") -> arb:
    if approximate == "none":
        return x * (-x / arb(2).sqrt()).erfc() / 2
    t = (2 / arb.pi()).sqrt() * (x + arb(0.044715) * x**3)
    return x * sigmoid(2 * t)


def mish(x: arb) -> arb:
    return x * softplus_of(x).tanh()


def softplus_of(x: arb) -> arb:
    return x + (-x).exp().log1p() if x > 0 else x.exp().log1p()


def softplus(x: arb, beta: Any = 1, threshold: Any = 20) -> arb:
    beta = real(beta)
    return x if x * beta > real(threshold) else softplus_of(x * beta) / beta


def elu(x: arb, alpha: Any = 1, scale: Any = 1, inner: Any = 1) -> arb:
    if x > 0:
        return real(scale) * x
    return real(alpha) * real(scale) * (x * real(inner)).expm1()


def celu(x: arb, alpha: Any = 1) -> arb:
    return x if x > 0 else real(alpha) * (x / real(alpha)).expm1()


def hardsigmoid(x: arb) -> arb:
    return clamp(x + 3, 0, 6) / 6


def hardshrink(x: arb, bound: Any = 0.5) -> arb:
    return x if abs(x) > arb(bound) else arb(0)


def softshrink(x: arb, bound: Any = 0.5) -> arb:
    bound = arb(bound)
    return x - bound if x > bound else x + bound if x < -bound else arb(0)


def leaky_relu_backward(g: arb, x: arb, slope: arb, is_result: bool) -> arb:
    return g if x > 0 else g * slope


def logaddexp(a: arb, b: arb) -> arb:
    return maximum(a, b) + (-abs(a - b)).exp().log1p()


def atan2(y: arb, x: arb) -> arb:
    return arb.atan2(y, x) if not (x == 0 and y == 0) else NAN


def xlogy(x: arb, y: arb) -> arb:
    return arb(0) if x == 0 else x * log(y) if y > 0 else NAN


def nan_to_num(x: arb) -> arb:
    if x.is_finite():
        return x
    return arb(1.7976931348623157e308) if x > 0 else -arb(1.7976931348623157e308)


COMPOSITE: dict[str, Oracle] = {
    "gelu": entrywise(gelu),
    "silu": entrywise(lambda x: x * sigmoid(x)),
    "mish": entrywise(mish),
    "softplus": entrywise(softplus),
    "elu": entrywise(elu),
    "celu": entrywise(celu),
    "_prelu_kernel": entrywise(lambda x, w: x if x > 0 else w * x),
    "hardsigmoid": entrywise(hardsigmoid),
    "hardswish": entrywise(lambda x: x * hardsigmoid(x)),
    "hardshrink": entrywise(hardshrink),
    "softshrink": entrywise(softshrink),
    "tanh_backward": entrywise(lambda g, y: g * (1 - y * y)),
    "sigmoid_backward": entrywise(lambda g, y: g * (1 - y) * y),
    "hardshrink_backward": entrywise(lambda g, x, b: g if abs(x) > b else arb(0)),
    "softshrink_backward": entrywise(lambda g, x, b: g if abs(x) > b else arb(0)),
    "leaky_relu_backward": entrywise(leaky_relu_backward),
    "logaddexp": entrywise(logaddexp),
    "hypot": entrywise(lambda a, b: (a * a + b * b).sqrt()),
    "atan2": entrywise(atan2),
    "xlogy": entrywise(xlogy),
    "nan_to_num": entrywise(nan_to_num),
    "rrelu_with_noise_backward": entrywise(lambda g, x, noise, *rest: g * noise),
    "i0": entrywise(lambda x: x.bessel_i(0)),
    "special_i1": entrywise(lambda x: x.bessel_i(1)),
}

ORACLES: dict[str, Oracle] = {**ARITHMETIC, **CHOICES, **SMOOTH, **COMPOSITE}
