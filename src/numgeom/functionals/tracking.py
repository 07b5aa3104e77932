"""What do error functionals say of a training step as it really ran?

with numgeom.track(model) as tracking:
    loss = criterion(model(x), y)
    loss.backward()
print(tracking)

Inside the block the step is recorded, no more; the functionals are made when they are asked for.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn

from numgeom.arithmetic.formats import format_of
from numgeom.arithmetic.lower_bounds import sub_down
from numgeom.arithmetic.rounding import UNIT_ROUNDOFF, div_up, norm_up, sum_up
from numgeom.errors import FileFormatError
from numgeom.functionals.compose import end_to_end, within
from numgeom.functionals.functional import ErrorFunctional, FunctionalError
from numgeom.functionals.walk import Walk, walk
from numgeom.recording import Program, record

SCHEMA = "numgeom.tracking"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModuleFunctionals:
    """Error functionals of one module, with those of the modules inside it.

    Attributes:
        forward: From the errors of its inputs to that of its outputs, absolute 2-norms.
        backward: From the errors of the cotangents and of the values that the forward pass kept,
            to those of the gradients that leave the module.
        total: Both together; None where a pass is missing.
        own_error: What its own calls add, forward and backward, at their place, absolute.
    """

    forward: ErrorFunctional | None
    backward: ErrorFunctional | None
    total: ErrorFunctional | None
    own_error: float


@dataclass(frozen=True)
class GradientFunctional:
    """The error of one parameter's gradient.

    Attributes:
        functional: From the 2-norm of the error of every parameter and input, to the 2-norm of the
            gradient's error, absolute.
        error_bound: Bound of this run's error relative to the gradient's norm; at most
            `functional(0)` relative, and often less.
        norm: 2-norm of the computed gradient.
        error: Bound of this run's error, absolute 2-norm.
    """

    functional: ErrorFunctional
    error_bound: float
    norm: float
    error: float


class Tracking:
    """A step that is watched, and afterwards its error functionals.

    A context manager, entered once. Attributes are available when the block has ended; the first
    one that is read does the work, which takes several times as long as the step.
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
    def walk(self) -> Walk:
        """Errors of every call in this run, with parameters and data as they were given."""
        return walk(self.program)

    @functools.cached_property
    def perturbed(self) -> Walk:
        """The same with parameters and data off by the unit roundoff of the gradients' format.

        The functionals are made of this one: what is exact has no stretch that could be observed.
        """
        formats = (g.dtype for g in self.program.recorded.gradients.values())
        return walk(self.program, input_error=max(format_of(f).unit_roundoff for f in formats))

    @property
    def guarantee(self) -> str:
        """PROVED; CERTIFIED where random labels decided ties; NONE where an op has no rule."""
        if self.walk.unknown_ops:
            return "NONE"
        return "CERTIFIED" if self.walk.twins else "PROVED"

    @functools.cached_property
    def gradients(self) -> Mapping[str, GradientFunctional]:
        """Error functional and bound of each parameter's gradient, by name."""
        whole = end_to_end(self.perturbed)
        found: dict[str, GradientFunctional] = {}
        for name, node in self.perturbed.gradients.items():
            functional = whole.get(node, ErrorFunctional(0.0, self.perturbed.norms[name]))
            gradient = self.walk.midpoints[name]
            bound = _relative(self.walk.norms[name], _norm_down(gradient))
            found[name] = GradientFunctional(
                functional, bound, float(gradient.norm()), self.walk.norms[name]
            )
        return found

    @functools.cached_property
    def total(self) -> GradientFunctional:
        """The same for all gradients as one vector."""
        rows = [row.functional for row in self.gradients.values()]
        stretch, added = (
            float(norm_up(_vector(each)))
            for each in ([row.stretch for row in rows], [row.added for row in rows])
        )
        error = float(norm_up(_vector(self.walk.norms.values())))
        everything = torch.cat([g.reshape(-1) for g in self.walk.midpoints.values()])
        return GradientFunctional(
            ErrorFunctional(stretch, added),
            _relative(error, _norm_down(everything)),
            float(everything.norm()),
            error,
        )

    @functools.cached_property
    def modules(self) -> Mapping[str, ModuleFunctionals]:
        """Functionals of every module that ran, by path; "" is the whole step."""
        paths: dict[str, None] = {"": None}
        for node in self.perturbed.locals:
            call = node.meta.get("call")
            path = call.module if call is not None else ""
            while path:
                paths.setdefault(path)
                path = path.rpartition(".")[0]
        return {path: self._module(path) for path in paths}

    def bits(self, tolerance: float) -> int:
        """Significant bits with which the step would keep a tolerance, by its own functional.

        The error is taken as proportional to the unit roundoff of the widest format that the
        gradients came in. ESTIMATED: sums of other lengths and underflow are not bounded by it.

        Args:
            tolerance: Largest relative error of the gradient, 2-norm.

        Raises:
            FunctionalError: if no number of bits is enough.
        """
        recorded = self.program.recorded.gradients
        unit = min(format_of(g.dtype).unit_roundoff for g in recorded.values())
        if not tolerance > 0.0:
            raise FunctionalError(f"A tolerance is positive, not {tolerance!r}.")
        error = self.total.error_bound
        return ErrorFunctional(0.0, error).bits(tolerance, unit_roundoff=unit)

    def to_json(self) -> str:
        """All functionals as JSON; infinities are written as null."""
        document = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "guarantee": self.guarantee,
            "total": _row(self.total),
            "gradients": {name: _row(row) for name, row in self.gradients.items()},
            "modules": {
                path: {
                    "forward": _pair(each.forward),
                    "backward": _pair(each.backward),
                    "total": _pair(each.total),
                    "own_error": _number(each.own_error),
                }
                for path, each in self.modules.items()
            },
            "unknown_ops": dict(self.walk.unknown_ops),
            "doubtful_decisions": self.walk.doubtful,
            "overflow": self._overflow(),
        }
        return json.dumps(document, indent=2, allow_nan=False)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        try:
            Path(path).write_text(self.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise FileFormatError(f"{path} cannot be written: {error.strerror}.") from error

    def __str__(self) -> str:
        """A table: the whole, each gradient, each module."""
        lines = []
        if self.walk.unknown_ops:
            names = ", ".join(f"{name} ({n})" for name, n in self.walk.unknown_ops.items())
            lines.append(f"GUARANTEE NONE: no rule for {names}")
        lines.append(
            f"Error of the gradient: at most {self.total.error_bound:.2e} (relative, 2-norm), "
            f"guarantee {self.guarantee}"
        )
        overflow = self._overflow()
        if overflow:
            lines.append(f"Overflow first in {overflow}: the bound is infinite from there on.")
        width = max(map(len, [*self.gradients, *self.modules]))
        lines.append(f"{'gradient':<{width}}  {'bound':>9}  {'stretch L':>9}  {'added':>9}")
        for name, row in self.gradients.items():
            f = row.functional
            lines.append(
                f"{name:<{width}}  {row.error_bound:9.2e}  {f.stretch:9.2e}  {f.added:9.2e}"
            )
        lines.append(f"{'module':<{width}}  {'forward: L, added':>20}  {'backward: L, added':>20}")
        for path, each in self.modules.items():
            lines.append(
                f"{path or '(all)':<{width}}  {_text(each.forward):>20}  {_text(each.backward):>20}"
            )
        return "\n".join(lines)

    # -- parts -----------------------------------------------------------------------------

    def _module(self, path: str) -> ModuleFunctionals:
        def inside(phase: str | None) -> Callable[[fx.Node], bool]:
            def chosen(node: fx.Node) -> bool:
                call = node.meta.get("call") or _whole(node).meta.get("call")
                if call is None or (phase is not None and call.phase != phase):
                    return False
                return not path or call.module == path or call.module.startswith(path + ".")

            return chosen

        anywhere = inside(None)
        own = sum_up([each.own for node, each in self.walk.locals.items() if anywhere(node)])
        forward, backward = (within(self.perturbed, inside(p)) for p in ("forward", "backward"))
        both = None
        if forward is not None and backward is not None:
            both = within(self.perturbed, anywhere)
        return ModuleFunctionals(forward, backward, both, own)

    def _overflow(self) -> str | None:
        node = self.walk.overflow
        if node is None:
            return None
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
        >>> tracking.guarantee
        'PROVED'
        >>> tracking.total.error_bound < 1e-6
        True
    """
    return Tracking(model)


def _whole(node: fx.Node) -> fx.Node:
    """The call that a part of several outputs belongs to."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) and "call" not in node.meta else node


def _norm_down(x: Tensor) -> float:
    """At most the 2-norm: 2 n u covers the rounding of a norm (Higham 2002, sec. 3.1), twice."""
    norm = float(x.norm())
    return max(0.0, norm * (1.0 - 4.0 * (x.numel() + 8) * UNIT_ROUNDOFF)) if norm < inf else 0.0


def _relative(error: float, computed: float) -> float:
    """An error relative to the exact norm, of which `computed - error` is a lower bound."""
    if error == 0.0:
        return 0.0
    exact = sub_down(computed, error) if math.isfinite(error) else 0.0
    return div_up(error, exact) if exact > 0.0 else inf


def _vector(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _pair(functional: ErrorFunctional | None) -> dict[str, float | None] | None:
    if functional is None:
        return None
    return {"stretch": _number(functional.stretch), "added": _number(functional.added)}


def _row(row: GradientFunctional) -> dict[str, Any]:
    return {
        "functional": _pair(row.functional),
        "error_bound": _number(row.error_bound),
        "norm": row.norm,
        "error": _number(row.error),
    }


def _text(functional: ErrorFunctional | None) -> str:
    return "-" if functional is None else f"{functional.stretch:.1e}, {functional.added:.1e}"
