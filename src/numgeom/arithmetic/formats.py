"""Which floating-point formats are there, and how does each of them round?

A format has p significant bits (the hidden one included) and the exponents e_min..e_max of its
normal numbers 1.xxx * 2^e. Everything else follows: unit roundoff u = 2^-p, smallest normal
2^e_min, smallest subnormal 2^(e_min - p + 1). Formats of 8 bits: Micikevicius et al. 2022
(e4m3fn, e5m2) and Noune et al. 2022 (the fnuz variants).
"""

import enum
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from numgeom.errors import NumgeomError

_SIGN_BIT = -(2**63)
_FRACTION = 2**52 - 1
_HIDDEN_BIT = 2**52
_INFINITY_BITS = 0x7FF << 52


class FormatError(NumgeomError):
    """A format is unknown, or is asked for something that it cannot give."""


class Overflow(enum.Enum):
    """What a cast makes of a number that rounds beyond the largest finite one."""

    INFINITY = "infinity"
    NAN = "nan"
    SATURATE = "saturate"


@dataclass(frozen=True, kw_only=True)
class Format:
    """A binary floating-point format, rounded to nearest, ties to even.

    Attributes:
        name: The format's name, as torch spells it where torch has it.
        precision: p, the number of significant bits, the hidden one included.
        min_exponent: e_min, the exponent of the smallest normal number 2^e_min.
        max_exponent: e_max, the exponent of the largest finite number's binade.
        largest: The largest finite number.
        overflow: What a cast makes of numbers that round beyond `largest`.
        dtype: The torch dtype, None if torch has none.
        has_negative_zero: Whether -0 and +0 are two numbers.
    """

    name: str
    precision: int
    min_exponent: int
    max_exponent: int
    largest: float
    overflow: Overflow
    dtype: torch.dtype | None
    has_negative_zero: bool = True

    def __post_init__(self) -> None:
        fraction, exponent = math.frexp(self.largest)
        if exponent - 1 != self.max_exponent or not (fraction * 2.0**self.precision).is_integer():
            raise FormatError(
                f"Format {self.name}: largest = {self.largest!r} is no number of "
                f"{self.precision} bits with exponent {self.max_exponent}. Correct the fields."
            )

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error u = 2^-p of rounding to nearest, without underflow."""
        return 2.0**-self.precision

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number that carries all p bits, 2^e_min."""
        return 2.0**self.min_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number, 2^(e_min - p + 1); the spacing around zero."""
        return 2.0 ** (self.min_exponent - self.precision + 1)

    @property
    def has_infinity(self) -> bool:
        """Whether the format has infinities. Exactly then its casts overflow to them."""
        return self.overflow is Overflow.INFINITY

    def __str__(self) -> str:
        return self.name


float64 = Format(
    name="float64",
    precision=53,
    min_exponent=-1022,
    max_exponent=1023,
    largest=(2.0 - 2.0**-52) * 2.0**1023,
    overflow=Overflow.INFINITY,
    dtype=torch.float64,
)
float32 = Format(
    name="float32",
    precision=24,
    min_exponent=-126,
    max_exponent=127,
    largest=(2.0 - 2.0**-23) * 2.0**127,
    overflow=Overflow.INFINITY,
    dtype=torch.float32,
)
# Rounded to nearest. Hardware may cut instead of round when it makes a TF32 operand out of a
# float32 number; a rule that has to cover that takes 2u.
tf32 = Format(
    name="tf32",
    precision=11,
    min_exponent=-126,
    max_exponent=127,
    largest=(2.0 - 2.0**-10) * 2.0**127,
    overflow=Overflow.INFINITY,
    dtype=None,
)
bfloat16 = Format(
    name="bfloat16",
    precision=8,
    min_exponent=-126,
    max_exponent=127,
    largest=(2.0 - 2.0**-7) * 2.0**127,
    overflow=Overflow.INFINITY,
    dtype=torch.bfloat16,
)
float16 = Format(
    name="float16",
    precision=11,
    min_exponent=-14,
    max_exponent=15,
    largest=65504.0,
    overflow=Overflow.INFINITY,
    dtype=torch.float16,
)
# torch's own cast saturates from 2.12 on, infinities included; before, it gave NaN.
float8_e4m3fn = Format(
    name="float8_e4m3fn",
    precision=4,
    min_exponent=-6,
    max_exponent=8,
    largest=448.0,
    overflow=Overflow.SATURATE,
    dtype=torch.float8_e4m3fn,
)
float8_e5m2 = Format(
    name="float8_e5m2",
    precision=3,
    min_exponent=-14,
    max_exponent=15,
    largest=57344.0,
    overflow=Overflow.INFINITY,
    dtype=torch.float8_e5m2,
)
float8_e4m3fnuz = Format(
    name="float8_e4m3fnuz",
    precision=4,
    min_exponent=-7,
    max_exponent=7,
    largest=240.0,
    overflow=Overflow.NAN,
    dtype=torch.float8_e4m3fnuz,
    has_negative_zero=False,
)
float8_e5m2fnuz = Format(
    name="float8_e5m2fnuz",
    precision=3,
    min_exponent=-15,
    max_exponent=15,
    largest=57344.0,
    overflow=Overflow.NAN,
    dtype=torch.float8_e5m2fnuz,
    has_negative_zero=False,
)

FORMATS: tuple[Format, ...] = (
    float64,
    float32,
    tf32,
    bfloat16,
    float16,
    float8_e4m3fn,
    float8_e5m2,
    float8_e4m3fnuz,
    float8_e5m2fnuz,
)


def format_named(name: str) -> Format:
    """Look a format up by its name.

    Raises:
        FormatError: if no format has that name; the message lists the names.
    """
    for fmt in FORMATS:
        if fmt.name == name:
            return fmt
    known = ", ".join(fmt.name for fmt in FORMATS)
    raise FormatError(f"No floating-point format is called {name!r}. Known formats: {known}.")


def format_of(dtype: torch.dtype) -> Format:
    """The format of a floating-point dtype.

    Raises:
        FormatError: if the dtype is no known floating-point format (integers, complex numbers).
    """
    for fmt in FORMATS:
        if fmt.dtype == dtype:
            return fmt
    known = ", ".join(str(fmt.dtype) for fmt in FORMATS if fmt.dtype is not None)
    raise FormatError(f"{dtype} is not a floating-point format known here. Known dtypes: {known}.")


def round_to(tensor: Tensor, fmt: Format) -> Tensor:
    """Round every entry to the nearest number of a format, ties to even, in one rounding.

    Subnormals are kept, NaN stays NaN, and what rounds beyond `fmt.largest` (an infinity too)
    becomes what `fmt.overflow` says. The bits are rounded as integers, so float64 entries do not
    pass through float32 on their way, as they do in torch's casts to 8 and 16 bits.

    Args:
        tensor: Numbers in float64 or float32.
        fmt: The format to round to.

    Returns:
        The rounded numbers, in the tensor's dtype, which holds them exactly. (float64 numbers of a
        float32 tensor: the tensor itself, copied.)

    Raises:
        FormatError: if the tensor is neither float64 nor float32.

    Example:
        >>> round_to(torch.tensor([1.06, 1e-9, 500.0]), float8_e4m3fn)
        tensor([  1.,   0., 448.])
    """
    dtype = _working_dtype(tensor, "round_to")
    if fmt.precision >= format_of(dtype).precision:
        return tensor.detach().clone()
    sign, magnitude = _split(tensor)
    exponent = (magnitude >> 52) - 1023
    dropped = (53 - fmt.precision) + (fmt.min_exponent - exponent).clamp_min(0)
    # The spacing is at least 2^-149, so subnormal float64 numbers (exponent -1023 here) round
    # to zero in the last branch, and a hidden bit may be assumed in the first.
    significand = (magnitude & _FRACTION) | _HIDDEN_BIT
    rounded = _round_bits(magnitude, significand, dropped.clamp_max(52))
    spacing = _bits_of(fmt.smallest_subnormal)
    above_half = (dropped == 53) & (significand > _HIDDEN_BIT)
    rounded = torch.where(dropped > 52, torch.where(above_half, spacing, 0), rounded)

    too_large = (rounded > _bits_of(fmt.largest)) & (magnitude <= _INFINITY_BITS)
    instead = {
        Overflow.INFINITY: _INFINITY_BITS,
        Overflow.NAN: _bits_of(math.nan),
        Overflow.SATURATE: _bits_of(fmt.largest),
    }[fmt.overflow]
    rounded = torch.where(too_large, instead, rounded)
    rounded = torch.where(magnitude > _INFINITY_BITS, _bits_of(math.nan), rounded)
    if not fmt.has_negative_zero:
        sign = torch.where(rounded == 0, 0, sign)
    return (rounded | sign).view(torch.float64).to(dtype)


def round_to_bits(tensor: Tensor, precision: int) -> Tensor:
    """Round every entry to p significant bits, ties to even, whatever its exponent.

    |result - x| <= 2^-p |x| for every finite x, subnormal ones included: only the tensor's own
    dtype limits the range, so that a number next to its largest may become infinite.

    Args:
        tensor: Numbers in float64 or float32.
        precision: p, at least 1. From the dtype's own precision on nothing changes.

    Returns:
        The rounded numbers, in the tensor's dtype. Infinities and NaN stay what they are.

    Raises:
        FormatError: if the tensor is neither float64 nor float32, or precision < 1.

    Example:
        >>> round_to_bits(torch.tensor([5.0, 5.5, 1e-45]), 2)
        tensor([4.0000e+00, 6.0000e+00, 1.4013e-45])
    """
    dtype = _working_dtype(tensor, "round_to_bits")
    if precision < 1:
        raise FormatError(f"round_to_bits: {precision} significant bits; give at least 1.")
    sign, magnitude = _split(tensor)
    normal = magnitude >= _HIDDEN_BIT
    significand = torch.where(normal, (magnitude & _FRACTION) | _HIDDEN_BIT, magnitude)
    dropped = (_bit_length(significand) - precision).clamp_min(0)
    rounded = _round_bits(magnitude, significand, dropped)
    rounded = torch.where(magnitude >= _INFINITY_BITS, magnitude, rounded)
    return (rounded | sign).view(torch.float64).to(dtype)


def ulp(x: Tensor, fmt: Format) -> Tensor:
    """The spacing of a format's numbers at |x|: 2^(max(floor(log2|x|), e_min) - p + 1).

    Rounding x to the format moves it by at most ulp(x)/2, unless it overflows. Beyond the
    largest finite number the spacing of the last binade goes on; at zero and below the normal
    numbers it is the smallest subnormal number.

    Args:
        x: Numbers in float64, or in any format of which every number is one of float64.
        fmt: The format whose spacing is asked for.

    Returns:
        The spacing, float64, exact; infinite at infinities, NaN at NaN.

    Example:
        >>> ulp(torch.tensor([0.0, 1.0, 1.5, 2.0]), bfloat16)[1:]
        tensor([0.0078, 0.0078, 0.0156], dtype=torch.float64)
    """
    format_of(x.dtype)
    _, magnitude = _split(x)
    # Subnormal float64 numbers come out as -1023, below every e_min.
    exponent = ((magnitude >> 52) - 1023).clamp(fmt.min_exponent, fmt.max_exponent)
    exponent = exponent - (fmt.precision - 1)
    normal = (exponent + 1023).clamp_min(1) << 52
    subnormal = torch.ones_like(exponent) << (exponent + 1074).clamp(0, 52)
    bits = torch.where(exponent >= -1022, normal, subnormal)
    return torch.where(magnitude >= _INFINITY_BITS, magnitude, bits).view(torch.float64)


def _working_dtype(tensor: Tensor, caller: str) -> torch.dtype:
    if tensor.dtype not in (torch.float64, torch.float32):
        raise FormatError(
            f"{caller}: rounds tensors of float64 or float32, not of {tensor.dtype} "
            f"(shape {list(tensor.shape)}). Convert the tensor first."
        )
    return tensor.dtype


def _split(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Sign bit and magnitude bits of the float64 numbers, both int64."""
    bits = tensor.detach().to(torch.float64).contiguous().view(torch.int64)
    return bits & _SIGN_BIT, bits & ~_SIGN_BIT


def _round_bits(magnitude: Tensor, significand: Tensor, dropped: Tensor) -> Tensor:
    """Round the `dropped` (0..52) last bits away, ties to even; a carry enters the exponent.

    The parity comes from the significand: where 52 bits go, the last bit kept is the hidden one.
    """
    unit = torch.ones_like(magnitude) << dropped
    odd = (significand >> dropped) & 1
    rounded = (magnitude + (unit >> 1) - 1 + odd) & ~(unit - 1)
    return torch.where(dropped == 0, magnitude, rounded)


def _bit_length(significand: Tensor) -> Tensor:
    """Number of bits of integers 0 <= i < 2^53, read off their exact float64 value."""
    exponent = (significand.to(torch.float64).view(torch.int64) >> 52) - 1022
    return exponent.clamp_min(0)


def _bits_of(x: float) -> int:
    return int(torch.tensor(x, dtype=torch.float64).view(torch.int64).item())
