"""Is the cheapest way to sample an error taken only where it is valid?"""

import pytest
import torch
from torch import nn

from numgeom.arithmetic.formats import bfloat16
from numgeom.examples import load_example
from numgeom.precision import sampling
from numgeom.precision.estimate import contractions_in
from numgeom.precision.perturbed import PerturbedReplay, in_float32_alone
from numgeom.precision.sampling import Asked, sampled
from numgeom.recording import Program, record, record_step
from tests.recording.workloads import build


def recorded(name: str) -> Program:
    model, step = build(name)
    with record(model) as recording:
        step()
    return recording.program


@pytest.mark.parametrize("name", ["mlp-silu", "batch-norm-cnn", "norms", "hf-gpt2-sdpa"])
def test_cheap_samples_agree_with_those_in_float64(name, monkeypatch) -> None:
    program = recorded(name)
    assert in_float32_alone(program)
    cheap = sampled(program, Asked(), samples=3, seed=0).mean()
    monkeypatch.setattr(sampling, "_LARGEST_PERTURBED", 0.0)  # all go on to float64
    exact = sampled(program, Asked(), samples=3, seed=0).mean()
    assert cheap != exact
    assert 0.5 < cheap / exact < 2.0


def test_narrow_operands_are_sampled_in_float32(monkeypatch) -> None:
    program = recorded("mlp-silu")
    asked = Asked(operands=contractions_in(bfloat16))
    cheap = sampled(program, asked, samples=2, seed=0).mean()
    monkeypatch.setattr(sampling, "_SMALLEST_NARROW", 1.0)
    exact = sampled(program, asked, samples=2, seed=0).mean()
    assert cheap == pytest.approx(exact, rel=0.05)


def test_a_router_that_changes_its_mind_is_sampled_in_float64() -> None:
    """A perturbed router sends a token to another expert: that is no rounding error."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    x = torch.full((1, 1), 1.0)

    def loss_fn(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m(x)
        return torch.where(y * 1.1 > 1.1 * x, 1e6 * y, y).sum()

    found = sampled(record_step(model, loss_fn, x), Asked(), samples=2, seed=0)
    assert found.mean() < 1e-6


def test_masks_stay_masks_under_noise() -> None:
    program = recorded("hf-gpt2-sdpa")
    for gradient in PerturbedReplay(program, seed=0).evaluate().gradients.values():
        assert torch.isfinite(gradient).all()


def test_a_float64_program_is_not_taken_for_float32() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=4, dtype=torch.float64)
    assert not in_float32_alone(record_step(model, loss_fn, batch))
