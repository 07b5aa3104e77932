"""Do bounds of sums of products hold for extreme factors?"""

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.rounding import UNIT_ROUNDOFF
from numgeom.ops.bilinear import bilinear_rounding, bilinear_spread, bilinear_up
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS
from tests.ops.laws import run_op

INF = math.inf


def real(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_an_unknown_factor_reaches_exactly_the_entries_that_use_it() -> None:
    a = real([1.0, INF], [1.0, 2.0])
    b = real([1.0, 0.0], [0.0, 0.0])
    assert torch.isinf(bilinear_up(torch.mm, a, b, 2)).tolist() == [[True, True], [False, False]]


def test_zero_factors_leave_exact_zeros() -> None:
    a, b = real([0.0, 1.0]), real([5.0], [0.0])
    assert bilinear_rounding(torch.mm, a, b, 2).item() == 0.0
    spread = bilinear_spread(torch.mm, a, b, (real([0.0, 0.0]), real([1.0], [0.0])), 2)
    assert spread is not None
    assert spread.item() == 0.0


def test_products_that_underflow_are_covered() -> None:
    """Each is off by nearly half of a subnormal spacing, all of them in the same direction."""
    n = 50
    a = torch.full((1, n), 2.0**-600, dtype=torch.float64)
    b = torch.full((n, 1), 0.49 * 2.0**-474, dtype=torch.float64)
    exact = n * Fraction(a[0, 0].item()) * Fraction(b[0, 0].item())
    assert torch.mm(a, b).item() == 0.0
    for bound in (bilinear_up, bilinear_rounding):
        assert Fraction(bound(torch.mm, a, b, n).item()) >= exact


def test_the_rounding_bound_is_attained_up_to_a_small_factor() -> None:
    """1 + u/2 ... summed up from the left loses every small term."""
    n = 64
    a = torch.full((1, n), 0.999 * UNIT_ROUNDOFF, dtype=torch.float64)
    a[0, 0] = 1.0
    b = torch.ones(n, 1, dtype=torch.float64)
    exact = sum(map(Fraction, a[0].tolist()))
    in_order = 1.0
    for term in a[0, 1:].tolist():
        in_order += term
    bound = Fraction(bilinear_rounding(torch.mm, a, b, n).item())
    assert bound / 2 < abs(Fraction(in_order) - exact) <= bound


def test_alpha_of_a_product_may_underflow_in_a_factor() -> None:
    """A kernel may scale a factor by alpha before it multiplies."""
    op = OPS.named("addmm")
    assert op is not None
    args = (real([0.0]), real([1e-300]), real([1e300]))
    args = tuple(a.reshape(1, 1) for a in args)
    y = run_op("addmm", args, {"alpha": 1e-20})
    assert math.isinf(op.rounding_of(Evaluation("addmm", args, {"alpha": 1e-20}, y)).item())
