"""Programs whose gradients are lost: underflow, saturation, depth; each with its twin."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reproductions.gallery.case import (
    HALF,
    Case,
    Gallery,
    Step,
    Weights,
    mlp,
)

GRADIENTS = Gallery()

# -- range ---------------------------------------------------------------------------------


@GRADIENTS.case("half-without-loss-scale", "underflow loss-scaling", "")
def _no_scale(bad: bool) -> Step:
    scale = 1e-4 if bad else 1.0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (F.smooth_l1_loss(model(x), y).float() * scale * 1e-2 * 100).mul(scale)

    x, y = torch.randn(32, 8), torch.randn(32, 1)
    return mlp(8, 16, 1).to(HALF), loss, (x.to(HALF), y.to(HALF))


@GRADIENTS.case("half-loss-scale-too-high", "overflow", "")
def _high_scale(bad: bool) -> Step:
    scale = 2.0**24 if bad else 2.0**8

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return model(x).float().square().mean() * scale

    return mlp(8, 16, 4).to(HALF), loss, torch.randn(16, 8).to(HALF)


@GRADIENTS.case("half-squared-error-underflows", "underflow loss-scaling", "pow mul")
def _small_targets(bad: bool) -> Step:
    factor = 1e-5 if bad else 1.0

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) * factor).square().mean()

    return mlp(4, 8, 1).to(HALF), loss, torch.randn(16, 4).to(HALF)


# -- activations ---------------------------------------------------------------------------


def _pushed(activation: type[nn.Module], push: float, batch: int = 16) -> Step:
    model = mlp(6, 12, 12, 3, activation=activation)
    with torch.no_grad():
        dict(model.named_parameters())["2.bias"].add_(push)
    return model, lambda m, x: m(x).square().mean(), torch.randn(batch, 6)


for _name, _activation, _push, _ops in (
    ("sigmoid", nn.Sigmoid, 15.0, "sigmoid"),
    ("tanh", nn.Tanh, 12.0, "tanh"),
    ("hardtanh", nn.Hardtanh, 5.0, "hardtanh"),
    ("silu", nn.SiLU, -60.0, "silu"),
    ("gelu", nn.GELU, -20.0, "gelu"),
):
    GRADIENTS.append(
        Case(
            f"saturated-{_name}",
            ("saturation",),
            (_ops,),
            lambda a=_activation, p=_push: _pushed(a, p),
            lambda a=_activation: _pushed(a, 0.0),
        )
    )
GRADIENTS.append(
    Case(
        "dead-relus",
        ("dead-units",),
        ("relu", "threshold"),
        lambda: _pushed(nn.ReLU, -20.0),
        lambda: _pushed(nn.ReLU, 0.0),
    )
)


@GRADIENTS.case("softmax-saturates-before-mse", "saturation", "softmax")
def _softmax_mse(bad: bool) -> Step:
    model = nn.Linear(4, 5)
    if bad:
        with torch.no_grad():
            model.weight.mul_(300.0)
    y = F.one_hot(torch.arange(8) % 5, 5).float()
    return model, lambda m, x: F.mse_loss(m(x).softmax(-1), y), torch.randn(8, 4)


# -- depth and time ------------------------------------------------------------------------


@GRADIENTS.case("deep-sigmoid-vanishes", "vanishing", "mm")
def _deep(bad: bool) -> Step:
    model = mlp(*[16] * 13, activation=nn.Sigmoid if bad else nn.ReLU)
    if not bad:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
    return model, lambda m, x: m(x).square().mean(), torch.randn(16, 16)


@GRADIENTS.case("deep-linear-explodes", "exploding", "mm")
def _explode(bad: bool) -> Step:
    model = mlp(*[16] * 13, activation=nn.Identity)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=3.0 if bad else 1.0)
    return model, lambda m, x: m(x).square().mean(), torch.randn(16, 16)


class _Recurrence(nn.Module):
    """A plain recurrence without inputs after the first step."""

    def __init__(self, gain: float, steps: int) -> None:
        super().__init__()
        self.cell = nn.Linear(8, 8, bias=False)
        nn.init.orthogonal_(self.cell.weight, gain=gain)
        self.start = nn.Linear(4, 8)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for _ in range(self.steps):
            h = self.cell(h)
        return h


@GRADIENTS.case("recurrence-vanishes", "vanishing", "mm")
def _rnn_vanishes(bad: bool) -> Step:
    return (
        _Recurrence(0.5 if bad else 1.0, 30),
        lambda m, x: m(x).square().mean(),
        torch.randn(6, 4),
    )


@GRADIENTS.case("recurrence-explodes", "exploding", "mm")
def _rnn_explodes(bad: bool) -> Step:
    return (
        _Recurrence(1.6 if bad else 1.0, 30),
        lambda m, x: m(x).mean(),
        torch.randn(6, 4),
    )


class _Sequence(nn.Module):
    """A recurrent layer of torch; only the last step is used."""

    def __init__(self, kind: type[nn.RNN | nn.LSTM]) -> None:
        super().__init__()
        self.layer = kind(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


@GRADIENTS.case("torch-rnn-vanishes", "vanishing", "mm")
def _torch_rnn(bad: bool) -> Step:
    x = torch.randn(3, 40 if bad else 4, 4)
    return _Sequence(nn.RNN), lambda m, x: m(x).square().mean(), x


@GRADIENTS.case("chaotic-map", "exploding ill-conditioned", "mul sub")
def _chaos(bad: bool) -> Step:
    def loss(model: Any, batch: None) -> Tensor:
        x = model.w.sigmoid()
        for _ in range(60 if bad else 5):
            x = 3.9 * x * (1 - x)
        return x.sum()

    return Weights([0.3, -0.2]), loss, None
