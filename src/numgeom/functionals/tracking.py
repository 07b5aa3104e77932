"""What do error functionals say of a training step as it really ran?

with numgeom.track(model) as tracking:
    loss = criterion(model(x), y)
    loss.backward()
print(tracking)

Inside the block the step is recorded, no more; the functionals are made when they are asked for.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from numgeom.arithmetic.assumptions import require_ieee_float64
from numgeom.arithmetic.formats import format_of
from numgeom.arithmetic.lower_bounds import norm_down, sub_down
from numgeom.arithmetic.reliance import support
from numgeom.arithmetic.rounding import div_up, norm_up
from numgeom.failures import answers
from numgeom.functionals.composition import Composition, composition_of
from numgeom.functionals.functional import ErrorFunctional
from numgeom.functionals.result import GradientFunctional, ModuleFunctionals, TrackingResult
from numgeom.functionals.walk import Walk, walk
from numgeom.recording import Program, record
from numgeom.results.guarantee import Guarantee


class Tracking:
    """A step that is watched, and afterwards its error functionals.

    A context manager, entered once. Attributes are available when the block has ended; the first
    one that is read does the work, which takes many times as long as the step.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        """Prepare to watch; nothing happens until the block is entered."""
        self._recording = record(model)

    def __enter__(self) -> "Tracking":
        """Start recording the calls of this thread."""
        self._recording.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop recording."""
        self._recording.__exit__(kind, error, trace)

    @property
    def program(self) -> Program:
        """The recorded step.

        Raises:
            RecordingError: before the block has ended, or if it ended in an error.
        """
        return self._recording.program

    @functools.cached_property
    @answers("track")
    def walk(self) -> Walk:
        """Errors of every call in this run, with parameters and data as they were given.

        Raises:
            ArithmeticAssumptionError: float64 arithmetic is not what the bounds assume.
        """
        require_ieee_float64("cpu")
        return walk(self.program)

    @functools.cached_property
    @answers("track")
    def perturbed(self) -> Walk:
        """The same with parameters and data off by the unit roundoff of the gradients' format.

        The functionals are made of this one: what is exact has no stretch that could be observed.
        """
        formats = (g.dtype for g in self.program.recorded.gradients.values())
        return walk(self.program, input_error=max(format_of(f).unit_roundoff for f in formats))

    @functools.cached_property
    @answers("track")
    def composition(self) -> Composition:
        """The functionals of all calls, in order."""
        return composition_of(self.perturbed)

    @functools.cached_property
    @answers("track")
    def result(self) -> TrackingResult:
        """All functionals and bounds, as plain numbers."""
        gradients = {name: self._gradient(name) for name in self.walk.norms}
        found = self.walk
        guarantee = Guarantee.CERTIFIED if found.twins else Guarantee.PROVED
        if found.unknown_ops or found.undecided:
            guarantee = Guarantee.NONE
        elif not support(found.used).holds:
            guarantee = Guarantee.ESTIMATED
        modules = {path: self._module(path) for path in self.composition.modules}
        return TrackingResult(
            guarantee,
            self._total(gradients),
            gradients,
            modules,
            self.composition.shares(),
            dict(found.unknown_ops),
            found.doubtful + sum(int(j.undecided.sum()) for j in found.undecided),
            self._overflow(),
        )

    @property
    def guarantee(self) -> Guarantee:
        """PROVED; CERTIFIED where random labels decided ties; NONE where an op has no rule.

        NONE, too, where a decision of the step may come out otherwise over the reals. ESTIMATED
        where the accuracy of an elementary function was not measured on this processor.
        """
        return self.result.guarantee

    @property
    def gradients(self) -> Mapping[str, GradientFunctional]:
        """Error functional and bound of each parameter's gradient, by name."""
        return self.result.gradients

    @property
    def total(self) -> GradientFunctional:
        """The same for all gradients as one vector."""
        return self.result.total

    @property
    def modules(self) -> Mapping[str, ModuleFunctionals]:
        """Functionals of every module that ran, by path; "" is the whole step."""
        return self.result.modules

    def bits(self, tolerance: float) -> dict[str, int]:
        """Significant bits that every module needs; see `TrackingResult.bits`."""
        return self.result.bits(tolerance)

    def to_json(self) -> str:
        """The result as JSON."""
        return self.result.to_json()

    def save(self, path: str | Path) -> None:
        """Write the result to a file, for `TrackingResult.load`."""
        self.result.save(path)

    def __str__(self) -> str:
        """A table: the whole, each gradient, each module."""
        return str(self.result)

    # -- parts -----------------------------------------------------------------------------

    @functools.cached_property
    def _whole(self) -> Mapping[str, ErrorFunctional]:
        return self.composition.end_to_end()

    def _gradient(self, name: str) -> GradientFunctional:
        functional = self._whole.get(name, ErrorFunctional(0.0, self.perturbed.norms[name]))
        if self.perturbed.undecided:  # with other data the step may be another one
            functional = ErrorFunctional(functional.stretch, math.inf)
        gradient, error = self.walk.midpoints[name], self.walk.norms[name]
        norm = float(gradient.norm())
        expected = self.composition.expected(name)
        return GradientFunctional(
            functional,
            _relative(error, norm_down(gradient)),
            expected / norm if norm > 0.0 else math.inf if expected else 0.0,
            norm,
            error,
        )

    def _total(self, gradients: Mapping[str, GradientFunctional]) -> GradientFunctional:
        rows = list(gradients.values())
        stretch, added, error = (
            float(norm_up(_vector(each)))
            for each in (
                [row.functional.stretch for row in rows],
                [row.functional.added for row in rows],
                [row.error for row in rows],
            )
        )
        everything = torch.cat([g.reshape(-1) for g in self.walk.midpoints.values()])
        norm = float(everything.norm())
        expected = math.hypot(*(self.composition.expected(name) for name in gradients))
        return GradientFunctional(
            ErrorFunctional(stretch, added),
            _relative(error, norm_down(everything)),
            expected / norm if norm > 0.0 else math.inf if expected else 0.0,
            norm,
            error,
        )

    def _module(self, path: str) -> ModuleFunctionals:
        within = functools.partial(self.composition.within, path)
        forward, backward = within("forward"), within("backward")
        if self.perturbed.undecided:
            forward = backward = None
        both = None if forward is None or backward is None else within()
        return ModuleFunctionals(forward, backward, both, self.composition.own(path))

    def _overflow(self) -> str:
        node = self.walk.overflow
        if node is None:
            return ""
        call = node.meta.get("call")
        place = f" in {call.module or 'the model'} ({call.source})" if call is not None else ""
        return f"{node.target}{place}"


def track(model: nn.Module | None = None) -> Tracking:
    """Watch one training step and bound the error of everything in it, by composition.

    Every call gets an error functional Phi(eps) = L eps + Delta, and functionals compose along the
    graph, forward and backward. Delta is the error that the call really made, by evaluating it in
    float64 on the inputs that it got; L comes from the facts about the op, over the box of the
    errors of this run. The bounds grow with depth as products of norms do: for deep models use
    `certify`, whose bounds do not.

    Args:
        model: Names its modules and parameters.

    Returns:
        A context manager; see `Tracking`.

    Raises:
        RecordingError: if the model has no parameter that requires a gradient.

    Example:
        >>> import torch
        >>> model = nn.Linear(3, 1)
        >>> with track(model) as tracking:
        ...     model(torch.ones(2, 3)).sum().backward()
        >>> print(tracking.guarantee)
        PROVED
        >>> tracking.total.error_bound < 1e-6
        True
    """
    return Tracking(model)


def _relative(error: float, computed: float) -> float:
    """An error relative to the exact norm, of which `computed - error` is a lower bound."""
    if error == 0.0:
        return 0.0
    exact = sub_down(computed, error) if math.isfinite(error) else 0.0
    return div_up(error, exact) if exact > 0.0 else math.inf


def _vector(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
