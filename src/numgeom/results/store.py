"""How does a result reach a file, and come back unchanged?

A document (nested dicts, lists, strings, numbers) is written as strict JSON, or, where
tensors belong to it, as an archive (`numgeom.files.archive`). NaN and infinities, which JSON does
not have, are the strings "NaN", "Infinity", "-Infinity". A checksum over the whole is tested at
every load.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from numgeom.errors import FileFormatError
from numgeom.files import reading, writing
from numgeom.files.archive import is_archive, read_archive, write_archive
from numgeom.files.layout import span
from numgeom.recording import tensor_digest
from numgeom.visible import visible_json

Document = dict[str, Any]

_NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode_number(value: float | None) -> float | str | None:
    """Return what stands for a number in JSON."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def decode_number(value: object) -> float:
    """Return the number that `encode_number` wrote.

    Raises:
        ValueError: if `value` does not stand for a number.
    """
    if isinstance(value, str) and value in _NAMED:
        return _NAMED[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def decode_optional(value: object) -> float | None:
    """Return the number that `encode_number` wrote, or None."""
    return None if value is None else decode_number(value)


def to_text(document: Document) -> str:
    """Write a document as strict JSON, readable and with its keys in the given order."""
    return visible_json(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def sealed(document: Document, tensors: Mapping[str, Tensor] | None = None) -> Document:
    """Return a document with its checksum, over all it says and the tensors beside it."""
    plain = {key: value for key, value in document.items() if key != CHECKSUM}
    return {**plain, CHECKSUM: checksum(plain, tensors or {})}


def checksum(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a document says, and of the tensors beside it.

    It shows that a file was damaged or edited, whatever machine reads it. It is no signature:
    whoever edits a file can compute a new one. The time that a result took is no part of it.
    """
    plain = {key: value for key, value in document.items() if key not in _UNSAID}
    text = json.dumps(plain, sort_keys=True, ensure_ascii=True)
    found = hashlib.sha256(text.encode())
    found.update(tensor_digest(dict(tensors)).encode())
    return found.hexdigest()


CHECKSUM = "checksum"
_UNSAID = (CHECKSUM, "seconds")


class ChecksumError(FileFormatError):
    """A file is not as it was written."""


def write(
    path: str | os.PathLike[str], document: Document, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write a document, as JSON if the name ends in ".json", else with its tensors.

    The file appears whole or not at all. A JSON file leaves the tensors out. The checksum, if the
    document has one, is over what is written.

    Raises:
        FileFormatError: if the file cannot be written; the old one is unchanged.
    """
    beside = {} if Path(path).suffix == ".json" else dict(tensors or {})
    if CHECKSUM in document:
        document = sealed(document, beside)
    if Path(path).suffix == ".json":
        writing.write_text(path, to_text(document) + "\n")
    else:
        write_archive(path, to_text(document), beside)


def read(
    path: str | os.PathLike[str], *, schema: str, version: int, sealed_from: int = 1
) -> tuple[Document, dict[str, Tensor]]:
    """Read what `write` wrote, in either form, and test its checksum.

    Args:
        path: The file.
        schema: The schema name that the document must carry.
        version: The newest schema version that the caller understands.
        sealed_from: The first schema version whose documents have a checksum.

    Returns:
        The document, and the tensors that belong to it (none in a JSON file).

    Raises:
        ChecksumError: if the file is not as it was written.
        FileFormatError: if the file is missing, damaged, foreign, or of a later version.
    """
    source = Path(path)
    content, tensors = _content(source)
    document = reading.parse_json(content, source)
    if not isinstance(document, dict):
        raise FileFormatError(f"{source} is JSON, but not a result of ours: its top is no object.")
    _check_schema(document, source, schema=schema, version=version)
    if CHECKSUM not in document and document["version"] < sealed_from:
        return document, tensors
    if document.get(CHECKSUM) != checksum(document, tensors):
        raise ChecksumError(
            f"{source} was changed after it was written, or is damaged: its checksum does not fit "
            "the rest of the file, so none of its numbers is to be believed. Get the file again "
            "from where it was made, or make the result again."
        )
    return document, tensors


def _content(source: Path) -> tuple[bytes | str, dict[str, Tensor]]:
    try:
        reading.check_regular(source)
        with source.open("rb") as file:
            is_zip = is_archive(file.read(2))
    except OSError as error:
        raise FileFormatError(
            f"Cannot read {source}: {error.strerror or error}. Check the path."
        ) from error
    if not is_zip:
        return reading.read_bytes(source), {}
    archive = read_archive(source)
    document, tensors = archive.document, archive.tensors
    if archive.content is not None:  # written by torch.save
        document, tensors = archive.content.get("document"), archive.content.get("tensors")
    if not isinstance(document, str):
        raise FileFormatError(f"{source} is an archive, but not a result of ours.")
    if not isinstance(tensors, Mapping) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in tensors.items()
    ):
        raise FileFormatError(f"{source} is damaged: its tensors are missing.")
    for name, tensor in tensors.items():
        if tensor.numel() > span(tuple(tensor.shape), tensor.stride()):
            raise FileFormatError(
                f"{source} is damaged: its tensor {name[:60]!r} claims {tensor.numel()} entries "
                "and stores fewer."
            )
    return document, dict(tensors)


def _check_schema(document: Document, source: Path, *, schema: str, version: int) -> None:
    if document.get("schema") != schema:
        raise FileFormatError(
            f"{source} holds {str(document.get('schema', 'something without a schema'))[:60]!r}, "
            f"not {schema!r}. Load it with the class that wrote it."
        )
    found = document.get("version")
    if type(found) is not int or not 1 <= found <= version:
        raise FileFormatError(
            f"{source} has version {str(found)[:30]} of {schema!r}; this release reads up to "
            f"{version}. Update numgeom, or save the result again."
        )
