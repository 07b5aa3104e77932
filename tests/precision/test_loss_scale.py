"""Does the recommended scale keep the backward pass in the format's range?"""

import json

import pytest
import torch
from torch import nn

from numgeom.examples import load_example
from numgeom.precision import LossScale, recommend_loss_scale
from numgeom.precision.loss_scale import HEADROOM, ExponentCount, backward_exponents
from numgeom.recording import Program, record_step
from numgeom.results.codec import decode, encode


def program(size: float) -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    return record_step(model, lambda m, x: (m(x).square() * size).sum(), torch.randn(10, 8))


@pytest.mark.parametrize("size", [2.0**-24, 2.0**-30])
def test_small_gradients_are_lifted_below_overflow(size: float) -> None:
    step = program(size)
    found = recommend_loss_scale(step)
    assert found.needed
    assert not found.needed_in_bfloat16
    assert found.underflow[found.scale] < found.underflow[1.0]
    assert found.overflow[found.scale] == 0.0
    # The largest value, scaled, is within a factor of two of the limit that the headroom leaves.
    largest = max(backward_exponents(step)) + torch.tensor(found.scale).log2().item()
    assert largest == 15 - HEADROOM


def test_the_shares_are_those_of_a_cast() -> None:
    step = program(2.0**-24)
    small, total = 0, 0

    def on_call(node: torch.fx.Node, value: object) -> None:
        nonlocal small, total
        info = node.meta.get("call")
        if info and info.phase == "backward" and isinstance(value, torch.Tensor):
            small += int(((value.half() == 0) & (value != 0)).sum())
            total += int((value != 0).sum())

    step.replay(on_call=on_call)
    found = recommend_loss_scale(step)
    assert found.values == total
    assert found.underflow[1.0] == pytest.approx(small / total, abs=1e-3)


def test_large_gradients_are_scaled_down() -> None:
    found = recommend_loss_scale(program(2.0**18))
    assert found.needed
    assert found.scale < 1.0
    assert found.overflow[1.0] > 0.0


def test_where_nothing_is_lost_no_scale_is_needed() -> None:
    found = recommend_loss_scale(program(1.0))
    assert (found.needed, found.scale) == (False, 1.0)
    assert "No loss scale" in str(found)


def test_a_language_model_needs_one_in_float16_only() -> None:
    found = recommend_loss_scale(record_step(*load_example("text-gpt", batch_size=2)))
    assert found.needed
    assert "In bfloat16 none is needed" in str(found)


def test_the_advice_says_how_to_set_up_a_scaler_and_survives_a_file() -> None:
    found = recommend_loss_scale(program(2.0**-24))
    assert f"GradScaler(init_scale={found.scale:g}, growth_interval=2000)" in str(found)
    assert decode(LossScale, json.loads(json.dumps(encode(found)))) == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponents_are_those_of_the_values(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, -1.5, 2.0**-20, 3.0, torch.inf, torch.nan, -0.0], dtype=dtype)
    count = ExponentCount()
    node = next(iter(n for n in program(1.0).calls if n.meta["call"].phase == "backward"))
    count(node, [values.view(2, 4).T, None])
    assert count.found == {0: 2, -20: 1, 1: 1}
