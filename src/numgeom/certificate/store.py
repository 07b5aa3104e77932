"""How is a certificate written down?

The document carries a checksum of itself and of the entry-wise bounds beside it
(`numgeom.results.store`). That the numbers are true is shown only by making them again
(`numgeom.certificate.verify`). The time that it took is no part of what a certificate says: two
certificates that say the same have the same checksum.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from numgeom.results import store
from numgeom.results.codec import encode
from numgeom.results.guarantee import Guarantee

if TYPE_CHECKING:
    from numgeom.certificate.result import Certificate

SCHEMA = "numgeom.certificate"
VERSION = 1
_UNITS = {
    "computed_norm": "absolute, 2-norm",
    "reference_norm": "absolute, 2-norm",
    "error_norm": "absolute, 2-norm",
    "observed_error": "relative to reference_norm",
    "error_bound": "relative, 2-norm, against the exact gradient",
    "radius": "absolute, 2-norm",
    "largest_entry_error": "absolute",
    "digits": "decimal",
    "seconds": "s",
}


def to_document(certificate: "Certificate", tensors: Mapping[str, Tensor]) -> store.Document:
    """Return everything but the tensors as it is written to a file, with its checksum.

    Args:
        certificate: What to write.
        tensors: The entry-wise bounds that will stand beside it; none in a JSON file.
    """
    found = encode(certificate)
    del found["error_sources"]
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "units": _UNITS,
        **found,
        "sources": encode(certificate.found_sources),
    }
    if certificate.decisions is None:
        del document["decisions"]
    return store.sealed(document, tensors)


def fields(document: store.Document) -> store.Document:
    """The part of a document that `decode` reads as a certificate."""
    found = {key: value for key, value in document.items() if key not in _AROUND}
    if "sources" in found:
        found["error_sources"] = found.pop("sources")
    return found


_AROUND = ("schema", "version", "units", store.CHECKSUM)


def check(certificate: "Certificate") -> None:
    """Raise where a certificate says what no certificate can say.

    Raises:
        ValueError: names the field.
    """
    for name, row in certificate.parameters.items():
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
