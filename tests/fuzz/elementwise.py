"""Blocks that compute entry by entry: smooth functions, kinked ones, and pairs of numbers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fuzz.maker import Block, Layer, Maker


def _plain(f: Callable[[Tensor], Tensor]) -> Block:
    return lambda make: f


def _inside(f: Callable[[Tensor], Tensor]) -> Block:
    """Of an argument strictly between -1 and 1."""
    return lambda make: lambda h: f(torch.tanh(h) * 0.9)


def _unit(f: Callable[[Tensor], Tensor]) -> Block:
    """Of an argument strictly between 0 and 1."""
    return lambda make: lambda h: f(torch.sigmoid(h))


def _bounded(f: Callable[[Tensor], Tensor]) -> Block:
    """Of an argument between -5 and 5, so that nothing overflows."""
    return lambda make: lambda h: f(5 * torch.tanh(h / 5))


def _positive(f: Callable[[Tensor], Tensor]) -> Block:
    return _with_number(lambda h, least: f(h.abs() + least), 0.1, 1.0, 1e-3)


def _with_number(f: Callable[[Tensor, Any], Tensor], *numbers: float) -> Block:
    def block(make: Maker) -> Layer:
        number = make.choice(*numbers)
        return lambda h: f(h, number)

    return block


SMOOTH: dict[str, Block] = {
    "exp": _bounded(torch.exp), "exp2": _bounded(torch.exp2), "expm1": _bounded(torch.expm1),
    "log": _positive(torch.log), "log2": _positive(torch.log2), "log10": _positive(torch.log10),
    "log1p": _positive(torch.log1p), "sqrt": _positive(torch.sqrt),
    "rsqrt": _positive(torch.rsqrt), "reciprocal": _positive(torch.reciprocal),
    "square": _plain(torch.square), "sin": _bounded(torch.sin), "cos": _bounded(torch.cos),
    "tan": _inside(torch.tan), "asin": _inside(torch.asin), "acos": _inside(torch.acos),
    "atan": _plain(torch.atan), "sinh": _bounded(torch.sinh), "cosh": _bounded(torch.cosh),
    "tanh": _plain(torch.tanh), "asinh": _plain(torch.asinh),
    "acosh": lambda make: lambda h: torch.acosh(1.5 + h * h),
    "atanh": _inside(torch.atanh), "sigmoid": _plain(torch.sigmoid), "erf": _plain(torch.erf),
    "erfc": _plain(torch.erfc), "erfinv": _inside(torch.erfinv), "lgamma": _positive(torch.lgamma),
    "digamma": _positive(torch.digamma),
    "polygamma": _with_number(lambda h, n: torch.polygamma(n, h.abs() + 1.0), 1, 2),
    "logit": _unit(torch.logit), "logit with eps": _unit(lambda p: torch.logit(p, 0.1)),
    "sinc": _bounded(torch.sinc), "ndtr": _plain(torch.special.ndtr),
    "log_ndtr": _bounded(torch.special.log_ndtr), "entr": _unit(torch.special.entr),
    "i0": _bounded(torch.i0), "i1": _bounded(torch.special.i1), "gelu": _plain(F.gelu),
    "gelu tanh": _plain(lambda h: F.gelu(h, approximate="tanh")), "silu": _plain(F.silu),
    "mish": _plain(F.mish), "softsign": _plain(F.softsign), "tanhshrink": _plain(F.tanhshrink),
    "logsigmoid": _plain(F.logsigmoid), "deg2rad": _plain(torch.deg2rad),
    "rad2deg": _plain(torch.rad2deg), "pow 2": _plain(lambda h: h**2),
    "pow 3": _plain(lambda h: h**3), "pow -1": _positive(lambda h: h**-1),
    "pow 0.5": _positive(lambda h: h**0.5), "pow 0.3": _positive(lambda h: h**0.3),
    "pow of a constant": _bounded(lambda h: 0.3**h),
    "pow of tensors": lambda make: lambda h: (h.abs() + 0.5) ** torch.sin(h),
    "times a constant": _with_number(torch.mul, 0.1, 3, -1e-3, 1 / 3),
    "over a constant": _with_number(torch.div, 3.0, 7, 0.3),
    "a constant over it": _positive(lambda h: 2.0 / h), "negated": _plain(lambda h: -h),
    "one minus": _plain(lambda h: 1 - h), "rsub": _plain(lambda h: torch.rsub(h, 2.5, alpha=3)),
    "xlog1py": _unit(lambda p: torch.special.xlog1py(p, p)),
    "square of a sum": _plain(lambda h: (h + 0.1).pow(2) - h.pow(2)),
    "cancelling": _plain(lambda h: (h + 100.0) - 100.0),
    "exp and log": _bounded(lambda h: torch.log(torch.exp(h))),
    "softmax by hand": _bounded(lambda h: h.exp() / h.exp().sum(-1, keepdim=True)),
}  # fmt: skip


def _limits(make: Maker) -> tuple[float, float]:
    low = make.rng.uniform(-1, 0)
    return low, low + make.rng.uniform(0.1, 1)


def _clamp(make: Maker) -> Layer:
    low, high = _limits(make)
    return lambda h: h.clamp(low, high)


def _hardtanh(make: Maker) -> Layer:
    low, high = _limits(make)
    return lambda h: F.hardtanh(h, low, high)


def _nearly_zero(make: Maker) -> Callable[[], Tensor]:
    """A number that is zero as computed, or next to it, and rounding errors over the reals."""
    v = make.parameter(make.width)
    f = make.choice(
        lambda v: v * 3.3, torch.exp, lambda v: v * v, lambda v: torch.tanh(v) * 0.3, torch.sin
    )
    with torch.no_grad():
        c = f(v)  # made before the step is recorded: a constant, rounded
    return lambda: f(v) - c


def _near_a_kink(kink: Callable[[Tensor], Tensor]) -> Block:
    """The argument is off the kink by 1e-18 to 1e-9, or on it, next to its rounding errors."""

    def block(make: Maker) -> Layer:
        zero = _nearly_zero(make)
        exponent = make.choice(make.rng.uniform(-18, -15.5), make.rng.uniform(-17, -9))
        off = make.choice(1, 1, 1, -1, -1, -1, 0) * 10**exponent

        def layer(h: Tensor) -> Tensor:
            k = kink(zero() + off)  # its slope matters, and its value
            return h * (1 + k) + k

        return layer

    return block


def _squared_near_zero(make: Maker) -> Layer:
    weight, zero = make.parameter(make.width), _nearly_zero(make)

    def layer(h: Tensor) -> Tensor:
        z = zero()
        return h + z * (z * weight)

    return layer


def _threshold(make: Maker) -> Layer:
    limit, value = make.rng.uniform(-0.5, 0.5), make.rng.uniform(-1, 1)
    return lambda h: F.threshold(h, limit, value)


def _prelu(make: Maker) -> Layer:
    weight = make.parameter(make.choice(1, make.width))
    return lambda h: F.prelu(h, weight)


def _modulo(op: Callable[..., Tensor]) -> Block:
    def block(make: Maker) -> Layer:
        by = make.choice(0.5, 0.7, 1.3)
        return lambda h: op(torch.tanh(h) * 3, by)

    return block


KINKED: dict[str, Block] = {
    "relu": _plain(F.relu), "relu6": _plain(F.relu6), "leaky_relu": _plain(F.leaky_relu),
    "elu": _plain(F.elu), "elu with alpha": _plain(lambda h: F.elu(h, 0.7)),
    "selu": _plain(F.selu), "celu": _plain(F.celu),
    "celu with alpha": _plain(lambda h: F.celu(h, 0.3)),
    "softplus": _plain(F.softplus), "softplus sharp": _plain(lambda h: F.softplus(h, 3.0, 2.0)),
    "hardswish": _plain(F.hardswish), "hardsigmoid": _plain(F.hardsigmoid),
    "hardtanh": _hardtanh, "softshrink": _plain(lambda h: F.softshrink(h, 0.3)),
    "hardshrink": _plain(lambda h: F.hardshrink(h, 0.3)), "threshold": _threshold,
    "prelu": _prelu, "rrelu": _plain(lambda h: F.rrelu(h, training=True)),
    "rrelu eval": _plain(F.rrelu), "abs": _plain(torch.abs), "clamp": _clamp,
    "clamp_min": _plain(lambda h: h.clamp_min(0.1)),
    "clamp_max": _plain(lambda h: h.clamp_max(0.1)), "sign": _plain(lambda h: h.sign() * h),
    "floor": _plain(lambda h: torch.tanh(h).mul(3).floor() + h),
    "ceil": _plain(lambda h: torch.tanh(h).mul(3).ceil() + h),
    "trunc": _plain(lambda h: torch.tanh(h).mul(3).trunc() * h),
    "round": _plain(lambda h: torch.tanh(h).mul(3).round() + h),
    "frac": _plain(lambda h: torch.tanh(h).mul(3).frac()),
    "fmod": _modulo(torch.fmod), "remainder": _modulo(torch.remainder),
    "floor_divide": _plain(lambda h: torch.floor_divide(torch.tanh(h) * 5, 0.7) + h),
    "where": _plain(lambda h: torch.where(h > 0.1, h * 2, h.square())),
    "where of two masks": _plain(lambda h: torch.where((h > 0.1) & ~(h > 0.5), h, -h)),
    "times a mask": _plain(lambda h: h * (h > 0)), "nan_to_num": _plain(torch.nan_to_num),
    "straight-through": _plain(lambda h: h + (h.round() - h).detach() if h.abs().max() < 1e6
                               else h),
    "near zero squared": _squared_near_zero,
    "near relu": _near_a_kink(F.relu), "near abs": _near_a_kink(torch.abs),
    "near clamp": _near_a_kink(lambda z: z.clamp(min=0.0)),
    "near leaky": _near_a_kink(lambda z: F.leaky_relu(z, 0.2)),
    "near elu": _near_a_kink(F.elu), "near sign": _near_a_kink(torch.sign),
    "near where": _near_a_kink(lambda z: torch.where(z > 0, z * 2, z * 3)),
    "near maximum": _near_a_kink(lambda z: torch.maximum(z, -2 * z)),
    "near floor": _near_a_kink(lambda z: torch.floor(z) * 0.5),
    "near hardshrink": _near_a_kink(lambda z: F.hardshrink(z + 0.5)),
}  # fmt: skip


def _paired(f: Callable[[Tensor, Tensor], Tensor]) -> Block:
    """With a parameter as the other argument."""

    def block(make: Maker) -> Layer:
        other = make.parameter(make.width)
        return lambda h: f(h, other)

    return block


def _lerp(make: Maker) -> Layer:
    end, weight = make.parameter(make.width), make.choice(0.3, 0.7)
    between = make.parameter(make.width)
    if make.choice(True, False):
        return lambda h: torch.lerp(h, end, weight)
    return lambda h: torch.lerp(h, end, torch.sigmoid(between))


PAIRS: dict[str, Block] = {
    "plus": _paired(torch.add), "plus alpha": _paired(lambda a, b: torch.add(a, b, alpha=0.3)),
    "minus": _paired(torch.sub), "times": _paired(torch.mul),
    "over": _paired(lambda a, b: a / (b.abs() + 0.5)),
    "under": _paired(lambda a, b: b / (a.abs() + 0.5)),
    "maximum": _paired(torch.maximum), "minimum": _paired(torch.minimum),
    "fmax": _paired(torch.fmax), "fmin": _paired(torch.fmin),
    "atan2": _paired(lambda a, b: torch.atan2(a, b + 2.0)),
    "hypot": _paired(lambda a, b: torch.hypot(a, b.abs() + 0.1)),
    "logaddexp": _paired(torch.logaddexp), "logaddexp2": _paired(torch.logaddexp2),
    "xlogy": _paired(lambda a, b: torch.xlogy(a, b.abs() + 0.1)),
    "copysign": _paired(torch.copysign), "lerp": _lerp,
    "addcmul": _paired(lambda a, b: torch.addcmul(a, a, b, value=0.3)),
    "addcdiv": _paired(lambda a, b: torch.addcdiv(a, a, b.abs() + 0.5, value=0.3)),
    "gated": _paired(lambda a, b: torch.sigmoid(b) * torch.tanh(a)),
    "compared": _paired(lambda a, b: torch.where(a > b, a, b * 2)),
    "int and float": lambda make: (lambda k: lambda h: h * k + k)(make.integers(5, make.width)),
    "a number": _with_number(torch.add, 0.1, 1, -2.5),
}  # fmt: skip
