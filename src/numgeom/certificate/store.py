"""How is a certificate written down?

The document carries a checksum of itself and of the entry-wise bounds beside it
(`numgeom.results.store`). That the numbers are true is shown only by making them again
(`numgeom.certificate.verify`). The time that it took is no part of what a certificate says: two
certificates that say the same have the same checksum.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from numgeom.certificate.decisions import Decisions
from numgeom.certificate.kinks import Kink
from numgeom.certificate.nonfinite import NonFinite
from numgeom.results import store
from numgeom.results.accuracy import GradientAccuracy
from numgeom.results.guarantee import Guarantee
from numgeom.results.source import Source

if TYPE_CHECKING:
    from numgeom.certificate.result import Certificate

SCHEMA = "numgeom.certificate"
VERSION = 1
_FIELDS = (
    "guarantee", "method", "total", "parameters", "computed_loss", "reference_loss",
    "without_gradient", "replay_is_identical", "first_nonfinite", "unknown_ops",
    "unresolved_kinks", "sources", "assumptions", "notes", "seconds", "provenance", "decisions",
)  # fmt: skip


def to_document(certificate: "Certificate", tensors: Mapping[str, Tensor]) -> store.Document:
    """Return everything but the tensors as it is written to a file, with its checksum.

    Args:
        certificate: What to write.
        tensors: The entry-wise bounds that will stand beside it; none in a JSON file.
    """
    number = store.encode_number
    first = certificate.first_nonfinite
    document: store.Document = {
        "schema": SCHEMA,
        "version": VERSION,
        "guarantee": certificate.guarantee.name,
        "method": certificate.method,
        "units": {
            "computed_norm": "absolute, 2-norm",
            "reference_norm": "absolute, 2-norm",
            "error_norm": "absolute, 2-norm",
            "observed_error": "relative to reference_norm",
            "error_bound": "relative, 2-norm, against the exact gradient",
            "radius": "absolute, 2-norm",
            "largest_entry_error": "absolute",
            "digits": "decimal",
            "seconds": "s",
        },
        "total": certificate.total.to_document(),
        "parameters": [row.to_document() for row in certificate.parameters.values()],
        "computed_loss": number(certificate.computed_loss),
        "reference_loss": number(certificate.reference_loss),
        "without_gradient": list(certificate.without_gradient),
        "replay_is_identical": certificate.replay_is_identical,
        "first_nonfinite": None if first is None else first.to_document(),
        "unknown_ops": dict(certificate.unknown_ops),
        "unresolved_kinks": [kink.to_document() for kink in certificate.unresolved_kinks],
        "sources": [
            {
                **dataclasses.asdict(source),
                "error_share": number(source.error_share),
                "guarantee": source.guarantee.name,
            }
            for source in certificate.found_sources
        ],
        "assumptions": list(certificate.assumptions),
        "notes": list(certificate.notes),
        "seconds": number(certificate.seconds),
        "provenance": dict(certificate.provenance),
    }
    if certificate.decisions is not None:
        document["decisions"] = certificate.decisions.to_document()
    return store.sealed(document, tensors)


def fields(document: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the fields of a certificate; a wrong document raises a plain Python error."""
    known = {*_FIELDS, "schema", "version", "units", store.CHECKSUM}
    for key in document:
        if key not in known:
            raise ValueError(f"the field {str(key)[:60]!r} is not known")
    rows = [GradientAccuracy.from_document(row) for row in document["parameters"]]
    if len({row.name for row in rows}) < len(rows):
        raise ValueError("a parameter is there twice")
    first = document["first_nonfinite"]
    identical = document["replay_is_identical"]
    decisions = document.get("decisions")  # older files have none
    return {
        "guarantee": Guarantee[document["guarantee"]],
        "method": str(document["method"]),
        "total": GradientAccuracy.from_document(document["total"]),
        "parameters": {row.name: row for row in rows},
        "computed_loss": store.decode_optional(document["computed_loss"]),
        "reference_loss": store.decode_optional(document["reference_loss"]),
        "without_gradient": tuple(str(name) for name in document["without_gradient"]),
        "replay_is_identical": None if identical is None else bool(identical),
        "first_nonfinite": None if first is None else NonFinite.from_document(first),
        "unknown_ops": Counter({str(op): int(n) for op, n in document["unknown_ops"].items()}),
        "unresolved_kinks": tuple(
            Kink.from_document(kink) for kink in document["unresolved_kinks"]
        ),
        "decisions": None if decisions is None else Decisions.from_document(decisions),
        "assumptions": tuple(str(text) for text in document["assumptions"]),
        "notes": tuple(str(text) for text in document["notes"]),
        "seconds": store.decode_number(document["seconds"]),
        "provenance": {str(key): str(text) for key, text in document["provenance"].items()},
        "error_sources": tuple(_source(source) for source in document["sources"]),
        "entrywise_bounds": dict(tensors),
    }


def check(certificate: "Certificate") -> None:
    """Raise where a certificate says what no certificate can say.

    Raises:
        ValueError: names the field.
    """
    certificate.total.check()
    for name, row in certificate.parameters.items():
        row.check()
        if row.entries != math.prod(row.shape):
            raise ValueError(f"the shape of {name[:60]!r} does not have its number of entries")
    if certificate.guarantee > certificate.total.guarantee:
        raise ValueError("the guarantee is stronger than that of the total error")
    if certificate.unknown_ops and certificate.guarantee > Guarantee.NONE:
        raise ValueError("there are ops without a rule, and yet a guarantee")
    if any(count < 1 for count in certificate.unknown_ops.values()):
        raise ValueError("an op without a rule is counted wrongly")
    if certificate.seconds < 0.0:
        raise ValueError("seconds is negative")
    if any(value < 0.0 for value in certificate.constants.values()):
        raise ValueError("a constant of the theorem is negative")
    for name, bound in certificate.entrywise_bounds.items():
        row = certificate.parameters.get(name)
        if row is None or row.error_bound is None or tuple(bound.shape) != row.shape:
            raise ValueError(f"entry-wise bounds of {name[:60]!r} belong to no bounded gradient")
        if bound.dtype is not torch.float64 or not bool((bound >= 0.0).all()):
            raise ValueError(f"entry-wise bounds of {name[:60]!r} bound nothing")


def _source(document: Any) -> Source:
    return Source(
        op=str(document["op"]),
        module=str(document["module"]),
        phase=str(document["phase"]),
        source=str(document["source"]),
        error_share=store.decode_number(document["error_share"]),
        guarantee=Guarantee[document["guarantee"]],
    )
