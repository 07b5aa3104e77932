"""Does a certificate say what it said when it was made, and is it one of this step?

The certificate holds digests of the recorded program, the seed of its probes, its constants and
versions. To verify it is to make it again, in the same way, and to compare every field, bit for
bit. Where that fails, the file's checksum tells a changed file from an honest one, and versions and
machine tell whether the same bits could be expected at all.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from numgeom.arithmetic.printing import upper
from numgeom.certificate.certify import certify
from numgeom.certificate.circumstances import NAMES
from numgeom.certificate.comparison import unequal
from numgeom.certificate.result import Certificate, CertificateError
from numgeom.certificate.store import SCHEMA, VERSION, to_document
from numgeom.failures import answers
from numgeom.recording import MISSING
from numgeom.results import store
from numgeom.visible import visible

Progress = Callable[[str, int, int], None]

# What is needed to make it again.
_NEEDED = (
    "program", "judged gradients", "asked method", "asked failure probability", "probe seed",
    "replay checked",
)  # fmt: skip
# Provenance that is compared; the rest was added by whoever certified.
_COMPARED = (
    *_NEEDED,
    "replay device",
    "step",
    "h",
    "eta",
    "beta",
    "curvature",
    "rho",
    "failure probability",
)
# Fields that may differ between two honest certificates of one step.
_VOLATILE = {
    "seconds": "the time that it took",
    "sources": "ESTIMATED, by draws of their own",
    "checksum": "of the file, not of the step",
}


class Verdict(Enum):
    """What came out of making a certificate again."""

    VERIFIED = "verified"  # it says the same, bit for bit
    CHANGED = "changed"  # the file is not as it was written
    OTHER = "other"  # an unchanged file, about another step or other bits
    ELSEWHERE = "elsewhere"  # other versions or another machine, where other bits may be right


@dataclass(frozen=True)
class Verification:
    """Whether a certificate was found true.

    Attributes:
        verdict: What came out; only VERIFIED vouches for the certificate.
        differences: What differs, as "field: the file says A, found B".
        circumstances: Versions and machine, where they differ from those of the certificate.
        again: The certificate that was made for comparison; None of a file that was changed after
            it was written, for which nothing is run.
        same_step: Whether calls, parameters and data are those of the certificate; None if it
            does not say. The gradients may still have other bits.
        said_bound: Bound of the total relative error that the certificate states, or None.
        not_compared: Fields of the certificate that this says nothing about, each with the reason.
    """

    verdict: Verdict
    differences: tuple[str, ...]
    circumstances: tuple[str, ...]
    again: Certificate | None = None
    same_step: bool | None = None
    said_bound: float | None = None
    not_compared: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether every field agrees with the certificate that was made again."""
        return self.verdict is Verdict.VERIFIED

    def __bool__(self) -> bool:
        """Whether it was verified."""
        return self.verified

    def __str__(self) -> str:
        """Return the verdict in a few sentences, the last of which names what was not compared."""
        text = self._sentences()
        if self.not_compared:
            text = f"{text.rstrip()} Not compared: {'; '.join(self.not_compared)}."
        return visible(text)

    def _sentences(self) -> str:
        if self.verified:
            text = "Verified: made again, the certificate says the same."
            if self.circumstances:
                text += f" It says it was made elsewhere ({'; '.join(self.circumstances)})."
            return text
        what = "; ".join(self.differences[:5]) or "a field that does not follow from the step"
        more = len(self.differences) - 5
        what += f"; and {more} more" if more > 0 else ""
        if self.verdict is Verdict.CHANGED:
            return f"Not verified, the file was changed after it was written: {what}."
        if self.verdict is Verdict.OTHER:
            return f"Not verified: {what}."
        text = (
            "Not verified here: the certificate was made elsewhere ("
            + "; ".join(self.circumstances)
            + "), where other bits may be right, so this neither confirms nor refutes it. "
        )
        if self.same_step is not None:
            text += f"It is about {'this' if self.same_step else 'another'} step. "
        ours = None if self.again is None else self.again.total.error_bound
        if self.said_bound is not None and ours is not None:
            text += (
                f"Its bound of the total relative error is {upper(self.said_bound)}, made again "
                f"here it is {upper(ours)}. "
            )
        return text + f"What differs: {what}."


@answers("verify")
def verify(
    certificate: Certificate | str | os.PathLike[str],
    subject: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    computed: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Make a certificate again and compare.

    A file whose checksum does not fit is not compared: nothing is run for it.

    Args:
        certificate: The certificate, or the file that holds it.
        subject: Model, step or program that it is said to be about; as for `certify`.
        loss_fn: With a model only.
        batch: With a model only.
        computed: The gradients that were judged, if they were given from elsewhere.
        progress: Told what is being done.

    Returns:
        The verdict, with what differs.

    Raises:
        CertificateError: if the certificate does not say how it was made, or judged gradients that
            are not given.
        FileFormatError: if the file is missing, damaged, foreign, or of a later version.
    """
    # A file is compared as it is written: fields that follow from others may be wrong, too.
    if isinstance(certificate, Certificate):
        document = to_document(certificate, {})
    else:
        try:
            document, _ = store.read(certificate, schema=SCHEMA, version=VERSION)
        except store.ChecksumError:
            return Verification(
                Verdict.CHANGED, ("checksum: it does not fit the rest of the file",), ()
            )
        certificate = Certificate.load(certificate)
    again = _made_again(certificate, subject, loss_fn, batch, computed, progress)
    differences = tuple(_differences(certificate, document, again))
    circumstances = tuple(_changed_circumstances(certificate.provenance, again.provenance))
    if not differences:
        verdict = Verdict.VERIFIED
    else:
        verdict = Verdict.ELSEWHERE if circumstances else Verdict.OTHER
    step = certificate.provenance.get("step")
    return Verification(
        verdict,
        differences,
        circumstances,
        again,
        same_step=None if step is None else step == again.provenance["step"],
        said_bound=certificate.total.error_bound,
        not_compared=tuple(_not_compared(document, certificate.entrywise_bounds)),
    )


def _made_again(
    certificate: Certificate,
    subject: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    batch: Any,
    computed: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Certificate:
    said = certificate.provenance
    missing = [name for name in _NEEDED if name not in said]
    if missing:
        raise CertificateError(
            f"The certificate does not say how it was made: {', '.join(missing)} missing from its "
            "provenance. It is of an older version, or was cut; make it again."
        )
    if (said["judged gradients"] != "recorded") != (computed is not None):
        raise CertificateError(
            "The certificate judged gradients that were given from elsewhere; pass them as "
            "computed=..."
            if computed is None
            else "The certificate judged the recorded gradients; leave computed= away."
        )
    try:
        probability, seed = float(said["asked failure probability"]), int(said["probe seed"])
        threads = int(said.get("threads", torch.get_num_threads()))
        device = torch.device(said["replay device"]) if said.get("replay device") else None
    except (ValueError, RuntimeError) as error:
        raise CertificateError(f"The certificate's provenance is damaged: {error}.") from error
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, min(threads, 1024)))
        return certify(
            subject,
            loss_fn,
            batch,
            method=said["asked method"],
            computed=computed,
            device=device,
            failure_probability=probability,
            probe_seed=seed,
            check_replay=said["replay checked"] == "True",
            progress=progress,
        )
    finally:
        torch.set_num_threads(before)


def _changed_circumstances(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in NAMES:
        if then.get(name) != now.get(name):
            yield f"{name} {then.get(name, 'unknown')} then, {now.get(name, 'unknown')} now"
    one, other = (said.get("device", "cpu").partition(":")[0] for said in (then, now))
    if one != other:
        yield f"device {one} then, {other} now"


def _differences(
    one: Certificate, document: Mapping[str, Any], other: Certificate
) -> Iterator[str]:
    said, found = one.provenance, other.provenance
    if said["program"] != found["program"]:
        if "step" in said and said["step"] == found["step"]:
            yield "program: the step is the same, but it gave gradients of other bits"
        else:
            yield "program: the certificate is about another step"
    again = to_document(other, {})
    if "constants" not in document:  # files of version 0.1.0 have them as provenance alone
        del again["constants"]
    yield from unequal(_comparable(document), _comparable(again))
    if not one.entrywise_bounds:  # a JSON file has none
        return
    for name in dict.fromkeys((*one.entrywise_bounds, *other.entrywise_bounds)):
        bounds, known = one.entrywise_bounds.get(name), other.entrywise_bounds.get(name)
        if bounds is None or known is None:
            yield f"entry-wise bounds of {name}: {'not' if bounds is None else 'only'} in the file"
        elif bounds.dtype != known.dtype or not torch.equal(bounds, known):
            yield f"entry-wise bounds of {name}: they differ"


def _not_compared(document: Mapping[str, Any], bounds: Mapping[str, Tensor]) -> Iterator[str]:
    """Name the fields that `_differences` passes over, and say why."""
    yield from (f"{name} ({_VOLATILE[name]})" for name in _VOLATILE if document.get(name))
    told = [name for name in document["provenance"] if name not in (*_COMPARED, *NAMES, "device")]
    if told:
        yield f"provenance: {', '.join(told)} (words of whoever made it)"
    if "threads" in document["provenance"]:
        yield "threads (as many were used again)"
    if not bounds and document["method"] != "reference":
        yield "entry-wise bounds (a JSON file has none)"


def _comparable(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that two honest certificates of one step have in common."""
    provenance = document["provenance"]
    kept = {key: provenance.get(key) for key in _COMPARED if key != "program"}
    rest = {key: value for key, value in document.items() if key not in _VOLATILE}
    return {**rest, "provenance": kept}
