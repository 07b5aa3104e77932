"""What are the distances between all pairs of one set of points, and what is their gradient?

y_ij = |x_i - x_j|_p for i < j, row by row. With d = x_i - x_j, the gradient of y_ij for x_i is

    d / y (p = 2),   sign d (p = 1),   sign d where |d| = y (p = inf),   sign d (|d| / y)^(p-1),

and 0 where y = 0. (The documentation of torch.nn.functional.pdist.)
"""

import math

import torch
from torch import Tensor

from numgeom.recording.references.entry import Definition

_SOURCE = "torch.nn.functional.pdist documentation"


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers i < j of all pairs of rows."""
    pairs = torch.triu_indices(x.size(0), x.size(0), 1, device=x.device)
    return pairs[0], pairs[1]


def _forward(self: Tensor, p: float = 2.0) -> Tensor:
    i, j = _pairs(self)
    return torch.linalg.vector_norm(self[i] - self[j], p, [1])


def _backward(grad: Tensor, self: Tensor, p: float, pdist: Tensor) -> Tensor:
    i, j = _pairs(self)
    d = self[i] - self[j]
    y, g = pdist.unsqueeze(1), grad.unsqueeze(1)
    apart = y != 0
    divisor = torch.where(apart, y, 1.0)
    if p == 0.0:
        share = torch.zeros_like(d)
    elif p == 1.0:
        share = g * torch.sign(d)
    elif p == 2.0:
        share = torch.where(apart, g / divisor, 0.0) * d
    elif math.isinf(p):
        share = torch.where(apart & (d.abs() == y), g * torch.sign(d), 0.0)
    else:
        ratio = torch.where(d != 0, d.abs() / divisor, 1.0) ** (p - 1)
        share = torch.where(apart, g * torch.sign(d) * ratio, 0.0)
    return torch.zeros_like(self).index_add(0, i, share).index_add(0, j, -share)


DEFINITIONS: tuple[Definition, ...] = (
    Definition("aten::_pdist_forward", _forward, _SOURCE, True),
    Definition("aten::_pdist_backward", _backward, _SOURCE, True),
)
