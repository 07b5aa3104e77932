"""Small functions with tied units, one per kind of kink and per way to call it.

`f(a, b)` maps two parameters with entries in {-1, 0, 1} to a tensor; ties are frequent.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[[Tensor, Tensor], Tensor]


class Kinked(nn.Module):
    """Two parameters, a function of them, and fixed weights that make it a loss."""

    def __init__(self, function: Function, shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draws = torch.randint(-1, 2, (2, *shape), generator=generator).float()
        self.a, self.b = nn.Parameter(draws[0]), nn.Parameter(draws[1])
        self.function = function
        self.register_buffer("weights", torch.rand(1000, generator=generator))

    def forward(self) -> Tensor:
        y = self.function(self.a, self.b).flatten()
        return (y * self.weights[: y.numel()]).sum()


def _of_product(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda a, b: function(a * b)


def _sign_margin(loss: Callable[..., Tensor]) -> Function:
    return lambda a, b: loss(a, b, torch.ones_like(a))


def _shared_input(x: Tensor) -> Tensor:
    norms = [torch.linalg.vector_norm(x, 1, dim=d) for d in (0, 1)]
    return torch.cat([x.abs().flatten(), *norms])


# name -> (function, shape of the parameters)
UNARY: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "relu": (F.relu, (3, 4)),
    "relu-in-place": (lambda x: x.relu_(), (3, 4)),
    "relu-of-relu": (lambda x: F.relu(F.relu(x) - 1), (3, 4)),
    "leaky-relu": (F.leaky_relu, (3, 4)),
    "leaky-relu-in-place": (F.leaky_relu_, (3, 4)),
    "elu": (lambda x: F.elu(x, alpha=0.5), (3, 4)),
    "elu-in-place": (lambda x: F.elu_(x, alpha=0.5), (3, 4)),
    "selu": (F.selu, (3, 4)),
    "relu6": (F.relu6, (3, 4)),
    "hardtanh-in-place": (F.hardtanh_, (3, 4)),
    "hardtanh-twice": (lambda x: F.hardtanh(x) + F.hardtanh(x, 0, 1), (3, 4)),
    "hardtanh-of-hardtanh": (lambda x: F.hardtanh(F.hardtanh(x)), (3, 4)),
    "threshold": (lambda x: F.threshold(x, 0, 0), (3, 4)),
    "threshold-in-place": (lambda x: F.threshold_(x, 0, 0), (3, 4)),
    "softshrink": (lambda x: F.softshrink(x, 1.0), (3, 4)),
    "hardsigmoid": (lambda x: F.hardsigmoid(3 * x), (3, 4)),
    "hardswish": (lambda x: F.hardswish(3 * x), (3, 4)),
    "abs": (torch.abs, (3, 4)),
    "abs-in-place": (lambda x: x.abs_(), (3, 4)),
    "abs-and-norms-of-one-input": (_shared_input, (3, 3)),
    "clamp": (lambda x: x.clamp(-1, 1), (3, 4)),
    "clamp-min": (lambda x: x.clamp_min(0), (3, 4)),
    "clamp-min-keyword": (lambda x: x.clamp(min=0), (3, 4)),
    "clamp-max": (lambda x: x.clamp_max(0), (3, 4)),
    "clamp-twice": (lambda x: x.clamp(0, 1) + x.clamp(-1, 0), (3, 4)),
    "clamp-beside-where": (lambda x: torch.where(x >= 0, x, 0) + x.clamp(min=0), (3, 4)),
    "max": (torch.max, (3, 4)),
    "min": (torch.min, (3, 4)),
    "max-along": (lambda x: x.max(1)[0], (3, 4)),
    "max-along-kept": (lambda x: x.max(1, True)[0], (3, 4)),
    "min-along": (lambda x: x.min(0)[0], (3, 4)),
    "amax": (lambda x: x.amax(1), (3, 4)),
    "amax-kept": (lambda x: x.amax((0, 1), True), (3, 4)),
    "max-of-amax": (lambda x: x.amax(1).max(), (3, 4)),
    "amax-of-amax": (lambda x: x.amax(1, keepdim=True).amax(0), (3, 4)),
    "amin": (lambda x: x.amin((0, 2)), (3, 4, 2)),
    "norm-2": (lambda x: x.norm(dim=1), (8, 2)),
    "norm-3": (lambda x: torch.linalg.vector_norm(x, 3, dim=1), (8, 2)),
    "norm-1.5": (lambda x: torch.linalg.vector_norm(x, 1.5, dim=0, keepdim=True), (2, 8)),
    "norm-1": (lambda x: torch.linalg.vector_norm(x, 1, dim=1), (8, 2)),
    "norm-1-full": (lambda x: torch.norm(x, p=1), (8, 2)),
    "norm-inf": (lambda x: torch.linalg.vector_norm(x, math.inf, dim=1), (8, 3)),
    "hinge-embedding": (lambda x: F.hinge_embedding_loss(x, -torch.ones(3, 4)), (3, 4)),
    "max-pool1d": (lambda x: F.max_pool1d(x, 3, 2, 1, 1, True), (1, 2, 8)),
    "max-pool2d": (lambda x: F.max_pool2d(x, 2), (2, 2, 6, 6)),
    "max-pool2d-overlapping": (lambda x: F.max_pool2d(x, 3, 2, 1), (2, 2, 7, 7)),
    "max-pool2d-channels-last": (
        lambda x: F.max_pool2d(x.to(memory_format=torch.channels_last), 3, 2, 1),
        (2, 3, 7, 7),
    ),
    "max-pool3d": (lambda x: F.max_pool3d(x, 2, 1), (1, 2, 4, 4, 4)),
    "adaptive-max-pool1d": (lambda x: F.adaptive_max_pool1d(x, 3), (1, 2, 8)),
    "adaptive-max-pool2d": (lambda x: F.adaptive_max_pool2d(x, (3, 2)), (1, 2, 8, 8)),
    "adaptive-max-pool3d": (lambda x: F.adaptive_max_pool3d(x, 2), (1, 1, 5, 5, 5)),
}

BINARY: dict[str, tuple[Function, tuple[int, ...]]] = {
    "prelu": (lambda a, b: F.prelu(a, b[0]), (3, 4)),
    "prelu-one-slope": (lambda a, b: F.prelu(a, b[0, :1]), (3, 4)),
    "clamp-tensors": (lambda a, b: torch.clamp(a, b, b + 1), (3, 4)),
    "clamp-broadcast": (lambda a, b: torch.clamp(a, b[0], b[0, :1] + 1), (3, 4)),
    "clamp-one-bound-trained": (lambda a, b: torch.clamp(a, b.detach(), b + 1), (3, 4)),
    "clamp-min-tensor": (lambda a, b: torch.clamp_min(a, b[0, 0]), (3, 4)),
    "clamp-max-tensor": (lambda a, b: torch.clamp_max(a, b[0]), (3, 4)),
    "maximum": (torch.maximum, (3, 4)),
    "maximum-broadcast": (lambda a, b: torch.maximum(a, b[0]), (3, 4)),
    "maximum-second-trained": (lambda a, b: torch.maximum(a.detach(), b), (3, 4)),
    "minimum": (torch.minimum, (3, 4)),
    "fmax": (torch.fmax, (3, 4)),
    "fmin-broadcast": (lambda a, b: torch.fmin(a, b[:1]), (3, 4)),
    "l1-loss": (F.l1_loss, (3, 4)),
    "margin-ranking": (_sign_margin(F.margin_ranking_loss), (3, 4)),
    "pairwise-distance": (lambda a, b: F.pairwise_distance(a, b, eps=0.0), (8, 2)),
    "pairwise-distance-1": (lambda a, b: F.pairwise_distance(a, b, p=1.0, eps=0.0), (8, 2)),
}

KINKED: dict[str, tuple[Function, tuple[int, ...]]] = {
    **{name: (_of_product(function), shape) for name, (function, shape) in UNARY.items()},
    **BINARY,
}
