"""How far can entries move and round that others are written over, or added to?

Accumulation: see `accumulation`. Replacement: where several entries are written to one place, which
one stays is not documented; the radius is the largest of theirs, so that it holds for the one that
the evaluation kept. Where a target index is in doubt nothing is known of the result.
"""

import math
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import (
    TINY,
    UNIT_ROUNDOFF,
    add_up,
    cover_roundings,
    gamma_up,
    mul_up,
)
from numgeom.ops.accumulation import (
    SUM_SOURCE,
    accumulated_rounding,
    accumulated_spread,
    accumulation,
    inherited_doubt,
    with_data,
)
from numgeom.ops.balls import (
    any_doubt,
    enclosing_radius,
    filled,
    is_decision,
    lower_end,
    radius_of,
    unknown,
    unknown_unless_finite,
    upper_end,
)
from numgeom.ops.choice_tangents import scattered_tangent
from numgeom.ops.drawing import integers, several, wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kinks import GIVEN_INDICES, Kinks, Where
from numgeom.ops.tangents import (
    Moved,
    NoTangentRuleError,
    linear_tangent,
)
from numgeom.ops.traits import Moves, Places, Traits

aten = torch.ops.aten

# -- ops that accumulate under some of their settings ------------------------------------------


def _scaled_by_alpha(call: Evaluation) -> tuple[Evaluation, int]:
    """index_add with alpha inside of the source, whose product rounds once more."""
    alpha = call.arg(4, "alpha", 1)
    if alpha == 1:
        return call, 0
    kwargs = {k: v for k, v in call.kwargs.items() if k != "alpha"}
    factor = abs(float(alpha))
    source = mul_up(call.args[3].abs().to(torch.float64), factor)
    radii = dict(call.radii)
    r = radius_of(call, 3)
    if r is not None:
        radii[3] = mul_up(r, factor)
    args = (*call.args[:3], source)
    return Evaluation(call.name, args, kwargs, call.y, radii, call.doubts), 1


def _index_add_rounding(call: Evaluation) -> Bound:
    inner, extra = _scaled_by_alpha(call)
    bound = accumulated_rounding(inner, (0, 3), extra)
    if extra and bound is not None:  # products that underflow
        bound = add_up(bound, inner.args[3].numel() * TINY)
    return bound


def _index_add_spread(call: Evaluation) -> Bound:
    return accumulated_spread(_scaled_by_alpha(call)[0], (0, 3), (2,))


def _embedding_rounding(call: Evaluation) -> Bound:
    """Rounding of embedding_dense_backward; scaled by frequency, each term rounds twice more."""
    by_frequency = bool(call.args[4])
    bound = accumulated_rounding(_unscaled(call), (0,), 3 if by_frequency else 0)
    if bound is not None and by_frequency:
        bound = add_up(bound, call.args[0].numel() * TINY)
    return bound


def _embedding_spread(call: Evaluation) -> Bound:
    return accumulated_spread(_unscaled(call), (0,), (1,))


def _unscaled(call: Evaluation) -> Evaluation:
    """Without division by the frequency: an upper bound, since a frequency is at least 1."""
    args = (*call.args[:4], False)
    return Evaluation(call.name, args, call.kwargs, call.y, call.radii, call.doubts)


# -- replacement -------------------------------------------------------------------------


def _replaced(call: Evaluation, targets: Tensor, values: Any, r_values: Bound) -> Bound:
    """Radii after writing values to flat positions: the largest of those written there."""
    r = radius_of(call, 0)
    if is_decision(call.y) or (r is None and r_values is None):
        return None
    base = filled(r, call.args[0]).reshape(-1)
    zeros = torch.zeros((), dtype=torch.float64, device=base.device)
    written = (zeros if r_values is None else r_values).expand(targets.shape).reshape(-1)
    return base.scatter_reduce(0, targets.reshape(-1), written, "amax", include_self=False).reshape(
        call.y.shape
    )


def _scatter_spread(call: Evaluation) -> Any:
    """Spread of scatter(x, dim, index, src or value, reduce=)."""
    if any_doubt(call.doubt(2)) or call.kwargs.get("reduce") is not None or len(call.args) > 4:
        return unknown(call) if call.radii or any_doubt(call.doubt(2)) else None
    x, dim, index, src = (call.args[k] for k in range(4))
    r_x = radius_of(call, 0)
    r_src = radius_of(call, 3) if isinstance(src, Tensor) else None
    if is_decision(call.y) or (r_x is None and r_src is None):
        return None
    base = filled(r_x, x)
    written = torch.zeros_like(index, dtype=torch.float64)
    if r_src is not None:
        part = tuple(slice(n) for n in index.shape)
        written = r_src[part]
    if x.dim() == 0:
        return written.reshape(()) if index.numel() else base
    return base.scatter_reduce(dim, index, written, "amax", include_self=False)


def _scatter_rounding(call: Evaluation) -> Any:
    if call.kwargs.get("reduce") is not None or len(call.args) > 4:
        return None if is_decision(call.y) else torch.full_like(call.y, math.inf)
    return None


def _scatter_second_order(call: Evaluation) -> Any:
    return _scatter_rounding(call) if call.radii else None


def _scatter_tangent(call: Evaluation, moved: Moved) -> Any:
    if call.kwargs.get("reduce") is not None or len(call.args) > 4:
        raise NoTangentRuleError("scatter has a tangent rule without `reduce` alone.")
    return _REPLACE_TANGENT(call, moved)


_REPLACE_TANGENT = linear_tangent(data=(0, 3))


def _targets(call: Evaluation) -> Tensor:
    """Flat positions that an index_put writes to."""
    x = call.args[0]
    return aten.index(torch.arange(x.numel(), device=x.device).reshape(x.shape), call.args[1])


def _adds(call: Evaluation) -> bool:
    return bool(call.arg(3, "accumulate", False))


def _index_put_rounding(call: Evaluation) -> Bound:
    return accumulated_rounding(call, (0, 2)) if _adds(call) else None


def _index_put_spread(call: Evaluation) -> Bound:
    if any_doubt(call.doubt(1)):
        return unknown(call)
    if _adds(call):
        return accumulated_spread(call, (0, 2))
    return _replaced(call, _targets(call), call.args[2], radius_of(call, 2))


def _index_copy_spread(call: Evaluation) -> Bound:
    if any_doubt(call.doubt(2)):
        return unknown(call)
    x, dim, index = call.args[:3]
    at: list[Any] = [slice(None)] * max(1, x.dim())
    at[dim] = index
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape if x.dim() else (1,))
    return _replaced(call, numbers[tuple(at)], call.args[3], radius_of(call, 3))


# -- scatter_reduce ----------------------------------------------------------------------


def _reduce_rounding(call: Evaluation) -> Bound:
    """Rounding of scatter_reduce(x, dim, index, src, reduce, include_self)."""
    how = call.args[4]
    if is_decision(call.y) or how in ("amax", "amin"):
        return None
    if how == "sum":
        return accumulated_rounding(call, (0, 3))
    if how == "mean":  # a sum, divided: two roundings more, and an underflow
        terms = [t.abs() for t in (call.args[0], call.args[3])]
        size = with_data(call, (0, 3), terms)
        most = call.args[3].numel() + 1
        bound = mul_up(cover_roundings(size, most + 3), gamma_up(most + 3, UNIT_ROUNDOFF))
        return unknown_unless_finite(add_up(bound, 2.0 * TINY), call.y)
    return torch.full_like(call.y, math.inf)


def _reduce_spread(call: Evaluation) -> Any:
    how = call.args[4]
    if any_doubt(call.doubt(2)):
        return unknown(call)
    r_x, r_src = radius_of(call, 0), radius_of(call, 3)
    if is_decision(call.y) or (r_x is None and r_src is None):
        return None
    x, src = call.args[0], call.args[3]
    if how == "sum":
        return accumulated_spread(call, (0, 3))
    if how == "mean":
        radii = [filled(r_x, x), filled(r_src, src)]
        moved = cover_roundings(with_data(call, (0, 3), radii), src.numel() + 4)
        open_ = with_data(call, (0, 3), [(r > 0).to(torch.float64) for r in radii])
        return torch.where(open_ > 0, add_up(moved, 2.0 * TINY), 0.0)
    if how in ("amax", "amin"):
        low = with_data(call, (0, 3), [lower_end(x, r_x), lower_end(src, r_src)])
        high = with_data(call, (0, 3), [upper_end(x, r_x), upper_end(src, r_src)])
        return enclosing_radius(call.y, low, high)
    return torch.full_like(call.y, math.inf)


def _reduce_doubt(call: Evaluation) -> Any:
    """Where the largest entry may be another one: wherever its bounds leave room at all."""
    if is_decision(call.y):
        return inherited_doubt(call)
    if call.args[4] in ("sum", "mean"):
        return None
    moved = _reduce_spread(call)
    return None if moved is None else moved > 0


def _reduce_second_order(call: Evaluation) -> Bound:
    inexact = call.radius(0) is not None or call.radius(3) is not None
    if call.args[4] != "prod" or not inexact:
        return None
    return torch.full_like(call.y, math.inf)


def _reduce_tangent(call: Evaluation, moved: Moved) -> Any:
    if call.args[4] in ("sum", "mean"):
        return _REDUCE_TANGENT(call, moved)
    if call.args[4] not in ("amax", "amin") or call.args[0].dim() == 0:
        raise NoTangentRuleError(f"scatter_reduce has no tangent rule for {call.args[4]!r}.")
    return None if is_decision(call.y) else scattered_tangent(call, moved)


_REDUCE_TANGENT = linear_tangent(_reduce_rounding, data=(0, 3))


def _entry(name: str, rounding: Any, spread: Any, *examples: Example, **more: Any) -> Op:
    facts: dict[str, Any] = {
        "second_order": None,
        "doubt": inherited_doubt,
        "kinks": GIVEN_INDICES,
        "kind": Kind.REDUCTION,
        "source": SUM_SOURCE,
        "traits": Traits(adds=True),
    }
    return Op(name=name, rounding=rounding, spread=spread, examples=examples, **(facts | more))


def _padded(name: str, dims: int) -> Op:
    """The derivative of a padding, which adds up what the copies of an entry got."""
    before, behind, n = (1, 1, 2) if dims == 3 else (1, 2, 3)
    shape, padded = (1, *[n] * dims), (1, *[before + n + behind] * dims)
    op = accumulation(
        name,
        example(normal(*padded), normal(*shape), [before, behind] * dims),
        fixed=(1,),
        reals_alone=True,
    )
    # torch lists all but the reflection of images.
    listed = name != "reflection_pad2d_backward"
    return op.with_traits(nondeterministic_on_cuda=listed)


_TWICE = several(lambda _: torch.tensor([0, 2, 0, 2, 2]))
_PUT = (
    example(wild(3, 2), _TWICE, wild(5, 2)),
    example(wild(4, 3), several(integers(0, 4, 6)), wild(6, 3), True),
    example(wild(4, 3), several(None, integers(0, 3, 5)), normal(4, 5), True),
    example(wild(4, 3), several(integers(0, 4, 3), integers(0, 3, 3)), normal(3)),
    example(wild(4, 3), several(integers(0, 4, 2)), normal()),
)

_PUT_TANGENT = linear_tangent(_index_put_rounding, data=(0, 2))

SCATTER: tuple[Op, ...] = (
    accumulation(
        "scatter_add",
        example(wild(4, 3), 0, integers(0, 4, 5, 3), normal(5, 3)),
        example(normal(4, 3), 1, integers(0, 3, 2, 9), wild(3, 9)),
        data=(0, 3),
        decisions=(2,),
    ).with_traits(linear=(0, 3), nondeterministic_on_cuda=True),
    _entry(
        "index_add",
        _index_add_rounding,
        _index_add_spread,
        example(wild(4, 3), 0, integers(0, 4, 7), wild(7, 3)),
        example(normal(4, 3), 1, integers(0, 3, 5), normal(4, 5), alpha=0.3),
        tangent=linear_tangent(_index_add_rounding, data=(0, 3)),
    ).with_traits(linear=(0, 3), nondeterministic_on_cuda=True),
    _entry(
        "index_put", _index_put_rounding, _index_put_spread, *_PUT, tangent=_PUT_TANGENT
    ).with_traits(linear=(0, 2), last_wins=True),
    _entry(
        "_unsafe_index_put", _index_put_rounding, _index_put_spread, *_PUT, tangent=_PUT_TANGENT
    ).with_traits(linear=(0, 2), last_wins=True),
    _entry(
        "index_copy",
        None,
        _index_copy_spread,
        example(wild(4, 3), 0, lambda _: torch.tensor([2, 0]), wild(2, 3)),
        example(wild(3), 0, lambda _: torch.tensor([0, 2, 0, 2, 2]), wild(5)),
        tangent=linear_tangent(data=(0, 3)),
        kind=Kind.EXACT,
        source="exact: entries are copied",
        traits=Traits(moves=Moves(Places.ANY, data=(0, 3))),
    ).with_traits(last_wins=True),
    _entry(
        "scatter",
        _scatter_rounding,
        _scatter_spread,
        example(wild(4, 3), 0, lambda _: torch.tensor([[3, 0, 1]]), wild(2, 3)),
        example(wild(3), 0, lambda _: torch.tensor([0, 2, 0, 2, 2]), wild(5)),
        example(wild(4, 3), 1, integers(0, 3, 4, 2), 0.3),
        second_order=_scatter_second_order,
        tangent=_scatter_tangent,
        kind=Kind.EXACT,
        source="exact: entries are copied",
        traits=Traits(moves=Moves(Places.ANY, data=(0, 3))),
    ).with_traits(last_wins=True),
    _entry(
        "scatter_reduce",
        _reduce_rounding,
        _reduce_spread,
        example(normal(4, 3), 0, integers(0, 4, 5, 3), wild(5, 3), "sum"),
        example(normal(4, 3), 0, integers(0, 4, 5, 3), normal(5, 3), "mean", include_self=False),
        example(normal(4, 3), 0, integers(0, 4, 5, 3), normal(5, 3), "amax"),
        example(normal(4, 3), 0, integers(0, 4, 5, 3), normal(5, 3), "amin", include_self=False),
        doubt=_reduce_doubt,
        tangent=_reduce_tangent,
        second_order=_reduce_second_order,
        kinks=Kinks(Where.TIE, "ties, for amax and amin", inputs=(0, 3)),
    ).with_traits(nondeterministic_on_cuda=True),
    _entry(
        "embedding_dense_backward",
        _embedding_rounding,
        _embedding_spread,
        example(wild(2, 4, 3), integers(0, 5, 2, 4), 5, -1, False),
        example(normal(9, 2), integers(0, 3, 9), 3, 1, False),
        example(normal(9, 2), integers(0, 3, 9), 3, -1, True),
        tangent=linear_tangent(_embedding_rounding),
    ),
    accumulation(
        "unfold_backward",
        example(wild(5, 3), [7], 0, 3, 1),
        example(normal(2, 2, 2), [2, 3], 1, 2, 1),
    ),
    accumulation(
        "col2im",
        example(wild(1, 8, 9), [4, 4], [2, 2], [1, 1], [0, 0], [1, 1]),
        example(normal(1, 8, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]),
    ),
    *(_padded(f"reflection_pad{n}d_backward", n) for n in (1, 2, 3)),
    *(_padded(f"replication_pad{n}d_backward", n) for n in (1, 2, 3)),
)
