"""Convolution and pooling, every product and window written out."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.oracle.numbers import (
    Numbers,
    UnsupportedError,
    array,
    extreme,
    filled,
    numbers,
    total,
)

Index = tuple[int, ...]


def _each(setting: Any, dims: int) -> list[int]:
    """One setting per dimension."""
    values = [setting] if isinstance(setting, int) else list(setting)
    return values * dims if len(values) == 1 else values


def _products(x: Any, w: Any, settings: tuple[Any, ...]) -> Iterator[tuple[Index, Index, Index]]:
    """Indices (in the longer, in the shorter, in the weight) of all products of a convolution.

    The longer is the input of a convolution and the output of a transposed one.
    """
    stride, padding, dilation, groups = settings
    dims = len(w) - 2
    grids = [
        [
            (o * s - p + k * d, o, k)
            for o in range(x[1][2 + i])
            for k in range(w[2 + i])
            if 0 <= o * s - p + k * d < x[0][2 + i]
        ]
        for i, (s, p, d) in enumerate(
            zip(_each(stride, dims), _each(padding, dims), _each(dilation, dims), strict=True)
        )
    ]
    per_group = w[0] // groups
    for n, out, inside in itertools.product(range(x[0][0]), range(w[0]), range(w[1])):
        channel = (out // per_group) * w[1] + inside
        for place in itertools.product(*grids):
            yield (
                (n, channel, *(a for a, _, _ in place)),
                (n, out, *(b for _, b, _ in place)),
                (out, inside, *(k for _, _, k in place)),
            )


def _shape(x: Numbers, w: Numbers, settings: tuple[Any, ...]) -> tuple[int, ...]:
    empty = (torch.empty(a.shape, dtype=torch.float64) for a in (x, w))
    return tuple(torch.ops.aten.convolution(*empty, None, *settings).shape)


def convolution(x: Any, w: Any, bias: Any, *settings: Any) -> Numbers:
    x, w = numbers(x), numbers(w)
    stride, padding, dilation, transposed, _, groups = settings
    y = filled(_shape(x, w, settings), 0)
    shapes = (y.shape, x.shape) if transposed else (x.shape, y.shape)
    for long, short, k in _products(shapes, w.shape, (stride, padding, dilation, groups)):
        if transposed:
            y[long] = y[long] + x[short] * w[k]
        else:
            y[short] = y[short] + x[long] * w[k]
    return y if bias is None else y + numbers(bias).reshape(1, -1, *[1] * (y.ndim - 2))


def convolution_backward(g: Any, x: Any, w: Any, bias_sizes: Any, *settings: Any) -> Any:
    del bias_sizes
    g, x, w = numbers(g), numbers(x), numbers(w)
    stride, padding, dilation, transposed, _, groups, mask = settings
    dx, dw = filled(x.shape, 0), filled(w.shape, 0)
    shapes = (g.shape, x.shape) if transposed else (x.shape, g.shape)
    for long, short, k in _products(shapes, w.shape, (stride, padding, dilation, groups)):
        at_x, at_g = (short, long) if transposed else (long, short)
        dx[at_x] = dx[at_x] + g[at_g] * w[k]
        dw[k] = dw[k] + g[at_g] * x[at_x]
    db = array((total(g[:, c].reshape(-1)) for c in range(g.shape[1])), (g.shape[1],))
    return tuple(d if m else None for d, m in zip((dx, dw, db), mask, strict=True))


# -- pooling -------------------------------------------------------------------------------


def _window(place: Index, sizes: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """Positions inside the input of one window, in order, and its number of taps with padding."""
    positions = []
    for taps in itertools.product(*(range(k) for k in kernel)):
        at = tuple(
            o * s - p + t * d
            for o, s, p, t, d in zip(place, stride, padding, taps, dilation, strict=True)
        )
        if all(0 <= a < n for a, n in zip(at, sizes, strict=True)):
            positions.append(at)
    return positions


def _pooling(dims: int, ceil: bool, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    if ceil:
        raise UnsupportedError("ceil_mode")
    stride = stride or kernel
    return [_each(v, dims) for v in (kernel, stride, padding, dilation)]


def _places(x: Numbers, settings: Any) -> list[Index]:
    dims = len(settings[0])
    counts = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[-dims:], *settings, strict=True)
    ]
    return list(itertools.product(*(range(c) for c in counts)))


def max_pool(dims: int) -> Callable[..., tuple[Numbers, Tensor]]:
    def pool(
        x: Numbers, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
        ceil: bool = False,
    ) -> tuple[Numbers, Tensor]:  # fmt: skip
        settings = _pooling(dims, ceil, kernel, stride, padding, dilation)
        sizes, places = x.shape[-dims:], _places(x, settings)
        windows = [_window(place, sizes, *settings) for place in places]
        values, indices = [], []
        for plane in x.reshape(-1, *sizes):
            for window in windows:
                value, at = extreme(plane[p] for p in window)
                values.append(value)
                indices.append(int(np.ravel_multi_index(window[at], sizes)))
        shape = (*x.shape[:-dims], *(last + 1 for last in places[-1]))
        return array(values, shape), torch.tensor(indices).reshape(shape)

    return pool


def max_pool_backward(dims: int) -> Callable[..., Numbers]:
    def backward(g: Numbers, x: Numbers, *settings: Any) -> Numbers:
        indices: Tensor = settings[-1]
        size = math.prod(x.shape[-dims:])
        dx = filled((x.size // size, size), 0)
        flat, places = g.reshape(len(dx), -1), indices.reshape(len(dx), -1).tolist()
        for plane, row, at in zip(dx, flat, places, strict=True):
            for v, i in zip(row, at, strict=True):
                plane[i] = plane[i] + v
        return dx.reshape(x.shape)

    return backward


def _average_windows(x: Numbers, dims: int, settings: Any) -> Any:
    """Places with their windows and divisors."""
    kernel, stride, padding, ceil, count_padding, divisor = settings
    if divisor:
        raise UnsupportedError("divisor_override")
    settings = _pooling(dims, ceil, kernel, stride, padding, 1)
    whole = math.prod(settings[0])
    for place in _places(x, settings):
        window = _window(place, x.shape[-dims:], *settings)
        yield place, window, whole if count_padding else len(window)


def average_pool(dims: int) -> Callable[..., Numbers]:
    def pool(
        x: Numbers, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False,
        count_padding: bool = True, divisor: Any = None,
    ) -> Numbers:  # fmt: skip
        settings = (kernel, stride, padding, ceil, count_padding, divisor)
        windows = list(_average_windows(x, dims, settings))
        planes = x.reshape(-1, *x.shape[-dims:])
        values = (total(plane[p] for p in at) / n for plane in planes for _, at, n in windows)
        return array(values, (*x.shape[:-dims], *(last + 1 for last in windows[-1][0])))

    return pool


def average_pool_backward(dims: int) -> Callable[..., Numbers]:
    def backward(g: Numbers, x: Numbers, *settings: Any) -> Numbers:
        dx = filled(x.shape, 0)
        planes = dx.reshape(-1, *x.shape[-dims:])
        rows = g.reshape(len(planes), *g.shape[-dims:])
        for place, window, n in _average_windows(x, dims, settings):
            for plane, row in zip(planes, rows, strict=True):
                for p in window:
                    plane[p] = plane[p] + row[place] / n
        return planes.reshape(x.shape)

    return backward


def _adaptive_windows(sizes: Any, counts: Any) -> Iterator[tuple[Index, list[Index]]]:
    for place in itertools.product(*(range(c) for c in counts)):
        ranges = (
            range(i * n // c, -(-(i + 1) * n // c))
            for i, n, c in zip(place, sizes, counts, strict=True)
        )
        yield place, list(itertools.product(*ranges))


def adaptive_average_pool(x: Numbers, counts: Any) -> Numbers:
    dims = len(counts)
    windows = list(_adaptive_windows(x.shape[-dims:], counts))
    planes = x.reshape(-1, *x.shape[-dims:])
    values = (total(plane[p] for p in at) / len(at) for plane in planes for _, at in windows)
    return array(values, (*x.shape[:-dims], *counts))


def adaptive_average_pool_backward(g: Numbers, x: Numbers) -> Numbers:
    dims = 2
    dx = filled(x.shape, 0)
    planes = dx.reshape(-1, *x.shape[-dims:])
    rows = g.reshape(len(planes), *g.shape[-dims:])
    for place, window in _adaptive_windows(x.shape[-dims:], g.shape[-dims:]):
        for plane, row in zip(planes, rows, strict=True):
            for p in window:
                plane[p] = plane[p] + row[place] / len(window)
    return planes.reshape(x.shape)


def adaptive_max_pool2d(x: Numbers, counts: Any) -> tuple[Numbers, Tensor]:
    sizes = x.shape[-2:]
    values, indices = [], []
    for plane in x.reshape(-1, *sizes):
        for _, window in _adaptive_windows(sizes, counts):
            value, at = extreme(plane[p] for p in window)
            values.append(value)
            indices.append(int(np.ravel_multi_index(window[at], sizes)))
    shape = (*x.shape[:-2], *counts)
    return array(values, shape), torch.tensor(indices).reshape(shape)


WINDOWS: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "convolution_backward": convolution_backward,
    "max_pool2d_with_indices": max_pool(2),
    "max_pool2d_with_indices_backward": max_pool_backward(2),
    "max_pool3d_with_indices": max_pool(3),
    "max_pool3d_with_indices_backward": max_pool_backward(3),
    "avg_pool2d": average_pool(2),
    "avg_pool2d_backward": average_pool_backward(2),
    "avg_pool3d": average_pool(3),
    "avg_pool3d_backward": average_pool_backward(3),
    "_adaptive_avg_pool2d": adaptive_average_pool,
    "_adaptive_avg_pool2d_backward": adaptive_average_pool_backward,
    "adaptive_max_pool2d": adaptive_max_pool2d,
    "adaptive_max_pool2d_backward": max_pool_backward(2),
}
