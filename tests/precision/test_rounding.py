"""Do the fast ways round as the definition of the format does?"""

import pytest
import torch

from numgeom.arithmetic.formats import bfloat16, float8_e4m3fn, float8_e5m2, float16, round_to, tf32
from numgeom.precision.rounding import round_operand


@pytest.mark.parametrize("fmt", [bfloat16, float16, tf32], ids=str)
def test_float32_is_rounded_to_nearest(fmt) -> None:
    x = torch.randn(20_000) * torch.logspace(-4, 4, 20_000)
    got, want = round_operand(x, fmt), round_to(x, fmt)
    assert torch.equal((got - x).abs(), (want - x).abs())  # ties may go either way
    assert torch.equal(round_to(got, fmt), got)


@pytest.mark.parametrize("fmt", [float8_e4m3fn, float8_e5m2], ids=str)
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e8])
def test_eight_bits_are_scaled_to_the_range(fmt, size: float) -> None:
    x = torch.randn(1000) * size
    for dtype in (torch.float32, torch.float64):
        error = (round_operand(x.to(dtype), fmt) - x).abs()
        assert (error <= x.abs() * fmt.unit_roundoff * 1.01 + 1e-4 * size).all()
        assert error.max() > 0


def test_infinities_stay_and_integers_are_left_alone() -> None:
    x = torch.tensor([float("inf"), -float("inf"), 3e38])
    assert torch.equal(round_operand(x, tf32)[:2], x[:2])
    assert torch.isfinite(round_operand(x, tf32)[2])
    assert round_operand(3, tf32) == 3
    whole = torch.arange(5)
    assert round_operand(whole, bfloat16) is whole
