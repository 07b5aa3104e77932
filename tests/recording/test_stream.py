"""Phase, module and line of forward and backward calls."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from numgeom.recording import record


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.tanh(self.first(x))  # the line of tanh
        return self.second(h) * x.exp()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def _record(step, model=None):
    with record(model) as recording:
        step()
    return recording.program


def _calls(program, name):
    return [n.meta["call"] for n in program.calls if n.target.__name__.startswith(name)]


def _line_of(text):
    with open(__file__) as file:
        return next(i for i, line in enumerate(file, 1) if text in line)


def test_backward_calls_have_the_module_and_line_of_their_forward_call():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(3, 4)
    program = _record(lambda: model(x).sum().backward(), model)
    line = f"test_stream.py:{_line_of('# the line of tanh')}"
    forward, backward = _calls(program, "tanh.default"), _calls(program, "tanh_backward")
    assert [c.module for c in forward] == ["blocks.0", "blocks.1"]
    assert [c.module for c in backward] == ["blocks.1", "blocks.0"]
    assert {c.phase for c in forward} == {"forward"}
    assert {c.phase for c in backward} == {"backward"}
    assert all(c.source.endswith(line) for c in (*forward, *backward))
    assert {c.module for c in _calls(program, "addmm")} == {
        f"blocks.{i}.{n}" for i in (0, 1) for n in ("first", "second")
    }
    assert {c.module for c in _calls(program, "mm")} == {c.module for c in _calls(program, "addmm")}


def test_modules_are_named_without_a_model():
    model, x = Net(), torch.randn(3, 4)
    program = _record(lambda: model(x).sum().backward())
    assert "Net.blocks.1" in {n.meta["call"].module for n in program.calls}
    assert "blocks.0.first.weight" in program.parameters


def test_calls_are_found_by_module():
    model, x = Net(), torch.randn(3, 4)
    program = _record(lambda: model(x).sum().backward(), model)
    inside = program.at("blocks.1")
    assert {n.meta["call"].module for n in inside} == {
        "blocks.1", "blocks.1.first", "blocks.1.second",
    }  # fmt: skip
    assert len(program.at("")) == len(program)
    with pytest.raises(KeyError, match=r"blocks\.1"):
        program.at("block.1")


def test_recomputed_calls_belong_to_the_backward_phase_and_their_module():
    torch.manual_seed(0)
    model, x = Block(), torch.randn(3, 4)
    program = _record(lambda: checkpoint(model, x, use_reentrant=False).sum().backward(), model)
    tanh = _calls(program, "tanh.default")
    assert [c.phase for c in tanh] == ["forward", "backward"]
    assert tanh[0].source == tanh[1].source


def test_a_custom_backward_has_its_own_line():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad.sinh()  # the line of sinh

    w = nn.Parameter(torch.randn(3))
    program = _record(lambda: Scale.apply(w).sum().backward())
    (call,) = _calls(program, "sinh")
    assert call.phase == "backward"
    assert call.source.endswith(f"test_stream.py:{_line_of('# the line of sinh')}")


def test_the_optimizer_runs_in_a_phase_of_its_own():
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)

    def step():
        model(x).sum().backward()
        optimizer.step()

    program = _record(step, model)
    assert {c.phase for c in _calls(program, "add")} >= {"update"}
    assert "weight" in program.recorded.updates


def test_double_backward_keeps_the_module():
    torch.manual_seed(0)
    model, x = Block(), torch.randn(3, 4, requires_grad=True)

    def step():
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        slope.square().sum().backward()

    program = _record(step, model)
    assert {c.module for c in _calls(program, "tanh_backward")} == {""}


def test_the_hooks_are_gone_after_the_block():
    from torch.nn.modules import module

    before = len(module._global_forward_pre_hooks), len(module._global_forward_hooks)
    model, x = nn.Linear(4, 2), torch.randn(3, 4)
    _record(lambda: F.relu(model(x)).sum().backward(), model)
    assert (len(module._global_forward_pre_hooks), len(module._global_forward_hooks)) == before


def test_a_second_derivative_has_the_line_of_the_forward_call():
    x = torch.ones(3, requires_grad=True)

    def step():
        y = torch.tanh(x).sum()  # the line that is differentiated twice
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        slope.square().sum().backward()

    program = _record(step)
    line = f"test_stream.py:{_line_of('# the line that is differentiated twice')}"
    twice = [c for c in _calls(program, "tanh_backward") if c.phase == "backward"]
    assert len(twice) >= 2
    assert all(c.source.endswith(line) for c in twice)
    last = _calls(program, "mul")  # of the derivative of tanh_backward
    assert any(c.phase == "backward" and c.source.endswith(line) for c in last)
