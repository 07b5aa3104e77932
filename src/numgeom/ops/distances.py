"""How far can the distances between two sets of points move and round?

y_ij = |a_i - b_j|_p. The norm of a difference moves by at most the norms of the errors. Its
rounding is relative, unless torch takes the products way, sqrt(|a|^2 + |b|^2 - 2 a b) for many
points: then y^2 is off by E = gamma_{2k+10} (|a| + |b|)^2, and y by the lesser of sqrt(E) and E/y.

The derivative for p = 2, sum_j g_ij (a_i - b_j) / y_ij, takes y as an input of its own, with an
error of its own; where y = 0 the term is 0.

Multiplicity. A pair of errors of the same point takes part in as many distances as there are points
on the other side; in the derivative a pair of errors of g_ij and y_ij in k coordinates. By the
argument of `bilinear` the multiplicity is the square root of that number.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.lower_bounds import mul_down, sub_down
from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    cover_roundings,
    div_up,
    gamma_up,
    mul_up,
    norm_up,
    sqrt_up,
    sum_up,
)
from numgeom.ops.balls import filled, unknown_unless_finite
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import Maker, example, normal
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.tangents import Key, Moved, NoTangentRuleError, Pushed, Stack, require_known
from numgeom.ops.vector_norms import norm_remainder

_MANY_POINTS = 25  # aten/src/ATen/native/Distance.cpp: beyond it p = 2 takes the products way


def _takes_products(call: Evaluation) -> bool:
    mode = call.arg(3, "compute_mode", None) or 0
    many = max(call.args[0].shape[-2], call.args[1].shape[-2]) > _MANY_POINTS
    return call.args[2] == 2 and (mode == 1 or (mode == 0 and many))


def _lengths(call: Evaluation) -> Tensor:
    """Upper bound of |a_i| + |b_j| in the 2-norm."""
    a, b = norm_up(call.args[0], -1), norm_up(call.args[1], -1)
    return add_up(a.unsqueeze(-1), b.unsqueeze(-2))


def _rounding(call: Evaluation) -> Bound:
    p, k = float(call.args[2]), call.args[0].shape[-1]
    if p not in (1.0, 2.0, math.inf):
        return torch.full_like(call.y, math.inf)
    bound = mul_up(cover_roundings(call.y, k + 6), gamma_up(k + 6, UNIT_ROUNDOFF))
    if p == 2.0:  # squares that underflow
        bound = add_up(bound, sqrt_up((k + 1) * TINY))
    if _takes_products(call):
        size = _lengths(call)
        off = mul_up(mul_up(size, size), gamma_up(2 * k + 10, UNIT_ROUNDOFF))
        off = add_up(off, (4 * k + 8) * TINY)
        near = add_up(sqrt_up(off), mul_up(call.y, 2.0 * UNIT_ROUNDOFF))
        # y^2 - d^2 = (y - d) (y + d), and y + d >= y.
        low = mul_down(call.y, 1.0 - 4.0 * UNIT_ROUNDOFF)
        far = add_up(div_up(off, low), mul_up(call.y, 2.0 * UNIT_ROUNDOFF))
        bound = torch.minimum(near, far)
    return unknown_unless_finite(bound, call.y)


def _spread(call: Evaluation) -> Bound:
    if call.radius(0) is None and call.radius(1) is None:
        return None
    p = float(call.args[2])
    a, b = (filled(call.radius(i), call.args[i]) for i in (0, 1))
    if p == 2.0:
        sizes = norm_up(a, -1), norm_up(b, -1)
    elif p == 1.0:
        sizes = sum_up(a, -1), sum_up(b, -1)
    elif p == math.inf:
        sizes = a.amax(-1), b.amax(-1)
    else:
        return torch.full_like(call.y, math.inf)
    return add_up(sizes[0].unsqueeze(-1), sizes[1].unsqueeze(-2)).expand(call.y.shape)


def _second_order(call: Evaluation) -> Bound:
    move = _spread(call)
    if move is None or call.args[2] in (1.0, math.inf):
        return None
    bound = _rounding(call)
    assert bound is not None
    return norm_remainder(move, sub_down(call.y, bound).clamp_min(0.0))


def _doubt(call: Evaluation) -> Tensor | None:
    """Whether two points may coincide (p = 2), or a coordinate may, or the largest may change."""
    move = _spread(call)
    if move is None:
        return None
    if call.args[2] != 2.0:
        return move > 0
    bound = _rounding(call)
    assert bound is not None
    return (move > 0) & ~(sub_down(call.y, bound) > move)


def _tangent(call: Evaluation, moved: Moved) -> Pushed:
    """t_ij = sum over k of w_ijk (t_a - t_b), with w = (a - b) / y for p = 2, y as computed.

    For p = 1 the weights are signs, for the largest coordinate all but one are 0.
    """
    require_known(call, moved, 0, 1)
    a, b, y, k = call.args[0], call.args[1], call.y, call.args[0].shape[-1]
    p = float(call.args[2])
    if p not in (1.0, 2.0, math.inf):
        raise NoTangentRuleError(f"_cdist_forward has no tangent rule for p = {p}.")
    weights = a.unsqueeze(-2) - b.unsqueeze(-3)
    if p == math.inf:
        place = torch.argmax(weights.abs(), -1, keepdim=True)
        weights = torch.zeros_like(weights).scatter(-1, place, torch.sign(weights))
    elif p == 1.0:
        weights = torch.sign(weights)
    da, db = moved.get(0), moved.get(1)
    apart = y > 0 if p == 2.0 else torch.ones_like(y, dtype=torch.bool)
    divisor = torch.where(apart, y, 1.0) if p == 2.0 else torch.ones_like(y)

    def change(read: Callable[[Stack], Tensor], sign: float) -> Tensor:
        left = None if da is None else read(da).unsqueeze(-2)
        right = None if db is None else read(db).unsqueeze(-3)
        if left is None or right is None:
            assert left is not None or right is not None
            return left if left is not None else right * sign  # type: ignore[operator]  # one is
        return left + right * sign

    total = (weights * change(lambda stack: stack.lanes, -1.0)).sum(-1)
    lanes = torch.where(apart, total / divisor, 0.0)

    def rounding(size: Tensor) -> Tensor:
        sizes = change(lambda stack: stack.size, 1.0)
        terms = cover_roundings((weights.abs() * sizes).sum(-1), k + 4)
        own = add_up(mul_up(terms, gamma_up(k + 6, UNIT_ROUNDOFF)), (k + 2) * TINY)
        if p == 2.0:
            off = _rounding(call)
            assert off is not None
            least = sub_down(divisor, off).clamp_min(0.0)
            own = add_up(div_up(own, least), mul_up(size, div_up(off, least)))
            own = torch.where(apart, add_up(own, TINY), math.inf)
        return torch.where((sizes > 0).any(-1), own, 0.0)

    return Pushed(lanes, rounding, fresh=True)


def _multiplicity(call: Evaluation) -> float:
    return math.sqrt(max(call.args[0].shape[-2], call.args[1].shape[-2])) + 1e-9


# -- derivative --------------------------------------------------------------------------


class _Terms:
    """The terms g_ij (a_i - b_j)_k / y_ij of the derivative for p = 2, with radii."""

    def __init__(self, call: Evaluation) -> None:
        g, a, b, _, d = call.args[:5]
        self.g = g.unsqueeze(-1)
        self.d = d.abs().unsqueeze(-1)
        difference = a.unsqueeze(-2) - b.unsqueeze(-3)
        self.size = mul_up(difference.abs(), 1.0 + 2.0 * UNIT_ROUNDOFF)
        self.r_g = filled(call.radius(0), g).unsqueeze(-1)
        self.r_d = filled(call.radius(4), d).unsqueeze(-1)
        r_a, r_b = filled(call.radius(1), a), filled(call.radius(2), b)
        self.r_difference = add_up(r_a.unsqueeze(-2), r_b.unsqueeze(-3))
        self.zero = (self.d == 0) & (self.r_d == 0)
        self.quotient = self._where_apart(div_up(self.size, self.d))
        moved = add_up(self.r_difference, self._times_radius(self.quotient))
        self.r_quotient = self._where_apart(
            div_up(moved, sub_down(self.d, self.r_d).clamp_min(0.0))
        )
        self.r_quotient = torch.where(moved == 0, 0.0, self.r_quotient)

    def _times_radius(self, quotient: Tensor) -> Tensor:
        return torch.where(self.r_d == 0, 0.0, mul_up(quotient, self.r_d))

    def _where_apart(self, bound: Tensor) -> Tensor:
        """Where the points coincide, and are known to, the term is 0."""
        return torch.where(self.zero, 0.0, bound)

    def spread(self) -> Tensor:
        moved = add_up(
            mul_up(self.g.abs(), self.r_quotient),
            torch.where(
                self.r_g == 0, 0.0, mul_up(self.r_g, add_up(self.quotient, self.r_quotient))
            ),
        )
        return sum_up(self._where_apart(moved), -2)

    def second_order(self) -> Tensor:
        """e_g times the change of the quotient, and g times e_d / d of it."""
        share = torch.where(self.r_d == 0, 0.0, div_up(self.r_d, self.d))
        own = mul_up(self.g.abs(), mul_up(share, self.r_quotient))
        return sum_up(self._where_apart(add_up(own, mul_up(self.r_g, self.r_quotient))), -2)

    def rounding(self) -> Tensor:
        """Three roundings and two underflows per term, of which one is divided by y."""
        terms = mul_up(self.g.abs(), self.quotient)
        bound = mul_up(sum_up(terms, -2), gamma_up(self.g.shape[-2] + 5, UNIT_ROUNDOFF))
        lost = add_up(div_up(torch.full_like(self.d, TINY), self.d), TINY)
        lost = torch.where((terms > 0) | ~torch.isfinite(terms), lost, 0.0)
        return add_up(bound, sum_up(self._where_apart(lost), -2))


def _has_rule(call: Evaluation) -> bool:
    return float(call.args[3]) == 2.0


def _backward_rounding(call: Evaluation) -> Bound:
    if not _has_rule(call):
        return torch.full_like(call.y, math.inf)
    return unknown_unless_finite(_Terms(call).rounding().reshape(call.y.shape), call.y)


def _backward_spread(call: Evaluation) -> Bound:
    if all(call.radius(i) is None for i in (0, 1, 2, 4)):
        return None
    if not _has_rule(call):
        return torch.full_like(call.y, math.inf)
    return _Terms(call).spread().reshape(call.y.shape)


def _backward_second_order(call: Evaluation) -> Bound:
    if all(call.radius(i) is None for i in (0, 1, 2, 4)):
        return None
    if not _has_rule(call):
        return torch.full_like(call.y, math.inf)
    return _Terms(call).second_order().reshape(call.y.shape)


def _backward_tangent(call: Evaluation, moved: Moved) -> Pushed:
    """Sum over j of t_g q + g (t_a - t_b - q t_y) / y, with q = (a - b) / y; 0 where y is."""
    require_known(call, moved, 0, 1, 2, 4)
    if not _has_rule(call):
        raise NoTangentRuleError("_cdist_backward has a tangent rule for p = 2 alone.")
    g, a, b, _, d = call.args[:5]
    apart = (d != 0).unsqueeze(-1)
    inverse = torch.where(apart, 1.0 / d.unsqueeze(-1), 0.0)
    quotient = (a.unsqueeze(-2) - b.unsqueeze(-3)) * inverse
    weight = g.unsqueeze(-1) * inverse
    places: dict[Key, int] = {0: -1, 1: -2, 2: -3, 4: -1}
    factors: dict[Key, Tensor] = {0: quotient, 1: weight, 2: -weight, 4: -(weight * quotient)}

    def total(read: Callable[[Stack], Tensor], *, sizes: bool) -> Tensor:
        found: Tensor | None = None
        for key, stack in moved.items():
            factor = factors[key].abs() if sizes else factors[key]
            term = read(stack).unsqueeze(places[key]) * factor
            found = term if found is None else found + term
        assert found is not None
        return found.sum(-2)

    lanes = total(lambda stack: stack.lanes, sizes=False)

    def rounding(size: Tensor) -> Tensor:
        del size
        terms = cover_roundings(total(lambda stack: stack.size, sizes=True), g.shape[-1] + 16)
        # 1 / y, two products for each factor, and the difference a - b; the sum.
        bound = mul_up(terms, gamma_up(g.shape[-1] + 16, UNIT_ROUNDOFF))
        largest = max(float(t.abs().amax()) if t.numel() else 0.0 for t in (inverse, weight))
        spread = sum(float(s.size.sum()) for s in moved.values())
        lost = 64.0 * TINY * g.shape[-1] * (1.0 + largest) * (1.0 + largest) * (1.0 + spread)
        moves = any(bool(s.size.any()) for s in moved.values())
        return add_up(bound, lost if moves else 0.0)

    return Pushed(
        lanes.reshape(-1, *call.y.shape),
        lambda size: rounding(size).reshape(call.y.shape),
        fresh=True,
    )


def _backward_doubt(call: Evaluation) -> Tensor | None:
    """Where a distance may be 0, the derivative jumps."""
    d, r = call.args[4].abs(), call.radius(4)
    if r is None:
        return None
    touches = ((r > 0) & ~(d > r)).any(-1, keepdim=True)
    return touches.expand(call.y.shape)


def _backward_example(*, coincide: bool) -> Example:
    def make(g: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        a, b = normal(3, 4)(g), normal(2, 4)(g)
        if coincide:
            b[0] = a[0]
        return (normal(3, 2)(g), a, b, 2.0, torch.cdist(a, b)), {}

    return Example(make, "one pair coincides" if coincide else "")


def _about(centre: float, *shape: int) -> Maker:
    return lambda g: normal(*shape, scale=1e-3)(g) + centre


_COINCIDE = Kinks(Where.TIP, "points that coincide", inputs=(0, 1))

DISTANCES: tuple[Op, ...] = (
    Op(
        name="_cdist_forward",
        kind=Kind.CONTRACTION,
        rounding=_rounding,
        spread=_spread,
        second_order=_second_order,
        tangent=_tangent,
        multiplicity=_multiplicity,
        doubt=_doubt,
        kinks=_COINCIDE,
        source="sum of n terms in any order (Higham 2002, sec. 3.1)",
        examples=(
            example(normal(3, 4), normal(2, 4), 2.0, None),
            example(normal(3, 4), normal(2, 4), 1.0, None),
            example(normal(3, 4), normal(2, 4), math.inf, None),
            example(normal(3, 4), normal(2, 4), 2.0, 1),
            example(normal(1, 3), normal(30, 3), 2.0, 0),
            # Far from the origin: products cancel.
            example(_about(1e4, 2, 3), _about(1e4, 2, 3), 2.0, 1),
        ),
    ),
    Op(
        name="_cdist_backward",
        kind=Kind.CONTRACTION,
        rounding=_backward_rounding,
        spread=_backward_spread,
        second_order=_backward_second_order,
        tangent=_backward_tangent,
        multiplicity=lambda call: math.sqrt(call.y.shape[-1]) + 1e-9,
        doubt=_backward_doubt,
        kinks=replace(_COINCIDE, inputs=(4,), jumps=True),
        source="sum of n terms in any order (Higham 2002, sec. 3.1)",
        examples=(_backward_example(coincide=False), _backward_example(coincide=True)),
    ),
)
