"""Sums, products, means, norms and products of matrices."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from flint import arb, arb_mat

from tests.oracle.choices import along
from tests.oracle.elementwise import add, exp, power
from tests.oracle.numbers import (
    ONE,
    ZERO,
    Numbers,
    UnsupportedError,
    array,
    extreme,
    filled,
    is_equal,
    is_minus_infinity,
    magnitude,
    mapped,
    numbers,
    real,
    sign,
    total,
)

Row = list[arb]


def reduced(x: Any, dim: Any, keepdim: bool, f: Callable[[Row], arb]) -> Numbers:
    """Apply a function of rows over some dimensions; over all if none are named."""
    x = numbers(x)
    if dim is None or (isinstance(dim, (list, tuple)) and not len(dim)):
        dim = range(x.ndim)
    dims = [d % max(x.ndim, 1) for d in ([dim] if isinstance(dim, int) else dim)]
    if x.ndim == 0:
        return array([f([x.item()])], ())
    rest = [d for d in range(x.ndim) if d not in dims]
    length = math.prod(x.shape[d] for d in dims)
    shape = [x.shape[d] for d in rest]
    rows = x.transpose(rest + sorted(set(dims))).reshape(math.prod(shape), length)
    out = array((f(list(row)) for row in rows), shape)
    return out.reshape([1 if d in dims else n for d, n in enumerate(x.shape)]) if keepdim else out


def sum_(x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Numbers:
    return reduced(x, dim, keepdim, total)


def average(row: Row) -> arb:
    return total(row) / len(row)


def mean(x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Numbers:
    return reduced(x, dim, keepdim, average)


def _variance(correction: Any) -> Callable[[Row], arb]:
    def of_row(row: Row) -> arb:
        middle = average(row)
        return total((v - middle) ** 2 for v in row) / (real(len(row)) - real(correction))

    return of_row


def var(
    x: Any, dim: Any = None, *, correction: Any = 1, keepdim: bool = False, **_: Any
) -> Numbers:
    return reduced(x, dim, keepdim, _variance(1 if correction is None else correction))


def std(x: Any, dim: Any = None, **options: Any) -> Numbers:
    return mapped(lambda v: v.sqrt(), var(x, dim, **options))


def var_mean(
    x: Any, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> tuple[Numbers, Numbers]:
    return var(x, dim, correction=correction, keepdim=keepdim), mean(x, dim, keepdim)


def prod(x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Numbers:
    return reduced(x, dim, keepdim, lambda row: math.prod(row, start=ONE))


def _norm(order: float) -> Callable[[Row], arb]:
    def of_row(row: Row) -> arb:
        if order == 2:
            return total(v * v for v in row).sqrt()
        if order == 0:
            return real(sum(not is_equal(v, ZERO) for v in row))
        sizes = [magnitude(v) for v in row]
        if order == 1:
            return total(sizes)
        if math.isinf(order):
            return extreme(sizes, order > 0)[0]
        return power(total(power(v, real(order)) for v in sizes), ONE / real(order))

    return of_row


def vector_norm(
    x: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> Numbers:
    return reduced(x, dim, keepdim, _norm(2.0 if order is None else float(order)))


# -- running -------------------------------------------------------------------------------


def running(x: Any, dim: int, step: Callable[[arb, arb], arb]) -> Numbers:
    out = numbers(x).copy()
    if out.ndim:
        rows = np.moveaxis(out, dim, 0)
        for i in range(1, len(rows)):
            rows[i] = mapped(step, rows[i - 1], rows[i])
    return out


def log_sum_exp(row: Row) -> arb:
    """Shifted by about the largest: the shift cancels, whatever it is."""
    live = [v for v in row if not is_minus_infinity(v)]
    if not live:
        return -arb("inf")
    shift = real(max(float(v.mid()) for v in live))
    return shift + total((v - shift).exp() for v in live).log()


def logcumsumexp(x: Numbers, dim: int) -> Numbers:
    def choose(row: Row) -> tuple[Row, list[int]]:
        return [log_sum_exp(row[: k + 1]) for k in range(len(row))], [0] * len(row)

    return along(x, dim, choose)[0]


def _rows(x: Numbers, dim: int, f: Callable[[Row], Row]) -> Numbers:
    return along(x, dim, lambda row: (f(row), [0] * len(row)))[0]


def softmax(x: Any, dim: int, *_: Any) -> Numbers:
    def of_row(row: Row) -> Row:
        live = [float(v.mid()) for v in row if not is_minus_infinity(v)]
        if not live:
            return [ZERO for _ in row]
        shift = real(max(live))
        weights = [exp(v - shift) for v in row]
        whole = total(weights)
        return [w / whole for w in weights]

    return _rows(numbers(x), dim, of_row)


def log_softmax(x: Any, dim: int, *_: Any) -> Numbers:
    def of_row(row: Row) -> Row:
        whole = log_sum_exp(row)
        return [v - whole for v in row]

    return _rows(numbers(x), dim, of_row)


def softmax_backward(g: Numbers, y: Numbers, dim: int, *_: Any) -> Numbers:
    weighted = mapped(lambda a, b: a * b, g, y)
    whole = reduced(weighted, dim, True, total)
    return mapped(lambda a, b, s: a - b * s, weighted, y, whole)


def log_softmax_backward(g: Numbers, y: Numbers, dim: int, *_: Any) -> Numbers:
    whole = reduced(g, dim, True, total)
    return mapped(lambda a, b, s: a - exp(b) * s, g, y, whole)


# -- products of matrices ------------------------------------------------------------------


def mm(a: Any, b: Any) -> Numbers:
    a, b = numbers(a), numbers(b)
    (rows, inner), columns = a.shape, b.shape[1]
    if inner == 0:
        return filled((rows, columns), 0)
    left = arb_mat(rows, inner, a.reshape(-1).tolist())
    product = left * arb_mat(inner, columns, b.reshape(-1).tolist())
    return array(product.entries(), (rows, columns))


def bmm(a: Any, b: Any) -> Numbers:
    return np.stack([mm(x, y) for x, y in zip(numbers(a), numbers(b), strict=True)])


def _scaled(x: Any, factor: Any) -> Any:
    return x if factor == 1 else mapped(lambda v: v * real(factor), x)


def addmm(x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Numbers:
    return add(_scaled(x, beta), _scaled(mm(a, b), alpha))


def baddbmm(x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Numbers:
    return add(_scaled(x, beta), _scaled(bmm(a, b), alpha))


def mv(a: Any, x: Any) -> Numbers:
    return mm(a, numbers(x)[:, None])[:, 0]


def dot(a: Any, b: Any) -> Numbers:
    products = mapped(lambda x, y: x * y, a, b)
    return array([total(products.reshape(-1))], ())


def addmv(x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Numbers:
    return add(_scaled(x, beta), _scaled(mv(a, b), alpha))


# -- distances -----------------------------------------------------------------------------


def _distances(a: Any, b: Any, p: Any) -> tuple[Numbers, Numbers]:
    """Differences [..., n, m, d] and distances [..., n, m]."""
    difference = np.subtract(numbers(a)[..., :, None, :], numbers(b)[..., None, :, :])
    return difference, vector_norm(difference, p, -1)


def cdist(a: Any, b: Any, p: Any, *_: Any) -> Numbers:
    return _distances(a, b, p)[1]


def _distance_slope(difference: arb, distance: arb, p: Any) -> arb:
    if is_equal(distance, ZERO):
        return ZERO
    if p == 1:
        return sign(difference)
    if p == 2:
        return difference / distance
    raise UnsupportedError(f"the derivative of distances with p = {p}")


def cdist_backward(g: Any, a: Any, b: Any, p: Any, distance: Any) -> Numbers:
    difference, _ = _distances(a, b, p)
    slopes = mapped(
        lambda s, d, c: c * _distance_slope(s, d, p),
        difference, numbers(distance)[..., None], numbers(g)[..., None],
    )  # fmt: skip
    return reduced(slopes, slopes.ndim - 2, False, total)


def pdist(x: Numbers, p: Any = 2.0) -> Numbers:
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    return array((_norm(float(p))(list(x[i] - x[j])) for i, j in pairs), (len(pairs),))


def pdist_backward(g: Numbers, x: Numbers, p: Any, distance: Numbers) -> Numbers:
    out = filled(x.shape, 0)
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    for (i, j), c, d in zip(pairs, g, distance, strict=True):
        part = array((c * _distance_slope(v, d, p) for v in x[i] - x[j]), x[i].shape)
        out[i], out[j] = out[i] + part, out[j] - part
    return out


SUMS: dict[str, Callable[..., Any]] = {
    "sum": sum_,
    "mean": mean,
    "var": var,
    "std": std,
    "var_mean": var_mean,
    "prod": prod,
    "amax": lambda x, dim=None, keepdim=False: reduced(x, dim, keepdim, lambda r: extreme(r)[0]),
    "amin": lambda x, dim=None, keepdim=False: reduced(
        x, dim, keepdim, lambda r: extreme(r, largest=False)[0]
    ),
    "linalg_vector_norm": vector_norm,
    "norm": vector_norm,
    "cumsum": lambda x, dim, **_: running(x, dim, lambda a, b: a + b),
    "cumprod": lambda x, dim, **_: running(x, dim, lambda a, b: a * b),
    "logcumsumexp": logcumsumexp,
    "logsumexp": lambda x, dim, keepdim=False: reduced(x, dim, keepdim, log_sum_exp),
    "_softmax": softmax,
    "_safe_softmax": softmax,
    "_log_softmax": log_softmax,
    "_softmax_backward_data": softmax_backward,
    "_log_softmax_backward_data": log_softmax_backward,
    "mm": mm,
    "bmm": bmm,
    "addmm": addmm,
    "baddbmm": baddbmm,
    "addbmm": lambda x, a, b: add(x, reduced(bmm(a, b), 0, False, total)),
    "mv": mv,
    "addmv": addmv,
    "dot": dot,
    "vdot": dot,
    "trace": lambda x: array([total(np.diagonal(x))], ()),
    "_cdist_forward": cdist,
    "_euclidean_dist": lambda a, b: cdist(a, b, 2.0),
    "_cdist_backward": cdist_backward,
    "_pdist_forward": pdist,
    "_pdist_backward": pdist_backward,
}
