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
from numgeom.arithmetic.printing import nearest_short, percent, percent_upper
from numgeom.recording import Program

# The largest value may grow this many powers of two from one step to the next.
HEADROOM = 2
# A format needs no scale where at most this share of the values is lost without one.
NEGLIGIBLE = 1e-4
# Steps without overflow before GradScaler doubles the scale: torch's default. One step in so many
# is then skipped at most, once the headroom is used up.
GROWTH_INTERVAL = 2000
_SCALES = tuple(2.0**k for k in range(-8, 41))


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
        """Say what to do."""
        if not self.needed:
            return f"No loss scale is needed in {self.format}."
        also = "" if self.needed_in_bfloat16 else " In bfloat16 none is needed."
        lost, left = self.underflow[1.0], self.underflow[self.scale]
        scale = nearest_short(self.scale, 17)
        return (
            f"Scale the loss by {scale} in {self.format}, or use GradScaler(init_scale={scale}, "
            f"growth_interval={self.growth_interval}): without a scale {percent(lost, 2)} of "
            f"the backward pass becomes zero, with it {percent_upper(left, 2)}.{also}"
        )

    def check(self) -> None:
        """Raise ValueError where a scale has no shares, or a share is none."""
        for shares in (self.underflow, self.subnormal, self.overflow):
            if not all(0.0 <= share <= 1.0 for share in shares.values()):
                raise ValueError("a loss scale loses a share that is none")
        if not {1.0, self.scale} <= self.underflow.keys():
            raise ValueError(f"what a loss scale of {self.scale} loses is missing")


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
    return loss_scale_for(backward_exponents(program), format)


def loss_scale_for(exponents: Mapping[int, int], format: Format) -> LossScale:
    """Recommend a loss scale from how often every exponent occurs in the backward pass."""
    total = sum(exponents.values())
    top = max(exponents, default=0)
    fits = [s for s in _SCALES if top + math.log2(s) + HEADROOM <= format.max_exponent]
    lost = {s: _below(exponents, _smallest(format), s, total) for s in _SCALES}
    weak = {s: _below(exponents, format.min_exponent, s, total) for s in _SCALES}
    over = {s: _above(exponents, format.max_exponent, s, total) for s in _SCALES}
    needed = weak[1.0] > NEGLIGIBLE or over[1.0] > 0.0
    best = max(fits, default=_SCALES[0])
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
    count = ExponentCount()
    program.replay(torch.float64, on_call=count)
    return count.found


class ExponentCount:
    """Counts exponents while a replay runs: hand it over as `on_call`.

    `found` is how often every exponent floor(log2 |x|) occurred, zeros, infinities and NaN left
    out. Float64 numbers below 2^-1022 count as zeros, which they would be in any narrower format.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.found: Counter[int] = Counter()

    def __call__(self, node: fx.Node, value: Any) -> None:
        """Count what a call of the backward pass gave."""
        info = node.meta.get("call")
        if info is None or info.phase != "backward":
            return
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, Tensor) and part.is_floating_point() and part.numel():
                bits = part.detach().to(torch.float64).contiguous().view(torch.int64)
                exponents = (bits >> 52).bitwise_and_(0x7FF).flatten()
                counts = exponents.bincount(minlength=2048).tolist()
                self.found.update({e - 1023: n for e, n in enumerate(counts[1:2047], 1) if n})


def _smallest(fmt: Format) -> int:
    """Exponents below this one round to zero: half the smallest number is the limit."""
    return fmt.min_exponent - fmt.precision


def _below(exponents: Mapping[int, int], limit: int, scale: float, total: int) -> float:
    shift = round(math.log2(scale))
    return sum(n for e, n in exponents.items() if e + shift < limit) / max(total, 1)


def _above(exponents: Mapping[int, int], limit: int, scale: float, total: int) -> float:
    shift = round(math.log2(scale))
    return sum(n for e, n in exponents.items() if e + shift > limit) / max(total, 1)
