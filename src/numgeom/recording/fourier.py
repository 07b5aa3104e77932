"""What are the discrete Fourier transforms, in ops that have rules?

X_k = sum_j x_j e^(-2 pi i jk/n), the inverse with the other sign, one dimension after the other; in
real numbers products with the matrices of cos(2 pi jk/n) and sin(2 pi jk/n). The angles are made in
the program, with pi = acos(-1), so that their errors are known. (The documentation of torch.fft.)

A product takes n^2 steps where a fast transform takes n log n; its bounds hold.
"""

import math

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor]
_BY_ROOT, _BY_LENGTH = 1, 2  # of at::native::fft_norm_mode; 0: as it is


def real_to_complex(x: Tensor, dim: list[int], normalization: int, onesided: bool) -> Parts:
    """The parts of the transform of real numbers; one-sided: half of the last dimension."""
    *others, last = dim
    n = x.size(last)
    cos, sin = _waves(n, n // 2 + 1 if onesided else n, x)
    re, im = _along(x, cos, last), -_along(x, sin, last)
    for d in others:
        re, im = _rotated(re, im, d, forward=True)
    return _scaled((re, im), math.prod(x.size(d) for d in dim), normalization)


def complex_to_complex(
    re: Tensor, im: Tensor, dim: list[int], normalization: int, forward: bool
) -> Parts:
    """The parts of the transform, or of its inverse."""
    length = math.prod(re.size(d) for d in dim)
    for d in dim:
        re, im = _rotated(re, im, d, forward=forward)
    return _scaled((re, im), length, normalization)


def complex_to_real(
    re: Tensor, im: Tensor, dim: list[int], normalization: int, last_dim_size: int
) -> Tensor:
    """The inverse of a transform of real numbers, of which one half is given."""
    *others, last = dim
    length = last_dim_size * math.prod(re.size(d) for d in others)
    for d in others:
        re, im = _rotated(re, im, d, forward=False)
    n, half = last_dim_size, last_dim_size // 2 + 1
    cos, sin = (wave.t() for wave in _waves(n, half, re))
    once = [k == 0 or 2 * k == n for k in range(half)]  # the others stand for two
    weights = torch.tensor([[1.0 if o else 2.0] for o in once], dtype=re.dtype, device=re.device)
    re, im = re.narrow(last, 0, half), im.narrow(last, 0, half)
    y = _along(re, cos * weights, last) - _along(im, sin * weights, last)
    return _scaled((y, y), length, normalization)[0]


def _rotated(re: Tensor, im: Tensor, dim: int, *, forward: bool) -> Parts:
    cos, sin = _waves(re.size(dim), re.size(dim), re)
    a, b = _along(re, cos, dim), _along(im, sin, dim)
    c, d = _along(im, cos, dim), _along(re, sin, dim)
    return (a + b, c - d) if forward else (a - b, c + d)


def _waves(n: int, m: int, like: Tensor) -> Parts:
    """The matrices cos(2 pi jk/n) and sin(2 pi jk/n), j < n, k < m."""
    j = torch.arange(n, device=like.device).unsqueeze(1)
    k = torch.arange(m, device=like.device).unsqueeze(0)
    turns = torch.remainder(j * k, n).to(like.dtype) / n
    pi = torch.acos(torch.full((), -1.0, dtype=like.dtype, device=like.device))
    angle = turns * 2.0 * pi
    return torch.cos(angle), torch.sin(angle)


def _along(x: Tensor, matrix: Tensor, dim: int) -> Tensor:
    """Each line along a dimension, times a matrix."""
    moved = x.transpose(dim, -1)
    product = torch.mm(moved.reshape(-1, matrix.size(0)), matrix)
    return product.reshape(*moved.shape[:-1], matrix.size(1)).transpose(dim, -1)


def _scaled(parts: Parts, length: int, normalization: int) -> Parts:
    if normalization == _BY_LENGTH:
        return parts[0] / length, parts[1] / length
    if normalization == _BY_ROOT:
        root = torch.sqrt(torch.full_like(parts[0], float(length)))
        return parts[0] / root, parts[1] / root
    return parts
