"""What does a diagnosis say?"""

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numgeom.arithmetic.printing import nearest_short, upper
from numgeom.errors import FileFormatError
from numgeom.results import store
from numgeom.results.codec import decode, encode
from numgeom.visible import visible, visible_lines

SCHEMA = "numgeom.diagnosis"
VERSION = 2
_SEALED_FROM = 2  # documents of version 1 had no checksum


class Kind(enum.StrEnum):
    """What is wrong."""

    OVERFLOW = "overflow"
    OVERFLOW_RISK = "overflow-risk"
    DOMAIN = "domain"
    NONFINITE_INPUT = "nonfinite-input"
    UNDERFLOW = "underflow"
    CANCELLATION = "cancellation"
    ABSORPTION = "absorption"
    PRECISION_LOSS = "precision-loss"
    ILL_CONDITIONED = "ill-conditioned"
    SATURATION = "saturation"
    DEAD_UNITS = "dead-units"
    VANISHING = "vanishing"
    EXPLODING = "exploding"
    UNSTABLE_FORMULA = "unstable-formula"
    LOSS_SCALING = "loss-scaling"
    SURROGATE = "surrogate"
    ORDER_DEPENDENCE = "order-dependence"
    RECOMPUTATION = "recomputation"
    NONDETERMINISM = "nondeterminism"
    FINITE_DIFFERENCE = "finite-difference"
    CLIPPING = "clipping"


class Severity(enum.StrEnum):
    """How bad it is: info < warning < error."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for error."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, where, how that is known, and what to do.

    Attributes:
        kind: What is wrong.
        severity: "info": nothing to do now; "warning": results suffer; "error": they are lost.
        op: Name of the operation, as in "aten.log.default"; "" if it is no operation.
        module: Path of the module that ran it, "" outside of every module.
        source: "file.py:line" of the user's line, "" if unknown.
        phase: "forward", "backward" or "update"; "" if it is no operation.
        evidence: The numbers that it rests on, by name; each name says its unit.
        explanation: One sentence.
        remedy: What to do, with a piece of code where that helps.
        verified: Whether the remedy was tried on the recorded step and made the error smaller.
    """

    kind: Kind
    severity: Severity
    op: str
    module: str
    source: str
    phase: str
    evidence: Mapping[str, Any]
    explanation: str
    remedy: str
    verified: bool = False

    def __str__(self) -> str:
        """A few lines for a person."""
        place = ", ".join(part for part in (self.module, self.source) if part)
        where = f" in the {self.phase} pass" if self.phase else ""
        head = f"{self.severity.value}: {self.kind.value}"
        head += f" at {self.op}{where}" if self.op else ""
        head += f" ({place})" if place else ""
        numbers = ", ".join(f"{key} = {_shown(value)}" for key, value in self.evidence.items())
        cure = f"  Remedy{' (verified)' if self.verified else ''}: {self.remedy}"
        lines = map(visible, [head, f"  {self.explanation}", f"  Evidence: {numbers}"])
        told = [line for line in lines if line.strip() != "Evidence:"]
        return "\n".join([*told, visible_lines(cure)])


@dataclass(frozen=True)
class Diagnosis:
    """What is numerically wrong with one training step; falsy if nothing is above "info".

    Attributes:
        findings: The findings, the worst first.
        loss_error: Relative error of the loss against the float64 reference; NaN if unknown.
        gradient_error: The same of all gradients taken as one vector (2-norm).
        clip_factor: What gradient clipping multiplied the gradients with; NaN if it did not run.
        underflow_share: Part of the entries of all computed values that became zero although the
            reference is not; NaN if unknown.
        headroom_binades: By how many powers of two the largest value may grow before its format
            overflows; NaN if unknown.
        seconds: Time that the diagnosis took.
    """

    findings: tuple[Finding, ...]
    loss_error: float = math.nan
    gradient_error: float = math.nan
    underflow_share: float = math.nan
    headroom_binades: float = math.nan
    clip_factor: float = field(default=math.nan, compare=False)
    seconds: float = field(default=0.0, compare=False)

    def __bool__(self) -> bool:
        return any(f.severity is not Severity.INFO for f in self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def of(self, kind: Kind | str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(f for f in self.findings if f.kind == kind)

    def to_document(self) -> dict[str, Any]:
        """Return the diagnosis as it is written to a file, without the checksum."""
        return {"schema": SCHEMA, "version": VERSION, **encode(self)}

    def to_json(self) -> str:
        """Return the diagnosis as JSON; numbers that are not finite are strings."""
        return store.to_text(store.sealed(self.to_document()))

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Diagnosis":
        """Read what `to_document` gave.

        Raises:
            FileFormatError: if it is something else, or damaged.
        """
        version = document.get("version")
        known = type(version) is int and 1 <= version <= VERSION
        if document.get("schema") != SCHEMA or not known:
            raise FileFormatError(f"this is no diagnosis of a version up to {VERSION}")
        plain = {key: value for key, value in document.items() if key not in _AROUND}
        if version == 1:
            plain = _renamed(plain)
        try:
            return decode(cls, plain, "the diagnosis")
        except ValueError as error:
            raise FileFormatError(f"this diagnosis is damaged ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write the diagnosis to a file; as JSON if its name ends in ".json".

        Raises:
            FileFormatError: if the file cannot be written.
        """
        store.write(path, store.sealed(self.to_document()))

    @classmethod
    def load(cls, path: str | Path) -> "Diagnosis":
        """Read what `save` wrote.

        Raises:
            FileFormatError: if the file is not there, or holds something else.
        """
        document, _ = store.read(path, schema=SCHEMA, version=VERSION, sealed_from=_SEALED_FROM)
        try:
            return cls.from_document(document)
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}.") from error

    def __str__(self) -> str:
        """Everything, for a person."""
        loss, gradient = upper(self.loss_error, 2), upper(self.gradient_error, 2)
        errors = f"relative error: loss {loss}, gradient {gradient}"
        if not self.findings:
            return f"No findings ({errors})."
        count = "1 finding" if len(self.findings) == 1 else f"{len(self.findings)} findings"
        return "\n\n".join([f"{count} ({errors}).", *map(str, self.findings)])


_AROUND = ("schema", "version", store.CHECKSUM)
_RENAMED = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # in version 1


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    return _RENAMED.get(value, value) if isinstance(value, str) else value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return nearest_short(value)
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_shown(item) for item in value[:4])
        return f"[{shown}{', ...' if len(value) > 4 else ''}]"
    return str(value)
