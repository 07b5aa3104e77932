"""What does a certificate say?

A certificate is data: it is made by `certify`, arranged by `numgeom.report`, and written and
read here. All norms are 2-norms over all entries of a gradient; "relative" means divided by
the norm of the reference gradient.
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from numgeom.arithmetic.printing import upper
from numgeom.certificate.decisions import Decisions
from numgeom.certificate.kinks import Kink
from numgeom.certificate.nonfinite import NonFinite
from numgeom.certificate.sources import sources
from numgeom.certificate.store import SCHEMA, VERSION, check, fields, to_document
from numgeom.errors import FileFormatError, NumgeomError
from numgeom.results import store
from numgeom.results.accuracy import GradientAccuracy, combined_norm, relative
from numgeom.results.codec import BESIDE, decode
from numgeom.results.guarantee import Guarantee, weakest
from numgeom.results.origins import origin_of, remember
from numgeom.results.source import Source
from numgeom.visible import visible

# Provenance that holds a number, an upper bound, written so that it reads back unchanged.
CONSTANTS = ("h", "eta", "beta", "curvature", "rho", "failure probability")


class CertificateError(NumgeomError):
    """A certificate was asked for something that it cannot give."""


@dataclass(frozen=True)
class ModuleAccuracy:
    """How far the gradients of one module's own parameters are from the reference.

    Attributes:
        module: Path of the module; "" is the model itself.
        observed_error: Relative error of its parameters' gradients taken together.
        error_share: Its part of the squared error of the whole gradient, from 0 to 1; NaN
            where unknown.
        guarantee: Weakest level among its parameters.
    """

    module: str
    observed_error: float
    error_share: float
    guarantee: Guarantee


@dataclass(frozen=True)
class Certificate:
    """How wrong the gradient of one training step is.

    Attributes:
        guarantee: The weakest level of what the certificate was made from.
        method: How the errors were obtained; "reference" is comparison with a float64 replay.
        total: All gradients taken as one vector.
        parameters: Each parameter's gradient, by name, in model order.
        computed_loss: The loss of the recorded step, or None.
        reference_loss: The loss of the reference, or None.
        without_gradient: Parameters that ask for a gradient and got none.
        replay_is_identical: Whether a replay in the recorded formats gave the recorded
            gradients bit by bit; None if that was not tried.
        first_nonfinite: Where the first NaN or infinity that reached the loss or a gradient
            comes from; None if all of them are finite.
        unknown_ops: Operations without a rule, with their number of calls.
        unresolved_kinks: Units that might be on the other side of their kink, by call.
        decisions: Decisions that are part of the recorded step, as masks used as indices and
            numbers read by Python are; None where there are none.
        assumptions: What the numbers rest on.
        notes: What else a reader must know.
        seconds: Time that the certificate took.
        provenance: What was certified and with what, e.g. target, seed, versions.
        error_sources: What `sources` returns.
        entrywise_bounds: What `entrywise_bound` returns, by parameter.
    """

    DERIVED: ClassVar = ("constants",)

    guarantee: Guarantee
    method: str
    total: GradientAccuracy
    parameters: Mapping[str, GradientAccuracy]
    computed_loss: float | None = None
    reference_loss: float | None = None
    without_gradient: tuple[str, ...] = ()
    replay_is_identical: bool | None = None
    first_nonfinite: NonFinite | None = None
    unknown_ops: Counter[str] = field(default_factory=Counter)
    unresolved_kinks: tuple[Kink, ...] = ()
    assumptions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    provenance: Mapping[str, str] = field(default_factory=dict)
    error_sources: tuple[Source, ...] = ()
    entrywise_bounds: Mapping[str, Tensor] = field(
        default_factory=dict, repr=False, compare=False, metadata=BESIDE
    )
    decisions: Decisions | None = None

    def __str__(self) -> str:
        """Return one line; `numgeom.report` renders the whole."""
        total = self.total
        bound = "" if total.error_bound is None else f"at most {upper(total.error_bound)}, "
        return visible(
            f"Certificate({self.guarantee}, {len(self.parameters)} parameters, total error "
            f"{bound}observed {upper(total.observed_error)} relative, method {self.method!r})"
        )

    def entrywise_bound(self, name: str) -> Tensor:
        """Return a bound on |computed - exact| for every entry of one parameter's gradient.

        Raises:
            CertificateError: if there is no such parameter, or no bound.
        """
        if name not in self.parameters:
            known = ", ".join(map(visible, self.parameters))
            raise CertificateError(f"This certificate has no parameter {name!r}. It has: {known}.")
        if name not in self.entrywise_bounds:
            raise CertificateError(
                f"There is no entry-wise bound for {name!r}: the method {self.method!r} compares "
                "with a reference and does not bound the reference's own error (a certificate "
                "read from a JSON file has none either). Use `.parameters[name].observed_error` "
                "for the measured error."
            )
        return self.entrywise_bounds[name]

    def sources(self) -> tuple[Source, ...]:
        """Return where the observed error comes from, largest share first. ESTIMATED.

        By one noisy replay and one reverse pass over the program (`numgeom.certificate.sources`),
        at the first call. A certificate holds no program, so a copy, and one that was read from a
        file, has them if it was made after such a call; otherwise there are none. Where the program
        is at hand, `numgeom.certificate.sources(program)` gives them.
        """
        origin = origin_of(self)
        if self.error_sources or origin is None:
            return self.error_sources
        if not origin.found:
            origin.found.extend(sources(origin.program))
        return tuple(origin.found)

    @property
    def found_sources(self) -> tuple[Source, ...]:
        """What `sources` found so far; unlike it, this computes nothing."""
        origin = origin_of(self)
        return self.error_sources or (() if origin is None else tuple(origin.found))

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the Newton-Kantorovich theorem.

        "h" must be below 1; "eta", "beta", "curvature" and "rho" are in units of the scale, and
        "failure probability" is that of all bounds together. Empty where the method has none.
        """
        return {name: float(self.provenance[name]) for name in CONSTANTS if name in self.provenance}

    def worst_modules(self, count: int = 5) -> tuple[ModuleAccuracy, ...]:
        """Return the modules whose own parameters have the largest relative error.

        Modules whose error is unknown (NaN) come first: they need a look most of all.
        """
        modules: dict[str, list[GradientAccuracy]] = {}
        for name, accuracy in self.parameters.items():
            modules.setdefault(name.rpartition(".")[0], []).append(accuracy)
        rows = [self._module(module, members) for module, members in modules.items()]
        rows.sort(key=_worst_first)
        return tuple(rows[:count])

    def stamped(self, **provenance: str) -> "Certificate":
        """Return this certificate with more provenance: what was certified, with which seed."""
        stamped = dataclasses.replace(self, provenance={**self.provenance, **provenance})
        origin = origin_of(self)
        if origin is not None:
            remember(stamped, origin)
        return stamped

    def check(self) -> None:
        """Raise ValueError where it says what no certificate can say."""
        check(self)

    def to_json(self) -> str:
        """Return everything but the entry-wise bounds as strict JSON.

        The document names its schema and version. NaN and infinities, which JSON does not
        have, are the strings "NaN", "Infinity" and "-Infinity".
        """
        return store.to_text(to_document(self, {}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate: as JSON if the name ends in ".json", else with its tensors.

        Raises:
            FileFormatError: if the file cannot be written.
        """
        beside = {} if Path(path).suffix == ".json" else self.entrywise_bounds
        store.write(path, to_document(self, beside), beside)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Certificate":
        """Read a certificate that `save` wrote. Nothing in the file is ever executed.

        The checksum shows damage and careless edits. It is no signature: only `verify` shows that
        the numbers are true.

        Raises:
            FileFormatError: if the file is missing, damaged, changed, foreign, or of a later
                version, or says what no certificate can say.
        """
        document, tensors = store.read(path, schema=SCHEMA, version=VERSION)
        try:
            said = decode(cls, fields(document), "the certificate")
            certificate = dataclasses.replace(said, entrywise_bounds=tensors)
            certificate.check()
        except ValueError as error:
            raise FileFormatError(
                f"{path} is damaged, or of a later version: {error}. Save the certificate again."
            ) from error
        return certificate

    def _module(self, module: str, members: list[GradientAccuracy]) -> ModuleAccuracy:
        error = combined_norm(member.error_norm for member in members)
        norm = combined_norm(member.reference_norm for member in members)
        unknown = any(math.isnan(member.observed_error) for member in members)
        share = relative(error, self.total.error_norm) ** 2
        return ModuleAccuracy(
            module=module,
            observed_error=math.nan if unknown else relative(error, norm),
            error_share=math.nan if unknown or math.isinf(share) else share,
            guarantee=weakest(*(member.guarantee for member in members)),
        )


def _worst_first(row: ModuleAccuracy) -> tuple[bool, float]:
    unknown = math.isnan(row.observed_error)
    return (not unknown, 0.0 if unknown else -row.observed_error)
