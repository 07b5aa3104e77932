"""Is what storage of activations does to the gradient predicted?"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from numgeom.examples import load_example
from numgeom.precision import PrecisionError, estimate
from numgeom.precision.rounding import quantized
from numgeom.precision.storage import storage_named, stored_values
from numgeom.recording import record_step


def stored_for_real(model: nn.Module, loss_fn: Any, batch: Any, name: str) -> float:
    """Relative error of a step whose saved activations go through a narrow format."""
    exact = record_step(model, loss_fn, batch).replay().gradients
    kept = {id(p) for p in model.parameters()}
    pointers = {p.untyped_storage().data_ptr() for p in model.parameters()}
    pack = storage_named(name)

    def store(x: Tensor) -> Tensor:
        fixed = id(x) in kept or x.untyped_storage().data_ptr() in pointers
        real = x.dtype is torch.float32 and x.dim() > 0 and x.shape[-1] != 1
        return x if fixed or not real or x is batch[0] else pack(x.detach())

    with saved_tensors_hooks(store, lambda x: x):
        loss = loss_fn(model, batch)
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    error = sum(float((found[n].double() - g).square().sum()) for n, g in exact.items())
    return (error / sum(float(g.square().sum()) for g in exact.values())) ** 0.5


@pytest.mark.parametrize("stored_as", ["float16", "bfloat16", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("name", ["digits-mlp-deep", "digits-mlp"])
def test_the_error_is_that_of_a_step_that_stores_so(name: str, stored_as: str) -> None:
    model, loss_fn, batch = load_example(name, batch_size=16)
    found = estimate(model, loss_fn, batch, stored_as=stored_as).total.predicted_error
    assert 0.5 < found / stored_for_real(model, loss_fn, batch, stored_as) < 2.0


def test_fewer_bits_lose_more_and_the_formats_are_said() -> None:
    model, loss_fn, batch = load_example("text-gpt", batch_size=2)
    found = [
        estimate(model, loss_fn, batch, stored_as=s)
        for s in ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    ]
    errors = [each.total.predicted_error for each in found]
    assert errors == sorted(errors)
    assert errors[0] < 1e-5 < errors[1]
    assert "stored as float16" in found[1].formats


def test_recomputation_with_a_mismatch_costs_more_than_none() -> None:
    model, loss_fn, batch = load_example("digits-mlp-deep", batch_size=16)
    plain = estimate(model, loss_fn, batch).total.predicted_error
    again = estimate(model, loss_fn, batch, stored_as="recomputed")
    assert plain < again.total.predicted_error < 3.0 * plain
    assert "recomputed" in again.formats
    with pytest.raises(PrecisionError, match="mismatch"):
        again.sources()


def test_sources_of_stored_activations_are_in_the_backward_pass() -> None:
    model, loss_fn, batch = load_example("digits-mlp-deep", batch_size=16)
    phases = estimate(model, loss_fn, batch, stored_as="int8").sources().by("phase")
    assert sum(phases.values()) == pytest.approx(1.0)
    assert phases["forward"] < 0.01


def test_parameters_are_not_stored_and_activations_are() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    program = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(5, 3))
    modules = {node.meta["call"].module for node in stored_values(program)}
    assert modules == {"1", "2"}  # tanh(x), and the output for the square
    ops = {str(node.target) for node in stored_values(program)}
    assert not any(".t." in name for name in ops)


def test_int8_keeps_the_ends_and_has_256_levels() -> None:
    x = torch.randn(10_000)
    found = quantized(x)
    assert found.unique().numel() <= 256
    assert (found - x).abs().max() <= (x.max() - x.min()) / 255.0 * 0.5001
    assert torch.equal(quantized(torch.zeros(3)), torch.zeros(3))
    assert quantized(torch.empty(0)).numel() == 0


def test_unknown_storage_lists_the_known() -> None:
    with pytest.raises(PrecisionError, match=r"float16.*int8.*recomputed"):
        storage_named("float7")
