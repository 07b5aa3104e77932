"""Does this machine do the float64 arithmetic that every bound assumes?

IEEE 754 binary64, rounding to nearest, ties to even, gradual underflow (assumption 1 of every
certificate). What can break it in practice is flushing of subnormal numbers, which
`torch.set_flush_denormal(True)` switches on per thread.
"""

import torch
from torch import Tensor

from numgeom.arithmetic.formats import FormatError, float64
from numgeom.errors import NumgeomError

_SMALLEST_NORMAL = float64.smallest_normal


class ArithmeticAssumptionError(NumgeomError):
    """The machine does not do the float64 arithmetic that every bound relies on."""


def require_ieee_float64(device: torch.device | str = "cpu") -> None:
    """Test the arithmetic that all bounds assume, on every thread of a device.

    Rounding to nearest of + x / on chosen operands; subnormal numbers kept by entry-wise kernels
    and by matrix products. (Square roots: see `rounding`.) Worker threads inherit the flushing
    mode of the thread that started them and keep it when that thread leaves it, so all of them
    are asked. Takes some milliseconds; call it once before a computation whose bounds are to be
    trusted.

    Args:
        device: Where the bounds are computed.

    Raises:
        ArithmeticAssumptionError: naming what failed, and what to do.
    """
    one = torch.ones(4, dtype=torch.float64, device=device)
    u = float64.unit_roundoff
    # Each line: computed on the device, and the correctly rounded result.
    additions = [(one + u, 1.0), (one + 3.0 * u, 1.0 + 4.0 * u), (one - 0.5 * u, 1.0)]
    others = [(one / (3.0 * one), 1.0 / 3.0), ((0.1 * one) * (0.1 * one), 0.1 * 0.1)]
    failures = []
    if any(bool((computed != expected).any()) for computed, expected in additions + others):
        failures.append("+ x / do not round to nearest, ties to even")
    # Kernels split work among threads from 2^15 entries on; each thread gets a share of these.
    entries = 2**16 * max(4, torch.get_num_threads())
    normal = torch.full((entries,), float64.smallest_normal, dtype=torch.float64, device=device)
    if bool((normal * 0.5 == 0).any()):
        failures.append("entry-wise operations flush subnormal numbers to zero")
    small = torch.full((256, 256), 2.0**-530, dtype=torch.float64, device=device)
    if bool((torch.matmul(small, small * 2.0**-10) == 0).any()):
        failures.append("matrix products flush subnormal numbers to zero")
    if failures:
        raise ArithmeticAssumptionError(
            f"float64 arithmetic on {device} is not what every bound assumes: "
            f"{'; '.join(failures)}. The likely cause is torch.set_flush_denormal(True): worker "
            "threads that started under it keep flushing after a later False. Do not switch "
            "it on in this process, or compute with torch.set_num_threads(1)."
        )


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
