"""Activations and their derivatives, from their documentation."""

from collections.abc import Callable
from typing import Any

import numpy as np
from flint import arb

from tests.oracle.elementwise import normal_cdf, sigmoid
from tests.oracle.numbers import (
    ONE,
    ZERO,
    Numbers,
    UnsupportedError,
    elementwise,
    is_at_most,
    is_less,
    mapped,
    real,
)

Function = Callable[[arb], arb]


def chained(g: Any, slope: Function, x: Any) -> Numbers:
    """The derivative times what comes from behind."""
    return mapped(lambda a, v: a * slope(v), g, x)


def softplus(beta: Any, threshold: Any) -> Function:
    b, t = real(beta), real(threshold)
    return lambda v: v if is_less(t, v * b) else (ONE + (v * b).exp()).log() / b


def softplus_slope(beta: Any, threshold: Any) -> Function:
    b, t = real(beta), real(threshold)
    return lambda v: ONE if is_less(t, v * b) else sigmoid(v * b)


# SELU's two numbers, as its documentation gives them.
_SELU = ("1.6732632423543772848170429916717", "1.0507009873554804934193349852946")


def _factors(alpha: Any, scale: Any, input_scale: Any) -> tuple[arb, arb, arb]:
    """The numbers of ELU, SELU and CELU, from those that torch hands to one kernel."""
    a, s, i = real(alpha), real(scale), real(input_scale)
    selu = (arb(_SELU[0]), arb(_SELU[1]))  # in the present precision
    if all(abs(x - y) < arb(2) ** -50 for x, y in zip((a, s), selu, strict=True)):
        return *selu, i
    if s == 1 and a > 0 and abs(i * a - 1) < arb(2) ** -22:
        i = ONE / a  # celu, whose slope is exp(x / alpha); torch rounds 1 / alpha to float32
    return a, s, i


def elu(alpha: Any, scale: Any, input_scale: Any) -> Function:
    a, s, i = _factors(alpha, scale, input_scale)
    return lambda v: v * s if is_less(ZERO, v) else ((v * i).exp() - 1) * a * s


def elu_backward(
    g: Any, alpha: Any, scale: Any, input_scale: Any, is_result: bool, x: Any
) -> Numbers:
    a, s, i = _factors(alpha, scale, input_scale)

    def slope(v: arb) -> arb:
        if is_less(ZERO, v):
            return s
        return i * (v + a * s) if is_result else i * a * s * (v * i).exp()

    return chained(g, slope, x)


def _gelu_tanh(v: arb) -> tuple[arb, arb]:
    """The tanh of the approximation, and the derivative of its argument."""
    c, k = arb("0.044715"), (arb(2) / arb.pi()).sqrt()
    return (k * (v + c * v**3)).tanh(), k * (ONE + 3 * c * v * v)


def gelu(x: Any, *, approximate: str = "none") -> Numbers:
    if approximate == "none":
        return mapped(lambda v: v * normal_cdf(v), x)
    return mapped(lambda v: v * (ONE + _gelu_tanh(v)[0]) / 2, x)


def gelu_backward(g: Any, x: Any, *, approximate: str = "none") -> Numbers:
    def exact(v: arb) -> arb:
        return normal_cdf(v) + v * (-v * v / 2).exp() / (2 * arb.pi()).sqrt()

    def approximated(v: arb) -> arb:
        t, inner = _gelu_tanh(v)
        return (ONE + t) / 2 + v * (ONE - t * t) * inner / 2

    return chained(g, exact if approximate == "none" else approximated, x)


def _silu_slope(v: arb) -> arb:
    return sigmoid(v) * (ONE + v * (ONE - sigmoid(v)))


def _mish_slope(v: arb) -> arb:
    t = (ONE + v.exp()).log().tanh()
    return t + v * (ONE - t * t) * sigmoid(v)


def _hardswish(v: arb) -> arb:
    if is_at_most(v, arb(-3)):
        return ZERO
    return v if is_at_most(arb(3), v) else v * (v + 3) / 6


def _hardswish_slope(v: arb) -> arb:
    if is_at_most(v, arb(-3)):
        return ZERO
    return ONE if is_at_most(arb(3), v) else v / 3 + real(0.5)


def _hardsigmoid(v: arb) -> arb:
    if is_at_most(v, arb(-3)):
        return ZERO
    return ONE if is_at_most(arb(3), v) else (v + 3) / 6


def _hardsigmoid_slope(v: arb) -> arb:
    return ONE / 6 if is_less(arb(-3), v) and is_less(v, arb(3)) else ZERO


def leaky_relu(x: Any, slope: Any = 0.01) -> Numbers:
    return mapped(lambda v: v if is_less(ZERO, v) else v * real(slope), x)


def leaky_relu_backward(g: Any, x: Any, slope: Any, is_result: bool) -> Numbers:
    del is_result  # the sign is the same
    return mapped(lambda a, v: a if is_less(ZERO, v) else a * real(slope), g, x)


def prelu_backward(g: Any, x: Any, weight: Any) -> tuple[Numbers, Numbers]:
    dx = mapped(lambda a, v, w: a if is_less(ZERO, v) else a * w, g, x, weight)
    dw = mapped(lambda a, v, w: ZERO if is_less(ZERO, v) else a * v, g, x, weight)
    return dx, dw


def log_sigmoid_forward(x: Any) -> tuple[Numbers, None]:
    return mapped(lambda v: -(ONE + (-v).exp()).log(), x), None


def glu(x: Numbers, dim: int = -1) -> Numbers:
    a, b = _halves(x, dim)
    return mapped(lambda p, q: p * sigmoid(q), a, b)


def glu_backward(g: Numbers, x: Numbers, dim: int) -> Numbers:
    a, b = _halves(x, dim)
    da = mapped(lambda d, q: d * sigmoid(q), g, b)
    db = mapped(lambda d, p, q: d * p * sigmoid(q) * (ONE - sigmoid(q)), g, a, b)
    return np.concatenate([da, db], axis=dim)


def _halves(x: Numbers, dim: int) -> tuple[Numbers, Numbers]:
    a, b = np.split(x, 2, axis=dim)
    return a, b


def rrelu_with_noise(
    x: Any, noise: Any, lower: Any = 1 / 8, upper: Any = 1 / 3, training: bool = False, *_: Any
) -> Numbers:
    if training:
        raise UnsupportedError("random slopes")
    slope = (real(lower) + real(upper)) / 2
    return mapped(lambda v: v if is_less(ZERO, v) else v * slope, x)


def rrelu_with_noise_backward(
    g: Any, x: Any, noise: Any, lower: Any, upper: Any, training: bool, is_result: bool
) -> Numbers:
    del is_result
    if training:
        return mapped(lambda a, n: a * n, g, noise)
    slope = (real(lower) + real(upper)) / 2
    return mapped(lambda a, v: a if is_less(ZERO, v) else a * slope, g, x)


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": elementwise(lambda v: v if is_less(ZERO, v) else ZERO),
    "leaky_relu": leaky_relu,
    "leaky_relu_backward": leaky_relu_backward,
    "_prelu_kernel": elementwise(lambda v, w: v if is_less(ZERO, v) else v * w),
    "_prelu_kernel_backward": prelu_backward,
    "rrelu_with_noise": rrelu_with_noise,
    "rrelu_with_noise_backward": rrelu_with_noise_backward,
    "gelu": gelu,
    "gelu_backward": gelu_backward,
    "silu": elementwise(lambda v: v * sigmoid(v)),
    "silu_backward": lambda g, x: chained(g, _silu_slope, x),
    "mish": elementwise(lambda v: v * (ONE + v.exp()).log().tanh()),
    "mish_backward": lambda g, x: chained(g, _mish_slope, x),
    "softplus": lambda x, beta=1, threshold=20: mapped(softplus(beta, threshold), x),
    "softplus_backward": lambda g, x, beta, threshold: chained(
        g, softplus_slope(beta, threshold), x
    ),
    "elu": lambda x, alpha=1, scale=1, input_scale=1: mapped(elu(alpha, scale, input_scale), x),
    "elu_backward": elu_backward,
    "celu": lambda x, alpha=1.0: mapped(
        lambda v: v if is_less(ZERO, v) else real(alpha) * ((v / real(alpha)).exp() - 1), x
    ),
    "hardswish": elementwise(_hardswish),
    "hardswish_backward": lambda g, x: chained(g, _hardswish_slope, x),
    "hardsigmoid": elementwise(_hardsigmoid),
    "hardsigmoid_backward": lambda g, x: chained(g, _hardsigmoid_slope, x),
    "log_sigmoid_forward": log_sigmoid_forward,
    "log_sigmoid_backward": lambda g, x, buffer: chained(g, lambda v: sigmoid(-v), x),
    "tanh_backward": lambda g, y: chained(g, lambda v: ONE - v * v, y),
    "sigmoid_backward": lambda g, y: chained(g, lambda v: v * (ONE - v), y),
    "glu": glu,
    "glu_backward": glu_backward,
}
