"""Norms from below and quotients from above, against exact rational arithmetic."""

import math
import random
from fractions import Fraction

import pytest
import torch

from numgeom.arithmetic.lower_bounds import norm_down
from numgeom.arithmetic.rounding import ratio_up


def test_a_ratio_is_the_smallest_number_above_the_exact_one() -> None:
    draw = random.Random(5)
    for _ in range(3000):
        a, b = (draw.random() * 10.0 ** draw.randint(-320, 308) for _ in range(2))
        if b == 0.0:
            continue
        found, exact = ratio_up(a, b), Fraction(a) / Fraction(b)
        assert found == math.inf or Fraction(found) >= exact
        below = math.nextafter(found, 0.0)
        assert Fraction(below) < exact or found == 0.0
    assert ratio_up(2.5e-7, 1.25e-7) == 2.0
    assert ratio_up(0.0, 3.0) == 0.0
    assert ratio_up(math.inf, 3.0) == ratio_up(math.nan, 3.0) == ratio_up(1e308, 1e-9) == math.inf


@pytest.mark.parametrize("scale", [5e-324, 1.7e-162, 1e-155, 1e-30, 1.0, 1e150, 1e300, 8e307])
def test_a_norm_from_below_is_below_the_exact_one(scale: float) -> None:
    rng = torch.Generator().manual_seed(6)
    for entries in (1, 2, 7, 1000):
        x = torch.randn(entries, generator=rng, dtype=torch.float64).clamp(-2, 2)
        spread = 10.0 ** -torch.randint(0, 300, (entries,), generator=rng).double()
        for case in (
            x * scale,
            (x * scale) * spread,
            torch.full((entries,), scale, dtype=torch.float64),
        ):
            squares = sum(Fraction(v) ** 2 for v in case.tolist())
            found = norm_down(case)
            assert Fraction(found) ** 2 <= squares
            assert Fraction(found + 1e-323) ** 2 * (1 + Fraction(1, 10**10)) >= squares or (
                found > 1.79e308
            )


def test_a_norm_from_below_knows_nothing_of_what_is_not_finite() -> None:
    bad = torch.tensor([1.0, math.inf], dtype=torch.float64)
    assert norm_down(bad) == norm_down(bad - bad) == 0.0
    assert norm_down(torch.zeros(0, 3, dtype=torch.float64)) == 0.0
    assert norm_down(torch.tensor(-4.0, dtype=torch.float64)) <= 4.0
