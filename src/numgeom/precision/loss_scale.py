"""By which factor must the loss be multiplied, so that its gradients fit into float16?

Scaling the loss by s scales every value of the backward pass by s (Micikevicius et al. 2018,
sec. 3.2). So the exponents of those values, counted once in a float64 replay, tell for every power
of two how many of them would be too small or too large.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from numgeom.arithmetic.formats import Format, bfloat16, float16
from numgeom.recording import Program

# The largest value may grow this many powers of two from one step to the next.
HEADROOM = 2
# A format needs no scale where at most this share of the values is lost without one.
NEGLIGIBLE = 1e-4
# Steps without overflow before GradScaler doubles the scale: torch's default.
GROWTH_INTERVAL = 2000


@dataclass(frozen=True)
class LossScale:
    """What the backward pass would lose in a format, at every loss scale.

    Attributes:
        format: Name of the format.
        scale: Recommended factor, a power of two; 1 where none is needed. Use it as a static
            scale or as `init_scale` of `torch.amp.GradScaler`.
        growth_interval: For `torch.amp.GradScaler`.
        needed: Whether the backward pass loses values in this format without a scale.
        needed_in_bfloat16: The same for bfloat16, whose range is that of float32.
        underflow: Share of nonzero values that become zero, by scale.
        subnormal: Share of nonzero values that lose bits below the normal numbers (those that
            become zero included), by scale.
        overflow: Share of values that become infinite, by scale.
        values: Number of nonzero values that were counted.
    """

    format: str
    scale: float
    growth_interval: int
    needed: bool
    needed_in_bfloat16: bool
    underflow: Mapping[float, float]
    subnormal: Mapping[float, float]
    overflow: Mapping[float, float]
    values: int

    def __str__(self) -> str:
        """Say in a sentence what to do."""
        if not self.needed:
            return f"No loss scale is needed in {self.format}."
        also = "" if self.needed_in_bfloat16 else " In bfloat16 none is needed."
        lost, left = self.underflow[1.0], self.underflow[self.scale]
        return (
            f"Scale the loss by {self.scale:g} in {self.format}: without a scale {lost:.2%} of the "
            f"backward pass becomes zero, with it {left:.2%}.{also}"
        )


def recommend_loss_scale(program: Program, *, format: Format = float16) -> LossScale:
    """Recommend a loss scale for a recorded step.

    The values counted are the results of all calls of the backward pass, as they are over the
    reals. A loss that was already scaled when it was recorded keeps that factor: the
    recommendation comes on top of it.

    Args:
        program: The recorded step, in any format.
        format: The format that the backward pass shall run in.

    Returns:
        The recommendation: the largest power of two that leaves the largest value a factor of
        four below overflow. Guarantee: ESTIMATED, from one batch.

    Raises:
        ReplayError: if the program cannot be run in float64.
    """
    exponents = backward_exponents(program)
    total = sum(exponents.values())
    scales = [2.0**k for k in range(-8, 41)]
    top = max(exponents, default=0)
    fits = [s for s in scales if top + math.log2(s) + HEADROOM <= format.max_exponent]
    lost = {s: _below(exponents, _smallest(format), s, total) for s in scales}
    weak = {s: _below(exponents, format.min_exponent, s, total) for s in scales}
    over = {s: _above(exponents, format.max_exponent, s, total) for s in scales}
    needed = weak[1.0] > NEGLIGIBLE or over[1.0] > 0.0
    best = max(fits, default=scales[0])
    return LossScale(
        format=format.name,
        scale=best if needed else 1.0,
        growth_interval=GROWTH_INTERVAL,
        needed=needed,
        needed_in_bfloat16=_below(exponents, bfloat16.min_exponent, 1.0, total) > NEGLIGIBLE,
        underflow=lost,
        subnormal=weak,
        overflow=over,
        values=total,
    )


def backward_exponents(program: Program) -> Counter[int]:
    """Count the exponents floor(log2 |x|) of the nonzero values of the backward pass."""
    found: Counter[int] = Counter()

    def on_call(node: fx.Node, value: Any) -> None:
        info = node.meta.get("call")
        if info is None or info.phase != "backward":
            return
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Tensor) and part.is_floating_point():
                known = part[(part != 0) & torch.isfinite(part)]
                # frexp: |x| = m 2^e with 1/2 <= m < 1
                where, counts = (torch.frexp(known).exponent - 1).unique(return_counts=True)
                found.update(dict(zip(where.tolist(), counts.tolist(), strict=True)))

    program.replay(torch.float64, on_call=on_call)
    return found


def _smallest(fmt: Format) -> int:
    """Exponents below this one round to zero: half the smallest number is the limit."""
    return fmt.min_exponent - fmt.precision


def _below(exponents: Counter[int], limit: int, scale: float, total: int) -> float:
    shift = round(math.log2(scale))
    return sum(n for e, n in exponents.items() if e + shift < limit) / max(total, 1)


def _above(exponents: Counter[int], limit: int, scale: float, total: int) -> float:
    shift = round(math.log2(scale))
    return sum(n for e, n in exponents.items() if e + shift > limit) / max(total, 1)
