"""Is what stands on paper never better than the number that was shown?

Printed numbers are read back as exact fractions and compared with the exact value of the float:
no tolerance, and nothing of the code under test in the comparison.
"""

import decimal
import math
import random
import struct
from collections.abc import Callable
from fractions import Fraction

import flint
import pytest

from numgeom.arithmetic.printing import (
    correct_digits,
    digits_text,
    lower,
    lower_short,
    nearest,
    nearest_short,
    percent,
    percent_lower,
    percent_upper,
    seconds_text,
    upper,
    upper_short,
)

SPECIAL = [
    5e-324, 2.2250738585072014e-308, 2.225073858507201e-308, 1.7976931348623157e308, 1.0, 0.1, 1e-9,
    9.995, 9.994999999, 99.95, 0.9995, 0.99999, 999.5, 9.999999e-8, 1e22, 1e23, 123456789.0, 0.3,
    1e-5, 1e-4, 9.9999e-5, 1000.0, 999.0, math.pi, 2.0**-1074 * 3, 2.0**53 + 2,
]  # fmt: skip


def numbers(count: int, seed: int) -> list[float]:
    """Random bit patterns, and numbers within a few steps of short decimals."""
    draw = random.Random(seed)
    found = [*SPECIAL, *(-x for x in SPECIAL)]
    while len(found) < count:
        (x,) = struct.unpack("<d", struct.pack("<Q", draw.getrandbits(64)))
        if math.isfinite(x) and x:
            found.append(x)
        short = float(f"{draw.randint(1, 9999)}e{draw.randint(-326, 304)}")
        for _ in range(draw.randint(0, 2)):
            short = math.nextafter(short, draw.choice([0.0, math.inf]))
        if short and math.isfinite(short):
            found.append(draw.choice([short, -short]))
    return found


def read(text: str) -> Fraction:
    """The exact number that a person reads."""
    if text.endswith("%"):
        return Fraction(text.removesuffix("%")) / 100
    return Fraction(text.removesuffix(" s"))


def check(x: float) -> None:
    """All ways of writing one number keep their direction and their accuracy."""
    exact = Fraction(x)
    for digits in (1, 2, 3, 9):
        step = Fraction(10) ** (math.floor(math.log10(abs(exact))) - digits + 2)
        for up, down, near in ((upper, lower, nearest), (upper_short, lower_short, nearest_short)):
            above, below, middle = (read(write(x, digits)) for write in (up, down, near))
            assert below <= exact <= above, (x, digits)
            assert above - below <= step, (x, digits)
            assert middle in (above, below), (x, digits)
            assert abs(middle - exact) <= (above - below) / 2, (x, digits)
            # What float() makes of the text is no better either.
            assert float(up(x, digits)) >= x >= float(down(x, digits))
    if abs(x) < 1e40:
        assert read(percent_lower(x)) <= exact <= read(percent_upper(x))
        assert read(percent_upper(x)) - read(percent_lower(x)) <= Fraction(1, 1000)
        assert abs(read(percent(x)) - exact) <= Fraction(1, 2000)
        assert 0 <= exact - read(digits_text(x)) < Fraction(1, 10)
        assert abs(read(seconds_text(x)) - exact) <= Fraction(1, 200)


def check_digits(error: float) -> None:
    """10^-digits is at least the error, by ball arithmetic, and nearly equal to it."""
    found = correct_digits(error)
    with flint.ctx.workprec(400):
        exact = -flint.arb(error).log() / flint.arb(10).log()
        assert flint.arb(found) < exact or exact.contains(flint.arb(found)) and error == 1.0
        assert exact - flint.arb(found) < flint.arb(2) ** -50 * (1 + abs(exact))


def test_numbers_are_rounded_in_their_direction() -> None:
    for x in numbers(3000, seed=0):
        check(x)


@pytest.mark.campaign
def test_millions_of_numbers_are_rounded_in_their_direction() -> None:
    for x in numbers(1_000_000, seed=1):
        check(x)


def test_correct_digits_are_not_too_many() -> None:
    for x in numbers(2000, seed=2):
        check_digits(abs(x))


@pytest.mark.campaign
def test_correct_digits_are_not_too_many_for_millions_of_numbers() -> None:
    for x in numbers(1_000_000, seed=3):
        check_digits(abs(x))


def test_whole_numbers_of_any_size_are_written() -> None:
    for x in (3, -12345, 10**400 + 1, -(10**400) - 1):
        assert Fraction(lower(x)) <= x <= Fraction(upper(x))


@pytest.mark.parametrize("write", [upper, lower, nearest, digits_text, percent, seconds_text])
def test_what_is_no_number_is_shown_as_it_is(write: Callable[[float | None], str]) -> None:
    assert write(None).startswith("?")
    assert write(math.nan).startswith("?")
    assert write(math.inf).startswith("inf")
    assert write(-math.inf).startswith("-inf")
    assert write(0.0) == write(-0.0)
    assert "-" not in write(-0.0)


def test_the_layout_is_that_of_python() -> None:
    draw = random.Random(4)
    for _ in range(2000):
        x = draw.choice([1, -1]) * draw.random() * 10.0 ** draw.randint(-12, 12)
        assert nearest(x) == f"{x:.2e}"
        assert nearest(x, 1) == f"{x:.0e}"
        assert nearest_short(x) == f"{x:.3g}"
        assert percent(x) in (f"{x:.1%}", f"{0.0:.1%}") or abs(x) > 1e-3
    assert (percent(0.123), percent(1.0, 0), seconds_text(1.236)) == ("12.3%", "100%", "1.24 s")


def test_numbers_are_written_alike_whatever_the_decimal_context() -> None:
    expected = [upper(1.2301e-7), percent(0.12345), digits_text(6.78), correct_digits(1e-7)]
    with decimal.localcontext() as context:
        context.prec, context.rounding, context.Emax = 1, decimal.ROUND_DOWN, 2
        context.traps = dict.fromkeys(context.traps, True)
        again = [upper(1.2301e-7), percent(0.12345), digits_text(6.78), correct_digits(1e-7)]
        assert not any(context.flags.values())
    assert again == expected


def test_no_error_and_no_knowledge_have_their_digits() -> None:
    assert correct_digits(0.0) == math.inf
    assert correct_digits(math.inf) == correct_digits(math.nan) == -math.inf
