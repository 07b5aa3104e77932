"""Softmax as a whole against arbitrary precision."""

import flint
import pytest
import torch
from flint import arb
from torch import fx

from numgeom.functionals.softmax import Composite, Shifted, bound_softmax


def exact(row, log):
    powers = [x.exp() for x in row]
    total = sum(powers, arb(0))
    return [x - total.log() for x in row] if log else [p / total for p in powers]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-3, 0.5, 30.0])
@pytest.mark.parametrize("scale", [1.0, 30.0, 600.0])
def test_errors_of_the_argument_and_of_float64_are_covered(log, size, scale):
    flint.ctx.prec = 200
    generator = torch.Generator().manual_seed(int(scale) + int(size * 10))
    for n in (1, 2, 7, 40):
        s = torch.randn(3, n, generator=generator, dtype=torch.float64) * scale
        s = s - s.amax(1, keepdim=True)
        radius = torch.rand(3, n, generator=generator, dtype=torch.float64) * size
        power = s.exp()
        total = power.sum(1, keepdim=True)
        y = s - total.log() if log else power / total
        given = Shifted(s, None if size == 0.0 else radius, float(radius.norm()))
        kind = Composite(fx.Graph().placeholder("power"), 1, log, ())
        bound, stretch, rounding = bound_softmax(kind, given, y)
        for sign in (1.0, -1.0):
            flips = torch.randint(0, 2, (3, n), generator=generator) * 2.0 - 1.0
            shift = radius * flips * sign
            moved = torch.zeros(3, dtype=torch.float64)
            for i in range(3):
                row = [arb(float(a)) + arb(float(b)) for a, b in zip(s[i], shift[i], strict=True)]
                for j, value in enumerate(exact(row, log)):
                    error = abs(value - arb(float(y[i, j])))
                    assert error <= arb(float(bound[i, j]))
                    moved[i] += float(error.upper()) ** 2
            norm = float(moved.sum().sqrt())
            assert norm <= (stretch * float(shift.norm()) + rounding) * (1 + 1e-12)


def test_masked_entries_and_rows_without_a_maximum():
    s = torch.tensor([[0.0, -1.0, -torch.inf]], dtype=torch.float64)
    power = s.exp()
    kind = Composite(fx.Graph().placeholder("power"), 1, False, ())
    bound, _, _ = bound_softmax(kind, Shifted(s, None, 0.0), power / power.sum())
    assert bound.max() < 1e-11
    rows = torch.full((1, 3), -torch.inf, dtype=torch.float64)
    bound, _, rounding = bound_softmax(kind, Shifted(rows, None, 0.0), rows)
    assert rounding == torch.inf
    assert (bound == torch.inf).all()
