"""How far do sums and products, entry by entry, carry an error?

IEEE 754: both are correctly rounded, |fl(y) - y| <= u |fl(y)|; products that underflow are off by
half the smallest subnormal number at most.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    all_finite,
    cover_roundings,
    mul_up,
)
from numgeom.ops.elementwise import (
    IEEE,
    Operand,
    doubt_of_integers,
    either,
    finish_rounding,
    finish_spread,
    is_decision,
    operand,
    total,
)
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import (
    NASTY,
    binary_examples,
    example,
    given,
    mask,
    normal,
    scalar,
    unary_examples,
    whole,
)
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import Key, Slope, elementwise_tangent, finite_slope
from numgeom.ops.traits import Moves, Places, Product, Traits

SMALLEST_NORMAL = 2.0**-1022


def correctly_rounded(y: Tensor) -> Tensor:
    """Bound of |fl(y) - y| for the computed y of a sum: u |fl(y)|.

    The error is at most half the spacing 2^e-52 at y, a float64 number for every sum that is
    rounded at all. The product with u is exact or rounded to nearest, so it does not fall below it.
    """
    return y.abs() * UNIT_ROUNDOFF


def correctly_rounded_product(y: Tensor) -> Tensor:
    """Bound of |fl(y) - y| for the computed y of a product or quotient, which may underflow."""
    return y.abs() * UNIT_ROUNDOFF + TINY


def is_power_of_two(x: Tensor) -> Tensor:
    """Where multiplying by x is exact as long as the result is a normal number."""
    return torch.frexp(x).mantissa.abs() == 0.5


# ------------------------------------------------------------------------------ sums and negation


def _terms(call: Evaluation) -> tuple[Operand, Operand, float, float]:
    """Both terms of a sum with their factors: f = p a + q b."""
    a, b = operand(call, 0, "self"), operand(call, 1, "other")
    alpha = float(call.arg(2, "alpha", 1))
    factors = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}
    p, q = factors[call.name]
    return a, b, p, q


def _sum_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    a, b, p, q = _terms(call)
    # A term that is zero leaves the other one as it is.
    bound = correctly_rounded(call.y)
    if not (_has_no_zero(a.x) and _has_no_zero(b.x)):
        bound = torch.where((a.x == 0) | (b.x == 0), 0.0, bound)
    for x, factor in ((a.x, p), (b.x, q)):
        if abs(factor) != 1.0:  # a product that is rounded, or not, before it is added
            product = mul_up(mul_up(x.abs(), abs(factor)), UNIT_ROUNDOFF)
            bound = total(correctly_rounded(call.y), product, either(x == 0, 0.0, TINY))
    return finish_rounding(call, bound, (a, b))


def _sum_slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    del moving
    _, _, p, q = _terms(call)
    return {key: Slope(f, plain=abs(f) == 1.0) for key, f in ((0, p), (1, q), ("other", q))}


def _has_no_zero(x: Tensor) -> bool:
    return x.numel() > 0 and bool(x.abs().amin() > 0)


def _sum_spread(call: Evaluation) -> Bound:
    a, b, p, q = _terms(call)
    if is_decision(call.y) or (a.r is None and b.r is None):
        return None
    bound = add_up(_scaled(a.radius(), p), _scaled(b.radius(), q))
    if not all_finite(call.y):
        infinite = torch.isinf(call.y)
        kept = infinite & (torch.isinf(a.x) | torch.isinf(b.x))
        bound = torch.where(kept, 0.0, bound)
    return finish_spread(call, bound, (a, b))


def _scaled(r: Tensor, factor: float) -> Tensor:
    return r if abs(factor) == 1.0 else mul_up(r, abs(factor))


def _negation_spread(call: Evaluation) -> Bound:
    return None if is_decision(call.y) else call.radius(0)


# --------------------------------------------------------------------------------------- products


def product_spread(a: Operand, b: Operand) -> Tensor:
    """Bound of |(a + e)(b + d) - a b|: |a| r_b + r_a (|b| + r_b); 0 where all terms are."""
    if a.r is None and b.r is None:
        return torch.zeros((), dtype=torch.float64)
    if a.r is None or b.r is None:
        steady, moved = (a, b) if a.r is None else (b, a)
        size, r = steady.x.abs(), moved.radius()
        bound = _cover(size * r)
        return _mend(bound, lambda: (size == 0) | (r == 0))
    left, right = a.x.abs(), b.x.abs()
    ra, rb = a.r, b.r
    bound = _cover(left * rb + ra * (right + rb))
    return _mend(bound, lambda: ((left == 0) | (rb == 0)) & ((ra == 0) | ((right + rb) == 0)))


def product_remainder(a: Operand, b: Operand) -> Tensor:
    """Bound of |e d|: r_a r_b, 0 where one of them is 0."""
    if a.r is None or b.r is None:
        return torch.zeros((), dtype=torch.float64)
    ra, rb = a.r, b.r
    return _mend(_cover(ra * rb), lambda: (ra == 0) | (rb == 0))


def _cover(value: Tensor) -> Tensor:
    """Upper bound of a nonnegative expression of at most four operations; NaN becomes infinity.

    Each operation lost at most a factor 1 - u, and the products, two at most, TINY/2 each.
    """
    return cover_roundings(value, 6) + 2.0 * TINY


def _mend(bound: Tensor, is_zero: Callable[[], Tensor]) -> Tensor:
    """Exactly 0 where the bound is known to be; looked up only if it is that small somewhere."""
    if bound.numel() and bool(bound.amin() > 2.0 * TINY):
        return bound
    small = bound <= 2.0 * TINY
    return torch.where(small & is_zero(), 0.0, bound) if bool(small.any()) else bound


def _finish_product(call: Evaluation, bound: Tensor, a: Operand, b: Operand) -> Tensor:
    if not all_finite(call.y):
        infinite = torch.isinf(call.y)
        # An infinite factor wins over one that cannot vanish or change its sign.
        steady = (a.x.abs() > a.radius()) & (b.x.abs() > b.radius())
        kept = infinite & steady & (torch.isinf(a.x) | torch.isinf(b.x))
        bound = torch.where(kept, 0.0, bound)
    return finish_spread(call, bound, (a, b))


def _mul_rounding(call: Evaluation) -> Bound:
    if is_decision(call.y):
        return None
    a, b = operand(call, 0), operand(call, 1, "other")
    bound = correctly_rounded_product(call.y)
    nowhere_zero = bound.numel() > 0 and bool(bound.amin() > 2.0 * TINY)
    if a.is_single() or b.is_single():
        shifted = (is_power_of_two(a.x) | is_power_of_two(b.x)) & (call.y.abs() >= SMALLEST_NORMAL)
        one = (a.x.abs() == 1) | (b.x.abs() == 1)
        bound = torch.where(shifted | one, 0.0, bound)
    zero = None if nowhere_zero else call.y == 0
    if zero is not None and bool(zero.any()):
        bound = torch.where(zero & ((a.x == 0) | (b.x == 0)), 0.0, bound)
    return finish_rounding(call, bound, (a, b))


def product_slopes(call: Evaluation, moving: frozenset[Key]) -> dict[Key, Slope]:
    """Each factor is the slope along the other one."""
    del moving
    a, b = operand(call, 0), operand(call, 1, "other")
    along_a, along_b = finite_slope(b.x), finite_slope(a.x)
    return {0: along_a, 1: along_b, "other": along_b}


def _mul_spread(call: Evaluation) -> Bound:
    a, b = operand(call, 0), operand(call, 1, "other")
    if is_decision(call.y) or (a.r is None and b.r is None):
        return None
    return _finish_product(call, product_spread(a, b), a, b)


def _mul_second_order(call: Evaluation) -> Bound:
    a, b = operand(call, 0), operand(call, 1, "other")
    if is_decision(call.y) or a.r is None or b.r is None:
        return None
    return _finish_product(call, product_remainder(a, b), a, b)


# ------------------------------------------------------------------------------------ the entries


_INFINITE = (
    example(given(-math.inf, math.inf, 2.0, -math.inf), given(3.0, -1.0, 1.0, -5.0)),
    example(given(1e308, 1e-308, 1.5), given(1e308, 1e-308, 1.5), label="overflow"),
)
_SUMS = (
    *binary_examples(),
    *_INFINITE,
    example(normal(6), normal(6), label="alpha", alpha=-2.5),
    example(normal(3), 0.3, label="number"),
    example(normal(3), whole(3, -2, 0), label="integers"),
    example(whole(3, -2, 0), whole(1, 2, 3), label="integers only"),
)


def _sum(name: str) -> Op:
    return Op(
        name=name,
        kind=Kind.ELEMENTWISE,
        rounding=_sum_rounding,
        spread=_sum_spread,
        second_order=None,
        tangent=elementwise_tangent(_sum_slopes),
        doubt=doubt_of_integers,
        kinks=NO_KINKS,
        source=IEEE,
        examples=_SUMS,
        traits=Traits(adds=True, linear=(0, 1)),
    )


MULTIPLICATION = Op(
    name="mul",
    kind=Kind.ELEMENTWISE,
    rounding=_mul_rounding,
    spread=_mul_spread,
    second_order=_mul_second_order,
    tangent=elementwise_tangent(product_slopes),
    doubt=doubt_of_integers,
    kinks=NO_KINKS,
    source=IEEE,
    traits=Traits(product=Product()),
    examples=(
        *binary_examples(),
        *_INFINITE,
        example(normal(6), 0.3, label="number"),
        example(normal(6), scalar(-0.125), label="power of two"),
        example(normal(4), mask(True, False, True, True), label="mask"),
        example(normal(3), given(0.0, 1.0, -1.0), label="zero and one"),
        example(whole(3, -2, 0), whole(1, 2, 3), label="integers only"),
    ),
)

ARITHMETIC: tuple[Op, ...] = (
    _sum("add"),
    _sum("sub"),
    _sum("rsub"),
    Op(
        name="neg",
        kind=Kind.EXACT,
        rounding=None,
        spread=_negation_spread,
        second_order=None,
        tangent=elementwise_tangent(lambda call, moving: {0: Slope(-1.0, plain=True)}),
        doubt=doubt_of_integers,
        kinks=NO_KINKS,
        source="IEEE 754: changes the sign bit",
        traits=Traits(moves=Moves(Places.ONCE, in_order=True, signed=True), entrywise=True),
        examples=(*unary_examples(-2.0, 2.0, NASTY), example(whole(3, 0, -1))),
    ),
    MULTIPLICATION,
)
