"""Is the variation of two backward passes measured as defined, and in float64?"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from numgeom.nonsmooth import (
    Hybrid,
    Minimal,
    Selection,
    backprop,
    backprop_variation,
    compare_gradients,
)
from numgeom.nonsmooth.variation import VariationError
from reproductions.maxpool.small_programs import AtZero, NormPool2d, ReLUMaxPool2d
from tests.nonsmooth.steps import cross_entropy

NATIVE, MINIMAL = Selection(), Selection(maxpool=Minimal())
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def test_the_norms() -> None:
    first = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[1.0]])}
    second = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[-3.0]])}
    found = compare_gradients(first, second, reduction="sum")
    assert (found.l1, found.l2, found.linf) == (7.0, 5.0, 4.0)
    assert found.relative == pytest.approx(5 / math.sqrt(26))
    assert float(found) == 7.0
    assert found.parameters["a"].l1 == 3.0
    assert found.parameters["b"].relative == 4.0
    assert found.reduction == "sum"


def test_sums_do_not_overflow_in_float16() -> None:
    many = {"w": torch.full((1_000_000,), 0.5, dtype=torch.float16)}
    found = compare_gradients(many, {"w": torch.zeros(1_000_000, dtype=torch.float16)})
    assert found.l1 == 500_000.0
    assert found.parameters["w"].l2 == 500.0


def test_equal_gradients_have_no_variation_even_where_they_are_not_finite() -> None:
    odd = {"w": torch.tensor([math.nan, math.inf, -math.inf, 0.0])}
    found = compare_gradients(odd, odd)
    assert (found.l1, found.relative, found.n_nonfinite) == (0.0, 0.0, 0)
    found = compare_gradients(odd, {"w": torch.tensor([math.nan, -math.inf, 1.0, 0.0])})
    assert found.l1 == math.inf
    assert found.n_nonfinite == 2


def test_a_gradient_that_appears_from_nothing_is_infinitely_far() -> None:
    found = compare_gradients({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    assert found.relative == math.inf


def test_different_parameters_are_refused() -> None:
    with pytest.raises(VariationError, match=r"only one .* has: b"):
        compare_gradients({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(VariationError, match="shapes"):
        compare_gradients({"a": torch.ones(1)}, {"a": torch.ones(2)})


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_backward_pass_leaves_the_model_as_it_was() -> None:
    model, x = Noisy(), torch.randn(16, 4)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    first = backprop(model, lambda m, b: m(b).sum(), x)
    second = backprop(model, lambda m, b: m(b).sum(), x)
    assert all(torch.equal(first[n], second[n]) for n in first)  # the same dropout masks
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(buffers[n], b) for n, b in model.named_buffers())
    assert all(bool((p.grad == 7.0).all()) for p in model.parameters() if p.grad is not None)


# -- LeNet on the digits -----------------------------------------------------------------

# Between which magnitudes D(native, minimal) lies on this network and these data.
RANGES = {
    torch.float64: (1e-18, 1e-14),
    torch.float32: (1e-9, 1e-5),
    torch.float16: (1e-4, 1e-1),
    torch.bfloat16: (1e-3, 1e-1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_program_and_its_copy_do_not_vary(
    lenet: Callable, digits: Callable, dtype: torch.dtype
) -> None:
    """D(P, copy of P) = 0, and native is torch's own gradient bit by bit."""
    model, batch = lenet(0, dtype), digits(0, 32, dtype)
    first, second = (backprop(model, cross_entropy, batch, selection=NATIVE) for _ in range(2))
    assert compare_gradients(first, second).l1 == 0.0
    cross_entropy(model, batch).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, first[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_against_minimal(lenet: Callable, digits: Callable, dtype: torch.dtype) -> None:
    low, high = RANGES[dtype]
    for seed in range(2):
        model, batch = lenet(seed, dtype), digits(seed, dtype=dtype)
        copy = backprop_variation(model, cross_entropy, batch, selections=(NATIVE, Selection()))
        assert copy.l1 == 0.0
        found = backprop_variation(
            model, cross_entropy, batch, selections=(NATIVE, MINIMAL), reduction="mean"
        )
        assert low < found.l1 < high


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_at_zero(lenet: Callable, digits: Callable, dtype: torch.dtype) -> None:
    """Zero but in bfloat16, where a pre-activation can round to zero."""
    selections = (Selection(relu=0.0), Selection(relu=1.0))
    model, batch = lenet(0, dtype), digits(0, dtype=dtype)
    found = backprop_variation(model, cross_entropy, batch, selections=selections).l1
    assert found < 1e-2 if dtype == torch.bfloat16 else found == 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian_data_in_float32_are_regular(lenet: Callable, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 1, 28, 28, generator=generator).to(dtype)
    labels = torch.randint(0, 10, (64,), generator=generator)
    found = backprop_variation(
        lenet(0, dtype), cross_entropy, (images, labels), selections=(NATIVE, MINIMAL)
    ).l1
    if dtype.itemsize >= 4:
        assert found == 0.0
    else:
        assert found > 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_max_through_relu_varies_like_max_pool(
    lenet: Callable, digits: Callable, dtype: torch.dtype
) -> None:
    low, high = RANGES[dtype]
    batch = digits(0, dtype=dtype)
    found = []
    for s in (0.0, 1.0):
        model = lenet(0, dtype)
        model.features[2], model.features[6] = ReLUMaxPool2d(s=s), ReLUMaxPool2d(s=s)
        found.append(backprop(model, cross_entropy, batch))
    assert low < compare_gradients(*found).l1 < high


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_pool_varies_by_underflow_alone(
    lenet: Callable, digits: Callable, dtype: torch.dtype
) -> None:
    batch = digits(0, dtype=dtype)

    def run(at_zero: AtZero, accumulate: torch.dtype | None) -> tuple[dict[str, Tensor], int]:
        model = lenet(0, dtype)
        pools = [NormPool2d(at_zero=at_zero, accumulate=accumulate) for _ in range(2)]
        model.features[2], model.features[6] = pools
        gradients = backprop(model, cross_entropy, batch)
        return gradients, sum(pool.n_underflows for pool in pools)

    (zero, count), (ones, _) = run(AtZero.MINIMAL, None), run(AtZero.ONES, None)
    if dtype == torch.float16:
        assert count > 0
        assert compare_gradients(zero, ones).l1 > 1e-4
        (zero, count), (ones, _) = (run(a, torch.float32) for a in (AtZero.MINIMAL, AtZero.ONES))
    assert count == 0
    assert compare_gradients(zero, ones).l1 == 0.0


def test_a_larger_beta_amplifies_rounding(lenet: Callable, digits: Callable) -> None:
    """On ties of equal patches the weights sum to 1, so beta amplifies nothing but rounding.

    Where it dominates the rounding of the rest of the network it does so linearly; the factor is
    one of rounding errors, which are others with every kernel.
    """
    model, batch = lenet(), digits()
    found = [
        backprop_variation(
            model, cross_entropy, batch, selections=(NATIVE, Selection(maxpool=Hybrid(beta=beta)))
        ).relative
        for beta in (1.0, 1e3, 1e5)
    ]
    assert found[0] < found[1] < found[2]
    assert 10.0 < found[2] / found[1] < 1000.0
    assert found[1] < 1e3 * 2.0**-24
    assert found[2] < 1e5 * 2.0**-24
