"""How large will the rounding error of a gradient be?

Several replays of one recorded step, each with rounding errors of its own, are compared with a
clean one. Each difference is a sample of the error of every parameter at once, nonlinear effects
included (`numgeom.precision.sampling` says how).
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from numgeom.arithmetic.formats import Format
from numgeom.arithmetic.printing import lower, nearest, upper
from numgeom.failures import answers
from numgeom.ops.traits import Autocast
from numgeom.precision.bits import BitsNeeded, Grouping, bits_needed
from numgeom.precision.errors import PrecisionError
from numgeom.precision.noisy import Operands, traits
from numgeom.precision.operations import has_kernels
from numgeom.precision.sampling import Asked, Samples, sampled
from numgeom.precision.sources import ErrorSource, Sources, attribute
from numgeom.precision.step import as_format, program_under
from numgeom.precision.storage import RECOMPUTED, storage_named
from numgeom.recording import MISSING, Program, Recording
from numgeom.results.accuracy import combined_norm, relative
from numgeom.results.guarantee import Guarantee
from numgeom.results.origins import origin_of, remember
from numgeom.results.store import encode_number
from numgeom.visible import visible

# How far predictions are from observations beyond what the samples show, as a standard deviation
# of the logarithm. Measured by benchmarks/estimate.py over 22 models in float32: 0.14.
MODEL_SPREAD = 0.25
# How far samples are from each other, likewise, and how many samples that is worth.
SAMPLE_SPREAD = 0.15
_USUAL_WEIGHT = 4


@dataclass(frozen=True)
class GradientEstimate:
    """How wrong one gradient is expected to be.

    Attributes:
        name: Name of the parameter; "total" for all of them.
        predicted_error: Expected relative error, 2-norm, against the reference gradient: root
            mean square of the samples. Infinite or NaN where a sample overflowed.
        interval: Where the error of a run is expected in 95 of 100 cases. From the spread of the
            samples and that of the model itself; equal to both ends where that cannot be told.
        reference_norm: Norm of the reference gradient.
        entries: Number of entries.
        guarantee: ESTIMATED; NONE where a sample or the reference is not finite.
    """

    name: str
    predicted_error: float
    interval: tuple[float, float]
    reference_norm: float
    entries: int
    guarantee: Guarantee


@dataclass(frozen=True)
class Estimate:
    """What rounding is expected to do to the gradient of one training step.

    Attributes:
        total: All gradients taken as one vector.
        parameters: Each parameter's gradient, by name, in model order.
        formats: In which formats the step was assumed to run, in words.
        samples: Number of noisy replays.
        seed: Seed of the first of them.
        seconds: Time that the estimate took, recording included.
        assumptions: What the numbers rest on.
    """

    total: GradientEstimate
    parameters: Mapping[str, GradientEstimate]
    formats: str
    samples: int
    seed: int
    seconds: float
    assumptions: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line."""
        low, high = self.total.interval
        return visible(
            f"Estimate({self.total.guarantee}, {self.formats}: predicted error "
            f"{nearest(self.total.predicted_error)} relative, 95 % interval {lower(low)} to "
            f"{upper(high)}, {self.samples} samples)"
        )

    def statistical_bound(self, *, failure_probability: float = 1e-9) -> float:
        """Return the relative error of the gradient that a random model of rounding allows.

        In that model sums of n terms err by sqrt(n) u, not by n u: lambda times the predicted
        error, lambda = sqrt(2 log(2 / p)) (Higham and Mary 2019, theorem 2.4). ESTIMATED: rounding
        errors are not random.

        Args:
            failure_probability: p, within the model.

        Raises:
            PrecisionError: if the probability does not lie between 0 and 1.
        """
        if not 0.0 < failure_probability < 1.0:
            raise PrecisionError(
                f"A failure probability lies between 0 and 1, not {failure_probability!r}."
            )
        return math.sqrt(2.0 * math.log(2.0 / failure_probability)) * self.total.predicted_error

    def sources(self) -> Sources:
        """Return where the error comes from; the shares sum to 1.

        Computed at the first call: one more noisy replay and one reverse pass over the program.

        Raises:
            PrecisionError: if the estimate was made without its program.
        """
        origin = origin_of(self)
        if origin is None:
            raise PrecisionError(
                "An estimate holds no program, and the one that this was made from is not at hand, "
                "so the sources of the error cannot be found. Make a new one with estimate(...), "
                "or call numgeom.precision.sources.attribute(program)."
            )
        if not origin.found:
            origin.found.append(origin.sources())
        return origin.found[0]

    def bits(self, tolerance: float, *, by: Grouping = "module") -> dict[str, BitsNeeded]:
        """Return the smallest mantissa of every part that keeps a tolerance, each part alone.

        See `numgeom.precision.bits_needed`.

        Raises:
            PrecisionError: if the estimate was made without its program, or the tolerance is not
                positive.
        """
        origin = origin_of(self)
        if origin is None:
            raise PrecisionError(
                "An estimate holds no program, and the one that this was made from is not at hand, "
                "so no bits can be tried. Make a new one with estimate(...), or call "
                "numgeom.precision.bits_needed(program, tolerance)."
            )
        return bits_needed(origin.program, tolerance, by=by)

    def to_document(self) -> dict[str, Any]:
        """Return everything but the sources as plain JSON values; NaN and infinities as strings."""
        rows = [self.total, *self.parameters.values()]
        return {
            "schema": "numgeom.estimate",
            "version": 1,
            "units": {"predicted_error": "relative to reference_norm", "interval": "95 %"},
            "formats": self.formats,
            "samples": self.samples,
            "seed": self.seed,
            "seconds": self.seconds,
            "gradients": [
                {
                    "name": row.name,
                    "predicted_error": encode_number(row.predicted_error),
                    "interval": [encode_number(end) for end in row.interval],
                    "reference_norm": encode_number(row.reference_norm),
                    "entries": row.entries,
                    "guarantee": row.guarantee.name,
                }
                for row in rows
            ],
            "assumptions": list(self.assumptions),
        }


ASSUMPTIONS = (
    "Every call rounds its result to nearest in the format that it ran in.",
    "What kernels do inside is drawn from a model that was calibrated on x86 CPUs.",
    "The error of the float64 reference itself is small beside the predicted error.",
)


@answers("estimate")
def estimate(
    subject: nn.Module | Program | Recording | Callable[[], Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    format: str | torch.dtype | Format | Mapping[str, str] | None = None,
    stored_as: str | Format | None = None,
    samples: int = 2,
    seed: int = 0,
) -> Estimate:
    """Predict the rounding error of the gradient of one training step.

    Three forms, as for `certify`: a model with its loss and batch, a step that runs forward and
    backward itself, or a program that was recorded before.

    Args:
        subject: Model, step, recording, or program.
        loss_fn: Takes model and batch, returns the loss; with a model only.
        batch: Handed to `loss_fn`; with a model only.
        format: None for the formats that the step runs in. "bfloat16" or "float16": as under
            `torch.autocast` (the step is run once under it; not for a program). Any other format
            ("tf32", "float8_e4m3fn", "float8_e5m2"), and any format of a program: matrix products,
            convolutions and attention take operands that are rounded to it, forward and backward,
            and sum in the recorded format. For a model also format names by module path, as a plan
            has them: any assignment of formats, run once as `PrecisionPlan.apply` would.
        stored_as: How values wait for the backward pass: None for as they were computed, a format
            ("float16", "bfloat16", 8-bit formats, scaled per tensor), "int8" (256 equal steps
            between the ends of each tensor), or "recomputed" (a second forward pass whose
            kernels round otherwise).
        samples: Number of replays with errors, at least 2.
        seed: Decides the samples.

    Returns:
        Predicted errors, with intervals. Guarantee: ESTIMATED.

    Raises:
        PrecisionError: if the arguments do not fit together, if nothing is known under the name
            `stored_as`, or if the step runs in float64, where a float64 replay cannot show its
            error.
        FormatError: if no format has that name.
        RecordingError: if the step cannot be recorded.
        ReplayError: if the program cannot be run in float64.

    Example:
        >>> model = nn.Linear(64, 1)
        >>> found = estimate(model, lambda model, x: model(x).tanh().sum(), torch.rand(8, 64))
        >>> 1e-9 < found.total.predicted_error < 1e-5
        True
    """
    start = time.perf_counter()
    if samples < 2:
        raise PrecisionError(f"samples is {samples}; give at least 2, so that there is a spread.")
    again = stored_as == RECOMPUTED
    stored = None if stored_as is None or again else storage_named(stored_as)
    if isinstance(format, Mapping):
        fmt, operands, run_under = None, None, {m: as_format(f).name for m, f in format.items()}
    else:
        fmt = None if format is None else as_format(format)
        runs = (
            fmt is not None and has_kernels(fmt) and not isinstance(subject, (Program, Recording))
        )
        run_under = fmt if runs else None
        operands = None if fmt is None or runs else contractions_in(fmt)
    program = program_under(subject, loss_fn, batch, run_under)
    _check_formats(program, fmt)
    formats = _describe(program, fmt, run_under)
    if stored_as is not None:
        formats += ", activations recomputed" if again else f", activations stored as {stored_as}"
    return estimate_program(
        program,
        Asked(operands, stored, again),
        formats=formats,
        samples=samples,
        seed=seed,
        start=start,
    )


def estimate_program(
    program: Program, asked: Asked, *, formats: str, samples: int, seed: int, start: float
) -> Estimate:
    """Sample the errors of a program; see `estimate`."""
    found: Samples = sampled(program, asked, samples=samples, seed=seed)
    entries = {name: program.recorded.gradients[name].numel() for name in found.errors}
    rows = {
        name: _row(name, errors, found.sizes[name], entries[name])
        for name, errors in found.errors.items()
    }

    @answers("sources")
    def sources() -> Sources:
        if asked.recomputed:
            raise PrecisionError(
                "The sources of a mismatch between two forward passes are not known; ask for them "
                "without stored_as='recomputed'."
            )
        return attribute(program, seed=seed, operands=asked.operands, stored=asked.stored)

    estimated = Estimate(
        total=_row(
            "total", found.totals(), combined_norm(found.sizes.values()), sum(entries.values())
        ),
        parameters=rows,
        formats=formats,
        samples=samples,
        seed=seed,
        seconds=time.perf_counter() - start,
        assumptions=ASSUMPTIONS,
    )
    remember(estimated, _Origin(program, sources))
    return estimated


@dataclass(frozen=True, eq=False)
class _Origin:
    """The step that an estimate is about, and its sources, once they were asked for."""

    program: Program
    sources: Callable[[], Sources]
    found: list[Sources] = field(default_factory=list)


def contractions_in(fmt: Format) -> Operands:
    """Operands of matrix products, convolutions and attention are rounded to a format."""

    def operands(node: fx.Node) -> Format | None:
        return fmt if traits(node).autocast is Autocast.LOW else None

    return operands


# -- formats ------------------------------------------------------------------------------


def _dtypes(program: Program) -> set[torch.dtype]:
    return {
        meta.dtype
        for node in program.calls
        for meta in node.meta["tensors"].values()
        if meta.dtype.is_floating_point
    }


def _check_formats(program: Program, fmt: Format | None) -> None:
    dtypes = _dtypes(program)
    if fmt is None and dtypes == {torch.float64}:
        raise PrecisionError(
            "The step runs in float64, and a replay in float64 cannot show the error of that. "
            "Pass a format, or convert the model: estimate(model.float(), ...)."
        )


def _describe(
    program: Program, fmt: Format | None, run_under: Format | Mapping[str, str] | None
) -> str:
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _dtypes(program)))
    if isinstance(run_under, Mapping):
        counts = Counter(run_under.values()).items()
        return "as assigned (" + ", ".join(f"{n} x {name}" for name, n in counts) + ")"
    if fmt is None:
        return f"as recorded ({names})"
    if run_under is not None:
        return f"under autocast to {fmt}"
    return f"operands of contractions in {fmt}, else as recorded ({names})"


# -- numbers -------------------------------------------------------------------------------


def _row(name: str, errors: list[float], size: float, entries: int) -> GradientEstimate:
    found = [relative(error, size) for error in errors]
    known = all(math.isfinite(error) for error in found) and math.isfinite(size)
    mean = math.sqrt(sum(e * e for e in found) / len(found)) if known else max(found, key=_rank)
    return GradientEstimate(
        name=name,
        predicted_error=mean,
        interval=_interval(found) if known else (min(found, key=_rank), mean),
        reference_norm=size,
        entries=entries,
        guarantee=Guarantee.ESTIMATED if known else Guarantee.NONE,
    )


def _rank(value: float) -> tuple[bool, float]:
    return (math.isnan(value), 0.0 if math.isnan(value) else value)


def _interval(errors: list[float]) -> tuple[float, float]:
    """A 95 % prediction interval of one more error, on a logarithmic scale."""
    if not all(error > 0.0 for error in errors):
        return min(errors), max(errors)
    logs = [math.log(error) for error in errors]
    k = len(logs)
    middle = sum(logs) / k
    # Two or three samples say little about their spread: what is usual counts for four more.
    squares = sum((x - middle) ** 2 for x in logs) + _USUAL_WEIGHT * SAMPLE_SPREAD**2
    degrees = k - 1 + _USUAL_WEIGHT
    spread = math.hypot(
        _student(degrees) * math.sqrt(squares / degrees * (1.0 + 1.0 / k)), 1.96 * MODEL_SPREAD
    )
    return math.exp(middle - spread), math.exp(middle + spread)


def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    # Beyond the table: Cornish-Fisher expansion about the normal quantile, two terms.
    return table[degrees - 1] if degrees <= len(table) else 1.96 + 2.37 / degrees


__all__ = ["ErrorSource", "Estimate", "GradientEstimate", "Sources", "estimate"]
