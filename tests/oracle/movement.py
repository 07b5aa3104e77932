"""Ops that move, write and fill entries, and those that add entries up where they land."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from flint import arb
from torch import Tensor

from tests.oracle.numbers import (
    ZERO,
    Numbers,
    UndecidedError,
    UnsupportedError,
    array,
    extreme,
    filled,
    is_equal,
    numbered,
    numbers,
    real,
    to_numbers,
    total,
)

aten = torch.ops.aten

# Ops that put each entry of their first argument somewhere, or nowhere, or in several places.
MOVES = frozenset({
    "permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "slice", "select", "diagonal",
    "split", "split_with_sizes", "chunk", "unbind", "repeat", "flip", "roll", "tril", "triu",
    "gather", "index_select", "index", "_unsafe_index", "unfold", "take", "movedim", "rot90",
    "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "reflection_pad1d",
    "reflection_pad2d", "replication_pad1d", "replication_pad2d", "upsample_nearest1d",
    "upsample_nearest2d", "diag_embed", "unsafe_split", "unsafe_chunk", "masked_select",
    "slice_backward", "select_backward", "diagonal_backward", "_reshape_copy", "expand_copy",
})  # fmt: skip
SAME = frozenset({"clone", "alias", "detach", "contiguous", "lift_fresh", "lift_fresh_copy"})
SHAPED = frozenset({"view", "_unsafe_view", "_reshape_alias", "reshape", "view_copy"})
# Their derivatives: entries that were put in several places are added up.
ADDING_UP = frozenset({
    "reflection_pad1d_backward", "reflection_pad2d_backward", "replication_pad1d_backward",
    "replication_pad2d_backward", "upsample_nearest1d_backward", "upsample_nearest2d_backward",
    "unfold_backward", "col2im",
})  # fmt: skip


def moved(op: Callable[..., Any], x: Any, *args: Any, **options: Any) -> Any:
    """Move the numbers of the entries (from 1; 0 is what is filled in), and look entries up."""
    several = isinstance(x, (list, tuple))
    parts = [numbers(part) for part in (x if several else [x])]
    entries, ids = [ZERO], []
    for part in parts:
        new = torch.arange(len(entries), len(entries) + part.size, dtype=torch.float64)
        ids.append(new.reshape(part.shape))  # some ops move no integers
        entries.extend(part.reshape(-1))
    found = op(ids if several else ids[0], *args, **options)

    def back(ids: Tensor) -> Numbers:
        return array((entries[int(i)] for i in ids.reshape(-1).tolist()), ids.shape)

    return [back(f) for f in found] if isinstance(found, (list, tuple)) else back(found)


def added_up(op: Any, x: Numbers, *args: Any) -> Numbers:
    """A linear op whose weights are 0 and 1: torch moves one entry at a time."""
    one = torch.zeros(x.shape, dtype=torch.float64)
    args = tuple(torch.zeros(a.shape) if isinstance(a, np.ndarray) else a for a in args)
    out: Numbers | None = None
    for at in np.ndindex(*x.shape):
        one[at] = 1.0
        weights = op(one, *args)
        one[at] = 0.0
        out = filled(weights.shape, 0) if out is None else out
        for place in torch.nonzero(weights).tolist():
            out[tuple(place)] = out[tuple(place)] + real(weights[tuple(place)].item()) * x[at]
    if out is None:
        raise UnsupportedError("no entries")
    return out


# -- written over --------------------------------------------------------------------------


def written(x: Any, places: Tensor, source: Any) -> Numbers:
    """The numbers with others in some places; which of two counts is not documented."""
    flat = places.reshape(-1).tolist()
    out = numbers(x).reshape(-1).copy()
    source = np.broadcast_to(numbers(source), tuple(places.shape)).reshape(-1)
    written: dict[int, arb] = {}
    for place, value in zip(flat, source, strict=True):
        if place in written and not is_equal(written[place], value):
            raise UndecidedError("one place is written twice")
        written[place] = out[place] = value
    return out.reshape(x.shape)


def as_strided(x: Numbers, size: Any, stride: Any, offset: int | None = None) -> Numbers:
    return moved(lambda ids: torch.as_strided(ids, size, stride, offset or 0), x.reshape(-1))


def as_strided_scatter(
    x: Numbers, source: Numbers, size: Any, stride: Any, offset: int | None = None
) -> Numbers:
    ids = torch.arange(x.size)
    return written(x, torch.as_strided(ids, size, stride, offset or 0), source)


def slice_scatter(x: Numbers, source: Any, *where: Any, **named: Any) -> Numbers:
    return written(x, aten.slice(numbered(x), *where, **named), source)


def select_scatter(x: Numbers, source: Any, dim: int, index: int) -> Numbers:
    return written(x, numbered(x).select(dim, index), source)


def scatter(x: Any, dim: int, index: Tensor, source: Any, **options: Any) -> Numbers:
    if options.get("reduce") is not None:
        raise UnsupportedError("scatter with reduce")
    x, source = numbers(x), numbers(source)
    places = numbered(x).gather(dim, index)
    if source.ndim:
        source = source[tuple(slice(0, n) for n in index.shape)]
    return written(x, places, source)


def index_put(x: Any, indices: Any, source: Any, accumulate: bool = False, *_: Any) -> Numbers:
    x = numbers(x)
    places = aten.index(numbered(x), indices)
    if not accumulate:
        return written(x, places, source)
    return _added(x, places, source)


def _added(x: Numbers, places: Tensor, source: Any, factor: Any = 1) -> Numbers:
    out = x.reshape(-1).copy()
    source = np.broadcast_to(numbers(source), tuple(places.shape)).reshape(-1)
    for place, value in zip(places.reshape(-1).tolist(), source, strict=True):
        out[place] = out[place] + real(factor) * value
    return out.reshape(x.shape)


def scatter_add(x: Any, dim: int, index: Tensor, source: Any) -> Numbers:
    x, source = numbers(x), numbers(source)
    places = numbered(x).gather(dim, index)
    return _added(x, places, source[tuple(slice(0, n) for n in index.shape)])


def index_add(x: Any, dim: int, index: Tensor, source: Any, *, alpha: Any = 1) -> Numbers:
    x = numbers(x)
    return _added(x, numbered(x).index_select(dim, index.reshape(-1)), source, alpha)


def index_fill(x: Numbers, dim: int, index: Tensor, value: Any) -> Numbers:
    places = numbered(x).index_select(dim, torch.unique(index))
    return written(x, places, value)


def scatter_reduce(
    x: Numbers, dim: int, index: Tensor, source: Any, how: str, *, include_self: bool = True
) -> Numbers:
    out = x.reshape(-1).copy()
    source = numbers(source)
    landed: dict[int, list[arb]] = {}
    places = numbered(x).gather(dim, index)
    used = source[tuple(slice(0, n) for n in index.shape)].reshape(-1)
    for place, value in zip(places.reshape(-1).tolist(), used, strict=True):
        landed.setdefault(place, [out[place]] if include_self else []).append(value)
    for place, values in landed.items():
        if how in ("sum", "mean"):
            out[place] = total(values) / (len(values) if how == "mean" else 1)
        elif how == "prod":
            out[place] = np.prod(values)
        else:
            out[place] = extreme(values, largest=how == "amax")[0]
    return out.reshape(x.shape)


def index_copy(x: Numbers, dim: int, index: Tensor, source: Any) -> Numbers:
    return written(x, numbered(x).index_select(dim, index.reshape(-1)), source)


def upsample_linear1d(x: Numbers, size: Any, corners: bool, scale: Any = None) -> Numbers:
    weights = _linear_weights(x.shape[-1], size[0], corners, scale)
    rows = [[total(w * row[i] for i, w in taps) for taps in weights]
            for row in x.reshape(-1, x.shape[-1])]  # fmt: skip
    return array((v for row in rows for v in row), (*x.shape[:-1], size[0]))


def upsample_linear1d_backward(
    g: Numbers, size: Any, shape: Any, corners: bool, scale: Any = None
) -> Numbers:
    weights = _linear_weights(shape[-1], size[0], corners, scale)
    out = filled((math.prod(shape[:-1]), shape[-1]), 0)
    for row, dy in zip(out, g.reshape(-1, size[0]), strict=True):
        for taps, v in zip(weights, dy, strict=True):
            for i, w in taps:
                row[i] = row[i] + w * v
    return out.reshape(tuple(shape))


def _linear_weights(n: int, m: int, corners: bool, scale: Any) -> list[list[tuple[int, arb]]]:
    """For each of m new positions: the old ones between which it is, with their weights."""
    found = []
    for i in range(m):
        if corners:
            at = Fraction(i * (n - 1), max(m - 1, 1))
        else:
            step = Fraction(n, m) if scale is None else 1 / Fraction(float(scale))
            at = max(step * (Fraction(2 * i + 1, 2)) - Fraction(1, 2), Fraction(0))
        low = min(int(at), n - 1)
        share = at - low if low < n - 1 else Fraction(0)
        weight = arb(share.numerator) / arb(share.denominator)
        found.append([(low, 1 - weight), (min(low + 1, n - 1), weight)])
    return found


def masked_scatter(x: Numbers, mask: Tensor, source: Numbers) -> Numbers:
    places = numbered(x)[mask.expand(x.shape)]
    return written(x, places, source.reshape(-1)[: places.numel()])


def embedding_dense_backward(
    g: Numbers, index: Tensor, count: int, padding: int, by_frequency: bool
) -> Numbers:
    rows, words = g.reshape(-1, g.shape[-1]), index.reshape(-1).tolist()
    out = filled((count, g.shape[-1]), 0)
    for row, word in zip(rows, words, strict=True):
        if word != padding:
            out[word] = out[word] + (row / words.count(word) if by_frequency else row)
    return out


# -- filled in -----------------------------------------------------------------------------


def constant_pad(x: Numbers, pad: Any, value: Any = 0) -> Numbers:
    ids = torch.constant_pad_nd(numbered(x), pad, -1)
    flat = x.reshape(-1)
    found = (flat[i] if i >= 0 else real(value) for i in ids.reshape(-1).tolist())
    return array(found, ids.shape)


def eye(*sizes: int, **_: Any) -> Numbers:
    return to_numbers(torch.eye(*sizes, dtype=torch.int64))


def arange(*args: Any, **_: Any) -> Numbers:
    start, end, step = ((0, *args, 1), (*args, 1), args)[len(args) - 1]
    count = int(-(-(end - start) // step))
    return array((real(start) + real(step) * i for i in range(count)), (count,))


def linspace(start: Any, end: Any, steps: int, **_: Any) -> Numbers:
    a, b = real(start), real(end)
    return array((a + (b - a) * i / max(steps - 1, 1) for i in range(steps)), (steps,))


MOVEMENT: dict[str, Callable[..., Any]] = {
    "as_strided": as_strided,
    "as_strided_scatter": as_strided_scatter,
    "slice_scatter": slice_scatter,
    "select_scatter": select_scatter,
    "scatter": scatter,
    "index_put": index_put,
    "_unsafe_index_put": index_put,
    "scatter_add": scatter_add,
    "index_add": index_add,
    "index_fill": index_fill,
    "index_copy": index_copy,
    "upsample_linear1d": upsample_linear1d,
    "upsample_linear1d_backward": upsample_linear1d_backward,
    "scatter_reduce": scatter_reduce,
    "masked_scatter": masked_scatter,
    "embedding": lambda weight, index, *_: moved(lambda ids: aten.index(ids, [index]), weight),
    "embedding_dense_backward": embedding_dense_backward,
    "cat": lambda parts, dim=0: moved(lambda ids: torch.cat(ids, dim), parts),
    "stack": lambda parts, dim=0: moved(lambda ids: torch.stack(ids, dim), parts),
    "constant_pad_nd": constant_pad,
    "fill": lambda x, value: filled(x.shape, value),
    "full": lambda shape, value, **_: filled(shape, value),
    "zeros": lambda shape, **_: filled(shape, 0),
    "ones": lambda shape, **_: filled(shape, 1),
    "empty": lambda shape, **_: filled(shape, 0),
    "new_zeros": lambda x, shape, **_: filled(shape, 0),
    "new_ones": lambda x, shape, **_: filled(shape, 1),
    "new_full": lambda x, shape, value, **_: filled(shape, value),
    "new_empty": lambda x, shape, **_: filled(shape, 0),
    "new_empty_strided": lambda x, shape, stride, **_: filled(shape, 0),
    "scalar_tensor": lambda value, **_: filled((), value),
    "_efficientzerotensor": lambda shape, **_: filled(shape, 0),
    "real_number": lambda value, rest, *_, **__: filled((), real(value) + real(rest)),
    "eye": eye,
    "arange": arange,
    "linspace": linspace,
    "one_hot": lambda x, n: to_numbers(torch.nn.functional.one_hot(x, n)),
}
