"""Which entry is the largest, and may it be another one?

Values. The largest entry, the k-th largest and the median grow with every entry, so over a box they
lie between their values at its lower and at its upper corner: these give the spread.

Decisions, and the branch that a value was taken from. Balls are compared by their ends (`balls`): a
winner is certain if the lower end of its ball is not below the upper end of any rival's. Two exact
entries that are equal are no doubt: torch breaks that tie in the same way for the exact program.
"""

import math
from typing import Any

import torch
from torch import Tensor

from numgeom.ops.balls import (
    any_doubt,
    doubtful,
    enclosing_radius,
    is_decision,
    lower_end,
    upper_end,
)
from numgeom.ops.choice_tangents import chosen_tangent
from numgeom.ops.drawing import integers, swapped, whole_numbers, wild
from numgeom.ops.entry import Evaluation, Example, Kind, Op
from numgeom.ops.examples import example, normal
from numgeom.ops.kinks import Kinks, Where
from numgeom.ops.reduction import doubt_of_any, reduced_dims
from numgeom.ops.traits import Traits

aten = torch.ops.aten


def _corners(call: Evaluation) -> tuple[Any, Any] | None:
    """The call at the lower and at the upper corner of the box; None for an exact input."""
    x, r = call.args[0], call.radius(0)
    if r is None or is_decision(x):
        return None
    op = getattr(aten, call.name)
    rest = call.args[1:]
    return op(lower_end(x, r), *rest, **call.kwargs), op(upper_end(x, r), *rest, **call.kwargs)


def monotone_spread(call: Evaluation) -> Any:
    """Radius of outputs that grow with every entry of x; None for indices."""
    found = _corners(call)
    if found is None:
        return None
    low, high = found
    if isinstance(call.y, (tuple, list)):
        return tuple(
            None if is_decision(y) else enclosing_radius(y, a, b)
            for y, a, b in zip(call.y, low, high, strict=True)
        )
    return None if is_decision(call.y) else enclosing_radius(call.y, low, high)


# -- the winner of a slice ---------------------------------------------------------------


def rivals(
    x: Tensor, r: Tensor, index: Tensor, dim: int, *, largest: bool, labels: Tensor | None = None
) -> Tensor:
    """Entries that may beat the winner of their slice.

    Args:
        x: Midpoints.
        r: Radii.
        index: The winner's index in each slice; the dimension is kept, with size 1.
        dim: The dimension that the slices lie along.
        largest: Whether the largest entry wins, or the smallest.
        labels: Equal ones have equal exact values; of these the first wins.
    """
    low, high = lower_end(x, r), upper_end(x, r)
    if largest:
        found = high > torch.gather(low, dim, index)
    else:
        found = low < torch.gather(high, dim, index)
    found = found | torch.isnan(x)
    if labels is not None:
        labels = labels.to(x.device)
        equal = labels == torch.gather(labels, dim, index)
        along = [-1 if d == dim % x.dim() else 1 for d in range(x.dim())]
        later = torch.arange(x.shape[dim], device=x.device).reshape(along) > index
        found = found & ~(equal & later)
    return found.scatter(dim, index, False)


def _winner_doubt(
    call: Evaluation, index: Tensor, dims: int | None, *, keepdim: bool, largest: bool
) -> Tensor | None:
    """Whether the winner may be another one; `dims` None: over all entries."""
    x, r, labels = call.args[0], call.radius(0), call.labels.get(0)
    if r is None:
        return None
    if x.dim() == 0:
        return torch.zeros_like(index, dtype=torch.bool)
    if dims is None:
        x, r = x.reshape(-1), r.reshape(-1)
        labels = None if labels is None else labels.reshape(-1)
        flat = rivals(x, r, index.reshape(1), 0, largest=largest, labels=labels)
        return flat.any().reshape(index.shape)
    kept = index if keepdim else index.unsqueeze(dims)
    found = rivals(x, r, kept, dims, largest=largest, labels=labels)
    return found.any(dims, keepdim=keepdim)


def _arg_doubt(call: Evaluation) -> Tensor | None:
    """Doubt of argmax(x, dim, keepdim) and argmin."""
    if is_decision(call.args[0]):
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    dim, keepdim = call.arg(1, "dim"), bool(call.arg(2, "keepdim", False))
    largest = call.name == "argmax"
    return _winner_doubt(call, call.y, dim, keepdim=keepdim, largest=largest)


def _max_doubt(call: Evaluation) -> Any:
    """Doubt of max(x), max(x, dim, keepdim) and min: about the index, or about integers."""
    if not isinstance(call.y, (tuple, list)):
        return doubt_of_any(call)
    if is_decision(call.args[0]):
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    keepdim = bool(call.arg(2, "keepdim", False))
    largest = call.name == "max"
    found = _winner_doubt(call, call.y[1], call.args[1], keepdim=keepdim, largest=largest)
    return found, found


# -- the order of a slice ----------------------------------------------------------------


def _order_doubt(x: Tensor, r: Tensor, index: Tensor, dim: int, *, descending: bool) -> Tensor:
    """Which of the ranked entries may be another one.

    Rank k is certain if its ball lies beyond none of those ranked before, and no ball of those
    ranked behind, or not ranked at all, lies beyond it.

    Args:
        x: Midpoints.
        r: Radii.
        index: Indices of the ranked entries, in order.
        dim: The dimension that is ranked.
        descending: Whether the largest come first.
    """
    if x.dim() == 0 or index.numel() == 0:
        return torch.zeros_like(index, dtype=torch.bool)
    x, r = (x, r) if descending else (-x, r)
    low, high = lower_end(x, r), upper_end(x, r)
    # Those not ranked: their highest end.
    rest = high.scatter(dim, index, -math.inf).amax(dim, keepdim=True)
    low, high = torch.gather(low, dim, index), torch.gather(high, dim, index)
    edge = torch.full_like(rest, math.inf)
    before = torch.cat(
        [edge, torch.cummin(low, dim).values.narrow(dim, 0, low.shape[dim] - 1)], dim
    )
    later = torch.cat([high.narrow(dim, 1, high.shape[dim] - 1), rest], dim)
    behind = torch.cummax(later.flip(dim), dim).values.flip(dim)
    unordered = torch.isnan(torch.gather(x, dim, index))
    return (high > before) | (behind > low) | unordered


def _sort_doubt(call: Evaluation) -> Any:
    """Doubt of sort(x, dim, descending) and sort(x, *, stable, dim, descending)."""
    x, r = call.args[0], call.radius(0)
    if is_decision(x):
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    if r is None:
        return None
    if len(call.args) > 1:
        dim, descending = call.args[1], bool(call.arg(2, "descending", False))
    else:
        dim = call.kwargs.get("dim", -1)
        descending = bool(call.kwargs.get("descending", False))
    found = _order_doubt(x, r, call.y[1], dim, descending=descending)
    return found, found


def _topk_doubt(call: Evaluation) -> Any:
    """Doubt of topk(x, k, dim, largest, sorted)."""
    x, r = call.args[0], call.radius(0)
    if is_decision(x):
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    if r is None or call.y[1].numel() == 0 or x.dim() == 0:
        return None
    dim = call.arg(2, "dim", -1)
    largest = bool(call.arg(3, "largest", True))
    # Without `sorted` the order is not documented; it is ranked here all the same.
    order = torch.argsort(call.y[0], dim=dim, descending=largest, stable=True)
    ranked = torch.gather(call.y[1], dim, order)
    doubt = _order_doubt(x, r, ranked, dim, descending=largest)
    found = torch.zeros_like(doubt).scatter(dim, order, doubt)
    return found, found


def _ranked_doubt(call: Evaluation) -> Any:
    """Doubt of kthvalue and median: any rival whose ball overlaps that of the chosen entry."""
    x, r = call.args[0], call.radius(0)
    if is_decision(x):
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    if r is None or x.dim() == 0:
        return None
    if not isinstance(call.y, (tuple, list)):
        x, r = x.reshape(-1), r.reshape(-1)
        index = torch.argsort(x, stable=True)[(len(x) - 1) // 2 :][:1]
        return _overlaps(x, r, index, 0).any().reshape(call.y.shape)
    at = 2 if call.name == "kthvalue" else 1
    dim, keepdim = call.arg(at, "dim", -1), bool(call.arg(at + 1, "keepdim", False))
    index = call.y[1] if keepdim else call.y[1].unsqueeze(dim)
    found = _overlaps(x, r, index, dim).any(dim, keepdim=keepdim)
    return found, found


def _overlaps(x: Tensor, r: Tensor, index: Tensor, dim: int) -> Tensor:
    above = rivals(x, r, index, dim, largest=True)
    return above & rivals(x, r, index, dim, largest=False)


def _running_doubt(call: Evaluation) -> Any:
    """Doubt of cummax(x, dim) and cummin: a rival up to here overlaps the running winner."""
    x, r, dim = call.args[0], call.radius(0), call.args[1]
    if is_decision(x):
        return doubtful(call) if any_doubt(call.doubt(0)) else None
    if r is None or x.dim() == 0 or x.numel() == 0:
        return None
    sign = 1.0 if call.name == "cummax" else -1.0
    low, high = lower_end(x * sign, r), upper_end(x * sign, r)
    index = call.y[1]
    n = x.shape[dim]
    # Compare the winner of every prefix with all entries of the prefix.
    last = x.dim() - 1
    moved = [t.movedim(dim, last) for t in (low, high, index)]
    winner = torch.gather(moved[0], last, moved[2]).unsqueeze(-1)
    overlaps = moved[1].unsqueeze(-2) > winner
    own = torch.arange(n, device=x.device) == moved[2].unsqueeze(-1)
    prefix = torch.tril(torch.ones(n, n, dtype=torch.bool, device=x.device))
    found = (overlaps & ~own & prefix).any(-1)
    found = found.movedim(last, dim)
    return found, found


# -- extremes over several dimensions ----------------------------------------------------


def _tie_doubt(call: Evaluation) -> Any:
    """Where the derivative of a largest or smallest entry may be another one: two candidates.

    Equal exact entries are a certain tie, not a doubt.
    """
    if is_decision(call.y if isinstance(call.y, Tensor) else call.y[0]):
        return doubt_of_any(call) if isinstance(call.y, Tensor) else None
    x, r = call.args[0], call.radius(0)
    if r is None:
        return None
    if isinstance(call.y, (tuple, list)):  # aminmax(x, *, dim, keepdim)
        dim = call.kwargs.get("dim")
        dims = tuple(range(x.dim())) if dim is None else (dim % max(1, x.dim()),)
        keepdim = bool(call.kwargs.get("keepdim", False))
        return tuple(_ties(x, r, dims, keepdim, largest=side) for side in (False, True))
    dims, keepdim = ((), False) if call.name in ("max", "min") else reduced_dims(call)
    dims = dims or tuple(range(x.dim()))
    return _ties(x, r, dims, keepdim, largest=call.name in ("amax", "max"))


def _ties(x: Tensor, r: Tensor, dims: tuple[int, ...], keepdim: bool, *, largest: bool) -> Tensor:
    if x.dim() == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    x = x if largest else -x
    low, high = lower_end(x, r), upper_end(x, r)
    # Candidates: those that may be the largest. More than one, not all of them exact and equal.
    floor = torch.amax(low, dims, keepdim=True)
    candidates = high >= floor
    inexact = candidates & (r > 0)
    several = candidates.sum(dims, keepdim=True) > 1
    found = several & inexact.sum(dims, keepdim=True).gt(0)
    return found if keepdim else found.squeeze(dims)


def _max_or_extreme_doubt(call: Evaluation) -> Any:
    """Doubt of max and min in their three forms: x, (x, dim), (x, other)."""
    if isinstance(call.y, (tuple, list)):
        return _max_doubt(call)
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return torch.ones_like(call.y, dtype=torch.bool)
    return _tie_doubt(call)


def _max_spread(call: Evaluation) -> Any:
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):  # max(x, other) is maximum
        return torch.full_like(call.y, math.inf, dtype=torch.float64)
    return monotone_spread(call)


_OF_THE_CHOSEN = Kinks(Where.TIE, "ties of the chosen entry")


def _choice(
    name: str, spread: Any, doubt: Any, *examples: Example, kinks: Kinks = _OF_THE_CHOSEN
) -> Op:
    return Op(
        name=name,
        kind=Kind.SELECTION,
        rounding=None,
        spread=spread,
        second_order=None,
        tangent=chosen_tangent,
        doubt=doubt,
        kinks=kinks,
        source="exact: entries are chosen",
        traits=Traits(chooses=True),
        examples=examples,
    )


_TIES = example(whole_numbers(0, 3, 3, 5), 1)

CHOICE: tuple[Op, ...] = (
    _choice(
        "amax",
        monotone_spread,
        _tie_doubt,
        example(normal(3, 5), [1]),
        example(whole_numbers(0, 3, 4, 5), [0, 1], True),
        example(swapped(wild(3, 4)), []),
    ).with_traits(largest=True),
    _choice(
        "amin",
        monotone_spread,
        _tie_doubt,
        example(normal(3, 5), [1], True),
        example(wild(3, 4), [0]),
    ),
    _choice("aminmax", monotone_spread, _tie_doubt, example(normal(3, 5), dim=1)).with_traits(
        largest=True
    ),
    _choice(
        "argmax", None, _arg_doubt, _TIES, example(normal(3, 4)), example(normal(4), 0, True)
    ).with_traits(chooses=False, piecewise_constant=True, reads_ties=True),
    _choice("argmin", None, _arg_doubt, _TIES, example(normal(3, 4), None)).with_traits(
        chooses=False, piecewise_constant=True, reads_ties=True
    ),
    _choice("max", _max_spread, _max_or_extreme_doubt, _TIES, example(normal(3, 4))).with_traits(
        largest=True, reads_ties=True
    ),
    _choice("min", _max_spread, _max_or_extreme_doubt, _TIES, example(normal(3, 4))).with_traits(
        reads_ties=True
    ),
    _choice(
        "sort",
        monotone_spread,
        _sort_doubt,
        example(normal(3, 5), 1, True),
        example(wild(6)),
        example(whole_numbers(0, 4, 2, 6), stable=True, dim=-1),
        example(integers(0, 9, 5)),
    ),
    _choice(
        "topk",
        monotone_spread,
        _topk_doubt,
        example(normal(3, 6), 2),
        example(normal(2, 6), 3, 1, False),
        example(normal(5), 5),
    ),
    _choice("kthvalue", monotone_spread, _ranked_doubt, example(normal(3, 5), 2)).with_traits(
        nondeterministic_on_cuda=True
    ),
    _choice(
        "median", monotone_spread, _ranked_doubt, example(normal(3, 5), 1), example(normal(7))
    ).with_traits(nondeterministic_on_cuda=True),
    _choice("nanmedian", monotone_spread, _ranked_doubt, example(normal(3, 5), 1)),
    _choice("cummax", monotone_spread, _running_doubt, _TIES, example(normal(6), 0)),
    _choice("cummin", monotone_spread, _running_doubt, _TIES, example(normal(6), 0)),
)
