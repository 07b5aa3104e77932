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
