"""In which ways can a training run use the hybrid max-pool?

The hybrid of Boustany (2024, definition 6) is a derivative: the forward pass stays the maximum. The
paper's published program blends two *results* instead, beta·minimal(x) + (1 - beta)·native(x). Both
are the same number y over the reals, but in floating point beta·y + (1 - beta)·y differs from y by
about beta units in the last place, in every window. Three arms tell the two effects apart.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from numgeom.nonsmooth import Hybrid, Minimal, select

Arm = Literal["exact", "blended", "forward-only"]

ARMS: tuple[Arm, ...] = ("exact", "blended", "forward-only")
"""The three ways.

"exact": torch's forward pass, the hybrid derivative in the backward pass. "blended": two results
blended in the forward pass, and autograd's derivative of that. "forward-only": the blended forward
pass with the native derivative.
"""


class BlendedMaxPool2d(nn.Module):
    """beta times the minimal max-pool plus 1 - beta times the native one.

    Args:
        pool: Does the pooling.
        beta: Weight of the minimal one.
    """

    def __init__(self, pool: nn.Module, beta: float) -> None:
        super().__init__()
        self.pool = pool
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Pool twice and blend."""
        with select(maxpool=Minimal()):
            minimal = self.pool(x)
        with select():
            native = self.pool(x)
        return self.beta * minimal + (1 - self.beta) * native


class ForwardBlendedMaxPool2d(nn.Module):
    """The values of `BlendedMaxPool2d` with the derivative of the native max-pool.

    Args:
        pool: Does the pooling.
        beta: Weight of the minimal one.
    """

    def __init__(self, pool: nn.Module, beta: float) -> None:
        super().__init__()
        self.pool = pool
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """Pool once and round as the blend does."""
        blended: Any = _Blend.apply(self.pool(x), self.beta)
        return blended


class _Blend(torch.autograd.Function):
    """beta·y + (1 - beta)·y, with the derivative 1."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, beta: float) -> Tensor:
        return beta * y + (1 - beta) * y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@contextmanager
def pooling(model: nn.Module, arm: Arm, beta: float) -> Iterator[None]:
    """Let the 2d max-pools of a model be hybrid within a block; afterwards they are as before.

    Args:
        model: Any model; its `MaxPool2d` modules are exchanged, unless the arm is "exact".
        arm: Which way.
        beta: 0 is the native max-pool in every arm.
    """
    if beta == 0:
        yield
        return
    if arm == "exact":
        with select(maxpool=Hybrid(beta=beta)):
            yield
        return
    kind = BlendedMaxPool2d if arm == "blended" else ForwardBlendedMaxPool2d
    exchanged = exchange_pools(model, lambda pool: kind(pool, beta))
    try:
        yield
    finally:
        for parent, name, pool in exchanged:
            setattr(parent, name, pool)


def exchange_pools(
    model: nn.Module, make: Callable[[nn.MaxPool2d], nn.Module]
) -> list[tuple[nn.Module, str, nn.MaxPool2d]]:
    """Put another module in the place of every `MaxPool2d`, in place.

    Returns:
        For each exchange the parent, the name in it, and the pool that was there.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.MaxPool2d)
    ]
    for parent, name, pool in found:
        setattr(parent, name, make(pool))
    return found
