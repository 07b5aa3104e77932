"""How is a part of a gradient replaced, so that the rest keeps its bits and its layout?"""

import torch
from torch import Tensor


def scaled(weights: Tensor, given: Tensor) -> Tensor:
    """Multiply, rounding once: in float32 for 16-bit gradients, as torch's own kernels do.

    A weight of 0 gives 0 also where g is not finite: that entry does not take part.
    """
    wide = torch.float32 if given.dtype.itemsize < 4 else given.dtype
    product = weights.to(wide) * given.to(wide)
    return torch.where(weights == 0, torch.zeros((), dtype=wide, device=given.device), product)


def places(mask: Tensor) -> tuple[Tensor, ...]:
    """The indices of the true entries, one tensor per dimension."""
    return mask.nonzero(as_tuple=True) if mask.dim() else ()


def put(into: Tensor, at: tuple[Tensor, ...], values: Tensor) -> Tensor:
    """A copy, laid out as it was, with some entries replaced."""
    if not at:  # a tensor without dimensions
        return values.reshape(()).to(into.dtype)
    return into.clone().index_put_(at, values.to(into.dtype))


def put_flat(into: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """As `put`, by flat indices; equal indices have equal values."""
    line = into.clone(memory_format=torch.contiguous_format).view(-1)
    found = line.scatter(0, index, values.to(into.dtype)).view(into.shape)
    return found if into.is_contiguous() else torch.empty_like(into).copy_(found)


def added(index: Tensor, values: Tensor) -> Tensor:
    """Sum the values that share an index, in one order on every run."""
    total = torch.zeros(int(index.max()) + 1, dtype=values.dtype, device=values.device)
    if values.is_cuda:  # index_add_ uses atomics there; this one sorts
        return total.index_put_((index,), values, accumulate=True)
    return total.index_add_(0, index, values)
