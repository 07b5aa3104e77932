"""What did the error functionals of one step come to?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numgeom.arithmetic.printing import upper
from numgeom.errors import FileFormatError
from numgeom.functionals.composition import bits_for
from numgeom.functionals.functional import ErrorFunctional, FunctionalError
from numgeom.results import store
from numgeom.results.codec import decode, encode
from numgeom.results.guarantee import Guarantee
from numgeom.visible import visible

SCHEMA = "numgeom.tracking"
SCHEMA_VERSION = 3
_SEALED_FROM = 3  # documents before had no checksum


@dataclass(frozen=True)
class ModuleFunctionals:
    """Error functionals of one module, with those of the modules inside it.

    Attributes:
        forward: From the errors of its inputs to that of its outputs, absolute 2-norms; its
            parameters are exact.
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
        expected_error: The same composition with the calls' errors taken as independent, relative.
            ESTIMATED: no bound, whatever the guarantee of the bounds.
        norm: 2-norm of the computed gradient.
        error: Bound of this run's error, absolute 2-norm.
    """

    functional: ErrorFunctional
    error_bound: float
    expected_error: float
    norm: float
    error: float

    def check(self) -> None:
        """Raise ValueError where a bound is none."""
        if not (self.error_bound >= 0.0 and self.error >= 0.0):
            raise ValueError("an error bound of a gradient is negative or NaN")
        if self.norm < 0.0 or self.expected_error < 0.0:
            raise ValueError("a norm or an expected error of a gradient is negative")


@dataclass(frozen=True)
class TrackingResult:
    """Error functionals of a step, as plain numbers.

    Attributes:
        guarantee: Of the bounds: PROVED; CERTIFIED where random labels decided ties; ESTIMATED
            where an accuracy that they rest on was not measured on this processor; NONE where an
            op has no rule.
        total: Of all gradients as one vector.
        gradients: By parameter.
        modules: By path; "" is the whole step.
        shares: What each module's own rounding adds to the gradients, absolute, for a unit
            roundoff of 1.
        unknown_ops: Ops without a rule, with the number of their calls.
        doubtful_decisions: How many decisions may be other ones over the reals.
        overflow: The call that made an infinite value of finite ones, or "".
    """

    guarantee: Guarantee
    total: GradientFunctional
    gradients: Mapping[str, GradientFunctional]
    modules: Mapping[str, ModuleFunctionals]
    shares: Mapping[str, float]
    unknown_ops: Mapping[str, int]
    doubtful_decisions: int = 0
    overflow: str = ""

    def bits(self, tolerance: float) -> dict[str, int]:
        """Significant bits that every module needs for a tolerance of the whole gradient.

        Each module may spend the same part of the tolerance. ESTIMATED: errors are taken as
        proportional to the unit roundoff, so other kinks and underflow are not counted.

        Args:
            tolerance: Largest relative error of the gradient, 2-norm.

        Returns:
            Bits by module path, for every module with rounding of its own; "" is what runs outside
            of every module, such as the loss.

        Raises:
            FunctionalError: if no number of bits is enough.
        """
        return bits_for(self.shares, tolerance * self.total.norm)

    def to_json(self) -> str:
        """All numbers as JSON; infinities are the text "Infinity"."""
        return store.to_text(self._document())

    def _document(self) -> dict[str, Any]:
        return store.sealed({"schema": SCHEMA, "version": SCHEMA_VERSION, **encode(self)})

    def check(self) -> None:
        """Raise ValueError where it says what no result can say."""
        if self.unknown_ops and self.guarantee is not Guarantee.NONE:
            raise ValueError("there are ops without a rule, and yet a guarantee")
        if min(self.doubtful_decisions, *self.unknown_ops.values(), 0) < 0:
            raise ValueError("a number of calls or decisions is negative")
        if any(share < 0.0 for share in self.shares.values()):
            raise ValueError("a share is negative")

    def save(self, path: str | Path) -> None:
        """Write all numbers to a file; as JSON if its name ends in ".json".

        Raises:
            FileFormatError: if the file cannot be written.
        """
        store.write(path, self._document())

    @classmethod
    def load(cls, path: str | Path) -> "TrackingResult":
        """Read what `save` wrote.

        Raises:
            FileFormatError: if the file is not there, or holds something else.
        """
        found, _ = store.read(path, schema=SCHEMA, version=SCHEMA_VERSION, sealed_from=_SEALED_FROM)
        around = ("schema", "version", store.CHECKSUM)
        plain = {key: value for key, value in found.items() if key not in around}
        if found["version"] < _SEALED_FROM:
            plain = _infinite(plain)
        try:
            return decode(cls, plain, "the result")
        except (ValueError, FunctionalError) as error:
            raise FileFormatError(f"{path} is damaged ({error}); write it again.") from error

    def __str__(self) -> str:
        lines = []
        if self.unknown_ops:
            names = ", ".join(f"{name} ({n})" for name, n in self.unknown_ops.items())
            lines.append(f"Guarantee NONE: no rule for {names}")
        lines.append(
            f"Error of the gradient: at most {upper(self.total.error_bound)} (relative, 2-norm), "
            f"guarantee {self.guarantee}; about {upper(self.total.expected_error)}, ESTIMATED"
        )
        if self.overflow:
            lines.append(f"Overflow first in {self.overflow}: the bound is infinite from there on.")
        names = [*map(visible, [*self.gradients, *self.modules]), "(all)"]
        width = max(map(len, names))
        head = ("bound", "ESTIMATED", "stretch L", "added")
        lines.append(f"{'gradient':<{width}}" + "".join(f"  {text:>9}" for text in head))
        for name, row in self.gradients.items():
            f = row.functional
            cells = (row.error_bound, row.expected_error, f.stretch, f.added)
            lines.append(
                f"{visible(name):<{width}}" + "".join(f"  {upper(cell):>9}" for cell in cells)
            )
        lines.append(f"{'module':<{width}}  {'forward: L, added':>20}  {'backward: L, added':>20}")
        for path, each in self.modules.items():
            pairs = (_text(each.forward), _text(each.backward))
            lines.append(
                f"{visible(path) or '(all)':<{width}}" + "".join(f"  {pair:>20}" for pair in pairs)
            )
        return "\n".join(map(visible, lines))


def _text(functional: ErrorFunctional | None) -> str:
    return (
        "-"
        if functional is None
        else f"{upper(functional.stretch, 2)}, {upper(functional.added, 2)}"
    )


def _infinite(tree: Any) -> Any:
    """Earlier versions wrote an infinity as null; a functional that is null is missing."""
    if isinstance(tree, list):
        return [_infinite(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    return {
        key: "Infinity" if item is None and key not in _MISSING else _infinite(item)
        for key, item in tree.items()
    }


_MISSING = ("forward", "backward", "total")
