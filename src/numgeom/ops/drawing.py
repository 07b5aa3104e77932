"""Which random tensors serve as examples, for ops that take whole tensors?

Beside the makers of `examples`: entries of all sizes, whole numbers with many ties, lists. The
tensors are small, since the laws evaluate ops exactly, entry by entry.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from numgeom.ops.examples import Maker


def wild(*shape: int, exponent: float = 160.0) -> Maker:
    """Numbers of all sizes from 2^-exponent to 2^exponent, some of them zeros of either sign."""

    def make(g: Generator) -> Tensor:
        size = torch.exp2((torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1) * exponent)
        value = torch.randn(shape, generator=g, dtype=torch.float64) * size
        keep = torch.rand(shape, generator=g) > 0.2
        return torch.where(keep, value, torch.copysign(torch.zeros(()).to(value), value))

    return make


def tiny(*shape: int) -> Maker:
    """Numbers about 2^-520: products of two of them underflow."""

    def make(g: Generator) -> Tensor:
        size = torch.randint(-560, -480, shape, generator=g).to(torch.float64)
        return torch.randn(shape, generator=g, dtype=torch.float64) * torch.exp2(size)

    return make


def integers(low: int, high: int, *shape: int) -> Maker:
    """Integers from low to high - 1."""
    return lambda g: torch.randint(low, high, shape, generator=g)


def whole_numbers(low: int, high: int, *shape: int) -> Maker:
    """The same as real numbers: many ties."""
    return lambda g: torch.randint(low, high, shape, generator=g).to(torch.float64)


def booleans(*shape: int) -> Maker:
    """True or False."""
    return lambda g: torch.rand(shape, generator=g) > 0.5


def swapped(maker: Maker) -> Maker:
    """The same kind of values, not contiguous: the last two dimensions lie swapped in memory."""
    return lambda g: maker(g).transpose(-1, -2).contiguous().transpose(-1, -2)


def several(*makers: Any) -> Callable[[Generator], list[Any]]:
    """A list of values."""
    return lambda g: [m(g) if callable(m) else m for m in makers]
