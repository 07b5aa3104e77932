"""How accurate are torch's elementary functions?

No standard bounds the error of exp or tanh, so a bound has to take it from a table of
measurements (assumption 3 of every certificate). `accuracy.json` holds, for each function, format
and instruction set, the worst error over all memory layouts that `benchmarks/accuracy.py` saw
against an arbitrary-precision oracle, and the larger value that bounds may rely on:

    |computed - exact| <= max(allowed_ulps * ulp(exact), floor),   where computed is finite,

with ulp the spacing of the format at the exact result. The exact result is that for the argument
as it is stored, over the real numbers. A result that is not finite has no bound.

Margin: allowed_ulps = max(1, 2 * measured), rounded up to a multiple of 1/8. A sample can miss the
worst argument. An error is a smooth part (of the approximation, which dense samples hit to some
per cent) plus the rounding of a few operations, whose worst combination rarely occurs in a sample
but is no larger than what the operations can add up to; twice the worst of 10^5 to 10^7 samples
leaves room for both. (An independent sample, a tenth of the size, exceeded no measured value by
more than 6 %.) It is an assumption, not a proof, and it is printed with each certificate.

A measurement is one of certain kernels. Which of them run in a process is told by the instruction
set that torch names and by their results on fixed arguments (`elementary.fingerprint`): where both
are those of the table, the measured kernels are running. Where they are not, a bound that rests on
the entry is an estimate; see `reliance`.
"""

import functools
import importlib.resources
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic import elementary
from numgeom.arithmetic.formats import Format, format_named, format_of, ulp
from numgeom.arithmetic.lower_bounds import sub_down
from numgeom.arithmetic.printing import nearest_short
from numgeom.arithmetic.rounding import add_up, div_up, mul_up
from numgeom.errors import FileFormatError
from numgeom.files.writing import write_text

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Floor:
    """An absolute error granted besides the relative one, as a sum of three terms.

    floor(x) = normal * (smallest normal number) + u * (argument * max|x_i| + one), with u the unit
    roundoff of the format and x_i the arguments.
    """

    normal: float = 0.0
    argument: float = 0.0
    one: float = 0.0

    def bound_up(self, fmt: Format, *arguments: Tensor) -> Tensor | float:
        """Upper bound of floor(x), float64; a float where it does not depend on x."""
        constant = add_up(
            mul_up(self.normal, fmt.smallest_normal), mul_up(self.one, fmt.unit_roundoff)
        )
        if self.argument == 0.0:
            return constant
        largest = functools.reduce(torch.maximum, (x.to(torch.float64).abs() for x in arguments))
        return add_up(mul_up(largest, mul_up(self.argument, fmt.unit_roundoff)), constant)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How accurate one function is in one format, by the kernels of one instruction set.

    Attributes:
        function: Name of the function, as in `AccuracyTable.functions`.
        format: The format of arguments and result.
        device: "cpu" or "cuda".
        capability: The instruction set, as torch names it.
        fingerprint: What identifies the kernels; see `elementary.fingerprint`.
        layout: "contiguous", "rows" or "strided": the memory layout of the worst error.
        measured_ulps: The worst error seen over all layouts, in units of the spacing at the exact
            result.
        allowed_ulps: What a bound may rely on.
        floor: The absolute error that is granted besides.
        worst_at: The arguments of the worst error.
        samples: How many arguments were measured, in each layout.
        exhaustive: Whether these were all arguments of the format.
        date: When, as YYYY-MM-DD.
        not_finite: Samples where the result was not finite although the exact one is in range.
    """

    function: str
    format: Format
    device: str
    capability: str
    fingerprint: str
    layout: str
    measured_ulps: float
    allowed_ulps: float
    floor: Floor
    worst_at: tuple[float, ...]
    samples: int
    exhaustive: bool
    date: str
    not_finite: int

    def runs_here(self) -> bool:
        """Whether the kernels that were measured are those of this process."""
        return (
            self.capability == elementary.capability()
            and self.format.dtype is not None
            and self.fingerprint == elementary.fingerprint(self.function, self.format.dtype)
        )

    def is_one_operation(self) -> bool:
        """Whether the function is one multiplication or division, which IEEE 754 rounds."""
        dtype = self.format.dtype
        return (
            dtype is not None
            and self.allowed_ulps >= 0.5
            and elementary.is_one_operation(self.function, dtype)
        )

    def is_documented_here(self) -> bool:
        """Whether the maker of this process's kernels states an accuracy that the entry covers.

        So it is for the float64 functions that torch takes from Intel's vector mathematics.
        """
        return (
            self.capability == elementary.capability()
            and elementary.architecture() == "x86_64"
            and self.format.dtype == torch.float64
            and self.function in elementary.VECTOR_MATHEMATICS
            and self.allowed_ulps >= elementary.DOCUMENTED_ULPS
            and torch.backends.mkl.is_available()
        )

    def error_up(self, computed: Tensor, *arguments: Tensor) -> Tensor:
        """Upper bound of |computed - exact|, entry by entry.

        Args:
            computed: What torch computed from the arguments, in the format of this entry.
            *arguments: The arguments; only floors that depend on them read them.

        Returns:
            float64 tensor; infinite where the computed value is not finite.
        """
        relative = ulps_error_up(computed, self.allowed_ulps, self.format)
        floor = self.floor.bound_up(self.format, *arguments)
        return torch.maximum(relative, torch.as_tensor(floor, dtype=torch.float64).to(relative))


def ulps_error_up(computed: Tensor, ulps: float, fmt: Format) -> Tensor:
    """Upper bound of |computed - exact|, knowing that it is at most `ulps` * ulp(exact).

    From ulp(exact) <= 2u |exact| + s, with s the smallest subnormal number, a first bound
    e = ulps (2u |computed| + s) / (1 - 2u ulps) follows; then ulp(exact) <= ulp(|computed| + e).

    Args:
        computed: Computed results, of any floating-point dtype and sign.
        ulps: The stated accuracy, in units of the spacing at the exact result.
        fmt: The format of the results.

    Returns:
        Absolute error bound, float64. Infinite where the result is not finite, and everywhere if
        2u ulps >= 1, when a result says nothing about the exact value.
    """
    magnitude = computed.detach().to(torch.float64).abs()
    lost = mul_up(2.0 * fmt.unit_roundoff, ulps)
    if not lost < 1.0:
        return torch.full_like(magnitude, math.inf)
    spread = add_up(mul_up(magnitude, 2.0 * fmt.unit_roundoff), fmt.smallest_subnormal)
    first = div_up(mul_up(spread, ulps), sub_down(1.0, lost))
    return mul_up(ulp(add_up(magnitude, first), fmt), ulps)


@dataclass(frozen=True, kw_only=True)
class AccuracyTable:
    """Measured accuracies, with where and how they were measured.

    Attributes:
        entries: One per function, format, device and instruction set.
        torch_version: The torch that was measured.
        architecture: The kind of processor, as in "x86_64".
        machine: The processor.
        seed: The seed of the samples.
        sampling: In words, how the arguments were chosen.
    """

    entries: tuple[Accuracy, ...]
    torch_version: str
    architecture: str
    machine: str
    seed: int
    sampling: str

    @functools.cached_property
    def _columns(self) -> Mapping[tuple[str, str, str], Mapping[str, Accuracy]]:
        columns: dict[tuple[str, str, str], dict[str, Accuracy]] = {}
        for entry in self.entries:
            key = (entry.function, entry.format.name, entry.device)
            columns.setdefault(key, {})[entry.capability] = entry
        return columns

    @functools.cached_property
    def functions(self) -> tuple[str, ...]:
        """The names of all functions that were measured, sorted."""
        return tuple(sorted({entry.function for entry in self.entries}))

    @functools.cached_property
    def capabilities(self) -> tuple[str, ...]:
        """The instruction sets that were measured, as torch names them."""
        return tuple(dict.fromkeys(entry.capability for entry in self.entries))

    def find(
        self,
        function: str,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        capability: str | None = None,
    ) -> Accuracy | None:
        """The accuracy of a function over all layouts, or None if it was not measured.

        There is no default: a function that is not in the table has no known accuracy.

        Args:
            function: Its name.
            dtype: The format of arguments and result.
            device: "cpu" or "cuda".
            capability: The instruction set; None for that of this process. Of one that was not
                measured, the least accurate entry among those that were.
        """
        columns = self._columns.get((function, format_of(dtype).name, device))
        if not columns:
            return None
        entry = columns.get(elementary.capability() if capability is None else capability)
        return entry or max(columns.values(), key=lambda entry: entry.allowed_ulps)

    def allowed_ulps(
        self, function: str, dtype: torch.dtype, *, device: str = "cpu"
    ) -> float | None:
        """The error in ulps that bounds may rely on, or None if the function was not measured.

        Only half of the statement if the entry has a floor: see `Accuracy.error_up`.
        """
        entry = self.find(function, dtype, device=device)
        return None if entry is None else entry.allowed_ulps

    def describes(self, entry: Accuracy) -> bool:
        """Whether the kernels of an entry are those of this process and processor."""
        return self.architecture == elementary.architecture() and entry.runs_here()


def pow_function(exponent: float) -> str:
    """The table's name for a power with a Python number as its exponent."""
    special = (2.0, 3.0, -1.0, -2.0, 0.5, -0.5)
    return f"pow({nearest_short(exponent)})" if exponent in special else "pow"


@functools.cache
def default_table() -> AccuracyTable:
    """The table that comes with the package."""
    source = importlib.resources.files("numgeom.arithmetic").joinpath("accuracy.json")
    return _parse(json.loads(source.read_text(encoding="utf-8")), "accuracy.json")


def load_table(path: str | Path) -> AccuracyTable:
    """Read a table that `benchmarks/accuracy.py` wrote, of another machine for instance.

    Raises:
        FileFormatError: if the file is no such table, or of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as reason:
        raise FileFormatError(f"{path} is not JSON ({reason}). Write it anew.") from reason
    return _parse(content, str(path))


def save_table(table: AccuracyTable, path: str | Path) -> None:
    """Write a table as JSON, one entry per line, for `load_table`."""
    header = {
        "schema_version": SCHEMA_VERSION,
        "torch_version": table.torch_version,
        "architecture": table.architecture,
        "machine": table.machine,
        "seed": table.seed,
        "sampling": table.sampling,
        "columns": _COLUMNS,
    }
    rows = [json.dumps(_row(entry), allow_nan=False) for entry in table.entries]
    head = json.dumps(header, indent=1, allow_nan=False).removesuffix("\n}")
    text = head + ',\n "entries": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    write_text(path, text)


_COLUMNS = (
    "function",
    "format",
    "device",
    "capability",
    "fingerprint",
    "layout",
    "measured_ulps",
    "allowed_ulps",
    "floor",
    "worst_at",
    "samples",
    "exhaustive",
    "date",
    "not_finite",
)


def _row(entry: Accuracy) -> list[Any]:
    floor = [entry.floor.normal, entry.floor.argument, entry.floor.one]
    values = {**vars(entry), "format": entry.format.name, "floor": floor}
    return [values[column] for column in _COLUMNS]


def _parse(content: Any, origin: str) -> AccuracyTable:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise FileFormatError(
            f"{origin} is no accuracy table of version {SCHEMA_VERSION} (found {version!r}). "
            "Measure again with benchmarks/accuracy.py."
        )
    try:
        return AccuracyTable(
            entries=tuple(_entry(content["columns"], row) for row in content["entries"]),
            torch_version=content["torch_version"],
            architecture=content["architecture"],
            machine=content["machine"],
            seed=content["seed"],
            sampling=content["sampling"],
        )
    except (KeyError, TypeError, ValueError) as reason:
        raise FileFormatError(f"{origin} is damaged: {reason!r}. Measure again.") from reason


def _entry(columns: list[str], row: list[Any]) -> Accuracy:
    values = dict(zip(columns, row, strict=True))
    values["format"] = format_named(values["format"])
    values["floor"] = Floor(*values["floor"])
    values["worst_at"] = tuple(values["worst_at"])
    return Accuracy(**values)


def with_margin(measured_ulps: float) -> float:
    """The error that bounds may rely on when this is the worst one measured: the module's rule."""
    return max(1.0, math.ceil(16.0 * measured_ulps) / 8.0)
