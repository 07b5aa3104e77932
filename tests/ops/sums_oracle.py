"""What are sums, products and norms over the real numbers?

Written out in Arb; oracles get and return arrays of Arb numbers; see `tests.ops.laws`.
"""

import itertools
import math
from typing import Any

import numpy as np
from flint import arb, ctx

from tests.ops.choice_oracle import extreme
from tests.ops.laws import Oracle
from tests.ops.movement_oracle import array, numbers
from tests.ops.slices import over_slices, reduced, running, total
from tests.ops.trials import EXACT_BITS


def mean(values: list[Any]) -> arb:
    return total(values) / len(values)


def product(values: list[Any]) -> arb:
    return math.prod(values, start=arb(1))


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products of matrices or vectors, batched or not."""
    left = a if a.ndim > 1 else a[None, :]
    right = b if b.ndim > 1 else b[:, None]
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    left = np.broadcast_to(left, (*batch, *left.shape[-2:]))
    right = np.broadcast_to(right, (*batch, *right.shape[-2:]))
    shape = (*batch, left.shape[-2], right.shape[-1])
    entries = (
        total(
            p * q
            for p, q in zip(left[(*i[:-1],)], right[(*i[:-2], slice(None), i[-1])], strict=True)
        )
        for i in np.ndindex(*shape)
    )
    result = array(entries, shape)
    result = result if a.ndim > 1 else result[..., 0, :]
    return result if b.ndim > 1 else result[..., 0]


def multiplied(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    return (
        matmul(numbers(args[0]), numbers(args[1])) if args[0].dtype == object else args[0] @ args[1]
    )


def added(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    beta, alpha = arb(kwargs.get("beta", 1)), arb(kwargs.get("alpha", 1))
    ab = matmul(args[1], args[2])
    return beta * args[0] + alpha * ab


def added_batches(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    return args[0] + matmul(args[1], args[2]).sum(0)


def moment(*, root: bool, with_mean: bool) -> Oracle:
    """Variance or standard deviation, of the options dim, correction, keepdim."""

    def oracle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def f(values: list[arb]) -> Any:
            middle = mean(values)
            n = len(values) - arb(kwargs["correction"])
            variance = total((v - middle) * (v - middle) for v in values) / n
            found = variance.sqrt() if root and variance != 0 else variance
            if root and not found.is_finite():
                found = abs(variance).sqrt()
            return (found, middle) if with_mean else found

        return reduced(f, args[0], args[1], kwargs.get("keepdim", False))

    return oracle


def norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    order = args[1]

    def f(values: list[arb]) -> arb:
        sizes = [abs(v) for v in values]
        if order == 1:
            return total(sizes)
        if math.isinf(order):
            return extreme(sizes, largest=order > 0)[0]
        squares = total(v * v for v in values)
        return squares.sqrt() if squares > 0 else arb(0)

    dim = args[2] if len(args) > 2 else None
    return reduced(f, args[0], dim, bool(args[3]) if len(args) > 3 else False)


def cdist(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    a, b, p = args[:3]
    entries = (norm((x - y, p), {})[()] for x in a for y in b)
    return array(entries, (len(a), len(b)))


def cdist_backward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    g, a, b, _, d = args
    y = array(itertools.repeat(arb(0), a.size), a.shape)
    for i, j, k in np.ndindex(len(a), len(b), a.shape[1]):
        if d[i, j] != 0:
            y[i, k] += g[i, j] * (a[i, k] - b[j, k]) / d[i, j]
    return y


def histogram(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    x, bins = args[:2]
    values = list(x.reshape(-1))
    low, high = (arb(v) for v in args[2:4]) if len(args) > 2 else (min(values), max(values))
    counts = [0] * bins
    with ctx.workprec(EXACT_BITS):  # sums and products of float64 numbers, compared exactly
        for v in values:
            if low <= v <= high:
                place = sum(bool((v - low) * bins >= k * (high - low)) for k in range(1, bins))
                counts[place] += 1
    return array((arb(n) for n in counts), (bins,))


def log_of_exponentials(values: list[arb]) -> arb:
    finite = [v for v in values if v.is_finite()]
    if not finite:
        return values[0]
    largest = max(finite, key=lambda v: float(v.mid()))
    return total((v - largest).exp() for v in finite).log() + largest


def running_logs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    if args[0].ndim == 0:
        return args[0]
    if args[0].size == 0:
        return args[0]
    return running(log_of_exponentials)(args, kwargs)


SUMS: dict[str, Oracle] = {
    "logcumsumexp": running_logs,
    "histc": histogram,
    "sum": over_slices(total),
    "mean": over_slices(mean),
    "trace": lambda args, kwargs: array([total(np.diagonal(args[0]))], ()),
    "cumsum": running(total),
    "mm": multiplied,
    "bmm": multiplied,
    "mv": multiplied,
    "dot": multiplied,
    "vdot": multiplied,
    "matmul": multiplied,
    "prod": over_slices(product),
    "cumprod": running(product),
    "_cdist_forward": cdist,
    "_cdist_backward": cdist_backward,
    "addmm": added,
    "addmv": added,
    "baddbmm": added,
    "addbmm": added_batches,
    "var": moment(root=False, with_mean=False),
    "var_mean": moment(root=False, with_mean=True),
    "std": moment(root=True, with_mean=False),
    "std_mean": moment(root=True, with_mean=True),
    "linalg_vector_norm": norm,
}
