"""How does long work keep what it has done, so that it can go on after an interruption?

A ledger is a text file of JSON lines: a header that names the task, and one line per finished
piece, written at once. What a killed process left of a line is dropped. Several processes write
files of their own beside it (`work.jsonl`, `work-1.jsonl`, ...), and each reads them all.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numgeom.errors import FileFormatError
from numgeom.files.writing import append_line, whole_lines


class Ledger:
    """The finished pieces of one task.

    Args:
        path: The file; made with its folder when the first piece is written.
        task: What the pieces belong to, in JSON values; a file of another task is refused.
        writer: Number of the process that writes; 0 writes `path` itself.

    Raises:
        FileFormatError: if a file belongs to another task, or is damaged before its end.
    """

    def __init__(self, path: Path, task: Mapping[str, Any], *, writer: int = 0) -> None:
        """Read what there is."""
        self._task = json.loads(json.dumps(dict(task)))
        self._path = path if writer == 0 else path.with_name(f"{path.stem}-{writer}{path.suffix}")
        self.pieces: dict[int, dict[str, Any]] = {}
        for file in sorted({path, *path.parent.glob(f"{path.stem}-*{path.suffix}")}):
            tail = file.stem.removeprefix(path.stem)
            if file.is_file() and (not tail or tail[1:].isdigit()):
                for piece in self._read(file):
                    self.pieces[int(piece["piece"])] = piece

    def add(self, piece: int, found: Mapping[str, Any]) -> None:
        """Write a finished piece and force it to the disk."""
        record = {"piece": piece, **found}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if _whole_bytes(self._path) == 0:
            append_line(self._path, json.dumps({"task": self._task}), is_whole=_is_json)
        append_line(self._path, json.dumps(record), is_whole=_is_json)
        self.pieces[piece] = record

    def _read(self, file: Path) -> list[dict[str, Any]]:
        whole = file.read_bytes()[: _whole_bytes(file)].decode(errors="replace").splitlines()
        records = []
        for number, line in enumerate(whole, start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or ("task" if number == 1 else "piece") not in record:
                raise FileFormatError(
                    f"{file}, line {number} is damaged, and it is not the last one: restore the "
                    "file, or delete it to start again"
                )
            records.append(record)
        if records and records[0]["task"] != self._task:
            theirs, ours = records[0]["task"], self._task
            odd = [k for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)]
            raise FileFormatError(
                f"{file} holds the state of another task (different: {', '.join(odd)}): give "
                "another file name, or delete it"
            )
        return records[1:]


def _whole_bytes(file: Path) -> int:
    """Bytes up to the end of the last line that was written to its end and can be read."""
    if not file.exists():
        return 0
    with file.open("rb") as opened:
        return whole_lines(opened, _is_json)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
