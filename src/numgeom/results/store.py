"""How does a result reach a file, and come back, without ever unpickling?

A document (nested dicts, lists, strings, numbers) is written as strict JSON, or, where
tensors belong to it, as a `torch.save` file that is only ever read with `weights_only=True`.
NaN and infinities, which JSON does not have, are the strings "NaN", "Infinity", "-Infinity".
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from numgeom.errors import FileFormatError
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


def write(
    path: str | os.PathLike[str], document: Document, tensors: Mapping[str, Tensor] | None = None
) -> None:
    """Write a document, as JSON if the name ends in ".json", else as a torch file.

    The file appears whole or not at all. A JSON file leaves the tensors out.

    Raises:
        FileFormatError: if the file cannot be written.
    """
    target = Path(path)
    part = target.with_name(f"{target.name}.part")
    try:
        if target.suffix == ".json":
            part.write_text(to_text(document) + "\n", encoding="utf-8")
        else:
            copies = {name: t.detach().cpu().clone() for name, t in (tensors or {}).items()}
            torch.save({"document": to_text(document), "tensors": copies}, part)
        part.replace(target)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise FileFormatError(
            f"Cannot write {target}: {error}. Check that the folder exists, may be written to, "
            "and that the disk is not full."
        ) from error


def read(
    path: str | os.PathLike[str], *, schema: str, version: int
) -> tuple[Document, dict[str, Tensor]]:
    """Read what `write` wrote, in either form.

    Args:
        path: The file.
        schema: The schema name that the document must carry.
        version: The newest schema version that the caller understands.

    Returns:
        The document, and the tensors that belong to it (none in a JSON file).

    Raises:
        FileFormatError: if the file is missing, damaged, foreign, or of a later version.
    """
    source = Path(path)
    tensors: dict[str, Tensor] = {}
    try:
        with source.open("rb") as file:
            is_zip = file.read(2) == b"PK"  # what torch.save writes is a zip archive
        content: bytes | str = b"" if is_zip else source.read_bytes()
    except OSError as error:
        raise FileFormatError(f"Cannot read {source}: {error}. Check the path.") from error
    if is_zip:
        content, tensors = _unpack(source)
    document = _parse(content, source)
    _check_schema(document, source, schema=schema, version=version)
    return document, tensors


def _parse(content: bytes | str, source: Path) -> Document:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{source} is damaged or no file of ours: it is neither JSON nor a torch file "
            f"({error}). Save the result again."
        ) from error
    if not isinstance(document, dict):
        raise FileFormatError(f"{source} is JSON, but not a result of ours: its top is no object.")
    return document


def _unpack(source: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        held = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in any way it likes
        raise FileFormatError(
            f"{source} is damaged, or holds objects that are never loaded from a file: "
            f"{str(error).partition(chr(10))[0]} Save the result again."
        ) from error
    if not isinstance(held, dict) or not isinstance(held.get("document"), str):
        raise FileFormatError(f"{source} is a torch file, but not a result of ours.")
    tensors = held.get("tensors")
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in tensors.items()
    ):
        raise FileFormatError(f"{source} is damaged: its tensors are missing.")
    return held["document"], tensors


def _check_schema(document: Document, source: Path, *, schema: str, version: int) -> None:
    if document.get("schema") != schema:
        raise FileFormatError(
            f"{source} holds {document.get('schema', 'something without a schema')!r}, "
            f"not {schema!r}. Load it with the class that wrote it."
        )
    found = document.get("version")
    if not isinstance(found, int) or not 1 <= found <= version:
        raise FileFormatError(
            f"{source} has version {found!r} of {schema!r}; this release reads up to {version}. "
            "Update numgeom, or save the result again."
        )
