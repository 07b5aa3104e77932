"""Which decisions do comparisons make, and when may the exact decision be another one?

Two entries are compared with certainty if their boxes do not touch, or if both are exact.
"""

import math

import torch
from torch import Tensor

from numgeom.arithmetic.lower_bounds import next_down
from numgeom.arithmetic.rounding import add_up
from numgeom.ops.elementwise import operand
from numgeom.ops.entry import Evaluation, Kind, Op
from numgeom.ops.examples import NASTY, binary_examples, example, given, mask, normal, whole
from numgeom.ops.kinks import NO_KINKS, Kinks, Where
from numgeom.ops.tangents import still
from numgeom.ops.traits import Traits


def _comparison_doubt(call: Evaluation) -> Tensor | None:
    a, b = operand(call, 0), operand(call, 1, "other")
    if a.r is None and b.r is None:
        return None
    if call.args[0] is call.arg(1, "other"):  # x == x, as isfinite asks it, may only be about NaN
        return torch.isinf(a.radius()).expand(call.y.shape)
    # An infinity that is off by a finite number is still that infinity.
    moved = torch.zeros((), dtype=torch.bool)
    for side in (a, b):
        if side.r is not None:
            moved = moved | (side.r == math.inf) | ((side.r > 0) & torch.isfinite(side.x))
    apart = next_down((a.x - b.x).abs())
    certain = apart > add_up(a.radius(), b.radius())
    return (moved & ~certain).expand(call.y.shape)


def _classification_doubt(call: Evaluation) -> Tensor | None:
    """Whether an entry is finite is known as long as its error is."""
    x = operand(call, 0)
    return None if x.r is None else torch.isinf(x.r).expand(call.y.shape)


def _decision(name: str) -> Op:
    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=None,
        spread=None,
        second_order=None,
        tangent=still,
        doubt=_comparison_doubt,
        kinks=Kinks(Where.EQUAL, "where both sides are equal", inputs=(0, 1), jumps=True),
        source="IEEE 754: comparisons are exact",
        traits=Traits(piecewise_constant=True),
        examples=(
            *binary_examples(),
            example(given(1.0, 2.0, 3.0, -0.0), given(1.0, 2.5, 2.0, 0.0), label="ties"),
            example(given(-math.inf, math.inf, 1.0), given(-math.inf, 0.0, -math.inf)),
            example(normal(5), 0, label="number"),
            example(given(0.0, 0.0, 1.0), 0.0, label="zeros"),
            example(whole(3, -2, 0), whole(3, 2, 1), label="integers"),
            example(mask(True, False), mask(True, True), label="booleans"),
        ),
    )


def _classification(name: str) -> Op:
    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=None,
        spread=None,
        second_order=None,
        tangent=still,
        doubt=_classification_doubt,
        kinks=NO_KINKS,
        source="IEEE 754",
        traits=Traits(piecewise_constant=True),
        examples=(
            example(given(*NASTY)),
            example(given(math.inf, -math.inf, 0.0), label="infinite"),
            example(normal(0), label="empty"),
        ),
    )


DECISIONS: tuple[Op, ...] = (
    *(_decision(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    *(_classification(name) for name in ("isnan", "isinf", "isfinite")),
)
