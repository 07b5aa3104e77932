"""How far do quotients, entry by entry, carry an error?

(a + e)/(b + d) - a/b = (e - (a/b) d) / (b + d), and what is left of it without the part that is
linear in e and d is -d/b times that. The divisor must stay clear of 0 in the whole box. A quotient
that is rounded to a whole number is exact, and moves by whole steps.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.lower_bounds import sub_down
from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    cover_roundings,
    difference_up,
    div_up,
    gamma_up,
    mul_up,
)
from numgeom.ops.elementwise import (
    Operand,
    doubt_of_integers,
    either,
    finish_rounding,
    finish_spread,
    is_decision,
    operand,
    repeats,
    total,
)
from numgeom.ops.elementwise_arithmetic import (
    SMALLEST_NORMAL,
    correctly_rounded_product,
    is_power_of_two,
)
from numgeom.ops.elementwise_steps import whole_quotient_rounding, whole_quotients
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, given, normal, scalar, uniform, whole
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.tangents import Moved, Pushed, require_known, times
from numgeom.ops.traits import Poles, Traits


def quotient_spread(a: Operand, b: Operand) -> Tensor:
    """Bound of |(a + e)/(b + d) - a/b| = |e - (a/b) d| / |b + d|."""
    return _over_divisor(_numerator(a, b), b)


def quotient_remainder(a: Operand, b: Operand) -> Tensor:
    """Bound of what is left without the linear part: |d| |e - (a/b) d| / |b (b + d)|."""
    if b.r is None:
        return torch.zeros((), dtype=torch.float64)
    spread = _over_divisor(_numerator(a, b), b)
    return torch.where(b.r > 0, mul_up(div_up(b.r, b.x.abs()), spread), 0.0)


def _numerator(a: Operand, b: Operand) -> Tensor:
    """r_a + |a/b| r_b."""
    if b.r is None:
        return a.radius()
    none = (a.x == 0) | (torch.isinf(b.x) & torch.isfinite(a.x))
    quotient = torch.where(none, 0.0, div_up(a.x.abs(), b.x.abs()))
    moved = torch.where((b.r == 0) | (a.x == 0), 0.0, mul_up(quotient, b.r))
    return add_up(a.radius(), moved)


def _over_divisor(numerator: Tensor, b: Operand) -> Tensor:
    size = b.x.abs()
    least = size if b.r is None else torch.where(b.r > 0, sub_down(size, b.radius()), size)
    bound = torch.where(least > 0, div_up(numerator, least.clamp_min(0.0)), math.inf)
    # Division by an infinity gives 0, whatever finite number is divided.
    return torch.where(torch.isinf(b.x) & torch.isfinite(numerator), 0.0, bound)


def _quotient(call: Evaluation) -> tuple[Operand, Operand, str | None]:
    mode = call.kwargs.get("rounding_mode") if call.name == "div" else "floor"
    return operand(call, 0), operand(call, 1, "other"), mode


def _div_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    a, b, mode = _quotient(call)
    if mode is not None:
        bound = whole_quotient_rounding(call.y, a, b, mode)
        return finish_rounding(call, bound, (a, b))
    size = call.y.abs()
    bound = correctly_rounded_product(call.y)
    if b.x.numel() == 1:
        # Kernels may multiply by the rounded reciprocal of a number.
        once = (_plain_quotient(a.x, b.x, call.y) == call.y) & torch.isfinite(call.y)
        inverse = add_up(div_up(UNIT_ROUNDOFF, b.x.abs()), TINY)
        bound = torch.where(once, bound, total(bound, mul_up(a.x.abs(), inverse), _tiny(a.x)))
    shifted = is_power_of_two(b.x) & (size >= SMALLEST_NORMAL)
    from_infinite = torch.isinf(b.x) & torch.isfinite(a.x)
    bound = torch.where((a.x == 0) & (b.x != 0) | shifted | from_infinite, 0.0, bound)
    return finish_rounding(call, torch.where(b.x == 0, math.inf, bound), (a, b))


def _plain_quotient(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """A / b by one division, whatever the kernel did."""
    if y.numel() == 1:
        divisor = float(b)
        return torch.full_like(y, float(a) / divisor if divisor != 0.0 else math.nan)
    return a / b.expand(y.shape).contiguous()


def _tiny(x: Tensor) -> Tensor:
    return either(x == 0, 0.0, TINY)


def _div_spread(call: Evaluation) -> Bound:
    a, b, mode = _quotient(call)
    if is_decision(call.y) or (a.r is None and b.r is None):
        return None
    if mode is not None:
        low, high = whole_quotients(a, b, mode)
        bound = torch.maximum(difference_up(high, call.y), difference_up(call.y, low))
        return finish_spread(call, bound, (a, b))
    return _finish_quotient(call, quotient_spread(a, b), a, b)


def _finish_quotient(call: Evaluation, bound: Tensor, a: Operand, b: Operand) -> Tensor:
    infinite = torch.isinf(call.y)
    if bool(infinite.any()):
        kept = infinite & torch.isinf(a.x) & (b.x.abs() > b.radius())
        bound = torch.where(kept, 0.0, bound)
    return finish_spread(call, bound, (a, b))


def _div_second_order(call: Evaluation) -> Bound:
    a, b, mode = _quotient(call)
    if is_decision(call.y) or mode is not None or b.r is None:
        return None
    return _finish_quotient(call, quotient_remainder(a, b), a, b)


def _div_doubt(call: Evaluation) -> Tensor | None:
    a, b, mode = _quotient(call)
    if is_decision(call.y) or mode is None or (a.r is None and b.r is None):
        return doubt_of_integers(call)
    low, high = whole_quotients(a, b, mode)
    moved = (a.radius() > 0) | (b.radius() > 0)
    return (moved & ~(low == high)).expand(call.y.shape)


def _div_tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    """t_y = (t_a - y t_b) / b; whole quotients stand still."""
    _, b, mode = _quotient(call)
    if mode is not None or is_decision(call.y):
        return None
    return quotient_tangent(call, moved, b.x)


def quotient_tangent(call: Evaluation, moved: Moved, b: Tensor) -> Pushed:
    """The quotient rule, with y computed: it is off by the rounding of the quotient itself."""
    require_known(call, moved, 0, 1, "other")
    da, db = moved.get(0), moved.get(1, moved.get("other"))
    y = call.y
    infinite = torch.isinf(y)
    still = bool(infinite.any())  # an infinite dividend: y stays the same infinity
    quotient = torch.where(infinite, 0.0, y) if still else y
    total = None if db is None else db.beside(y) * -quotient
    if da is not None:
        total = da.beside(y) if total is None else total.add_(da.beside(y))
    assert total is not None
    lanes = total / b
    if still:
        lanes = torch.where(infinite, 0.0, lanes)
    if lanes.shape[1:] != y.shape:
        lanes = lanes.expand(len(lanes), *y.shape)

    def rounding(size: Tensor) -> Tensor:
        del size
        # A product, a sum and a quotient, or one by a rounded reciprocal, which is one more.
        bound = torch.zeros((), dtype=torch.float64, device=y.device)
        support = torch.zeros((), dtype=torch.bool, device=y.device)
        if da is not None:
            bound = bound + da.size * gamma_up(5, UNIT_ROUNDOFF)
            support = support | (da.size != 0)
        if db is not None:
            off = _div_rounding(call)
            slope = quotient.abs() * gamma_up(6, UNIT_ROUNDOFF)
            slope = slope if off is None else slope + off
            bound = bound + times(slope, db.size)
            support = support | ((db.size != 0) & (slope != 0))
        inverse = div_up(cover_roundings(bound, 4) + support.to(torch.float64) * TINY, b.abs())
        inverse = inverse + support.to(torch.float64) * (2.0 * TINY)
        found = torch.where(support & torch.isfinite(b), inverse, 0.0)
        found = torch.where(infinite, 0.0, found) if still else found
        return cover_roundings(found, 2).expand(y.shape)

    return Pushed(lanes, rounding, fresh=True)


_DIVISORS = (
    example(normal(12), uniform(0.5, 3.0, 12), label="positive"),
    example(normal(3, 1), uniform(-2.0, -0.2, 4), label="broadcast"),
    example(given(1e-300, 5e-324, 0.0, -0.0, 1.0, 1e300), given(3e10, 2.0, 7.0, -3.0, 0.0, 1e-200)),
    example(given(math.inf, 1.0, -math.inf), given(2.0, math.inf, -3.0), label="infinite"),
    example(normal(9), 3.0, label="number"),
    example(normal(9), scalar(4.0), label="power of two"),
    example(normal(0), normal(0), label="empty"),
    example(normal(3), whole(2, 4, 3), label="integers"),
)


_WHOLE = tuple(
    example(given(7.0, -7.0, 6.0, 0.3, 1e10, -0.0), given(2.0, 2.0, 3.0, 0.1, 3.0, 5.0),
            label=mode, rounding_mode=mode)
    for mode in ("floor", "trunc")
) + tuple(
    example(normal(8, scale=5.0), uniform(0.3, 2.0, 8), label=mode, rounding_mode=mode)
    for mode in ("floor", "trunc")
)  # fmt: skip
_DIVISION = "IEEE 754; by a number also as a product with its rounded reciprocal"


def _is_rounded(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    del args
    return kwargs.get("rounding_mode") is not None


_DIVISOR = Poles(argument=1, at_zero=True, may_overflow=True)

DIVISION: tuple[Op, ...] = (
    Op(
        name="div",
        kind=Kind.ELEMENTWISE,
        rounding=_div_rounding,
        spread=_div_spread,
        second_order=_div_second_order,
        tangent=_div_tangent,
        doubt=_div_doubt,
        kinks=Kinks(
            Where.WHOLE,
            "none; with a rounding mode, where the quotient is a whole number",
            inputs=(0, 1),
            jumps=True,
            occurs=_is_rounded,
        ),
        domain="divisor not 0",
        source=_DIVISION,
        traits=Traits(poles=_DIVISOR),
        multiplicity=lambda call: repeats(call, (0, 1), (1, 1)),
        examples=(*_DIVISORS, *_WHOLE),
    ),
    Op(
        name="floor_divide",
        kind=Kind.ELEMENTWISE,
        rounding=_div_rounding,
        spread=_div_spread,
        second_order=None,
        tangent=_div_tangent,
        doubt=_div_doubt,
        kinks=Kinks(Where.WHOLE, "where the quotient is a whole number", inputs=(0, 1), jumps=True),
        domain="divisor not 0",
        source="IEEE 754; fmod is exact (C11, F.10.7.1)",
        traits=Traits(poles=_DIVISOR),
        examples=(
            example(given(7.0, -7.0, 6.0, 0.3, -0.0), given(2.0, 2.0, 3.0, 0.1, 5.0)),
            example(normal(8, scale=5.0), uniform(0.3, 2.0, 8)),
            example(whole(7, -9, 0), whole(2, 4, 3), label="integers only"),
        ),
    ),
)
