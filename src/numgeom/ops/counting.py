"""Into which bin of a histogram does each entry fall, and may it be another one?

histc counts the entries between `low` and `high` in bins of equal width; `high` itself falls into
the last one. An entry whose ball, widened by what a kernel rounds, reaches into several bins may be
counted in any of them: each of their counts may be off by 1.

A kernel finds the bin by a quotient, or by comparison with rounded edges. Either is off by a few
roundings of numbers no larger than |x| + |low| + |high|; 32 are granted. That an entry lies beyond
`low` or `high` is seen by exact comparison.
"""

import math

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF
from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    is_decision,
    lower_end,
    radius_of,
    upper_end,
)
from numgeom.ops.drawing import whole_numbers
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, given, normal, uniform
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.tangents import still
from numgeom.ops.traits import Traits

_ROUNDINGS = 32.0


def _limits(call: Evaluation) -> tuple[float, float]:
    """The range; that of the entries where `low` and `high` are equal."""
    low, high = float(call.arg(2, "min", 0)), float(call.arg(3, "max", 0))
    x = call.args[0]
    if low == high and x.numel():
        low, high = float(x.min()), float(x.max())
    return (low, high) if low < high else (low - 1.0, high + 1.0)


def _range_is_given(call: Evaluation) -> bool:
    return float(call.arg(2, "min", 0)) != float(call.arg(3, "max", 0))


def _open_counts(call: Evaluation, radius: Bound) -> Tensor:
    """How many entries may be in a bin, or may not, for every bin."""
    x = call.args[0].reshape(-1).to(torch.float64)
    bins = int(call.arg(1, "bins", 100))
    low, high = _limits(call)
    r = None if radius is None else radius.reshape(-1)
    below, above = lower_end(x, r), upper_end(x, r)
    scale = bins / (high - low)
    size = torch.maximum(below.abs(), above.abs()) + abs(low) + abs(high)
    margin = _ROUNDINGS * UNIT_ROUNDOFF * (size * scale + bins)
    first = torch.floor((below - low) * scale - margin).clamp(0, bins - 1)
    last = torch.floor((above - low) * scale + margin).clamp(0, bins - 1)
    outside = (above < low) | (below > high)
    inside = (below >= low) & (above <= high)
    unsure = ~outside & ~(inside & (first == last))
    # Each unsure entry adds 1 to the bins from the first to the last: a running sum of the ends.
    steps = torch.zeros(bins + 1, dtype=torch.float64, device=x.device)
    ones = unsure.to(torch.float64)
    first, last = (torch.nan_to_num(k, nan=0.0, posinf=bins - 1) for k in (first, last))
    steps = steps.index_add(0, first.to(torch.int64), ones)
    steps = steps.index_add(0, last.to(torch.int64) + 1, -ones)
    return torch.cumsum(steps, 0)[:bins]


def _rounding(call: Evaluation) -> Bound:
    return None if is_decision(call.y) else _open_counts(call, None)


def _spread(call: Evaluation) -> Bound:
    r = radius_of(call, 0)
    if is_decision(call.y) or r is None or not bool((r > 0).any()):
        return None
    if not _range_is_given(call):
        return torch.full_like(call.y, math.inf)
    return _open_counts(call, r)  # an entry leaves a bin and enters one, both open to it


def _doubt(call: Evaluation) -> Tensor | None:
    if is_decision(call.args[0]) or is_decision(call.y):
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    moved = _spread(call)
    return None if moved is None else moved > 0


COUNTING: tuple[Op, ...] = (
    Op(
        name="histc",
        kind=Kind.REDUCTION,
        rounding=_rounding,
        spread=_spread,
        second_order=None,
        tangent=still,
        doubt=_doubt,
        kinks=Kinks(Where.BOUND, "the edges of the bins", jumps=True),
        traits=Traits(piecewise_constant=True, nondeterministic_on_cuda=True),
        source="a decision per entry; edges by comparison of balls",
        examples=(
            example(normal(40), 6, -1.5, 2.0),
            example(whole_numbers(0, 8, 30), 8, 0, 7, label="whole numbers, bins between them"),
            example(whole_numbers(-2, 6, 30), 5, 0, 5, label="entries on the edges"),
            example(uniform(-1.0, 1.0, 12), 4),
            example(given(0.0, -0.0, 5e-324, 1.0, 1e300, -1e300), 3, 0, 1),
            example(normal(0), 3, 0, 1, label="empty"),
            example(normal(1, 1), 3, -1, 1),
        ),
    ),
)
