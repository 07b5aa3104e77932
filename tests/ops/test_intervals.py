"""Does interval arithmetic contain every value that the real numbers in the intervals give?"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flint import arb, ctx
from torch import Tensor

from numgeom.arithmetic.accuracy import default_table
from numgeom.ops import intervals
from numgeom.ops.intervals import Interval
from tests.ops.trials import generator

INF = math.inf
SHARES = (0.0, 1.0, 0.5, 0.3)


def random_interval(g: torch.Generator, *, low: float = -3.0, high: float = 3.0) -> Interval:
    """Intervals of all widths, some of them points, some huge or tiny."""
    x = low + (high - low) * torch.rand(40, generator=g, dtype=torch.float64)
    size = 10.0 ** (torch.rand(40, generator=g, dtype=torch.float64) * 40 - 20)
    x = torch.where(torch.rand(40, generator=g) > 0.7, x * size, x)
    width = x.abs() * 10.0 ** (-18 * torch.rand(40, generator=g, dtype=torch.float64))
    width = torch.where(torch.rand(40, generator=g) > 0.8, 0.0, width)
    return Interval(x, x + width)


def members(interval: Interval, share: float) -> list[arb]:
    """A number of each interval, exactly."""
    with ctx.workprec(3000):
        ends = zip(interval.lo.tolist(), interval.hi.tolist(), strict=True)
        return [arb(lo) + arb(share) * (arb(hi) - arb(lo)) for lo, hi in ends]


def assert_contains(result: Interval, exact: list[arb]) -> None:
    for lo, hi, value in zip(result.lo.tolist(), result.hi.tolist(), exact, strict=True):
        if value.is_finite():
            assert lo <= hi
            # Next to a limit of 1, say, even the exact value is a ball that reaches over it.
            assert not value < arb(lo)
            assert not value > arb(hi)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "sum": lambda a, b: a + b,
    "difference": lambda a, b: a - b,
    "product": lambda a, b: a * b,
    "quotient": lambda a, b: a / b,
    "with numbers": lambda a, b: 2.0 * a - b * -0.3 + 1.7 - (0.1 + a),
}


@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_contains_the_exact_results(name: str) -> None:
    f = BINARY[name]
    for seed in range(5):
        g = generator(seed)
        a, b = random_interval(g), random_interval(g)
        result = f(a, b)
        for s in SHARES:
            for t in SHARES:
                with ctx.workprec(3000):
                    pairs = zip(members(a, s), members(b, t), strict=True)
                    exact = [f(p, q) for p, q in pairs]
                assert_contains(result, exact)


UNARY: dict[str, tuple[Callable[[Interval], Interval], Callable[[arb], arb]]] = {
    "square": (Interval.square, lambda x: x * x),
    "abs": (Interval.abs, abs),
    "negative": (lambda x: -x, lambda x: -x),
    "cube": (lambda x: x.whole_power(3), lambda x: x**3),
    "fourth power": (lambda x: x.whole_power(4), lambda x: x**4),
    "inverse square": (lambda x: x.whole_power(-2), lambda x: 1 / (x * x)),
    "reciprocal": (intervals.reciprocal, lambda x: 1 / x),
    "sqrt": (intervals.sqrt, lambda x: x.sqrt() if x >= 0 else arb("nan")),
    "exp": (intervals.exp, arb.exp),
    "expm1": (intervals.expm1, arb.expm1),
    "log": (intervals.log, lambda x: x.log() if x > 0 else arb("nan")),
    "log1p": (intervals.log1p, lambda x: x.log1p() if x > -1 else arb("nan")),
    "tanh": (intervals.tanh, arb.tanh),
    "sigmoid": (intervals.sigmoid, lambda x: 1 / (1 + (-x).exp())),
    "erf": (intervals.erf, arb.erf),
    "erfc": (intervals.erfc, arb.erfc),
    "sin": (intervals.sin, arb.sin),
    "cos": (intervals.cos, arb.cos),
}


@pytest.mark.parametrize("name", UNARY)
def test_functions_contain_the_exact_values(name: str) -> None:
    f, exact = UNARY[name]
    for seed in range(5):
        x = random_interval(generator(seed))
        result = f(x)
        for s in SHARES:
            with ctx.workprec(1500):
                values = [exact(v) for v in members(x, s)]
            assert_contains(result, values)


@pytest.mark.parametrize("name", UNARY)
def test_a_point_gives_a_narrow_interval(name: str) -> None:
    f, _ = UNARY[name]
    x = Interval.exact(torch.tensor([0.3, 1.7], dtype=torch.float64))
    result = f(x)
    assert bool((result.hi - result.lo <= 1e-14 * result.magnitude() + 1e-300).all())


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_what_leaves_the_domain_is_unknown() -> None:
    across = Interval(row(-1.0), row(1.0))
    for f in (intervals.sqrt, intervals.log, intervals.reciprocal):
        assert (f(across).lo.item(), f(across).hi.item()) == (-INF, INF)
    assert across.restricted(-1.0, 1.0).hi.item() == 1.0
    assert across.restricted(-1.0, 1.0, closed=False).hi.item() == INF


def test_not_a_number_is_the_whole_line() -> None:
    x = Interval.around(row(math.nan, INF, 1.0), row(0.0, 0.0, INF))
    assert x.lo.tolist() == [-INF] * 3
    assert x.hi.tolist() == [INF] * 3


def test_zero_times_the_whole_line_is_zero() -> None:
    product = Interval(row(0.0), row(0.0)) * Interval(row(-INF), row(INF))
    assert product.magnitude().item() <= 5e-324


def test_a_ball_contains_its_ends() -> None:
    x, r = row(1.0, 1.0, 1e300), row(1e-30, 0.0, 1.0)
    box = Interval.around(x, r)
    assert bool((box.lo[[0, 2]] < x[[0, 2]]).all())
    assert bool((box.hi[[0, 2]] > x[[0, 2]]).all())
    assert (box.lo[1].item(), box.hi[1].item()) == (1.0, 1.0)


def test_a_function_that_nobody_measured_is_unknown() -> None:
    assert default_table().find("airy", torch.float64) is None
    y = intervals.growing("airy", torch.exp, Interval.exact(row(1.0)))
    assert (y.lo.item(), y.hi.item()) == (-INF, INF)
    assert intervals.elementary_error("airy", row(1.0)).item() == INF


def test_selection_covers_both_sides_in_doubt() -> None:
    a, b = Interval(row(0.0, 0.0, 0.0), row(1.0, 1.0, 1.0)), Interval(row(5, 5, 5), row(6, 6, 6))
    here, there = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    chosen = a.select(here, b, there)
    assert chosen.lo.tolist() == [0.0, 5.0, 0.0]
    assert chosen.hi.tolist() == [1.0, 6.0, 6.0]
