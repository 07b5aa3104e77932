"""How does a file appear whole or not at all?

What is written goes to a temporary file in the same folder, is forced to the disk, and takes the
name of the target in one step. An interruption or a full disk leaves the old file as it was.
"""

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from numgeom.errors import FileFormatError

WriteBytes = Callable[[BinaryIO], object]


def write_atomically(path: str | os.PathLike[str], write: WriteBytes) -> None:
    """Replace a file by what `write` writes, or leave it as it is.

    A link is followed, and the permissions of an old file are kept. Devices and pipes, which cannot
    be replaced, are written to directly.

    Args:
        path: The file.
        write: Gets a binary file, and writes the whole content to it.

    Raises:
        FileFormatError: if the file cannot be written; the old one is unchanged.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = _mode(target)
        if mode is None or stat.S_ISREG(mode):
            _replace(target, write, None if mode is None else stat.S_IMODE(mode))
            return
        with target.open("wb") as file:
            write(file)
    except OSError as error:
        raise FileFormatError(
            f"Cannot write {path}: {error.strerror or error}. Check that the folder exists, may be "
            "written to, and that the disk is not full. What was there before is unchanged."
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file by a text in UTF-8, or leave it as it is.

    Raises:
        FileFormatError: if the file cannot be written; the old one is unchanged.
    """
    content = text.encode("utf-8")
    write_atomically(path, lambda file: _write_all(file, content))


def append_line(
    path: str | os.PathLike[str], line: str, *, is_whole: Callable[[bytes], bool] | None = None
) -> None:
    """Add one line to a file of lines, or leave the file as it is.

    A last line that was cut off, by a crash for instance, is dropped first, so that the new line
    does not continue it.

    Args:
        path: The file; made if it is missing.
        line: The line, without its end.
        is_whole: Whether the bytes of a last line that has its end are as they were meant; by
            default they are.

    Raises:
        FileFormatError: if the file cannot be written; the lines it had are unchanged.
    """
    content = line.encode("utf-8") + b"\n"
    try:
        with open(path, "a+b") as file:
            kept = whole_lines(file, is_whole)
            file.truncate(kept)
            try:
                _write_all(file, content)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), kept)
                raise
    except OSError as error:
        raise FileFormatError(
            f"Cannot write {path}: {error.strerror or error}. Check that the folder exists, may be "
            "written to, and that the disk is not full. The lines that it had are unchanged."
        ) from error


def whole_lines(file: BinaryIO, is_whole: Callable[[bytes], bool] | None = None) -> int:
    """Count the bytes of a file up to the end of its last whole line."""
    size = end = file.seek(0, os.SEEK_END)
    tail = b""
    while end > 0 and tail.count(b"\n") < 2:  # a whole line, and the end of the one before it
        start = max(0, end - _BLOCK)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
    last = tail.rfind(b"\n") + 1
    kept = size - len(tail) + last
    if last and is_whole is not None:
        begin = tail.rfind(b"\n", 0, last - 1) + 1
        if not is_whole(tail[begin:last]):
            kept -= last - begin
    return kept


_BLOCK = 1 << 16


def _mode(target: Path) -> int | None:
    """Kind and permissions of what has that name; None if nothing has."""
    try:
        return target.stat().st_mode
    except FileNotFoundError:
        return None


def _replace(target: Path, write: WriteBytes, permissions: int | None) -> None:
    part = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.part")
    # As `open` makes it, so that the user's umask decides about permissions; never a file that
    # somebody else has put there.
    number = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(number, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if permissions is not None:
            with suppress(OSError):  # a file system without permissions
                os.chmod(part, permissions)
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk, where the system can."""
    with suppress(OSError):  # some systems and network folders cannot
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _write_all(file: BinaryIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
