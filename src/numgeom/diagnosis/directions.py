"""How does a large tensor get random numbers that are cheap and reproducible?

Directions consist of one row of normal numbers that repeats itself, so that a step along one, or
the slope along it, needs no second tensor of the size of the first.
"""

from functools import lru_cache

import torch
from torch import Tensor

# A prime, so that the numbers repeat themselves with no period that a layer has.
_PERIOD = 8191


def direction(like: Tensor, seed: int) -> Tensor:
    """Normal numbers of a tensor's shape in float64, repeated after 8191 entries."""
    count = like.numel()
    row = _row(like, seed)
    row = row.repeat(-(-count // _PERIOD))[:count] if count > _PERIOD else row.clone()
    return row.reshape(like.shape)


def component(x: Tensor, seed: int) -> float:
    """The inner product of a float64 tensor with `direction(x, seed)`."""
    row, flat = _row(x, seed), x.reshape(-1)
    body = flat.numel() // _PERIOD * _PERIOD
    rest = flat[body:]
    total = float(rest @ row[: rest.numel()])
    return total + float((flat[:body].view(-1, _PERIOD) @ row).sum()) if body else total


def step_along_(x: Tensor, seed: int, size: float) -> Tensor:
    """Add `size` times `direction(x, seed)` to a float64 tensor, in its place."""
    if not x.is_contiguous():
        return x.add_(direction(x, seed), alpha=size)
    row, flat = _row(x, seed), x.view(-1)
    body = flat.numel() // _PERIOD * _PERIOD
    if body:
        flat[:body].view(-1, _PERIOD).add_(row, alpha=size)
    rest = flat[body:]
    rest.add_(row[: rest.numel()], alpha=size)
    return x


def _row(like: Tensor, seed: int) -> Tensor:
    return _numbers(min(like.numel(), _PERIOD), seed).to(like.device)


@lru_cache(maxsize=64)  # 4 MiB
def _numbers(count: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)
