"""Does a certificate say what it said when it was made, and is it one of this step?

The certificate holds a digest of the recorded program, the seed of its probes, its constants and
versions. To verify it is to make it again, in the same way, and to compare every field.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from numgeom.certificate.certify import MISSING, certify
from numgeom.certificate.result import SCHEMA, VERSION, Certificate, CertificateError
from numgeom.results import store

Progress = Callable[[str, int, int], None]

# Fields that may differ between two honest certificates of one step.
_VOLATILE = frozenset({"seconds", "sources"})
# Provenance that says how to make it again; the rest was added by whoever certified.
_MADE_BY = (
    "program", "judged gradients", "asked method", "asked failure probability", "probe seed",
    "replay checked", "h", "eta", "beta", "curvature", "rho", "failure probability",
)  # fmt: skip
_CIRCUMSTANCES = ("torch", "numgeom", "cpu", "threads", "device")


@dataclass(frozen=True)
class Verification:
    """Whether a certificate was found true.

    Attributes:
        verified: Whether every field agrees with the certificate that was made again.
        differences: What differs, as "field: the file says A, found B".
        circumstances: Versions and machine, where they differ from those of the certificate.
        again: The certificate that was made for comparison.
    """

    verified: bool
    differences: tuple[str, ...]
    circumstances: tuple[str, ...]
    again: Certificate

    def __str__(self) -> str:
        """Return the verdict in one or a few sentences."""
        if self.verified:
            return "Verified: made again, the certificate says the same."
        reason = "; ".join(self.differences[:5])
        more = len(self.differences) - 5
        text = f"NOT VERIFIED: {reason}" + (f"; and {more} more" if more > 0 else "") + "."
        if self.circumstances:
            text += (
                " The circumstances differ, too, which may be the reason: "
                + "; ".join(self.circumstances)
                + "."
            )
        return text

    def __bool__(self) -> bool:
        """Whether it was verified."""
        return self.verified


def verify(
    certificate: Certificate | str | os.PathLike[str],
    subject: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    batch: Any = MISSING,
    *,
    computed: Mapping[str, Tensor | None] | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Make a certificate again and compare.

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
    document: Any = None
    if not isinstance(certificate, Certificate):
        # As it is written: fields that follow from others are compared, too.
        document, _ = store.read(certificate, schema=SCHEMA, version=VERSION)
        certificate = Certificate.load(certificate)
    said = certificate.provenance
    missing = [name for name in _MADE_BY[:6] if name not in said]
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
    except ValueError as error:
        raise CertificateError(f"The certificate's provenance is damaged: {error}.") from error
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, min(threads, 1024)))
        again = certify(
            subject,
            loss_fn,
            batch,
            method=said["asked method"],
            computed=computed,
            failure_probability=probability,
            probe_seed=seed,
            check_replay=said["replay checked"] == "True",
            progress=progress,
        )
    finally:
        torch.set_num_threads(before)
    differences = tuple(_differences(certificate, document, again))
    circumstances = tuple(
        f"{name} {said.get(name, 'unknown')} then, {again.provenance.get(name)} now"
        for name in _CIRCUMSTANCES
        if not str(said.get(name)).startswith(str(again.provenance.get(name)).partition(":")[0])
    )
    return Verification(not differences, differences, circumstances, again)


def _differences(one: Certificate, document: Any, other: Certificate) -> Iterator[str]:
    if one.provenance["program"] != other.provenance["program"]:
        yield (
            "program: the certificate is about another step, or the step does not give the same "
            "bits here"
        )
    a = json.loads(one.to_json()) if document is None else dict(document)
    b = json.loads(other.to_json())
    for each in (a, b):
        each["provenance"] = {
            key: value for key, value in each["provenance"].items() if key in _MADE_BY[1:]
        }
        for key in _VOLATILE:
            each.pop(key, None)
    yield from _unequal(a, b, "")
    for name, bounds in one.entrywise_bounds.items():
        found = other.entrywise_bounds.get(name)
        if found is None or not torch.equal(found, bounds):
            yield f"entry-wise bounds of {name}: they differ"


def _unequal(a: Any, b: Any, path: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys((*a, *b)):
            yield from _unequal(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            name = x.get("name", i) if isinstance(x, dict) else i
            yield from _unequal(x, y, f"{path}[{name}]")
    elif a != b:
        yield f"{path}: the file says {_short(a)}, found {_short(b)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
