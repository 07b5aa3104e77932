"""How much error does a kernel make inside, beside rounding its result?

A result of format F with unit roundoff u is rounded once when it is stored; that rounding is done,
not modelled. What is modelled here is the rest: the additions inside a matrix product, the steps of
a softmax. Each output gets a standard deviation in units of u, entry by entry.

Two families:

Accumulations of k terms t, added one after another in blocks of b, block sums added likewise. A
rounding to nearest has mean square C (u x)^2 when the significand of x is distributed as 1/m
(Benford), C = (1/3) (1 - 1/4) / (2 ln 2). Partial sums of terms with random signs grow as the
square root of their number, those of terms with one sign linearly; so per block

    variance / (C u^2) = (b - 1)/2 * s^2 + (b - 1)/3 * (b/k) * (y^2 - s^2),   s^2 = sum t^2,

and the k/b block sums add (k/b - 1)/2 * s^2 + (k/b - 1)/3 * (y^2 - s^2). For terms of random signs
y^2 is s^2 on average. (Higham and Mary 2019 have the same growth.) s^2 is taken as a product of
mean squares of the factors. Adding a zero is exact, so k counts the terms that are not zero, taken
as the product of the shares of nonzero entries of both factors.

Composite kernels: a multiple of u |y| and a multiple of u times the root mean square of y along its
last dimension, measured against float64 by benchmarks/estimate.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MEAN_SQUARE = (1.0 - 0.25) / (2.0 * math.log(2.0)) / 3.0

# Terms that matrix products add before they start a new block: measured for float32 on x86 CPUs.
PRODUCT_BLOCK = 192
# Convolutions add all terms one after another (measured; oneDNN on x86).
SEQUENTIAL = 1 << 30
# Reductions keep many partial sums and join them in a tree (torch's vectorized sum).
SUM_BLOCK = 16
_COUNTED = 4096

Deviations = Sequence[Tensor | None]
"""Standard deviation in units of u, one item per output; None for none."""


@dataclass(frozen=True)
class Kernel:
    """What is known about the inside of a kernel.

    Attributes:
        inside: Takes the arguments and the outputs (float64), returns a deviation per output.
        low: Multiples of u * rms(y) that are added where the output is in a 16-bit format:
            kernels that keep more than their result in 16 bits. One per output; empty for none.
    """

    inside: Callable[[Sequence[Any], Sequence[Tensor | None]], Deviations]
    low: tuple[float, ...] = ()


def accumulation(terms: float, y: Tensor, squares: Tensor, block: int) -> Tensor:
    """Standard deviation of a sum of products, in units of u; see the head of the file.

    Args:
        terms: k, the number of terms of each sum that are not zero, on average.
        y: The sums.
        squares: s^2, the sum of the squared terms of each sum; broadcasts to y.
        block: b, how many terms are added before the sum is put aside.
    """
    terms = max(terms, 1.0)
    b = min(terms, block)
    blocks = terms / b
    random = 0.5 * (b - 1.0 + blocks - 1.0)
    same_sign = ((b - 1.0) * (b / terms) + blocks - 1.0) / 3.0
    # same_sign <= random, so nothing here is negative.
    variance = squares * (MEAN_SQUARE * (random - same_sign))
    if variance.shape == y.shape:
        return variance.addcmul_(y, y, value=MEAN_SQUARE * same_sign).sqrt_()
    return torch.addcmul(variance, y, y, value=MEAN_SQUARE * same_sign).sqrt_()


# -- accumulations -------------------------------------------------------------------------


def _product(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    (out,) = y
    a, b = args[-2], args[-1]
    return [_matrix_product(a, b, out)]


def _added_product(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    (out,) = y
    return [_matrix_product(args[1], args[2], out)]


def _summed_products(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    """The products of a batch, added up: one product of the factors side by side."""
    (out,), a, b = y, args[1], args[2]
    return [_matrix_product(a.movedim(0, 1).flatten(1), b.flatten(0, 1), out)]


def _matrix_product(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor | None:
    if out is None or a.numel() == 0 or b.numel() == 0:
        return None
    k = a.shape[-1]
    terms = k * _filled(a) * _filled(b)
    rows = _sum_of_squares(a, -1).div_(k)
    if b.dim() == 1:  # a matrix times a vector, or two vectors
        return accumulation(terms, out, rows * b.pow(2).sum(), PRODUCT_BLOCK)
    columns = _sum_of_squares(b, -2)
    return accumulation(terms, out, rows[..., None] * columns[..., None, :], PRODUCT_BLOCK)


def _sum_of_squares(x: Tensor, dim: int) -> Tensor:
    # The norm is the fastest way along neighbours in memory, and the slowest along others.
    if x.stride(dim) == 1:
        return torch.linalg.vector_norm(x, dim=dim).square_()
    return x.pow(2).sum(dim)


def _filled(x: Tensor) -> float:
    """The share of entries that are not zero; of a large tensor about 4,000 entries tell it."""
    if x.numel() > 2 * _COUNTED:
        x = x if x.is_contiguous() or x.dim() < 2 else x.mT
        if x.is_contiguous():
            x = x.view(-1)[:: x.numel() // _COUNTED | 1]  # odd: it does not stay in one column
    return float(x.count_nonzero()) / max(x.numel(), 1)


def _convolution(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    (out,) = y
    x, weight, transposed = args[0], args[1], args[6]
    if out is None or not out.numel():
        return [None]
    k = weight[0].numel()
    if transposed:
        k = weight.numel() / weight.shape[1] / max(math.prod(args[3]), 1)
        squares = _mean_square(x, keep=(0,)) * weight.pow(2).mean() * k
    else:
        per_channel = _mean_square(weight, keep=(0,)).flatten()
        squares = _mean_square(x, keep=(0,)) * _as_channels(per_channel, out) * k
    return [accumulation(k * _filled(x) * _filled(weight), out, squares, SEQUENTIAL)]


def _convolution_backward(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    dy, x, weight, stride, transposed = args[0], args[1], args[2], args[4], args[7]
    dx, dweight, dbias = y
    found: list[Tensor | None] = [None, None, None]
    if not dy.numel():
        return found
    filled = _filled(dy)
    if dx is not None:
        k = weight.numel() / weight.shape[1] / (1 if transposed else max(math.prod(stride), 1))
        squares = _mean_square(dy, keep=(0,)) * weight.pow(2).mean() * k
        found[0] = accumulation(k * filled * _filled(weight), dx, squares, SEQUENTIAL)
    if dweight is not None:
        k = (x if transposed else dy)[:, 0].numel()
        channels = _mean_square(dy, keep=(1,)).flatten()
        if transposed or channels.numel() != dweight.shape[0]:
            channels = channels.mean().expand(dweight.shape[0])
        rows = channels.reshape(-1, *[1] * (dweight.dim() - 1))
        squares = rows * x.pow(2).mean() * k
        found[1] = accumulation(k * filled * _filled(x), dweight, squares, SEQUENTIAL)
    if dbias is not None:
        k = dy[:, 0].numel()
        squares = _mean_square(dy, keep=(1,)).flatten() * k
        found[2] = accumulation(k * filled, dbias, squares, SEQUENTIAL)
    return found


def _sum(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    return _reduced(args, y, mean=False)


def _mean(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    return _reduced(args, y, mean=True)


def _reduced(args: Sequence[Any], y: Sequence[Tensor | None], *, mean: bool) -> Deviations:
    (out,) = y
    x = args[0]
    if out is None or not x.is_floating_point() or not out.numel() or not x.numel():
        return [None]
    k = x.numel() / out.numel()
    dims = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple, int)) else None
    dims = tuple(range(x.dim())) if dims in (None, [], ()) else dims
    keep = bool(args[2]) if len(args) > 2 else False
    squares = x.pow(2).sum(dims, keepdim=keep)
    if mean:
        squares = squares / (k * k)
    block = min(k, SUM_BLOCK)
    inside = accumulation(block, out, squares, SUM_BLOCK) * math.sqrt(block / k)
    tree = MEAN_SQUARE * math.log2(max(k / block, 1.0)) * torch.maximum(out * out, squares)
    return [(inside.pow(2) + tree).sqrt()]


def _mean_square(x: Tensor, *, keep: tuple[int, ...]) -> Tensor:
    dims = [d for d in range(x.dim()) if d not in keep]
    return x.pow(2).mean(dims, keepdim=True) if dims else x.pow(2)


def _as_channels(values: Tensor, out: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (out.dim() - 2))


# -- composite kernels ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Composite:
    """Deviations of the outputs of a kernel of several steps.

    Attributes:
        relative: Multiple of |y|, per output.
        along: Multiple of the root mean square of y along its last dimension, per output.
        sums: Outputs that are sums over all the rows that go in, such as gradients of weights.
    """

    relative: tuple[float, ...]
    along: tuple[float, ...]
    sums: tuple[int, ...] = ()

    def __call__(self, args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
        entries = max((a.numel() for a in args if isinstance(a, Tensor)), default=1)
        found: list[Tensor | None] = []
        for i, out in enumerate(y):
            if out is None or not out.numel():
                found.append(None)
                continue
            last = -1 if out.dim() else ()
            mean_square = out.pow(2).mean(last, keepdim=bool(out.dim()))
            along = self.along[min(i, len(self.along) - 1)] ** 2
            if i in self.sums:
                k = min(entries / out.numel(), SEQUENTIAL)
                along += 0.5 * MEAN_SQUARE * max(k - 1.0, 0.0)
            relative = self.relative[min(i, len(self.relative) - 1)]
            found.append((out.pow(2) * relative**2 + mean_square * along).sqrt())
        return found


def _nothing(args: Sequence[Any], y: Sequence[Tensor | None]) -> Deviations:
    del args
    return [None] * len(y)


PLAIN = Kernel(_nothing)
"""A kernel that rounds its result once and no more."""

MATRIX_PRODUCT = Kernel(_product)
ADDED_PRODUCT = Kernel(_added_product)
SUMMED_PRODUCTS = Kernel(_summed_products)
CONVOLUTION = Kernel(_convolution)
CONVOLUTION_BACKWARD = Kernel(_convolution_backward)
SUM = Kernel(_sum)
MEAN = Kernel(_mean)

# Measured against float64, x86 CPU, torch 2.13, on tensors of 64 x 128 Gaussian numbers, rounded to
# one digit; benchmarks/estimate.py compares (part "kernels").
THREE_STEPS = Kernel(_Composite((0.6,), (0.0,)))
ALONG_ROW = Kernel(_Composite((0.4,), (0.6,)))
NLL_LOSS = Kernel(_Composite((0.6, 0.0), (0.0,)))  # the second output is a count
GELU_BACKWARD = Kernel(_Composite((1.2,), (0.8,)))
SOFTMAX = Kernel(_Composite((1.4,), (0.0,)))
SOFTMAX_BACKWARD = Kernel(_Composite((0.8,), (1.2,)))
LAYER_NORM = Kernel(_Composite((0.4, 0.6), (0.5, 1.2, 0.6)))
LAYER_NORM_BACKWARD = Kernel(_Composite((0.6, 0.0), (0.5, 0.0), sums=(1, 2)))
RMS_NORM = Kernel(_Composite((0.6,), (0.3,)))
RMS_NORM_BACKWARD = Kernel(_Composite((0.6, 0.0), (0.5, 0.0), sums=(1,)))
BATCH_NORM = Kernel(_Composite((0.5,), (0.7, 3.0, 1.0)))
BATCH_NORM_BACKWARD = Kernel(_Composite((0.6, 0.0), (0.5, 0.5), sums=(1, 2)))
GROUP_NORM = Kernel(_Composite((0.5,), (0.5, 2.0, 0.6)))
FLASH_ATTENTION = Kernel(_Composite((0.5,), (2.0, 0.5)), low=(1.0, 0.0))
FLASH_ATTENTION_BACKWARD = Kernel(_Composite((0.5,), (3.0,)), low=(1.0, 1.0, 1.0))
GROUPED_PRODUCT = Kernel(_Composite((0.5,), (1.0,)))
RECURRENT = Kernel(_Composite((1.0,), (2.0,)))
RECURRENT_BACKWARD = Kernel(_Composite((1.0,), (4.0,)))
