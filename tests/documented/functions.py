"""What does torch's documentation say that each function of numbers computes?

Written from the documentation, over Arb balls with a derivative; nothing here comes from the
package or from torch's own formulas. A parameter stands for its double value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flint import arb
from torch import Tensor

from tests.documented import dual as D
from tests.documented.dual import Dual, dual

F = torch.nn.functional
S = torch.special


@dataclass(frozen=True)
class Function:
    """A function of one number, or of two.

    Attributes:
        name: As it is shown.
        computed: What is run.
        exact: What it means.
        kinks: Points at which no derivative is defined.
        near: Numbers around which inputs are drawn besides the usual ones.
        arguments: How many.
        ties: Whether equal arguments are a kink.
        typical: Draw inputs from (low, high).
    """

    name: str
    computed: Callable[..., Tensor]
    exact: Callable[..., Dual]
    kinks: tuple[float, ...] = ()
    near: tuple[float, ...] = ()
    arguments: int = 1
    ties: bool = False
    typical: tuple[float, float] = (-4.0, 4.0)


PI = arb.pi


def _sigmoid(x: Dual) -> Dual:
    return 1 / (1 + D.exp(-x))


def _softplus(x: Dual) -> Dual:
    return D.log1p(D.exp(x))


def _tanh_gelu(x: Dual) -> Dual:
    inner = dual((2 / PI()).sqrt()) * (x + dual(arb("0.044715")) * x * x * x)
    return x * 0.5 * (1 + D.tanh(inner))


def _normal(x: Dual) -> Dual:
    return D.erfc(-x / dual(arb(2).sqrt())) / 2


def _elu(x: Dual, alpha: Any = 1, scale: Any = 1, inner: Any = 1) -> Dual:
    a, s, t = dual(alpha), dual(scale), dual(inner)
    return s * x if x > 0 else s * a * D.expm1(x * t)


def _selu(x: Dual) -> Dual:
    alpha, scale = (
        arb("1.6732632423543772848170429916717"),
        arb("1.0507009873554804934193349852946"),
    )
    return _elu(x, alpha, scale)


def _sinc(x: Dual) -> Dual:
    if x.v == 0:
        return Dual(1, 0)
    angle = x * dual(PI())
    return D.sin(angle) / angle


def _clamp(x: Dual, low: float, high: float) -> Dual:
    return D.minimum(D.maximum(x, low), high)


def _entr(x: Dual) -> Dual:
    return Dual(0) if x.v == 0 else -x * D.log(x)


def _logaddexp(a: Dual, b: Dual) -> Dual:
    if a.v < b.v:
        a, b = b, a
    return a + D.log1p(D.exp(b - a))


def _logaddexp2(a: Dual, b: Dual) -> Dual:
    two = dual(arb(2).log())
    return _logaddexp(a * two, b * two) / two


def _remainder(a: Dual, b: Dual) -> Dual:
    return a - b * D.floor(D.constant(a) / D.constant(b))


def _fmod(a: Dual, b: Dual) -> Dual:
    return a - b * D.trunc(D.constant(a) / D.constant(b))


def _atan2(y: Dual, x: Dual) -> Dual:
    along = (x * y.d - y * x.d).v / (x * x + y * y).v
    return Dual(arb.atan2(y.v, x.v), along)


def _xlogy(x: Dual, y: Dual) -> Dual:
    if x.v == 0:
        return Dual(0, x.d * y.v.log() if x.d != 0 else 0)
    return x * D.log(y)


def _half_steps(c: float) -> Callable[[Dual], Dual]:
    def exact(x: Dual) -> Dual:
        return Dual(0, 0) if -c <= x and x <= c else x

    return exact


def _softshrink(x: Dual, c: float) -> Dual:
    return x - c if x > c else x + c if x < -c else Dual(0)


def _ramp(x: Dual) -> Dual:
    return Dual(0) if x < -3 else Dual(1) if x > 3 else (x + 3) / 6


def _mvlgamma(x: Dual, p: int) -> Dual:
    total = dual(PI().log() * p * (p - 1) / 4)
    for j in range(p):
        total = total + D.lgamma(x - arb(j) / 2)
    return total


def _erfcx(x: Dual) -> Dual:
    return D.exp(x * x) * D.erfc(x)


_CONSTANT = (
    Function("deg2rad", torch.deg2rad, lambda x: x * dual(PI() / 180)),
    Function("rad2deg", torch.rad2deg, lambda x: x * dual(180 / PI())),
    Function("sinc", torch.sinc, _sinc, near=(1.0, 0.5, 2.0**53, 685104.0)),
    Function("log2", torch.log2, lambda x: D.log(x) / dual(arb(2).log()), near=(1.0,)),
    Function("log10", torch.log10, lambda x: D.log(x) / dual(arb(10).log()), near=(1.0, 10.0)),
    Function("exp2", torch.exp2, lambda x: D.exp(x * dual(arb(2).log())), near=(1.0, -1074.0)),
    Function("erfinv", torch.erfinv, D.erfinv, near=(1.0, -1.0), typical=(-1.0, 1.0)),
    Function("ndtr", S.ndtr, _normal, near=(-8.0, -1.4142135)),
    Function("ndtri", S.ndtri, lambda p: D.erfinv(p * 2 - 1) * dual(arb(2).sqrt()),
             near=(0.5,), typical=(0.0, 1.0)),
    Function("log_ndtr", S.log_ndtr, lambda x: D.log(_normal(x)), near=(1.0,)),
    Function("gelu", F.gelu, lambda x: x * _normal(x)),
    Function("gelu tanh", lambda x: F.gelu(x, approximate="tanh"), _tanh_gelu),
    Function("selu", F.selu, _selu, kinks=(0.0,)),
    Function("celu 0.7", lambda x: F.celu(x, 0.7), lambda x: _elu(x, 0.7, 1, 1 / arb(0.7))),
    Function("celu 1/3", lambda x: F.celu(x, 1 / 3), lambda x: _elu(x, 1 / 3, 1, 1 / arb(1 / 3))),
    Function("elu 0.3", lambda x: F.elu(x, 0.3), lambda x: _elu(x, 0.3), kinks=(0.0,)),
    Function("erf", torch.erf, D.erf),
    Function("erfc", torch.erfc, D.erfc, near=(5.0,)),
    *(
        Function(f"x ** {p}", lambda x, p=p: x**p, lambda x, p=p: D.power(x, p), near=(1.0,),
                 kinks=(0.0,) if p < 1 else ())
        for p in (0.1, -0.7, 2.7, 5e-17, 1 / 3, 0.5, -0.5, 2.0, 3.0, -1.0, -2.0, 7.0, 1.0, 0.9999)
    ),
    *(
        Function(f"{b} ** x", lambda x, b=b: b**x, lambda x, b=b: D.exp(x * D.log(Dual(b))))
        for b in (0.1, 10.0, 2.0, 1.0000001, 3.0)
    ),
    *(
        Function(f"lerp {w}", lambda x, y, w=w: torch.lerp(x, y, w),
                 lambda x, y, w=w: x + (y - x) * Dual(w), arguments=2)
        for w in (0.3, 0.7, 1e-20, 0.5, 1 / 3, 2.3)
    ),
    Function("logit 0.3", lambda x: torch.logit(x, 0.3),
             lambda x: (lambda c: D.log(c / (1 - c)))(D.minimum(D.maximum(x, 0.3), 1 - arb(0.3))),
             near=(0.3, 0.7), kinks=(0.3, 0.7), typical=(0.0, 1.0)),
    Function("logaddexp2", torch.logaddexp2, _logaddexp2, arguments=2),
    Function("mvlgamma 3", lambda x: torch.mvlgamma(x, 3), lambda x: _mvlgamma(x, 3),
             typical=(1.1, 9.0)),
    Function("hardsigmoid", F.hardsigmoid, _ramp, kinks=(-3.0, 3.0), near=(3.0, -3.0)),
    Function("hardswish", F.hardswish, lambda x: x * _ramp(x), kinks=(-3.0, 3.0), near=(3.0, -3.0)),
    Function("rrelu", lambda x: F.rrelu(x, 0.1, 0.3),
             lambda x: x if x > 0 else x * dual((arb(0.1) + arb(0.3)) / 2), kinks=(0.0,)),
)  # fmt: skip

_SMOOTH = (
    Function("exp", torch.exp, D.exp, near=(700.0, -740.0, 88.0)),
    Function("expm1", torch.expm1, D.expm1),
    Function("log", torch.log, D.log, near=(1.0,)),
    Function("log1p", torch.log1p, D.log1p, near=(-1.0,)),
    Function("sqrt", torch.sqrt, D.sqrt, kinks=(0.0,)),
    Function("rsqrt", torch.rsqrt, lambda x: 1 / D.sqrt(x)),
    Function("reciprocal", torch.reciprocal, lambda x: 1 / x),
    Function("square", torch.square, lambda x: x * x),
    Function("neg", torch.neg, lambda x: -x),
    Function("sin", torch.sin, D.sin, near=(math.pi, 1e5)),
    Function("cos", torch.cos, D.cos, near=(math.pi / 2,)),
    Function("tan", torch.tan, D.tan, near=(math.pi / 2,)),
    Function("sinh", torch.sinh, D.sinh),
    Function("cosh", torch.cosh, D.cosh),
    Function("tanh", torch.tanh, D.tanh),
    Function("asin", torch.asin, D.asin, near=(1.0, -1.0), typical=(-1.0, 1.0)),
    Function("acos", torch.acos, D.acos, near=(1.0, -1.0), typical=(-1.0, 1.0)),
    Function("atan", torch.atan, D.atan),
    Function("asinh", torch.asinh, D.asinh),
    Function("acosh", torch.acosh, D.acosh, near=(1.0,), typical=(1.0, 9.0)),
    Function("atanh", torch.atanh, D.atanh, near=(1.0, -1.0), typical=(-1.0, 1.0)),
    Function("sigmoid", torch.sigmoid, _sigmoid),
    Function("logit", torch.logit, lambda x: D.log(x / (1 - x)), near=(0.5,), typical=(0.0, 1.0)),
    Function("lgamma", torch.lgamma, D.lgamma, near=(1.0, 2.0), typical=(0.0, 9.0)),
    Function("digamma", torch.digamma, D.digamma, near=(1.4616,), typical=(0.0, 9.0)),
    Function("entr", S.entr, _entr, typical=(0.0, 3.0), kinks=(0.0,)),
    Function("erfcx", S.erfcx, _erfcx),
    Function("i0", torch.i0, lambda x: D.bessel_i(0, x)),
    Function("i1", S.i1, lambda x: D.bessel_i(1, x)),
    Function("xlog1py", S.xlog1py, lambda x, y: _xlogy(x, 1 + y), arguments=2),
    Function("silu", F.silu, lambda x: x * _sigmoid(x)),
    Function("mish", F.mish, lambda x: x * D.tanh(_softplus(x))),
    Function("softplus", F.softplus, lambda x: x if x > 20 else _softplus(x), kinks=(20.0,)),
    Function("softplus 0.7", lambda x: F.softplus(x, 0.7, 5.0),
             lambda x: x if x * 0.7 > 5 else _softplus(x * 0.7) / 0.7, near=(5 / 0.7,)),
    Function("logsigmoid", F.logsigmoid, lambda x: -_softplus(-x)),
    Function("softsign", F.softsign, lambda x: x / (1 + D.absolute(x))),
    Function("tanhshrink", F.tanhshrink, lambda x: x - D.tanh(x)),
    Function("hypot", torch.hypot, lambda x, y: D.sqrt(x * x + y * y), arguments=2),
    Function("atan2", torch.atan2, _atan2, arguments=2),
    Function("logaddexp", torch.logaddexp, _logaddexp, arguments=2),
    Function("xlogy", torch.xlogy, _xlogy, arguments=2),
    Function("pow", torch.pow, D.power, arguments=2, typical=(0.0, 4.0)),
    Function("div", torch.div, lambda x, y: x / y, arguments=2),
    Function("mul", torch.mul, lambda x, y: x * y, arguments=2),
    Function("add 0.3", lambda x, y: torch.add(x, y, alpha=0.3), lambda x, y: x + y * 0.3,
             arguments=2),
    Function("sub", torch.sub, lambda x, y: x - y, arguments=2),
    Function("addcmul 0.3", lambda x, y: torch.addcmul(x, x, y, value=0.3),
             lambda x, y: x + x * y * 0.3, arguments=2),
    Function("addcdiv 0.3", lambda x, y: torch.addcdiv(x, x, y, value=0.3),
             lambda x, y: x + x / y * 0.3, arguments=2),
)  # fmt: skip

_STEPS = (
    Function("abs", torch.abs, D.absolute, kinks=(0.0,)),
    Function("relu", torch.relu, lambda x: D.maximum(x, 0), kinks=(0.0,)),
    Function("relu6", F.relu6, lambda x: _clamp(x, 0, 6), kinks=(0.0, 6.0), near=(6.0,)),
    Function("leaky_relu", lambda x: F.leaky_relu(x, 0.3), lambda x: x if x > 0 else x * 0.3,
             kinks=(0.0,)),
    Function("leaky_relu default", F.leaky_relu, lambda x: x if x > 0 else x * 0.01, kinks=(0.0,)),
    Function("hardtanh", F.hardtanh, lambda x: _clamp(x, -1, 1), kinks=(-1.0, 1.0), near=(1.0,)),
    Function("hardshrink 0.3", lambda x: F.hardshrink(x, 0.3), _half_steps(0.3),
             kinks=(-0.3, 0.3), near=(0.3, -0.3)),
    Function("softshrink 0.3", lambda x: F.softshrink(x, 0.3), lambda x: _softshrink(x, 0.3),
             kinks=(-0.3, 0.3), near=(0.3, -0.3)),
    Function("threshold 0.3", lambda x: F.threshold(x, 0.3, 0.7),
             lambda x: x if x > 0.3 else Dual(0.7), kinks=(0.3,), near=(0.3,)),
    Function("clamp", lambda x: torch.clamp(x, -0.3, 0.7), lambda x: _clamp(x, -0.3, 0.7),
             kinks=(-0.3, 0.7), near=(-0.3, 0.7)),
    Function("floor", torch.floor, D.floor, near=(1.0, -1.0, 2.0**53)),
    Function("ceil", torch.ceil, lambda x: -D.floor(-x), near=(1.0, -1.0)),
    Function("trunc", torch.trunc, D.trunc, near=(1.0, -1.0)),
    Function("round", torch.round, D.round_half_even, near=(0.5, 1.5, -0.5)),
    Function("frac", torch.frac, lambda x: x - D.trunc(D.constant(x)), near=(1.0, -1.0)),
    Function("sign", torch.sign, lambda x: Dual(1 if x > 0 else -1 if x < 0 else 0)),
    Function("nan_to_num", torch.nan_to_num, lambda x: x),
    Function("maximum", torch.maximum, D.maximum, arguments=2, ties=True),
    Function("fmin", torch.fmin, D.minimum, arguments=2, ties=True),
    Function("copysign", torch.copysign,
             lambda x, y: D.absolute(x) if y > 0 else -D.absolute(x), arguments=2, kinks=(0.0,)),
    Function("remainder", torch.remainder, _remainder, arguments=2),
    Function("fmod", torch.fmod, _fmod, arguments=2),
    Function("remainder 0.3", lambda x: torch.remainder(x, 0.3), lambda x: _remainder(x, Dual(0.3)),
             near=(0.3, 0.6, 0.9)),
    Function("floor division", lambda x, y: torch.div(x, y, rounding_mode="floor"),
             lambda x, y: D.floor(D.constant(x) / D.constant(y)), arguments=2),
)  # fmt: skip

WITH_CONSTANTS: tuple[Function, ...] = _CONSTANT
FUNCTIONS: tuple[Function, ...] = (*_CONSTANT, *_SMOOTH, *_STEPS)
