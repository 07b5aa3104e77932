"""Do tensors come back from an archive as they were, and are hostile archives refused?"""

import io
import json
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from numgeom.errors import FileFormatError
from numgeom.files.archive import read_archive, write_archive
from numgeom.files.layout import DTYPES, check_expansion

Z = torch.complex(torch.arange(12.0).reshape(3, 4), torch.ones(3, 4))
TENSORS = {
    "transposed": torch.arange(20.0).reshape(4, 5).t(),
    "every second": torch.arange(7.0)[::2],
    "expanded": torch.arange(3.0).expand(5, 3),
    "no dimensions": torch.tensor(3.5),
    "no entries": torch.zeros(0, 3),
    "conjugate": Z.conj(),
    "negative": Z.conj().imag,
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "part of more": torch.arange(100.0)[10:20],
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "odd/name ü [x]": torch.ones(1),
}


def same(x: Tensor, y: Tensor) -> bool:
    return x.dtype is y.dtype and x.shape == y.shape and torch.equal(x, y)


def test_tensors_come_back(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", "a text ü", TENSORS)
    found = read_archive(tmp_path / "a")
    assert (found.document, found.content) == ("a text ü", None)
    assert list(found.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert same(found.tensors[name], tensor.detach()), name
        if name not in ("negative", "conjugate"):
            assert found.tensors[name].stride() == tensor.stride(), name
    assert (tmp_path / "a").stat().st_size < 10_000  # no more than each tensor spans


@pytest.mark.parametrize("name", DTYPES)
def test_every_format_comes_back(tmp_path: Path, name: str) -> None:
    bits = torch.arange(64, dtype=torch.uint8)
    tensor = bits % 2 == 0 if name == "bool" else bits.view(DTYPES[name])
    write_archive(tmp_path / "a", "", {"x": tensor})
    found = read_archive(tmp_path / "a").tensors["x"]
    assert found.dtype is tensor.dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_a_tensor_that_no_file_holds_is_refused(tmp_path: Path) -> None:
    for odd in (torch.ones(2, device="meta"), torch.ones(2, 2).to_sparse()):
        with pytest.raises(FileFormatError, match="cannot be saved"):
            write_archive(tmp_path / "a", "", {"x": odd})
    assert list(tmp_path.iterdir()) == []


def rewritten(path: Path, changes: dict[str, bytes | None], **how: Any) -> Path:
    """The archive with members replaced, added or (None) left out."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", **how) as new:
        for name, content in {**members, **changes}.items():
            if content is not None:
                new.writestr(name, content)
    return path


ROW = ["x", "float32", [2], [1], "cpu"]
ROWS = {
    "no list": {"x": 1},
    "short": [["x", "float32", [2], [1]]],
    "unknown dtype": [["x", "qint8", [2], [1], "cpu"]],
    "no dtype": [["x", "nn", [2], [1], "cpu"]],
    "other bytes": [["x", "float64", [2], [1], "cpu"]],
    "too large": [["x", "float32", [10**12], [1], "cpu"]],
    "huge": [["x", "float32", [2**70], [0], "cpu"]],
    "overflow": [["x", "float32", [2**40, 2**40], [0, 0], "cpu"]],
    "negative": [["x", "float32", [-2], [1], "cpu"]],
    "negative stride": [["x", "float32", [2], [-1], "cpu"]],
    "no integer": [["x", "float32", [2.0], [1], "cpu"]],
    "true": [["x", "float32", [True], [1], "cpu"]],
    "more sizes": [["x", "float32", [2, 1], [1], "cpu"]],
    "many sizes": [["x", "float32", [1] * 5000, [1] * 5000, "cpu"]],
    "meta": [["x", "float32", [2], [1], "meta"]],
    "foreign device": [["x", "float32", [2], [1], "vulkan:1"]],
    "device number": [["x", "float32", [2], [1], "cuda:99999999999999999999"]],
    "no name": [[None, "float32", [2], [1], "cpu"]],
    "twice": [ROW, ROW],
    "none": [],
}


@pytest.mark.parametrize("case", ROWS)
def test_a_hostile_list_of_tensors_is_refused(tmp_path: Path, case: str) -> None:
    write_archive(tmp_path / "a", "{}", {"x": torch.ones(2)})
    path = rewritten(tmp_path / "a", {"tensors.json": json.dumps(ROWS[case]).encode()})
    with pytest.raises(FileFormatError, match="damaged"):
        read_archive(path)


def test_hostile_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def refused(match: str) -> None:
        with pytest.raises(FileFormatError, match=match):
            read_archive(path)

    write_archive(path, "{}", {"x": torch.ones(2)})
    whole = path.read_bytes()
    rewritten(path, {"tensors/0": b"\0" * 10_000_000}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000  # a bomb
    refused("compressed")
    path.write_bytes(whole)
    rewritten(path, {"tensors/1": b"\0\0"})
    refused("list of tensors")
    path.write_bytes(whole)
    rewritten(path, {"tensors.json": None})
    refused("damaged")
    for cut in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused("damaged")
    flipped = bytearray(whole)
    flipped[whole.index(torch.ones(2).numpy().tobytes())] ^= 1
    path.write_bytes(flipped)
    refused("CRC")
    # Two members over the same bytes: together larger than the file.
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("pad", b"\0" * 4000)
    overlapping = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(overlapping)) as archive:
        offset = archive.getinfo("pad").header_offset
    central = overlapping.rindex(b"PK\x01\x02")
    tensors = overlapping.index(b"PK\x01\x02")
    for place in (central, tensors):
        overlapping[place + 42 : place + 46] = offset.to_bytes(4, "little")
        overlapping[place + 20 : place + 28] = (4000).to_bytes(4, "little") * 2
    path.write_bytes(overlapping)
    refused("damaged")
    path.unlink()
    refused("Cannot read")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("bomb-went-off", "w")


class Large:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (1 << 40,)


def test_an_old_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (
        {"x": Bomb()}, {"x": Large()}, {"x": torch.nn.Linear(1, 1)}, {"x": torch.Size([1])},
        {"x": torch.ones(2, 2).to_sparse()}, {"x": {1, 2}}, [1], {1: 2},
    ):  # fmt: skip
        torch.save(content, tmp_path / "a")
        with pytest.raises(FileFormatError, match="damaged"):
            read_archive(tmp_path / "a")
    (tmp_path / "a").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileFormatError, match="damaged"):
        read_archive(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_old_file_comes_back(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    tensors = {
        **TENSORS,
        "shares": base[2:5],
        "with": base[3:],
        "float8": base.to(torch.float8_e5m2),
    }
    del tensors["negative"]  # torch cannot save one storage in two formats
    tensors["parameter"] = tensors["parameter"].detach()
    plain = {"text": "ü", "n": 2**40, "x": 0.5, "none": None, "list": [1, (True, False), {}]}
    torch.save({"tensors": tensors, **plain}, tmp_path / "a")
    content = read_archive(tmp_path / "a").content
    assert content is not None
    held = content.pop("tensors")
    assert content == plain
    for name, tensor in tensors.items():
        if tensor.dtype is torch.float8_e5m2:
            assert same(held[name].view(torch.uint8), tensor.view(torch.uint8))
        else:
            assert same(held[name], tensor), name


def test_an_old_tensor_stays_in_its_storage(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(10.0)[3:5]}, tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a") as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        pickled = archive.read(name)
    three, stop = b"K\x03", b"K\x02\x85"  # the offset, and the shape (2,)
    assert pickled.count(three) == pickled.count(stop) == 1
    for old, new in (
        (three, b"K\x09"),
        (three, b"J" + (-4).to_bytes(4, "little", signed=True)),
        (stop, b"\x8a\x08" + (2**62 - 1).to_bytes(8, "little") + b"\x85"),
        (stop, b"K\x02K\x03\x86"),
    ):
        rewritten(tmp_path / "a", {name: pickled.replace(old, new)})
        with pytest.raises(FileFormatError, match="damaged"):
            read_archive(tmp_path / "a")


def test_numbers_that_are_no_bools_are_made_bools(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", "", {"x": torch.tensor([True, False])})
    rewritten(tmp_path / "a", {"tensors/0": b"\x07\x00"})
    assert read_archive(tmp_path / "a").tensors["x"].view(torch.uint8).tolist() == [1, 0]


def test_expanded_tensors_are_bounded() -> None:
    check_expansion([torch.ones(1).expand(1000)])
    with pytest.raises(ValueError, match="stored"):
        check_expansion([torch.ones(1).expand(10**12)])
    with pytest.raises(ValueError, match="stored"):
        check_expansion([torch.ones(1).expand(100)], most=0)


def test_reading_takes_little_memory(tmp_path: Path) -> None:
    """A file of 32 MiB is read in less than four times as much, tensors included."""
    write_archive(tmp_path / "a", "", {"x": torch.zeros(1 << 23)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_archive(tmp_path / "a")
    assert found.tensors["x"].numel() == 1 << 23
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4 * 32 * 1024
