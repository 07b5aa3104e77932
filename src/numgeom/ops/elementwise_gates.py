"""How far does an error move a gradient that a backward op lets through or not?

These ops multiply a gradient by 1, by 0, or by a slope, according to the value of another input.
Where that decision is in doubt the spread covers both outcomes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import TINY, UNIT_ROUNDOFF, add_up, difference_up, mul_up
from numgeom.ops.elementwise import (
    Operand,
    either,
    finish_rounding,
    finish_spread,
    operand,
)
from numgeom.ops.elementwise_choices import sides_of
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import NASTY, example, given, normal
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.tangents import Key, Slope, elementwise_tangent
from numgeom.ops.traits import Traits


@dataclass(frozen=True, eq=False)
class Gate:
    """A gradient, the input that decides about it, and the two factors.

    Attributes:
        gradient: What is let through.
        decides: The input on which the decision depends.
        opened: Where the gradient surely passes unchanged.
        shut: Where it surely is multiplied by the slope.
        slope: The factor of the other branch.
    """

    gradient: Operand
    decides: Operand
    opened: Tensor
    shut: Tensor
    slope: float = 0.0


Read = Callable[[Evaluation], Gate]


def _above(call: Evaluation) -> Gate:
    """Open above a threshold."""
    g, x = operand(call, 0), operand(call, 1, "self")
    sides = sides_of(x, float(call.arg(2, "threshold")))
    return Gate(g, x, sides.above, sides.below)


def _leaky(call: Evaluation) -> Gate:
    """Open above 0, times the slope below; the result has the sign of its input."""
    g, x = operand(call, 0), operand(call, 1, "self")
    sides = sides_of(x, 0.0)
    return Gate(g, x, sides.above, sides.below, float(call.arg(2, "negative_slope")))


def _inside(call: Evaluation) -> Gate:
    """Open strictly between two bounds."""
    g, x = operand(call, 0), operand(call, 1, "self")
    low = sides_of(x, float(call.arg(2, "min_val")))
    high = sides_of(Operand(-x.x, x.r), -float(call.arg(3, "max_val")))
    return Gate(g, x, low.above & high.above, low.below | high.below)


def _outside(call: Evaluation) -> Gate:
    """Open where |x| is above a bound."""
    g, x = operand(call, 0), operand(call, 1, "self")
    bound = float(call.arg(2, "lambd"))
    high, low = sides_of(x, bound), sides_of(Operand(-x.x, x.r), bound)
    return Gate(g, x, high.above | low.above, high.below & low.below)


def _gate(
    name: str,
    read: Read,
    kinks: Kinks,
    examples: tuple[Example, ...],
    *,
    scales: bool = False,
    source: str = "computed exactly: the gradient or 0",
) -> Op:
    def rounding(call: Evaluation) -> Bound:
        gate = read(call)
        if gate.slope in (0.0, 1.0):
            return None
        bound = mul_up(call.y.abs(), UNIT_ROUNDOFF)
        bound = torch.where((call.y == 0) & (gate.gradient.x != 0), TINY, bound)
        bound = torch.where(gate.decides.x > 0, 0.0, bound)
        return finish_rounding(call, bound, (gate.gradient, gate.decides))

    def spread(call: Evaluation) -> Bound:
        gate = read(call)
        g, x = gate.gradient, gate.decides
        if g.r is None and x.r is None:
            return None
        r, slope = g.radius(), abs(gate.slope)
        factor = torch.full_like(r, gate.slope)
        jump = difference_up(torch.ones_like(r), factor)
        both = add_up(mul_up(g.x.abs(), jump), mul_up(r, max(1.0, slope)))
        closed = mul_up(r, slope)
        bound = torch.where(gate.opened, r, torch.where(gate.shut, closed, both))
        return finish_spread(call, bound, (g, x))

    def slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
        del moving
        gate = read(call)
        factor = either(gate.opened, 1.0, gate.slope)
        through = Slope(factor, plain=gate.slope in (0.0, 1.0, -1.0))
        return {0: through, 1: Slope(0.0, plain=True), "self": Slope(0.0, plain=True)}

    def doubt(call: Evaluation) -> Tensor | None:
        gate = read(call)
        if gate.decides.r is None:
            return None
        return (~(gate.opened | gate.shut)).expand(call.y.shape)

    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=rounding if scales else None,
        spread=spread,
        second_order=None,
        tangent=elementwise_tangent(slopes),
        doubt=doubt,
        kinks=kinks,
        source=source,
        examples=examples,
        traits=Traits(activation_backward=True, chooses=not scales),
    )


_POINTS = (1.0, -1.0, 0.5, *NASTY)


def _examples(*options: float | bool) -> tuple[Example, ...]:
    return (
        example(normal(12), normal(12), *options),
        example(normal(len(_POINTS)), given(*_POINTS), *options, label="at kinks"),
        example(normal(2, 3), normal(2, 3), *options, label="matrices"),
        example(normal(0), normal(0), *options, label="empty"),
    )


_AT_THE_THRESHOLD = Kinks(Where.EQUAL, "at the threshold", inputs=(1, 2), jumps=True)
_AT_THE_BOUNDS = Kinks(Where.BOUND, "at the bounds", inputs=(1,), jumps=True)
_AT_EITHER_BOUND = Kinks(Where.BOUND, "where |x| is the bound", inputs=(1,), jumps=True)
GATES: tuple[Op, ...] = (
    _gate("threshold_backward", _above, _AT_THE_THRESHOLD, _examples(0.0)),
    _gate("hardtanh_backward", _inside, _AT_THE_BOUNDS, _examples(-1.0, 1.0)),
    _gate("hardshrink_backward", _outside, _AT_EITHER_BOUND, _examples(0.5)),
    _gate("softshrink_backward", _outside, _AT_EITHER_BOUND, _examples(0.5)),
    _gate(
        "leaky_relu_backward",
        _leaky,
        Kinks(Where.ZERO, "at 0", inputs=(1,), jumps=True),
        (*_examples(0.01, False), *_examples(-0.3, False)),
        scales=True,
        source="IEEE 754: one product",
    ),
)
