"""How are tensors kept in a file beside a document?

A file is a plain zip archive without compression: `document.json`, `tensors.json` (format, shape,
strides and device of every tensor) and one member of raw little-endian bytes per tensor. Reading it
takes no more memory than a small multiple of the file's size, and runs no code from it. Files of
version 0.1, which torch.save wrote, are read by `numgeom.files.torch_archive`.
"""

import json
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from numgeom.errors import FileFormatError
from numgeom.files import reading, writing
from numgeom.files.layout import Layout, bytes_of, layout_of, plain_tensor, tensor_from
from numgeom.files.members import BLOCK, content_of, members_of
from numgeom.files.torch_archive import read_torch_archive

_DOCUMENT, _TABLE = "document.json", "tensors.json"
_FOLDER = "tensors/"


@dataclass(frozen=True)
class Archive:
    """What a file holds.

    Attributes:
        document: The text that describes the rest; of an old file "", and `content` has all.
        tensors: The tensors, by name.
        content: Of a file that torch.save wrote: the dictionary in it. None of other files.
    """

    document: str
    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any] | None = None


def write_archive(
    path: str | os.PathLike[str], document: str, tensors: Mapping[str, Tensor]
) -> None:
    """Write a document and tensors, whole or not at all. Layout in memory and device are kept.

    Raises:
        FileFormatError: if the file cannot be written, or a tensor is of a kind that no file
            holds.
    """
    plain = {name: plain_tensor(name, tensor) for name, tensor in tensors.items()}
    layouts = [layout_of(name, tensor) for name, tensor in plain.items()]
    table = json.dumps([layout.to_row() for layout in layouts], ensure_ascii=True)

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, text in ((_DOCUMENT, document), (_TABLE, table)):
                archive.writestr(zipfile.ZipInfo(name), text.encode("utf-8"))
            for i, layout in enumerate(layouts):
                member = zipfile.ZipInfo(f"{_FOLDER}{i}")
                content = bytes_of(plain[layout.name])
                with archive.open(member, "w", force_zip64=len(content) > 1 << 30) as to:
                    for start in range(0, len(content), BLOCK):
                        to.write(content[start : start + BLOCK])

    writing.write_atomically(path, write)


def is_archive(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip archive."""
    return start[:2] == b"PK"


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read what `write_archive` wrote, or torch.save in version 0.1 of the package.

    Raises:
        FileFormatError: if the file cannot be read, is damaged or foreign; says why.
    """
    try:
        reading.check_regular(path)
        size = os.path.getsize(path)
        with zipfile.ZipFile(path) as archive:
            members = members_of(archive, size)
            if _DOCUMENT in members:
                return _read(archive, members, path)
            return Archive("", {}, read_torch_archive(archive, members))
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(
            f"Cannot read {path}: {error.strerror or error}. Check the path."
        ) from error
    except _DAMAGE as error:
        raise FileFormatError(
            f"{path} is damaged or no file of ours: {_reason(error)}. Save it again."
        ) from error


# What zipfile, struct and the readers below raise for what is not as it should be.
_DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OverflowError,
    MemoryError,
)


def _read(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], path: Any) -> Archive:
    for name in (_DOCUMENT, _TABLE):
        if members[name].file_size > reading.MOST_BYTES:
            raise ValueError(f"its member {name} has more than {reading.MOST_BYTES} bytes")
    document = archive.read(members[_DOCUMENT]).decode("utf-8")
    rows = reading.parse_json(archive.read(members[_TABLE]), path)
    layouts = [Layout.from_row(row) for row in rows]
    names = {f"{_FOLDER}{i}" for i in range(len(layouts))}
    if names != members.keys() - {_DOCUMENT, _TABLE}:
        raise ValueError("its list of tensors is not that of its members")
    if len({layout.name for layout in layouts}) < len(layouts):
        raise ValueError("two of its tensors have the same name")
    tensors = {}
    for i, layout in enumerate(layouts):
        content = content_of(archive, members[f"{_FOLDER}{i}"])
        tensors[layout.name] = tensor_from(layout, content)
    return Archive(document, tensors)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory for what it says it holds"
    text = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) or not text else text
