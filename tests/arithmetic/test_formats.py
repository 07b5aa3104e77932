"""Formats against torch's casts, and rounding against exact rational arithmetic."""

import dataclasses
import functools
import math
import random
from fractions import Fraction

import pytest
import torch

from numgeom.arithmetic import formats
from numgeom.arithmetic.formats import (
    FORMATS,
    Format,
    FormatError,
    Overflow,
    format_named,
    format_of,
    round_to,
    round_to_bits,
    ulp,
)

SHORT = [fmt for fmt in FORMATS if fmt.precision <= 11 and fmt.dtype is not None]
ids = {"ids": str}


@functools.cache
def nasty_floats(seed: int, count: int) -> list[float]:
    """float64 numbers of all sizes: random bit patterns, ends of ranges, halfway cases."""
    rng = random.Random(seed)
    bits = torch.tensor([rng.getrandbits(64) - 2**63 for _ in range(count)])
    numbers = bits.view(torch.float64).tolist()
    for fmt in FORMATS:
        anchors = [fmt.largest, fmt.smallest_normal, fmt.smallest_subnormal, 1.0, 3.0]
        anchors += [2.0 ** rng.randint(fmt.min_exponent, fmt.max_exponent) for _ in range(6)]
        for anchor in anchors:
            quantum = exact_ulp(Fraction(anchor), fmt)
            for quarters in range(-5, 6):
                exact = Fraction(anchor) + quantum * Fraction(quarters, 4)
                if abs(exact) <= Fraction(formats.float64.largest):
                    near = float(exact)
                    numbers += [near, math.nextafter(near, math.inf), -math.nextafter(near, 0.0)]
    return [*numbers, 0.0, -0.0, math.inf, -math.inf, math.nan]


def exact_ulp(x: Fraction, fmt: Format) -> Fraction:
    exponent = fmt.min_exponent
    if x != 0:
        # The bit lengths give floor(log2|x|) up to one.
        exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
        exponent -= Fraction(2) ** exponent > abs(x)
    exponent = min(max(exponent, fmt.min_exponent), fmt.max_exponent)
    return Fraction(2) ** (exponent - fmt.precision + 1)


def exact_round(x: Fraction, quantum: Fraction) -> Fraction:
    return round(x / quantum) * quantum  # round() of a Fraction breaks ties to even


def expected_round_to(x: float, fmt: Format) -> float:
    if math.isnan(x):
        return math.nan
    largest = Fraction(fmt.largest)
    rounded = largest * 2 if math.isinf(x) else abs(Fraction(x))
    rounded = exact_round(rounded, exact_ulp(rounded, fmt))
    magnitude = float(min(rounded, largest))
    if rounded > largest:
        if fmt.overflow is Overflow.NAN:
            return math.nan
        magnitude = math.inf if fmt.overflow is Overflow.INFINITY else fmt.largest
    if magnitude == 0.0 and not fmt.has_negative_zero:
        return 0.0
    return math.copysign(magnitude, x)


def same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Equal as numbers, with the signs of zeros; all NaNs alike."""
    return (torch.isnan(a) & torch.isnan(b)) | ((a == b) & (a.signbit() == b.signbit()))


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.dtype is not None], **ids)
def test_constants_are_those_of_torch(fmt: Format):
    assert fmt.dtype is not None
    info = torch.finfo(fmt.dtype)
    assert fmt.largest == info.max
    # Asked of the bit patterns: torch.finfo has no subnormals, and a wrong eps for e5m2fnuz.
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[info.bits // 8]
    one = torch.tensor(1.0).to(fmt.dtype).view(integer)
    patterns = torch.tensor([1, 2 ** (fmt.precision - 1), one.item() + 1], dtype=integer)
    smallest, normal, after_one = patterns.view(fmt.dtype).to(torch.float64).tolist()
    assert (smallest, normal) == (fmt.smallest_subnormal, fmt.smallest_normal)
    assert after_one == 1.0 + 2.0 * fmt.unit_roundoff
    infinity = torch.tensor(math.inf).to(fmt.dtype).to(torch.float64).item()
    assert math.isinf(infinity) == fmt.has_infinity


def test_tf32_is_float32_with_the_bits_of_float16():
    tf32, single, half = formats.tf32, formats.float32, formats.float16
    assert (tf32.precision, tf32.min_exponent) == (half.precision, single.min_exponent)
    assert round_to(torch.tensor([tf32.largest * (1 + 2.0**-13)]), tf32).item() == tf32.largest


@pytest.mark.parametrize("fmt", SHORT, **ids)
def test_round_to_agrees_with_torchs_cast_at_every_boundary(fmt: Format):
    """All numbers of the format, all midpoints, and the float32 neighbours of both."""
    assert fmt.dtype is not None
    bits = torch.finfo(fmt.dtype).bits
    integer = torch.uint8 if bits == 8 else torch.int16
    every = torch.arange(2**bits).to(integer).view(fmt.dtype).to(torch.float32)
    finite = every[torch.isfinite(every)].unique()
    beyond = torch.tensor([1.0, 1.5, 2.0, 1e9]) * min(fmt.largest, 1e29)
    points = torch.cat([finite, (finite[1:] + finite[:-1]) / 2, beyond, -beyond, every])
    up = torch.nextafter(points, torch.tensor(math.inf))
    down = torch.nextafter(points, torch.tensor(-math.inf))
    points = torch.cat([points, up, down])
    theirs = points.to(fmt.dtype).to(torch.float32)
    ours = round_to(points, fmt)
    assert ours.dtype == torch.float32
    if fmt.overflow is Overflow.SATURATE and torch.tensor(1e9).to(fmt.dtype).isnan():
        # torch < 2.12 gives NaN where it saturates today.
        was_nan = torch.isnan(theirs) & ~torch.isnan(points)
        assert (ours[was_nan].abs() == fmt.largest).all()
        ours, theirs = ours[~was_nan], theirs[~was_nan]
    assert same(ours, theirs).all()
    assert same(round_to(points.double(), fmt).float(), round_to(points, fmt)).all()


@pytest.mark.parametrize("fmt", FORMATS, **ids)
def test_round_to_is_exact_rational_rounding(fmt: Format):
    numbers = nasty_floats(seed=1, count=2000)
    computed = round_to(torch.tensor(numbers, dtype=torch.float64), fmt)
    expected = torch.tensor([expected_round_to(x, fmt) for x in numbers], dtype=torch.float64)
    wrong = ~same(computed, expected)
    assert not wrong.any(), torch.tensor(numbers, dtype=torch.float64)[wrong][:5]


def test_float64_is_not_rounded_twice_on_its_way_to_float16():
    just_above_half = 1.0 + 2.0**-11 + 2.0**-40
    x = torch.tensor([just_above_half], dtype=torch.float64)
    assert round_to(x, formats.float16).item() == 1.0 + 2.0**-10
    assert x.to(torch.float16).item() == 1.0  # torch goes through float32, where this is a tie


@pytest.mark.parametrize("precision", [1, 2, 8, 11, 24, 40, 52, 53, 60])
def test_round_to_bits_is_exact_rational_rounding(precision: int):
    numbers = nasty_floats(seed=2, count=2000)
    unbounded = Format(
        name="unbounded",
        precision=precision,
        min_exponent=-5000,
        max_exponent=0,
        largest=1.0,
        overflow=Overflow.INFINITY,
        dtype=None,
    )
    computed = round_to_bits(torch.tensor(numbers, dtype=torch.float64), precision).tolist()
    for x, rounded in zip(numbers, computed, strict=True):
        if not math.isfinite(x):
            assert same(torch.tensor(x), torch.tensor(rounded))
            continue
        assert math.copysign(1.0, rounded) == math.copysign(1.0, x)
        exponent = math.frexp(x)[1]
        quantum = Fraction(2) ** (exponent - unbounded.precision)
        exact = exact_round(Fraction(x), quantum)
        if abs(exact) >= Fraction(2) ** 1024:
            assert math.isinf(rounded)
        else:
            assert Fraction(rounded) == exact, (x, precision)


def test_round_to_bits_of_float32_keeps_the_dtype_and_its_subnormals():
    x = torch.tensor([1.0 + 2.0**-12, 2.0**-149, 5 * 2.0**-149, -0.0, math.nan, -math.inf])
    rounded = round_to_bits(x, 2)
    assert rounded.dtype == torch.float32
    expected = torch.tensor([1.0, 2.0**-149, 4 * 2.0**-149, -0.0, math.nan, -math.inf])
    assert same(rounded, expected).all()


@pytest.mark.parametrize("fmt", FORMATS, **ids)
def test_ulp_is_the_spacing(fmt: Format):
    numbers = nasty_floats(seed=3, count=1000)
    spacing = ulp(torch.tensor(numbers, dtype=torch.float64), fmt).tolist()
    for x, step in zip(numbers, spacing, strict=True):
        if math.isfinite(x):
            assert Fraction(step) == exact_ulp(Fraction(x), fmt), x
        else:
            assert step == math.inf or (math.isnan(x) and math.isnan(step))


@pytest.mark.parametrize("fmt", SHORT, **ids)
def test_ulp_is_the_distance_to_the_next_number(fmt: Format):
    assert fmt.dtype is not None
    bits = torch.finfo(fmt.dtype).bits
    every = torch.arange(2**bits).to(torch.uint8 if bits == 8 else torch.int16).view(fmt.dtype)
    numbers = every.to(torch.float64)
    numbers = numbers[torch.isfinite(numbers) & (numbers >= 0)].unique()
    assert torch.equal(ulp(numbers[:-1], fmt), numbers[1:] - numbers[:-1])


@pytest.mark.parametrize("fmt", [formats.bfloat16, formats.float64], **ids)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3)])
def test_shapes_are_kept(fmt: Format, shape: tuple[int, ...]):
    x = torch.full(shape, 1.1, dtype=torch.float64)
    assert round_to(x, fmt).shape == round_to_bits(x, 5).shape == ulp(x, fmt).shape == x.shape


def test_rounding_leaves_strided_input_and_its_gradient_flag_alone():
    base = torch.linspace(-3, 3, 20, dtype=torch.float64, requires_grad=True)
    before = base.detach().clone()
    rounded = round_to(base[::2], formats.float8_e5m2)
    assert not rounded.requires_grad
    assert torch.equal(rounded, round_to(before[::2].clone(), formats.float8_e5m2))
    assert torch.equal(base, before)


def test_lookups():
    for fmt in FORMATS:
        assert format_named(fmt.name) is fmt
        if fmt.dtype is not None:
            assert format_of(fmt.dtype) is fmt
    with pytest.raises(FormatError, match="Known formats: float64, float32, tf32"):
        format_named("float12")
    with pytest.raises(FormatError, match=r"torch\.int64 is not a floating-point format"):
        format_of(torch.int64)


def test_the_table_has_every_format_of_the_module():
    defined = {value for value in vars(formats).values() if isinstance(value, Format)}
    assert defined == set(FORMATS)
    assert len({fmt.name for fmt in FORMATS}) == len(FORMATS)


def test_wrong_arguments_are_refused():
    with pytest.raises(FormatError, match="float64 or float32"):
        round_to(torch.ones(2, dtype=torch.float16), formats.bfloat16)
    with pytest.raises(FormatError, match="at least 1"):
        round_to_bits(torch.ones(2), 0)
    with pytest.raises(FormatError, match="largest"):
        dataclasses.replace(formats.float16, largest=65505.0)
