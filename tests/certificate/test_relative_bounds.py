"""Do the bounds of a certificate hold for every gradient within the radii, at every size?

The exact gradient may be anywhere within the radius of its reference. Its worst places are tried in
exact rational arithmetic, without slack; printed numbers are read back as they stand.
"""

import math
import random
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from numgeom.arithmetic.printing import digits_text, upper
from numgeom.arithmetic.rounding import norm_up
from numgeom.certificate import certify
from numgeom.certificate.bounds import Radii, with_bound, with_total_bound
from numgeom.recording import record_step
from numgeom.report import headline
from numgeom.results.accuracy import GradientAccuracy, measure, total
from numgeom.results.guarantee import Guarantee

SHAPES = [(), (0,), (1,), (3,), (2, 2)]
SCALES = [5e-324, 1e-310, 1.7e-162, 1e-155, 1e-40, 1.0, 1e30, 1e300]


def radii_of(midpoints: dict[str, Tensor], entries: dict[str, Tensor]) -> Radii:
    norms = {name: float(norm_up(r)) for name, r in entries.items()}
    whole = float(norm_up(torch.tensor(list(norms.values()), dtype=torch.float64)))
    return Radii("ball", Guarantee.PROVED, midpoints, entries, norms, whole)


def fractions(tensor: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.double().reshape(-1).tolist()]


def corners(
    midpoint: list[Fraction], radius: list[Fraction], seed: int
) -> Iterator[list[Fraction]]:
    """Exact gradients that the radii allow: the ends of every entry, and random ends."""
    draw = random.Random(seed)
    for sign in (1, -1, 0):
        yield [m + sign * r for m, r in zip(midpoint, radius, strict=True)]
        # Toward zero: the smallest norm that the relative error may be divided by.
        yield [m - sign * r * (1 if m > 0 else -1) for m, r in zip(midpoint, radius, strict=True)]
    for _ in range(5):
        yield [m + draw.choice([1, -1]) * r for m, r in zip(midpoint, radius, strict=True)]


def check(row: GradientAccuracy, computed: list[Fraction], exact: list[Fraction]) -> None:
    """The bound, its digits, and both as they are printed."""
    assert row.error_bound is not None
    error = sum(((c - e) ** 2 for c, e in zip(computed, exact, strict=True)), Fraction(0))
    size = sum((e**2 for e in exact), Fraction(0))
    if math.isfinite(row.error_bound):
        assert error <= size * Fraction(row.error_bound) ** 2
        assert error <= size * Fraction(upper(row.error_bound)) ** 2
        assert row.digits is not None
        # 10^-digits >= error / size; tenths of digits, so the tenth power is rational.
        tenths = round(10 * Fraction(digits_text(row.digits)))
        assert tenths == 0 or (error / size) ** 10 <= Fraction(1, 100) ** tenths if size else True
    if row.tightness is not None and math.isfinite(row.error_bound):
        ratio = Fraction(row.error_bound) / Fraction(row.observed_error)
        assert ratio <= Fraction(row.tightness) <= Fraction(upper(row.tightness))


@pytest.mark.parametrize("scale", SCALES)
def test_relative_bounds_hold_within_the_radii(scale: float) -> None:
    rng = torch.Generator().manual_seed(int(math.log10(scale)) + 400)
    for trial, relative in enumerate([0.0, 1e-16, 1e-9, 1e-3, 0.7, 2.0] * 5):
        midpoints, computed, entries = {}, {}, {}
        for i, shape in enumerate(SHAPES):
            exact_size = torch.randn(shape, generator=rng, dtype=torch.float64) * scale
            dtype = torch.float32 if 1e-30 < scale < 1e35 else torch.float64
            midpoints[f"p{i}"] = exact_size
            computed[f"p{i}"] = (exact_size * (1 + relative * 0.1)).to(dtype)
            spread = torch.rand(shape, generator=rng, dtype=torch.float64)
            entries[f"p{i}"] = spread * (scale * relative)
        radii = radii_of(midpoints, entries)
        rows = [measure(name, computed[name], midpoints[name]) for name in midpoints]
        whole = with_total_bound(total(rows), rows, computed, radii)
        bounded = [with_bound(row, computed[row.name], radii) for row in rows]
        found = {name: fractions(computed[name]) for name in computed}
        every = {
            name: list(corners(fractions(midpoints[name]), fractions(entries[name]), trial))
            for name in midpoints
        }
        for row, entrywise in bounded:
            for exact in every[row.name]:
                check(row, found[row.name], exact)
                limits = fractions(entrywise)
                for c, e, limit in zip(found[row.name], exact, limits, strict=True):
                    assert abs(c - e) <= limit
        for k in range(len(every["p0"])):
            exact = [entry for name in every for entry in every[name][k]]
            check(whole, [entry for name in found for entry in found[name]], exact)


def test_the_bound_is_not_far_above_the_worst_place() -> None:
    """What covers the rounding stays far below what is printed."""
    midpoint, radius = torch.ones(4, dtype=torch.float64), torch.full((4,), 1e-9).double()
    radii = radii_of({"w": midpoint}, {"w": radius})
    row, _ = with_bound(measure("w", midpoint.float() * 1.001, midpoint), midpoint, radii)
    assert row.error_bound is not None
    assert row.error_bound <= 1e-9 / (1 - 1e-9) * (1 + 1e-12)


def test_a_gradient_that_may_be_zero_has_no_relative_bound() -> None:
    midpoint = torch.full((2,), 1e-300, dtype=torch.float64)
    radii = radii_of({"w": midpoint}, {"w": midpoint})
    row, _ = with_bound(measure("w", midpoint.float(), midpoint), midpoint.float(), radii)
    assert row.error_bound == math.inf
    assert row.digits == 0.0


def test_a_gradient_that_is_zero_over_the_reals_gets_its_absolute_bound() -> None:
    """Batch norm's weight under a plain sum: what is computed is nothing but rounding."""
    model = nn.BatchNorm1d(3)
    batch = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(1)) + 2
    made = certify(model, lambda m, x: m(x).sum(), batch)
    row = made.parameters["weight"]
    assert row.error_bound == math.inf
    (note,) = (note for note in made.notes if note.startswith("The exact gradient may be zero"))
    shown = Fraction(note.split("weight at most ")[1].rstrip("."))
    computed = fractions(
        record_step(model, lambda m, x: m(x).sum(), batch).recorded.gradients["weight"]
    )
    assert shown**2 >= sum(c**2 for c in computed)  # the exact one is zero
    assert "worst weight: no relative bound" in headline(made).plain
