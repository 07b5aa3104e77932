"""What do convolution, pooling and interpolation compute over the real numbers?

Every product, window and weight is written out, with rational positions; see `tests.ops.laws`.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from flint import arb

from tests.ops.choice_oracle import extreme
from tests.ops.laws import Oracle
from tests.ops.movement_oracle import array
from tests.ops.slices import total

aten = torch.ops.aten


def _pairs(long: int, short: int, taps: int, s: int, p: int, d: int) -> list[tuple[int, int, int]]:
    """Positions (long, short, tap) that meet: long = short * s + tap * d - p."""
    return [
        (o * s + k * d - p, o, k)
        for o in range(short)
        for k in range(taps)
        if 0 <= o * s + k * d - p < long
    ]


def meetings(
    x: Any, w: Any, y: Any, settings: tuple[Any, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Indices (in x, in w, in y) of all products of a convolution."""
    stride, padding, dilation, transposed, _, groups = settings
    long, short = (y, x) if transposed else (x, y)
    grids = [
        _pairs(long[2 + i], short[2 + i], w[2 + i], stride[i], padding[i], dilation[i])
        for i in range(len(w) - 2)
    ]
    per_x, per_y = x[1] // groups, y[1] // groups
    for n, group in itertools.product(range(x[0]), range(groups)):
        for i, o in itertools.product(range(per_x), range(per_y)):
            c_x, c_y = group * per_x + i, group * per_y + o
            tap = (c_x, o) if transposed else (c_y, i)
            for meeting in itertools.product(*grids):
                at_long = tuple(m[0] for m in meeting)
                at_short = tuple(m[1] for m in meeting)
                at_x, at_y = (at_short, at_long) if transposed else (at_long, at_short)
                yield (n, c_x, *at_x), (*tap, *(m[2] for m in meeting)), (n, c_y, *at_y)


def _output_shape(x: Any, w: Any, settings: tuple[Any, ...]) -> tuple[int, ...]:
    empty = torch.empty(x, dtype=torch.float64), torch.empty(w, dtype=torch.float64)
    return tuple(aten.convolution(*empty, None, *settings).shape)


def convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    x, w, bias = args[:3]
    shape = _output_shape(x.shape, w.shape, args[3:])
    y = array((arb(0) for _ in range(math.prod(shape))), shape)
    for i, k, o in meetings(x.shape, w.shape, shape, args[3:]):
        y[o] += x[i] * w[k]
    if bias is not None:
        y = y + bias.reshape(1, -1, *[1] * (len(shape) - 2))
    return y


def convolution_backward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    g, x, w = args[:3]
    mask = args[10]
    grad_x = array((arb(0) for _ in range(x.size)), x.shape)
    grad_w = array((arb(0) for _ in range(w.size)), w.shape)
    for i, k, o in meetings(x.shape, w.shape, g.shape, args[4:10]):
        grad_x[i] += g[o] * w[k]
        grad_w[k] += g[o] * x[i]
    grad_b = array((total(g[:, c].reshape(-1)) for c in range(g.shape[1])), (g.shape[1],))
    found = (grad_x, grad_w, grad_b)
    return tuple(f if wanted else None for f, wanted in zip(found, mask, strict=True))


def max_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Largest entry of each window, and its position; settings as in max_pool2d and 3d."""
    x, kernel = args[:2]
    dims = len(kernel)
    stride = args[2] if len(args) > 2 else kernel
    padding = args[3] if len(args) > 3 else [0] * dims
    dilation = args[4] if len(args) > 4 else [1] * dims
    ceil = len(args) > 5 and args[5]
    sizes = []
    for n, k, s, p, d in zip(x.shape[-dims:], kernel, stride, padding, dilation, strict=True):
        steps = (n + 2 * p - d * (k - 1) - 1) / s
        count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        sizes.append(count - 1 if ceil and (count - 1) * s >= n + p else count)

    def window(o: tuple[int, ...]) -> list[tuple[int, ...]]:
        taps = itertools.product(*(range(k) for k in kernel))
        settings = list(zip(o, stride, padding, dilation, strict=True))
        return [
            tuple(i * s - p + k * d for k, (i, s, p, d) in zip(tap, settings, strict=True))
            for tap in taps
        ]

    return _pooled(x, tuple(sizes), window)


def adaptive_max_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, out = args
    size = x.shape[-len(out) :]

    def window(o: tuple[int, ...]) -> list[tuple[int, ...]]:
        ranges = [
            range(i * n // m, math.ceil((i + 1) * n / m))
            for i, n, m in zip(o, size, out, strict=True)
        ]
        return list(itertools.product(*ranges))

    return _pooled(x, tuple(out), window)


def _pooled(
    x: np.ndarray, out: tuple[int, ...], window: Callable[[tuple[int, ...]], list[tuple[int, ...]]]
) -> tuple[np.ndarray, np.ndarray]:
    size = x.shape[-len(out) :]
    lines = x.reshape(-1, *size)
    values, indices = [], []
    for line in lines:
        for o in np.ndindex(*out):
            inside = [
                at for at in window(o) if all(0 <= i < n for i, n in zip(at, size, strict=True))
            ]
            value, k = extreme([line[at] for at in inside])
            values.append(value)
            indices.append(int(np.ravel_multi_index(inside[k], size)))
    shape = (*x.shape[: -len(out)], *out)
    return array(values, shape), array(indices, shape)


def average_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    """Sum of the entries of each window over their number, as the options say."""
    x, kernel = args[:2]
    dims = len(kernel)
    more = [*args[2:], *[None] * (6 - len(args))]
    stride, padding, ceil = more[0] or kernel, more[1] or [0] * dims, bool(more[2])
    with_padding, divisor = more[3] is not False, more[4] if len(more) > 4 else None
    size = x.shape[-dims:]
    grids = []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        steps = (n + 2 * p - k) / s
        count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        count = count - 1 if ceil and (count - 1) * s >= n + p else count
        grids.append([(o * s - p, min(o * s - p + k, n + p)) for o in range(count)])

    def window(bounds: Any) -> tuple[list[tuple[int, ...]], int]:
        inside = [range(max(0, a), min(b, n)) for (a, b), n in zip(bounds, size, strict=True)]
        number = (
            math.prod(b - a for a, b in bounds) if with_padding else math.prod(map(len, inside))
        )
        return list(itertools.product(*inside)), divisor or number

    return _averaged(x, grids, window)


def adaptive_average_pool(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    x, out = args
    grids = [
        [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        for n, m in zip(x.shape[-len(out) :], out, strict=True)
    ]

    def window(bounds: Any) -> tuple[list[tuple[int, ...]], int]:
        entries = list(itertools.product(*(range(a, b) for a, b in bounds)))
        return entries, len(entries)

    return _averaged(x, grids, window)


def _averaged(x: np.ndarray, grids: list[Any], window: Callable[[Any], Any]) -> np.ndarray:
    lines = x.reshape(-1, *x.shape[-len(grids) :])
    values = []
    for line in lines:
        for bounds in itertools.product(*grids):
            entries, number = window(bounds)
            values.append(total(line[at] for at in entries) / number)
    return array(values, (*x.shape[: -len(grids)], *map(len, grids)))


def interpolate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    """Linear interpolation, one dimension after the other, with rational positions."""
    x, out, align = args[:3]
    factors = [*args[3:], *[None] * len(out)]
    for d, m in enumerate(out):
        axis = x.ndim - len(out) + d
        x = _along(x, axis, _weights(x.shape[axis], m, align, factors[d]))
    return x


def _weights(n: int, m: int, align: bool, factor: float | None) -> list[dict[int, Fraction]]:
    found = []
    for o in range(m):
        if align:
            at = Fraction(o * (n - 1), m - 1) if m > 1 else Fraction(0)
        else:
            step = Fraction(n, m) if factor is None else 1 / Fraction(factor)
            at = max(step * (o + Fraction(1, 2)) - Fraction(1, 2), Fraction(0))
        low = min(math.floor(at), n - 1)
        share = at - low if low < n - 1 else Fraction(0)
        found.append({low: 1 - share, min(low + 1, n - 1): share} if share else {low: 1 - share})
    return found


def interpolate_cubic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    """Keys' cubic interpolation with a = -3/4, the ends repeated, with rational positions."""
    x, out, align = args[:3]
    factors = [*args[3:], *[None] * len(out)]
    for d, m in enumerate(out):
        axis = x.ndim - len(out) + d
        x = _along(x, axis, _cubic_weights(x.shape[axis], m, align, factors[d]))
    return x


def _cubic_weights(n: int, m: int, align: bool, factor: float | None) -> list[dict[int, Fraction]]:
    found = []
    for o in range(m):
        if align:
            at = Fraction(o * (n - 1), m - 1) if m > 1 else Fraction(0)
        else:
            step = Fraction(n, m) if factor is None else 1 / Fraction(factor)
            at = step * (o + Fraction(1, 2)) - Fraction(1, 2)
        row: dict[int, Fraction] = {}
        for i in range(math.floor(at) - 1, math.floor(at) + 3):
            place = min(max(i, 0), n - 1)
            row[place] = row.get(place, Fraction(0)) + _keys(abs(at - i))
        found.append(row)
    return found


def _keys(t: Fraction) -> Fraction:
    a = Fraction(-3, 4)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4)


def _along(x: np.ndarray, axis: int, weights: list[dict[int, Fraction]]) -> np.ndarray:
    parts = [
        sum(x.take(i, axis) * (arb(w.numerator) / w.denominator) for i, w in row.items())
        for row in weights
    ]
    return np.stack(parts, axis)


def transposed(forward: Oracle, shape: Callable[[tuple[Any, ...]], Any]) -> Oracle:
    """The derivative of a linear op: sums of gradients times the weights that the op has."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
        g = args[0]
        size, rest = shape(args)
        y = array(itertools.repeat(arb(0), math.prod(size)), size)
        for at in np.ndindex(*size):
            unit = array(itertools.repeat(arb(0), math.prod(size)), size)
            unit[at] = arb(1)
            image = forward((unit, *rest), {})
            y[at] = total(a * b for a, b in zip(image.reshape(-1), g.reshape(-1), strict=True))
        return y

    return oracle


WINDOWS: dict[str, Oracle] = {
    "max_pool2d_with_indices": max_pool,
    "max_pool3d_with_indices": max_pool,
    "adaptive_max_pool2d": adaptive_max_pool,
    "adaptive_max_pool3d": adaptive_max_pool,
    "avg_pool1d": average_pool,
    "avg_pool2d": average_pool,
    "avg_pool3d": average_pool,
    "_adaptive_avg_pool2d": adaptive_average_pool,
    "_adaptive_avg_pool3d": adaptive_average_pool,
    "avg_pool2d_backward": transposed(average_pool, lambda a: (a[1].shape, a[2:])),
    "avg_pool3d_backward": transposed(average_pool, lambda a: (a[1].shape, a[2:])),
    "_adaptive_avg_pool2d_backward": transposed(
        adaptive_average_pool, lambda a: (a[1].shape, (a[0].shape[2:],))
    ),
    "_adaptive_avg_pool3d_backward": transposed(
        adaptive_average_pool, lambda a: (a[1].shape, (a[0].shape[2:],))
    ),
    "upsample_linear1d": interpolate,
    "upsample_bilinear2d": interpolate,
    "upsample_bicubic2d": interpolate_cubic,
    "upsample_bicubic2d_backward": transposed(
        interpolate_cubic, lambda a: (tuple(a[2]), (a[1], a[3]))
    ),
    "upsample_trilinear3d": interpolate,
    **{
        f"{name}_backward": transposed(interpolate, lambda a: (tuple(a[2]), (a[1], a[3])))
        for name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
    },
    "convolution": convolution,
    "convolution_backward": convolution_backward,
}
