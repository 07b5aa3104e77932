"""Which members does a zip archive have, and what is in them?"""

import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 24  # bytes that are read or written at once


def members_of(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name; none compressed, and together no larger than the file."""
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise ValueError("a member of the archive is there twice")
    for info in members.values():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"its member {info.filename[:60]!r} is compressed")
    if sum(info.file_size for info in members.values()) > size:
        raise ValueError("its members claim to be larger than the file")
    return members


def content_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    """The bytes of a member, in memory that torch allocated; its checksum is tested."""
    content = torch.empty(member.file_size, dtype=torch.uint8)
    room = content.numpy().data
    filled = 0
    with archive.open(member) as file:
        for block in _blocks(file):
            room[filled : filled + len(block)] = block
            filled += len(block)
    if filled != member.file_size:
        raise ValueError(f"its member {member.filename} is cut off")
    return content


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block
