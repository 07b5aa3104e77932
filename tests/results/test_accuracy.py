"""Are norms and errors right, at the ends of the range too?"""

import json
import math
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from numgeom.results.accuracy import (
    MOST_DIGITS,
    GradientAccuracy,
    combined_norm,
    measure,
    norm,
    relative,
    total,
)
from numgeom.results.codec import decode, encode
from numgeom.results.guarantee import Guarantee

finite = st.floats(allow_nan=False, allow_infinity=False)
moderate = st.floats(-1e6, 1e6, allow_subnormal=False)


def exact_norm(values: list[float]) -> mpmath.mpf:
    with mpmath.workdps(60):
        return mpmath.sqrt(sum(mpmath.mpf(value) ** 2 for value in values))


@given(st.lists(finite, max_size=20))
def test_the_norm_is_right_wherever_it_can_be_written_down(values: list[float]) -> None:
    exact = exact_norm(values)
    found = norm(torch.tensor(values, dtype=torch.float64))
    if exact > 1.79e308:
        assert found > 1.78e308
    else:
        assert abs(found - exact) <= 1e-14 * exact + mpmath.mpf(5e-324)


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e-30, 1.0, 1e30, 1e200, 4e307])
def test_the_norm_neither_overflows_nor_underflows(scale: float) -> None:
    assert norm(torch.tensor([3.0, 4.0], dtype=torch.float64) * scale) == pytest.approx(5 * scale)


def test_special_norms() -> None:
    assert norm(torch.zeros(3)) == norm(torch.zeros(0, 4)) == 0.0
    assert norm(torch.tensor([1.0, -math.inf])) == math.inf
    assert math.isnan(norm(torch.tensor([math.inf, math.nan])))
    assert math.isnan(combined_norm([math.inf, math.nan]))
    assert combined_norm([]) == 0.0


@given(st.lists(moderate, min_size=1, max_size=8), st.lists(moderate, min_size=1, max_size=8))
def test_the_observed_error_is_the_exact_one(a: list[float], b: list[float]) -> None:
    size = min(len(a), len(b))
    computed = torch.tensor(a[:size], dtype=torch.float32)
    reference = torch.tensor(b[:size], dtype=torch.float64)
    row = measure("w", computed, reference)
    pairs = list(zip(computed.tolist(), reference.tolist(), strict=True))
    differences = [Fraction(x) - Fraction(y) for x, y in pairs]
    error_squared = sum(d * d for d in differences)
    size_squared = sum(Fraction(y) ** 2 for _, y in pairs)
    if size_squared:
        ratio = error_squared / size_squared
        exact = float(mpmath.sqrt(mpmath.mpf(ratio.numerator) / ratio.denominator))
        assert row.observed_error == pytest.approx(exact, rel=1e-12)
    else:
        assert row.observed_error == (math.inf if error_squared else 0.0)
    assert row.largest_entry_error == pytest.approx(float(max(map(abs, differences))), rel=1e-12)
    assert row.guarantee is Guarantee.ESTIMATED


def row(computed: Tensor | list[float], reference: list[float]) -> GradientAccuracy:
    return measure("w", torch.as_tensor(computed), torch.tensor(reference, dtype=torch.float64))


def test_zero_gradients() -> None:
    both = row([0.0, 0.0], [0.0, 0.0])
    assert (both.observed_error, both.digits, both.guarantee) == (
        0.0,
        MOST_DIGITS,
        Guarantee.ESTIMATED,
    )
    lost = row([0.0, 0.0], [1e-60, 0.0])
    assert (lost.observed_error, lost.digits) == (1.0, 0.0)
    invented = row([1e-30, 0.0], [0.0, 0.0])
    assert (invented.observed_error, invented.digits) == (math.inf, 0.0)
    assert invented.largest_entry_error_relative == math.inf
    empty = measure("w", torch.zeros(0), torch.zeros(0, dtype=torch.float64))
    assert (empty.observed_error, empty.entries) == (0.0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_have_no_error_and_no_guarantee(bad: float) -> None:
    wrong = row([1.0, bad], [1.0, 2.0])
    assert math.isnan(wrong.observed_error)
    assert (wrong.nonfinite_entries, wrong.digits, wrong.guarantee) == (1, 0.0, Guarantee.NONE)
    both = row([1.0, bad], [1.0, bad])
    assert math.isnan(both.observed_error)
    assert (both.digits, both.guarantee) == (None, Guarantee.NONE)
    reference = row([1.0, 2.0], [1.0, bad])
    assert math.isnan(reference.observed_error)
    assert (reference.nonfinite_entries, reference.reference_nonfinite_entries) == (0, 1)
    assert (reference.digits, reference.guarantee) == (None, Guarantee.NONE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_float64_is_never_called_exact(dtype: torch.dtype) -> None:
    gradient = torch.ones(3, dtype=dtype)
    same = measure("w", gradient, gradient)
    assert math.isnan(same.observed_error)
    assert (same.digits, same.guarantee, same.error_norm) == (None, Guarantee.NONE, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_every_lower_format_is_judged(dtype: torch.dtype) -> None:
    computed = torch.tensor([3.0, 4.0], dtype=dtype)
    reference = computed.to(torch.complex128 if dtype.is_complex else torch.float64) * 1.25
    found = measure("w", computed, reference)
    assert found.observed_error == pytest.approx(0.2)
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.guarantee is Guarantee.ESTIMATED


def with_bound(bound: float, observed: float) -> GradientAccuracy:
    return GradientAccuracy(
        "w", (1,), "float32", 1, 1.0, 1.0, observed, observed, observed, 1.0, 0, 0,
        Guarantee.PROVED, error_bound=bound, radius=bound - observed,
    )  # fmt: skip


def test_digits_and_tightness_of_a_bound() -> None:
    assert with_bound(1e-6, 1e-7).digits == pytest.approx(6.0)
    assert with_bound(1e-6, 1e-7).tightness == pytest.approx(10.0)
    assert with_bound(1e-6, 0.0).tightness is None
    assert with_bound(1e-6, math.nan).tightness is None
    assert with_bound(math.inf, 1e-7).digits == 0.0
    assert row([1.0], [2.0]).tightness is None


@pytest.mark.parametrize(
    ("error", "digits"), [(1e-3, 3.0), (0.5, 0.301), (7.0, 0.0), (1e-30, 15.95)]
)
def test_digits_stay_between_zero_and_what_float64_can_show(error: float, digits: float) -> None:
    assert with_bound(error, 0.0).digits == pytest.approx(digits, rel=1e-3)


def test_the_total_is_the_gradient_as_one_vector() -> None:
    a, b = torch.randn(4, 3), torch.randn(5)
    exact = [a.double() * 1.001, b.double() + 1e-4]
    rows = [measure("a", a, exact[0]), measure("b", b, exact[1])]
    joined = measure(
        "total", torch.cat([a.flatten(), b]), torch.cat([exact[0].flatten(), exact[1]])
    )
    whole = total(rows)
    assert whole.entries == 17
    for field in ("computed_norm", "reference_norm", "error_norm", "observed_error"):
        assert getattr(whole, field) == pytest.approx(getattr(joined, field), rel=1e-12)
    assert whole.largest_entry_error == joined.largest_entry_error
    assert whole.largest_entry == joined.largest_entry


def test_what_is_unknown_of_one_is_unknown_of_all() -> None:
    for unknown in (row([math.nan], [1.0]), row(torch.ones(1, dtype=torch.float64), [1.0])):
        whole = total([row([1.0], [2.0]), unknown])
        assert math.isnan(whole.observed_error)
        assert whole.guarantee is Guarantee.NONE
    assert whole.dtype == "float32, float64"


def test_relative_errors_of_nothing() -> None:
    assert relative(0.0, 0.0) == 0.0
    assert relative(1.0, 0.0) == math.inf
    assert math.isnan(relative(math.nan, 0.0))


@given(st.sampled_from([0.0, 1.5, math.inf, math.nan]), st.sampled_from([None, 1e-6, math.inf]))
def test_a_row_comes_back_from_its_document(error: float, bound: float | None) -> None:
    made = GradientAccuracy(
        "[w]", (2, 3), "float32", 6, error, 1.0, error, error, error, 1.0, 1, 2,
        Guarantee.ESTIMATED if bound is None else Guarantee.CERTIFIED,
        error_bound=bound, radius=bound,
    )  # fmt: skip
    document = encode(made)
    assert encode(decode(GradientAccuracy, json.loads(json.dumps(document)))) == document
