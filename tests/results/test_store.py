"""Do documents come back from files, and are bad files refused with a clear error?"""

import json
import math
import pickle
from pathlib import Path

import pytest
import torch

from numgeom.errors import FileFormatError
from numgeom.results import store

SCHEMA = "numgeom.test"
PLAIN = {"schema": SCHEMA, "version": 1, "text": "größer ∞", "list": [1, 2.5, None]}
DOCUMENT = store.sealed(PLAIN)


def read(path: Path) -> tuple[store.Document, dict[str, torch.Tensor]]:
    return store.read(path, schema=SCHEMA, version=1)


@pytest.mark.parametrize("value", [0.0, -1.5, 5e-324, 1.7e308, math.inf, -math.inf])
def test_a_number_comes_back(value: float) -> None:
    text = json.dumps(store.encode_number(value), allow_nan=False)
    assert store.decode_number(json.loads(text)) == value


def test_nan_and_none_come_back() -> None:
    assert math.isnan(store.decode_number(store.encode_number(math.nan)))
    assert store.decode_optional(store.encode_number(None)) is None


@pytest.mark.parametrize("value", ["nan", "1.0", True, None, [1.0], {}])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no number"):
        store.decode_number(value)


@pytest.mark.parametrize("name", ["a.json", "a.pt", "a"])
def test_a_document_comes_back(tmp_path: Path, name: str) -> None:
    tensors = {"w": torch.randn(3, 2, dtype=torch.float64)}
    store.write(tmp_path / name, DOCUMENT, tensors)
    document, found = read(tmp_path / name)
    assert {**document, "checksum": ""} == {**DOCUMENT, "checksum": ""}
    if name.endswith(".json"):
        assert found == {}
    else:
        assert torch.equal(found["w"], tensors["w"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_tensor_file_does_not_hold_more_than_the_tensor(tmp_path: Path) -> None:
    store.write(tmp_path / "a", DOCUMENT, {"w": torch.zeros(1_000_000)[:3]})
    assert (tmp_path / "a").stat().st_size < 10_000


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="Cannot write"):
        store.write(tmp_path / "missing" / "a.json", DOCUMENT)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(FileFormatError, match="Cannot write"):
        store.write(tmp_path / "folder.json", DOCUMENT)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


def torch_bytes(tmp_path: Path, content: object) -> bytes:
    torch.save(content, tmp_path / "made")
    return (tmp_path / "made").read_bytes()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    good = json.dumps(DOCUMENT)
    whole = torch_bytes(tmp_path, {"document": good, "tensors": {}})
    contents = {
        "empty": b"",
        "text": b"hello",
        "bytes": b"\xff\xfe\x00",
        "list": b"[1, 2]",
        "cut json": good.encode()[:-5],
        "nested": b"[" * 100_000,
        "zip header": b"PK\x03\x04 and no more",
        "cut archive": whole[: len(whole) // 2],
        "other schema": json.dumps({**DOCUMENT, "schema": "else"}).encode(),
        "no schema": b"{}",
        "later version": json.dumps({**DOCUMENT, "version": 2}).encode(),
        "no version": json.dumps({"schema": SCHEMA}).encode(),
        "pickle": pickle.dumps(DOCUMENT),
        "other torch file": torch_bytes(tmp_path, [1, 2]),
        "no tensors": torch_bytes(tmp_path, {"document": good}),
        "wrong tensors": torch_bytes(tmp_path, {"document": good, "tensors": {"w": 1}}),
        "wrong document": torch_bytes(tmp_path, {"document": "{", "tensors": {}}),
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=str(path)):
            read(path)
    with pytest.raises(FileFormatError, match="Cannot read"):
        read(tmp_path / "nowhere")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("bomb-went-off", "w")


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "archive": torch_bytes(tmp_path, {"document": Bomb(), "tensors": {}}),
        "pickle": pickle.dumps(Bomb()),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError):
            read(tmp_path / name)
    assert not (tmp_path / "bomb-went-off").exists()
