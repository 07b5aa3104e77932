"""Do the two runs side by side give what each gives alone?"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.recording import Program, record_step
from numgeom.recording.replay import ProgramInterpreter
from numgeom.semantics.lockstep import Call, lockstep


def program(dtype: torch.dtype = torch.float32) -> Program:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)
    x = torch.randn(5, 4).to(dtype)
    target = torch.arange(5) % 3
    return record_step(model, lambda m, x: nn.functional.cross_entropy(m(x), target), x)


def ignore(call: Call) -> None:
    del call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_runs_are_the_replays(dtype: torch.dtype) -> None:
    recorded = program(dtype)
    result = lockstep(recorded, ignore)
    computed, reference = recorded.replay(None), recorded.replay(torch.float64)
    for name in recorded.parameters:
        assert torch.equal(result.computed.gradients[name], recorded.recorded.gradients[name])
        assert torch.equal(result.computed.gradients[name], computed.gradients[name])
        assert torch.equal(result.reference.gradients[name], reference.gradients[name])
    for ours, theirs in ((result.computed, computed), (result.reference, reference)):
        assert ours.loss is not None
        assert theirs.loss is not None
        assert torch.equal(ours.loss, theirs.loss)


def test_every_node_is_seen_once_in_program_order() -> None:
    recorded = program()
    seen: list[Any] = []
    lockstep(recorded, lambda call: seen.append(call.node))
    assert seen == [node for node in recorded.graph.nodes if node.op != "output"]


def test_a_call_shows_both_values_of_its_inputs() -> None:
    recorded = program(torch.bfloat16)
    found = 0

    def visit(call: Call) -> None:
        nonlocal found
        if str(call.node.target) != "aten.tanh.default":
            return
        given = call.argument(0)
        assert given is not None
        assert given.computed.dtype is torch.bfloat16
        assert given.reference.dtype is torch.float64
        assert torch.equal(call.computed, given.computed.tanh())
        assert torch.equal(call.reference, given.reference.tanh())
        assert call.argument(1) is None
        found += 1

    lockstep(recorded, visit)
    assert found == 1


def test_the_local_value_has_the_inputs_as_computed() -> None:
    recorded = program(torch.bfloat16)

    def visit(call: Call) -> None:
        if str(call.node.target) == "aten.tanh.default":
            given = call.argument(0)
            assert given is not None
            local = call.local()
            assert local.dtype is torch.float64
            assert torch.equal(local, given.computed.double().tanh())
            # One rounding to bfloat16 is all that the call itself adds.
            assert bool(((call.computed.double() - local).abs() <= 2.0**-8 * local.abs()).all())
            assert not torch.equal(local, call.reference)

    lockstep(recorded, visit)


def test_the_first_run_can_be_another_evaluation() -> None:
    class Doubled(ProgramInterpreter):
        def constant(self, node: Any) -> Tensor:
            value = super().constant(node)
            return value * 2 if node.meta["role"] == "input" else value

    recorded = record_step(nn.Linear(3, 1, bias=False), lambda m, x: m(x).sum(), torch.ones(1, 3))
    first = Doubled(recorded, dtype=torch.float64)
    result = lockstep(recorded, ignore, first=first)
    assert torch.equal(result.computed.gradients["weight"], torch.full((1, 3), 2.0).double())
    assert torch.equal(result.reference.gradients["weight"], torch.ones(1, 3).double())


def test_torchs_default_dtype_is_left_alone() -> None:
    lockstep(program(), ignore)
    assert torch.get_default_dtype() is torch.float32


def test_numbers_made_of_integers_have_the_format_of_their_run() -> None:
    count = torch.arange(1, 4)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) * (count / 7)).sum()

    recorded = record_step(nn.Linear(3, 3), loss, torch.randn(2, 3))
    dtypes: list[Any] = []

    def visit(call: Call) -> None:
        if str(call.node.target).startswith("aten.div"):
            dtypes.append((call.computed.dtype, call.reference.dtype))

    result = lockstep(recorded, visit)
    assert dtypes == [(torch.float32, torch.float64)]
    for name, value in recorded.recorded.gradients.items():
        assert torch.equal(result.computed.gradients[name], value)
