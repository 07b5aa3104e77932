"""Does the reference alone give what the replay gives, and show values as a format holds them?"""

import pytest
import torch
from torch import nn

from numgeom.recording import Program, record_step
from numgeom.semantics.alone import alone, recorded_formats
from numgeom.semantics.lockstep import Call, lockstep


def program(dtype: torch.dtype = torch.float32) -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)
    x = torch.randn(5, 4).to(dtype)
    target = torch.arange(5) % 3
    return record_step(model, lambda m, x: nn.functional.cross_entropy(m(x), target), x)


FORMATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FORMATS)
def test_it_is_the_replay(dtype: torch.dtype) -> None:
    recorded = program(dtype)
    found, replay = alone(recorded, lambda call: None), recorded.replay(torch.float64)
    assert found.loss is not None
    assert replay.loss is not None
    assert torch.equal(found.loss, replay.loss)
    for name, value in replay.gradients.items():
        assert torch.equal(found.gradients[name], value)


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_node_has_the_format_that_it_had(dtype: torch.dtype) -> None:
    recorded, formats = program(dtype), {}

    def visit(call: Call) -> None:
        if isinstance(call.computed, torch.Tensor):
            formats[call.node] = call.computed.dtype
            assert recorded_formats(recorded, call.node)[()] is call.computed.dtype

    lockstep(recorded, visit)
    theirs = dict(formats)
    formats.clear()
    alone(recorded, visit)
    assert formats == theirs


def test_what_is_called_computed_is_the_reference_rounded_once() -> None:
    recorded, seen = program(torch.bfloat16), []

    def visit(call: Call) -> None:
        assert call.rounded
        seen.append(call.node)
        if str(call.node.target) == "aten.tanh.default":
            given = call.argument(0)
            assert given is not None
            assert given.reference.dtype is torch.float64
            assert torch.equal(call.computed, given.reference.tanh().bfloat16())
            assert torch.equal(call.local(), call.reference)

    alone(recorded, visit)
    assert seen == [node for node in recorded.graph.nodes if node.op != "output"]


def test_the_parts_of_a_call_have_formats_of_their_own() -> None:
    recorded = record_step(nn.Linear(3, 3), lambda m, x: m(x).max(0)[0].sum(), torch.randn(4, 3))
    kinds = []

    def visit(call: Call) -> None:
        kinds.extend(recorded_formats(recorded, call.node).values())

    alone(recorded, visit)
    assert torch.int64 in kinds
    assert torch.float32 in kinds
