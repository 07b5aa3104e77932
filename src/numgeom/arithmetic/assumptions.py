"""Does this machine do the float64 arithmetic that every bound assumes?

IEEE 754 binary64, rounding to nearest, ties to even, gradual underflow; sums and products that are
accumulated in float64, each entry of a product by its own terms (assumptions 1 and 2 of every
certificate). What can break them in practice: flushing of subnormal numbers, which
`torch.set_flush_denormal(True)` switches on per thread; another rounding mode, which some libraries
leave behind; a matrix product that is put together from products of blocks (Strassen) or of shorter
formats; a device without float64.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from numgeom.arithmetic.formats import FormatError, float64
from numgeom.errors import NumgeomError

_SMALLEST_NORMAL = float64.smallest_normal


class ArithmeticAssumptionError(NumgeomError):
    """The machine does not do the float64 arithmetic that every bound relies on."""


def require_ieee_float64(device: torch.device | str = "cpu") -> None:
    """Test the arithmetic that all bounds assume, on every thread of a device.

    Takes some milliseconds; call it once before a computation whose bounds are to be trusted. See
    `broken_assumptions` for what is tested.

    Args:
        device: Where the bounds are computed.

    Raises:
        ArithmeticAssumptionError: naming what failed, and what to do.
    """
    failures = broken_assumptions(device)
    if failures:
        raise ArithmeticAssumptionError(explain(failures, device))


def explain(failures: tuple[str, ...], device: torch.device | str = "cpu") -> str:
    """Say what is broken, why that is likely, and what to do."""
    return (
        f"float64 arithmetic on {device} is not what every bound assumes: {'; '.join(failures)}. "
        "If numbers are flushed, the likely cause is torch.set_flush_denormal(True): worker "
        "threads that started under it keep flushing after a later False. Do not switch it on in "
        "this process, or compute with torch.set_num_threads(1)."
    )


def broken_assumptions(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Name what this device does otherwise than all bounds assume; empty if nothing was seen.

    Tested on chosen operands: rounding to nearest of + x / and the square root (which may be two
    spacings off, see `rounding`); subnormal numbers, kept by entry-wise kernels and by matrix
    products; sums and matrix products of whole numbers, which are exact if float64 accumulates
    them and no entry mixes with another. Worker threads inherit the mode of the thread that started
    them and keep it when that thread leaves it, so all of them are asked.
    """
    try:
        return _broken(torch.device(device))
    except (RuntimeError, TypeError) as error:  # what torch raises on a device without float64
        return (f"it cannot compute in float64 ({str(error).partition(chr(10))[0]})",)


def _broken(device: torch.device) -> tuple[str, ...]:
    failures = []
    one = torch.ones(4, dtype=torch.float64, device=device)
    # Kernels split work among threads from 2^15 entries on; each thread gets a share of these.
    entries = 2**16 * max(4, torch.get_num_threads())
    ones = torch.ones(entries, dtype=torch.float64, device=device)
    u = float64.unit_roundoff
    # Each line: computed on the device, and the correctly rounded result.
    additions = [(one + 3.0 * u, 1.0 + 4.0 * u), (-one - 3.0 * u, -1.0 - 4.0 * u)]
    additions += [(ones + u, 1.0), (ones - 0.5 * u, 1.0)]
    others = [(one / (3.0 * one), 1.0 / 3.0), ((0.1 * one) * (0.1 * one), 0.1 * 0.1)]
    if any(bool((computed != expected).any()) for computed, expected in additions + others):
        failures.append("+ x / do not round to nearest, ties to even")
    if 1.0 + u * float(one[0]) != 1.0 or 1.0 - 0.5 * u * float(one[0]) != 1.0:
        failures.append("Python's own numbers do not round to nearest, ties to even")
    if bool(((torch.sqrt(2.0 * one) - 1.4142135623730951).abs() > 4.0 * u).any()):
        failures.append("square roots are off by more than two spacings")
    normal = float64.smallest_normal * ones
    if bool((normal * 0.5 == 0).any()):
        failures.append("entry-wise operations flush subnormal numbers to zero")
    small = torch.full((256, 256), 2.0**-530, dtype=torch.float64, device=device)
    if bool((torch.matmul(small, small * 2.0**-10) == 0).any()):
        failures.append("matrix products flush subnormal numbers to zero")
    # Every partial sum is a whole number below 2^53.
    if float((ones * (2.0**26 - 1.0)).sum()) != entries * (2.0**26 - 1.0):
        failures.append("sums are not accumulated in float64")
    if not _products_are_exact(device, torch.get_num_threads()):
        failures.append(
            "matrix products are not accumulated in float64, or entries of a product mix (a fast "
            "algorithm such as Strassen's, or float64 put together from shorter formats)"
        )
    return tuple(failures)


@functools.lru_cache(maxsize=64)
def _products_are_exact(device: torch.device, threads: int) -> bool:
    """Whether this library's matrix products pass; asked once, since its algorithms stay."""
    del threads
    return products_are_exact(torch.matmul, device)


def products_are_exact(
    matmul: Callable[[Tensor, Tensor], Tensor], device: torch.device | str = "cpu"
) -> bool:
    """Whether a matrix product sums up the terms of each entry in float64, in whatever order.

    The factors are whole numbers whose products add up below 2^53, so that every order of summation
    is exact, times powers of two: a large one for half of the rows, of the columns, and (with its
    reciprocal in the other factor) of the terms. Sums of entries that do not belong together need
    more than 53 bits then.

    Args:
        matmul: Takes two float64 matrices.
        device: Where they are.
    """
    size = 256
    counting = torch.arange(size * size, dtype=torch.int64).reshape(size, size)
    a = (counting * 7919 + 1) % (2**22) - 2**21
    b = (counting * 104729 + 3) % (2**22) - 2**21
    exact = (a @ b).double()  # below 256 * 2^42 = 2^50
    half = torch.where(torch.arange(size) < size // 2, 2.0**60, 1.0).double()
    mixed = torch.where(torch.arange(size) % 2 == 0, 2.0**60, 1.0).double()
    for scale in (half, mixed):
        for rows, terms, columns in (
            (scale, torch.ones_like(scale), torch.ones_like(scale)),
            (torch.ones_like(scale), scale, torch.ones_like(scale)),
            (torch.ones_like(scale), torch.ones_like(scale), scale),
        ):
            left = (a.double() * rows[:, None] * terms).to(device)
            right = (b.double() * columns / terms[:, None]).to(device)
            expected = exact * rows[:, None] * columns
            if not torch.equal(matmul(left, right).cpu(), expected):
                return False
    return True


def require_usable(*operands: Tensor | float) -> None:
    """Refuse operands that are not float64, and a calling thread that flushes subnormals.

    The second test is one Python multiplication: it sees flush-to-zero and
    denormals-are-zero alike, on the calling thread only.

    Raises:
        FormatError: for a tensor of another dtype.
        ArithmeticAssumptionError: if this thread flushes subnormal numbers.
    """
    for operand in operands:
        if isinstance(operand, Tensor) and operand.dtype != torch.float64:
            raise FormatError(
                f"Bounds are computed in float64, not in {operand.dtype} (shape "
                f"{list(operand.shape)}). Convert the tensor first; that is exact."
            )
    if _SMALLEST_NORMAL * 0.5 == 0.0:
        raise ArithmeticAssumptionError(
            "This thread flushes subnormal numbers to zero, so bounds would lose them. "
            "Call torch.set_flush_denormal(False) before computing bounds."
        )
