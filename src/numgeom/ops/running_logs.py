"""How far can the logarithms of running sums of exponentials move and round?

y_k = log(sum over j <= k of exp x_j). Its slopes p_j = exp(x_j - y_k) are weights that add up to 1,
so it moves by sum p_j r_j at most, p_j the largest in the box, and by the largest radius so far.
Along e its second derivative is the variance of e under these weights, at most sum p_j r_j^2, and
at most r^2 for the largest r so far; the remainder is at most half of either.

Rounding is measured, since a kernel may add in several ways: |y - f(x)| <= |y - z| + |z - f(x)|,
with m the largest entry so far and z = m + log(sum exp(x_j - m)) as computed here. Of the latter, a
difference d is off by u |d|, exp and log by their measured accuracies, the sum by gamma_n; the sum
is at least 1 less its error, and log(t (1 + e)) is off by e / (1 - e) at most.

Multiplicity. A pair of errors occurs in all outputs behind it: the square root of the length.
"""

import math

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    difference_up,
    gamma_up,
    mul_up,
    sum_up,
)
from numgeom.ops.balls import lower_end, upper_end
from numgeom.ops.drawing import wild
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, given, normal, uniform
from numgeom.ops.intervals import elementary_error
from numgeom.ops.kinks import NO_KINKS
from numgeom.ops.tangents import Moved, Pushed, require_known

_SMALL = 2.0**-10  # below it exp(d) - 1 <= 1.001 d


def _rows(call: Evaluation, x: Tensor) -> Tensor:
    """Slices along the dimension, as the last one."""
    return x.unsqueeze(-1) if x.dim() == 0 else x.movedim(call.args[1], -1)


def _back(call: Evaluation, rows: Tensor) -> Tensor:
    if call.y.dim() == 0:
        return rows.squeeze(-1)
    return rows.movedim(-1, call.args[1])


def _rounding(call: Evaluation) -> Bound:
    x = call.args[0]
    if x.numel() == 0:
        return None
    rows = _rows(call, x)
    n = rows.shape[-1]
    largest = torch.cummax(rows, -1).values
    shift = torch.where(torch.isinf(largest), 0.0, largest).unsqueeze(-1)
    d = rows.unsqueeze(-2) - shift
    past = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    powers = torch.where(past, torch.exp(d), 0.0)
    total = powers.sum(-1)
    z = torch.log(total) + shift.squeeze(-1)
    off = torch.where(past, _power_error(d, powers), 0.0)
    size = add_up(sum_up(powers, -1), sum_up(off, -1))
    relative = add_up(sum_up(off, -1), mul_up(size, gamma_up(n, UNIT_ROUNDOFF)))
    # The exact sum is at least 1, so errors of the sum are relative ones, up to 1 + them.
    known = relative < 0.5
    error = torch.where(known, mul_up(relative, 2.0), math.inf)
    error = add_up(error, elementary_error("log", torch.log(total), total))
    error = add_up(error, mul_up(z.abs(), 2.0 * UNIT_ROUNDOFF))
    y = _rows(call, call.y)
    found = torch.where(torch.isfinite(y), add_up(difference_up(y, z), error), math.inf)
    nothing = largest == -math.inf  # log 0, exactly
    return _back(call, torch.where(nothing & (y == -math.inf), 0.0, found))


def _power_error(d: Tensor, powers: Tensor) -> Tensor:
    """Upper bound of |computed exp(fl d) - exp(d)|; 0 for d = -inf."""
    moved = mul_up(d.abs(), 2.0 * UNIT_ROUNDOFF)
    near = mul_up(powers, mul_up(moved, 1.01))
    # Where the difference itself is far off, both lie between 0 and the end of its ball.
    far = torch.exp((d + moved).clamp_max(0.0)) * 1.001 + TINY
    slip = torch.where(moved < _SMALL, near, far)
    own = elementary_error("exp", powers, d)
    return torch.where(d == -math.inf, 0.0, add_up(own, slip))


def _largest_so_far(call: Evaluation) -> Tensor | None:
    r = call.radius(0)
    if r is None:
        return None
    if r.numel() == 0:
        return r
    return _back(call, torch.cummax(_rows(call, r), -1).values)


def _weighted(call: Evaluation, values: Tensor) -> Tensor:
    """Upper bound of sum over j <= k of p_j values_j, for the largest p_j in the box."""
    x, r = call.args[0], call.radius(0)
    low = torch.logcumsumexp(lower_end(x, r), call.args[1])
    corner = Evaluation(call.name, (lower_end(x, r), call.args[1]), {}, low)
    error = _rounding(corner)
    assert error is not None
    base = _rows(call, torch.nan_to_num(low, nan=-math.inf) - error)
    reach = _rows(call, upper_end(x, r)).unsqueeze(-2) - base.unsqueeze(-1)
    # The differences are off by 2 u of their terms at most; exp is granted 1/1000.
    reach = reach + (reach.abs() + base.abs().unsqueeze(-1)) * (8.0 * UNIT_ROUNDOFF)
    weights = (torch.exp(reach.clamp_max(0.0)) * 1.001 + TINY).clamp_max(1.0)
    weights = torch.nan_to_num(weights, nan=1.0)
    n = weights.shape[-1]
    past = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    terms = mul_up(weights, _rows(call, values).unsqueeze(-2))
    return _back(call, sum_up(torch.where(past, terms, 0.0), -1))


def _spread(call: Evaluation) -> Bound:
    largest, r = _largest_so_far(call), call.radius(0)
    if largest is None or r is None or not bool((r > 0).any()):
        return largest
    return torch.minimum(largest, _weighted(call, r))


def _second_order(call: Evaluation) -> Bound:
    largest, r = _largest_so_far(call), call.radius(0)
    if largest is None or r is None or not bool((r > 0).any()):
        return largest
    squares = torch.minimum(mul_up(largest, largest), _weighted(call, mul_up(r, r)))
    return mul_up(squares, 0.5)


def _tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    """t_k = sum over j <= k of p_j t_j, with the weights p_j = exp(x_j - y_k)."""
    require_known(call, moved, 0)
    x, stack = call.args[0], moved[0]
    if x.dim() == 0 or x.numel() == 0:
        return Pushed(stack.lanes)
    dim = call.args[1] % x.dim()
    rows, y = _rows(call, x), _rows(call, call.y)
    n = rows.shape[-1]
    past = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    empty = torch.isinf(rows).unsqueeze(-2) | torch.isinf(y).unsqueeze(-1)
    counted = past & ~empty
    d = torch.where(counted, rows.unsqueeze(-2) - y.unsqueeze(-1), -math.inf)
    weights = torch.exp(d)
    lanes = (stack.lanes.movedim(dim + 1, -1).unsqueeze(-2) * weights).sum(-1)

    def rounding(size: Tensor) -> Tensor:
        del size
        own = _rounding(call)
        assert own is not None
        off = _rows(call, own).unsqueeze(-1).expand(d.shape)
        # |exp(d + e) - exp(d)| <= 1.01 e exp(d) for e < 2^-10
        slip = torch.where(off < _SMALL, mul_up(mul_up(weights, off), 1.02), math.inf)
        error = torch.where(counted, add_up(_power_error(d, weights), slip), 0.0)
        sizes = stack.size.movedim(dim, -1).unsqueeze(-2)
        rounded = mul_up(mul_up(weights, sizes), gamma_up(n + 2, UNIT_ROUNDOFF))
        lost = (counted & (sizes > 0)).to(torch.float64) * TINY
        terms = torch.where(sizes > 0, mul_up(error, sizes), 0.0)
        return sum_up(terms + rounded + lost, -1).movedim(-1, dim) * (1.0 + 8.0 * UNIT_ROUNDOFF)

    return Pushed(lanes.movedim(-1, dim + 1), rounding, fresh=True)


def _nothing(call: Evaluation) -> None:
    del call


def _multiplicity(call: Evaluation) -> float:
    n = call.y.shape[call.args[1]] if call.y.dim() else 1
    return math.sqrt(n) + 1e-9


RUNNING_LOGS: tuple[Op, ...] = (
    Op(
        name="logcumsumexp",
        kind=Kind.REDUCTION,
        rounding=_rounding,
        spread=_spread,
        second_order=_second_order,
        tangent=_tangent,
        multiplicity=_multiplicity,
        doubt=None,
        kinks=NO_KINKS,
        source="measured against a shifted sum with a proved bound",
        examples=(
            example(normal(3, 5), 1),
            example(uniform(-400.0, 300.0, 4, 2), 0),
            example(wild(2, 4, exponent=60.0), -1),
            example(given(-math.inf, -math.inf, 1.0, -math.inf, 700.0), 0),
            example(uniform(-0.01, 0.01, 8, 2), 1, label="weights of a half"),
            example(given(-3e38, 2.0, 1.0, -1e300), 0, label="fills"),
            example(normal(), 0),
            example(normal(0, 2), 0),
        ),
    ),
)
