"""Layer, batch, group and root-mean-square normalization."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from flint import arb

from tests.oracle.numbers import ONE, Numbers, array, numbers, real, total


def _inverse_deviation(variance: arb, eps: Any) -> arb:
    return ONE / (variance + real(eps)).sqrt()


def _moments(row: Any, eps: Any) -> tuple[arb, arb]:
    """Mean, and one over the standard deviation."""
    middle = total(row) / len(row)
    variance = total((v - middle) ** 2 for v in row) / len(row)
    return middle, _inverse_deviation(variance, eps)


def _affine(y: Numbers, weight: Any, bias: Any, shape: Any = (-1,)) -> Numbers:
    y = y if weight is None else y * numbers(weight).reshape(shape)
    return y if bias is None else y + numbers(bias).reshape(shape)


def layer_norm(
    x: Any, shape: Any, weight: Any, bias: Any, eps: Any
) -> tuple[Numbers, Numbers, Numbers]:
    x = numbers(x)
    rows = x.reshape(-1, math.prod(shape))
    found = [_moments(row, eps) for row in rows]
    y = array(
        ((v - m) * r for row, (m, r) in zip(rows, found, strict=True) for v in row), rows.shape
    )
    lead = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    means = array((m for m, _ in found), lead)
    return _affine(y, weight, bias).reshape(x.shape), means, array((r for _, r in found), lead)


def _pulled_back(g: Any, xh: Any, inverse: arb) -> Numbers:
    """The cotangent of a row from that of the normalized row."""
    middle = total(g) / len(g)
    along = total(a * b for a, b in zip(g, xh, strict=True)) / len(g)
    return inverse * (g - middle - xh * along)


def layer_norm_backward(
    g: Any, x: Any, shape: Any, mean: Any, inverse: Any, weight: Any, bias: Any, mask: Any
) -> tuple[Any, Any, Any]:
    x, n = numbers(x), math.prod(shape)
    rows, g = x.reshape(-1, n), numbers(g).reshape(-1, n)
    m, r = numbers(mean).reshape(-1, 1), numbers(inverse).reshape(-1, 1)
    xh, inner = (rows - m) * r, _affine(g, weight, None)
    dx = np.stack([_pulled_back(*parts) for parts in zip(inner, xh, r[:, 0], strict=True)])
    dw = (g * xh).sum(0).reshape(shape) if mask[1] and weight is not None else None
    db = g.sum(0).reshape(shape) if mask[2] and bias is not None else None
    return dx.reshape(x.shape) if mask[0] else None, dw, db


def batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: Any,
    eps: Any,
) -> tuple[Numbers, Numbers, Numbers]:  # fmt: skip
    x = numbers(x)
    channels = np.moveaxis(x, 1, 0)
    if training:
        found = [_moments(channel.reshape(-1), eps) for channel in channels]
    else:
        pairs = zip(numbers(mean), numbers(variance), strict=True)
        found = [(m, _inverse_deviation(v, eps)) for m, v in pairs]
    y = np.stack([(c - m) * r for c, (m, r) in zip(channels, found, strict=True)])
    y = np.moveaxis(_affine(y, weight, bias, (-1, *[1] * (x.ndim - 1))), 0, 1)
    kept = found if training else []
    means, inverses = (array((pair[k] for pair in kept), (len(kept),)) for k in (0, 1))
    return y, means, inverses


def running_statistics(x: Any, old: Any, momentum: Any, of: int) -> Any:
    """New running mean (0) or variance (1, unbiased)."""
    if old is None:
        return None
    channels = [c.reshape(-1) for c in np.moveaxis(numbers(x), 1, 0)]
    new = []
    for c in channels:
        middle = total(c) / len(c)
        new.append(middle if of == 0 else total((v - middle) ** 2 for v in c) / (len(c) - 1))
    return numbers(old) * (ONE - real(momentum)) + array(new, (len(new),)) * real(momentum)


def batch_norm_functional(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: Any,
    eps: Any,
) -> tuple[Any, ...]:  # fmt: skip
    found = batch_norm(x, weight, bias, mean, variance, training, momentum, eps)
    if not training:
        return (*found, mean, variance)
    return (
        *found,
        running_statistics(x, mean, momentum, 0),
        running_statistics(x, variance, momentum, 1),
    )


def batch_norm_without_statistics(
    x: Any, weight: Any, bias: Any, training: bool, momentum: Any, eps: Any
) -> tuple[Numbers, Numbers, Numbers]:
    return batch_norm(x, weight, bias, None, None, training, momentum, eps)


def batch_norm_legit(x: Any, weight: Any, bias: Any, *settings: Any) -> Any:
    """Both overloads: with running statistics, and without."""
    if len(settings) == 3:
        return batch_norm_without_statistics(x, weight, bias, *settings)
    return batch_norm(x, weight, bias, *settings)


def batch_norm_backward(
    g: Any, x: Any, weight: Any, mean: Any, variance: Any, saved_mean: Any, saved_inverse: Any,
    training: bool, eps: Any, mask: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    x = numbers(x)
    parts = zip(np.moveaxis(numbers(g), 1, 0), np.moveaxis(x, 1, 0), strict=True)
    dx, dw, db = [], [], []
    for c, (gc, xc) in enumerate(parts):
        if training:
            m, r = saved_mean[c], saved_inverse[c]
        else:
            m, r = numbers(mean)[c], _inverse_deviation(numbers(variance)[c], eps)
        flat, xh = gc.reshape(-1), ((xc - m) * r).reshape(-1)
        inner = flat if weight is None else flat * numbers(weight)[c]
        found = _pulled_back(inner, xh, r) if training else inner * r
        dx.append(found.reshape(xc.shape))
        dw.append(total(flat * xh))
        db.append(total(flat))
    return (
        np.moveaxis(np.stack(dx), 0, 1) if mask[0] else None,
        array(dw, (len(dw),)) if mask[1] else None,
        array(db, (len(db),)) if mask[2] else None,
    )


def group_norm(
    x: Any, weight: Any, bias: Any, n: int, channels: int, size: int, groups: int, eps: Any
) -> tuple[Numbers, Numbers, Numbers]:
    x = numbers(x)
    rows = x.reshape(n, groups, -1)
    y, mean, inverse = layer_norm(rows, [rows.shape[2]], None, None, eps)
    y = _affine(y.reshape(n, channels, size), weight, bias, (1, -1, 1))
    return y.reshape(x.shape), mean.reshape(n, groups), inverse.reshape(n, groups)


def group_norm_backward(
    g: Any, x: Any, mean: Any, inverse: Any, weight: Any, n: int, channels: int, size: int,
    groups: int, mask: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    x, g = numbers(x), numbers(g).reshape(n, channels, size)
    m, r = numbers(mean).reshape(n, groups, 1), numbers(inverse).reshape(n, groups, 1)
    rows = x.reshape(n, groups, -1)
    inner = _affine(g, weight, None, (1, -1, 1)).reshape(rows.shape)
    dx = layer_norm_backward(inner, rows, rows.shape[2:], m, r, None, None, (True, False, False))[0]
    xh = ((rows - m) * r).reshape(n, channels, size)
    return (
        dx.reshape(x.shape) if mask[0] else None,
        (g * xh).sum((0, 2)) if mask[1] else None,
        g.sum((0, 2)) if mask[2] else None,
    )


def rms_norm(x: Any, shape: Any, weight: Any, eps: Any) -> tuple[Numbers, Numbers]:
    x, n = numbers(x), math.prod(shape)
    rows = x.reshape(-1, n)
    if eps is None:
        eps = 2.0**-52
    inverse = array((_inverse_deviation(total(row * row) / n, eps) for row in rows), (len(rows), 1))
    y = _affine(rows * inverse, weight, None)
    lead = (*x.shape[: x.ndim - len(shape)], *[1] * len(shape))
    return y.reshape(x.shape), inverse.reshape(lead)


def rms_norm_backward(
    g: Any, x: Any, shape: Any, inverse: Any, weight: Any, mask: Any
) -> tuple[Any, Any]:
    x, n = numbers(x), math.prod(shape)
    rows, g, r = x.reshape(-1, n), numbers(g).reshape(-1, n), numbers(inverse).reshape(-1, 1)
    inner = _affine(g, weight, None)
    along = (inner * rows).sum(1, keepdims=True) / n
    dx = r * inner - rows * r**3 * along
    dw = (g * rows * r).sum(0).reshape(shape) if mask[1] and weight is not None else None
    return dx.reshape(x.shape) if mask[0] else None, dw


NORMALIZATION: dict[str, Callable[..., Any]] = {
    "native_layer_norm": layer_norm,
    "native_layer_norm_backward": layer_norm_backward,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit": batch_norm_legit,
    "_native_batch_norm_legit_functional": batch_norm_functional,
    "native_batch_norm_backward": batch_norm_backward,
    "native_group_norm": group_norm,
    "native_group_norm_backward": group_norm_backward,
    "_fused_rms_norm": rms_norm,
    "_fused_rms_norm_backward": rms_norm_backward,
}
