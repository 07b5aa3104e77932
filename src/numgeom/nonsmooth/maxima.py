"""Which windows of a pool, a maximum or a norm are tied?

A window is tied where two or more of its entries equal its maximum; one that holds a NaN is not.
Pools are described per dimension by which input places each output place looks at, so that kernel,
stride, padding, dilation, ceil mode and adaptive pools are one case.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.nonsmooth.kinks import Apexes, KinkRule, Windows
from numgeom.ops.selection import OpCall


@dataclass(frozen=True, eq=False)
class Axis:
    """Which places of one dimension each output place looks at.

    Attributes:
        places: Input index, int64 [outputs, kernel], clamped into the input.
        inside: Whether the place exists, bool [outputs, kernel].
        overlaps: Whether two output places share an input place.
    """

    places: Tensor
    inside: Tensor
    overlaps: bool

    def look(self, x: Tensor, dim: int, j: int) -> Tensor:
        """The entries that all output places see as their j-th along a dimension."""
        column = self.places[:, j]
        step = int(column[1] - column[0]) if len(column) > 1 else 1
        first, last = int(column[0]), int(column[-1])
        if step > 0 and bool(self.inside[:, j].all()) and last == first + (len(column) - 1) * step:
            return x.movedim(dim, 0)[first : last + 1 : step].movedim(0, dim)  # a view
        return x.index_select(dim, column.to(x.device))


def sliding_axis(
    size: int, outputs: int, *, kernel: int, stride: int, padding: int, dilation: int
) -> Axis:
    """Places of an ordinary pool: output o looks at o · stride - padding + j · dilation."""
    start = torch.arange(outputs) * stride - padding
    return _axis(size, start[:, None] + torch.arange(kernel) * dilation)


def adaptive_axis(size: int, outputs: int) -> Axis:
    """Places of an adaptive pool: output o looks at floor(o·n/m) .. ceil((o+1)·n/m) - 1."""
    index = torch.arange(outputs)
    start, stop = index * size // outputs, -(-(index + 1) * size // outputs)
    places = start[:, None] + torch.arange(int((stop - start).max()))
    return _axis(size, torch.where(places < stop[:, None], places, -1))


def _axis(size: int, places: Tensor) -> Axis:
    inside = (places >= 0) & (places < size)
    used = places[inside]
    return Axis(places.clamp(0, size - 1), inside, used.unique().numel() < used.numel())


def tied_windows(x: Tensor, out: Tensor, taken: Tensor, axes: Sequence[Axis]) -> Windows | None:
    """Find the tied windows of a pool over the last dimensions.

    Args:
        x: The pool's input.
        out: Its output.
        taken: Its indices: which place of its plane each output took.
        axes: One per pooled dimension.
    """
    if out.numel() == 0:
        return None
    pooled, windows = len(axes), math.prod(out.shape[-len(axes) :])
    equal, places = [], []
    for choice in itertools.product(*(range(axis.places.shape[1]) for axis in axes)):
        entry, there, place = x, torch.ones(()), torch.zeros((), dtype=torch.int64)
        for dim, axis, j in zip(range(-pooled, 0), axes, choice, strict=True):
            entry = axis.look(entry, dim, j)
            there = there[..., None] * axis.inside[:, j]
            place = place[..., None] * x.shape[dim] + axis.places[:, j]
        found = entry == out
        if not bool(there.all()):
            found &= there.bool().to(x.device)
        equal.append(found.reshape(-1, windows))
        places.append(place.reshape(-1))
    count = torch.zeros(equal[0].shape, dtype=torch.int16, device=x.device)
    for found in equal:
        count += found
    tied = count > 1
    if not bool(tied.any()):
        return None
    plane, window = tied.nonzero(as_tuple=True)
    output = plane * windows + window
    begin = plane * math.prod(x.shape[-pooled:])
    positions = torch.stack(places, dim=1).to(x.device)[window] + begin[:, None]
    active = torch.stack([e.reshape(-1)[output] for e in equal], dim=1)
    overlapping = None
    if any(axis.overlaps for axis in axes):
        start = torch.arange(len(tied), device=x.device) * math.prod(x.shape[-pooled:])
        overlapping = (taken.reshape(-1, windows) + start[:, None]).reshape(-1)
    return Windows.of(output, positions, active, taken=overlapping)


def _pool(dims: int) -> Callable[[OpCall], Windows | None]:
    def find(call: OpCall) -> Windows | None:
        x, (out, taken) = call.arguments["self"], call.outputs
        kernel = _spread(call.arguments["kernel_size"], dims)
        stride = _spread(call.arguments["stride"] or kernel, dims)
        padding = _spread(call.arguments["padding"], dims)
        dilation = _spread(call.arguments["dilation"], dims)
        axes = [
            sliding_axis(size, outputs, kernel=k, stride=s, padding=p, dilation=d)
            for size, outputs, k, s, p, d in zip(
                x.shape[-dims:], out.shape[-dims:], kernel, stride, padding, dilation, strict=True
            )
        ]
        return tied_windows(x, out, taken, axes)

    return find


def _adaptive(dims: int) -> Callable[[OpCall], Windows | None]:
    def find(call: OpCall) -> Windows | None:
        x, (out, taken) = call.arguments["self"], call.outputs
        sizes = zip(x.shape[-dims:], out.shape[-dims:], strict=True)
        return tied_windows(x, out, taken, [adaptive_axis(n, m) for n, m in sizes])

    return find


def _spread(value: int | Sequence[int], dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


# -- reductions --------------------------------------------------------------------------


def tied_reduction(
    x: Tensor, out: Tensor, dims: Sequence[int], *, signs: Tensor | None = None
) -> Windows | None:
    """Find the tied groups of a maximum or minimum over some dimensions.

    Args:
        x: What is reduced.
        out: Its largest (or smallest) entries.
        dims: The reduced dimensions; none means all.
        signs: Factors of the entries' derivatives.
    """
    if x.numel() == 0:
        return None
    rows = _rows(x, dims)
    active = rows == out.reshape(-1, 1)
    tied = active.sum(dim=1) > 1
    if rows.shape[1] < 2 or not bool(tied.any()):
        return None
    positions = _rows(torch.arange(x.numel(), device=x.device).reshape(x.shape), dims)[tied]
    factors = None if signs is None else _rows(signs, dims)[tied].double()
    output = tied.nonzero()[:, 0]
    return Windows.of(output, positions, active[tied], signs=factors)


def _rows(x: Tensor, dims: Sequence[int]) -> Tensor:
    """The reduced dimensions side by side, in row-major order: [outputs, places]."""
    if x.dim() == 0:
        return x.reshape(1, 1)
    reduced = sorted(d % x.dim() for d in dims) or list(range(x.dim()))
    kept = [d for d in range(x.dim()) if d not in reduced]
    outputs, places = (math.prod(x.shape[d] for d in part) for part in (kept, reduced))
    return x.permute(*kept, *reduced).reshape(outputs, places)


def _max(call: OpCall) -> Windows | None:
    dims = [call.arguments["dim"]] if "dim" in call.arguments else []
    return tied_reduction(call.arguments["self"], call.outputs[0], dims)


def _amax(call: OpCall) -> Windows | None:
    return tied_reduction(call.arguments["self"], call.outputs[0], call.arguments["dim"])


# -- norms -------------------------------------------------------------------------------


def _order(call: OpCall) -> float:
    order = call.arguments.get("ord", call.arguments.get("p"))
    return 2.0 if order is None else float(order)


def _norm_dims(call: OpCall) -> list[int]:
    dims = call.arguments.get("dim")
    return [dims] if isinstance(dims, int) else list(dims or [])


def _apexes(call: OpCall) -> Apexes | None:
    x, order, dims = call.arguments["self"], _order(call), _norm_dims(call)
    if order < 1 or x.is_complex() or x.numel() == 0:
        return None
    rows = _rows(x, dims)
    index = _rows(torch.arange(x.numel(), device=x.device).reshape(x.shape), dims)
    if order == 1:  # a sum of |x_i|: every zero entry is a kink of its own
        output, place = (rows == 0).nonzero(as_tuple=True)
        return Apexes(output, index[output, place][:, None], 1.0) if output.numel() else None
    # The norm may underflow to 0 at x != 0: no kink, although torch's gradient is 0 there.
    output = (rows == 0).all(dim=1).nonzero()[:, 0]
    return Apexes(output, index[output], order) if output.numel() else None


def _largest(call: OpCall) -> Windows | None:
    x = call.arguments["self"]
    if not math.isinf(_order(call)) or _order(call) < 0 or x.is_complex():
        return None
    out = call.outputs[0]
    # A zero vector is an apex, and not a tie among its entries.
    largest = out.masked_fill(out == 0, math.nan).to(x.dtype)
    return tied_reduction(x.abs(), largest, _norm_dims(call), signs=x.sgn())


_NORM = (KinkRule("norm", _apexes), KinkRule("amax", _largest))

MAXIMA: Mapping[str, tuple[KinkRule, ...]] = {
    "adaptive_max_pool2d": (KinkRule("maxpool", _adaptive(2)),),
    "adaptive_max_pool3d": (KinkRule("maxpool", _adaptive(3)),),
    "amax": (KinkRule("amax", _amax),),
    "amin": (KinkRule("amax", _amax),),
    "linalg_vector_norm": _NORM,
    "max": (KinkRule("max", _max),),
    "max_pool2d_with_indices": (KinkRule("maxpool", _pool(2)),),
    "max_pool3d_with_indices": (KinkRule("maxpool", _pool(3)),),
    "min": (KinkRule("max", _max),),
    "norm": _NORM,
}
