"""Ops that compare, choose, sort, cast and count."""

import functools
import operator
from collections.abc import Callable
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
    is_at_most,
    is_equal,
    is_less,
    larger,
    mapped,
    numbers,
    smaller,
    to_numbers,
    truncated,
)


def _decisions(f: Callable[[arb, arb], bool]) -> Callable[..., Tensor]:
    def decide(x: Any, y: Any) -> Tensor:
        found = mapped(f, x, y)
        return torch.tensor([bool(v) for v in found.reshape(-1)]).bool().reshape(found.shape)

    return decide


def truths(x: Any) -> Tensor:
    """Which entries are not zero."""
    if isinstance(x, Tensor):
        return x != 0
    values = [not is_equal(v, ZERO) for v in x.reshape(-1)]
    return torch.tensor(values).bool().reshape(x.shape)


def where(condition: Any, x: Any = None, y: Any = None) -> Numbers:
    if x is None:
        raise UnsupportedError("where with a condition alone")
    chosen = truths(condition).numpy()
    wide = np.broadcast_arrays(chosen, numbers(x), numbers(y))
    flat = (w.reshape(-1) for w in wide)
    return array((a if c else b for c, a, b in zip(*flat, strict=True)), wide[0].shape)


def cast(x: Any, *, dtype: Any = None, **_: Any) -> Any:
    """To real numbers (a change of format is none of the exact value), integers, or booleans."""
    if dtype is None or (dtype.is_floating_point and isinstance(x, np.ndarray)):
        return x
    if dtype.is_complex:
        raise UnsupportedError("complex numbers")
    if dtype.is_floating_point:
        return to_numbers(x)
    if isinstance(x, Tensor):
        return x.to(dtype)
    if dtype == torch.bool:
        return truths(x)
    whole = [int(truncated(v).unique_fmpz()) for v in x.reshape(-1)]
    return torch.tensor(whole, dtype=torch.int64).reshape(x.shape).to(dtype)


def copied(x: Any, source: Any, non_blocking: bool = False) -> Any:
    del non_blocking
    if isinstance(x, Tensor):
        return cast(source, dtype=x.dtype).expand(x.shape)
    return np.broadcast_to(numbers(source), x.shape).copy()


# -- along a dimension ---------------------------------------------------------------------


def along(
    x: Numbers, dim: int, choose: Callable[[list[arb]], tuple[list[arb], list[int]]]
) -> tuple[Numbers, Tensor]:
    """Apply a function of a row, which gives numbers and positions, along one dimension."""
    if x.ndim == 0:
        values, positions = choose([x.item()])
        return array(values[:1], ()), torch.tensor(positions[0])
    rows = np.moveaxis(x, dim, -1)
    found = [choose(list(row)) for row in rows.reshape(-1, rows.shape[-1])]
    shape = (*rows.shape[:-1], len(found[0][0]) if found else 0)
    values = array((v for row, _ in found for v in row), shape)
    positions = torch.tensor([p for _, row in found for p in row], dtype=torch.long)
    return np.moveaxis(values, -1, dim), positions.reshape(shape).movedim(-1, dim)


def _extremes(largest: bool) -> Callable[..., Any]:
    def chosen(x: Numbers, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, np.ndarray):  # the overload with two tensors
            return mapped(larger if largest else smaller, x, dim)
        if dim is None:
            return array([extreme(x.reshape(-1), largest)[0]], ())

        def choose(row: list[arb]) -> tuple[list[arb], list[int]]:
            value, at = extreme(row, largest)
            return [value], [at]

        values, positions = along(x, dim, choose)
        if keepdim or x.ndim == 0:
            return values, positions
        return np.squeeze(values, dim), positions.squeeze(dim)

    return chosen


def _position(largest: bool) -> Callable[..., Tensor]:
    def chosen(x: Numbers, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if dim is None:
            return torch.tensor(extreme(x.reshape(-1), largest)[1])
        return _extremes(largest)(x, dim, keepdim)[1]

    return chosen


def _order(row: list[arb], descending: bool) -> list[int]:
    def compare(i: int, j: int) -> int:
        before = is_less(row[j], row[i]) if descending else is_less(row[i], row[j])
        after = is_less(row[i], row[j]) if descending else is_less(row[j], row[i])
        return -1 if before else int(after)

    return sorted(range(len(row)), key=functools.cmp_to_key(compare))


def sort(x: Numbers, *args: Any, **options: Any) -> tuple[Numbers, Tensor]:
    """Both overloads; which of two equal entries comes first is documented only if stable."""
    names = ("dim", "descending") if "stable" not in options else ()
    options = {**dict(zip(names, args, strict=False)), **options}
    stable = bool(options.get("stable"))

    def choose(row: list[arb]) -> tuple[list[arb], list[int]]:
        order = _order(row, options.get("descending", False))
        if not stable and any(
            is_equal(row[i], row[j]) for i, j in zip(order[:-1], order[1:], strict=True)
        ):
            raise UndecidedError("a tie in a sort")
        return [row[i] for i in order], order

    return along(x, options.get("dim", -1), choose)


def topk(
    x: Numbers, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Numbers, Tensor]:
    del sorted

    def choose(row: list[arb]) -> tuple[list[arb], list[int]]:
        order = _order(row, largest)
        if any(is_equal(row[i], row[j]) for i, j in zip(order[:-1], order[1:], strict=True)):
            raise UndecidedError("a tie in topk")
        return [row[i] for i in order[:k]], order[:k]

    return along(x, dim, choose)


def kth_value(x: Numbers, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Numbers, Tensor]:
    def choose(row: list[arb]) -> tuple[list[arb], list[int]]:
        at = _order(row, descending=False)[k - 1]
        if sum(is_equal(row[at], v) for v in row) > 1:
            raise UndecidedError("a tie at the k-th value")
        return [row[at]], [at]

    values, positions = along(x, dim, choose)
    if keepdim or x.ndim == 0:
        return values, positions
    return np.squeeze(values, dim), positions.squeeze(dim)


def median(x: Numbers, dim: Any = None, keepdim: bool = False) -> Any:
    if dim is None:
        flat = x.reshape(-1)
        return kth_value(flat, (flat.size + 1) // 2)[0]
    return kth_value(x, ((x.shape[dim] if x.ndim else 1) + 1) // 2, dim, keepdim)


def _running_extreme(largest: bool) -> Callable[[Numbers, int], tuple[Numbers, Tensor]]:
    def running(x: Numbers, dim: int) -> tuple[Numbers, Tensor]:
        def choose(row: list[arb]) -> tuple[list[arb], list[int]]:
            best, at, values, positions = row[0], 0, [], []
            for k, v in enumerate(row):
                if is_at_most(best, v) if largest else is_at_most(v, best):
                    best, at = v, k
                values.append(best)
                positions.append(at)
            return values, positions

        return along(x, dim, choose)

    return running


def bucketize(x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Tensor:
    edges = list(numbers(boundaries))
    below = is_at_most if right else is_less
    found = [sum(below(e, v) for e in edges) for v in numbers(x).reshape(-1)]
    dtype = torch.int32 if out_int32 else torch.int64
    return torch.tensor(found, dtype=dtype).reshape(numbers(x).shape)


def _all_finite(x: Any) -> bool:
    return all(v.is_finite() for v in numbers(x).reshape(-1))


def _is_finite(value: bool) -> Callable[[Any], Tensor]:
    def told(x: Any) -> Tensor:
        if not _all_finite(x):
            raise UndecidedError("not finite")
        return torch.full(tuple(x.shape), value)

    return told


CHOICES: dict[str, Callable[..., Any]] = {
    "lt": _decisions(is_less),
    "le": _decisions(is_at_most),
    "gt": _decisions(lambda a, b: is_less(b, a)),
    "ge": _decisions(lambda a, b: is_at_most(b, a)),
    "eq": _decisions(is_equal),
    "ne": _decisions(lambda a, b: not is_equal(a, b)),
    "where": where,
    "masked_fill": lambda x, mask, value: where(mask, value, x),
    "_to_copy": cast,
    "copy": copied,
    "max": _extremes(largest=True),
    "min": _extremes(largest=False),
    "argmax": _position(largest=True),
    "argmin": _position(largest=False),
    "sort": sort,
    "topk": topk,
    "kthvalue": kth_value,
    "median": median,
    "cummax": _running_extreme(largest=True),
    "cummin": _running_extreme(largest=False),
    "bucketize": bucketize,
    "isnan": _is_finite(False),
    "isinf": _is_finite(False),
    "isfinite": _is_finite(True),
    "nonzero": lambda x: torch.nonzero(truths(x)),
    "count_nonzero": lambda x, *dims: torch.count_nonzero(truths(x), *dims),
    "any": lambda x, *args: torch.any(truths(x), *args),
    "all": lambda x, *args: torch.all(truths(x), *args),
    "__or__": operator.or_,
}
