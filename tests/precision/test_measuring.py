"""Is the error of an assignment measured where it is made?"""

import math

import pytest
import torch
from torch import nn

from numgeom.examples import load_example
from numgeom.precision.measuring import Measurer, varied
from numgeom.recording import Program, record_step


def recorded(name: str) -> Program:
    return record_step(*load_example(name, batch_size=8))


def test_variants_are_made_for_kinks_only_and_keep_the_step() -> None:
    program = recorded("digits-lenet")
    variants = varied(program)
    assert len(variants) > 1
    for variant in variants:
        for name, gradient in program.recorded.gradients.items():
            changed = variant.recorded.gradients[name]
            assert 0.0 < (changed - gradient).norm() < gradient.norm()
    assert varied(recorded("digits-mlp-deep")) == []


def test_errors_are_averaged_over_batches() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=8)
    other = load_example("digits-mlp", batch_size=8, seed=3).batch
    programs = [record_step(model, loss_fn, b) for b in (batch, other)]
    formats = {"layers.0": "bfloat16"}
    alone = [Measurer([p], 0.0, 1.0).error(formats) for p in programs]
    together = Measurer(programs, 0.0, 1.0).error(formats)
    assert together == pytest.approx(math.hypot(*alone) / math.sqrt(2.0))


def test_an_overflow_that_the_gradient_does_not_show_forbids_the_format() -> None:
    """tanh of infinity is 1, as it is of any large number: the gradient is right by chance."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False))
    model[0].weight.data.fill_(4e4)
    program = record_step(model, lambda m, x: m(x).sum(), torch.ones(2, 2))
    measurer = Measurer([program], 0.0, 1.0)
    assert measurer.error({"0": "float16"}) == math.inf
    assert measurer.error({"0": "bfloat16"}) < 1.0
    assert measurer.error({"2": "float16"}) < 1.0


def test_masks_do_not_count_as_overflow() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = (x @ self.w).masked_fill(torch.ones(4, 4).triu(1) > 0, torch.finfo().min)
            return scores.softmax(-1) @ x

    model = nn.Sequential(Masked())
    program = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(4, 4))
    assert Measurer([program], 0.0, 1.0).error({"0": "float16"}) < 0.1


def test_underflow_is_counted_from_the_values() -> None:
    """Three of four weights are below the smallest float16 number."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1e-9, -1e-9, 2e-9, 1.0]])
    program = record_step(model, lambda m, x: m(x).sum(), torch.ones(1, 4))
    measurer = Measurer([program], 0.0, 1.0)
    for fmt in ("float16", "bfloat16", "float8_e4m3fn"):
        measurer.error({"0": fmt})
    # Rounded: 4 inputs, 4 weights, 1 result; the gradient of the result (1) and that of the
    # weights (4), once as an operand or result each.
    lost = measurer.underflow["0"]
    assert set(lost) == {"float16", "float8_e4m3fn"}  # bfloat16 ranges as far as float32
    assert 3 / 20 < lost["float16"] < 3 / 9
    assert 0.0 < lost["float8_e4m3fn"] < 3 / 9


@pytest.mark.parametrize("variants", [False, True])
def test_a_limit_is_kept_exactly_up_to_the_worst_error(variants: bool) -> None:
    program = recorded("digits-lenet")
    measurer = Measurer([program], 1e-7, 1.0, varied(program) if variants else [])
    formats = {"features.0": "bfloat16"}
    worst = measurer.worst(formats)
    assert measurer.keeps(formats, worst)
    assert not measurer.keeps(formats, worst * (1.0 - 1e-12))
    assert worst > measurer.error(formats, varied=False) or not variants
