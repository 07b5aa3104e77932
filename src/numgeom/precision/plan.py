"""Which precision does each module need, so that the gradient stays within a tolerance?

Every module is run alone in each cheap format, and the error of the whole gradient is measured
against a float64 replay: kinks, underflow and overflow are in it. Errors of different modules are
taken as independent, so their squares add up; the best assignment under the tolerance is an integer
program (`numgeom.precision.assignment`). It is then run, and where modules work on each other the
budget shrinks by what was seen and the program is solved again.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import format_named
from numgeom.errors import FileFormatError
from numgeom.precision.assignment import choose_formats
from numgeom.precision.errors import PrecisionError
from numgeom.precision.loss_scale import recommend_loss_scale
from numgeom.precision.regions import RUNNABLE, formats_applied
from numgeom.precision.step import recorded_step
from numgeom.precision.work import flops_by_module
from numgeom.recording import Program
from numgeom.results.accuracy import combined_norm, norm, relative

SCHEMA = "numgeom.plan"
VERSION = 1
LossFunction = Callable[[nn.Module, Any], Tensor]

# Predicted errors are kept this factor below the tolerance: other batches differ.
MARGIN = 1.25
_ROUNDS = 4


@dataclass(frozen=True)
class Verification:
    """What a plan did when it was run for real.

    Attributes:
        measured_error: Relative error of the gradient, 2-norm, against a float64 replay.
        predicted_error: What the plan had predicted.
        tolerance: What was asked for.
    """

    measured_error: float
    predicted_error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the measured error is within the tolerance."""
        return self.measured_error <= self.tolerance


@dataclass(frozen=True)
class PrecisionPlan:
    """A format for every module that does work.

    Attributes:
        formats: Format name by module path; "" is the model itself.
        tolerance: The relative error of the whole gradient that was asked for.
        predicted_error: Expected relative error. ESTIMATED.
        low_precision_share: Share of the floating-point operations, forward and backward, that
            run in a format narrower than float32.
        loss_scale: By which factor to multiply the loss; 1 where float16 is not used.
        module_errors: Relative error of the whole gradient with only that module in that format,
            by module and format; infinite where it overflows.
        flops: Floating-point operations by module, forward and backward.
    """

    formats: Mapping[str, str]
    tolerance: float
    predicted_error: float
    low_precision_share: float
    loss_scale: float
    module_errors: Mapping[str, Mapping[str, float]]
    flops: Mapping[str, int]
    _model: nn.Module | None = field(default=None, repr=False, compare=False)
    _loss_fn: LossFunction | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"PrecisionPlan({self.low_precision_share:.0%} of the work in low precision, "
            f"predicted error {self.predicted_error:.2e}, tolerance {self.tolerance:.2e})"
        )

    def apply(self, model: nn.Module) -> AbstractContextManager[None]:
        """Run the model's modules in their formats inside a `with` block.

        Multiply the loss by `loss_scale` and divide the gradients by it (`torch.amp.GradScaler`).

        Raises:
            PrecisionError: on entering, if the model lacks a module of the plan.
        """
        return formats_applied(model, self.formats)

    def verify(
        self, batch: Any, *, model: nn.Module | None = None, loss_fn: LossFunction | None = None
    ) -> Verification:
        """Run the plan on a batch and measure the gradient's error.

        Args:
            batch: Handed to the loss function.
            model: The model; by default the one that was planned for.
            loss_fn: The loss; by default the one that was planned for.

        Raises:
            PrecisionError: if the plan was loaded from a file and no model or loss is given.
        """
        model, loss_fn = model or self._model, loss_fn or self._loss_fn
        if model is None or loss_fn is None:
            raise PrecisionError(
                "A plan from a file knows neither model nor loss: call "
                "plan.verify(batch, model=model, loss_fn=loss_fn)."
            )
        reference = recorded_step(model, loss_fn, batch).replay(torch.float64).gradients
        error = _measure(model, loss_fn, batch, reference, self.formats, self.loss_scale)
        return Verification(error, self.predicted_error, self.tolerance)

    def to_document(self) -> dict[str, Any]:
        """Return everything as plain JSON values; infinite errors as None."""
        fields = ("tolerance", "predicted_error", "low_precision_share", "loss_scale")
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "formats": dict(self.formats),
            **{name: getattr(self, name) for name in fields},
            "module_errors": {
                m: {f: e if math.isfinite(e) else None for f, e in row.items()}
                for m, row in self.module_errors.items()
            },
            "flops": dict(self.flops),
        }

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file that `load` reads.

        Raises:
            FileFormatError: if the file cannot be written.
        """
        text = json.dumps(self.to_document(), indent=2, allow_nan=False) + "\n"
        try:
            Path(path).write_text(text, "utf-8")
        except OSError as error:
            raise FileFormatError(f"{path} cannot be written: {error.strerror}.") from error

    @classmethod
    def load(cls, path: str | Path) -> "PrecisionPlan":
        """Read a plan that `save` wrote.

        Raises:
            FileFormatError: if the file is missing, damaged, foreign, or of a later version.
        """
        try:
            document = json.loads(Path(path).read_text("utf-8"))
            if document["schema"] != SCHEMA or document["version"] > VERSION:
                raise FileFormatError(
                    f"{path} is no plan of version {VERSION}: it says "
                    f"{document['schema']!r}, version {document['version']}."
                )
            return cls(
                formats={str(m): format_named(f).name for m, f in document["formats"].items()},
                tolerance=float(document["tolerance"]),
                predicted_error=float(document["predicted_error"]),
                low_precision_share=float(document["low_precision_share"]),
                loss_scale=float(document["loss_scale"]),
                module_errors={
                    str(m): {f: math.inf if e is None else float(e) for f, e in row.items()}
                    for m, row in document["module_errors"].items()
                },
                flops={str(m): int(n) for m, n in document["flops"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"{path} cannot be read as a precision plan ({type(error).__name__}: {error}). "
                "Make it again with plan.save(path)."
            ) from error


def plan_precision(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    *,
    tolerance: float,
    formats: Sequence[str] = ("bfloat16", "float32"),
    more_batches: Sequence[Any] = (),
) -> PrecisionPlan:
    """Choose a format for every module that does work.

    Takes one training step per batch, module and cheap format, and a few more.

    Args:
        model: A model in float32; left as it was.
        loss_fn: Takes model and batch, returns the loss.
        batch: What to plan on.
        tolerance: Relative error, 2-norm, that the whole gradient may have.
        formats: Formats to choose from: "float32", "bfloat16", "float16".
        more_batches: Further batches; squared errors are averaged.

    Returns:
        The plan with the most work in narrow formats. Guarantee: ESTIMATED.

    Raises:
        PrecisionError: if the arguments make no sense, or no assignment meets the tolerance.
        FormatError: if no format has such a name.
        RecordingError: if the step cannot be recorded.
    """
    _check(tolerance, formats)
    batches = [batch, *more_batches]
    programs = [recorded_step(model, loss_fn, each) for each in batches]
    flops = flops_by_module(programs[0])
    known = dict(model.named_modules())
    units = [m for m in flops if m in known]
    if not units:
        raise PrecisionError(
            "No module of the model runs a matrix product, a convolution or attention, so there "
            "is no work to plan."
        )
    steps = [(b, p.replay(torch.float64).gradients) for b, p in zip(batches, programs, strict=True)]
    scale = _loss_scale(programs[0], formats)

    def error_of(assigned: Mapping[str, str]) -> float:
        """Root mean square over the batches."""
        found = [_measure(model, loss_fn, b, ref, assigned, scale) for b, ref in steps]
        return math.sqrt(sum(e * e for e in found) / len(found))

    as_it_is = [_recorded_error(p, ref) for p, (_, ref) in zip(programs, steps, strict=True)]
    base = math.sqrt(sum(e * e for e in as_it_is) / len(steps))
    errors = {m: {f: 0.0 if f == "float32" else error_of({m: f}) for f in formats} for m in units}
    return _planned(model, loss_fn, tolerance, base, errors, flops, units, scale, error_of)


def _planned(
    model: nn.Module,
    loss_fn: LossFunction,
    tolerance: float,
    base: float,
    errors: dict[str, dict[str, float]],
    flops: Mapping[str, int],
    units: list[str],
    scale: float,
    error_of: Callable[[Mapping[str, str]], float],
) -> PrecisionPlan:
    squared = {m: {f: e * e for f, e in row.items()} for m, row in errors.items()}
    savings = {m: {f: flops[m] * (1.0 - _bits(f) / 32.0) for f in errors[m]} for m in units}
    budget = (tolerance / MARGIN) ** 2 - base * base
    if budget <= 0.0:
        raise PrecisionError(
            f"No assignment meets the tolerance of {tolerance:.2e}: as the step runs now, in "
            f"float32, its gradient already has an error of {base:.2e}, and that is the best that "
            f"can be had. Tolerances from {MARGIN * base * 1.01:.2e} on are in reach."
        )
    interaction, seen = 1.0, math.inf
    for _ in range(_ROUNDS):
        chosen = choose_formats(squared, savings, budget / interaction)
        predicted = math.sqrt(
            base * base + interaction * sum(squared[m][f] for m, f in chosen.items())
        )
        low = sum(flops[m] for m, f in chosen.items() if f != "float32")
        plan = PrecisionPlan(
            formats=chosen,
            tolerance=tolerance,
            predicted_error=predicted,
            low_precision_share=low / max(sum(flops.values()), 1),
            loss_scale=scale if "float16" in chosen.values() else 1.0,
            module_errors=errors,
            flops=dict(flops),
            _model=model,
            _loss_fn=loss_fn,
        )
        seen = error_of(chosen)
        if seen <= tolerance / MARGIN:
            return replace(plan, predicted_error=max(seen, predicted))
        if not math.isfinite(seen):
            interaction *= 4.0
        else:
            interaction *= max((seen / predicted) ** 2, 1.1)
    raise PrecisionError(
        f"No assignment was found that meets the tolerance of {tolerance:.2e} when it is run: "
        f"the last one had an error of {seen:.2e}. Raise the tolerance."
    )


def _measure(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    reference: Mapping[str, Tensor],
    formats: Mapping[str, str],
    scale: float,
) -> float:
    """Run one step in the given formats and compare its gradient with the reference."""
    used = scale if "float16" in formats.values() else 1.0

    def scaled(model: nn.Module, batch: Any) -> Tensor:
        return loss_fn(model, batch) * used

    with formats_applied(model, formats):
        program = recorded_step(model, scaled if used != 1.0 else loss_fn, batch)
    return _recorded_error(program, reference, used)


def _recorded_error(program: Program, reference: Mapping[str, Tensor], scale: float = 1.0) -> float:
    """Relative error of the recorded gradients; infinite where one of them is not finite."""
    recorded = program.recorded.gradients
    parts = [norm(recorded[n].to(torch.float64) / scale - g) for n, g in reference.items()]
    error = relative(combined_norm(parts), combined_norm(norm(g) for g in reference.values()))
    return error if math.isfinite(error) else math.inf


def _loss_scale(program: Program, formats: Sequence[str]) -> float:
    return recommend_loss_scale(program).scale if "float16" in formats else 1.0


def _bits(name: str) -> int:
    dtype = format_named(name).dtype
    assert dtype is not None
    return 8 * dtype.itemsize


def _check(tolerance: float, formats: Sequence[str]) -> None:
    if not (math.isfinite(tolerance) and tolerance > 0.0):
        raise PrecisionError(f"The tolerance is {tolerance}; give a positive number such as 1e-2.")
    for name in formats:
        format_named(name)
    unrunnable = [name for name in formats if name not in RUNNABLE]
    if unrunnable or not formats:
        raise PrecisionError(
            f"A plan cannot run {', '.join(unrunnable) or 'no format at all'}; choose among "
            f"{', '.join(RUNNABLE)}. estimate(..., format=...) predicts the others."
        )
