"""Are references looked up as declared?"""

import pytest
import torch

from numgeom.recording.references.entry import Definition, overload, resolve, widened

aten = torch.ops.aten


def test_overloads_are_found_by_name() -> None:
    assert overload("aten::mm") is aten.mm.default
    assert overload("aten::add.Tensor") is aten.add.Tensor
    assert overload("prims::add") is torch.ops.prims.add.default


@pytest.mark.parametrize("name", ["aten::no_such_op", "aten::mm.no_such_overload", "nowhere::mm"])
def test_an_absent_op_is_none(name: str) -> None:
    assert overload(name) is None


def test_absent_ops_are_skipped() -> None:
    present = Definition("aten::mm", torch.mm, "the op itself")
    absent = Definition("aten::no_such_op", torch.mm, "nowhere")
    table = resolve([absent, present])
    assert list(table) == [aten.mm.default]
    assert table[aten.mm.default].compute is torch.mm


def test_two_definitions_of_one_op_are_an_error() -> None:
    twice = [Definition("aten::mm", torch.mm, "")] * 2
    with pytest.raises(ValueError, match="Two references are defined for aten::mm"):
        resolve(twice)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        resolve([])[aten.mm.default] = None  # pyright: ignore[reportIndexIssue]: the point of it


def test_narrow_formats_are_widened() -> None:
    narrow = torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2
    assert {widened(dtype) for dtype in narrow} == {torch.float32}
    assert widened(torch.float32) is torch.float32
    assert widened(torch.float64) is torch.float64
