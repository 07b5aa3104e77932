"""How far is a computed gradient from the reference gradient?

Norms are accumulated in float64 after scaling by the largest entry, so that they neither
overflow nor underflow where the norm itself is representable.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from numgeom.arithmetic.printing import correct_digits
from numgeom.arithmetic.rounding import ratio_up
from numgeom.results.guarantee import Guarantee, weakest

# A float64 reference agrees with the exact gradient to one rounding at the very best, so no
# comparison with it can show more digits than -log10(2**-53).
MOST_DIGITS = 53 * math.log10(2)


@dataclass(frozen=True)
class GradientAccuracy:
    """How far one gradient (or all of them together) is from the reference.

    Attributes:
        name: Name of the parameter; "total" for all of them.
        shape: Shape of the gradient; empty for the total.
        dtype: Format that the gradient was computed in; several for a mixed total.
        entries: Number of entries.
        computed_norm: Norm of the computed gradient.
        reference_norm: Norm of the reference gradient.
        error_norm: Norm of computed - reference, absolute.
        observed_error: `error_norm / reference_norm`; 0 if both are 0; infinite if only the
            reference is 0. NaN where nothing can be said: a non-finite entry in either
            gradient, or a gradient computed in float64, which the float64 reference cannot
            judge.
        largest_entry_error: Largest absolute difference of one entry.
        largest_entry: Largest absolute entry of the reference.
        nonfinite_entries: Number of NaN and infinite entries of the computed gradient.
        reference_nonfinite_entries: The same of the reference.
        guarantee: What the error promises: of `error_bound` if there is one, else of
            `observed_error`.
        error_bound: Bound on the relative error against the exact gradient, or None.
        radius: Bound on the norm of reference - exact, absolute, or None.
    """

    DERIVED: ClassVar = ("largest_entry_error_relative", "tightness", "digits")

    name: str
    shape: tuple[int, ...]
    dtype: str
    entries: int
    computed_norm: float
    reference_norm: float
    error_norm: float
    observed_error: float
    largest_entry_error: float
    largest_entry: float
    nonfinite_entries: int
    reference_nonfinite_entries: int
    guarantee: Guarantee
    error_bound: float | None = None
    radius: float | None = None

    @property
    def tightness(self) -> float | None:
        """Bound divided by observed error, rounded up; None without the two to compare."""
        if self.error_bound is None or not 0.0 < self.observed_error < math.inf:
            return None
        return ratio_up(self.error_bound, self.observed_error)

    @property
    def digits(self) -> float | None:
        """Correct decimal digits: -log10 of the bound if there is one, else of the observed error.

        Rounded down. Between 0 and 15.95, the most that a float64 reference can show. None if
        nothing is known; 0 if the reference is finite and the computed gradient is not.
        """
        error = self.observed_error if self.error_bound is None else self.error_bound
        if math.isnan(error):
            wrong = self.nonfinite_entries > 0 and self.reference_nonfinite_entries == 0
            return 0.0 if wrong else None
        if error == 0.0:
            return MOST_DIGITS
        return min(MOST_DIGITS, max(0.0, correct_digits(error)))

    @property
    def largest_entry_error_relative(self) -> float:
        """`largest_entry_error / largest_entry`; 0 if both are 0."""
        return relative(self.largest_entry_error, self.largest_entry)

    def check(self) -> None:
        """Raise where the numbers are none that a comparison and a bound can give.

        Raises:
            ValueError: names the field.
        """
        place = f"of the gradient {self.name[:60]!r}"
        for name in ("entries", "nonfinite_entries", "reference_nonfinite_entries"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {place} is negative")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"the shape {place} is negative")
        if max(self.nonfinite_entries, self.reference_nonfinite_entries) > self.entries:
            raise ValueError(f"more entries {place} are not finite than there are")
        for name in _NUMBERS:
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name} {place} is negative")
        for name in ("error_bound", "radius"):
            bound = getattr(self, name)
            if bound is not None and not bound >= 0.0:
                raise ValueError(f"{name} {place} is {bound}, which bounds nothing")
        if (self.error_bound is None) != (self.radius is None):
            raise ValueError(f"error_bound and radius {place} do not belong together")
        if self.error_bound is None and self.guarantee > Guarantee.ESTIMATED:
            raise ValueError(f"{self.guarantee} is said {place}, but there is no bound")


_NUMBERS = (
    "computed_norm",
    "reference_norm",
    "error_norm",
    "observed_error",
    "largest_entry_error",
    "largest_entry",
)


def measure(name: str, computed: Tensor, reference: Tensor) -> GradientAccuracy:
    """Compare one computed gradient with its float64 reference.

    Without a bound on the reference's own error the level is ESTIMATED, and NONE where the
    comparison says nothing (see `GradientAccuracy.observed_error`).

    Args:
        name: Name of the parameter.
        computed: The gradient to judge, in any floating format, on any device.
        reference: The reference gradient, of the same shape.
    """
    got = _as_float64(computed.detach().to(reference.device))
    want = _as_float64(reference.detach())
    bad, bad_reference = _nonfinite_entries(got), _nonfinite_entries(want)
    difference = got - want
    error, size = norm(difference), norm(want)
    judged = not (bad or bad_reference or is_float64(computed))
    return GradientAccuracy(
        name=name,
        shape=tuple(computed.shape),
        dtype=_format_name(computed.dtype),
        entries=computed.numel(),
        computed_norm=norm(got),
        reference_norm=size,
        error_norm=error,
        observed_error=relative(error, size) if judged else math.nan,
        largest_entry_error=_largest(difference),
        largest_entry=_largest(want),
        nonfinite_entries=bad,
        reference_nonfinite_entries=bad_reference,
        guarantee=Guarantee.ESTIMATED if judged else Guarantee.NONE,
    )


def total(rows: Iterable[GradientAccuracy]) -> GradientAccuracy:
    """Take several gradients as one vector. What is unknown of one is unknown of all.

    Needs at least one row. Bounds are not combined here.
    """
    parts = list(rows)
    error = combined_norm(row.error_norm for row in parts)
    size = combined_norm(row.reference_norm for row in parts)
    unknown = any(math.isnan(row.observed_error) for row in parts)
    return GradientAccuracy(
        name="total",
        shape=(),
        dtype=", ".join(sorted({row.dtype for row in parts})),
        entries=sum(row.entries for row in parts),
        computed_norm=combined_norm(row.computed_norm for row in parts),
        reference_norm=size,
        error_norm=error,
        observed_error=math.nan if unknown else relative(error, size),
        largest_entry_error=_maximum(row.largest_entry_error for row in parts),
        largest_entry=_maximum(row.largest_entry for row in parts),
        nonfinite_entries=sum(row.nonfinite_entries for row in parts),
        reference_nonfinite_entries=sum(row.reference_nonfinite_entries for row in parts),
        guarantee=weakest(*(row.guarantee for row in parts)),
    )


def is_float64(tensor: Tensor) -> bool:
    """Whether a float64 replay is no more accurate than the format of `tensor`."""
    return tensor.dtype in (torch.float64, torch.complex128)


def norm(tensor: Tensor) -> float:
    """Return the 2-norm of all entries; NaN if one of them is NaN, 0 if there are none."""
    largest = _largest(tensor)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(tensor / largest))


def relative(error: float, size: float) -> float:
    """Divide an error by a size: 0/0 is 0, and any other error of nothing is infinite."""
    if size != 0.0:
        return error / size
    return 0.0 if error == 0.0 else (math.nan if math.isnan(error) else math.inf)


def combined_norm(norms: Iterable[float]) -> float:
    """Return the norm of a vector from the norms of its parts, without overflow in between."""
    values = list(norms)
    return math.nan if any(math.isnan(value) for value in values) else math.hypot(*values)


def _maximum(values: Iterable[float]) -> float:
    known = list(values)
    return math.nan if any(math.isnan(value) for value in known) else max(known, default=0.0)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _nonfinite_entries(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.isfinite(tensor).sum())


def _as_float64(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return torch.view_as_real(tensor.to(torch.complex128).resolve_conj())
    return tensor.to(torch.float64)


def _format_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
