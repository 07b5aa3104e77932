"""On which arguments are the laws of an entry tried?

Makers of examples: a few entries each, drawn from a range or chosen to be nasty. All tensors are
float64, since that is the format in which bounds are computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from numgeom.ops.entry import Example

Maker = Callable[[torch.Generator], Tensor]

# Zeros of both signs, subnormal, tiny, huge.
NASTY = (0.0, -0.0, 5e-324, -3e-310, 2.3e-308, 1e-160, -1e-20, 1.0, -1.0, 1e160, -1e300)


def uniform(low: float, high: float, *shape: int) -> Maker:
    """Entries spread evenly between two numbers."""

    def make(generator: torch.Generator) -> Tensor:
        share = torch.rand(shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * share

    return make


def normal(*shape: int, scale: float = 1.0) -> Maker:
    """Entries drawn from a normal distribution."""
    return lambda g: torch.randn(shape, generator=g, dtype=torch.float64) * scale


def given(*values: Any) -> Maker:
    """Chosen entries; nested sequences make dimensions."""
    return lambda g: torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Maker:
    """A tensor without dimensions."""
    return lambda g: torch.tensor(value, dtype=torch.float64)


def whole(*values: int) -> Maker:
    """Integers."""
    return lambda g: torch.tensor(values, dtype=torch.int64)


def mask(*values: bool) -> Maker:
    """Booleans."""
    return lambda g: torch.tensor(values, dtype=torch.bool)


def transposed(maker: Maker) -> Maker:
    """The same entries, not contiguous in memory."""
    return lambda g: maker(g).t()


def example(*arguments: Any, label: str = "", **options: Any) -> Example:
    """An example of makers, and of other arguments as they stand."""

    def make(generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def build(argument: Any) -> Any:
            return argument(generator) if callable(argument) else argument

        return tuple(map(build, arguments)), {k: build(v) for k, v in options.items()}

    return Example(make, label)


def unary_examples(
    low: float, high: float, special: Sequence[float] = (), **options: Any
) -> tuple[Example, ...]:
    """For an op of one tensor: a range, chosen points, and odd shapes."""
    return (
        example(uniform(low, high, 12), label="range", **options),
        example(given(0.0, -0.0, *special), label="special", **options),
        example(transposed(uniform(low, high, 2, 3)), label="strided", **options),
        example(uniform(low, high, 0), label="empty", **options),
        example(uniform(low, high), label="no dimensions", **options),
    )


def binary_examples(**options: Any) -> tuple[Example, ...]:
    """For an op of two tensors that takes all real numbers."""
    nasty = [[a, b] for a in NASTY[::2] for b in NASTY[1::3]]
    left, right = zip(*nasty, strict=True)
    return (
        example(normal(12), normal(12), label="normal", **options),
        example(normal(3, 1), normal(1, 4), label="broadcast", **options),
        example(transposed(normal(2, 3)), scalar(0.7), label="strided", **options),
        example(given(*left), given(*right), label="nasty", **options),
        example(normal(0, 3), normal(1, 3), label="empty", **options),
    )
