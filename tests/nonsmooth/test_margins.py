"""Are the margins those of the formulas, to six digits, and refused where they mean nothing?"""

import math

import pytest
from scipy.stats import beta, binom

from numgeom.nonsmooth import (
    MarginError,
    clopper_pearson,
    hoeffding_margin,
    hoeffding_sample_size,
    mcdiarmid_margin,
    mcdiarmid_sample_size,
)


@pytest.mark.parametrize(("n", "margin"), [(1000, 0.0429469), (391_000, 0.00217192)])
def test_hoeffding(n: int, margin: float) -> None:
    assert hoeffding_margin(n) == pytest.approx(margin, rel=1e-6, abs=1e-7)
    assert hoeffding_margin(n) == pytest.approx(math.sqrt(math.log(40) / (2 * n)), rel=1e-14)


@pytest.mark.parametrize(
    ("points", "batches", "margin"),
    [(1000, 391, 0.0810042), (100, 469, 0.149590), (2, 469, 0.962368)],
)
def test_mcdiarmid(points: int, batches: int, margin: float) -> None:
    assert mcdiarmid_margin(points, batches) == pytest.approx(margin, abs=5e-7)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 1000, 0.0, 0.00368208), (1000, 1000, 0.99631792, 1.0)],
)
def test_clopper_pearson(successes: int, n: int, low: float, high: float) -> None:
    assert clopper_pearson(successes, n) == (
        pytest.approx(low, abs=5e-8),
        pytest.approx(high, abs=5e-8),
    )


@pytest.mark.parametrize("n", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_clopper_pearson_is_the_beta_quantile(n: int, alpha: float) -> None:
    for k in {0, 1, n // 3, n // 2, n - 1, n}:
        low, high = clopper_pearson(k, n, alpha=alpha)
        assert low == pytest.approx(beta.ppf(alpha / 2, k, n - k + 1) if k else 0.0, rel=1e-9)
        expected = beta.ppf(1 - alpha / 2, k + 1, n - k) if k < n else 1.0
        assert high == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.99])
def test_clopper_pearson_covers(p: float) -> None:
    n = 40
    missed = 0.0
    for k in range(n + 1):
        low, high = clopper_pearson(k, n)
        missed += 0.0 if low <= p <= high else float(binom.pmf(k, n, p))
    assert missed <= 0.05


@pytest.mark.parametrize("margin", [0.5, 0.05, 0.0429, 0.01])
def test_sample_sizes_are_the_smallest(margin: float) -> None:
    n = hoeffding_sample_size(margin)
    assert hoeffding_margin(n) <= margin
    if n > 2:
        assert hoeffding_margin(n - 1) > margin
    m = mcdiarmid_sample_size(margin, batches=100_000)
    assert mcdiarmid_margin(m, 100_000) <= margin
    if m > 2:
        assert mcdiarmid_margin(m - 1, 100_000) > margin


def test_a_vacuous_margin_is_refused() -> None:
    with pytest.raises(MarginError, match=r"1 points and 391 mini-batches give a margin of 1\.36"):
        mcdiarmid_margin(1, 391)
    with pytest.raises(MarginError, match="says nothing"):
        hoeffding_margin(1)


def test_a_margin_out_of_reach_says_what_would_reach_it() -> None:
    with pytest.raises(MarginError, match=r"at least 738 mini-batches, or a margin above 0\.0687"):
        mcdiarmid_sample_size(0.05, batches=391)
    assert mcdiarmid_sample_size(0.05, batches=738) > 100_000
    with pytest.raises(MarginError):
        mcdiarmid_sample_size(0.05, batches=737)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_a_risk_must_be_a_probability(alpha: float) -> None:
    with pytest.raises(MarginError, match="between 0 and 1"):
        hoeffding_margin(10, alpha=alpha)


def test_impossible_counts_are_refused() -> None:
    for successes, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(MarginError):
            clopper_pearson(successes, n)
    with pytest.raises(MarginError):
        hoeffding_sample_size(0.0)
