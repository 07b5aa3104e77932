"""What do the ops compute that add up bags of rows of a table, and what are their gradients?

Position p of `indices` lies in the bag b(p), the number of offsets that are at most p, less one.
With w the table, s the weights of the samples (1 where none are given) and n_b the number of
positions in bag b, those of the padding row left out,

    sum   y_b = sum_p s_p w[indices_p],        mean  y_b = sum_p w[indices_p] / n_b,
    max   y_b = max_p w[indices_p], of every column on its own;

an empty bag gives 0. (The documentation of torch.nn.EmbeddingBag.)
"""

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.references.entry import Definition

_SOURCE = "torch.nn.EmbeddingBag documentation"
_SUM, _MEAN, _MAX = range(3)
_RENORM_EPS = 1e-7  # torch.nn.functional.embedding with max_norm divides by the norm plus this


def _bag_of(indices: Tensor, offsets: Tensor) -> Tensor:
    """The bag of every position; a closing offset at the end, if there is one, is never reached."""
    positions = torch.arange(indices.numel(), device=indices.device, dtype=offsets.dtype)
    return (positions.unsqueeze(1) >= offsets.unsqueeze(0)).sum(1) - 1


def _counted(indices: Tensor, padding_idx: int) -> Tensor:
    """Which positions count: all but the padding, as 0 or 1."""
    return indices != padding_idx


def _sizes(bag: Tensor, counted: Tensor, bags: int) -> Tensor:
    """How many positions of every bag count."""
    empty = torch.zeros(bags, dtype=torch.int64, device=bag.device)
    return empty.index_add(0, bag, counted.to(torch.int64))


def _bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del scale_grad_by_freq, sparse
    bags = offsets.numel() - int(include_last_offset)
    bag, counted = _bag_of(indices, offsets), _counted(indices, padding_idx)
    sizes = _sizes(bag, counted, bags)
    rows = weight[indices]
    zeros = weight.new_zeros((bags, weight.size(1)))
    if mode == _MAX:
        y, chosen = _largest(rows, bag, counted, sizes)
        return y, bag, sizes, torch.where(sizes.unsqueeze(1) > 0, indices[chosen], 0)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    rows = torch.where(counted.unsqueeze(1), rows, 0.0)
    y = zeros.index_add(0, bag, rows)
    if mode == _MEAN:
        y = y / sizes.clamp_min(1).to(y.dtype).unsqueeze(1)
    return y, bag, sizes, sizes


def _largest(rows: Tensor, bag: Tensor, counted: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entries of every bag, and the positions that they stand at."""
    numbers = torch.arange(sizes.numel(), device=bag.device)
    inside = (bag.unsqueeze(0) == numbers.unsqueeze(1)) & counted.unsqueeze(0)
    if rows.size(0) == 0:
        empty = rows.new_zeros((sizes.numel(), rows.size(1)))
        return empty, empty.to(torch.int64)
    spread = torch.where(inside.unsqueeze(2), rows.unsqueeze(0), -torch.inf)
    largest, chosen = spread.max(1)
    return torch.where(sizes.unsqueeze(1) > 0, largest, 0.0), chosen


def _bag_backward(
    grad: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    bag_size: Tensor,
    maximum_indices: Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Tensor:
    del offset2bag, bag_size
    if sparse:
        raise UnsupportedOpError(
            "_embedding_bag_backward has no reference for sparse gradients; use sparse=False."
        )
    bag, counted = _bag_of(indices, offsets), _counted(indices, padding_idx)
    sizes = _sizes(bag, counted, grad.size(0))
    zeros = grad.new_zeros((num_weights, grad.size(1)))
    if mode == _MAX:
        open_bags = torch.where(sizes.unsqueeze(1) > 0, grad, 0.0)
        return zeros.scatter_add(0, maximum_indices.to(torch.int64), open_bags)
    shares = grad[bag]
    if mode == _MEAN:
        shares = shares / sizes.clamp_min(1)[bag].to(grad.dtype).unsqueeze(1)
    if per_sample_weights is not None:
        shares = shares * per_sample_weights.unsqueeze(1)
    if scale_grad_by_freq:
        counts = torch.zeros(num_weights, dtype=torch.int64, device=grad.device)
        counts = counts.index_add(0, indices, torch.ones_like(indices, dtype=torch.int64))
        shares = shares / counts[indices].to(grad.dtype).unsqueeze(1)
    return zeros.index_add(0, indices, torch.where(counted.unsqueeze(1), shares, 0.0))


def _weights_backward(
    grad: Tensor,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    offset2bag: Tensor,
    mode: int,
    padding_idx: int = -1,
) -> Tensor:
    del offset2bag, mode  # sample weights exist for sums alone
    products = (grad[_bag_of(indices, offsets)] * weight[indices]).sum(1)
    return torch.where(_counted(indices, padding_idx), products, 0.0)


def _renorm(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Rows that are looked up and longer than `max_norm`, shortened to it."""
    rows = torch.zeros(weight.size(0), dtype=torch.bool, device=weight.device)
    touched = rows.index_put((indices.reshape(-1),), torch.ones_like(rows[:1])[0])
    norms = torch.linalg.vector_norm(weight, norm_type, [1])
    shortened = weight * (max_norm / (norms + _RENORM_EPS)).unsqueeze(1)
    return torch.where((touched & (norms > max_norm)).unsqueeze(1), shortened, weight)


DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::_embedding_bag", _bag, _SOURCE, True),
    Definition("aten::_embedding_bag_forward_only", _bag, _SOURCE, True),
    Definition("aten::_embedding_bag_backward", _bag_backward, _SOURCE, True),
    Definition(
        "aten::_embedding_bag_per_sample_weights_backward", _weights_backward, _SOURCE, True
    ),
    Definition(
        "aten::embedding_renorm", _renorm, "torch.nn.Embedding documentation, max_norm", True
    ),
)
