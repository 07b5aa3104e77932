"""Are the tied windows of pools and reductions found, and redone as the formulas say?

The oracle is a loop over windows in Python, written from the definition of a pool.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from numgeom.nonsmooth import (
    AbstractChoice,
    AllOnes,
    First,
    Hybrid,
    Last,
    Minimal,
    select,
)

CHOICES: tuple[AbstractChoice, ...] = (
    First(),
    Last(),
    Minimal(),
    AllOnes(),
    Hybrid(beta=0.25),
    Hybrid(beta=100.0),
)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BETAS = (0.0, 1.0, 10.0, 1e2, 1e3, 1e4)

# (kernel, stride, padding, dilation, ceil mode) of the pools of common networks, and odd ones.
POOLS = (
    (2, 2, 0, 1, False),
    (3, 2, 1, 1, False),
    (3, 3, 0, 1, False),
    (2, 1, 0, 1, False),
    (3, 2, 0, 1, True),
    (2, 3, 1, 2, False),
    (3, 1, 1, 2, True),
    (2, 2, 1, 1, True),
)


def flat_data(*shape: int, seed: int = 0, levels: int = 3) -> Tensor:
    """Few levels, so that many windows are tied."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, levels, shape, generator=generator).double()


def windows_of_pool(
    sizes: Sequence[int], outputs: Sequence[int], pool: tuple[int, int, int, int, bool]
) -> list[list[tuple[int, ...]]]:
    """The places that each output place looks at, in row-major order."""
    kernel, stride, padding, dilation, _ = pool
    per_dim = [
        [
            [p for j in range(kernel) if 0 <= (p := o * stride - padding + j * dilation) < size]
            for o in range(count)
        ]
        for size, count in zip(sizes, outputs, strict=True)
    ]
    return [list(itertools.product(*place)) for place in itertools.product(*per_dim)]


def expected_gradient(
    x: Tensor, upstream: Tensor, windows: list[list[tuple[int, ...]]], choice: AbstractChoice
) -> Tensor:
    """Sum weight · g window by window; the first dimension of x is the batch."""
    gradient = torch.zeros_like(x)
    for sample in range(len(x)):
        flow = upstream[sample].reshape(-1)
        for g, places in zip(flow, windows, strict=True):
            values = torch.stack([x[sample][place] for place in places])
            active = (values == values.max())[None]
            weights = choice.weights(active, torch.Generator())[0]
            for place, weight in zip(places, weights, strict=True):
                gradient[sample][place] += weight * g
    return gradient


def pool_gradient(
    pool: Callable[[Tensor], Tensor], x: Tensor, choice: AbstractChoice | None
) -> tuple:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with select(maxpool=choice):
        y = pool(x)
        upstream = torch.linspace(-1, 2, y.numel()).reshape(y.shape).to(y.dtype)
        (gradient,) = torch.autograd.grad(y, x, upstream)
    return y.detach(), upstream, gradient


def pool_of(dims: int, pool: tuple[int, int, int, int, bool]) -> Callable[[Tensor], Tensor]:
    kernel, stride, padding, dilation, ceil_mode = pool
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[dims]
    return lambda x: function(x, kernel, stride, padding, dilation, ceil_mode)


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_pools_follow_the_definition(dims: int, pool: tuple[int, int, int, int, bool]) -> None:
    sizes = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}[dims]
    x = flat_data(2, 1, *sizes, seed=dims)
    for choice in CHOICES:
        y, upstream, gradient = pool_gradient(pool_of(dims, pool), x, choice)
        windows = windows_of_pool(sizes, y.shape[2:], pool)
        expected = expected_gradient(x[:, 0], upstream[:, 0], windows, choice)
        torch.testing.assert_close(gradient[:, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_pools_follow_the_definition(dims: int) -> None:
    sizes, outputs = {1: ((9,), (4,)), 2: ((7, 6), (3, 4)), 3: ((5, 4, 6), (2, 4, 5))}[dims]
    function = {
        1: F.adaptive_max_pool1d,
        2: F.adaptive_max_pool2d,
        3: F.adaptive_max_pool3d,
    }[dims]
    x = flat_data(2, 1, *sizes, seed=dims)
    per_dim = [
        [range(o * n // m, math.ceil((o + 1) * n / m)) for o in range(m)]
        for n, m in zip(sizes, outputs, strict=True)
    ]
    windows = [list(itertools.product(*place)) for place in itertools.product(*per_dim)]
    for choice in CHOICES:
        _, upstream, gradient = pool_gradient(lambda x: function(x, outputs), x, choice)
        expected = expected_gradient(x[:, 0], upstream[:, 0], windows, choice)
        torch.testing.assert_close(gradient[:, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", POOLS[:4], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_forward_pass_keeps_its_bits_for_every_beta(
    dtype: torch.dtype, pool: tuple[int, int, int, int, bool], layout: torch.memory_format
) -> None:
    x = flat_data(2, 3, 8, 8).to(dtype).contiguous(memory_format=layout)
    plain, _, native = pool_gradient(pool_of(2, pool), x, None)
    for beta in BETAS:
        y, _, gradient = pool_gradient(pool_of(2, pool), x, Hybrid(beta=beta))
        assert torch.equal(y, plain)
        assert gradient.stride() == native.stride()
        assert gradient.dtype == native.dtype


OTHER_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "1d": lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1),
    "3d": lambda x: F.max_pool3d(x[None], 2),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive1d": lambda x: F.adaptive_max_pool1d(x.flatten(2), 5),
    "adaptive2d": lambda x: F.adaptive_max_pool2d(x, (3, 5)),
    "adaptive3d": lambda x: F.adaptive_max_pool3d(x[None], (1, 3, 5)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OTHER_POOLS)
def test_the_forward_pass_of_every_pool_keeps_its_bits(name: str, dtype: torch.dtype) -> None:
    x = (flat_data(2, 3, 8, 8) / 3).to(dtype)  # thirds: a blend of two results would round
    plain, _, native = pool_gradient(OTHER_POOLS[name], x, None)
    for beta in BETAS:
        y, _, gradient = pool_gradient(OTHER_POOLS[name], x, Hybrid(beta=beta))
        assert torch.equal(y, plain)
        assert y.dtype == gradient.dtype == dtype
        assert beta == 0 or not torch.equal(gradient, native)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_data_without_ties_keeps_the_bits_of_its_gradient(
    dtype: torch.dtype, pool: tuple[int, int, int, int, bool]
) -> None:
    order = torch.randperm(2 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))
    x = order.reshape(2, 2, 8, 8).to(dtype)  # 256 numbers, exact in every format
    _, _, native = pool_gradient(pool_of(2, pool), x, None)
    for choice in (Hybrid(beta=1e4), AllOnes(), Last()):
        _, _, gradient = pool_gradient(pool_of(2, pool), x, choice)
        assert torch.equal(gradient, native)


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_only_entries_of_tied_windows_change(pool: tuple[int, int, int, int, bool]) -> None:
    x = flat_data(1, 1, 12, 12, levels=12).float()
    y, _, native = pool_gradient(pool_of(2, pool), x, None)
    _, _, changed = pool_gradient(pool_of(2, pool), x, Hybrid(beta=7.0))
    touched = torch.zeros_like(x, dtype=torch.bool)
    for places in windows_of_pool(x.shape[2:], y.shape[2:], pool):
        values = torch.stack([x[0, 0][place] for place in places])
        active = values == values.max()
        if int(active.sum()) > 1:
            for place, hit in zip(places, active, strict=True):
                touched[0, 0][place] |= hit
    assert bool(touched.any())
    assert not bool(touched.all())
    assert torch.equal(changed[~touched], native[~touched])
    assert not torch.equal(changed[touched], native[touched])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_is_what_torch_does_in_pools(dtype: torch.dtype) -> None:
    x = flat_data(2, 3, 8, 8).to(dtype)
    for pool in POOLS[:1] + POOLS[2:3]:  # windows that do not overlap: no sums, equal bits
        _, _, native = pool_gradient(pool_of(2, pool), x, None)
        for choice in (First(), Hybrid(beta=0.0)):
            assert torch.equal(pool_gradient(pool_of(2, pool), x, choice)[2], native)


def test_signed_zeros_tie() -> None:
    x = torch.tensor([[[0.0, -0.0]]], requires_grad=True)
    with select(maxpool=Minimal()):
        F.max_pool1d(x, 2).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.5, 0.5]


def test_a_window_with_nan_is_left_alone() -> None:
    data = torch.tensor([[[1.0, math.nan, 2.0, 2.0]]])
    gradients = [pool_gradient(lambda x: F.max_pool1d(x, 2), data, c)[2] for c in (None, Minimal())]
    assert torch.equal(gradients[0][..., :2], gradients[1][..., :2])
    assert not torch.equal(gradients[0][..., 2:], gradients[1][..., 2:])


def test_an_infinite_upstream_gradient_stays_where_it_belongs() -> None:
    x = torch.ones(1, 1, 4, requires_grad=True)
    with select(maxpool=Last()):
        (gradient,) = torch.autograd.grad(F.max_pool1d(x, 2), x, torch.tensor([[[math.inf, 1.0]]]))
    assert gradient.flatten().tolist() == [0.0, math.inf, 0.0, 1.0]


def test_half_precision_gradients_are_scaled_in_float32() -> None:
    """A weight that float16 cannot hold is no infinity, and the product is rounded once."""
    x = torch.ones(1, 1, 3, dtype=torch.float16, requires_grad=True)
    g = torch.tensor([[[1e-3]]], dtype=torch.float16)
    with select(maxpool=Hybrid(beta=1e6)):
        (found,) = torch.autograd.grad(F.max_pool1d(x, 3), x, g)
    weights = torch.tensor([1 - 1e6 + 1e6 / 3, 1e6 / 3, 1e6 / 3])
    assert torch.equal(found.flatten(), (weights * g.float().flatten()).half())


REDUCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], bool]] = {
    # name -> (function, reduced dimensions, smallest instead of largest)
    "max": (torch.max, (0, 1, 2), False),
    "min": (torch.min, (0, 1, 2), True),
    "max-dim": (lambda x: x.max(1)[0], (1,), False),
    "max-last-kept": (lambda x: x.max(-1, keepdim=True)[0], (2,), False),
    "min-dim": (lambda x: x.min(0)[0], (0,), True),
    "amax": (lambda x: x.amax((0, 2)), (0, 2), False),
    "amax-all": (torch.amax, (0, 1, 2), False),
    "amin-kept": (lambda x: x.amin((1, -1), keepdim=True), (1, 2), True),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_follow_the_definition(name: str) -> None:
    function, dims, smallest = REDUCTIONS[name]
    data = flat_data(3, 4, 5)
    kept = [d for d in range(3) if d not in dims]
    for choice in CHOICES:
        x = data.clone().requires_grad_()
        with select(max=choice, amax=choice):
            y = function(x)
            upstream = torch.arange(1.0, y.numel() + 1).double().reshape(y.shape)
            (gradient,) = torch.autograd.grad(y, x, upstream)
        rows = data.permute(*kept, *dims).reshape(y.numel(), -1)
        best = rows.amin(1) if smallest else rows.amax(1)
        weights = choice.weights(rows == best[:, None], torch.Generator())
        got = gradient.permute(*kept, *dims).reshape(y.numel(), -1)
        torch.testing.assert_close(got, weights * upstream.reshape(-1, 1), rtol=1e-14, atol=0)


def test_native_even_splits_are_minimal() -> None:
    for function in (torch.max, torch.amax):
        x = flat_data(3, 4).requires_grad_()
        (native,) = torch.autograd.grad(function(x), x)
        with select(max=Minimal(), amax=Minimal()):
            (minimal,) = torch.autograd.grad(function(x), x)
        assert torch.equal(native, minimal)


# -- norms -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1.5, 2.0, 3.0, math.inf])
def test_at_a_zero_vector_the_choice_is_its_dual_norm(order: float) -> None:
    x = torch.zeros(5, 4, dtype=torch.float64)
    x[1] = 1
    x.requires_grad_()
    with select(norm=0.5):
        torch.linalg.vector_norm(x, order, dim=1).sum().backward()
    assert x.grad is not None
    dual = 1.0 if math.isinf(order) else order / (order - 1)
    sizes = torch.linalg.vector_norm(x.grad, dual, dim=1)
    torch.testing.assert_close(sizes[[0, 2, 3, 4]], torch.full((4,), 0.5).double())
    plain = x.detach().clone().requires_grad_()
    torch.linalg.vector_norm(plain, order, dim=1).sum().backward()
    assert plain.grad is not None
    assert torch.equal(plain.grad[1], x.grad[1])


def test_the_norm_at_zero_of_four_entries() -> None:
    for choice, entry in ((1.0, 0.5), (AllOnes(), 1.0), (0.0, 0.0), (None, 0.0)):
        x = torch.zeros(4, requires_grad=True)
        with select(norm=choice):
            x.norm().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [entry] * 4


def test_a_zero_vector_under_the_maximum_norm_is_an_apex_and_no_tie() -> None:
    x = torch.zeros(4, requires_grad=True)
    with select(norm=1.0, amax=First()) as applied:
        torch.linalg.vector_norm(x, math.inf).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.25] * 4
    assert applied.units == {"norm": 1}


def test_a_norm_that_underflows_is_no_kink() -> None:
    x = torch.full((4,), 1e-30, requires_grad=True)  # its squares are zero in float32
    with select(norm=1.0) as applied:
        x.norm().backward()
    assert not applied.units


def test_the_largest_entries_of_the_maximum_norm_are_tied() -> None:
    x = torch.tensor([-2.0, 1.0, 2.0], requires_grad=True)
    with select(amax=First()):
        torch.linalg.vector_norm(x, math.inf).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-1.0, 0.0, 0.0]
