"""What blocks are made from: parameters, constants and choices, all from one seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

Layer = Callable[[Tensor], Tensor]
"""From [batch, width] to [batch, width]."""


class Network(nn.Module):
    """Blocks in a row; their parameters belong to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.layers:
            h = layer(h)
        return h


@dataclass
class Maker:
    """Draws what a block needs.

    Attributes:
        model: Owns the parameters.
        rng: Draws numbers and choices.
        batch: Number of rows.
        width: Number of columns, even.
        dtype: Format of parameters and constants.
        spread: Size of parameters.
    """

    model: nn.Module
    rng: random.Random
    batch: int
    width: int
    dtype: torch.dtype
    spread: float = 1.0

    def numbers(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        """Constants between two bounds or nearer to zero, with all the bits of float64.

        (Numbers on a grid would add up without any rounding.)
        """
        n = 1
        for size in shape:
            n *= size
        drawn = [self.rng.uniform(low, high) * self.rng.uniform(0.6, 1.0) for _ in range(n)]
        return torch.tensor(drawn, dtype=torch.float64).reshape(shape).to(self.dtype)

    def parameter(self, *shape: int) -> nn.Parameter:
        """A parameter of the model."""
        parameter = nn.Parameter(self.numbers(*shape) * self.spread)
        self.model.register_parameter(f"p{len(list(self.model.parameters()))}", parameter)
        return parameter

    def module(self, module: nn.Module) -> nn.Module:
        """A module of torch with parameters of ours."""
        module = module.to(self.dtype)
        for parameter in module.parameters():
            with torch.no_grad():
                parameter.copy_(self.numbers(*parameter.shape) * self.spread)
        self.model.add_module(f"m{len(list(self.model.children()))}", module)
        return module

    def choice(self, *options: T) -> T:
        return self.rng.choice(options)

    def integers(self, high: int, *shape: int) -> Tensor:
        n = 1
        for size in shape:
            n *= size
        return torch.tensor([self.rng.randrange(high) for _ in range(n)]).reshape(shape)

    def mask(self, *shape: int) -> Tensor:
        return self.integers(2, *shape).bool()


Block = Callable[[Maker], Layer]
