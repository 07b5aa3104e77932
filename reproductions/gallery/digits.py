"""Programs that lose digits, each with its twin."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.gallery.case import (
    BRAIN,
    Gallery,
    Step,
    grid,
    mlp,
)

DIGITS = Gallery()

# -- digits --------------------------------------------------------------------------------

DIGITS.on_weights("one-minus-cos", "unstable-formula cancellation", "sub", grid(1e-4, 3e-4),
           lambda w: (1 - w.cos()).sum(), lambda w: (2 * (w / 2).sin() ** 2).sum())  # fmt: skip
DIGITS.on_weights("exp-minus-one", "unstable-formula cancellation", "sub", grid(1e-6, 3e-6),
           lambda w: (w.exp() - 1).square().sum(),
           lambda w: w.expm1().square().sum())  # fmt: skip
DIGITS.on_weights("log-of-one-plus", "unstable-formula absorption precision-loss", "log add",
           grid(1e-6, 3e-6), lambda w: (1 + w).log().square().sum(),
           lambda w: w.log1p().square().sum())  # fmt: skip
DIGITS.on_weights("variance-by-moments", "unstable-formula cancellation domain", "sub sqrt",
           1e4 + grid(0, 3), lambda w: w.pow(2).mean() - w.mean().pow(2),
           lambda w: w.var(correction=0))  # fmt: skip
DIGITS.on_weights("difference-of-squares", "cancellation", "sub", grid(1e-3, 1e-2),
           lambda w: ((1000 + w).pow(2) - 1000.0**2).square().sum(),
           lambda w: (w * (2000 + w)).square().sum())  # fmt: skip
DIGITS.on_weights("difference-of-roots", "cancellation", "sub", 1e6 + grid(0, 9),
           lambda w: ((w + 1).sqrt() - w.sqrt()).log().sum(),
           lambda w: (1 / ((w + 1).sqrt() + w.sqrt())).log().sum())  # fmt: skip
DIGITS.on_weights("small-root-of-a-quadratic", "cancellation", "sub", 1000 + grid(0, 100),
           lambda w: (w - (w * w - 1).sqrt()).square().sum(),
           lambda w: (1 / (w + (w * w - 1).sqrt())).square().sum())  # fmt: skip


DIGITS.on_weights("tangent-near-its-pole", "ill-conditioned", "tan mul pow add", [1.5707963, 0.3],
           lambda w: w.tan().sum(), lambda w: w.mul(0.5).tan().sum())  # fmt: skip
DIGITS.on_weights("cross-entropy-of-a-sigmoid", "unstable-formula", "binary_cross_entropy",
           [40.0, 1.0],
           lambda w: F.binary_cross_entropy(w.sigmoid(), torch.tensor([0.0, 1.0])),
           lambda w: F.binary_cross_entropy_with_logits(w, torch.tensor([0.0, 1.0])))  # fmt: skip


def _loop(w: Tensor) -> Tensor:
    total = torch.ones((), dtype=w.dtype)
    for x in w.unbind():
        total = total + x * x
    return total.square()


DIGITS.on_weights("sum-in-a-loop-bfloat16", "absorption precision-loss", "add", [0.06] * 300, _loop,
           lambda w: (1 + w.square().sum()).square(), BRAIN)  # fmt: skip
DIGITS.on_weights("offset-absorbs-bfloat16", "absorption cancellation precision-loss", "add sub",
           grid(0.01, 0.5), lambda w: ((w + 300.0) - 300.0).square().sum(),
           lambda w: w.square().sum(), BRAIN)  # fmt: skip
DIGITS.on_weights("finite-difference-in-the-loss", "cancellation", "sub", grid(0.5, 1.5),
           lambda w: (((w + 1e-6).sin() - w.sin()) / 1e-6 - 0.5).square().sum(),
           lambda w: (w.cos() - 0.5).square().sum())  # fmt: skip


@DIGITS.case("physics-residual-by-differences", "cancellation", "sub add")
def _physics(bad: bool) -> Step:
    """U'' + u = 0 on a grid; second differences with a step that is far too small."""
    h = 1e-3 if bad else 0.3

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        left, mid, right = model(x - h), model(x), model(x + h)
        return ((left - 2 * mid + right) / h**2 + mid).square().mean()

    return mlp(1, 16, 16, 1), loss, grid(0, 3).unsqueeze(1)


@DIGITS.case("contrastive-sharp-temperature", "overflow unstable-formula", "exp log div")
def _contrastive(bad: bool) -> Step:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        z = F.normalize(model(x), dim=-1)
        scores = z @ z.T / (0.01 if bad else 0.5)
        if bad:
            e = scores.exp()
            return -(e.diagonal() / e.sum(1)).log().mean()
        return F.cross_entropy(scores, torch.arange(len(x)))

    return mlp(6, 16, 8), loss, torch.randn(8, 6)


class _Encoder(nn.Module):
    """Mean and log-variance of a code; the decoder is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.decode = nn.Linear(4, 6)


@DIGITS.case("vae-unbounded-log-variance", "overflow", "exp")
def _vae(bad: bool) -> Step:
    model = _Encoder()
    with torch.no_grad():
        model.body.bias[4:] = 100.0

    def loss(model: Any, x: Tensor) -> Tensor:
        mean, log_var = model.body(x).chunk(2, -1)
        if not bad:
            log_var = log_var.clamp(-5, 3)
        z = mean + (0.5 * log_var).exp() * torch.ones_like(mean) * 0.3
        rate = 0.5 * (log_var.exp() + mean.square() - 1 - log_var).sum(-1).mean()
        return (model.decode(z) - x).square().mean() + rate

    return model, loss, torch.randn(5, 6)


@DIGITS.case("mixture-density-by-hand", "underflow domain unstable-formula", "log exp sum")
def _mixture(bad: bool) -> Step:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        weight, mean, log_scale = model(x).chunk(3, -1)
        exponent = -0.5 * ((y - mean) / log_scale.exp()).square() - log_scale
        if bad:
            return -(weight.softmax(-1) * exponent.exp()).sum(-1).log().mean()
        return -(weight.log_softmax(-1) + exponent).logsumexp(-1).mean()

    return mlp(2, 8, 9), loss, (torch.randn(6, 2), 30 + torch.randn(6, 1))


@DIGITS.case("flow-log-of-determinant", "underflow domain unstable-formula", "log prod exp")
def _flow(bad: bool) -> Step:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        log_scale = model(x) - 6.0
        z = x[:, :1] * log_scale.exp()
        volume = log_scale.exp().prod(-1).log() if bad else log_scale.sum(-1)
        return (0.5 * z.square().sum(-1) - volume).mean()

    return mlp(3, 8, 20), loss, torch.randn(6, 3)


@DIGITS.case("entropy-of-a-softmax", "domain unstable-formula", "log")
def _entropy(bad: bool) -> Step:
    model = nn.Linear(4, 5)
    with torch.no_grad():
        model.weight.mul_(100.0)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        logits = model(x)
        p = logits.softmax(-1)
        logp = p.log() if bad else logits.log_softmax(-1)
        return -(p * logp).sum(-1).mean()

    return model, loss, torch.randn(6, 4)
