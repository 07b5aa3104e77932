"""Does a file appear whole or not at all, whatever happens in the middle?"""

import ast
import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import nn

import numgeom
from numgeom.errors import FileFormatError
from numgeom.files.writing import append_line, write_atomically, write_text

OLD = b"what was there before"


def _fails_midway(file: BinaryIO) -> None:
    file.write(b"half of ")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _interrupted(file: BinaryIO) -> None:
    file.write(b"half of ")
    raise KeyboardInterrupt


@pytest.mark.parametrize("old", [OLD, None])
@pytest.mark.parametrize(
    ("write", "error"), [(_fails_midway, FileFormatError), (_interrupted, KeyboardInterrupt)]
)
def test_a_write_that_fails_midway_leaves_the_old_file(
    tmp_path: Path, old: bytes | None, write: Callable[[BinaryIO], None], error: type[BaseException]
) -> None:
    path = tmp_path / "result.json"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(error):
        write_atomically(path, write)
    assert (path.read_bytes() if path.exists() else None) == old
    assert [p.name for p in tmp_path.iterdir()] == (["result.json"] if old else [])


def test_permissions_links_and_devices(tmp_path: Path) -> None:
    old_mask = os.umask(0o027)
    try:
        write_text(tmp_path / "new", "x")
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write_text(tmp_path / "link", "y")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "new").read_text() == "y"
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    write_text("/dev/null", "z")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(FileFormatError, match="disk is not full"):
        write_text("/dev/full", "z")
    with pytest.raises(FileFormatError, match="Cannot write"):
        write_text(tmp_path, "a folder")


def test_lines_are_added_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    append_line(path, "one")
    append_line(path, "two")
    with path.open("ab") as file:
        file.write(b"torn by a crash")
    append_line(path, "three" * 30_000)
    append_line(path, "four")
    assert path.read_text().splitlines() == ["one", "two", "three" * 30_000, "four"]
    before = path.read_bytes()

    def full(number: int) -> None:
        del number
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileFormatError, match="unchanged"):
        append_line(path, "five")
    assert path.read_bytes() == before


def test_a_last_line_that_is_not_whole_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    long = b"x" * 200_000
    for content, kept in (
        (b"good\nbad\n", b"good\n"),
        (b"good\nbad\ncut", b"good\n"),
        (b"bad\n", b""),
        (b"good\n" + long + b"bad\n", b"good\n"),
        (b"good\n" + long + b"good\n", b"good\n" + long + b"good\n"),
        (b"", b""),
        (b"cut", b""),
    ):
        path.write_bytes(content)
        append_line(path, "new", is_whole=lambda line: not line.endswith(b"bad\n"))
        assert path.read_bytes() == kept + b"new\n"


def _savers() -> dict[str, Callable[[Path], Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.randn(4, 3)

    def loss(m: nn.Module, b: torch.Tensor) -> torch.Tensor:
        return m(b).square().sum()

    program = numgeom.record_step(model, loss, x)
    certificate = numgeom.certify(program)
    diagnosis = numgeom.diagnose(program)
    plan = numgeom.plan_precision(model, loss, x, tolerance=0.1)
    with numgeom.track(model) as tracking:
        loss(model, x).backward()
    return {
        "program": program.save,
        "certificate.json": certificate.save,
        "certificate": certificate.save,
        "diagnosis.json": diagnosis.save,
        "plan.json": plan.save,
        "tracking.json": tracking.save,
    }


def test_every_save_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up just before the end leaves what was there, for results of all kinds."""
    savers = _savers()
    for name, save in savers.items():
        save(tmp_path / name)
        (tmp_path / name).write_bytes(OLD)

    def full(number: int) -> None:
        del number
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for name, save in savers.items():
            with pytest.raises(FileFormatError, match="Cannot write"):
                save(tmp_path / name)
            assert (tmp_path / name).read_bytes() == OLD
    assert {p.name for p in tmp_path.iterdir()} == savers.keys()


def _writes(call: ast.Call) -> str:
    """How a call writes a file, or "" if it does not."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    name = call.func.id if isinstance(call.func, ast.Name) else name
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    of = owner.id if isinstance(owner, ast.Name) else ""
    if name in ("write_text", "write_bytes", "savefig"):
        return "" if name == "write_text" and of in ("", "writing") else name
    if name == "save" and of == "torch":
        return "torch.save"
    if name in ("open", "fdopen", "ZipFile"):
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords))
                 if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
        if any(re.fullmatch(r"[rwaxbt+]{1,3}", mode) and set(mode) & set("wax+") for mode in modes):
            return name
    return ""


def test_nothing_in_the_package_writes_past_the_one_way() -> None:
    """Whoever opens a file to write it, or replaces one, does it in `numgeom.files.writing`."""
    package = Path(numgeom.__file__).parent
    found = {
        f"{path.relative_to(package)}: {way}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and (way := _writes(node))
    }
    assert {entry for entry in found if not entry.startswith("files/writing.py")} == {
        "diagnosis/worker.py: fdopen",  # a process in the background answers through a pipe
        "files/archive.py: ZipFile",  # into a file that `writing` opened
        "files/archive.py: open",  # a member of that archive
    }
    assert {entry for entry in found if entry.startswith("files/writing.py")}


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ('open(path, "w")', "open"), ('path.open("r+b")', "open"),
        ("path.write_text(x)", "write_text"),
        ('open(path, mode="ab")', "open"), ("torch.save(x, path)", "torch.save"),
        ("figure.savefig(path)", "savefig"), ("path.write_bytes(x)", "write_bytes"),
        ('open(path, "rb")', ""), ("open(path)", ""), ('open("a.txt")', ""),
        ("write_text(p, x)", ""),
        ('pool.open(func, "name")', ""),
    ],
)  # fmt: skip
def test_a_planted_write_is_found(text: str, way: str) -> None:
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _writes(call) == way
