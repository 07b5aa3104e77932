"""Which elementary functions are measured, where, and what are their exact values?

Each entry names a function as torch computes it, the same function over the reals as an Arb
enclosure (python-flint), its domain, and where its errors are likely to be large. An entry's
`floor` is an absolute error that is granted besides the relative one, where a kernel's relative
error has no bound: next to a zero that it reaches by cancellation, or where an intermediate result
leaves the range of normal numbers. See `numgeom.arithmetic.accuracy.Floor`.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from flint import arb, ctx
from torch import Tensor

from numgeom.arithmetic.accuracy import Floor
from numgeom.arithmetic.elementary import COMPUTED
from numgeom.arithmetic.formats import Format, float16, float32

INF = math.inf
Interval = tuple[float, float]
EVERYWHERE: Interval = (-INF, INF)
POSITIVE: Interval = (5e-324, INF)

# Arguments that reduce badly: Muller et al., Handbook of Floating-Point Arithmetic (2018),
# sec. 10.2; 6381956970095103 * 2^797 is the float64 number next to a multiple of pi/2.
HARD_ANGLES = tuple(k * math.pi / 2 for k in range(1, 65)) + (
    6381956970095103.0 * 2.0**797,
    16367173.0 * 2.0**72,
    1e5,
    1e15,
    1e22,
)


@dataclass(frozen=True)
class Elementary:
    """A function of one or two real numbers.

    Attributes:
        name: The key in the accuracy table, and of how torch computes it.
        exact: An enclosure of its value, NaN where it has none.
        domain: For each argument, the interval that it is taken from (open at infinity).
        active: For each argument, the interval outside which the function is trivial, saturated,
            or out of range: sampled evenly as well.
        near: Points of special interest in every argument (zeros, poles, thresholds).
        floor: Absolute error that is granted besides the relative one.
        short_floor: The same for short formats, if these have kernels of their own.
        short: The largest precision of a short format.
    """

    name: str
    exact: Callable[..., arb]
    _: KW_ONLY
    domain: tuple[Interval, ...] = (EVERYWHERE,)
    active: tuple[Interval, ...] = ((-10.0, 10.0),)
    near: tuple[float, ...] = ()
    floor: Floor = Floor()
    short_floor: Floor | None = None
    short: int = float16.precision

    @property
    def compute(self) -> Callable[..., Tensor]:
        """How torch computes the function."""
        return COMPUTED[self.name]

    def floor_in(self, fmt: Format) -> Floor:
        """The floor in a format."""
        if self.short_floor is not None and fmt.precision <= self.short:
            return self.short_floor
        return self.floor


def enclose(function: Elementary, arguments: tuple[float, ...]) -> arb | None:
    """The exact value to at least 100 bits, or None if there is none or 8192 bits are too few."""
    for bits in (160, 320, 1280, 8192):
        with ctx.workprec(bits):
            value = function.exact(*map(arb, arguments))
            if value.is_finite() and (value.is_zero() or value.rel_accuracy_bits() >= 100):
                return value
    return None


def _half() -> arb:
    return arb(1) / 2


def _sigmoid(x: arb) -> arb:
    return 1 / (1 + (-x).exp()) if x > 0 else x.exp() / (1 + x.exp())


def _gelu(x: arb) -> arb:
    return x * _half() * (-x / arb(2).sqrt()).erfc()


def _gelu_tanh(x: arb) -> arb:
    # 1 + tanh(t) = 2 / (1 + exp(-2 t)); Python's 0.044715 is the float64 number.
    t = (2 / arb.pi()).sqrt() * (x + arb(0.044715) * x**3)
    return x / (1 + (-2 * t).exp())


def _mish(x: arb) -> arb:
    if x > 100:
        e = (-x).exp()
        return x * (1 + 2 * e) / (1 + 2 * e + 2 * e**2)
    e = x.exp()
    return x * (e**2 + 2 * e) / (e**2 + 2 * e + 2)


def _softplus(x: arb) -> arb:
    return x if x > 20 else x.exp().log1p()  # the threshold of its definition


def _elu(x: arb) -> arb:
    return x if x > 0 else x.expm1()


SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def _selu(x: arb) -> arb:
    return arb(SELU_SCALE) * (x if x > 0 else arb(SELU_ALPHA) * x.expm1())


def _log_sigmoid(x: arb) -> arb:
    return -((-x).exp().log1p()) if x > 0 else x - x.exp().log1p()


def _lgamma(x: arb) -> arb:
    if x > 0:
        return x.lgamma()
    if x.is_integer():
        return arb.nan()
    sine = (x - x.floor()).sin_pi()
    return (arb.pi() / sine).log() - (1 - x).lgamma()


def _i0(x: arb) -> arb:
    return x.bessel_i(0)


def _i1(x: arb) -> arb:
    return x.bessel_i(1)


def _logaddexp(a: arb, b: arb) -> arb:
    high, low = (a, b) if a > b else (b, a)
    return high + (low - high).exp().log1p()


def _hypot(a: arb, b: arb) -> arb:
    return (a * a + b * b).sqrt()


def _atan2(y: arb, x: arb) -> arb:
    if y.is_zero() and not x > 0:
        return arb.nan()  # the branch cut, where the sign of zero decides
    return arb.atan2(y, x)


def _power(exponent: float) -> Callable[[arb], arb]:
    def exact(x: arb) -> arb:
        if exponent == int(exponent):
            return x ** int(exponent)
        return (
            x.sqrt() if exponent == 0.5 else x.rsqrt() if exponent == -0.5 else x ** arb(exponent)
        )

    return exact


def _pow(x: arb, y: arb) -> arb:
    return arb(1) if y.is_zero() else (y * x.log()).exp()


def _xlogy(x: arb, y: arb) -> arb:
    return arb(0) if x.is_zero() else x * y.log()


def _powers() -> tuple[Elementary, ...]:
    entries = []
    for exponent in (2.0, 3.0, -1.0, -2.0, 0.5, -0.5):
        whole = exponent == int(exponent)
        domain = EVERYWHERE if whole else POSITIVE
        # x^-2 is computed as 1 / (x x), and x x may overflow.
        floor = Floor(normal=1.0) if exponent == -2.0 else Floor()
        name = f"pow({exponent:g})"
        entries.append(Elementary(name, _power(exponent), domain=(domain,), floor=floor))
    return tuple(entries)


FUNCTIONS: tuple[Elementary, ...] = (
    Elementary("exp", arb.exp, active=((-746.0, 710.0),)),
    Elementary("exp2", lambda x: arb(2) ** x, active=((-1076.0, 1024.0),)),
    Elementary("expm1", arb.expm1, active=((-50.0, 710.0),)),
    Elementary("log", arb.log, domain=(POSITIVE,), active=((0.0, 4.0),), near=(1.0,)),
    Elementary(
        "log2",
        lambda x: x.log() / arb(2).log(),
        domain=(POSITIVE,),
        active=((0.0, 4.0),),
        near=(1.0,),
    ),
    Elementary(
        "log10",
        lambda x: x.log() / arb(10).log(),
        domain=(POSITIVE,),
        active=((0.0, 4.0),),
        near=(1.0,),
    ),
    Elementary("log1p", arb.log1p, domain=((-1.0, INF),), active=((-1.0, 4.0),), near=(-1.0,)),
    Elementary("sin", arb.sin, near=HARD_ANGLES, active=((-100.0, 100.0),)),
    Elementary("cos", arb.cos, near=HARD_ANGLES, active=((-100.0, 100.0),)),
    Elementary("tan", arb.tan, near=HARD_ANGLES, active=((-100.0, 100.0),)),
    Elementary(
        "asin",
        arb.asin,
        domain=((-1.0, 1.0),),
        active=((-1.0, 1.0),),
        near=(1.0, -1.0, 0.5),
    ),
    Elementary(
        "acos",
        arb.acos,
        domain=((-1.0, 1.0),),
        active=((-1.0, 1.0),),
        near=(1.0, -1.0, 0.5),
    ),
    Elementary("atan", arb.atan),
    Elementary("sinh", arb.sinh, active=((-711.0, 711.0),)),
    Elementary("cosh", arb.cosh, active=((-711.0, 711.0),)),
    Elementary("tanh", arb.tanh, active=((-20.0, 20.0),)),
    Elementary("asinh", arb.asinh),
    Elementary("acosh", arb.acosh, domain=((1.0, INF),), active=((1.0, 10.0),), near=(1.0,)),
    Elementary(
        "atanh",
        arb.atanh,
        domain=((-1.0, 1.0),),
        active=((-1.0, 1.0),),
        near=(1.0, -1.0),
    ),
    Elementary("sigmoid", _sigmoid, active=((-750.0, 40.0),), floor=Floor(normal=1.0)),
    Elementary("erf", arb.erf, active=((-6.0, 6.0),), short_floor=Floor(one=0.01)),
    Elementary("erfc", arb.erfc, active=((-6.0, 27.5),)),
    Elementary(
        "erfinv",
        arb.erfinv,
        domain=((-1.0, 1.0),),
        active=((-1.0, 1.0),),
        near=(1.0, -1.0, 0.7),
    ),
    Elementary(
        "lgamma",
        _lgamma,
        active=((-20.0, 20.0),),
        near=(1.0, 2.0, -2.4570247382208006),
        floor=Floor(one=1.0),
    ),
    Elementary(
        "digamma",
        arb.digamma,
        domain=(POSITIVE,),
        active=((0.0, 20.0),),
        near=(1.4616321449683622,),
        floor=Floor(one=32.0),
    ),
    Elementary(
        "trigamma",
        lambda x: arb(2).zeta(x),
        domain=(POSITIVE,),
        active=((0.0, 20.0),),
    ),
    Elementary("sqrt", arb.sqrt, domain=((0.0, INF),)),
    Elementary("rsqrt", arb.rsqrt, domain=(POSITIVE,)),
    Elementary("reciprocal", lambda x: 1 / x),
    # For float32 and less, processors with AVX-512 have a kernel that flushes results below the
    # smallest normal number, and cancels in 1 + erf by up to 8 u.
    Elementary(
        "gelu",
        _gelu,
        active=((-40.0, 10.0),),
        floor=Floor(argument=6.0),
        short_floor=Floor(normal=2.0, argument=16.0),
        short=float32.precision,
    ),
    Elementary(
        "gelu_tanh",
        _gelu_tanh,
        active=((-40.0, 10.0),),
        floor=Floor(argument=2.0),
    ),
    Elementary(
        "silu",
        lambda x: x * _sigmoid(x),
        active=((-750.0, 40.0),),
        floor=Floor(normal=512.0),
    ),
    Elementary("mish", _mish, active=((-750.0, 40.0),), floor=Floor(normal=1.0)),
    Elementary("softplus", _softplus, active=((-750.0, 40.0),), near=(20.0,)),
    Elementary("elu", _elu, active=((-50.0, 5.0),)),
    Elementary("selu", _selu, active=((-50.0, 5.0),)),
    Elementary("log_sigmoid", _log_sigmoid, active=((-50.0, 750.0),)),
    Elementary(
        "i0",
        _i0,
        domain=((-1000.0, 1000.0),),
        active=((-714.0, 714.0),),
        near=(8.0, -8.0),
    ),
    Elementary(
        "i1",
        _i1,
        domain=((-1000.0, 1000.0),),
        active=((-714.0, 714.0),),
        near=(8.0, -8.0),
    ),
    *_powers(),
    Elementary(
        "pow",
        _pow,
        domain=(POSITIVE, EVERYWHERE),
        active=((0.0, 20.0), (-200.0, 200.0)),
        near=(1.0,),
    ),
    Elementary(
        "atan2",
        _atan2,
        domain=(EVERYWHERE, EVERYWHERE),
        active=((-5.0, 5.0), (-5.0, 5.0)),
    ),
    Elementary(
        "hypot",
        _hypot,
        domain=(EVERYWHERE, EVERYWHERE),
        active=((-5.0, 5.0), (-5.0, 5.0)),
    ),
    Elementary(
        "logaddexp",
        _logaddexp,
        domain=(EVERYWHERE, EVERYWHERE),
        active=((-50.0, 50.0), (-50.0, 50.0)),
        near=(-0.6931471805599453,),
        floor=Floor(one=4.0),
    ),
    Elementary(
        "xlogy",
        _xlogy,
        domain=(EVERYWHERE, POSITIVE),
        active=((-5.0, 5.0), (0.0, 5.0)),
        near=(1.0,),
    ),
)
