"""How large is the error of one elementary function, in one format and memory layout?

Arguments are sampled (`arguments`), exact values come from Arb (`exact_values`), errors are first
estimated for all samples at once (`errors_in_ulps`, correct to 2^-50 of themselves, or to what
float64 results are worth), and then confirmed by Arb for the largest (`worst_error`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flint import arb, ctx
from torch import Tensor

from benchmarks.elementary import Elementary, Interval, enclose
from numgeom.arithmetic.elementary import in_layout
from numgeom.arithmetic.formats import Format

CONFIRMED_AT_MOST = 2_000
# What a sample is made of: random bit patterns (all exponents alike); evenly over the interval
# where the function varies, and over [-8, 8]; evenly in log2|x| from 2^-40 to 2^10; evenly in
# log2|x| from the smallest number of the format to 2^40 times its smallest normal one; at distances
# of 2^-1 to 2^-60 from zeros, poles, thresholds and ends of ranges.
SHARES = {
    "patterns": 0.25,
    "active": 0.2,
    "central": 0.15,
    "sizes": 0.15,
    "tiny": 0.05,
    "near": 0.2,
}


# ------------------------------------------------------------------------------------- arguments


def arguments(function: Elementary, fmt: Format, count: int, seed: int) -> tuple[Tensor, ...]:
    """About `count` arguments (pairs for two variables) in the domain, as tensors of the format.

    Made up as `SHARES` says; what falls outside the domain is replaced by more of the same, and the
    order is random.
    All arguments instead, if the format has 16 bits and the function one variable.
    """
    assert fmt.dtype is not None
    if is_exhaustive(function, fmt):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(fmt.dtype)
        return (every[inside(every.to(torch.float64), function.domain[0])],)
    columns = columns_of(function, fmt, count, seed)
    shortest = min(len(values) for values in columns)
    if shortest < 0.9 * count:  # much of it was outside the domain
        columns = columns_of(function, fmt, 1 + int(1.02 * count * count / shortest), seed)
        shortest = min(count, *(len(values) for values in columns))
    generator = torch.Generator().manual_seed(seed + 1)
    shuffled = [
        values[torch.randperm(len(values), generator=generator)[:shortest]] for values in columns
    ]
    if len(shuffled) == 2:
        # A quarter of the pairs have the same size, or nearly the same.
        quarter = shortest // 4
        a, b = shuffled
        ratios = 1 + 2.0 ** torch.randint(-53, 2, (quarter,), generator=generator).double()
        near = (a[:quarter].double() * ratios).to(fmt.dtype)
        fits = inside(near.double(), function.domain[1])
        b[:quarter] = torch.where(fits, near, b[:quarter])
    return tuple(shuffled)


def columns_of(function: Elementary, fmt: Format, count: int, seed: int) -> list[Tensor]:
    """Values of each argument, independent of each other, in the order they were made."""
    generator = torch.Generator().manual_seed(seed)
    return [
        column(function, fmt, i, count=count, generator=generator)
        for i in range(len(function.domain))
    ]


def is_exhaustive(function: Elementary, fmt: Format) -> bool:
    """Whether all arguments are measured."""
    return fmt.precision <= 11 and len(function.domain) == 1


def inside(x: Tensor, interval: Interval) -> Tensor:
    """Finite and in the closed interval."""
    return torch.isfinite(x) & (x >= interval[0]) & (x <= interval[1])


def column(
    function: Elementary, fmt: Format, index: int, *, count: int, generator: torch.Generator
) -> Tensor:
    """Values of one argument."""
    assert fmt.dtype is not None
    domain, active = function.domain[index], function.active[index]

    def uniform(share: float, low: float, high: float) -> Tensor:
        size = int(share * count)
        return torch.rand(size, generator=generator, dtype=torch.float64) * (high - low) + low

    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[fmt.dtype.itemsize]
    ends = torch.iinfo(bits)
    size = int(SHARES["patterns"] * count)
    patterns = torch.randint(ends.min, ends.max, (size,), generator=generator, dtype=bits)

    # Exponential functions leave the range of short formats much earlier.
    reach = 1.1 * (fmt.max_exponent + fmt.precision)
    low, high = max(active[0], domain[0], -reach), min(active[1], domain[1], reach)
    sizes = 2.0 ** uniform(SHARES["sizes"], -40.0, 10.0)
    lowest = fmt.min_exponent - fmt.precision
    tiny = 2.0 ** uniform(SHARES["tiny"], lowest, fmt.min_exponent + 40)
    sizes = torch.cat([sizes, tiny])
    signs = torch.randint(0, 2, sizes.shape, generator=generator) * 2 - 1

    points = [0.0, *function.near, fmt.largest, -fmt.largest, fmt.smallest_normal, 1.0, low, high]
    points += [end for end in (*domain, *active) if abs(end) < fmt.largest]
    centres = torch.tensor(points, dtype=torch.float64).unsqueeze(1)
    each = int(SHARES["near"] * count) // len(points) + 1
    offsets = torch.rand(len(points), each, generator=generator, dtype=torch.float64) * 2 - 1
    distances = 2.0 ** torch.randint(-60, 0, (len(points), each), generator=generator).double()
    near = centres + torch.where(centres == 0, 1.0, centres) * offsets * distances

    evenly = [uniform(SHARES["active"], low, high), uniform(SHARES["central"], -8.0, 8.0)]
    chosen = [*evenly, sizes * signs, near.flatten(), centres.flatten()]
    values = torch.cat([patterns.view(fmt.dtype), *(part.to(fmt.dtype) for part in chosen)])
    return values[inside(values.to(torch.float64), domain)]


# ---------------------------------------------------------------------------------- exact values


@dataclass(frozen=True)
class Exact:
    """Exact values (high + low) * 2^exponent, 2^52 <= |high| < 2^53, to 2^-100 of their size.

    Values below 2^-5000 count as 0, those above 2^5000 as 2^5000; NaN where there is no value.
    """

    high: np.ndarray
    low: np.ndarray
    exponent: np.ndarray


def exact_values(function: Elementary, columns: Sequence[Tensor]) -> Exact:
    """Evaluate by Arb, point by point."""
    rows = [exact_value(function, point) for point in points_of(columns)]
    high, low, exponent = np.array(rows).T if rows else np.empty((3, 0))
    return Exact(high, low, exponent.astype(np.int64))


def points_of(columns: Sequence[Tensor]) -> Iterator[tuple[float, ...]]:
    """The arguments of each call."""
    return zip(*(values.to(torch.float64).tolist() for values in columns), strict=True)


def exact_value(function: Elementary, point: tuple[float, ...]) -> tuple[float, float, float]:
    """One exact value as (high, low, exponent)."""
    value = enclose(function, point)
    if value is None:
        return (np.nan, np.nan, 0)
    mantissa, exponent = (int(part) for part in value.mid().man_exp())
    length = abs(mantissa).bit_length()
    top = length + exponent
    if mantissa == 0 or top < -5000:
        return (0.0, 0.0, 0)
    if top > 5000:
        return (float(2**52 if mantissa > 0 else -(2**52)), 0.0, 5000)
    sign, mantissa = (1.0 if mantissa > 0 else -1.0), abs(mantissa)
    shift = length - 106
    mantissa = mantissa >> shift if shift > 0 else mantissa << -shift
    high, low = mantissa >> 53, mantissa & (2**53 - 1)
    return (sign * float(high), sign * float(low) * 2.0**-53, exponent + shift + 53)


def from_float64(values: Tensor) -> Exact:
    """Take float64 results for exact ones."""
    fraction, exponent = np.frexp(values.numpy())
    return Exact(fraction * 2.0**53, np.zeros_like(fraction), exponent.astype(np.int64) - 53)


# ---------------------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Worst:
    """The worst error of one function, format and layout, by one instruction set."""

    ulps: float
    at: tuple[float, ...]
    samples: int
    not_finite: int


def errors_in_ulps(computed: Tensor, exact: Exact, fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Errors in units of the spacing at the exact value, and the exponents of these spacings.

    NaN where the result is not finite or there is no exact value. Correct to 2^-50 of the error.
    """
    spacing = spacing_exponents(exact, fmt)
    with np.errstate(all="ignore"):
        scaled = np.ldexp(computed.numpy(), -spacing)
        high = np.ldexp(exact.high, exact.exponent - spacing)
        low = np.ldexp(exact.low, exact.exponent - spacing)
        errors = np.abs((scaled - high) - low)
    return np.where(np.isfinite(computed.numpy()), errors, np.nan), spacing


def spacing_exponents(exact: Exact, fmt: Format) -> np.ndarray:
    """The logarithms of the format's spacing at the exact values."""
    top = np.where(exact.high == 0, fmt.min_exponent, exact.exponent + 52)
    return np.clip(top, fmt.min_exponent, fmt.max_exponent) - (fmt.precision - 1)


def worst_error(
    function: Elementary, fmt: Format, columns: Sequence[Tensor], exact: Exact, layout: str
) -> Worst:
    """The largest error beyond half the floor, confirmed by Arb, largest candidates first."""
    computed = in_layout(function.compute, columns, layout).to(torch.float64)
    ulps, spacing = errors_in_ulps(computed, exact, fmt)
    with np.errstate(all="ignore"):
        in_range = np.abs(np.ldexp(exact.high, exact.exponent)) < fmt.largest
        floor = function.floor_in(fmt).bound_up(fmt, *columns)
        floor = floor.numpy() if isinstance(floor, Tensor) else np.full(len(computed), floor)
        # Half the floor, so that it has the margin that the ulps have.
        ulps = np.where(ulps <= np.ldexp(floor, -spacing - 1), 0.0, ulps)
    not_finite = int((in_range & ~np.isfinite(computed.numpy())).sum())
    ulps = np.nan_to_num(ulps, nan=-1.0, posinf=np.finfo(float).max)
    best, at = 0.0, ()
    candidates = np.argsort(ulps)[::-1][:CONFIRMED_AT_MOST]
    for i in candidates:
        if ulps[i] * (1 + 1e-6) <= best:
            break
        point = tuple(float(values[i]) for values in columns)
        confirmed = confirmed_ulps(function, fmt, point, float(computed[i]))
        if confirmed > best:
            best, at = confirmed, point
    else:
        if len(ulps) > len(candidates):  # not all candidates could be confirmed
            best = max(best, float(ulps[candidates[-1]]))
    return Worst(best, at, int((ulps >= 0).sum()), not_finite)


def confirmed_ulps(
    function: Elementary, fmt: Format, point: tuple[float, ...], computed: float
) -> float:
    """Upper bound of the error at one point; 0 if half the floor covers it or it has no value."""
    value = enclose(function, point)
    if value is None:
        return 0.0
    with ctx.workprec(400):
        error = abs(arb(computed) - value).abs_upper()
        size = value.abs_lower()
        exponent = fmt.min_exponent
        if size > 0:
            mantissa, shift = (int(part) for part in size.man_exp())
            exponent = mantissa.bit_length() - 1 + shift
        exponent = min(max(exponent, fmt.min_exponent), fmt.max_exponent)
        wide = [torch.tensor([x], dtype=torch.float64) for x in point]
        if error <= arb(float(function.floor_in(fmt).bound_up(fmt, *wide))) / 2:
            return 0.0
        ulps = error / arb(2) ** (exponent - fmt.precision + 1)
        return float(ulps.abs_upper()) * (1 + 2.0**-40)
