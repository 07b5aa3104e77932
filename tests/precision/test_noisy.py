"""Does a noisy replay round as the formats do?"""

import pytest
import torch
from torch import Tensor, nn

from numgeom.arithmetic.formats import float8_e4m3fn, tf32
from numgeom.precision.estimate import contractions_in
from numgeom.precision.noisy import NoisyReplay, difference, gradients_of, op_name
from numgeom.precision.rounding import round_operand
from numgeom.recording import Program, record, record_step
from tests.recording.workloads import build


class Elementwise(nn.Module):
    """Only operations that every IEEE 754 unit rounds once and to nearest."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(50))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x[0] + x[1] * self.w) / x[2] * self.w - x[1]


def program_of(dtype: torch.dtype) -> Program:
    model = Elementwise().to(dtype)
    return record_step(model, lambda m, x: m(x).sum(), torch.rand(3, 50, dtype=dtype) + 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_no_kernel_is_free_the_recorded_bits_come_out(dtype: torch.dtype) -> None:
    program = program_of(dtype)
    found = gradients_of(program, seed=0)["w"]
    assert torch.equal(found, program.recorded.gradients["w"].double())
    assert not torch.equal(found, program.replay().gradients["w"])


def test_a_seed_decides_the_sample() -> None:
    _, step = build("mlp-tanh")
    with record() as recording:
        step()
    first, again, other = (gradients_of(recording.program, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_what_overflows_in_the_format_overflows() -> None:
    model = nn.Linear(4, 1, bias=False).half()
    x = torch.full((1, 4), 600.0, dtype=torch.float16)
    program = record_step(model, lambda m, x: (m(x) * 200 * 600).sum(), x)
    assert torch.isinf(gradients_of(program, seed=0)["weight"]).all()


def test_what_is_too_small_for_the_format_is_lost() -> None:
    model = nn.Linear(4, 1, bias=False).half()
    x = torch.ones(1, 4, dtype=torch.float16)
    program = record_step(model, lambda m, x: m(x).float().sum() * 1e-9, x)
    assert (program.replay().gradients["weight"] != 0).all()
    assert (gradients_of(program, seed=0)["weight"] == 0).all()


def test_local_errors_are_those_of_the_roundings() -> None:
    sample = NoisyReplay(program_of(torch.bfloat16), seed=0, keep_local=True)
    sample.evaluate()
    names = {op_name(node) for node in sample.local}
    assert {"mul", "add", "div"} <= names
    assert not {"view", "expand", "select"} & names
    assert all(torch.isfinite(d).all() for parts in sample.local.values() for d in parts.values())


def test_operands_are_rounded_where_it_is_asked_for() -> None:
    program = record_step(nn.Linear(32, 8), lambda m, x: m(x).tanh().sum(), torch.randn(16, 32))
    exact = program.replay().gradients["weight"]

    def error(name: str | None) -> float:
        fmt = {"tf32": tf32, "fp8": float8_e4m3fn}.get(name or "")
        operands = None if fmt is None else contractions_in(fmt)
        return float((gradients_of(program, seed=0, operands=operands)["weight"] - exact).norm())

    assert 100 * error(None) < error("tf32") < error("fp8") / 20


def test_eight_bit_operands_keep_their_relative_size() -> None:
    x = torch.tensor([1.0, 0.5, -1.5], dtype=torch.float64)
    for scale in (1.0, 2.0**-100, 2.0**100):
        assert torch.equal(round_operand(x * scale, float8_e4m3fn), x * scale)
    ones = torch.ones(3, dtype=torch.int64)
    assert round_operand(ones, float8_e4m3fn) is ones


def test_equal_infinities_differ_by_nothing() -> None:
    a = torch.tensor([-torch.inf, torch.nan, 2.0, torch.inf])
    b = torch.tensor([-torch.inf, torch.nan, 1.5, 0.0])
    assert difference(a, b).tolist() == [0.0, 0.0, 0.5, torch.inf]


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    deviation = torch.tensor([[1.0], [3.0]], dtype=torch.float64).expand(2, 100_001)
    noise = NoisyReplay(program_of(torch.float32), seed=0)._noise(deviation)
    for row, size in zip(noise, (1.0, 3.0), strict=True):
        assert row.double().pow(2).mean().sqrt() == pytest.approx(size, rel=0.02)
        assert abs(float(row.double().mean())) < 0.02 * size
    assert abs(float((noise[0] * noise[1]).mean())) < 0.05
