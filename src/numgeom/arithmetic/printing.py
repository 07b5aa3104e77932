"""How is a number written for a person, so that what is read is never better than what was shown?

A bound that is rounded to the nearest three digits is, every other time, smaller than the bound: a
statement that nobody proved. So a number is written by what it claims:

- `upper`: an error, a bound, a radius, a probability of failure, a factor of growth;
- `lower`: what is at least so much: a threshold that is kept, a detectable size;
- `digits_text`: correct decimal digits, downward;
- `nearest`: a measured number, an estimate, a number that the user gave.

Decimal numbers are compared with the exact value of the float, so nothing here rounds twice.
Ordinary format specifications of numbers (``f"{x:.2e}"``) occur in this module alone.
"""

import math
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_CEILING,
    ROUND_FLOOR,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
)

UNKNOWN = "?"

# Exact for every float64 number, which has at most 767 decimal digits, and for what is added here.
_WIDE = Context(prec=2000, Emax=MAX_EMAX, Emin=MIN_EMIN)


def upper(x: float | None, digits: int = 3) -> str:
    """Write a number so that what stands there is at least the number.

    Args:
        x: Any float or int; None and NaN are unknown.
        digits: Significant decimal digits.

    Returns:
        A decimal number, "0", "inf", "-inf", or "?" where the number is unknown.

    Example:
        >>> upper(1.2301e-7), lower(1.2399e-7), upper(-0.5)
        ('1.24e-07', '1.23e-07', '-5.00e-01')
    """
    return _scientific(_rounded(x, digits, ROUND_CEILING), digits)


def lower(x: float | None, digits: int = 3) -> str:
    """Write a number so that what stands there is at most the number; see `upper`."""
    return _scientific(_rounded(x, digits, ROUND_FLOOR), digits)


def nearest(x: float | None, digits: int = 3) -> str:
    """Write a number to the nearest: for what is measured or estimated and bounds nothing."""
    return _scientific(_rounded(x, digits, ROUND_HALF_EVEN), digits)


def upper_short(x: float | None, digits: int = 3) -> str:
    """The same as `upper` in the least room, without zeros at the end: 0.00123, 1.2e-07.

    Example:
        >>> upper_short(0.25), upper_short(1.2301e-7, 2)
        ('0.25', '1.3e-07')
    """
    return _short(_rounded(x, digits, ROUND_CEILING), digits)


def lower_short(x: float | None, digits: int = 3) -> str:
    """The same as `lower` in the least room."""
    return _short(_rounded(x, digits, ROUND_FLOOR), digits)


def nearest_short(x: float | None, digits: int = 3) -> str:
    """The same as `nearest` in the least room."""
    return _short(_rounded(x, digits, ROUND_HALF_EVEN), digits)


def digits_text(x: float | None) -> str:
    """Write a number of correct decimal digits: one place after the point, rounded down."""
    return _fixed(x, 1, ROUND_FLOOR)


def percent(share: float | None, places: int = 1) -> str:
    """Write a share as percent, to the nearest: for what is measured or estimated."""
    return _percent(share, places, ROUND_HALF_EVEN)


def percent_upper(share: float | None, places: int = 1) -> str:
    """Write a share as percent, upward."""
    return _percent(share, places, ROUND_CEILING)


def percent_lower(share: float | None, places: int = 1) -> str:
    """Write a share as percent, downward."""
    return _percent(share, places, ROUND_FLOOR)


def seconds_text(x: float | None) -> str:
    """Write a time, to hundredths of a second."""
    return f"{_fixed(x, 2, ROUND_HALF_EVEN)} s"


def correct_digits(error: float) -> float:
    """Lower bound of -log10(error), the number of correct decimal digits, for a positive error.

    The logarithm of decimal arithmetic is rounded correctly (General Decimal Arithmetic, log10),
    that of the C library need not be.
    """
    if math.isnan(error) or error == math.inf:
        return -math.inf
    if error <= 0.0:
        return math.inf
    context = Context(prec=30, Emax=MAX_EMAX, Emin=MIN_EMIN)
    # One unit of the last of 30 digits covers the rounding of the logarithm.
    digits = context.next_minus(context.minus(context.log10(Decimal.from_float(error))))
    found = float(digits)
    return found if Decimal.from_float(found) <= digits else math.nextafter(found, -math.inf)


def _exact(x: float | None) -> Decimal | str:
    """The exact value of a number; text for what is no plain number."""
    if x is None or x != x:
        return UNKNOWN
    if isinstance(x, float) and math.isinf(x):
        return "inf" if x > 0 else "-inf"
    # Unlike Decimal(x), it neither asks the thread's decimal context nor leaves a flag in it.
    return Decimal.from_float(x)


def _rounded(x: float | None, digits: int, rounding: str) -> Decimal | str:
    exact = _exact(x)
    if isinstance(exact, str) or not exact:
        return exact if isinstance(exact, str) else "0"
    context = Context(prec=digits, rounding=rounding, Emax=MAX_EMAX, Emin=MIN_EMIN)
    return context.create_decimal(exact)


def _scientific(x: Decimal | str, digits: int) -> str:
    return x if isinstance(x, str) else _with_exponent(x, _figures(x).ljust(digits, "0"))


def _short(x: Decimal | str, digits: int) -> str:
    if isinstance(x, str):
        return x
    figures = _figures(x).rstrip("0")
    if -4 <= x.adjusted() < digits:
        return ("-" if x.is_signed() else "") + _placed(figures, x.adjusted())
    return _with_exponent(x, figures)


def _figures(x: Decimal) -> str:
    return "".join(map(str, x.as_tuple().digits))


def _with_exponent(x: Decimal, figures: str) -> str:
    sign = "-" if x.is_signed() else ""
    fraction = f".{figures[1:]}" if len(figures) > 1 else ""
    return f"{sign}{figures[0]}{fraction}e{x.adjusted():+03d}"


def _placed(figures: str, exponent: int) -> str:
    """Digits with the decimal point where it belongs, without an exponent."""
    if exponent < 0:
        return "0." + "0" * (-exponent - 1) + figures
    whole, fraction = figures[: exponent + 1].ljust(exponent + 1, "0"), figures[exponent + 1 :]
    return f"{whole}.{fraction}" if fraction else whole


def _fixed(x: float | None, places: int, rounding: str) -> str:
    exact = _exact(x)
    return exact if isinstance(exact, str) else _in_places(exact, places, rounding)


def _percent(share: float | None, places: int, rounding: str) -> str:
    exact = _exact(share)
    if isinstance(exact, str):
        return exact
    return f"{_in_places(_WIDE.scaleb(exact, 2), places, rounding)}%"


def _in_places(exact: Decimal, places: int, rounding: str) -> str:
    step = Decimal((0, (1,), -places))
    rounded = exact.quantize(step, rounding=rounding, context=_WIDE)
    # Nothing is shown as -0.0.
    return f"{rounded.copy_abs() if rounded.is_zero() else rounded:f}"
