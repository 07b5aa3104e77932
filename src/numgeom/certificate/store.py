"""How is a certificate written down, and how does its file show that it was changed?

The document carries a checksum of itself and of the entry-wise bounds beside it. It shows that a
file was damaged or edited, whatever machine reads it. It is no signature: whoever edits a file can
compute a new one. That the numbers are true is shown only by making them again
(`numgeom.certificate.verify`). The time that it took is no part of what a certificate says: two
certificates that say the same have the same checksum.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from numgeom.certificate.kinks import Kink
from numgeom.certificate.nonfinite import NonFinite
from numgeom.recording import tensor_digest
from numgeom.results import store
from numgeom.results.accuracy import GradientAccuracy
from numgeom.results.guarantee import Guarantee
from numgeom.results.source import Source

if TYPE_CHECKING:
    from numgeom.certificate.result import Certificate

SCHEMA = "numgeom.certificate"
VERSION = 1
_UNSAID = ("checksum", "seconds")


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
    return {**document, "checksum": checksum(document, tensors)}


def checksum(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a document says, and of the tensors beside it."""
    plain = {key: value for key, value in document.items() if key not in _UNSAID}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True)
    found = hashlib.sha256(text.encode())
    found.update(tensor_digest(dict(tensors)).encode())
    return found.hexdigest()


def fields(document: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the fields of a certificate; a wrong document raises a plain Python error."""
    rows = [GradientAccuracy.from_document(row) for row in document["parameters"]]
    first = document["first_nonfinite"]
    identical = document["replay_is_identical"]
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
        "assumptions": tuple(str(text) for text in document["assumptions"]),
        "notes": tuple(str(text) for text in document["notes"]),
        "seconds": store.decode_number(document["seconds"]),
        "provenance": {str(key): str(text) for key, text in document["provenance"].items()},
        "error_sources": tuple(_source(source) for source in document["sources"]),
        "entrywise_bounds": dict(tensors),
    }


def _source(document: Any) -> Source:
    return Source(
        op=str(document["op"]),
        module=str(document["module"]),
        phase=str(document["phase"]),
        source=str(document["source"]),
        error_share=store.decode_number(document["error_share"]),
        guarantee=Guarantee[document["guarantee"]],
    )
