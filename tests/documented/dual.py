"""Numbers of arbitrary precision with a derivative: f(Dual(x, 1)) holds f(x) and f'(x)."""

import math
from typing import Any

import numpy as np
from flint import arb


class Dual:
    """v + d t, with t^2 = 0, over Arb balls."""

    def __init__(self, v: Any, d: Any = 0) -> None:
        self.v, self.d = arb(v), arb(d)

    def __add__(self, other: Any) -> "Dual":
        if isinstance(other, np.ndarray):
            return NotImplemented
        o = dual(other)
        return Dual(self.v + o.v, self.d + o.d)

    def __sub__(self, other: Any) -> "Dual":
        if isinstance(other, np.ndarray):
            return NotImplemented
        o = dual(other)
        return Dual(self.v - o.v, self.d - o.d)

    def __mul__(self, other: Any) -> "Dual":
        if isinstance(other, np.ndarray):
            return NotImplemented
        o = dual(other)
        return Dual(self.v * o.v, self.d * o.v + self.v * o.d)

    def __truediv__(self, other: Any) -> "Dual":
        if isinstance(other, np.ndarray):
            return NotImplemented
        o = dual(other)
        return Dual(self.v / o.v, (self.d - self.v / o.v * o.d) / o.v)

    def __neg__(self) -> "Dual":
        return Dual(-self.v, -self.d)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> "Dual":
        return dual(other) - self

    def __rtruediv__(self, other: Any) -> "Dual":
        return dual(other) / self

    def __lt__(self, other: Any) -> bool:
        o = dual(other)
        if self.v < o.v:
            return True
        if self.v >= o.v:
            return False
        raise UndecidedError

    def __gt__(self, other: Any) -> bool:
        return dual(other) < self

    def __le__(self, other: Any) -> bool:
        return not dual(other) < self

    def __ge__(self, other: Any) -> bool:
        return not self < other


class UndecidedError(Exception):
    """A comparison needs more digits."""


def dual(x: Any) -> Dual:
    return x if isinstance(x, Dual) else Dual(x)


def chain(x: Any, value: arb, slope: arb) -> Dual:
    """A function of x with this value and derivative."""
    return Dual(value, slope * x.d if x.d != 0 else arb(0))


def exp(x: Dual) -> Dual:
    y = x.v.exp()
    return chain(x, y, y)


def expm1(x: Dual) -> Dual:
    return chain(x, x.v.expm1(), x.v.exp())


def log(x: Dual) -> Dual:
    return chain(x, x.v.log(), 1 / x.v)


def log1p(x: Dual) -> Dual:
    return chain(x, x.v.log1p(), 1 / (1 + x.v))


def sqrt(x: Dual) -> Dual:
    y = x.v.sqrt()
    return chain(x, y, 1 / (2 * y))


def sin(x: Dual) -> Dual:
    return chain(x, x.v.sin(), x.v.cos())


def cos(x: Dual) -> Dual:
    return chain(x, x.v.cos(), -x.v.sin())


def tan(x: Dual) -> Dual:
    return chain(x, x.v.tan(), 1 / x.v.cos() ** 2)


def sinh(x: Dual) -> Dual:
    return chain(x, x.v.sinh(), x.v.cosh())


def cosh(x: Dual) -> Dual:
    return chain(x, x.v.cosh(), x.v.sinh())


def tanh(x: Dual) -> Dual:
    return chain(x, x.v.tanh(), 1 / x.v.cosh() ** 2)


def asin(x: Dual) -> Dual:
    return chain(x, x.v.asin(), 1 / (1 - x.v * x.v).sqrt())


def acos(x: Dual) -> Dual:
    return chain(x, x.v.acos(), -1 / (1 - x.v * x.v).sqrt())


def atan(x: Dual) -> Dual:
    return chain(x, x.v.atan(), 1 / (1 + x.v * x.v))


def asinh(x: Dual) -> Dual:
    return chain(x, x.v.asinh(), 1 / (1 + x.v * x.v).sqrt())


def acosh(x: Dual) -> Dual:
    return chain(x, x.v.acosh(), 1 / ((x.v - 1) * (x.v + 1)).sqrt())


def atanh(x: Dual) -> Dual:
    return chain(x, x.v.atanh(), 1 / ((1 - x.v) * (1 + x.v)))


def erf(x: Dual) -> Dual:
    return chain(x, x.v.erf(), 2 * (-x.v * x.v).exp() / arb.pi().sqrt())


def erfc(x: Dual) -> Dual:
    return chain(x, x.v.erfc(), -2 * (-x.v * x.v).exp() / arb.pi().sqrt())


def erfinv(x: Dual) -> Dual:
    y = x.v.erfinv()
    return chain(x, y, arb.pi().sqrt() / 2 * (y * y).exp())


def lgamma(x: Dual) -> Dual:
    """The logarithm of |gamma|."""
    value = x.v.lgamma() if x.v > 0 else abs(x.v.gamma()).log()
    return chain(x, value, x.v.digamma())


def digamma(x: Dual) -> Dual:
    return chain(x, x.v.digamma(), polygamma(1, x.v))


def polygamma(n: int, x: arb) -> arb:
    return arb((-1) ** (n + 1) * math.factorial(n)) * arb(n + 1).zeta(x)


def power(x: Dual, p: Any) -> Dual:
    """The power x ** p; for whole exponents also where x < 0."""
    p = dual(p)
    if p.d == 0 and p.v.is_integer():
        n = int(p.v.unique_fmpz())
        if n == 0:
            return Dual(1, 0)
        return chain(x, x.v**n, n * x.v ** (n - 1))
    value = (p.v * x.v.log()).exp()
    along = p.v * value / x.v * x.d if x.d != 0 else arb(0)
    across = value * x.v.log() * p.d if p.d != 0 else arb(0)
    return Dual(value, along + across)


def bessel_i(n: int, x: Dual) -> Dual:
    """The modified Bessel function I_n, for n = 0 and 1."""
    zero, one, two = (x.v.bessel_i(arb(k)) for k in (0, 1, 2))
    return chain(x, zero, one) if n == 0 else chain(x, one, (zero + two) / 2)


def absolute(x: Dual) -> Dual:
    return -x if x < 0 else x


def constant(x: Dual) -> Dual:
    """The value, held fixed: the derivative of a step is 0."""
    return Dual(x.v)


def floor(x: Dual) -> Dual:
    whole = x.v.floor()
    if whole.unique_fmpz() is None:
        raise UndecidedError
    return Dual(whole)


def trunc(x: Dual) -> Dual:
    return -floor(-x) if x < 0 else floor(x)


def round_half_even(x: Dual) -> Dual:
    low = floor(x)
    gap = constant(x) - low
    if gap < 0.5:
        return low
    if gap > 0.5 or int(low.v.unique_fmpz()) % 2:
        return low + 1
    return low


def maximum(a: Any, b: Any) -> Dual:
    a, b = dual(a), dual(b)
    return b if a < b else a


def minimum(a: Any, b: Any) -> Dual:
    a, b = dual(a), dual(b)
    return b if b < a else a
