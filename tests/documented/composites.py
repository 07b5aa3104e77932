"""What does torch's documentation say that norms, sums and linear algebra compute?

Written from the documentation, on arrays of Arb balls with a derivative; nothing here comes from
the package or from torch's own formulas. A parameter stands for its double value.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from flint import arb

from tests.documented import dual as D
from tests.documented.arrays import (
    Array,
    Composite,
    cosine,
    each,
    logsumexp,
    mean,
    norm,
    normalised,
    rows,
    softmax,
    total,
    variance,
)
from tests.documented.dual import Dual, dual
from tests.documented.losses import LOSSES

F = torch.nn.functional

# -------------------------------------------------------------------------------- normalisation


def _affine(y: Array, w: Array, b: Array) -> Array:
    return y * w + b


def _by_channel(x: Array, f: Callable[[Array], Array]) -> Array:
    """Apply f to each channel over the whole batch."""
    planes = np.moveaxis(x, 1, 0)
    done = [f(p.reshape(-1)).reshape(p.shape) for p in planes]
    return np.moveaxis(np.stack(done), 0, 1)


def _groups(x: Array, groups: int) -> Array:
    flat = x.reshape(x.shape[0] * groups, -1)
    return np.stack([normalised(r) for r in flat]).reshape(x.shape)


def _channel(v: Array) -> Array:
    return v.reshape(1, -1, 1)


_CHANNELS = ((3, 2, 5), (2,), (2,))
NORMS = (
    Composite("layer norm", lambda x, w, b: F.layer_norm(x, (5,), w, b),
              lambda x, w, b: _affine(np.stack([normalised(r) for r in x]), w, b),
              ((3, 5), (5,), (5,))),
    Composite("batch norm", lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
              lambda x, w, b: _by_channel(x, normalised) * _channel(w) + _channel(b), _CHANNELS),
    Composite("group norm", lambda x, w, b: F.group_norm(x, 3, w, b),
              lambda x, w, b: _groups(x, 3) * _channel(w) + _channel(b), ((2, 6, 3), (6,), (6,))),
    Composite("instance norm", lambda x: F.instance_norm(x), lambda x: _groups(x, 2), ((3, 2, 5),)),
    Composite("rms norm", lambda x, w: F.rms_norm(x, (5,), w, 1e-5),
              lambda x, w: np.stack([r / D.sqrt(mean(r * r) + 1e-5) for r in x]) * w,
              ((3, 5), (5,))),
    Composite("normalize", lambda x: F.normalize(x, dim=1),
              lambda x: np.stack([r / norm(r) for r in x]), ((3, 5),)),
    Composite("normalize p=3", lambda x: F.normalize(x, p=3.0, dim=1),
              lambda x: np.stack([r / norm(r, 3.0) for r in x]), ((3, 5),)),
    Composite("local response", lambda x: F.local_response_norm(x, 3, alpha=0.3, beta=0.7, k=1.1),
              lambda x: _local_response(x), ((2, 4, 3),)),
    Composite("softmax", lambda x: F.softmax(x, -1), rows(softmax), ((3, 5),)),
    Composite("log softmax", lambda x: F.log_softmax(x, -1), rows(lambda r: r - logsumexp(r)),
              ((3, 5),)),
    Composite("logsumexp", lambda x: torch.logsumexp(x, -1), rows(logsumexp), ((3, 5),)),
    Composite("cosine similarity", lambda a, b: F.cosine_similarity(a, b),
              lambda a, b: np.array([cosine(p, q) for p, q in zip(a, b, strict=True)]),
              ((3, 4), (3, 4))),
    *(
        Composite(f"{kind} {c}", lambda x, k=kind, c=c: getattr(torch, k)(x, 1, correction=c),
                  rows(lambda r, k=kind, c=c: variance(r, c) if k == "var"
                       else D.sqrt(variance(r, c))), ((2, n),))
        for kind in ("var", "std") for c in (0, 1) for n in (4, 7, 11)
    ),
    *(
        Composite(f"norm {p}", lambda x, p=p: torch.linalg.vector_norm(x, p, -1),
                  rows(lambda r, p=p: norm(r, p)), ((2, 5),))
        for p in (1.0, 2.0, 3.0, 2.7, 0.5)
    ),
    Composite("renorm", lambda x: torch.renorm(x, 2, 0, 0.3),
              lambda x: np.stack([r * 0.3 / (norm(r) + 1e-7) if norm(r) > 0.3 else r for r in x]),
              ((3, 5),)),
)  # fmt: skip


def _local_response(x: Array) -> Array:
    done = np.empty(x.shape, dtype=object)
    for n, c, i in np.ndindex(*x.shape):
        window = [x[n, k, i] for k in range(max(0, c - 1), min(x.shape[1], c + 2))]
        size = total([v * v for v in window]) / 3 * 0.3 + 1.1
        done[n, c, i] = x[n, c, i] / D.power(size, 0.7)
    return done


# ------------------------------------------------------------------------ sums, products, windows


def _weights(i: int, size: int, out: int, *, corners: bool) -> list[tuple[int, Fraction]]:
    """Which entries linear interpolation reads, with their shares."""
    if corners:
        spot = Fraction(i * (size - 1), out - 1)
    else:
        spot = max(Fraction(2 * i + 1, 2) * Fraction(size, out) - Fraction(1, 2), Fraction(0))
    low = min(math.floor(spot), size - 1)
    return [(low, 1 - (spot - low)), (min(low + 1, size - 1), spot - low)]


def _rational(f: Fraction) -> arb:
    return arb(f.numerator) / f.denominator


def _enlarged(x: Array, outs: tuple[int, ...], *, corners: bool) -> Array:
    done = np.empty((*x.shape[:2], *outs), dtype=object)
    sizes = x.shape[2:]
    for place in np.ndindex(*outs):
        terms = [
            _weights(i, s, o, corners=corners) for i, s, o in zip(place, sizes, outs, strict=True)
        ]
        for n, c in np.ndindex(*x.shape[:2]):
            value = Dual(0)
            for corner in itertools.product(*terms):
                share = math.prod((w for _, w in corner), start=Fraction(1))
                value = value + x[(n, c, *(k for k, _ in corner))] * _rational(share)
            done[(n, c, *place)] = value
    return done


def _attention(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    root = arb(q.shape[-1]).sqrt()
    done = []
    for a, b, c in zip(q[0], k[0], v[0], strict=True):
        scores = a @ b.T / root
        if bias is not None:
            scores = scores + bias
        done.append(np.stack([softmax(r) for r in scores]) @ c)
    return np.stack(done)[None]


def _prod(r: Array) -> Dual:
    found = Dual(1)
    for v in r:
        found = found * v
    return found


def _running(f: Callable[[Array], Dual]) -> Callable[[Array], Array]:
    return rows(lambda r: np.array([f(r[: i + 1]) for i in range(len(r))], dtype=object))


def _linear_sizes() -> list[tuple[int, int]]:
    return [(5, 7), (7, 5), (3, 10), (10, 3), (4, 4), (6, 11)]


_HEADS = ((1, 2, 4, 3),) * 3
_BIAS = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4).round(decimals=1) * 0.625
SUMS = (
    Composite("mean", lambda x: x.mean(-1), rows(mean), ((2, 7),)),
    Composite("mean of all", torch.mean, mean, ((3, 5),)),
    Composite("cumsum", lambda x: x.cumsum(-1), _running(total), ((2, 5),)),
    Composite("cumprod", lambda x: x.cumprod(-1), _running(_prod), ((2, 4),), 0.2, 2.0),
    Composite("logcumsumexp", lambda x: x.logcumsumexp(-1), _running(logsumexp), ((2, 5),)),
    Composite("trapezoid", lambda x: torch.trapezoid(x, dx=0.3),
              rows(lambda r: total((r[1:] + r[:-1]) / 2) * 0.3), ((2, 5),)),
    Composite("avg pool", lambda x: F.avg_pool1d(x, 3, 1),
              lambda x: np.stack([x[..., i : i + 3].sum(-1) / 3 for i in range(4)], -1),
              ((1, 2, 6),)),
    Composite("avg pool 2d", lambda x: F.avg_pool2d(x, 3),
              lambda x: x.reshape(1, 2, 9).sum(-1).reshape(1, 2, 1, 1) / 9, ((1, 2, 3, 3),)),
    Composite("adaptive pool", lambda x: F.adaptive_avg_pool1d(x, 2),
              lambda x: np.stack([x[..., :3].sum(-1) / 3, x[..., 2:].sum(-1) / 3], -1),
              ((1, 2, 5),)),
    Composite("lp pool", lambda x: F.lp_pool1d(x, 3.0, 3),
              lambda x: rows(lambda r: np.array([
                  D.power(total(each(lambda v: D.power(v, 3), r[i : i + 3])), 1 / arb(3))
                  for i in (0, 3)]))(x).reshape(1, 2, 2), ((1, 2, 6),), 0.2, 2.0),
    Composite("addmm", lambda c, a, b: torch.addmm(c, a, b, beta=0.3, alpha=0.7),
              lambda c, a, b: c * 0.3 + a @ b * 0.7, ((2, 3), (2, 4), (4, 3))),
    Composite("baddbmm", lambda c, a, b: torch.baddbmm(c, a, b, beta=0.3, alpha=0.7),
              lambda c, a, b: c * 0.3 + (a[0] @ b[0])[None] * 0.7,
              ((1, 2, 3), (1, 2, 4), (1, 4, 3))),
    Composite("addr", lambda c, a, b: torch.addr(c, a, b, beta=0.3, alpha=0.7),
              lambda c, a, b: c * 0.3 + np.outer(a, b) * 0.7, ((2, 3), (2,), (3,))),
    Composite("addmv", lambda c, a, b: torch.addmv(c, a, b, beta=0.3, alpha=0.7),
              lambda c, a, b: c * 0.3 + a @ b * 0.7, ((2,), (2, 3), (3,))),
    Composite("attention", F.scaled_dot_product_attention, _attention, _HEADS),
    Composite("attention with bias",
              lambda q, k, v: F.scaled_dot_product_attention(
                  q, k, v, attn_mask=_BIAS.to(q.dtype) + 0 * q[0, 0, 0, 0]),
              lambda q, k, v: _attention(q, k, v, _BIAS.numpy() * 1.0), _HEADS),
    Composite("scaled attention",
              lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
              lambda q, k, v: _attention(q * dual(arb(3).sqrt()) * 0.3, k, v), _HEADS),
    Composite("cdist p=3", lambda a, b: torch.cdist(a, b, p=3.0),
              lambda a, b: np.array([[norm(p - q, 3.0) for q in b] for p in a]), ((2, 3), (3, 3))),
    Composite("cdist", torch.cdist,
              lambda a, b: np.array([[norm(p - q) for q in b] for p in a]), ((2, 3), (3, 3))),
    *(
        Composite(f"linear {s} to {o}{' corners' * c}",
                  lambda x, o=o, c=c: F.interpolate(x, o, mode="linear", align_corners=c),
                  lambda x, o=o, c=c: _enlarged(x, (o,), corners=c), ((1, 2, s),))
        for s, o in _linear_sizes() for c in (False, True)
    ),
    *(
        Composite(f"bilinear{' corners' * c}",
                  lambda x, c=c: F.interpolate(x, (5, 7), mode="bilinear", align_corners=c),
                  lambda x, c=c: _enlarged(x, (5, 7), corners=c), ((1, 1, 3, 4),))
        for c in (False, True)
    ),
    Composite("trilinear", lambda x: F.interpolate(x, (3, 2, 5), mode="trilinear"),
              lambda x: _enlarged(x, (3, 2, 5), corners=False), ((1, 1, 2, 3, 3),)),
)  # fmt: skip


# ------------------------------------------------------------------------------- linear algebra


def _solve(a: Array, b: Array) -> Array:
    """Gaussian elimination; the pivots of these matrices are far from 0."""
    a, b = a.copy(), b.copy()
    n = len(a)
    for k in range(n):
        best = max(range(k, n), key=lambda i: float(abs(a[i, k].v).mid()))
        a[[k, best]], b[[k, best]] = a[[best, k]], b[[best, k]]
        for i in range(n):
            if i != k:
                factor = a[i, k] / a[k, k]
                a[i] = a[i] - factor * a[k]
                b[i] = b[i] - factor * b[k]
    return np.stack([b[i] / a[i, i] for i in range(n)])


def _det(a: Array) -> Dual:
    if len(a) == 1:
        return a[0, 0]
    found = Dual(0)
    for j in range(len(a)):
        minor = np.delete(np.delete(a, 0, 0), j, 1)
        found = found + a[0, j] * _det(minor) * (-1) ** j
    return found


def _identity(n: int) -> Array:
    return each(lambda v: Dual(float(v)), np.eye(n))


_SQUARE = (3, 3)
ALGEBRA = (
    Composite("inv", lambda a: torch.linalg.inv(a + 3 * torch.eye(3, dtype=a.dtype)),
              lambda a: _solve(a + 3 * _identity(3), _identity(3)), (_SQUARE,)),
    Composite("solve", lambda a, b: torch.linalg.solve(a + 3 * torch.eye(3, dtype=a.dtype), b),
              lambda a, b: _solve(a + 3 * _identity(3), b), (_SQUARE, (3, 2))),
    Composite("det", lambda a: torch.linalg.det(a + 3 * torch.eye(3, dtype=a.dtype)),
              lambda a: _det(a + 3 * _identity(3)), (_SQUARE,)),
    Composite("logdet", lambda a: torch.logdet(a + 4 * torch.eye(3, dtype=a.dtype)),
              lambda a: D.log(_det(a + 4 * _identity(3))), (_SQUARE,)),
)  # fmt: skip

COMPOSITES: tuple[Composite, ...] = (*LOSSES, *NORMS, *SUMS, *ALGEBRA)
