"""What are activation functions and their likes over the real numbers, in Arb?"""

from typing import Any

from flint import arb

from tests.ops.laws import Oracle
from tests.ops.oracle_numbers import NAN, clamp, entrywise, log, maximum, real, sigmoid


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
