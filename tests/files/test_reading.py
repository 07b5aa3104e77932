"""Is a text that a stranger wrote read as data, or refused with a reason?"""

import json
import os
from pathlib import Path

import pytest

from numgeom.errors import FileFormatError
from numgeom.files.reading import DEEPEST, parse_json, read_bytes

REFUSED = {
    "NaN": "NaN",
    "[Infinity]": "Infinity",
    "[-Infinity]": "Infinity",
    "[1e999]": "out of range",
    '{"a": 1, "a": 2}': "twice",
    '{"b": {"a": 1, "c": 2, "a": 1}}': "twice",
    "1" * 4_000: "4000 digits",
    "-" + "9" * 21: "digits",
    "[" * 100_000: "nested",
    "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1): "nested",
    '{"a":' * 70 + "1" + "}" * 70: "nested",
    '"\\ud800"': "UTF-8",
    '{"\\udfff": 1}': "UTF-8",
    "": "damaged",
    "[1,]": "damaged",
    "{1: 2}": "damaged",
    "[1] [2]": "damaged",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_what_is_no_json_of_ours_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match=REFUSED[text]) as caught:
        parse_json(text, "some/file.json")
    assert "some/file.json" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_bytes_that_are_no_utf_8_are_refused() -> None:
    for content in (b"\xff\xfe[\x00]\x00", b"[\xc3]", "[1]".encode("utf-16"), b"\x00"):
        with pytest.raises(FileFormatError, match=r"file\.json"):
            parse_json(content, "file.json")


def test_what_json_can_say_comes_back() -> None:
    value = {"a": [1, -2.5, 2**63, 5e-324, None, True, "größer \u0001"], "": {}}
    assert parse_json(json.dumps(value), "f") == value
    deep = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    assert parse_json(deep, "f") == json.loads(deep)


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FileFormatError, match="no regular file"):
            read_bytes(path)
    for path in (tmp_path / "missing", tmp_path / "a\0b"):
        with pytest.raises(FileFormatError, match="Cannot read"):
            read_bytes(path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(FileFormatError, match="larger"):
        read_bytes(tmp_path / "large", most=1000)
