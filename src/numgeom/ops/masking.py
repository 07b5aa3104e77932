"""Which of two values does a mask pick, and what if the mask is in doubt?

Exact: an entry of y is an entry of one of the arguments. Where the mask is certain the radius is
that of the picked one. Where it is in doubt both are possible: the ball about y must hold both.
"""

from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import add_up
from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    gap_up,
    is_decision,
    real_radius,
    unknown,
)
from numgeom.ops.drawing import booleans, whole_numbers, wild
from numgeom.ops.entry import Bound, Evaluation, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kinks import GIVEN_MASK
from numgeom.ops.tangents import linear_tangent
from numgeom.ops.traits import Moves, Places, Traits


def pick(
    condition: Tensor,
    doubt: Tensor | None,
    a: tuple[Any, Bound],
    b: tuple[Any, Bound],
    y: Tensor,
) -> Bound:
    """Radius of where(condition, a, b), for values with their radii.

    At a doubtful entry |exact - y| is at most the picked radius, or |a - b| plus the other one.
    """
    (a_value, a_radius), (b_value, b_radius) = a, b
    uncertain = any_doubt(doubt)
    if a_radius is None and b_radius is None and not uncertain:
        return None
    r_a, r_b = _tensor(a_radius, y), _tensor(b_radius, y)
    radius = torch.where(condition, r_a, r_b).expand(y.shape)
    if not uncertain or doubt is None:
        return radius
    gap = gap_up(_tensor(a_value, y), _tensor(b_value, y))
    other = add_up(gap, torch.where(condition, r_b, r_a))
    return torch.where(doubt, torch.maximum(radius, other), radius).expand(y.shape)


def _tensor(value: Any, y: Tensor) -> Tensor:
    if value is None:
        return torch.zeros((), dtype=torch.float64, device=y.device)
    return torch.as_tensor(value, device=y.device).to(torch.float64)


def _branches(call: Evaluation) -> tuple[int, tuple[int, int]]:
    """Position of the mask, and those of what is taken where it is True and where it is False."""
    return (1, (2, 0)) if call.name == "masked_fill" else (0, (1, 2))


def _value(call: Evaluation, position: int) -> tuple[Any, Bound, Tensor | None]:
    value = call.args[position]
    doubt = call.doubt(position)
    return value, real_radius(value, call.radius(position), doubt), doubt


def _spread(call: Evaluation) -> Any:
    if len(call.args) < 2:  # where(condition) is nonzero
        return None
    if is_decision(call.y):
        return None
    at, (yes, no) = _branches(call)
    a, b = _value(call, yes), _value(call, no)
    return pick(call.args[at], call.doubt(at), a[:2], b[:2], call.y)


def _doubt(call: Evaluation) -> Any:
    """For decisions: the doubt about the picked one, or a doubtful pick between two values."""
    if len(call.args) < 2:
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    if not is_decision(call.y):
        return None
    at, (yes, no) = _branches(call)
    (a, _, doubt_a), (b, _, doubt_b) = _value(call, yes), _value(call, no)
    found = torch.zeros_like(call.y, dtype=torch.bool)
    none = torch.zeros((), dtype=torch.bool, device=call.y.device)
    doubt_a = none if doubt_a is None else doubt_a
    doubt_b = none if doubt_b is None else doubt_b
    found = found | torch.where(call.args[at], doubt_a, doubt_b)
    if call.doubt(at) is not None:
        differ = torch.as_tensor(a) != torch.as_tensor(b)
        found = found | (call.doubt(at) & (differ | doubt_a | doubt_b))
    return found


def _scatter_spread(call: Evaluation) -> Any:
    """Radii of masked_scatter: the n-th True entry takes the n-th entry of the source."""
    if is_decision(call.y):
        return None
    if any_doubt(call.doubt(1)):
        return unknown(call)
    x, source = call.args[0], call.args[2]
    r_x = real_radius(x, call.radius(0), call.doubt(0))
    r_s = real_radius(source, call.radius(2), call.doubt(2))
    if r_x is None and r_s is None:
        return None
    zeros = torch.zeros((), dtype=torch.float64, device=call.y.device)
    r_x = (zeros if r_x is None else r_x).expand(x.shape).expand(call.y.shape)
    r_s = (zeros if r_s is None else r_s).expand(source.shape).contiguous()
    return torch.masked_scatter(r_x, call.args[1], r_s)


def _scatter_doubt(call: Evaluation) -> Any:
    if not is_decision(call.y):
        return None
    return doubtful(call) if any(any_doubt(call.doubt(p)) for p in range(3)) else None


MASKING: tuple[Op, ...] = (
    Op(
        name="where",
        kind=Kind.EXACT,
        rounding=None,
        tangent=linear_tangent(data=(1, 2)),
        spread=_spread,
        second_order=None,
        doubt=_doubt,
        kinks=GIVEN_MASK,
        traits=Traits(moves=Moves(Places.ANY, data=(1, 2)), entrywise=True),
        source="exact: entries are copied",
        examples=(
            example(booleans(3, 4), wild(3, 4), wild(4)),
            example(booleans(3, 1), normal(3, 4), float("-inf")),
            example(booleans(4), 0.0, wild(4)),
            example(booleans(4), whole_numbers(0, 2, 4), normal()),
        ),
    ),
    Op(
        name="masked_fill",
        kind=Kind.EXACT,
        rounding=None,
        tangent=linear_tangent(data=(0, 2)),
        spread=_spread,
        second_order=None,
        doubt=_doubt,
        kinks=GIVEN_MASK,
        traits=Traits(moves=Moves(Places.ANY, data=(0, 2)), entrywise=True),
        source="exact: entries are copied",
        examples=(
            example(wild(3, 4), booleans(4), float("-inf")),
            example(wild(3, 4), booleans(3, 4), -3.4028234663852886e38),
            example(normal(3, 4), booleans(3, 4), normal()),
        ),
    ),
    Op(
        name="masked_scatter",
        kind=Kind.EXACT,
        rounding=None,
        tangent=linear_tangent(data=(0, 2)),
        spread=_scatter_spread,
        second_order=None,
        doubt=_scatter_doubt,
        kinks=GIVEN_MASK,
        traits=Traits(moves=Moves(Places.ANY, data=(0, 2))),
        source="exact: entries are copied",
        examples=(example(wild(3, 4), booleans(3, 4), wild(12)),),
    ),
)
