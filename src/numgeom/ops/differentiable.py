"""What are the ops whose derivative torch lacks, or defines otherwise, in differentiable terms?

Torch differentiates the backward of a layer norm as if mean and deviation were computed again from
x, and gives no derivative of the mean and deviation that the forward op returns; in a recorded
program they are values with errors of their own. Other ops have no second
derivative at all. The functions here are equal to those ops over the reals and differentiable in
every floating operand. Notation: dy the gradient that comes in, x the input of the forward op.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, ...]:
    inner = tuple(range(x.dim() - len(shape), x.dim()))
    mean = x.mean(inner, keepdim=True)
    rstd = ((x - mean).pow(2).mean(inner, keepdim=True) + eps).rsqrt()
    y = (x - mean) * rstd
    y = y if weight is None else y * weight
    return y if bias is None else y + bias, mean, rstd


def _layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    del bias
    inner = tuple(range(x.dim() - len(shape), x.dim()))
    outer = tuple(range(x.dim() - len(shape)))
    unit = (x - mean) * rstd
    scaled = dy if weight is None else dy * weight
    along = (scaled * unit).mean(inner, keepdim=True)
    dx = rstd * (scaled - scaled.mean(inner, keepdim=True) - unit * along)
    dweight = (dy * unit).sum(outer) if outer else dy * unit
    dbias = dy.sum(outer) if outer else dy
    return _asked((dx, dweight, dbias), mask)


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, ...]:
    rows = x.reshape(n, groups, channels // groups * places)
    mean = rows.mean(2)
    rstd = ((rows - mean[..., None]).pow(2).mean(2) + eps).rsqrt()
    y = ((rows - mean[..., None]) * rstd[..., None]).reshape(n, channels, places)
    y = y if weight is None else y * weight[:, None]
    y = y if bias is None else y + bias[:, None]
    return y.reshape(x.shape), mean, rstd


def _group_norm_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    n: int,
    channels: int,
    places: int,
    groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    grouped = (n, groups, channels // groups, places)
    unit = (x.reshape(grouped) - mean[..., None, None]) * rstd[..., None, None]
    given = dy.reshape(grouped)
    scaled = given if weight is None else given * weight.reshape(1, groups, -1, 1)
    along = (scaled * unit).mean((2, 3), keepdim=True)
    dx = rstd[..., None, None] * (scaled - scaled.mean((2, 3), keepdim=True) - unit * along)
    dweight = (given * unit).sum((0, 3)).reshape(channels)
    dbias = given.sum((0, 3)).reshape(channels)
    return _asked((dx.reshape(x.shape), dweight, dbias), mask)


def _asked(found: tuple[Tensor, ...], mask: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(part if wanted else None for part, wanted in zip(found, mask, strict=True))


def _silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return dy * s * (1.0 + x * (1.0 - s))


def _mish_backward(dy: Tensor, x: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(x))
    return dy * (t + x * torch.sigmoid(x) * (1.0 - t * t))


def _as_strided_scatter(
    line: Tensor, source: Tensor, size: Sequence[int], stride: Sequence[int], offset: int = 0
) -> Tensor:
    places = torch.full((1,), offset or 0, device=line.device)
    for n, step in zip(size, stride, strict=True):
        places = (places[:, None] + step * torch.arange(n, device=line.device)).reshape(-1)
    assert places.numel() == math.prod(size)
    return line.reshape(-1).scatter(0, places, source.reshape(-1)).reshape(line.shape)


DIFFERENTIABLE: Mapping[str, Callable[..., Any]] = {
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "native_group_norm": _group_norm,
    "native_group_norm_backward": _group_norm_backward,
    "silu_backward": _silu_backward,
    "mish_backward": _mish_backward,
    "as_strided_scatter": _as_strided_scatter,
}
"""Functions to differentiate in place of ops, by the op's name; they take the op's arguments."""
