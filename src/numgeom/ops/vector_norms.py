"""How far can the norm of a vector move and round?

A norm of x moves by at most the norm of the error. The 2-norm rounds as the sum of squares does,
whose relative error the root halves. Its second-order remainder is infinite about 0, where it has
a tip.
"""

import math

import torch
from torch import Tensor

from numgeom.arithmetic.lower_bounds import sub_down
from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    div_up,
    gamma_up,
    mul_up,
    norm_up,
    sqrt_up,
    sum_up,
)
from numgeom.ops.balls import unknown_unless_finite
from numgeom.ops.drawing import wild
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kernel_errors import THREE_STEPS
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.reduction import count_of, reduced_dims, tiny_where
from numgeom.ops.tangents import Moved, NoTangentRuleError, Pushed, require_known
from numgeom.ops.traits import Autocast, Poles, Traits


def norm_remainder(move: Tensor, size: Tensor) -> Tensor:
    """Second-order remainder of a norm: at most |e|^2 / (2 (|x| - |e|)); infinite about 0.

    With t the part of e along x and p across: |x + e| = sqrt((|x| + t)^2 + p^2), and
    sqrt(a^2 + p^2) - a <= p^2 / (2 a) for a = |x| + t >= |x| - |e|.

    Args:
        move: Upper bound of |e|.
        size: Lower bound of |x|.
    """
    rest = sub_down(size, move)
    near = div_up(mul_up(move, move), torch.where(rest > 0, 2.0 * rest, 0.0))
    return torch.where(move == 0, 0.0, near)


def _order(call: Evaluation) -> float:
    given = call.arg(1, "ord", 2)
    return 2.0 if given is None else float(given)


def _norm_layout(call: Evaluation) -> tuple[tuple[int, ...], bool]:
    return reduced_dims(call, 2)


def _norm_rounding(call: Evaluation) -> Bound:
    x, order = call.args[0], _order(call)
    dims, keepdim = _norm_layout(call)
    n = count_of(x, dims)
    if order in (math.inf, -math.inf, 0.0):
        bound = torch.zeros_like(call.y)
    elif order == 1.0:
        size = sum_up(x.abs(), dims, keepdim=keepdim)
        bound = mul_up(size, gamma_up(n, UNIT_ROUNDOFF))
    elif order == 2.0:
        # The root halves the relative error of the sum of squares; n + 2 roundings in all.
        size = norm_up(x, dims, keepdim=keepdim)
        bound = mul_up(size, gamma_up(n + 2, UNIT_ROUNDOFF))
        if bool(((x != 0) & (x.abs() < 2.0**-510)).any()):  # squares that underflow
            bound = add_up(bound, sqrt_up(n * TINY))
    else:
        return torch.full_like(call.y, math.inf)
    return unknown_unless_finite(bound, call.y)


def _norm_spread(call: Evaluation) -> Bound:
    r, order = call.radius(0), _order(call)
    if r is None:
        return None
    dims, keepdim = _norm_layout(call)
    if order == 2.0:
        return norm_up(r, dims, keepdim=keepdim)
    if order == 1.0:
        return sum_up(r, dims, keepdim=keepdim)
    if order in (math.inf, -math.inf):
        return torch.amax(r, dims, keepdim=keepdim) if dims else r
    if order == 0.0:  # the number of entries that are not zero
        open_entries = (r > 0) & ~(call.args[0].abs() > r)
        return torch.sum(open_entries, dims or None, keepdim=keepdim).to(torch.float64)
    return torch.full_like(call.y, math.inf)


def _norm_second_order(call: Evaluation) -> Bound:
    r, order = call.radius(0), _order(call)
    if r is None or order in (1.0, math.inf, -math.inf, 0.0):
        return None
    if order != 2.0:
        return torch.full_like(call.y, math.inf)
    dims, keepdim = _norm_layout(call)
    size = norm_up(call.args[0], dims, keepdim=keepdim)
    # norm_up exceeds the norm by at most n + 5 roundings.
    low = torch.clamp_min(size * (1.0 - 2.0 * gamma_up(count_of(r, dims) + 8, UNIT_ROUNDOFF)), 0.0)
    return norm_remainder(norm_up(r, dims, keepdim=keepdim), low)


def _norm_tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    """For the 2-norm sum x t / y, y as computed; for the 1-norm signs; for others one entry."""
    require_known(call, moved, 0)
    x, order, stack = call.args[0], _order(call), moved[0]
    dims, keepdim = _norm_layout(call)
    inner = [d + 1 for d in dims]
    n = count_of(x, dims)
    if order == 0.0:
        return None
    if order in (math.inf, -math.inf):
        kept = [d for d in range(x.dim()) if d not in dims]
        rows = x.permute(*kept, *dims).reshape(*(x.shape[d] for d in kept), -1)
        place = (torch.argmax if order > 0 else torch.argmin)(rows.abs(), -1, keepdim=True)
        lines = stack.lanes.permute(0, *(d + 1 for d in (*kept, *dims)))
        lines = lines.reshape(len(lines), *rows.shape) * torch.sign(rows)
        chosen = torch.gather(lines, -1, place.expand(len(lines), *place.shape))
        return Pushed(chosen.reshape(-1, *call.y.shape), fresh=True)
    if order not in (1.0, 2.0):
        raise NoTangentRuleError(f"{call.name} has no tangent rule for the order {order}.")
    weights = torch.sign(x) if order == 1.0 else x
    products = stack.lanes * weights
    total = products.sum(inner, keepdim=keepdim) if inner else products
    zero = call.y == 0
    divisor = torch.ones_like(call.y) if order == 1.0 else torch.where(zero, 1.0, call.y)
    lanes = total if order == 1.0 else torch.where(zero, 0.0, total / divisor)

    def rounding(size: Tensor) -> Tensor:
        terms = sum_up(mul_up(weights.abs(), stack.size), dims, keepdim=keepdim)
        bound = mul_up(terms, gamma_up(n + 2, UNIT_ROUNDOFF))
        if order == 1.0:
            return bound
        bound = add_up(bound, tiny_where(terms > 0, n + 1))
        own = _norm_rounding(call)
        assert own is not None
        least = sub_down(divisor, own).clamp_min(0.0)
        found = add_up(div_up(bound, least), mul_up(size, div_up(own, least)))
        found = add_up(add_up(found, mul_up(size, 2.0 * UNIT_ROUNDOFF)), TINY)
        moves = sum_up(stack.size, dims, keepdim=keepdim) > 0
        return torch.where(moves, torch.where(zero, math.inf, found), 0.0)

    return Pushed(lanes, rounding, fresh=True)


def _norm_doubt(call: Evaluation) -> Tensor | None:
    """Where a kink may be crossed: the origin for the 2-norm, a sign or a rival for others."""
    x, r, order = call.args[0], call.radius(0), _order(call)
    if r is None:
        return None
    dims, keepdim = _norm_layout(call)
    if order == 2.0:
        low = torch.linalg.vector_norm(x, 2, dims or None, keepdim=keepdim) * (1 - 2.0**-20)
        return (norm_up(r, dims, keepdim=keepdim) >= low) & (_most(r, dims, keepdim) > 0)
    if order in (1.0, 0.0):
        return _most(((r > 0) & ~(x.abs() > r)).to(r), dims, keepdim) > 0
    return _most(r, dims, keepdim) > 0


def _most(r: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return torch.amax(r, dims, keepdim=keepdim) if dims and r.numel() else r


VECTOR_NORMS: tuple[Op, ...] = (
    Op(
        name="linalg_vector_norm",
        kind=Kind.REDUCTION,
        rounding=_norm_rounding,
        spread=_norm_spread,
        second_order=_norm_second_order,
        tangent=_norm_tangent,
        doubt=_norm_doubt,
        kinks=Kinks(
            Where.TIP,
            "x = 0 for the 2-norm, an entry of 0 for the 1-norm, ties for the largest entry",
        ),
        traits=Traits(
            poles=Poles(of_value=False, at_zero=True, entrywise=False),
            autocast=Autocast.WIDE_ON_CUDA,
            kernel=THREE_STEPS,
        ),
        source="sum of n squares in any order, and a root (Higham 2002, sec. 3.1)",
        examples=(
            example(normal(3, 5), 2, [1]),
            example(normal(300), 2),
            example(wild(4, 6), 2, [0], True),
            example(normal(7, scale=1e-163), 2),
            example(wild(4, 6), 1, [1]),
            example(normal(3, 4), math.inf, [1]),
            example(normal(3, 4), -math.inf),
        ),
    ),
)
