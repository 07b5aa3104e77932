"""How do functions that only take whole steps carry an error, and where do they jump?

floor, sign and the like are computed exactly. An error moves them only if it carries the input
over a step, and then by the height of the steps that it crosses.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import add_up, difference_up, mul_up
from numgeom.ops.elementwise import (
    Operand,
    doubt_of_integers,
    either,
    finish_rounding,
    finish_spread,
    is_decision,
    operand,
)
from numgeom.ops.entry import Bound, Evaluation, Fact, Kind, Op
from numgeom.ops.examples import example, given, normal, unary_examples, uniform, whole
from numgeom.ops.intervals import Interval
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.tangents import Key, Slope, elementwise_tangent, still
from numgeom.ops.traits import Poles, Traits


def whole_quotients(a: Operand, b: Operand, mode: str) -> tuple[Tensor, Tensor]:
    """The least and the largest whole number that the box can give.

    Anything where the divisor may be 0, whatever is divided: 0 / 0 is no number.
    """
    to_whole = torch.floor if mode == "floor" else torch.trunc
    box: Interval = a.box() / b.box()
    undefined = _may_be_zero(b)
    low = torch.where(undefined, -math.inf, to_whole(box.lo))
    return low, torch.where(undefined, math.inf, to_whole(box.hi))


def _may_be_zero(b: Operand) -> Tensor:
    return (b.radius() > 0) & ~(b.x.abs() > b.radius())


def whole_quotient_rounding(y: Tensor, a: Operand, b: Operand, mode: str) -> Tensor:
    """0 where a/b is far enough from a whole number, or is one; else the jump."""
    low, high = whole_quotients(Operand(a.x, None), Operand(b.x, None), mode)
    divisible = (torch.fmod(a.x, b.x) == 0) & (y == torch.round(a.x / b.x))
    certain = ((low == high) & (y == low)) | (divisible & (y.abs() < 2.0**52))
    near = (y >= low) & (y <= high) & (high - low <= 1)
    return torch.where(certain, 0.0, either(near, 1.0, math.inf))


Step = Callable[[Tensor], Tensor]
STEPS: dict[str, Step] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "round": torch.round,
    "sign": torch.sign,
    "sgn": torch.sign,
}


def _step_range(call: Evaluation) -> tuple[Operand, Tensor, Tensor]:
    """The least and the largest value: steps never go down."""
    x = operand(call, 0)
    box = x.box()
    step = STEPS[call.name]
    return x, step(box.lo), step(box.hi)


def _step_spread(call: Evaluation) -> Bound:
    if is_decision(call.y) or call.radius(0) is None:
        return None
    x, low, high = _step_range(call)
    bound = torch.maximum(difference_up(high, call.y), difference_up(call.y, low))
    if call.kwargs.get("decimals", 0):
        bound = torch.full_like(bound, math.inf)
    return finish_spread(call, bound, (x,))


def _step_doubt(call: Evaluation) -> Tensor | None:
    if is_decision(call.y) or call.radius(0) is None:
        return doubt_of_integers(call)
    x, low, high = _step_range(call)
    return (x.radius() > 0) & torch.isfinite(x.x) & ~(low == high)


def _step_rounding(call: Evaluation) -> Bound:
    # Rounding to decimal places multiplies and divides; nobody has bounded that.
    if call.kwargs.get("decimals", 0):
        return torch.full_like(call.y, math.inf)
    return None


def _step(name: str, kinks: Kinks, *, rounding: Fact | None = None) -> Op:
    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=rounding,
        spread=_step_spread,
        second_order=None,
        tangent=still,
        doubt=_step_doubt,
        kinks=kinks,
        source="IEEE 754: exact",
        traits=Traits(piecewise_constant=True),
        examples=(
            *unary_examples(-3.0, 3.0, (0.5, -0.5, 1.5, 2.0, -3.0, 1e17, 4.999999999999999)),
            example(whole(3, -1, 0), label="integers"),
        ),
    )


def _frac_spread(call: Evaluation) -> Bound:
    x = operand(call, 0)
    if x.r is None:
        return None
    box = x.box()
    crossed = difference_up(torch.trunc(box.hi), torch.trunc(box.lo))
    bound = torch.where(crossed == 0, x.r, add_up(x.r, crossed).clamp_max(2.0))
    return finish_spread(call, bound, (x,))


def _frac_doubt(call: Evaluation) -> Tensor | None:
    x = operand(call, 0)
    if x.r is None:
        return None
    box = x.box()
    return (x.r > 0) & ~(torch.trunc(box.hi) == torch.trunc(box.lo))


_MODES = {"fmod": "trunc", "remainder": "floor"}


def _remainder_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    a, b = operand(call, 0), operand(call, 1, "other")
    bound = torch.zeros_like(call.y)
    if call.name == "remainder":  # fmod, and then one addition of the divisor
        bound = mul_up(call.y.abs(), 2.0**-53)
    return finish_rounding(call, bound, (a, b))


def _remainder_slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    """The derivative of a - n b, with a whole number n."""
    del moving
    a, b = operand(call, 0), operand(call, 1, "other")
    low, high = whole_quotients(a, b, _MODES[call.name])
    along_b = Slope.enclosed(Interval(-high, -low))
    return {0: Slope(1.0, plain=True), 1: along_b, "other": along_b}


def _remainder_spread(call: Evaluation) -> Bound:
    a, b = operand(call, 0), operand(call, 1, "other")
    if is_decision(call.y) or (a.r is None and b.r is None):
        return None
    low, high = whole_quotients(a, b, _MODES[call.name])
    # a - n b with the same n, or any two remainders: each is below |b| + r_b.
    linear = add_up(a.radius(), mul_up(high.abs(), b.radius()))
    bound = torch.where(low == high, linear, mul_up(add_up(b.x.abs(), b.radius()), 2.0))
    bound = torch.where(_may_be_zero(b), math.inf, bound)
    return finish_spread(call, bound, (a, b))


def _remainder_doubt(call: Evaluation) -> Tensor | None:
    a, b = operand(call, 0), operand(call, 1, "other")
    if is_decision(call.y) or (a.r is None and b.r is None):
        return doubt_of_integers(call)
    low, high = whole_quotients(a, b, _MODES[call.name])
    moved = (a.radius() > 0) | (b.radius() > 0)
    return (moved & ~(low == high)).expand(call.y.shape)


def _remainder(name: str) -> Op:
    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=_remainder_rounding,
        spread=_remainder_spread,
        second_order=None,
        tangent=elementwise_tangent(_remainder_slopes),
        doubt=_remainder_doubt,
        kinks=Kinks(Where.WHOLE, "where the quotient is a whole number", inputs=(0, 1), jumps=True),
        domain="divisor not 0",
        source="fmod is exact (C11, F.10.7.1)",
        traits=Traits(poles=Poles(argument=1, at_zero=True, may_overflow=True)),
        examples=(
            example(normal(12, scale=4.0), uniform(0.5, 2.0, 12)),
            example(given(7.0, -7.0, 6.0, 0.3, 1e10), given(2.0, -2.0, 3.0, 0.1, 3.0)),
            example(normal(2, 1), uniform(-2.0, -1.0, 3), label="broadcast"),
            example(normal(5), 0.7, label="number"),
            example(whole(7, -9, 0), whole(2, 4, 3), label="integers"),
            example(normal(0), normal(0), label="empty"),
        ),
    )


_WHOLE = Kinks(Where.WHOLE, "at whole numbers", jumps=True)
_WHOLE_BUT_ZERO = Kinks(Where.WHOLE, "at whole numbers except 0", jumps=True)
_HALFWAY = Kinks(Where.WHOLE, "halfway between whole numbers", jumps=True)
_SIGN_CHANGES = Kinks(Where.ZERO, "at 0", jumps=True)
STEP_OPS: tuple[Op, ...] = (
    _step("floor", _WHOLE),
    _step("ceil", _WHOLE),
    _step("trunc", _WHOLE_BUT_ZERO),
    _step("round", _HALFWAY, rounding=_step_rounding),
    _step("sign", _SIGN_CHANGES),
    _step("sgn", _SIGN_CHANGES),
    Op(
        name="frac",
        kind=Kind.ELEMENTWISE,
        rounding=None,
        spread=_frac_spread,
        second_order=None,
        tangent=elementwise_tangent(lambda call, moving: {0: Slope(1.0, plain=True)}),
        doubt=_frac_doubt,
        kinks=_WHOLE_BUT_ZERO,
        source="IEEE 754: the difference to the whole part is a float64 number",
        examples=unary_examples(-3.0, 3.0, (0.5, 1.0, 2.0, -3.0, 1e17, 4.999999999999999)),
    ),
    _remainder("fmod"),
    _remainder("remainder"),
)
