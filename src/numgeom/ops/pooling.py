"""Which entry does max pooling take from each window, and where does its derivative send?

The value is the largest entry of a window: it grows with every entry, so the corners of the box
bound it, and it is an entry, so it does not round. The index is certain if no other ball of the
window reaches above the lower end of the winner's (`balls`); exact ties are certain, as after a
ReLU, where torch takes the first. Labels, where there are any, tell of ties of inexact entries.

The derivative adds each gradient to the entry its window took. Where an index is in doubt, any
candidate of the window, or none of those, may get the gradient: each is moved by |g| + r at most.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from numgeom.arithmetic.rounding import add_up, cover_roundings
from numgeom.ops.accumulation import accumulated_rounding, accumulated_spread
from numgeom.ops.balls import (
    any_doubt,
    filled,
    is_decision,
    lower_end,
    radius_of,
    upper_end,
)
from numgeom.ops.choice import monotone_spread
from numgeom.ops.drawing import whole_numbers, wild
from numgeom.ops.entry import Bound, Evaluation, Example, Kind, Op
from numgeom.ops.examples import Maker, example, normal
from numgeom.ops.kinks import GIVEN_INDICES, Kinks, Where
from numgeom.ops.tangents import Moved, Pushed, linear_tangent, require_known
from numgeom.ops.traits import Traits
from numgeom.ops.windows import adaptive_windows, regular_windows


def _dims(call: Evaluation) -> int:
    return 3 if "pool3d" in call.name else 2


def _windows(call: Evaluation, x: Tensor, out: Tensor, *, first: int) -> Tensor:
    """The windows of a call, whose settings begin at a position."""
    size, shape = list(x.shape[-_dims(call) :]), list(out.shape[-_dims(call) :])
    if call.name.startswith("adaptive"):
        return adaptive_windows(size, shape).to(x.device)
    return regular_windows(
        size,
        shape,
        kernel=as_list(call.arg(first, "kernel_size")),
        stride=as_list(call.arg(first + 1, "stride", [])),
        padding=as_list(call.arg(first + 2, "padding", 0)),
        dilation=as_list(call.arg(first + 3, "dilation", 1)),
    ).to(x.device)


def as_list(value: int | Sequence[int]) -> Sequence[int]:
    """A setting of a pooling as a list: one number for all dimensions, or one for each."""
    return [value] if isinstance(value, int) else value


def _lines(x: Tensor, dims: int) -> Tensor:
    """Merge the spatial dimensions, and all others."""
    space = math.prod(x.shape[x.dim() - dims :])
    return x.reshape(-1, space)


def candidates(
    x: Tensor, r: Bound, index: Tensor, table: Tensor, dims: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of each window that may win besides the one that did.

    Returns:
        The mask [lines, windows, entries], the positions [windows, entries], those outside of the
        input replaced by 0, and the winners [lines, windows].
    """
    low = _lines(lower_end(x, r), dims)
    high = _lines(upper_end(x, r), dims)
    winner = index.reshape(len(low), -1)
    positions = table.clamp_min(0)
    reach = high[:, positions]
    rival = ~(reach <= torch.gather(low, 1, winner).unsqueeze(-1))
    rival = rival & (table >= 0) & (positions != winner.unsqueeze(-1))
    return rival, positions, winner


def _pool_doubt(call: Evaluation) -> Any:
    x, r = call.args[0], call.radius(0)
    value, index = call.y
    if r is None or index.numel() == 0:
        return None
    dims = _dims(call)
    if call.name.startswith("fractional"):  # its windows are random: any may be in doubt
        found = torch.ones_like(index, dtype=torch.bool) & bool((r > 0).any())
    else:
        table = _windows(call, x, value, first=1)
        rival, positions, winner = candidates(x, r, index, table, dims)
        labels = call.labels.get(0)
        if labels is not None:
            # A later entry that is certainly equal: the first of them is taken.
            line = _lines(labels.to(x.device), dims)
            equal = line[:, positions] == torch.gather(line, 1, winner).unsqueeze(-1)
            rival = rival & ~(equal & (positions > winner.unsqueeze(-1)))
        found = rival.any(-1).reshape(index.shape)
    return (None if is_decision(value) else found), found


def _pool_tangent(call: Evaluation, moved: Moved) -> tuple[Pushed | None, None]:
    """The tangents at the places that were chosen."""
    require_known(call, moved, 0, *((3,) if call.name.startswith("fractional") else ()))
    value, index = call.y
    if 0 not in moved or is_decision(value):
        return None, None
    lanes, dims = moved[0].lanes, _dims(call)
    lines = lanes.flatten(-dims)
    places = index.flatten(-dims).expand(len(lanes), *index.flatten(-dims).shape)
    return Pushed(
        torch.gather(lines, -1, places).reshape(len(lanes), *value.shape), fresh=True
    ), None


def _backward_spread(call: Evaluation, *, indices: int) -> Bound:
    base = accumulated_spread(call, (0,))
    doubt = call.doubt(indices)
    if not any_doubt(doubt):
        return base
    dims = _dims(call)
    g, x, index = call.args[0], call.args[1], call.args[indices]
    if call.name.startswith("fractional"):
        return torch.full_like(call.y, math.inf)
    table = _windows(call, x, g, first=2)
    size = add_up(g.abs(), filled(radius_of(call, 0), g))
    open_ = torch.where(doubt, size, 0.0)
    r = call.radius(1)
    unknown = torch.full_like(x, math.inf) if r is None else r
    rival, positions, winner = candidates(x, unknown, index, table, dims)
    lines = len(rival)
    share = open_.reshape(lines, -1)
    moved = torch.where(rival, share.unsqueeze(-1), 0.0)
    # The entries of all windows, in one list per line: positions and what each may gain or lose.
    where = positions.expand(lines, *positions.shape).reshape(lines, -1)
    targets = torch.cat([where, winner], 1)
    changes = torch.cat([moved.reshape(lines, -1), share], 1)
    total = torch.zeros(lines, math.prod(x.shape[-dims:]), dtype=torch.float64, device=x.device)
    total = total.scatter_add(1, targets, changes)
    total = cover_roundings(total, table.numel() + 1)
    return add_up(filled(base, x), total.reshape(x.shape))


def _pool(name: str, *examples: Example) -> Op:
    return Op(
        name=name,
        kind=Kind.SELECTION,
        rounding=None,
        spread=monotone_spread,
        second_order=None,
        tangent=_pool_tangent,
        doubt=_pool_doubt,
        kinks=Kinks(Where.TIE, "ties of the largest entry of a window"),
        source="exact: entries are chosen",
        traits=Traits(chooses=True, reads_ties="fractional" not in name),
        examples=examples,
    )


def _pool_backward(name: str, indices: int, *examples: Example) -> Op:
    return Op(
        name=name,
        kind=Kind.REDUCTION,
        rounding=partial(accumulated_rounding, data=(0,)),
        spread=partial(_backward_spread, indices=indices),
        second_order=None,
        doubt=None,
        kinks=GIVEN_INDICES,
        tangent=linear_tangent(partial(accumulated_rounding, data=(0,)), fixed=(1,)),
        source="sum of n terms in any order (Higham 2002, sec. 4.2)",
        traits=Traits(adds=True),
        examples=examples,
    )


def _with_indices(name: str, x: Maker, *settings: Any) -> Example:
    """An example of a derivative: random gradients, and the indices that the forward op chose."""

    def make(g: Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = x(g)
        y, indices = getattr(torch.ops.aten, name)(values, *settings)
        gradients = torch.randn(y.shape, generator=g, dtype=torch.float64)
        return (gradients, values, *(settings if "adaptive" not in name else ()), indices), {}

    return Example(make, name)


_REST = ([0, 0], [1, 1], False)
_TIED = whole_numbers(0, 2, 1, 2, 4, 4)  # zeros as after a ReLU

POOLING: tuple[Op, ...] = (
    _pool(
        "max_pool2d_with_indices",
        example(normal(1, 2, 5, 4), [2, 2]),
        example(normal(1, 1, 5, 5), [3, 3], [2, 2], [1, 1], [1, 1], True),
        example(wild(1, 1, 6, 6), [2, 3], [1, 1], [0, 0], [2, 2]),
        example(_TIED, [2, 2], [2, 2]),
        example(normal(0, 2, 4, 4), [2, 2]),
    ),
    _pool("max_pool3d_with_indices", example(normal(1, 1, 3, 4, 4), [2, 2, 2], [1, 2, 2])),
    _pool("adaptive_max_pool2d", example(normal(1, 2, 5, 4), [3, 3])),
    _pool("adaptive_max_pool3d", example(normal(1, 1, 3, 4, 5), [2, 2, 2])),
    _pool("fractional_max_pool2d"),
    _pool_backward(
        "max_pool2d_with_indices_backward",
        7,
        _with_indices("max_pool2d_with_indices", normal(1, 2, 5, 4), [2, 2], [1, 1], *_REST),
        _with_indices("max_pool2d_with_indices", _TIED, [3, 3], [1, 1], [1, 1], [1, 1], True),
    ),
    _pool_backward(
        "max_pool3d_with_indices_backward",
        7,
        _with_indices(
            "max_pool3d_with_indices",
            normal(1, 1, 3, 3, 3),
            [2, 2, 2],
            [1, 1, 1],
            [0, 0, 0],
            [1, 1, 1],
            False,
        ),
    ).with_traits(nondeterministic_on_cuda=True),
    _pool_backward(
        "adaptive_max_pool2d_backward",
        2,
        _with_indices("adaptive_max_pool2d", normal(1, 1, 5, 4), [3, 3]),
    ).with_traits(nondeterministic_on_cuda=True),
    _pool_backward(
        "adaptive_max_pool3d_backward",
        2,
        _with_indices("adaptive_max_pool3d", normal(1, 1, 3, 4, 4), [2, 3, 3]),
    ),
    _pool_backward("fractional_max_pool2d_backward", 4).with_traits(nondeterministic_on_cuda=True),
)
