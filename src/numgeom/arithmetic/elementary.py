"""Which kernel computes an elementary function in this process?

The same name stands for several kernels: one per instruction set that torch was compiled for
(`ATEN_CPU_CAPABILITY` chooses among them), another for the entries that do not fill a vector, and
for some functions whatever Intel's vector mathematics or the C library choose for the processor.
The accuracy table therefore identifies a kernel by what it computes: its results on fixed
arguments, over every memory layout, bit by bit (`fingerprint`). Kernels that differ in one of these
bits count as different ones.
"""

import functools
import hashlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUTS = ("contiguous", "rows", "strided")
"""Whole vectors; short rows of 7 entries, which fill none; every second entry."""


def _power(exponent: float) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.pow(x, exponent)


COMPUTED: Mapping[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "trigamma": lambda x: torch.polygamma(1, x),
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": F.elu,
    "selu": F.selu,
    "log_sigmoid": F.logsigmoid,
    "i0": torch.i0,
    "i1": torch.special.i1,
    "pow(2)": _power(2.0),
    "pow(3)": _power(3.0),
    "pow(-1)": _power(-1.0),
    "pow(-2)": _power(-2.0),
    "pow(0.5)": _power(0.5),
    "pow(-0.5)": _power(-0.5),
    "pow": torch.pow,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "logaddexp": torch.logaddexp,
    "xlogy": torch.xlogy,
}
"""How torch computes each function of the accuracy table."""

OF_TWO = frozenset({"pow", "atan2", "hypot", "logaddexp", "xlogy"})

# What torch takes from Intel's vector mathematics, if it was built with it (ATen/cpu/vml.h), in
# the mode of high accuracy. Intel documents at most 1.0 ulp for that mode on every processor
# (oneMKL Developer Reference, "VM Mathematical Functions: Accuracy Modes"); which kernel runs is
# chosen by the processor's maker and age, whatever `ATEN_CPU_CAPABILITY` asks for.
VECTOR_MATHEMATICS = frozenset(
    {
        *("exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "tanh"),
        *("erf", "erfc", "erfinv", "sqrt", "pow(0.5)"),
    }
)
DOCUMENTED_ULPS = 1.0


def capability() -> str:
    """The instruction set of torch's kernels in this process, as torch names it."""
    return torch.backends.cpu.get_cpu_capability()


def architecture() -> str:
    """The kind of processor, as in "x86_64" or "aarch64"."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def in_layout(compute: Callable[..., Tensor], columns: Sequence[Tensor], layout: str) -> Tensor:
    """Let torch compute a function over one memory layout; the results in the order given.

    Args:
        compute: The function.
        columns: Its arguments, each of shape [n].
        layout: One of `LAYOUTS`.

    Returns:
        The results, shape [n].
    """
    count = len(columns[0])
    if layout == "contiguous":
        return compute(*columns)
    views = []
    for values in columns:
        if layout == "strided":
            view = values.new_zeros(2 * count)[::2]
            view.copy_(values)
        else:
            rows = -(-count // 7)
            view = values.new_ones(rows, 8)[:, :7]
            view.copy_(torch.cat([values, values.new_ones(7 * rows - count)]).view(rows, 7))
        views.append(view)
    return compute(*views).flatten()[:count]


@functools.cache
def fingerprint(name: str, dtype: torch.dtype) -> str:
    """Identify the kernels of a function by their results on fixed arguments; 12 hex digits.

    About 2,000 arguments over all layouts, all not-a-numbers alike; "" where torch has no kernel
    for the format.

    Args:
        name: One of `COMPUTED`.
        dtype: A floating-point format of the CPU.
    """
    arguments = _arguments(dtype)
    columns = (arguments, arguments.flip(0)) if name in OF_TWO else (arguments,)
    seen = hashlib.sha256()
    for layout in LAYOUTS:
        try:
            results = in_layout(COMPUTED[name], columns, layout)
        except (NotImplementedError, RuntimeError):
            return ""
        results = torch.where(results.isnan(), torch.full_like(results, math.nan), results)
        seen.update(results.contiguous().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:12]


@functools.cache
def is_one_operation(name: str, dtype: torch.dtype) -> bool:
    """Whether the function is one multiplication or division of IEEE 754, on fixed arguments."""
    x = _arguments(dtype)
    one = {"pow(2)": lambda: x * x, "reciprocal": lambda: 1.0 / x, "pow(-1)": lambda: 1.0 / x}
    if name not in one:
        return False
    expected = one[name]()
    computed = [in_layout(COMPUTED[name], [x], layout) for layout in LAYOUTS]
    return all(torch.equal(expected, results) for results in computed)


@functools.cache
def _arguments(dtype: torch.dtype) -> Tensor:
    """Numbers that every processor makes alike: Weyl sequences, by exact operations alone.

    Evenly in [-1, 1] and [-32, 32]; small ones; and over all exponents of the format.
    """
    steps = [k * 0x9E3779B97F4A7C15 % 2**64 / 2**64 for k in range(1, 513)]
    sizes = [k * 0xD1B54A32D192ED03 % 2**64 / 2**64 for k in range(1, 513)]
    near = [2.0 * u - 1.0 for u in steps]
    varied = [64.0 * u - 32.0 for u in steps]
    scaled = [math.ldexp(x, round(60.0 * s) - 50) for x, s in zip(near, sizes, strict=True)]
    lowest = math.frexp(torch.finfo(dtype).smallest_normal)[1] - 8
    highest = math.frexp(torch.finfo(dtype).max)[1]
    every = [
        math.ldexp(x, lowest + round((highest - lowest) * s))
        for x, s in zip(near, sizes, strict=True)
    ]
    return torch.tensor([*near, *varied, *scaled, *every], dtype=torch.float64).to(dtype)
