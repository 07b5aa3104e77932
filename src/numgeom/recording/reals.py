"""How does a program hold a real number that no float64 number equals?

Formulas need pi, 1/alpha for an alpha that the user chose, or 1 - eps. A double in their place is
another number, and an analysis that reads it as exact is wrong. Such a number is made by a call of
its own, `numgeom::real_number`, which carries what the double leaves out:

    |number - value - rest| <= error.

The call returns `value`; |rest| + error is its local error, so that every analysis treats it as it
treats any rounded value. Numbers that a double holds stay what they are, Python numbers.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("numgeom", "FRAGMENT")
_LIBRARY.define(
    "real_number(float value, float rest, float error, *, Device? device=None) -> Tensor"
)


def _real_number(
    value: float, rest: float, error: float, *, device: torch.device | None = None
) -> Tensor:
    del rest, error
    return torch.full((), value, dtype=torch.float64, device=device)


_LIBRARY.impl("real_number", _real_number, "CompositeExplicitAutograd")
REAL_NUMBER = torch.ops.numgeom.real_number.default


def is_real_number(args: tuple[Any, ...]) -> bool:
    """Whether arguments of `numgeom::real_number` are a number and how far it may be off."""
    if len(args) != 3 or not all(isinstance(part, float) for part in args):
        return False
    *_, error = args
    return all(math.isfinite(part) for part in args[:2]) and error >= 0.0


@dataclass(frozen=True)
class Real:
    """A real number, as two doubles and what is left.

    Attributes:
        value: The double next to it.
        rest: The double next to number - value.
        error: Bound of |number - value - rest|.
    """

    value: float
    rest: float
    error: float

    @classmethod
    def near(cls, number: Fraction | float, error: Fraction | float = 0) -> "Real":
        """The real number that is within `error` of a rational one."""
        number = Fraction(number)
        value = _double(number)
        rest = _double(number - Fraction(value))
        left = abs(number - Fraction(value) - Fraction(rest)) + Fraction(error)
        return cls(value, rest, _double_up(left))

    def as_factor(self, like: Tensor) -> Tensor | float:
        """Its value to compute with beside `like`: a float where a double holds it.

        Else a tensor without dimensions, of the dtype of `like`.
        """
        if self.rest == 0 and self.error == 0:
            return self.value
        return self.tensor(like.dtype, like.device)

    def tensor(self, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
        """A tensor without dimensions; None: float64, on the CPU."""
        made = REAL_NUMBER(self.value, self.rest, self.error, device=device)
        return made if dtype in (None, made.dtype) else made.to(dtype)


def _double(number: Fraction) -> float:
    """The double next to a rational number."""
    return number.numerator / number.denominator


def _double_up(number: Fraction) -> float:
    """A double that is not less than a rational number, which is not negative."""
    if number == 0:
        return 0.0
    found = _double(number)
    while Fraction(found) < number:
        found = math.nextafter(found, math.inf)
    return found


def exactly(number: Fraction | float, like: Tensor) -> Tensor | float:
    """A rational number, to compute with beside `like`; see `Real.as_factor`."""
    return Real.near(number).as_factor(like)


def square_root(number: Fraction | float) -> Real:
    """The root of a nonnegative rational number."""
    number = Fraction(number)
    # isqrt(n 4^k / d) / 2^k is off by less than 2^-k; the root keeps some 200 bits.
    shift = max(0, 200 + (number.denominator.bit_length() - number.numerator.bit_length()) // 2)
    scaled = (number.numerator << (2 * shift)) // number.denominator
    root = math.isqrt(scaled)
    is_whole = Fraction(root, 1 << shift) ** 2 == number
    return Real.near(Fraction(root, 1 << shift), 0 if is_whole else Fraction(1, 1 << shift))


def _decimal(digits: str) -> Real:
    """An irrational number, given by its first digits."""
    places = len(digits.partition(".")[2])
    return Real.near(Fraction(digits), Fraction(1, 10**places))


PI = _decimal("3.14159265358979323846264338327950288419716939937510582097494")
DEGREE = _decimal("0.0174532925199432957692369076848861271344287188854172545609719144")  # pi / 180
RADIAN = _decimal("57.2957795130823208767981548141051703324054724665643215491602438")  # 180 / pi
ROOT_HALF = square_root(Fraction(1, 2))
ROOT_TWO = square_root(2)
ROOT_TWO_OVER_PI = _decimal("0.797884560802865355879892119868763736951717262329869315331851659")
ROOT_OF_TWO_PI = _decimal("2.50662827463100050241576528481104525300698674060993831662992357")
DENSITY_AT_ZERO = _decimal("0.398942280401432677939946059934381868475858631164934657665925829")
TWO_OVER_ROOT_PI = _decimal("1.12837916709551257389615890312154517168810125865799771368817144")
HALF_ROOT_PI = _decimal("0.886226925452758013649083741670572591398774728061193564106903894")
LOG_2 = _decimal("0.693147180559945309417232121458176568075500134360255254120680009")
LOG_10 = _decimal("2.30258509299404568401799145468436420760110148862877297603332790")
INVERSE_LOG_2 = _decimal("1.44269504088896340735992468100189213742664595415298593413544940")
INVERSE_LOG_10 = _decimal("0.434294481903251827651128918916605082294397005803666566114453783")
LOG_PI = _decimal("1.14472988584940017414342735135305871164729481291531157151362307")
# As torch.nn.SELU documents them (Klambauer et al. 2017).
SELU_ALPHA = Real.near(Fraction("1.6732632423543772848170429916717"))
SELU_SCALE = Real.near(Fraction("1.0507009873554804934193349852946"))

# Those that torch writes into its formulas as doubles; also the user's own double is then covered,
# since it is the midpoint.
NAMED: tuple[Real, ...] = (
    PI,
    DEGREE,
    RADIAN,
    ROOT_HALF,
    ROOT_TWO,
    ROOT_TWO_OVER_PI,
    ROOT_OF_TWO_PI,
    DENSITY_AT_ZERO,
    TWO_OVER_ROOT_PI,
    HALF_ROOT_PI,
    LOG_2,
    LOG_10,
    INVERSE_LOG_2,
    INVERSE_LOG_10,
    SELU_ALPHA,
    SELU_SCALE,
)
