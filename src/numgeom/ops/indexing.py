"""Which ops pick entries by given indices, and what if an index is in doubt?

Exact: an entry of y is an entry of x at an index that is an input. With certain indices radii
travel as entries do. Where an index is in doubt, y may be any entry of x: the ball about y is
widened until it holds all of them. It is taken for granted that exact indices are in range.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    enclosing_radius,
    filled,
    is_decision,
    lower_end,
    radius_of,
    unknown,
    upper_end,
)
from numgeom.ops.drawing import booleans, integers, several, whole_numbers, wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kinks import GIVEN_INDICES, GIVEN_MASK, Kinks, Where
from numgeom.ops.movement import moved_doubts, moved_radii
from numgeom.ops.tangents import Moved, Pushed, linear_tangent, require_known, still
from numgeom.ops.traits import REPEATS, Moves, Places, Traits

aten = torch.ops.aten


def _picking(name: str, *examples: Example, index: int) -> Op:
    """Describe an op that reads x (position 0) at the indices at a position."""
    return Op(
        name=name,
        kind=Kind.EXACT,
        rounding=None,
        spread=partial(_picked_radii, index=index),
        second_order=None,
        tangent=linear_tangent(),
        doubt=partial(_picked_doubts, index=index),
        kinks=GIVEN_INDICES,
        source="exact: entries are copied",
        examples=examples,
        traits=Traits(moves=Moves(Places.ANY, by_index=True)),
    )


def _picked_radii(call: Evaluation, *, index: int) -> Any:
    radii = moved_radii(call, data=(0,))
    if not any_doubt(call.doubt(index)) or is_decision(call.y):
        return radii
    where = _doubtful_entries(call, index)
    x, r = call.args[0], radius_of(call, 0)
    if x.numel() == 0:
        return radii
    widest = enclosing_radius(call.y, lower_end(x, r).amin(), upper_end(x, r).amax())
    return torch.where(where, widest, filled(radii, call.y))


def _picked_doubts(call: Evaluation, *, index: int) -> Any:
    doubts = moved_doubts(call, data=(0,))
    if not any_doubt(call.doubt(index)) or not is_decision(call.y):
        return doubts
    where = _doubtful_entries(call, index)
    return where if doubts is None else where | doubts


def _doubtful_entries(call: Evaluation, index: int) -> Tensor:
    """Entries of y whose index is in doubt; all of them if masks or several indices are."""
    doubt = call.doubt(index)
    everything = torch.ones_like(call.y, dtype=torch.bool)
    if call.name in ("gather", "take") and isinstance(doubt, Tensor):
        return doubt
    if call.name == "index_select" and isinstance(doubt, Tensor) and call.y.dim() > 0:
        dim = call.args[1] % call.y.dim()
        shape = [1] * call.y.dim()
        shape[dim] = -1
        return doubt.reshape(shape) & everything
    if call.name == "embedding" and isinstance(doubt, Tensor):
        return doubt.unsqueeze(-1) & everything
    return everything


def _index_fill(call: Evaluation) -> Bound:
    """Radii of x, with those of the value where the index says so."""
    if any_doubt(call.doubt(2)):
        return unknown(call)
    x, dim, index, value = call.args[:4]
    r = radius_of(call, 0)
    value_radius = radius_of(call, 3) if isinstance(value, Tensor) else None
    if (r is None and value_radius is None) or is_decision(call.y):
        return None
    fill = 0.0 if value_radius is None else value_radius
    return aten.index_fill(filled(r, x), dim, index, fill)


def _index_fill_tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    require_known(call, moved, 0, 3)
    if is_decision(call.y):
        return None
    x, dim, index = call.args[:3]
    filled_in = aten.index_fill(torch.zeros_like(x, dtype=torch.bool), dim, index, 1)
    zeros = torch.zeros(1, *[1] * x.dim(), dtype=torch.float64, device=x.device)
    kept, fill = (moved[k].beside(x) if k in moved else zeros for k in (0, 3))
    return Pushed(torch.where(filled_in, fill, kept), fresh=True)


def _index_fill_doubt(call: Evaluation) -> Any:
    if not is_decision(call.y):
        return None
    x, dim, index = call.args[:3]
    if any_doubt(call.doubt(2)) or any_doubt(call.doubt(3)):
        return doubtful(call)
    doubt = call.doubt(0)
    return None if doubt is None else aten.index_fill(doubt, dim, index, 0)


def _nonzero_doubt(call: Evaluation) -> Any:
    """If one entry may be zero or not, all positions after it may change, and their number."""
    x, radius = call.args[0], call.radius(0)
    inexact = radius is not None and bool(((radius > 0) & ~(x.abs() > radius)).any())
    return doubtful(call) if inexact or any_doubt(call.doubt(0)) else None


def _masked_select(call: Evaluation) -> Any:
    if any_doubt(call.doubt(1)):
        return unknown(call)
    x, chosen = torch.broadcast_tensors(call.args[0], call.args[1])
    r = radius_of(call, 0)
    if r is None or is_decision(call.y):
        return None
    return torch.masked_select(r.expand(x.shape), chosen)


def _masked_select_tangent(call: Evaluation, moved: Moved) -> Pushed | None:
    require_known(call, moved, 0)
    if is_decision(call.y):
        return None
    x, chosen = torch.broadcast_tensors(call.args[0], call.args[1])
    lanes = moved[0].beside(x).expand(len(moved[0].lanes), *x.shape)
    return Pushed(lanes[:, chosen], fresh=True)


def _masked_select_doubt(call: Evaluation) -> Any:
    if not is_decision(call.y):
        return None
    if any_doubt(call.doubt(1)):
        return doubtful(call)
    doubt = call.doubt(0)
    if doubt is None:
        return None
    shape = torch.broadcast_shapes(call.args[0].shape, call.args[1].shape)
    return torch.masked_select(doubt.expand(shape), call.args[1])


INDEXING: tuple[Op, ...] = (
    _picking("gather", example(wild(3, 4), 1, integers(0, 4, 3, 2)), index=2),
    _picking(
        "index_select",
        example(wild(3, 4), 0, integers(0, 3, 5)),
        example(integers(0, 9, 3), 0, integers(0, 3, 2)),
        index=2,
    ),
    _picking(
        "index",
        example(wild(3, 4), several(integers(0, 3, 2), integers(-4, 4, 2))),
        example(wild(3, 4), several(None, integers(0, 4, 2, 2))),
        example(wild(3, 4), several(booleans(3, 4))),
        index=1,
    ),
    _picking("_unsafe_index", example(wild(3, 4), several(None, integers(0, 4, 2, 2))), index=1),
    _picking("embedding", example(wild(5, 3), integers(0, 5, 2, 2)), index=1),
    _picking("take", example(wild(3, 4), integers(0, 12, 2, 2)), index=1),
    Op(
        name="index_fill",
        kind=Kind.EXACT,
        rounding=None,
        spread=_index_fill,
        second_order=None,
        tangent=_index_fill_tangent,
        doubt=_index_fill_doubt,
        kinks=GIVEN_INDICES,
        source="exact: entries are copied",
        traits=Traits(moves=Moves(Places.ANY, data=(0, 3))),
        examples=(
            example(wild(3, 4), 1, integers(0, 4, 2), 0.5),
            example(wild(3, 4), 0, integers(0, 3, 2), normal()),
        ),
    ),
    Op(
        name="masked_select",
        kind=Kind.EXACT,
        rounding=None,
        spread=_masked_select,
        second_order=None,
        tangent=_masked_select_tangent,
        doubt=_masked_select_doubt,
        kinks=GIVEN_MASK,
        source="exact: entries are copied",
        traits=Traits(moves=REPEATS),
        examples=(example(wild(3, 4), booleans(3, 4)), example(wild(3, 4), booleans(4))),
    ),
    Op(
        name="nonzero",
        kind=Kind.SELECTION,
        rounding=None,
        spread=None,
        second_order=None,
        tangent=still,
        doubt=_nonzero_doubt,
        kinks=Kinks(Where.ZERO, "x = 0", jumps=True),
        traits=Traits(piecewise_constant=True),
        source="exact: a decision",
        examples=(
            example(integers(-1, 2, 3, 4)),
            example(booleans(5)),
            example(whole_numbers(1, 4, 5)),
        ),
    ),
)
