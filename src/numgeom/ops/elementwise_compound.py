"""How far do sums of a number and a product, a quotient or a share of a difference go wrong?

Each op rounds several times; the bounds hold for every order of evaluation, with FMA or without.
"""

import math

import torch

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    difference_up,
    div_up,
    gamma_up,
    mul_up,
)
from numgeom.ops.elementwise import (
    Operand,
    doubt_of_integers,
    finish_rounding,
    finish_spread,
    is_decision,
    operand,
    repeats,
    total,
)
from numgeom.ops.elementwise_arithmetic import (
    correctly_rounded,
    product_remainder,
    product_spread,
)
from numgeom.ops.elementwise_division import quotient_remainder, quotient_spread
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, given, normal, scalar, uniform
from numgeom.ops.intervals import Interval, reciprocal
from numgeom.ops.kernel_errors import THREE_STEPS
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import Key, Slope, elementwise_tangent
from numgeom.ops.traits import Traits


def _compound(call: Evaluation) -> tuple[Operand, Operand, Operand, float]:
    s, a, b = operand(call, 0), operand(call, 1, "tensor1"), operand(call, 2, "tensor2")
    return s, a, b, abs(float(call.arg(3, "value", 1)))


def _addcmul_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    s, a, b, value = _compound(call)
    product = mul_up(mul_up(a.x.abs(), b.x.abs()), value)
    # Two roundings, and an underflow that the third factor multiplies.
    factors = add_up(add_up(a.x.abs(), b.x.abs()), value + 1.0)
    lost = torch.where(product > 0, mul_up(factors, TINY), 0.0)
    relative = mul_up(product, gamma_up(2, UNIT_ROUNDOFF))
    return finish_rounding(call, total(correctly_rounded(call.y), relative, lost), (s, a, b))


def _addcmul_spread(call: Evaluation) -> Bound:
    s, a, b, value = _compound(call)
    if is_decision(call.y) or (s.r is None and a.r is None and b.r is None):
        return None
    bound = add_up(s.radius(), mul_up(product_spread(a, b), value))
    return finish_spread(call, bound, (s, a, b))


def _addcmul_second_order(call: Evaluation) -> Bound:
    s, a, b, value = _compound(call)
    if is_decision(call.y) or a.r is None or b.r is None:
        return None
    return finish_spread(call, mul_up(product_remainder(a, b), value), (s, a, b))


def _addcdiv_rounding(call: Evaluation) -> Bound:
    s, a, b, value = _compound(call)
    inverse = div_up(1.0, b.x.abs())
    quotient = mul_up(mul_up(a.x.abs(), inverse), value)
    lost = mul_up(add_up(add_up(inverse, a.x.abs()), value + 1.0), TINY)
    relative = mul_up(quotient, gamma_up(3, UNIT_ROUNDOFF))
    bound = total(correctly_rounded(call.y), relative, torch.where(a.x == 0, 0.0, lost))
    return finish_rounding(call, torch.where(b.x == 0, math.inf, bound), (s, a, b))


def _addcdiv_spread(call: Evaluation) -> Bound:
    s, a, b, value = _compound(call)
    if s.r is None and a.r is None and b.r is None:
        return None
    bound = add_up(s.radius(), mul_up(quotient_spread(a, b), value))
    return finish_spread(call, bound, (s, a, b))


def _addcdiv_second_order(call: Evaluation) -> Bound:
    s, a, b, value = _compound(call)
    if b.r is None:
        return None
    return finish_spread(call, mul_up(quotient_remainder(a, b), value), (s, a, b))


def _lerp_rounding(call: Evaluation) -> Bound:
    # start + w (end - start), or end - (end - start)(1 - w): the difference, 1 - w, the product.
    s, e, w = operand(call, 0), operand(call, 1, "end"), operand(call, 2, "weight")
    apart = difference_up(s.x, e.x)
    weight = torch.maximum(w.x.abs(), difference_up(torch.ones_like(w.x), w.x))
    relative = mul_up(mul_up(apart, weight), gamma_up(3, UNIT_ROUNDOFF))
    bound = total(correctly_rounded(call.y), relative, torch.full_like(apart, 2.0 * TINY))
    return finish_rounding(call, torch.where(torch.isinf(apart), math.inf, bound), (s, e, w))


def _lerp_spread(call: Evaluation) -> Bound:
    s, e, w = operand(call, 0), operand(call, 1, "end"), operand(call, 2, "weight")
    if s.r is None and e.r is None and w.r is None:
        return None
    rest = difference_up(torch.ones_like(w.x), w.x)
    ends = add_up(mul_up(s.radius(), rest), mul_up(e.radius(), w.x.abs()))
    reach = add_up(difference_up(s.x, e.x), add_up(s.radius(), e.radius()))
    mixed = torch.where(w.radius() > 0, mul_up(reach, w.radius()), 0.0)
    return finish_spread(call, add_up(ends, mixed), (s, e, w))


def _lerp_second_order(call: Evaluation) -> Bound:
    s, e, w = operand(call, 0), operand(call, 1, "end"), operand(call, 2, "weight")
    if w.r is None:
        return None
    reach = add_up(s.radius(), e.radius())
    bound = torch.where((w.r > 0) & (reach > 0), mul_up(reach, w.r), 0.0)
    return finish_spread(call, bound, (s, e, w))


def _by_name(first: Slope, second: Slope, third: Slope, *names: str) -> dict[Key, Slope]:
    return {0: first, 1: second, 2: third, names[0]: second, names[1]: third}


def _addcmul_slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    del moving
    _, a, b, _ = _compound(call)
    value = float(call.arg(3, "value", 1))
    along_a, along_b = (Slope.enclosed(Interval.exact(x.x) * value) for x in (b, a))
    return _by_name(Slope(1.0, plain=True), along_a, along_b, "tensor1", "tensor2")


def _addcdiv_slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    del moving
    _, a, b, _ = _compound(call)
    value = float(call.arg(3, "value", 1))
    inverse = reciprocal(Interval.exact(b.x))
    along_a = inverse * value
    along_b = -(Interval.exact(a.x) * inverse * along_a)
    slopes = (Slope.enclosed(along_a), Slope.enclosed(along_b))
    return _by_name(Slope(1.0, plain=True), *slopes, "tensor1", "tensor2")


def _lerp_slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    del moving
    s, e, w = operand(call, 0), operand(call, 1, "end"), operand(call, 2, "weight")
    rest = Slope.enclosed(1.0 - Interval.exact(w.x))
    apart = Slope.enclosed(Interval.exact(e.x) - Interval.exact(s.x))
    return _by_name(rest, Slope(w.x), apart, "end", "weight")


_CANCELLED = given(-0.1 * 0.3, -0.7 * 0.9, -1.3 * 1.7)
_SOURCE = "IEEE 754, running error analysis of every order of evaluation"

COMPOUND: tuple[Op, ...] = (
    Op(
        name="addcmul",
        kind=Kind.ELEMENTWISE,
        rounding=_addcmul_rounding,
        spread=_addcmul_spread,
        second_order=_addcmul_second_order,
        tangent=elementwise_tangent(_addcmul_slopes),
        multiplicity=lambda call: repeats(call, (1, 2)),
        doubt=doubt_of_integers,
        kinks=NO_KINKS,
        traits=Traits(adds=True),
        source=_SOURCE,
        examples=(
            example(normal(12), normal(12), normal(12)),
            example(_CANCELLED, given(0.1, 0.7, 1.3), given(0.3, 0.9, 1.7), label="cancels"),
            example(normal(2, 1), normal(1, 3), normal(3), value=-0.3, label="broadcast"),
            example(given(0.0, 1.0, 1e-300), given(1e-200, 0.0, 1e-300), given(1e-200, 2.0, 1e200)),
            example(normal(0), normal(0), normal(0), label="empty"),
        ),
    ),
    Op(
        name="addcdiv",
        kind=Kind.ELEMENTWISE,
        rounding=_addcdiv_rounding,
        spread=_addcdiv_spread,
        second_order=_addcdiv_second_order,
        tangent=elementwise_tangent(_addcdiv_slopes),
        multiplicity=lambda call: repeats(call, (1, 2), (2, 2)),
        doubt=None,
        kinks=NO_KINKS,
        domain="divisor not 0",
        traits=Traits(kernel=THREE_STEPS),
        source=_SOURCE,
        examples=(
            example(normal(12), normal(12), uniform(0.5, 3.0, 12)),
            example(
                given(-0.1 / 0.3, -0.7 / 0.9), given(0.1, 0.7), given(0.3, 0.9), label="cancels"
            ),
            example(normal(2, 1), normal(1, 3), uniform(-2.0, -1.0, 3), value=-0.01),
            example(given(0.0, 1.0, 1.0), given(1e-200, 0.0, 1.0), given(1e200, 2.0, 0.0)),
            example(normal(0), normal(0), normal(0), label="empty"),
        ),
    ),
    Op(
        name="lerp",
        kind=Kind.ELEMENTWISE,
        rounding=_lerp_rounding,
        spread=_lerp_spread,
        second_order=_lerp_second_order,
        tangent=elementwise_tangent(_lerp_slopes),
        multiplicity=lambda call: repeats(call, (0, 2), (1, 2)),
        doubt=None,
        kinks=NO_KINKS,
        traits=Traits(adds=True, kernel=THREE_STEPS),
        source=_SOURCE,
        examples=(
            example(normal(12), normal(12), uniform(0.0, 1.0, 12)),
            example(given(-0.3, -0.7), given(0.7, 0.3), given(0.3, 0.7), label="cancels"),
            example(normal(2, 3), normal(2, 3), 0.1, label="number"),
            example(normal(2, 1), normal(1, 3), scalar(0.9), label="broadcast"),
            example(given(1.0, 0.0, 1e300), given(1.0, 1e-310, -1e300), given(0.3, 0.5, 2.0)),
            example(normal(0), normal(0), uniform(0.0, 1.0, 0), label="empty"),
        ),
    ),
)
