"""Program files as a stranger might write them: parts of an honest one, changed."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch

from numgeom.recording import Program
from numgeom.recording.files import FORMAT
from numgeom.recording.graph_text import structure_of


def rows_of(program: Program) -> list[dict[str, Any]]:
    """The rows of a program's text."""
    return json.loads(structure_of(program))


def write_old(path: Path, program: Program, **changes: Any) -> None:
    """Write a file of version 1, as torch.save did, with parts changed."""
    environment = {
        "switches": program.switches,
        "default_dtype": str(program.default_dtype).removeprefix("torch."),
        "versions": program.versions,
    }
    content = {
        "format": FORMAT,
        "version": 1,
        "structure": structure_of(program),
        "environment": json.dumps(environment),
        "constants": dict(program.constants),
        "gradients": dict(program.recorded.gradients),
        "updates": dict(program.recorded.updates),
        "loss": program.recorded.loss,
    }
    torch.save(content | changes, path)


def write_new(path: Path, program: Program, **changes: Any) -> None:
    """Write a file of today's version, with parts of its document changed."""
    program.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    document = json.loads(members["document.json"]) | changes
    members["document.json"] = json.dumps(document).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def with_call(
    program: Program,
    target: str,
    args: list[Any],
    kwargs: dict[str, Any] | None = None,
    **row: Any,
) -> str:
    """The program's text with one more call before its end."""
    rows = rows_of(program)
    call = {
        "op": "call_function",
        "target": target,
        "args": {"tuple": args},
        "kwargs": {"dict": list((kwargs or {}).items())},
        "call": ["forward", "", ""],
        "tensors": [[[], [1000], [1], "float64", "cpu"]],
    }
    return json.dumps([*rows[:-1], call | row, rows[-1]])


def assert_same(loaded: Program, program: Program) -> None:
    """Raise unless a program is as it was before it was written."""
    assert loaded.digest() == program.digest()
    assert str(loaded) == str(program)
    assert loaded.parameters == program.parameters
    sections = (
        (loaded.constants, program.constants),
        (loaded.recorded.gradients, program.recorded.gradients),
        (loaded.recorded.updates, program.recorded.updates),
        ({"loss": loaded.recorded.loss}, {"loss": program.recorded.loss}),
    )
    for held, expected in sections:
        assert list(held) == list(expected)
        for key, tensor in expected.items():
            if tensor is None:
                assert held[key] is None
                continue
            assert held[key].stride() == tensor.stride() or tensor.is_conj() or tensor.is_neg()
            torch.testing.assert_close(held[key], tensor, rtol=0, atol=0, equal_nan=True)
    assert loaded.default_dtype is program.default_dtype
    assert loaded.versions == program.versions
