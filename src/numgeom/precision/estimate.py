"""How large will the rounding error of a gradient be?

Several noisy replays of one recorded step are compared with a clean replay in float64. Each
difference is a sample of the error of every parameter at once, nonlinear effects included.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from numgeom.arithmetic.formats import Format
from numgeom.precision.errors import PrecisionError
from numgeom.precision.noisy import NoisyReplay, Operands, op_name
from numgeom.precision.sources import ErrorSource, Sources, attribute
from numgeom.precision.step import MISSING, as_format, has_kernels, program_of
from numgeom.recording import Program
from numgeom.results.accuracy import combined_norm, norm, relative
from numgeom.results.guarantee import Guarantee
from numgeom.results.store import encode_number

# Calls whose operands a low-precision unit takes in: matrix products, convolutions, attention.
CONTRACTIONS = frozenset({
    "mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "convolution", "convolution_backward",
    "_grouped_mm", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
})  # fmt: skip

# How far predictions are from observations beyond what the samples show, as a standard deviation
# of the logarithm. Measured by benchmarks/estimate.py over 22 models in float32: 0.14.
MODEL_SPREAD = 0.25


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
    _attribute: Callable[[], Sources] | None = field(default=None, repr=False, compare=False)
    _found: list[Sources] = field(default_factory=list, repr=False, compare=False)

    def __str__(self) -> str:
        """Return one line."""
        low, high = self.total.interval
        return (
            f"Estimate({self.total.guarantee}, {self.formats}: predicted error "
            f"{self.total.predicted_error:.2e} relative, 95 % interval {low:.2e} to {high:.2e}, "
            f"{self.samples} samples)"
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
        if not self._found:
            if self._attribute is None:
                raise PrecisionError(
                    "This estimate holds no program, so the sources of the error cannot be found. "
                    "Make a new one with estimate(...)."
                )
            self._found.append(self._attribute())
        return self._found[0]

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


def estimate(
    subject: nn.Module | Program | Callable[[], Any],
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    format: str | torch.dtype | Format | None = None,
    samples: int = 3,
    seed: int = 0,
) -> Estimate:
    """Predict the rounding error of the gradient of one training step.

    Three forms, as for `certify`: a model with its loss and batch, a step that runs forward and
    backward itself, or a program that was recorded before.

    Args:
        subject: Model, step, or program.
        loss_fn: Takes model and batch, returns the loss; with a model only.
        batch: Handed to `loss_fn`; with a model only.
        format: None for the formats that the step runs in. "bfloat16" or "float16": as under
            `torch.autocast` (the step is run once under it; not for a program). Any other format
            ("tf32", "float8_e4m3fn", "float8_e5m2"), and any format of a program: matrix products,
            convolutions and attention take operands that are rounded to it, forward and backward,
            and sum in the recorded format.
        samples: Number of noisy replays, at least 2.
        seed: Decides the samples.

    Returns:
        Predicted errors, with intervals. Guarantee: ESTIMATED.

    Raises:
        PrecisionError: if the arguments do not fit together, or the step runs in float64, where a
            float64 replay cannot show its error.
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
    fmt = None if format is None else as_format(format)
    run_under = fmt if fmt is not None and has_kernels(fmt) else None
    if isinstance(subject, Program):
        run_under = None
    program = program_of(subject, loss_fn, batch, run_under)
    operands = None if fmt is None or run_under is not None else contractions_in(fmt)
    _check_formats(program, fmt)
    return estimate_program(
        program,
        operands=operands,
        formats=_describe(program, fmt, run_under),
        samples=samples,
        seed=seed,
        start=start,
    )


def estimate_program(
    program: Program,
    *,
    operands: Operands | None,
    formats: str,
    samples: int,
    seed: int,
    start: float,
) -> Estimate:
    """Sample the errors of a program; see `estimate`."""
    reference = program.replay(torch.float64).gradients
    errors: dict[str, list[float]] = {name: [] for name in reference}
    for i in range(samples):
        sample = NoisyReplay(program, seed=seed + i, operands=operands).evaluate().gradients
        for name, gradient in reference.items():
            errors[name].append(norm(_plain(sample[name]) - _plain(gradient)))
    sizes = {name: norm(_plain(gradient)) for name, gradient in reference.items()}
    rows = {
        name: _row(name, found, sizes[name], reference[name].numel())
        for name, found in errors.items()
    }
    together = [combined_norm(found[i] for found in errors.values()) for i in range(samples)]
    entries = sum(gradient.numel() for gradient in reference.values())

    def sources() -> Sources:
        return attribute(program, seed=seed, operands=operands)

    return Estimate(
        total=_row("total", together, combined_norm(sizes.values()), entries),
        parameters=rows,
        formats=formats,
        samples=samples,
        seed=seed,
        seconds=time.perf_counter() - start,
        assumptions=ASSUMPTIONS,
        _attribute=sources,
    )


def contractions_in(fmt: Format) -> Operands:
    """Operands of matrix products, convolutions and attention are rounded to a format."""

    def operands(node: fx.Node) -> Format | None:
        return fmt if op_name(node) in CONTRACTIONS else None

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


def _describe(program: Program, fmt: Format | None, run_under: Format | None) -> str:
    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _dtypes(program)))
    if fmt is None:
        return f"as recorded ({names})"
    if run_under is not None:
        return f"under autocast to {fmt}"
    return f"operands of contractions in {fmt}, else as recorded ({names})"


# -- numbers -------------------------------------------------------------------------------


def _plain(gradient: Tensor) -> Tensor:
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


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
    variance = sum((x - middle) ** 2 for x in logs) / (k - 1)
    spread = math.hypot(
        _student(k - 1) * math.sqrt(variance * (1.0 + 1.0 / k)), 1.96 * MODEL_SPREAD
    )
    return math.exp(middle - spread), math.exp(middle + spread)


def _student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    # Beyond the table: Cornish-Fisher expansion about the normal quantile, two terms.
    return table[degrees - 1] if degrees <= len(table) else 1.96 + 2.37 / degrees


__all__ = ["ErrorSource", "Estimate", "GradientEstimate", "Sources", "estimate"]
