"""Composition along a graph, against sums over all of its paths."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from numgeom.functionals import FunctionalError
from numgeom.functionals.composition import (
    CONSTANT,
    INPUT,
    PARAMETER,
    Composition,
    Link,
    bits_for,
)

sizes = st.floats(min_value=0.0, max_value=1e6)


@st.composite
def compositions(draw: st.DrawFn) -> Composition:
    n = draw(st.integers(1, 7))
    calls = []
    for i in range(n):
        parents = draw(
            st.lists(st.tuples(st.integers(CONSTANT, i - 1), sizes), min_size=1, max_size=3)
        )
        own = draw(sizes)
        module = draw(st.sampled_from(["", "a", "a.b", "c"]))
        calls.append(Link(module, "forward", tuple(parents), own, own, 2.0**-24))
    return Composition(tuple(calls), {"w": n - 1})


def paths(whole: Composition, i: int, goal: int) -> Fraction:
    """The stretch from one call to another, summed over all paths."""
    if i == goal:
        return Fraction(1)
    return sum(
        (Fraction(s) * paths(whole, p, goal) for p, s in whole.calls[i].parents if p >= 0),
        Fraction(0),
    )


def from_outside(whole: Composition, i: int) -> Fraction:
    total = Fraction(0)
    for parent, stretch in whole.calls[i].parents:
        if parent in (PARAMETER, INPUT):
            total += Fraction(stretch)
        elif parent >= 0:
            total += Fraction(stretch) * from_outside(whole, parent)
    return total


@given(compositions())
def test_every_path_counts(whole):
    last = len(whole.calls) - 1
    functional = whole.end_to_end()["w"]
    added = sum(Fraction(call.added) * paths(whole, last, i) for i, call in enumerate(whole.calls))
    assert added <= Fraction(functional.added)
    assert from_outside(whole, last) <= Fraction(functional.stretch)
    if added > Fraction(1, 10**100):
        assert Fraction(functional.added) < added * (1 + Fraction(1, 10**12))


@given(compositions())
def test_weights_are_the_stretches_to_a_gradient(whole):
    last = len(whole.calls) - 1
    for i, weight in enumerate(whole.weights(["w"])):
        exact = paths(whole, last, i)
        assert exact <= Fraction(weight)
        if exact > Fraction(1, 10**100):
            assert Fraction(weight) < exact * (1 + Fraction(1, 10**12))


@given(compositions())
def test_shares_and_the_expected_error_follow_from_the_weights(whole):
    weights = whole.weights(["w"])
    terms = [w * call.own for w, call in zip(weights, whole.calls, strict=True)]
    assert whole.expected("w") == pytest.approx(math.hypot(*terms), rel=1e-9, abs=1e-290)
    assert whole.expected("w") <= sum(terms) * (1 + 1e-12)
    assert sum(whole.shares().values()) * 2.0**-24 == pytest.approx(
        sum(terms), rel=1e-9, abs=1e-290
    )


def test_a_module_sees_what_enters_and_what_leaves():
    whole = Composition(
        (
            Link("a", "forward", ((INPUT, 2.0), (PARAMETER, 5.0)), 1e-3, 1e-3, 2.0**-24),
            Link("a.b", "forward", ((0, 3.0),), 1e-4, 1e-4, 2.0**-24),
            Link("c", "backward", ((0, 1.0), (1, 7.0)), 0.0, 0.0, 2.0**-24),
        ),
        {"w": 2},
    )
    assert whole.modules == ("", "a", "a.b", "c")
    # Both calls of "a" are read outside of it: 2 and 2 * 3; its parameter is exact.
    around = whole.within("a")
    assert around is not None
    assert around.stretch == pytest.approx(8.0)
    assert around.added == pytest.approx(1e-3 + 3e-3 + 1e-4)
    inner, last = whole.within("a.b"), whole.within("c", "backward")
    assert inner is not None
    assert inner.stretch == pytest.approx(3.0)
    assert last is not None
    assert last.stretch == pytest.approx(8.0)
    assert whole.within("c", "forward") is None
    assert whole.own("a") == pytest.approx(1.1e-3)
    assert whole.expected("nothing") == 0.0


@given(st.dictionaries(st.sampled_from("abcd"), sizes, min_size=1), st.floats(1e-9, 1e3))
def test_bits_keep_the_tolerance_and_one_less_does_not(shares, tolerance):
    bits = bits_for(shares, tolerance)
    errors = {path: Fraction(share) / 2 ** bits[path] for path, share in shares.items()}
    assert sum(errors.values()) <= Fraction(tolerance) * (1 + Fraction(1, 10**12))
    for path, error in errors.items():
        if bits[path] > 1:
            assert 2 * error * len(shares) > Fraction(tolerance) * (1 - Fraction(1, 10**9))


def test_a_tolerance_that_nothing_bounds_is_refused():
    with pytest.raises(FunctionalError, match=r"encoder\.layer"):
        bits_for({"encoder.layer": math.inf, "head": 1.0}, 1e-3)
    with pytest.raises(FunctionalError, match="positive"):
        bits_for({"head": 1.0}, math.nan)


def test_what_is_not_known_is_no_rounding_of_zero():
    """An op without a rule has no own error, but its result has no bound."""
    unknown = Link("a", "forward", (), math.inf, 0.0, 2.0**-24)
    whole = Composition((unknown, Link("b", "forward", ((0, 1.0),), 0.0, 0.0, 2.0**-24)), {"w": 1})
    assert whole.shares() == {"a": math.inf}
    assert whole.expected("w") == math.inf
