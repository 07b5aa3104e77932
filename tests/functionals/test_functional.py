import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numgeom.functionals import ErrorFunctional, FunctionalError

numbers = st.floats(min_value=0.0, max_value=1e150) | st.floats(min_value=0.0, max_value=1e-300)
functionals = st.builds(ErrorFunctional, numbers, numbers)
Exact = tuple[Fraction, Fraction]


def exact(phi: ErrorFunctional) -> Exact:
    return Fraction(phi.stretch), Fraction(phi.added)


def at_most(true: Fraction, bound: float) -> bool:
    return math.isinf(bound) or true <= Fraction(bound)


@given(functionals, numbers)
def test_a_value_is_rounded_up(phi, error):
    stretch, added = exact(phi)
    assert at_most(stretch * Fraction(error) + added, phi(error))


@given(functionals, functionals)
def test_a_composition_bounds_the_composition(outer, inner):
    (a, b), (c, d) = exact(outer), exact(inner)
    both = outer @ inner
    assert at_most(a * c, both.stretch)
    assert at_most(a * d + b, both.added)


@given(functionals, functionals)
def test_joined_paths_add_up(one, other):
    (a, b), (c, d) = exact(one), exact(other)
    both = one + other
    assert at_most(a + c, both.stretch)
    assert at_most(b + d, both.added)


@given(st.lists(functionals, min_size=1, max_size=6), numbers)
def test_the_composition_theorem(chain, error):
    """Phi_F(eps) = prod L_i eps + sum_i Delta_i prod_{j > i} L_j on a chain."""
    whole = ErrorFunctional(1.0, 0.0)
    for layer in chain:
        whole = layer @ whole
    parts = [exact(layer) for layer in chain]
    added = sum(
        (delta * math.prod((s for s, _ in parts[i + 1 :]), start=Fraction(1)))
        for i, (_, delta) in enumerate(parts)
    )
    true = math.prod((s for s, _ in parts), start=Fraction(1)) * Fraction(error) + added
    assert at_most(true, whole(error))
    if true > Fraction(1, 10**200) and not math.isinf(whole(error)):
        assert Fraction(whole(error)) < true * (1 + Fraction(1, 10**12))


@given(functionals, numbers)
def test_an_inverse_keeps_the_tolerance(phi, tolerance):
    if tolerance < phi.added:
        with pytest.raises(FunctionalError, match="wider format"):
            phi.invert(tolerance)
        return
    found = phi.invert(tolerance)
    stretch, added = exact(phi)
    if math.isinf(found):
        assert phi.stretch == 0.0
    else:
        assert stretch * Fraction(found) + added <= Fraction(tolerance)


def test_an_inverse_gives_nearly_all_that_is_allowed():
    phi = ErrorFunctional(3.0, 1e-7)
    assert phi.invert(1e-3) == pytest.approx((1e-3 - 1e-7) / 3.0, rel=1e-12)


@given(st.floats(min_value=1e-30, max_value=1e30), st.floats(min_value=1e-30, max_value=1e30))
def test_bits_are_enough_and_one_less_is_not(added, tolerance):
    unit = 2.0**-24
    bits = ErrorFunctional(1.0, added).bits(tolerance, unit_roundoff=unit)
    error = Fraction(added) / Fraction(unit) / 2**bits
    assert error <= Fraction(tolerance)
    if bits > 1:
        assert 2 * error > Fraction(tolerance) * (1 - Fraction(1, 10**9))


def test_bits_leave_room_for_the_input_error():
    phi = ErrorFunctional(10.0, 1e-7)
    assert phi.bits(1e-3, unit_roundoff=2.0**-24, error=9.99e-5) > phi.bits(
        1e-3, unit_roundoff=2.0**-24
    )
    with pytest.raises(FunctionalError, match="input error alone"):
        phi.bits(1e-3, unit_roundoff=2.0**-24, error=1e-3)
    with pytest.raises(FunctionalError, match="nothing bounds"):
        ErrorFunctional(1.0, math.inf).bits(1e-3, unit_roundoff=2.0**-24)


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_bounds_are_not_negative(bad):
    with pytest.raises(FunctionalError, match="stretch"):
        ErrorFunctional(bad, 0.0)
    with pytest.raises(FunctionalError, match="added"):
        ErrorFunctional(0.0, bad)
    with pytest.raises(FunctionalError, match="input error"):
        ErrorFunctional(1.0, 0.0)(bad)
    with pytest.raises(FunctionalError, match="unit roundoff"):
        ErrorFunctional(1.0, 0.0).bits(1.0, unit_roundoff=bad)


def test_nothing_known_stays_unknown_but_exact_stays_exact():
    unknown, exact_input = ErrorFunctional(math.inf, 0.0), 0.0
    assert unknown(exact_input) == 0.0
    assert unknown(1e-300) == math.inf
    assert (unknown @ ErrorFunctional(1.0, 1e-9)).added == math.inf
