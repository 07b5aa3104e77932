"""Do the small programs give the numbers of the paper's tables?"""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from numgeom.nonsmooth import AllOnes, First, Hybrid, Minimal, Selection, select
from reproductions.maxpool.small_programs import (
    TIMES,
    AtZero,
    NormPool2d,
    ReLUMaxPool2d,
    bifurcation_example,
    derivative_table,
    max_by_loop,
    max_by_op,
    max_of_two,
    pooled_convolution,
    relu_at_zero,
    zero,
    zero2,
    zero_of_norms,
    zero_of_relus,
)

X1, X2 = (1.0, 2.0, 3.0, 4.0), (1.4, 1.4, 1.4, 1.4)
# Half a unit roundoff of numbers near 1.4: the magnitude of the residue.
RESIDUE = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-9,
}


@pytest.mark.parametrize("dtype", RESIDUE, ids=str)
@pytest.mark.parametrize(("program", "at_zero"), [(zero, -1.5), (zero2, 1.5)])
def test_tables_1_and_3(program: object, at_zero: float, dtype: torch.dtype) -> None:
    table = derivative_table(program, dtype=dtype)  # type: ignore[arg-type]  # one of two programs
    assert table[X1] == [at_zero if t == 0 else 0.0 for t in TIMES]
    assert [abs(d) for d in table[X2]] == [RESIDUE[dtype]] * len(TIMES)


def test_the_residue_in_float32_is_the_papers() -> None:
    assert RESIDUE[torch.float32] == pytest.approx(5.96e-8, rel=1e-3)
    assert RESIDUE[torch.float64] == pytest.approx(1.11e-16, rel=1e-3)


@pytest.mark.parametrize("dtype", RESIDUE, ids=str)
@pytest.mark.parametrize(
    ("program", "sizes"), [(zero_of_relus, (1, 1)), (zero_of_norms, (10, 5.6))]
)
def test_the_controls_have_no_residue(program: object, sizes: tuple, dtype: torch.dtype) -> None:
    table = derivative_table(program, dtype=dtype)  # type: ignore[arg-type]  # one of two programs
    for x, size in zip((X1, X2), sizes, strict=True):
        assert [d for d, t in zip(table[x], TIMES, strict=True) if t] == [0.0] * 6
        assert table[x][3] == pytest.approx(-size, rel=2e-3)


def test_separate_backward_passes_agree_at_x2() -> None:
    """The residue of table 1 is that of one joint sum."""
    for program in (max_by_loop, max_by_op):
        t = torch.tensor(10.0, requires_grad=True)
        (found,) = torch.autograd.grad(program(t * torch.tensor(X2)), t)
        assert found.item() == torch.tensor(1.4).item()


def test_the_derivatives_at_a_tie_of_four() -> None:
    for program, expected in ((max_by_loop, [1.0, 0, 0, 0]), (max_by_op, [0.25] * 4)):
        x = torch.ones(4, requires_grad=True)
        (found,) = torch.autograd.grad(program(x), x)
        assert found.tolist() == expected


@pytest.mark.parametrize("s", [0.0, 0.25, 1.0])
def test_the_maximum_of_two_through_relu(s: float) -> None:
    for values in itertools.product((-2.0, 0.5, 3.0), repeat=2):
        a, b = (torch.tensor(v, requires_grad=True) for v in values)
        y = max_of_two(a, b, s=s)
        assert y.item() == max(values)
        found = [g.item() for g in torch.autograd.grad(y, (a, b))]
        tie = [(1 + s) / 2, (1 - s) / 2]
        assert found == (
            tie if values[0] == values[1] else [values[0] > values[1], values[1] > values[0]]
        )


def test_the_identity_that_the_paper_prints_is_false() -> None:
    x, y = torch.tensor(3.0), torch.tensor(-5.0)
    relu = torch.relu
    printed = (x + y) + (relu(x) - relu(-y)) + (relu(y) - relu(-x))
    assert printed.item() == -4
    assert 2 * max_of_two(x, y).item() == 6


@pytest.mark.parametrize("s", [0.0, 0.3, 1.0])
def test_relu_at_zero_is_what_select_does(s: float) -> None:
    x, g = torch.tensor([-1.0, -0.0, 0.0, 2.0]), torch.tensor([1.0, 1e-4, 3.0, 5.0])
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    relu_at_zero(one, s).backward(g)
    with select(relu=s):
        torch.relu(other).backward(g)
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)


def test_the_pool_through_relu_is_a_max_pool() -> None:
    x = torch.randint(0, 3, (2, 3, 6, 8)).float()
    assert torch.equal(ReLUMaxPool2d()(x), F.max_pool2d(x, 2))
    for s, weights in ((0.0, [0.25] * 4), (1.0, [1.0, 0, 0, 0])):
        flat = torch.ones(1, 1, 2, 2, requires_grad=True)
        (found,) = torch.autograd.grad(ReLUMaxPool2d(s=s)(flat).sum(), flat)
        assert found.flatten().tolist() == weights


@pytest.mark.parametrize(
    ("at_zero", "entry", "is_clarke"),
    [(AtZero.MINIMAL, 0.0, True), (AtZero.ONES, 1.0, False), (AtZero.EQUAL, 0.5, True)],
)
def test_norm_pool(at_zero: AtZero, entry: float, is_clarke: bool) -> None:
    x = torch.zeros(1, 1, 2, 4)
    x[0, 0, :, 2:] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    x.requires_grad_()
    pool = NormPool2d(2, at_zero=at_zero)
    y = pool(x)
    assert y.flatten().tolist() == [0.0, 5.0]
    (found,) = torch.autograd.grad(y, x, torch.tensor([[[[10.0, 10.0]]]]))
    assert found[0, 0, :, :2].flatten().tolist() == [10 * entry] * 4
    assert found[0, 0, :, 2:].flatten().tolist() == pytest.approx([6.0, 0.0, 0.0, 8.0])
    assert (2 * entry <= 1) is is_clarke
    assert pool.n_underflows == 0


def test_norm_pool_counts_underflows_in_float16() -> None:
    x = torch.full((1, 1, 2, 2), 1e-4, dtype=torch.float16)
    narrow, wide = NormPool2d(2), NormPool2d(2, accumulate=torch.float32)
    assert narrow(x).item() == 0
    assert narrow.n_underflows == 1
    assert wide(x).item() == pytest.approx(2e-4, rel=1e-2)
    assert wide.n_underflows == 0


@pytest.mark.parametrize("k", [0.3, 1.0, 2.0])
def test_appendix_a5(k: float) -> None:
    image, kernel = bifurcation_example(k)
    kernel.requires_grad_()
    loss = pooled_convolution(image, kernel)
    assert loss.item() == kernel.detach()[0, 0, 0, 0].item()
    corner = torch.zeros(3, 3)
    corner[0, 0] = 1
    both = torch.zeros(3, 3)
    both[0, 0] = both[0, 2] = 0.5
    for choice, expected in (
        (None, corner),
        (First(), corner),
        (Minimal(), both),
        (Hybrid(beta=0.5), (corner + both) / 2),
        (AllOnes(), 2 * both),
    ):
        with select(Selection(maxpool=choice)):
            (found,) = torch.autograd.grad(pooled_convolution(image, kernel), kernel)
        assert torch.equal(found[0, 0], expected)


def test_the_image_of_appendix_a5_is_the_only_one_of_zeros_and_ones() -> None:
    bits = torch.arange(2**16)[:, None] >> torch.arange(16) & 1
    images = bits.float().reshape(-1, 1, 4, 4)

    def gradient(choice: Selection) -> Tensor:
        kernel = torch.ones(1, 1, 3, 3)
        kernels = kernel.expand(len(images), 1, 3, 3).clone().requires_grad_()
        with select(choice):
            y = F.conv2d(images.reshape(1, -1, 4, 4), kernels, groups=len(images))
            loss = F.max_pool2d(y, 2)
            (found,) = torch.autograd.grad(loss.sum(), kernels)
        return torch.cat([found.reshape(-1, 9), loss.detach().reshape(-1, 1)], dim=1)

    native, minimal = gradient(Selection()), gradient(Selection(maxpool=Minimal()))
    image, _ = bifurcation_example()
    wanted = images.flatten(1).eq(image.flatten()).all(1)
    e11 = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    half = torch.tensor([0.5, 0, 0.5, 0, 0, 0, 0, 0, 0, 1])
    found = (native == e11).all(1) & (minimal == half).all(1)
    assert torch.equal(found, wanted)
