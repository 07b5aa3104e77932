"""Is a unit in doubt told with its place, the number that decides, and how far that may be off?"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from numgeom.certificate.kinks import SHOWN, Kink, Unit, kink_of
from numgeom.ops.entry import Evaluation
from numgeom.ops.table import OPS
from numgeom.recording import CallInfo, record_step
from numgeom.results.codec import decode, encode

X = torch.tensor([[1.0, 1e-17, -2.0], [0.0, -1e-16, 3.0]], dtype=torch.float64)
R = torch.full_like(X, 2e-16)


def evaluated(name: str, *args: Any, **radii: Tensor) -> tuple[fx.Node, Tensor, Evaluation]:
    """A call, the mask of its doubts by the package's own facts, and its evaluation."""
    node = fx.Graph().placeholder(name)
    node.target = f"aten.{name}"
    node.meta["call"] = CallInfo("forward", "block.act", "model.py:7")
    y = getattr(torch.ops.aten, name)(*args)
    places: dict[int | str, Any] = {int(key[1:]): r for key, r in radii.items()}
    call = Evaluation(name, args, {}, y, places)
    op = OPS.named(name)
    assert op is not None
    return node, op.doubt_of(call), call


def test_a_relu_is_told_by_its_input() -> None:
    kink = kink_of(*evaluated("relu", X, _0=R))
    assert (kink.op, kink.module, kink.source, kink.count) == (
        "aten.relu", "block.act", "model.py:7", 3,
    )  # fmt: skip
    assert [unit.index for unit in kink.units] == [(0, 1), (1, 0), (1, 1)]
    assert [unit.value for unit in kink.units] == [1e-17, 0.0, -1e-16]
    assert {unit.margin for unit in kink.units} == {2e-16}
    assert "[0, 1] at 1.00e-17, kink within 2.0e-16" in str(kink)


def test_a_comparison_is_told_by_the_difference_of_its_sides() -> None:
    other = torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64)
    kink = kink_of(*evaluated("gt", X, other, _0=R, _1=torch.full_like(other, 1e-16)))
    assert [unit.index for unit in kink.units] == [(0, 0), (1, 2)]
    for unit in kink.units:
        assert unit.value == 0.0
        assert 3e-16 <= unit.margin < 3.1e-16
    exact = kink_of(*evaluated("gt", X, 1.0, _0=R))
    assert [(unit.index, unit.margin) for unit in exact.units] == [((0, 0), 2e-16)]


@pytest.mark.parametrize("name", ["relu", "abs", "lt", "le", "gt", "ge", "maximum", "minimum"])
def test_every_unit_in_doubt_has_its_kink_within_the_margin(name: str) -> None:
    x = torch.randn(40, dtype=torch.float64) * 1e-16
    two = name not in ("relu", "abs")
    args = (x, x.flip(0) * 0.5) if two else (x,)
    radii = {f"_{i}": torch.full_like(x, 1e-16) for i in range(len(args))}
    node, doubt, call = evaluated(name, *args, **radii)
    kink = kink_of(node, doubt, call)
    assert kink.count == int(doubt.sum()) > SHOWN == len(kink.units)
    assert all(abs(unit.value) <= unit.margin for unit in kink.units)
    assert f"and {kink.count - SHOWN} more" in str(kink)


def test_where_no_single_number_decides_only_the_place_is_told() -> None:
    node, _, call = evaluated("relu", X, _0=R)
    mask = torch.tensor([True, False])
    for kink in (kink_of(node, mask), kink_of(node, mask, call)):
        assert str(kink).endswith(": 1 units: [0]")
        assert math.isnan(kink.units[0].value)


def test_a_kink_comes_back_from_its_document() -> None:
    kink = Kink("aten.relu.default", "", "a.py:1", 9, (Unit((), 1.5, 2.0), Unit((3,), -1.0, 4.0)))
    assert decode(Kink, encode(kink)) == kink
    assert "in the model (a.py:1): 9 units" in str(kink)
    for wrong in ({"units": [{}]}, {"count": 1}, {"count": True}, {"op": None}, {"more": 1}):
        with pytest.raises(ValueError, match="Kink|units"):
            decode(Kink, {**encode(kink), **wrong})


def test_calls_of_a_recorded_step_can_be_described() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    program = record_step(model, lambda m, x: m(x).sum(), torch.ones(1, 2))
    node = next(n for n in program.calls if "relu" in str(n.target))
    kink = kink_of(node, torch.tensor([[False, True, False]]))
    assert (kink.module, kink.units[0].index) == ("1", (0, 1))
