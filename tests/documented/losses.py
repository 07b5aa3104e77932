"""What does torch's documentation say that losses compute?

Written from the documentation, on arrays of Arb balls with a derivative; nothing here comes from
the package or from torch's own formulas. A parameter stands for its double value.
"""

from collections.abc import Callable

import numpy as np
import torch
from flint import arb
from torch import Tensor

from tests.documented import dual as D
from tests.documented.arrays import (
    Array,
    Composite,
    each,
    logsumexp,
    mean,
    norm,
    total,
)
from tests.documented.dual import Dual, dual

F = torch.nn.functional

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
