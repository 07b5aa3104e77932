"""Are calls that are said to be exact really exact?"""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from numgeom.nonsmooth.grids import common_grid, spacing
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS


def exact(x: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in x.flatten().tolist()]


@pytest.mark.parametrize("seed", range(20))
def test_the_spacing_divides_every_entry_and_no_larger_power_does(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bits = int(torch.randint(1, 53, (), generator=generator))
    x = torch.randint(-(2**bits), 2**bits, (9,), generator=generator).double()
    x = x * 2.0 ** int(torch.randint(-900, 900, (), generator=generator))
    q = Fraction(spacing(x))
    assert all(v % q == 0 for v in exact(x))
    assert not bool((x != 0).any()) or any(v % (2 * q) for v in exact(x))


def test_extreme_spacings() -> None:
    assert spacing(torch.tensor([0.0, -0.0])) == 1.0
    assert spacing(torch.tensor([1.0, torch.inf])) == 0.0
    assert spacing(torch.tensor([5e-324], dtype=torch.float64)) == 0.0
    assert spacing(torch.tensor([])) == 1.0
    assert spacing(torch.tensor([-0.75, 4.0])) == 0.25


@pytest.mark.parametrize("bits", [4, 12, 20, 24, 26, 30, 40])
def test_a_product_below_its_grid_is_exact(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    op = OPS.named("mm")
    assert op is not None
    said = 0
    for _ in range(20):
        a, b = (
            torch.randint(-(2**bits), 2**bits, shape, generator=generator).double() * 2.0**-bits
            for shape in ((3, 17), (17, 2))
        )
        call = Evaluation("mm", (a, b), {}, a @ b)
        if float(op.rounding_of(call).max()) < common_grid(call):
            said += 1
            for i in range(3):
                for j in range(2):
                    total = sum(p * q for p, q in zip(exact(a[i]), exact(b[:, j]), strict=True))
                    assert Fraction(float(call.y[i, j])) == total
    assert (said > 0) is (bits <= 20)


def test_other_ops_have_no_grid() -> None:
    x = torch.ones(2, dtype=torch.float64)
    assert common_grid(Evaluation("exp", (x,), {}, x.exp())) == 0.0
    assert common_grid(Evaluation("add", (x, x), {"alpha": 3}, 4 * x)) == 0.0
    assert common_grid(Evaluation("add", (x, 0.1), {}, x + 0.1)) == 0.0
    assert common_grid(Evaluation("mul", (x, 0.5), {}, x * 0.5)) == 0.5
