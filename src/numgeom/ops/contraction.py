"""How far can a matrix product move and round?

Bounds: `bilinear`. Each product a_ik b_kj occurs in one entry, so the multiplicity is 1.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import TINY, UNIT_ROUNDOFF, add_up, gamma_up, mul_up
from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    is_decision,
    radius_of,
    unknown_unless_finite,
)
from numgeom.ops.bilinear import (
    Multiply,
    bilinear_rounding,
    bilinear_second_order,
    bilinear_spread,
    bilinear_up,
    underflow_possible,
)
from numgeom.ops.drawing import integers, swapped, tiny, wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kernel_errors import ADDED_PRODUCT, MATRIX_PRODUCT, SUMMED_PRODUCTS
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangent_products import added_pushed, bilinear_pushed, scaled_pushed
from numgeom.ops.tangents import Moved, Pushed, require_known
from numgeom.ops.traits import Autocast, Product, Traits

_SOURCE = "sum of n products in any order (Higham 2002, sec. 3.1)"


def _decision_doubt(call: Evaluation) -> Any:
    """A product of integers is in doubt as a whole, if an entry of a factor is."""
    if not is_decision(call.y):
        return None
    return doubtful(call) if any(any_doubt(d) for d in call.doubts.values()) else None


def _length(a: Tensor) -> int:
    return a.shape[-1] if a.dim() else 1


def _product(
    name: str, multiply: Multiply, *examples: Example, length: Callable[[Tensor], int] = _length
) -> Op:
    """Describe an op with two factors, whose first one is summed over its last dimension."""

    def rounding(call: Evaluation) -> Bound:
        a, b = call.args[:2]
        if is_decision(call.y):
            return None
        return unknown_unless_finite(bilinear_rounding(multiply, a, b, length(a)), call.y)

    def spread(call: Evaluation) -> Bound:
        a, b = call.args[:2]
        if is_decision(call.y):
            return None
        return bilinear_spread(multiply, a, b, (radius_of(call, 0), radius_of(call, 1)), length(a))

    def second_order(call: Evaluation) -> Bound:
        if is_decision(call.y):
            return None
        radii = (radius_of(call, 0), radius_of(call, 1))
        return bilinear_second_order(multiply, radii, length(call.args[0]))

    def tangent(call: Evaluation, moved: Moved) -> Pushed | None:
        require_known(call, moved, 0, 1)
        if is_decision(call.y):
            return None
        return bilinear_pushed(multiply, call.args[:2], moved, (0, 1), length(call.args[0]))

    return Op(
        name=name,
        kind=Kind.CONTRACTION,
        rounding=rounding,
        spread=spread,
        second_order=second_order,
        tangent=tangent,
        doubt=_decision_doubt,
        kinks=NO_KINKS,
        source=_SOURCE,
        examples=examples,
        traits=Traits(
            product=Product(is_matrix=True),
            adds=True,
            autocast=Autocast.LOW,
            kernel=MATRIX_PRODUCT,
        ),
    )


def _added_product(name: str, multiply: Multiply, *examples: Example, batch: bool = False) -> Op:
    """Describe beta c + alpha a b, for c, a, b at positions 0, 1, 2.

    Roundings: that of a b; then at most four of the product (alpha, which a kernel may apply to
    each factor or to the sum, and the addition) and two of beta c.
    """

    def terms(call: Evaluation) -> int:
        a = call.args[1]
        return _length(a) * (a.shape[0] if batch else 1)

    def scales(call: Evaluation) -> tuple[float, float]:
        return abs(float(call.arg(3, "beta", 1))), abs(float(call.arg(4, "alpha", 1)))

    def added(call: Evaluation, x: Tensor, beta: float) -> Tensor:
        return (mul_up(x, beta) if beta != 1 else x).expand(call.y.shape)

    def rounding(call: Evaluation) -> Bound:
        if is_decision(call.y):
            return None
        c, a, b = call.args[:3]
        beta, alpha = scales(call)
        n = terms(call)
        if alpha not in (0.0, 1.0) and _scaling_underflows(alpha, a, b):
            return torch.full_like(call.y, math.inf)
        size = mul_up(bilinear_up(multiply, a.abs(), b.abs(), n), alpha)
        if beta != 0:  # beta = 0 drops c, even where it is not finite
            size = add_up(size, added(call, c.abs(), beta))
        bound = mul_up(size, gamma_up(n + 6, UNIT_ROUNDOFF))
        # n products, up to n partial sums times alpha, and beta c, each off by TINY / 2.
        lost = mul_up((n + 1) * TINY, max(1.0, alpha)) + (n + 4) * TINY
        return unknown_unless_finite(torch.where(size > 0, add_up(bound, lost), bound), call.y)

    def spread(call: Evaluation) -> Bound:
        if is_decision(call.y):
            return None
        _, a, b = call.args[:3]
        beta, alpha = scales(call)
        radii = (radius_of(call, 1), radius_of(call, 2))
        moved = bilinear_spread(multiply, a, b, radii, terms(call))
        moved = moved if moved is None or alpha == 1 else mul_up(moved, alpha)
        r = radius_of(call, 0) if beta != 0 else None
        if r is None:
            return moved
        own = added(call, r, beta)
        return own if moved is None else add_up(own, moved)

    def second_order(call: Evaluation) -> Bound:
        if is_decision(call.y):
            return None
        found = bilinear_second_order(
            multiply, (radius_of(call, 1), radius_of(call, 2)), terms(call)
        )
        alpha = scales(call)[1]
        return found if found is None or alpha == 1 else mul_up(found, alpha)

    def tangent(call: Evaluation, moved: Moved) -> Pushed | None:
        require_known(call, moved, 0, 1, 2)
        if is_decision(call.y):
            return None
        beta, alpha = float(call.arg(3, "beta", 1)), float(call.arg(4, "alpha", 1))
        parts: list[Pushed] = []
        if 1 in moved or 2 in moved:
            product = bilinear_pushed(multiply, call.args[1:3], moved, (1, 2), terms(call))
            parts.append(scaled_pushed(product, alpha))
        if 0 in moved and beta != 0:
            own = moved[0].beside(call.y)
            own = Pushed(own.expand(len(own), *call.y.shape))
            parts.append(scaled_pushed(own, beta))
        return added_pushed(parts)

    return Op(
        name=name,
        kind=Kind.CONTRACTION,
        rounding=rounding,
        spread=spread,
        second_order=second_order,
        tangent=tangent,
        doubt=_decision_doubt,
        kinks=NO_KINKS,
        source=_SOURCE,
        examples=examples,
        traits=Traits(
            product=Product(1, 2, added=0, is_matrix=not batch),
            adds=True,
            autocast=Autocast.LOW,
            kernel=SUMMED_PRODUCTS if batch else ADDED_PRODUCT,
        ),
    )


def _scaling_underflows(alpha: float, a: Tensor, b: Tensor) -> bool:
    """Whether a kernel that scales a factor by alpha first might lose small entries of it."""
    scale = torch.tensor([alpha], dtype=torch.float64)
    return underflow_possible(a.abs(), scale) or underflow_possible(b.abs(), scale)


def _summed_batches(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b).sum(0)


CONTRACTION: tuple[Op, ...] = (
    _product(
        "mm",
        torch.mm,
        example(normal(3, 5), normal(5, 2)),
        example(wild(4, 6), swapped(wild(6, 3))),
        example(tiny(2, 4), tiny(4, 3)),
        example(normal(2, 0), normal(0, 3)),
        example(normal(1, 1), normal(1, 1)),
        example(normal(2, 300), normal(300, 2)),
        example(integers(-5, 5, 2, 3), integers(-5, 5, 3, 2)),
    ),
    _product(
        "bmm",
        torch.bmm,
        example(normal(2, 3, 5), normal(2, 5, 2)),
        example(wild(2, 2, 4), swapped(wild(2, 4, 3))),
        example(normal(0, 3, 5), normal(0, 5, 2)),
    ),
    _product("mv", torch.mv, example(normal(3, 5), normal(5)), example(wild(2, 40), wild(40))),
    _product("dot", torch.dot, example(normal(7), normal(7)), example(wild(40), wild(40))),
    _product("vdot", torch.dot, example(normal(7), normal(7))),
    _product("matmul", torch.matmul, example(normal(2, 3, 4), normal(4, 2))),
    _added_product(
        "addmm",
        torch.mm,
        example(normal(2), normal(3, 5), normal(5, 2)),
        example(wild(3, 2), wild(3, 5), wild(5, 2), beta=0.3, alpha=-1.7),
        example(normal(3, 2), normal(3, 5), normal(5, 2), beta=0, alpha=2),
    ),
    _added_product(
        "addmv", torch.mv, example(normal(3), normal(3, 5), normal(5), beta=0.5, alpha=3)
    ),
    _added_product(
        "baddbmm",
        torch.bmm,
        example(normal(2, 1, 2), normal(2, 3, 4), normal(2, 4, 2), beta=1, alpha=0.3),
        example(wild(2, 3, 2), wild(2, 3, 4), wild(2, 4, 2)),
    ),
    _added_product(
        "addbmm",
        _summed_batches,
        example(normal(3, 2), normal(2, 3, 4), normal(2, 4, 2)),
        batch=True,
    ),
)
