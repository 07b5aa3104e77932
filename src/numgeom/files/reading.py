"""How is a text read that a stranger may have written?

JSON as RFC 8259 defines it and no more: no NaN or infinity, no key twice in one object, numbers
within 64 bits, text that can be printed, and not nested deeper than anything of ours.
"""

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numgeom.errors import FileFormatError

MOST_BYTES = 1 << 28
"""Size of the largest JSON text that is read, 256 MiB."""

DEEPEST = 64
"""How deep a JSON text may be nested."""

_MOST_DIGITS = 20  # of an integer: those of 2**64


def parse_json(text: str | bytes, path: object) -> Any:
    """Read a JSON text.

    Args:
        text: The text, as it was read from a file.
        path: The file, for errors.

    Raises:
        FileFormatError: if it is not the JSON that the package writes; names the file and why.
    """
    if len(text) > MOST_BYTES:
        raise FileFormatError(
            f"{path} holds a text of {len(text)} bytes; at most {MOST_BYTES} are read. "
            "No file of this package is that long."
        )
    try:
        # RFC 8259: UTF-8. Left to itself, json takes UTF-16 and UTF-32 as well.
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            plain,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{path} is damaged or no file of ours: {_reason(error)}. Save it again."
        ) from error
    return value


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Read a whole file, if it is one and not too large.

    Raises:
        FileFormatError: if it cannot be read, is no regular file, or has more than `most` bytes.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise FileFormatError(
            f"Cannot read {path}: {error.strerror or error}. Check the path."
        ) from error
    if len(content) > most:
        raise FileFormatError(
            f"{path} is larger than {most} bytes. No such file of this package is that large."
        )
    return content


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise if a path is no regular file: devices and pipes may never end.

    Raises:
        FileFormatError: if it is a folder, device or pipe.
        OSError: if it does not exist or may not be read.
    """
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:  # a null byte in the path
        raise FileFormatError(f"Cannot read {str(path)!r}: {error}. Check the path.") from error
    if not stat.S_ISREG(mode):
        raise FileFormatError(f"Cannot read {path}: it is no regular file. Check the path.")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"it holds an integer of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"it holds the number {digits[:30]}, which is out of range")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return found


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [item for part in level for item in _parts(part)]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST} deep")


def _parts(value: Any) -> Iterable[Any]:
    """What a value holds; texts that are no Unicode (lone surrogates) raise ValueError."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str) and not value.isascii():
        value.encode("utf-8")
    return ()


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is nested more than {DEEPEST} deep"
    if isinstance(error, UnicodeError):
        return "it is no text in UTF-8"
    text = str(error).partition("\n")[0][:200]
    return f"it is no JSON ({text})" if isinstance(error, json.JSONDecodeError) else text
