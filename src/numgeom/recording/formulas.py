"""What do composite ops compute, written without a single rounded constant?

torch opens these ops with numbers that it derives in Python or C++ and rounds: 1/n for a mean, pi,
1 - weight. Here each formula is that of the op's documentation; a quotient is a division, and a
real number that no double holds is made by a call that carries its error (`recording.reals`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from numgeom.recording.reals import (
    DEGREE,
    DENSITY_AT_ZERO,
    INVERSE_LOG_2,
    LOG_PI,
    PI,
    RADIAN,
    ROOT_HALF,
    ROOT_TWO_OVER_PI,
    SELU_ALPHA,
    SELU_SCALE,
    Real,
    exactly,
)
from numgeom.recording.references.freedom import declared, free

aten = torch.ops.aten

_MEAN = 1  # at::Reduction
_CUBIC = Fraction("0.044715")  # of the tanh approximation (Hendrycks and Gimpel 2016)


# -------------------------------------------------------------------------------------- losses


def _averaged(dy: Tensor, x: Tensor, reduction: int) -> Tensor:
    return dy / x.numel() if reduction == _MEAN else dy


def _mse_backward(dy: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    return 2.0 * (x - target) * _averaged(dy, x, reduction)


def _smooth_l1_backward(
    dy: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float
) -> Tensor:
    gap = x - target
    slope = _averaged(dy, x, reduction)
    outer = slope * torch.sign(gap)
    if beta == 0:
        return outer
    return torch.where(gap.abs() < beta, slope * gap / beta, outer)


def _huber_backward(dy: Tensor, x: Tensor, target: Tensor, reduction: int, delta: float) -> Tensor:
    gap = x - target
    slope = _averaged(dy, x, reduction)
    edge = slope * delta
    return torch.where(gap < -delta, -edge, torch.where(gap > delta, edge, slope * gap))


# ----------------------------------------------------------------------------------- activations


def _elu_numbers(alpha: float, scale: float, input_scale: float) -> tuple[Real, Real, Real]:
    """The factors that ELU, SELU and CELU document, from what torch hands to their kernels.

    SELU's two constants are decimals. CELU divides by alpha; torch takes 1/alpha from alpha as a
    float32 number.
    """
    if (alpha, scale) == (SELU_ALPHA.value, SELU_SCALE.value):
        return SELU_ALPHA, SELU_SCALE, Real.near(input_scale)
    if input_scale != 1 and alpha and math.isclose(input_scale * alpha, 1.0, rel_tol=2.0**-22):
        return Real.near(alpha), Real.near(scale), Real.near(1 / Fraction(alpha))
    return Real.near(alpha), Real.near(scale), Real.near(input_scale)


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    a, s, t = (n.as_factor(x) for n in _elu_numbers(alpha, scale, input_scale))
    return torch.where(x > 0, _times(x, s), _times(torch.expm1(_times(x, t)), a, s))


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > 0, x, torch.expm1(x / alpha) * alpha)


def elu_backward(
    dy: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor
) -> Tensor:
    """The derivative of ELU, SELU or CELU, with the factors that they document."""
    a, s, t = (n.as_factor(x) for n in _elu_numbers(alpha, scale, input_scale))
    if is_result:
        inner = _times(dy, t) * (x + _times(torch.ones_like(x), a, s))
    else:
        inner = _times(dy, t, a, s) * torch.exp(_times(x, t))
    return torch.where(x <= 0, inner, _times(dy, s))


def _times(x: Tensor, *factors: Tensor | float) -> Tensor:
    """A product with numbers, leaving out the ones."""
    for factor in factors:
        if isinstance(factor, Tensor) or factor != 1:
            x = x * factor
    return x


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    half = x * 0.5
    if approximate == "tanh":
        inner, _ = _gelu_inner(x)
        return half * (torch.tanh(inner) + 1)
    return half * (torch.erf(x * ROOT_HALF.as_factor(x)) + 1)


def _gelu_inner(x: Tensor) -> tuple[Tensor, Tensor]:
    """The argument of the tanh, sqrt(2/pi) (x + c x^3), and its derivative."""
    slope = ROOT_TWO_OVER_PI.as_factor(x)
    square = x * x
    inner = (x + _rational(square * x, _CUBIC)) * slope
    return inner, (_rational(square, 3 * _CUBIC) + 1) * slope


def _rational(x: Tensor, factor: Fraction) -> Tensor:
    """A product with a rational number: by its numerator, then a division."""
    return x * float(factor.numerator) / float(factor.denominator)


def _gelu_backward(dy: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        inner, slope = _gelu_inner(x)
        bent = torch.tanh(inner)
        return dy * ((bent + 1) * 0.5 + x * 0.5 * (1 - bent * bent) * slope)
    cdf = (torch.erf(x * ROOT_HALF.as_factor(x)) + 1) * 0.5
    pdf = torch.exp(x * x * -0.5) * DENSITY_AT_ZERO.as_factor(x)
    return dy * (cdf + x * pdf)


# --------------------------------------------------------------------------- functions of a number


def _sinc(x: Tensor) -> Tensor:
    angle = x * PI.as_factor(x)
    return torch.where(x == 0, 1.0, torch.sin(angle) / angle)


def _deg2rad(x: Tensor) -> Tensor:
    x = _real_valued(x)
    return x * DEGREE.as_factor(x)


def _rad2deg(x: Tensor) -> Tensor:
    x = _real_valued(x)
    return x * RADIAN.as_factor(x)


def _real_valued(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _logaddexp2(a: Tensor, b: Tensor) -> Tensor:
    larger = a >= b
    high, low = torch.where(larger, a, b), torch.where(larger, b, a)
    more = torch.log1p(torch.exp2(low - high)) * INVERSE_LOG_2.as_factor(a)
    return torch.where(torch.logical_and(torch.isinf(a), a == b), a, high + more)


def _log_ndtr(x: Tensor) -> Tensor:
    t = x * ROOT_HALF.as_factor(x)
    low = torch.log(torch.special.erfcx(-t) * 0.5) - t * t
    return torch.where(x < 1.0, low, torch.log1p(torch.erfc(t) * -0.5))


def _ndtr(x: Tensor) -> Tensor:
    t = x * ROOT_HALF.as_factor(x)
    return torch.where(t < -1, torch.erfc(-t) * 0.5, (torch.erf(t) + 1) * 0.5)


def _mvlgamma(x: Tensor, p: int) -> Tensor:
    steps = torch.arange(1 - p, 1, dtype=x.dtype, device=x.device) * 0.5
    whole = torch.sum(torch.lgamma(x.unsqueeze(-1) + steps), -1)
    if p == 1:
        return whole
    return whole + LOG_PI.as_factor(x) * (p * (p - 1) / 4)


def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    if eps is not None:
        high = exactly(1 - Fraction(eps), x)
        x = torch.where(x < eps, eps, torch.where(x > high, high, x))
    return torch.log(x / (1 - x))


def _logit_backward(dy: Tensor, x: Tensor, eps: float | None = None) -> Tensor:
    low, high = (0.0, 1.0) if eps is None else (eps, exactly(1 - Fraction(eps), x))
    outside = torch.full((), math.nan if eps is None else 0.0, dtype=x.dtype, device=x.device)
    return torch.where(torch.logical_and(x >= low, x <= high), dy / (x * (1 - x)), outside)


def _lerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    return start + (end - start) * weight


# -------------------------------------------------------------------------------- normalisation


def _group_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    channels: int,
    plane: int,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """With xhat = (x - mean) rstd and g = w dy: dx = rstd (g - mean(g) - xhat mean(g xhat))."""
    shape = (n, groups, channels // groups, plane)
    steep, centre = rstd.reshape(n, groups, 1, 1), mean.reshape(n, groups, 1, 1)
    dy4 = dy.reshape(shape)
    xhat = (x.reshape(shape) - centre) * steep
    dx = dweight = dbias = None
    if mask[0]:
        g = dy4 if weight is None else dy4 * weight.reshape(1, groups, channels // groups, 1)
        along = (g * xhat).mean((2, 3), keepdim=True)
        dx = ((g - g.mean((2, 3), keepdim=True) - xhat * along) * steep).reshape(x.shape)
    if mask[1]:
        dweight = (dy4 * xhat).sum((0, 3)).reshape(channels)
    if mask[2]:
        dbias = dy4.sum((0, 3)).reshape(channels)
    return dx, dweight, dbias


# -------------------------------------------------------------------------------- interpolation


def _nearest(op: OpOverload) -> Callable[..., Tensor]:
    """An enlargement that copies entries: which ones is a decision, and is taken as the op does."""

    def upsample(x: Tensor, output_size: Sequence[int], *scales: float | None) -> Tensor:
        sizes = x.shape[-len(output_size) :]
        with free():  # sizes alone decide
            numbers = torch.arange(math.prod(sizes), dtype=torch.float64).reshape(1, 1, *sizes)
            places = op(numbers, output_size, *scales).reshape(-1).long().to(x.device)
        lines = x.reshape(*x.shape[:2], -1).index_select(2, declared(places))
        return lines.reshape(*x.shape[:2], *output_size)

    return upsample


def _linear(
    x: Tensor, output_size: Sequence[int], align_corners: bool, scale: float | None = None
) -> Tensor:
    """Entry i is read at the place p i, or p (i + 1/2) - 1/2, cut to the line; p is the ratio."""
    size, out = x.shape[-1], output_size[0]
    shift = Fraction(0) if align_corners else Fraction(1, 2)
    if align_corners:
        above, below = float(size - 1), float(max(out - 1, 1))
    elif scale is not None and scale > 0:
        above, below = 1.0, scale
    else:
        above, below = float(size), float(out)
    ratio = Fraction(above) / Fraction(below)
    spots = [(i + shift) * ratio - shift for i in range(out)]
    lows = [min(max(math.floor(spot), 0), size - 1) for spot in spots]
    with free():  # sizes alone decide
        places = {"dtype": x.dtype, "device": x.device}
        steps = torch.tensor([float(i + shift) for i in range(out)], **places)
        offsets = torch.tensor([float(low + shift) for low in lows], **places)
        inside = torch.tensor([float(spot > 0) for spot in spots], **places)
        low = torch.tensor(lows, device=x.device)
        high = (low + 1).clamp_max(size - 1)
    for constant in (steps, offsets, inside, low, high):
        declared(constant)
    share = (steps * above / below - offsets) * inside
    left, right = x.index_select(2, low), x.index_select(2, high)
    return left + (right - left) * share


FORMULAS: Mapping[OpOverload, Callable[..., Any]] = {
    aten.mse_loss_backward.default: _mse_backward,
    aten.smooth_l1_loss_backward.default: _smooth_l1_backward,
    aten.huber_loss_backward.default: _huber_backward,
    aten.elu.default: _elu,
    aten.elu_backward.default: elu_backward,
    aten.celu.default: _celu,
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_backward,
    aten.sinc.default: _sinc,
    aten.deg2rad.default: _deg2rad,
    aten.rad2deg.default: _rad2deg,
    aten.logaddexp2.default: _logaddexp2,
    aten.special_log_ndtr.default: _log_ndtr,
    aten.special_ndtr.default: _ndtr,
    aten.mvlgamma.default: _mvlgamma,
    aten.logit.default: _logit,
    aten.logit_backward.default: _logit_backward,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.native_group_norm_backward.default: _group_norm_backward,
    aten.upsample_nearest1d.default: _nearest(aten.upsample_nearest1d.default),
    aten.upsample_nearest2d.default: _nearest(aten.upsample_nearest2d.default),
    aten.upsample_nearest3d.default: _nearest(aten.upsample_nearest3d.default),
    aten._upsample_nearest_exact1d.default: _nearest(aten._upsample_nearest_exact1d.default),
    aten._upsample_nearest_exact2d.default: _nearest(aten._upsample_nearest_exact2d.default),
    aten._upsample_nearest_exact3d.default: _nearest(aten._upsample_nearest_exact3d.default),
    aten.upsample_linear1d.default: _linear,
}
