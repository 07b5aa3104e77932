"""How far can a sum move and round whose terms are sent to it by indices?

y_o is x_o plus all entries of the source that go to o: a linear op whose coefficients are 0 and 1.
Applied to radii it bounds the spread, applied to |x| and |source| the sizes, and applied to "is not
0" it counts the terms n_o of every entry. Adding a zero is exact, so each of the other terms meets
at most n_o - 1 roundings, in any order: |error| <= gamma_{n_o - 1} sum |terms|.

Where a target index is in doubt nothing is known of the result.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, cover_roundings, div_up, mul_up
from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    filled,
    is_decision,
    radius_of,
    unknown,
    unknown_unless_finite,
)
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.kinks import GIVEN_INDICES
from numgeom.ops.tangents import linear_tangent
from numgeom.ops.traits import Traits

aten = torch.ops.aten

SUM_SOURCE = "sum of n terms in any order (Higham 2002, sec. 4.2)"


def gamma_each(count: Tensor) -> Tensor:
    """Upper bound of gamma_n for a tensor of counts n < 2^26 (as float64).

    n u and 1 - n u are exact: multiples of u, the latter in [1/2, 1].
    """
    nu = count * UNIT_ROUNDOFF
    return div_up(nu, 1.0 - nu)


def with_data(call: Evaluation, data: tuple[int, ...], values: list[Tensor]) -> Tensor:
    """The op with other values in place of its data."""
    args = list(call.args)
    for position, value in zip(data, values, strict=True):
        args[position] = value
    return getattr(aten, call.name)(*args, **call.kwargs)


def accumulated_rounding(call: Evaluation, data: tuple[int, ...], extra: int = 0) -> Bound:
    """Rounding of sums of the entries that go to one place; `extra` roundings per term besides."""
    if is_decision(call.y):
        return None
    terms = [call.args[p] for p in data]
    count = with_data(call, data, [(t != 0).to(torch.float64) for t in terms])
    most = int(count.max()) if count.numel() else 0
    size = with_data(call, data, [t.abs().to(torch.float64) for t in terms])
    size = cover_roundings(size, most + extra)
    bound = mul_up(size, gamma_each(torch.clamp_min(count - 1, 0.0) + extra))
    return unknown_unless_finite(torch.where(count > 0, bound, 0.0), call.y)


def accumulated_spread(
    call: Evaluation, data: tuple[int, ...], decisions: tuple[int, ...] = (), extra: int = 0
) -> Bound:
    """Sums of the radii that go to one place."""
    if any(any_doubt(call.doubt(p)) for p in decisions):
        return unknown(call)
    radii = [radius_of(call, p) for p in data]
    if is_decision(call.y) or all(r is None for r in radii):
        return None
    given = [filled(r, call.args[p]) for r, p in zip(radii, data, strict=True)]
    count = with_data(call, data, [(r > 0).to(torch.float64) for r in given])
    most = int(count.max()) if count.numel() else 0
    return cover_roundings(with_data(call, data, given), most + extra)


def inherited_doubt(call: Evaluation) -> Any:
    """A result of integers is in doubt as a whole, if an argument is."""
    return doubtful(call) if any(any_doubt(d) for d in call.doubts.values()) else None


def accumulation(
    name: str,
    *examples: Example,
    data: tuple[int, ...] = (0,),
    decisions: tuple[int, ...] = (),
    reals_alone: bool = False,
    fixed: tuple[int, ...] = (),
) -> Op:
    """Describe an op that adds up entries of its data.

    Args:
        name: Functional name.
        *examples: What the laws are tried on.
        data: Positions of the arguments whose entries are added up.
        decisions: Positions of the arguments that tell where they go.
        reals_alone: Whether torch does this for real numbers only, never for integers.
        fixed: Positions of tensors of which only the shape counts.
    """
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=partial(accumulated_rounding, data=data),
        spread=partial(accumulated_spread, data=data, decisions=decisions),
        second_order=None,
        doubt=None if reals_alone else inherited_doubt,
        kinks=GIVEN_INDICES,
        source=SUM_SOURCE,
        traits=Traits(adds=True, linear=data),
        examples=examples,
        tangent=linear_tangent(partial(accumulated_rounding, data=data), data=data, fixed=fixed),
    )
