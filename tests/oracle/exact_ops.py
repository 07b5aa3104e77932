"""One op after another in arbitrary precision, written out entry by entry."""

import math
from collections.abc import Callable
from typing import Any

import flint
import numpy as np
import torch
from flint import arb
from torch import Tensor

from tests.oracle.numbers import Numbers, is_less, mapped, numbered, numbers


def _pow(x: Numbers, p: Any) -> Numbers:
    if isinstance(p, np.ndarray):
        return mapped(lambda v, e: (v.log() * e).exp(), x, p)
    if float(p).is_integer():
        return mapped(lambda v: v ** int(p) if p >= 0 else 1 / v ** int(-p), x)
    return mapped(lambda v: v ** arb(p), x)


def _mm(a: Numbers, b: Numbers) -> Numbers:
    rows, inner, columns = a.shape[0], a.shape[1], b.shape[1]
    out = np.empty((rows, columns), dtype=object)
    if inner == 0:
        out.reshape(-1)[:] = [arb(0)] * out.size
        return out
    product = flint.arb_mat(rows, inner, a.reshape(-1).tolist()) * flint.arb_mat(
        inner, columns, b.reshape(-1).tolist()
    )
    out.reshape(-1)[:] = product.entries()
    return out


def _bmm(a: Numbers, b: Numbers) -> Numbers:
    return np.stack([_mm(x, y) for x, y in zip(a, b, strict=True)])


def _total(entries: Any) -> arb:
    result = arb(0)
    for v in entries:
        result = result + v
    return result


def _over(x: Numbers, dims: Any, keepdim: bool, f: Callable[[Any], arb]) -> Numbers:
    dims = list(range(x.ndim)) if not dims else [d % x.ndim for d in dims]
    kept = [d for d in range(x.ndim) if d not in dims]
    moved = np.transpose(x, kept + dims).reshape([x.shape[d] for d in kept] + [-1])
    out = np.empty(moved.shape[:-1], dtype=object)
    flat = out.reshape(-1)
    for i, row in enumerate(moved.reshape(-1, moved.shape[-1])):
        flat[i] = f(row)
    out = flat.reshape(out.shape)
    return out.reshape([1 if d in dims else n for d, n in enumerate(x.shape)]) if keepdim else out


def _sum(x: Numbers, dims: Any = None, keepdim: bool = False, **_: Any) -> Numbers:
    return _over(x, dims, keepdim, _total)


def _mean(x: Numbers, dims: Any = None, keepdim: bool = False, **_: Any) -> Numbers:
    return _over(x, dims, keepdim, lambda row: _total(row) / len(row))


def _amax(x: Numbers, dims: Any = None, keepdim: bool = False) -> Numbers:
    def largest(row: Any) -> arb:
        best = row[0]
        for v in row[1:]:
            best = best.max(v)
        return best

    return _over(x, dims, keepdim, largest)


def _var_mean(x: Numbers, dims: Any, correction: int = 1, keepdim: bool = False) -> Any:
    def variance(row: Any) -> arb:
        m = _total(row) / len(row)
        return _total((v - m) ** 2 for v in row) / (len(row) - correction)

    return _over(x, dims, keepdim, variance), _mean(x, dims, keepdim)


def _where(condition: Tensor, a: Any, b: Any) -> Numbers:
    a, b = numbers(a), numbers(b)
    shape = np.broadcast_shapes(tuple(condition.shape), a.shape, b.shape)
    c = condition.expand(shape).reshape(-1).tolist()
    x, y = np.broadcast_to(a, shape).reshape(-1), np.broadcast_to(b, shape).reshape(-1)
    out = np.empty(shape, dtype=object)
    out.reshape(-1)[:] = [p if k else q for k, p, q in zip(c, x, y, strict=True)]
    return out


def _filled(shape: Any, value: Any) -> Numbers:
    return np.broadcast_to(numbers(value), tuple(shape)).copy()


def _cat(parts: list[Any], dim: int = 0) -> Numbers:
    parts = [numbers(p) for p in parts]
    kept = [p for p in parts if p.size or p.ndim > 1] or parts
    return np.concatenate(kept, axis=dim)


def _scatter(x: Numbers, dim: int, index: Tensor, source: Any) -> Numbers:
    ids = numbered(x)
    source = numbers(source)
    marks = -1 - torch.arange(index.numel()).reshape(index.shape)
    flat_source = (
        np.broadcast_to(source, tuple(index.shape))
        if source.ndim == 0
        else source[tuple(slice(0, n) for n in index.shape)]
    )
    written = ids.scatter(dim, index, marks).reshape(-1).tolist()
    out = np.empty(x.shape, dtype=object)
    old, new = x.reshape(-1), flat_source.reshape(-1)
    out.reshape(-1)[:] = [old[i] if i >= 0 else new[-1 - i] for i in written]
    return out


def _slice_scatter(x: Numbers, source: Numbers, *where: Any) -> Numbers:
    return _write(x, source, torch.ops.aten.slice.Tensor(numbered(x), *where))


def _write(x: Numbers, source: Numbers, places: Tensor) -> Numbers:
    out = x.copy().reshape(-1)
    for i, v in zip(places.reshape(-1).tolist(), source.reshape(-1), strict=True):
        out[i] = v
    return out.reshape(x.shape)


def _index_put(x: Numbers, indices: Any, source: Numbers, accumulate: bool = False) -> Numbers:
    places = torch.ops.aten.index.Tensor(numbered(x), indices)
    source = np.broadcast_to(source, tuple(places.shape))
    if not accumulate:
        return _write(x, source, places)
    out = x.copy().reshape(-1)
    for i, v in zip(places.reshape(-1).tolist(), source.reshape(-1), strict=True):
        out[i] = out[i] + v
    return out.reshape(x.shape)


def _pad(x: Numbers, pad: Any, value: float = 0.0) -> Numbers:
    ids = torch.nn.functional.pad(numbered(x).double(), pad, value=-1).long()
    flat = x.reshape(-1)
    out = np.empty(tuple(ids.shape), dtype=object)
    out.reshape(-1)[:] = [flat[i] if i >= 0 else arb(value) for i in ids.reshape(-1).tolist()]
    return out


def _clamp(x: Numbers, low: Any = None, high: Any = None) -> Numbers:
    def one(v: arb) -> arb:
        if low is not None and is_less(v, arb(low)):
            return arb(low)
        if high is not None and is_less(arb(high), v):
            return arb(high)
        return v

    return mapped(one, x)


def _windows(shape: Any, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Numbers of the input entries in each window; -1 for padding. [positions..., window]."""
    ids = torch.arange(math.prod(shape)).reshape(shape)
    pad = [p for size in reversed(padding) for p in (size, size)]
    ids = torch.nn.functional.pad(ids, pad, value=-1)
    for d in range(len(shape)):
        span = dilation[d] * (kernel[d] - 1) + 1
        ids = ids.unfold(d, span, stride[d])
        ids = ids[..., :: dilation[d]]
    n = len(shape)
    return ids.reshape(*ids.shape[:n], -1)


def _convolution(
    x: Numbers, w: Numbers, b: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Numbers:  # fmt: skip
    del output_padding
    if transposed:
        raise NotImplementedError("transposed convolution")
    windows = _windows(x.shape[2:], w.shape[2:], stride, padding, dilation)
    places = windows.reshape(-1, windows.shape[-1])
    zero = arb(0)
    per_group = w.shape[1]
    out_per_group = w.shape[0] // groups
    out = np.empty((x.shape[0], w.shape[0], len(places)), dtype=object)
    for n in range(x.shape[0]):
        for g in range(groups):
            planes = x[n, g * per_group : (g + 1) * per_group].reshape(per_group, -1)
            columns = np.empty((per_group, places.shape[1], len(places)), dtype=object)
            for c in range(per_group):
                for j, row in enumerate(places.tolist()):
                    columns[c, :, j] = [planes[c][i] if i >= 0 else zero for i in row]
            rows = slice(g * out_per_group, (g + 1) * out_per_group)
            weight = w[rows].reshape(out_per_group, -1)
            out[n, rows] = _mm(weight, columns.reshape(weight.shape[1], -1))
    if b is not None:
        out = out + numbers(b).reshape(1, -1, 1)
    return out.reshape(x.shape[0], w.shape[0], *windows.shape[:-1])


def _convolution_backward(
    dy: Numbers, x: Numbers, w: Numbers, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, mask: Any,
) -> Any:  # fmt: skip
    del bias_sizes, output_padding
    if transposed:
        raise NotImplementedError("transposed convolution")
    windows = _windows(x.shape[2:], w.shape[2:], stride, padding, dilation)
    places = windows.reshape(-1, windows.shape[-1]).tolist()
    per_group, out_per_group = w.shape[1], w.shape[0] // groups
    dx = _filled((x.shape[0], x.shape[1], math.prod(x.shape[2:])), 0.0)
    dw = _filled((*w.shape[:2], math.prod(w.shape[2:])), 0.0)
    flat_x, flat_w = x.reshape(*x.shape[:2], -1), w.reshape(*w.shape[:2], -1)
    flat_dy = dy.reshape(*dy.shape[:2], -1)
    for n in range(x.shape[0]):
        for o in range(w.shape[0]):
            first = (o // out_per_group) * per_group
            for position, row in enumerate(places):
                g = flat_dy[n, o, position]
                if g.is_zero():
                    continue
                for k, i in enumerate(row):
                    if i < 0:
                        continue
                    for c in range(per_group):
                        dx[n, first + c, i] += g * flat_w[o, c, k]
                        dw[o, c, k] += g * flat_x[n, first + c, i]
    db = _over(flat_dy, [0, 2], False, _total)
    return [
        dx.reshape(x.shape) if mask[0] else None,
        dw.reshape(w.shape) if mask[1] else None,
        db if mask[2] else None,
    ]


def _pair(v: Any, default: Any = None) -> list[int]:
    if v is None or v == []:
        return list(default)
    return [v, v] if isinstance(v, int) else (list(v) * 2)[:2]


def _max_pool(
    x: Numbers, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    if ceil_mode:
        raise NotImplementedError("ceil_mode")
    kernel = _pair(kernel)
    windows = _windows(x.shape[-2:], kernel, _pair(stride, kernel), _pair(padding), _pair(dilation))
    planes = x.reshape(-1, math.prod(x.shape[-2:]))
    out = np.empty((len(planes), *windows.shape[:2]), dtype=object)
    indices = torch.empty(out.shape, dtype=torch.long)
    for p, plane in enumerate(planes):
        for a in range(windows.shape[0]):
            for b in range(windows.shape[1]):
                candidates = [i for i in windows[a, b].tolist() if i >= 0]
                best = candidates[0]
                for i in candidates[1:]:
                    if is_less(plane[best], plane[i]):
                        best = i
                out[p, a, b], indices[p, a, b] = plane[best], best
    shape = (*x.shape[:-2], *windows.shape[:2])
    return [out.reshape(shape), indices.reshape(shape)]


def _max_pool_backward(
    dy: Numbers, x: Numbers, kernel: Any, stride: Any, padding: Any, dilation: Any,
    ceil_mode: bool, indices: Tensor,
) -> Numbers:  # fmt: skip
    del kernel, stride, padding, dilation, ceil_mode
    dx = _filled((math.prod(x.shape[:-2]), math.prod(x.shape[-2:])), 0.0)
    flat, places = dy.reshape(len(dx), -1), indices.reshape(len(dx), -1)
    for p in range(len(dx)):
        for v, i in zip(flat[p], places[p].tolist(), strict=True):
            dx[p, i] += v
    return dx.reshape(x.shape)


def _to_copy(x: Numbers, dtype: Any = None, **_: Any) -> Any:
    if dtype is not None and not dtype.is_floating_point:
        raise NotImplementedError("a cast to integers")
    return x.copy()


SPECIAL: dict[str, Callable[..., Any]] = {
    "real_number": lambda value, rest, error, device: numbers(value) + numbers(rest),
    "pow": _pow,
    "mm": _mm,
    "bmm": _bmm,
    "sum": _sum,
    "mean": _mean,
    "amax": _amax,
    "var_mean": _var_mean,
    "where": _where,
    "full_like": lambda x, value, **_: _filled(x.shape, value),
    "cat": _cat,
    "scatter": _scatter,
    "slice_scatter": _slice_scatter,
    "index_put": _index_put,
    "constant_pad_nd": _pad,
    "clamp": _clamp,
    "hardtanh": _clamp,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "max_pool2d_with_indices": _max_pool,
    "max_pool2d_with_indices_backward": _max_pool_backward,
    "_to_copy": _to_copy,
    "leaky_relu": lambda x, slope=0.01: mapped(
        lambda v: v if is_less(arb(0), v) else v * arb(slope), x
    ),
}
