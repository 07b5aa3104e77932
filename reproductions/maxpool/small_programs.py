"""Which small programs show that autograd's answer depends on how a function is written?

The programs of Boustany (2024): two ways to write the maximum of four numbers, and their
difference, which is zero as a function and not in its computed derivative (table 1, figure 7); the
same with the maximum written through ReLU (table 3, figure 9); pooling by the Euclidean norm
(appendix A.4); a convolution whose two derivatives differ over the reals (appendix A.5).

The identity for the maximum that the paper prints in section 3.1 and appendix A.3 is false, the one
in its figure 9 is used: max(a, b) = (a + b)/2 + ReLU((a - b)/2) + ReLU((b - a)/2).
"""

import enum
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIMES = (-1e-3, -1e-2, -1e-1, 0.0, 1e1, 1e2, 1e3)
"""The values of t in tables 1 and 3."""

POINTS = ((1.0, 2.0, 3.0, 4.0), (1.4, 1.4, 1.4, 1.4))
"""The points x1 and x2 of tables 1 and 3."""


def relu_at_zero(x: Tensor, s: float) -> Tensor:
    """ReLU with ReLU'(0) = s: the derivative is 1 for x > 0, s at both zeros, 0 for x < 0."""
    return _ReLU.apply(x, s)


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.s = s
        return torch.relu(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,), (g,) = ctx.saved_tensors, gradients
        return torch.where(x > 0, g, torch.where(x == 0, ctx.s * g, 0)), None


def max_by_loop(x: Tensor) -> Tensor:
    """Maximum of a vector by a Python loop with a strict comparison: the first of equals wins."""
    best = x[0]
    for entry in x[1:]:
        if entry > best:
            best = entry
    return best


def max_by_op(x: Tensor) -> Tensor:
    """Maximum of a vector by `torch.max`, which splits a tie evenly."""
    return torch.max(x)


def max_of_two(a: Tensor, b: Tensor, *, s: float = 0.0) -> Tensor:
    """Maximum through ReLU, with ReLU'(0) = s in the first ReLU and 0 in the second.

    At a tie the derivative is ((1 + s)/2, (1 - s)/2). With the same s in both it would be one half
    each for every s.
    """
    return (a + b) / 2 + relu_at_zero((a - b) / 2, s) + torch.relu((b - a) / 2)


def max_by_relu(x: Tensor, *, s: float = 0.0) -> Tensor:
    """Maximum of four numbers through ReLU: a tournament of `max_of_two` along dimension 0."""
    left, right = max_of_two(x[0], x[1], s=s), max_of_two(x[2], x[3], s=s)
    return max_of_two(left, right, s=s)


def zero(t: Tensor, x: Tensor) -> Tensor:
    """max1(z) - max2(z) at z = t·x, zero as a function of t (table 1).

    Both maxima read the same z, so that one sum collects both gradients: the residue near the unit
    roundoff is that of this sum. Two separate backward passes give equal derivatives at (1.4, ...).
    """
    z = t * x
    return max_by_loop(z) - max_by_op(z)


def zero2(t: Tensor, x: Tensor) -> Tensor:
    """The maximum through ReLU with ReLU'(0) = 0 minus that with 1, in the first ReLU (table 3)."""
    z = t * x
    return max_by_relu(z) - max_by_relu(z, s=1.0)


def zero_of_relus(t: Tensor, x: Tensor) -> Tensor:
    """ReLU of t with ReLU'(0) = 0 minus that with 1: a control without a residue of rounding."""
    del x
    return torch.relu(t) - relu_at_zero(t, 1.0)


def zero_of_norms(t: Tensor, x: Tensor) -> Tensor:
    """The norm of t·x with derivative 0 at 0 minus that with ones: the other control."""
    z = (t * x)[None]
    first = _Norm.apply(z, AtZero.MINIMAL, None)
    return (first - _Norm.apply(z, AtZero.ONES, None))[0]


def derivative(program: Callable[[Tensor, Tensor], Tensor], t: float, x: Tensor) -> float:
    """The derivative of a program at t as autograd computes it, in the format of x."""
    at = torch.tensor(t, dtype=x.dtype, device=x.device, requires_grad=True)
    (found,) = torch.autograd.grad(program(at, x), at)
    return float(found)


def derivative_table(
    program: Callable[[Tensor, Tensor], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    points: Iterable[tuple[float, ...]] = POINTS,
    times: Iterable[float] = TIMES,
) -> dict[tuple[float, ...], list[float]]:
    """Derivatives at every point x and every t: the rows of tables 1 and 3.

    The sign of the residue near the unit roundoff depends on x and on the format; only its
    magnitude is the paper's.
    """
    times = tuple(times)
    return {
        x: [derivative(program, t, torch.tensor(x, dtype=dtype)) for t in times] for x in points
    }


# -- appendix A.4 ------------------------------------------------------------------------


class AtZero(enum.Enum):
    """The derivative of the Euclidean norm at a zero window of n entries.

    Clarke's subdifferential there is the unit ball.
    """

    MINIMAL = "zero"
    """The zero vector, of least norm; the paper's first program."""

    ONES = "ones"
    """The vector of ones; the paper's second program. Its norm is sqrt(n): no Clarke derivative."""

    EQUAL = "equal"
    """1/sqrt(n) each, of norm 1: a Clarke derivative as far from zero as there is."""

    def entry(self, n: int) -> float:
        """The entries of the vector."""
        return {"zero": 0.0, "ones": 1.0, "equal": n**-0.5}[self.value]


class NormPool2d(nn.Module):
    """Pooling by the Euclidean norm of each window, with a chosen derivative at zero windows.

    Args:
        kernel_size: Side of the windows; they do not overlap.
        at_zero: The derivative at zero windows.
        accumulate: Format in which squares are taken and summed; None is the input's. In float16
            small squares round to zero, and a window that is not zero gets the norm zero.

    Attributes:
        n_underflows: Windows so far that were not zero and had the norm zero.
    """

    def __init__(
        self,
        kernel_size: int = 2,
        *,
        at_zero: AtZero = AtZero.MINIMAL,
        accumulate: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.at_zero = at_zero
        self.accumulate = accumulate
        self.n_underflows = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., H, W] to [..., H // k, W // k]."""
        k = self.kernel_size
        windows = x.unfold(-2, k, k).unfold(-2, k, k).flatten(-2)
        y: Any = _Norm.apply(windows, self.at_zero, self.accumulate)
        self.n_underflows += int(((y == 0) & (windows.detach() != 0).any(dim=-1)).sum())
        return y


class _Norm(torch.autograd.Function):
    """Euclidean norm over the last dimension."""

    @staticmethod
    def forward(
        ctx: Any, windows: Tensor, at_zero: AtZero, accumulate: torch.dtype | None
    ) -> Tensor:
        wide = windows.to(accumulate or windows.dtype)
        y = (wide * wide).sum(dim=-1).sqrt().to(windows.dtype)
        ctx.save_for_backward(windows, y)
        ctx.entry = at_zero.entry(windows.shape[-1])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        windows, y = ctx.saved_tensors
        y, g = y[..., None], gradients[0][..., None]
        return torch.where(y > 0, windows / y, ctx.entry) * g, None, None


class ReLUMaxPool2d(nn.Module):
    """2x2 max-pooling with the maximum written through ReLU.

    Args:
        s: ReLU'(0) in the first ReLU of every comparison; 0 in the second.
    """

    def __init__(self, *, s: float = 0.0) -> None:
        super().__init__()
        self.s = s

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., H, W] to [..., H // 2, W // 2]."""
        windows = x.unfold(-2, 2, 2).unfold(-2, 2, 2).flatten(-2)
        return max_by_relu(windows.movedim(-1, 0), s=self.s)


# -- appendix A.5 ------------------------------------------------------------------------


def bifurcation_example(k: float = 1.0) -> tuple[Tensor, Tensor]:
    """An image [1, 1, 4, 4] and a kernel [1, 1, 3, 3] in the bifurcation zone.

    The loss `pooled_convolution` is k. Its gradient with the native max-pool is E11, with the
    minimal one (E11 + E13)/2, whatever k. This image is the only one of zeros and ones that does
    it.
    """
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0] = image[0, 0, 0, 3] = 1
    return image, torch.full((1, 1, 3, 3), float(k))


def pooled_convolution(image: Tensor, kernel: Tensor) -> Tensor:
    """The loss of appendix A.5: the maximum of the convolution, by a 2x2 pool."""
    return F.max_pool2d(F.conv2d(image, kernel), 2).sum()
