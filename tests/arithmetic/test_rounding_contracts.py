"""What the outward operations refuse and keep, and gamma to the last bit."""

import math
from fractions import Fraction

import pytest
import torch

from numgeom.arithmetic import lower_bounds as lower
from numgeom.arithmetic import rounding as upper
from numgeom.arithmetic.formats import FormatError, float16

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("unit_roundoff", [2.0**-53, 2.0**-24, 2.0**-8, 0.3, 1e-5])
def test_gamma_is_the_next_number_above(unit_roundoff: float):
    for n in [0, 1, 2, 3, 7, 128, 4097, 10**7, 2**52, 10**15]:
        nu = n * Fraction(unit_roundoff)
        if nu >= 1:
            with pytest.raises(FormatError, match="n u >= 1"):
                upper.gamma_up(n, unit_roundoff)
            continue
        exact = nu / (1 - nu)
        bound = upper.gamma_up(n, unit_roundoff)
        assert Fraction(bound) >= exact
        assert n == 0 or Fraction(math.nextafter(bound, 0.0)) < exact
    for count, size in [(-1, 0.1), (1, -0.1), (1, NAN), (1, INF)]:
        with pytest.raises(FormatError, match="needs n >= 0"):
            upper.gamma_up(count, size)


def test_other_dtypes_are_refused():
    for dtype in (torch.float32, torch.int64, float16.dtype):
        x = torch.ones(2, dtype=dtype)
        for operation in (upper.mul_up, upper.add_up, upper.div_up, lower.sub_down):
            with pytest.raises(FormatError, match="computed in float64"):
                operation(x, 1.0)
        with pytest.raises(FormatError, match="computed in float64"):
            upper.norm_up(x)


def test_shapes_broadcast_and_inputs_stay():
    a, b = torch.rand(3, 1, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    before = a.clone(), b.clone()
    for operation in (upper.add_up, upper.mul_up, upper.div_up, lower.mul_down):
        assert operation(a, b).shape == (3, 4)
    upper.norm_up(a)
    upper.matmul_up(a, a.T)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
