"""What does torch's documentation say that losses, norms and other functions of tensors compute?

Written from the documentation, on arrays of Arb balls with a derivative; nothing here comes from
the package or from torch's own formulas. A parameter stands for its double value.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from flint import arb
from torch import Tensor

from tests.documented import dual as D
from tests.documented.dual import Dual, dual

F = torch.nn.functional
Array = Any  # of Dual


@dataclass(frozen=True)
class Composite:
    """A function of tensors.

    Attributes:
        name: As it is shown.
        computed: What is run, on leaves of the shapes.
        exact: What it means, on arrays.
        shapes: Of the leaves.
        low: Smallest number drawn.
        high: Largest number drawn.
    """

    name: str
    computed: Callable[..., Tensor]
    exact: Callable[..., Array]
    shapes: tuple[tuple[int, ...], ...]
    low: float = -1.5
    high: float = 1.5


def each(f: Callable[..., Dual], *arrays: Array) -> Array:
    """Apply f entry by entry."""
    return np.frompyfunc(f, len(arrays), 1)(*arrays)


def total(a: Array) -> Dual:
    found = Dual(0)
    for v in np.asarray(a, dtype=object).reshape(-1):
        found = found + v
    return found


def mean(a: Array) -> Dual:
    a = np.asarray(a, dtype=object)
    return total(a) / a.size


def rows(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of the last dimension."""
    return lambda x: np.array([f(r) for r in x.reshape(-1, x.shape[-1])], dtype=object)


def softmax(r: Array) -> Array:
    powers = each(D.exp, r)
    return powers / total(powers)


def logsumexp(r: Array) -> Dual:
    return D.log(total(each(D.exp, r)))


def norm(r: Array, p: float = 2.0) -> Dual:
    if p == 2:
        return D.sqrt(total(r * r))
    return D.power(total(each(lambda v: D.power(D.absolute(v), p), r)), 1 / arb(p))


def variance(r: Array, correction: int = 0) -> Dual:
    gap = np.asarray(r, dtype=object).reshape(-1) - mean(r)
    return total(gap * gap) / (gap.size - correction)


def normalised(r: Array, eps: float = 1e-5) -> Array:
    return (r - mean(r)) / D.sqrt(variance(r) + eps)


# -------------------------------------------------------------------------------------- losses

SIGNS = (1, -1, 1, 1, -1, -1, 1)
N = len(SIGNS)


def _signs(x: Tensor) -> Tensor:
    return torch.tensor(SIGNS, dtype=x.dtype)


def _gap(f: Callable[[Dual], Dual], reduce: Callable[[Array], Dual] = mean) -> Callable[..., Array]:
    return lambda x, t: reduce(each(f, x - t))


def _smooth(v: Dual, beta: float) -> Dual:
    size = D.absolute(v)
    return v * v / 2 / dual(beta) if size < beta else size - dual(beta) / 2


def _huber(v: Dual, delta: float) -> Dual:
    size = D.absolute(v)
    return v * v / 2 if size <= delta else dual(delta) * (size - dual(delta) / 2)


def _softplus(v: Dual) -> Dual:
    return D.log1p(D.exp(v))


def _hinge(v: Dual) -> Dual:
    return D.maximum(v, 0)


def _cosine(a: Array, b: Array) -> Dual:
    return total(a * b) / (norm(a) * norm(b))


_TWO = ((N,), (N,))
LOSSES = (
    Composite("mse", F.mse_loss, _gap(lambda v: v * v), _TWO),
    Composite("mse sum", lambda x, t: F.mse_loss(x, t, reduction="sum"),
              _gap(lambda v: v * v, total), _TWO),
    Composite("l1", F.l1_loss, _gap(D.absolute), _TWO),
    *(
        Composite(f"smooth l1 {b}", lambda x, t, b=b: F.smooth_l1_loss(x, t, beta=b),
                  _gap(lambda v, b=b: _smooth(v, b)), _TWO)
        for b in (1.0, 0.3)
    ),
    *(
        Composite(f"huber {b}", lambda x, t, b=b: F.huber_loss(x, t, delta=b),
                  _gap(lambda v, b=b: _huber(v, b)), _TWO)
        for b in (1.0, 0.3)
    ),
    Composite("bce", F.binary_cross_entropy,
              lambda x, t: mean(each(lambda p, q: -(q * D.log(p) + (1 - q) * D.log(1 - p)), x, t)),
              _TWO, 0.05, 0.95),
    Composite("bce with logits", F.binary_cross_entropy_with_logits,
              lambda x, t: mean(each(lambda p, q: _softplus(p) - q * p, x, t)), _TWO, 0.05, 0.95),
    Composite("kl", lambda x, t: F.kl_div(x, t, reduction="batchmean", log_target=True),
              lambda x, t: mean(each(lambda p, q: D.exp(q) * (q - p), x, t)), _TWO),
    Composite("gaussian nll", lambda x, t: F.gaussian_nll_loss(x, 0.3 * x, t, full=False),
              lambda x, t: mean(each(
                  lambda p, q: (D.log(q) + _squared(p - p * 0.3) / q) / 2, x, t)),
              _TWO, 0.05, 0.95),
    Composite("poisson nll", F.poisson_nll_loss,
              lambda x, t: mean(each(lambda p, q: D.exp(p) - q * p, x, t)), _TWO, 0.05, 0.95),
    Composite("poisson nll full", lambda x, t: F.poisson_nll_loss(x, t, full=True),
              lambda x, t: mean(each(
                  lambda p, q: D.exp(p) - q * p + q * D.log(q) - q
                  + D.log(dual(2 * arb.pi()) * q) / 2, x, t)), _TWO, 1.05, 3.0),
    Composite("soft margin", lambda x: F.soft_margin_loss(x, _signs(x)),
              lambda x: mean(each(lambda v, s: _softplus(-v * s), x, SIGNS)), ((N,),)),
    Composite("hinge embedding", lambda x: F.hinge_embedding_loss(x, _signs(x), margin=0.3),
              lambda x: mean(each(lambda v, s: v if s > 0 else _hinge(dual(0.3) - v), x, SIGNS)),
              ((N,),)),
    Composite("margin ranking", lambda x, t: F.margin_ranking_loss(x, t, _signs(x), margin=0.3),
              lambda x, t: mean(each(lambda a, b, s: _hinge((b - a) * s + 0.3), x, t, SIGNS)),
              _TWO),
    Composite("cosine embedding",
              lambda x, t: F.cosine_embedding_loss(x, t, torch.ones(1, dtype=x.dtype)),
              lambda x, t: mean([1 - _cosine_eps(r, s) for r, s in zip(x, t, strict=True)]),
              ((1, 5), (1, 5))),
    Composite("cross entropy", lambda x: F.cross_entropy(x, torch.tensor([1, 0, 2])),
              lambda x: mean([logsumexp(r) - r[c] for r, c in zip(x, (1, 0, 2), strict=True)]),
              ((3, 3),)),
    Composite("label smoothing",
              lambda x: F.cross_entropy(x, torch.tensor([1, 0, 2]), label_smoothing=0.1),
              lambda x: mean([
                  (1 - dual(0.1)) * (logsumexp(r) - r[c]) + dual(0.1) * mean(logsumexp(r) - r)
                  for r, c in zip(x, (1, 0, 2), strict=True)]), ((3, 3),)),
    Composite("multi margin", lambda x: F.multi_margin_loss(x, torch.tensor([1, 0, 2])),
              lambda x: mean([
                  total([_hinge(1 - r[c] + r[i]) for i in range(3) if i != c]) / 3
                  for r, c in zip(x, (1, 0, 2), strict=True)]), ((3, 3),)),
    Composite("triplet margin",
              lambda a, b, c: F.triplet_margin_loss(a, b, c, margin=5.0, eps=1e-6),
              lambda a, b, c: mean([
                  _hinge(norm(p - q + 1e-6) - norm(p - r + 1e-6) + 5)
                  for p, q, r in zip(a, b, c, strict=True)]), ((3, 3),) * 3),
    Composite("pairwise distance", F.pairwise_distance,
              lambda a, b: np.array([norm(p - q + 1e-6) for p, q in zip(a, b, strict=True)]),
              ((3, 4), (3, 4))),
)  # fmt: skip


def _squared(v: Dual) -> Dual:
    return v * v


def _cosine_eps(a: Array, b: Array) -> Dual:
    """Torch's embedding loss adds the float32 number next to 1e-12 to both squares."""
    eps = arb(float(torch.tensor(1e-12)))
    return total(a * b) / D.sqrt((total(a * a) + eps) * (total(b * b) + eps))


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
              lambda a, b: np.array([_cosine(p, q) for p, q in zip(a, b, strict=True)]),
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
