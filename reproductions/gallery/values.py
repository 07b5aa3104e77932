"""Programs whose values are not finite, or nearly so, each with its twin."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.gallery.case import (
    HALF,
    Gallery,
    Step,
    mlp,
)

VALUES = Gallery()

# -- values that are not finite ------------------------------------------------------------

VALUES.on_weights("log-of-zero", "domain", "log", [0.0, 0.5], lambda w: w.relu().log().sum(),
           lambda w: w.relu().add(0.1).log().sum())  # fmt: skip
VALUES.on_weights("log-of-negative", "domain", "log", [-1.0, 2.0], lambda w: w.log().sum(),
           lambda w: F.softplus(w).log().sum())  # fmt: skip
VALUES.on_weights("exp-overflow", "overflow", "exp", [100.0, 1.0], lambda w: w.exp().sum(),
           lambda w: w.clamp(max=10.0).exp().sum())  # fmt: skip
VALUES.on_weights("exp-overflow-in-both", "overflow", "exp", [800.0, 1.0], lambda w: w.exp().sum(),
           lambda w: w.logsumexp(0))  # fmt: skip
VALUES.on_weights("sqrt-at-zero", "domain unstable-formula", "sqrt div", [0.0, 1.0],
           lambda w: (w * w).sqrt().sum(), lambda w: (w * w + 1e-6).sqrt().sum())  # fmt: skip
VALUES.on_weights("zero-over-zero", "domain", "div", [[0.0, 0.0], [1.0, 2.0]],
           lambda w: (w / w.abs().sum(1, keepdim=True)).square().sum(),
           lambda w: (w / (w.abs().sum(1, keepdim=True) + 1e-3)).square().sum())  # fmt: skip
VALUES.on_weights("power-of-zero", "domain", "pow", [0.0, 2.0], lambda w: w.pow(0.3).sum(),
           lambda w: w.clamp_min(1e-3).pow(0.3).sum())  # fmt: skip
VALUES.on_weights("acos-at-one", "domain", "div mul rsqrt acos", [1.0, 0.5],
           lambda w: w.acos().square().sum(),
           lambda w: w.mul(0.99).acos().square().sum())  # fmt: skip
VALUES.on_weights("masked-too-late", "domain", "div reciprocal mul", [0.0, 2.0],
           lambda w: torch.where(w > 0, 1.0 / w, torch.zeros_like(w)).sum(),
           lambda w: (1.0 / torch.where(w > 0, w, torch.ones_like(w))).sum())  # fmt: skip
VALUES.on_weights("half-square-overflow", "overflow", "pow mul mean", [300.0, 400.0],
           lambda w: (w * w).sqrt().sum(), lambda w: w.abs().sum(), HALF)  # fmt: skip
VALUES.on_weights("norm-overflow-in-half", "overflow", "sum mul pow", [200.0] * 64,
           lambda w: w.pow(2).sum().sqrt(),
           lambda w: w.float().pow(2).sum().sqrt(), HALF)  # fmt: skip
VALUES.on_weights("reciprocal-sigmoid", "overflow unstable-formula", "exp reciprocal",
           [-100.0, 1.0],
           lambda w: (1 / (1 + torch.exp(-w))).sum(), lambda w: w.sigmoid().sum())  # fmt: skip
VALUES.on_weights("softmax-unshifted", "overflow unstable-formula", "exp div", [95.0, 1.0, 2.0],
           lambda w: (w.exp() / w.exp().sum()).square().sum(),
           lambda w: (w / 50).softmax(0).square().sum())  # fmt: skip
VALUES.on_weights("log-softmax-split", "domain unstable-formula", "log", [1.0, 200.0, -3.0],
           lambda w: -w.softmax(0).log()[0], lambda w: -w.log_softmax(0)[0])  # fmt: skip
VALUES.on_weights("log-sigmoid-split", "domain unstable-formula", "log", [-120.0, 1.0],
           lambda w: -w.sigmoid().log().sum(), lambda w: -F.logsigmoid(w).sum())  # fmt: skip
VALUES.on_weights("log-one-minus-sigmoid", "domain unstable-formula", "log", [30.0, 1.0],
           lambda w: -(1 - w.sigmoid()).log().sum(), lambda w: -F.logsigmoid(-w).sum())  # fmt: skip
VALUES.on_weights("softplus-by-hand", "overflow unstable-formula", "exp log", [95.0, -3.0],
           lambda w: (1 + w.exp()).log().sum(), lambda w: F.softplus(w).sum())  # fmt: skip
VALUES.on_weights("logsumexp-by-hand", "overflow unstable-formula", "exp log", [95.0, -3.0, 90.0],
           lambda w: w.exp().sum().log(), lambda w: w.logsumexp(0))  # fmt: skip
VALUES.on_weights("logsumexp-of-tiny", "domain unstable-formula underflow", "log exp sum",
           [-120.0, -130.0], lambda w: w.exp().sum().log(),
           lambda w: w.logsumexp(0))  # fmt: skip
VALUES.on_weights("likelihood-as-a-product", "underflow domain unstable-formula", "prod log",
           [0.01] * 40, lambda w: -w.prod().log(), lambda w: -w.log().sum())  # fmt: skip
VALUES.on_weights("division-by-an-underflowed-sum", "underflow domain", "div exp sum",
           [-120.0, -119.0],
           lambda w: (w.exp() / w.exp().sum()).square().sum(),
           lambda w: w.softmax(0).square().sum())  # fmt: skip
VALUES.on_weights("exp-about-to-overflow", "overflow-risk", "exp", [80.0, 1.0],
           lambda w: w.exp().sum().mul(1e-30),
           lambda w: w.clamp(max=20.0).exp().mean())  # fmt: skip
VALUES.on_weights("half-about-to-overflow", "overflow-risk", "mul sum", [200.0, 210.0],
           lambda w: (w * w).mean(), lambda w: (w * 0.01).square().mean(), HALF)  # fmt: skip
VALUES.on_weights("tiny-denominator", "unstable-formula", "div", [1e-9, 1.0],
           lambda w: (torch.ones(2) / w).sum().mul(1e-3),
           lambda w: (torch.ones(2) / (w + 0.1)).sum())  # fmt: skip


@VALUES.case("parameter-is-nan", "nonfinite-input", "")
def _nan_parameter(bad: bool) -> Step:
    model = mlp(3, 4, 1)
    if bad:
        with torch.no_grad():
            dict(model.named_parameters())["2.weight"][0, 0] = math.nan
    return model, lambda m, x: m(x).square().mean(), torch.randn(5, 3)


@VALUES.case("input-is-infinite", "nonfinite-input", "")
def _infinite_input(bad: bool) -> Step:
    x = torch.randn(5, 3)
    if bad:
        x[1, 1] = math.inf
    return mlp(3, 4, 1), lambda m, x: m(x).square().mean(), x


@VALUES.case("empty-selection", "domain", "mean div nll")
def _empty(bad: bool) -> Step:
    x = torch.randn(5, 3)
    limit = 100.0 if bad else -100.0
    return mlp(3, 4, 1), lambda m, x: m(x)[x[:, 0] > limit].square().mean(), x


class _Attention(nn.Module):
    """One head, written out."""

    def __init__(self, width: int, *, scale: float = 1.0, masked_row: bool = False) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.scale, self.masked_row = scale, masked_row

    def forward(self, x: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2) * self.scale
        mask = torch.ones(x.shape[-2], x.shape[-2]).triu(1).bool()
        if self.masked_row:
            mask[2] = True
        return scores.masked_fill(mask, -math.inf).softmax(-1) @ self.value(x)


@VALUES.case("attention-row-masked-whole", "domain", "softmax")
def _masked_attention(bad: bool) -> Step:
    return (
        _Attention(8, scale=8**-0.5, masked_row=bad),
        lambda m, x: m(x).square().mean(),
        torch.randn(2, 6, 8),
    )


@VALUES.case("attention-one-hot", "saturation", "softmax")
def _sharp_attention(bad: bool) -> Step:
    return (
        _Attention(16, scale=200.0 if bad else 0.25),
        lambda m, x: m(x).square().mean(),
        torch.randn(2, 8, 16),
    )


@VALUES.case("attention-overflow-in-half", "overflow", "mm matmul mul")
def _half_attention(bad: bool) -> Step:
    model = _Attention(8, scale=8**-0.5)
    with torch.no_grad():
        for layer in (model.query, model.key):
            layer.weight.fill_(20.0 if bad else 0.1)
    x = torch.randn(2, 6, 8) * 3 + 3
    return model.to(HALF), lambda m, x: m(x).square().mean(), x.to(HALF)
