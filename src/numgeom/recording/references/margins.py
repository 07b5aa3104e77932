"""What are the gradients of the margin losses, and what do a few other small fused ops compute?

With the margins z_j = m - x_t + x_j of the classes j against the right one t, k classes, and g the
gradient that comes in,

    multi-margin        y = 1/k sum_{j != t} w_t max(0, z_j)^p,
    multilabel-margin   y = 1/k sum_{t right} sum_{j wrong} max(0, 1 - x_t + x_j),

so that each positive margin adds to the gradient of x_j what it takes from that of x_t. Weight norm
(Salimans and Kingma 2016) is w = g v / |v|, with norms over all dimensions but one. A randomised
leaky ReLU that is told not to draw has the mean slope.
"""

from fractions import Fraction

import torch
from torch import Tensor

from numgeom.errors import UnsupportedOpError
from numgeom.recording.formulas import elu_backward
from numgeom.recording.reals import exactly
from numgeom.recording.references.entry import Definition

_MEAN = 1  # of at::Reduction


def _multi_margin_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    p: float,
    margin: float,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
) -> Tensor:
    x = self if self.dim() == 2 else self.reshape(1, -1)
    right = target.reshape(-1, 1)
    count, classes = x.shape
    z = margin - x.gather(1, right) + x
    numbers = torch.arange(classes, device=x.device).unsqueeze(0)
    counts = (z > 0) & (numbers != right)
    slope = torch.ones_like(z) if p == 1 else 2.0 * z
    share = torch.where(counts, slope, 0.0) / classes
    if weight is not None:
        share = share * weight[right]
    if reduction == _MEAN:
        share = share / count
    share = share * (grad_output if reduction else grad_output.reshape(-1, 1))
    dx = share.scatter_add(1, right, -share.sum(1, keepdim=True))
    return dx.reshape(self.shape)


def _multilabel_margin_backward(
    grad_output: Tensor, self: Tensor, target: Tensor, reduction: int, is_target: Tensor
) -> Tensor:
    x, labels = (t if t.dim() == 2 else t.reshape(1, -1) for t in (self, target))
    wrong = is_target.reshape(x.shape) == 0
    count, classes = x.shape
    listed = torch.cumsum(labels < 0, 1) == 0  # the labels in front of the first -1
    places = labels.clamp_min(0)
    z = 1.0 - x.gather(1, places).unsqueeze(2) + x.unsqueeze(1)
    counts = (z > 0) & listed.unsqueeze(2) & wrong.unsqueeze(1)
    active = counts.to(x.dtype)
    dx = active.sum(1).scatter_add(1, places, -active.sum(2)) / classes
    if reduction == _MEAN:
        dx = dx / count
    dx = dx * (grad_output if reduction else grad_output.reshape(-1, 1))
    return dx.reshape(self.shape)


def _weight_norm_backward(
    grad_w: Tensor, saved_v: Tensor, saved_g: Tensor, saved_norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    others = [d for d in range(saved_v.dim()) if d != dim % saved_v.dim()]
    norms = saved_norms.to(saved_v.dtype)
    along = (grad_w * saved_v).sum(others, keepdim=True) / norms
    dv = (saved_g / norms) * (grad_w - saved_v * (along / norms))
    return dv, along


def _rrelu(
    self: Tensor,
    noise: Tensor,
    lower: float = 0.125,
    upper: float = 0.3333333333333333,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    del noise, generator
    if training:
        raise UnsupportedOpError(
            "rrelu_with_noise has no reference in training, where it draws: a recording holds its "
            "slopes as a constant. Record the step with numgeom.record."
        )
    return torch.where(self > 0, self, self * _middle(lower, upper, self))


def _rrelu_functional(
    self: Tensor,
    noise: Tensor,
    lower: float = 0.125,
    upper: float = 0.3333333333333333,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    return _rrelu(self, noise, lower, upper, training, generator), noise


def _rrelu_backward(
    grad_output: Tensor,
    self: Tensor,
    noise: Tensor,
    lower: float,
    upper: float,
    training: bool,
    self_is_result: bool,
) -> Tensor:
    del self_is_result  # the result has the sign of the input
    if training and upper - lower > 1e-6:  # as in the kernel: otherwise nothing was drawn
        return grad_output * noise
    return torch.where(self > 0, grad_output, grad_output * _middle(lower, upper, self))


def _middle(lower: float, upper: float, like: Tensor) -> Tensor | float:
    """The mean slope, which a double may not hold."""
    return exactly((Fraction(lower) + Fraction(upper)) / 2, like)


def _hardsigmoid_backward(grad_output: Tensor, self: Tensor) -> Tensor:
    """1/6 between -3 and 3. The kernel takes the float32 number next to 1/6, in float64 as well."""
    return torch.where((self > -3) & (self < 3), grad_output / 6, 0.0)


DEFINITIONS: tuple[Definition, ...] = (
    # The kernel is handed 1/alpha as torch takes it, from a float32 number.
    Definition("aten::elu_backward", elu_backward, "torch.nn.CELU documentation"),
    Definition(
        "aten::hardsigmoid_backward", _hardsigmoid_backward, "torch.nn.Hardsigmoid documentation"
    ),
    Definition(
        "aten::rrelu_with_noise_backward", _rrelu_backward, "torch.nn.RReLU documentation", True
    ),
    Definition(
        "aten::multi_margin_loss_backward",
        _multi_margin_backward,
        "torch.nn.MultiMarginLoss documentation",
        True,
    ),
    Definition(
        "aten::multilabel_margin_loss_backward",
        _multilabel_margin_backward,
        "torch.nn.MultiLabelMarginLoss documentation",
        True,
    ),
    Definition(
        "aten::_weight_norm_interface_backward",
        _weight_norm_backward,
        "Salimans and Kingma 2016, eq. 3",
        True,
    ),
    Definition("aten::rrelu_with_noise", _rrelu, "torch.nn.RReLU documentation", True),
    Definition(
        "aten::rrelu_with_noise_functional", _rrelu_functional, "torch.nn.RReLU documentation", True
    ),
)
