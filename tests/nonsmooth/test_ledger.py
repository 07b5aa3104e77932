"""Does a ledger survive an interruption, and refuse what is not its own?"""

import json
import math
from pathlib import Path

import pytest

from numgeom.errors import FileFormatError
from numgeom.nonsmooth.ledger import Ledger

TASK = {"name": "test", "selections": ("native", "minimal")}


def written(path: Path, pieces: int = 3) -> Path:
    ledger = Ledger(path, TASK)
    for piece in range(pieces):
        ledger.add(piece, {"value": piece / 3})
    return path


def test_pieces_come_back_bit_by_bit(tmp_path: Path) -> None:
    path = written(tmp_path / "folder" / "work.jsonl")
    Ledger(path, TASK).add(7, {"value": math.inf})
    found = Ledger(path, TASK).pieces
    assert {k: v["value"] for k, v in found.items()} == {0: 0.0, 1: 1 / 3, 2: 2 / 3, 7: math.inf}


def test_every_cut_of_the_last_line_loses_that_line_alone(tmp_path: Path) -> None:
    content = written(tmp_path / "work.jsonl").read_bytes()
    last = len(content.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1):
        path = tmp_path / f"cut{cut}.jsonl"
        path.write_bytes(content[:-cut])
        ledger = Ledger(path, TASK)
        assert set(ledger.pieces) == {0, 1}
        ledger.add(2, {"value": 2 / 3})
        assert path.read_bytes() == content


def test_a_last_line_of_garbage_is_dropped(tmp_path: Path) -> None:
    path = written(tmp_path / "work.jsonl")
    content = path.read_bytes()
    path.write_bytes(content + b"\x00\xff\x00\n")
    ledger = Ledger(path, TASK)
    assert set(ledger.pieces) == {0, 1, 2}
    ledger.add(3, {})
    assert path.read_bytes().startswith(content)


def test_a_header_that_was_cut_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_bytes(b'{"task": {"na')
    ledger = Ledger(path, TASK)
    assert ledger.pieces == {}
    ledger.add(0, {})
    assert set(Ledger(path, TASK).pieces) == {0}


def test_damage_before_the_end_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "work.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    for bad, text in ((2, "{broken\n"), (0, "[]\n"), (1, '{"value": 1}\n')):
        changed = [*lines]
        changed[bad] = text
        path.write_text("".join(changed))
        with pytest.raises(FileFormatError, match=f"line {bad + 1} is damaged"):
            Ledger(path, TASK)


def test_another_task_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "work.jsonl")
    with pytest.raises(FileFormatError, match="different: name"):
        Ledger(path, {**TASK, "name": "other"})


def test_writers_share_what_they_finished(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    first, second = Ledger(path, TASK), Ledger(path, TASK, writer=1)
    first.add(0, {"by": 0})
    second.add(1, {"by": 1})
    assert {k: v["by"] for k, v in Ledger(path, TASK, writer=2).pieces.items()} == {0: 0, 1: 1}
    assert json.loads((tmp_path / "work-1.jsonl").read_text().splitlines()[1])["piece"] == 1
    (tmp_path / "work-notes.jsonl").write_text("not a state file\n")
    assert set(Ledger(path, TASK).pieces) == {0, 1}
