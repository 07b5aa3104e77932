"""How do the tangents of a call follow from those of its arguments, where both are stacked?

`numgeom.semantics.tangents` applies these; a stack has the tangents along a new first dimension.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx


def quotient(da: Tensor | None, db: Tensor | None, b: Any, y: Tensor) -> Tensor:
    """The quotient rule: (da - y db) / b."""
    if db is None:
        assert da is not None
        return stacked(da, y) / b
    moved = stacked(db, y) * -y
    return (moved if da is None else moved.add_(stacked(da, y))).div_(b)


def moments(dx: Tensor, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Tangents of variance and mean."""
    x, keepdim = args[0], bool(kwargs.get("keepdim", False))
    given = args[1] if len(args) > 1 else None
    dims = [d % x.dim() for d in (range(x.dim()) if given in (None, [], ()) else given)]
    correction = kwargs.get("correction", 1)
    n = math.prod(x.shape[d] for d in dims)
    left = n - (1 if correction is None else correction)
    factor = 2 / left if left > 0 else math.inf
    inner = [d + 1 for d in dims]
    variance = torch.sum(dx * ((x - x.mean(dims, keepdim=True)) * factor), inner, keepdim=keepdim)
    return variance, torch.mean(dx, inner, keepdim=keepdim)


def product(
    multiply: Callable[[Tensor, Tensor], Tensor],
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    args: Any,
    y: Tensor,
) -> tuple[Tensor, bool]:
    """The product rule: (da) b + a (db); and that nothing else holds its memory."""
    total: Tensor | None = None
    for i in (0, 1):
        argument = node.args[i]
        moved = values[argument].tangents if isinstance(argument, fx.Node) else None
        if moved is None:
            continue
        other = args[1 - i]
        if multiply is not torch.mul:
            total = _matrices(moved, other, total, left=i == 0)
        elif total is None:
            total = stacked(moved, y) * other
        else:
            total = total.addcmul_(stacked(moved, y), other)
    assert total is not None
    return total, True


def _matrices(moved: Tensor, other: Tensor, total: Tensor | None, *, left: bool) -> Tensor:
    """Stacked matrices (or batches of them) times one, added to what there is.

    A single product where that is possible, and in place: it is much memory.
    """
    if moved.dim() == 4:
        part = torch.matmul(moved, other) if left else torch.matmul(other, moved)
        return part if total is None else total.add_(part)
    if left:  # the first of the two: there is nothing yet
        return torch.mm(moved.flatten(0, 1), other).unflatten(0, moved.shape[:2])
    each = other.expand(len(moved), *other.shape)
    return torch.bmm(each, moved) if total is None else total.baddbmm_(each, moved)


def stacked(tangents: Tensor, y: Tensor) -> Tensor:
    """Tangents of an operand in a form that broadcasts to those of the result."""
    missing = y.dim() + 1 - tangents.dim()
    shape = tangents.shape
    return tangents.reshape(shape[0], *[1] * missing, *shape[1:]) if missing else tangents
