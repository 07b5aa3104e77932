"""How accurate are torch's elementary functions?

No standard bounds the error of exp or tanh, so a bound has to take it from a table of
measurements (assumption 3 of every certificate). `accuracy.json` holds, for each function, format
and memory layout, the worst error that `benchmarks/accuracy.py` saw against an arbitrary-precision
oracle, and the larger value that bounds may rely on:

    |computed - exact| <= max(allowed_ulps * ulp(exact), floor),   where computed is finite,

with ulp the spacing of the format at the exact result. The exact result is that for the argument
as it is stored, over the real numbers. A result that is not finite has no bound.

Margin: allowed_ulps = max(1, 2 * measured), rounded up to a multiple of 1/8. A sample can miss the
worst argument. An error is a smooth part (of the approximation, which dense samples hit to some
per cent) plus the rounding of a few operations, whose worst combination rarely occurs in a sample
but is no larger than what the operations can add up to; twice the worst of 10^5 to 10^7 samples
leaves room for both. (An independent sample, a tenth of the size, exceeded no measured value by
more than 6 %.) It is an assumption, not a proof, and it is printed with each certificate.
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

from numgeom.arithmetic.formats import Format, format_named, format_of, ulp
from numgeom.arithmetic.lower_bounds import sub_down
from numgeom.arithmetic.printing import nearest_short
from numgeom.arithmetic.rounding import add_up, div_up, mul_up
from numgeom.errors import FileFormatError
from numgeom.files.writing import write_text

SCHEMA_VERSION = 1


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
    """How accurate one function is in one format, on one device.

    Attributes:
        function: Name of the function, as in `AccuracyTable.functions`.
        format: The format of arguments and result.
        device: "cpu" or "cuda".
        layout: "contiguous", "rows" or "strided", the memory layout that was measured; in an
            answer of `AccuracyTable.find`, the one with the largest error.
        measured_ulps: The worst error seen, in units of the spacing at the exact result.
        allowed_ulps: What a bound may rely on.
        floor: The absolute error that is granted besides.
        worst_at: The arguments of the worst error.
        samples: How many arguments were measured.
        exhaustive: Whether these were all arguments of the format.
        capability: The instruction set of the kernels that gave the worst error.
        not_finite: Samples where the result was not finite although the exact one is in range.
    """

    function: str
    format: Format
    device: str
    layout: str
    measured_ulps: float
    allowed_ulps: float
    floor: Floor
    worst_at: tuple[float, ...]
    samples: int
    exhaustive: bool
    capability: str
    not_finite: int

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
    """Measured accuracies, with where and when they were measured.

    Attributes:
        entries: One per function, format, layout and device.
        torch_version: The torch that was measured.
        capabilities: The instruction sets that were measured (as torch names them).
        machine: The processor.
        date: When, as YYYY-MM-DD.
        seed: The seed of the samples.
        sampling: In words, how the arguments were chosen.
    """

    entries: tuple[Accuracy, ...]
    torch_version: str
    capabilities: tuple[str, ...]
    machine: str
    date: str
    seed: int
    sampling: str

    @functools.cached_property
    def _worst(self) -> Mapping[tuple[str, str, str], Accuracy]:
        worst: dict[tuple[str, str, str], Accuracy] = {}
        for entry in self.entries:
            key = (entry.function, entry.format.name, entry.device)
            if key not in worst or entry.measured_ulps > worst[key].measured_ulps:
                worst[key] = entry
        return worst

    @property
    def functions(self) -> tuple[str, ...]:
        """The names of all functions that were measured, sorted."""
        return tuple(sorted({entry.function for entry in self.entries}))

    def find(self, function: str, dtype: torch.dtype, *, device: str = "cpu") -> Accuracy | None:
        """The accuracy of a function over all layouts, or None if it was not measured.

        There is no default: a function that is not in the table has no known accuracy.
        """
        return self._worst.get((function, format_of(dtype).name, device))

    def allowed_ulps(
        self, function: str, dtype: torch.dtype, *, device: str = "cpu"
    ) -> float | None:
        """The error in ulps that bounds may rely on, or None if the function was not measured.

        Only half of the statement if the entry has a floor: see `Accuracy.error_up`.
        """
        entry = self.find(function, dtype, device=device)
        return None if entry is None else entry.allowed_ulps

    def describes_this_torch(self) -> bool:
        """Whether this very torch version and CPU capability were measured."""
        return (
            torch.__version__.split("+")[0] == self.torch_version.split("+")[0]
            and torch.backends.cpu.get_cpu_capability() in self.capabilities
        )


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
        "capabilities": table.capabilities,
        "machine": table.machine,
        "date": table.date,
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
    "layout",
    "measured_ulps",
    "allowed_ulps",
    "floor",
    "worst_at",
    "samples",
    "exhaustive",
    "capability",
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
            capabilities=tuple(content["capabilities"]),
            machine=content["machine"],
            date=content["date"],
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
