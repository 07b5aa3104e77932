"""Does a replay with other formats give the gradient of a step that runs in them?"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.examples import load_example
from numgeom.precision.emulation import EmulatedReplay, rounds_of, scaled_values
from numgeom.precision.regions import formats_applied
from numgeom.recording import record_step


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    parts = [float((found[n].double() - g.double()).norm()) for n, g in exact.items()]
    return math.hypot(*parts) / math.hypot(*(float(g.norm()) for g in exact.values()))


def both(model: nn.Module, loss_fn: Any, batch: Any, formats: dict[str, str]) -> tuple[float, ...]:
    program = record_step(model, loss_fn, batch)
    exact = program.recorded.gradients
    emulated = EmulatedReplay(program, formats).evaluate().gradients
    with formats_applied(model, formats):
        real = record_step(model, loss_fn, batch).recorded.gradients
    return error(emulated, exact), error(real, exact), error(emulated, real)


@pytest.mark.parametrize("fmt", ["bfloat16", "float16", "tf32", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("path", ["layers.0", "layers.4", "layers"])
def test_an_emulated_run_is_the_real_one(fmt: str, path: str) -> None:
    model, loss_fn, batch = load_example("digits-mlp-deep", batch_size=16)
    emulated, real, apart = both(model, loss_fn, batch, {path: fmt})
    assert emulated == pytest.approx(real, rel=0.1)
    assert apart < 0.5 * real  # not only as large: the same roundings


@pytest.mark.parametrize("fmt", ["bfloat16", "tf32", "float8_e4m3fn"])
def test_convolutions_and_kinks_are_emulated(fmt: str) -> None:
    model, loss_fn, batch = load_example("digits-lenet", batch_size=16)
    for path in ("features.0", "features.3", "classifier.0"):
        if path in dict(model.named_modules()):
            emulated, real, _ = both(model, loss_fn, batch, {path: fmt})
            assert emulated == pytest.approx(real, rel=0.25)


def test_attention_is_emulated() -> None:
    model, loss_fn, batch = load_example("text-gpt", batch_size=4)
    emulated, real, _ = both(model, loss_fn, batch, {"blocks": "bfloat16"} | dict.fromkeys(
        (f"blocks.{i}.attention" for i in range(2)), "bfloat16"))  # fmt: skip
    assert 0.5 < emulated / real < 2.0


def test_nothing_is_rounded_without_formats() -> None:
    model, loss_fn, batch = load_example("digits-mlp", batch_size=4)
    program = record_step(model, loss_fn, batch)
    for formats in ({}, {"layers.0": "float32"}):
        assert rounds_of(program, formats) == {}
        found = EmulatedReplay(program, formats).evaluate().gradients
        assert all(torch.equal(found[n], g) for n, g in program.recorded.gradients.items())


def test_a_module_in_float32_interrupts_the_one_around_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    program = record_step(model, lambda m, x: m(x).square().sum(), torch.randn(8, 4))
    touched = rounds_of(program, {"0": "bfloat16", "0.1": "float32"})
    assert {node.meta["call"].module for node in touched} == {"0.0"}


def test_a_loss_scale_moves_the_backward_pass_alone() -> None:
    """Gradients of 1e-9 are lost in float16 without a scale, and kept with one."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    x = torch.randn(4, 8) * 100.0
    program = record_step(model, lambda m, x: m(x).sum() * 1e-9, x)
    exact = program.recorded.gradients
    formats = {"0": "float16", "1": "float16"}
    lost = error(EmulatedReplay(program, formats).evaluate().gradients, exact)
    kept = EmulatedReplay(program, formats, loss_scale=2.0**26).evaluate().gradients
    assert lost == pytest.approx(1.0)
    assert error(kept, exact) < 5e-3
    assert all(
        n.meta["call"].phase == "backward" for n in scaled_values(program) if "call" in n.meta
    )


def test_an_overflow_is_infinite() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    program = record_step(model, lambda m, x: m(x).sum(), torch.full((1, 4), 1e5))
    found = EmulatedReplay(program, {"0": "float16"}).evaluate().gradients
    assert not torch.isfinite(found["0.weight"]).all()
