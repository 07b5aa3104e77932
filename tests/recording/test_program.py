"""Programs: replay in other formats, files, text."""

import operator

import pytest
import torch
from torch import nn

from numgeom.errors import ReplayError
from numgeom.recording import Program, record, record_step
from tests.recording.workloads import build


def _program(name: str = "lenet") -> Program:
    model, step = build(name)
    with record(model) as recording:
        step()
    return recording.program


def test_digest_sees_values_and_calls_but_not_lines():
    first, same, other = _program("mlp-relu"), _program("mlp-relu"), _program("mlp-tanh")
    assert first.digest() == same.digest() != other.digest()
    name = next(iter(first.constants))
    first.constants[name].flatten()[0] += 1
    assert first.digest() != same.digest()


def test_replay_in_other_formats():
    program = _program("lenet")
    exact = program.replay(torch.float64).gradients["fc2.weight"]
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 0.2), (torch.float16, 0.05)):
        gradient = program.replay(dtype).gradients["fc2.weight"]
        assert gradient.dtype is dtype
        assert 0 < float((gradient.double() - exact).norm() / exact.norm()) < most
    with pytest.raises(ReplayError, match="floating-point"):
        program.replay(torch.int32)


def test_float64_means_float64_everywhere():
    """Integers divided, scalars, factories without a dtype: none falls back to float32."""
    w = nn.Parameter(torch.tensor([0.5, 3.0]))
    counts = torch.tensor([1, 3])

    def step():
        scale = counts / 3 + torch.full((2,), 0.1) + torch.where(counts > 1, 0.3, 0.7)
        scale = scale + torch.arange(0, 0.2, 0.1) + torch.ones(2) * 0.7 + counts.float().mean()
        (w * scale * torch.scalar_tensor(0.1) * counts.sqrt()).sum().backward()

    with record() as recording:
        step()
    exact = [
        (n / 3 + 0.1 + p + a + 0.7 + 2) * 0.1 * n**0.5 for n, p, a in ((1, 0.7, 0.0), (3, 0.3, 0.1))
    ]
    torch.testing.assert_close(
        recording.program.replay().gradients["leaf_0"],
        torch.tensor(exact, dtype=torch.float64),
        rtol=1e-15,
        atol=0,
    )


def test_defaults_that_depend_on_the_recorded_format_keep_their_values():
    w = nn.Parameter(torch.tensor([1e-3, 2e-3]))
    big = torch.tensor([float("inf"), 1.0])

    def step():
        y = nn.functional.rms_norm(w, (2,)) * 3
        (y * big.nan_to_num() * 1e-30).sum().backward()

    with record() as recording:
        step()
    program = recording.program
    eps, top = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).max
    x = torch.tensor([1e-3, 2e-3]).double().requires_grad_()
    y = 3 * x / (x.square().mean() + eps).sqrt()
    (y * torch.tensor([top, 1.0], dtype=torch.float64) * 1e-30).sum().backward()
    torch.testing.assert_close(program.replay().gradients["leaf_0"], x.grad, rtol=1e-12, atol=0)


def test_a_call_that_cannot_run_is_named():
    program = _program("mlp-relu")
    node = next(n for n in program.calls if "addmm" in str(n.target))
    node.args = (node.args[0], node.args[1], node.args[1])
    with pytest.raises(ReplayError, match=r"aten\.addmm\.default \(forward in 0 at .*workloads"):
        program.replay()


def test_on_call_sees_every_node_in_order():
    program = _program("mlp-relu")
    seen = []
    program.replay(on_call=lambda node, value: seen.append((node, value)))
    assert [n for n, _ in seen] == [n for n in program.graph.nodes if n.op != "output"]
    values = [v for _, v in seen if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert values
    assert all(v.dtype is torch.float64 for v in values)


def test_text_of_a_program():
    program = _program("mlp-relu")
    text = str(program)
    assert "parameter 0.weight" in text
    assert "aten.addmm.default" in text
    assert "forward 0 " in text
    assert repr(program).startswith(f"Program({len(program)} calls, 6 parameters")
    assert len(list(program)) == len(program)


def test_switches_of_the_recorded_run_hold_in_its_replay():
    model = nn.LSTM(4, 4)
    x = torch.randn(3, 2, 4)
    torch._C._set_mkldnn_enabled(False)
    try:
        with record(model) as recording:
            model(x)[0].sum().backward()
    finally:
        torch._C._set_mkldnn_enabled(True)
    program = recording.program
    seen = []
    program.replay(None, on_call=lambda n, v: seen.append(torch._C._get_mkldnn_enabled()))
    assert program.switches["mkldnn"] is False
    assert not any(seen)
    assert torch._C._get_mkldnn_enabled()
    replay = program.replay(None)
    for key, gradient in program.recorded.gradients.items():
        assert torch.equal(replay.gradients[key], gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        again = program.replay(None)
    assert torch.equal(again.gradients["weight_ih_l0"], program.recorded.gradients["weight_ih_l0"])


def test_a_part_that_a_call_has_not_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    program = record_step(model, lambda m, x: m(x).square().sum(), torch.eye(2))
    part = next(n for n in program.graph.nodes if n.target is operator.getitem)
    part.args = (part.args[0], 7)
    with pytest.raises(ReplayError, match="no such part"):
        program.replay()
