"""Are operations counted for the modules that do them?"""

import torch
from torch import nn

from numgeom.examples import load_example
from numgeom.precision.work import flops_by_module
from numgeom.recording import record_step


def test_products_are_counted_forward_and_backward() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    program = record_step(model, lambda m, x: m(x).sum(), torch.randn(10, 8))
    # 2 m n k for each product; the first layer needs no gradient of its input.
    assert flops_by_module(program) == {"0": 2 * 2 * 10 * 8 * 16, "2": 3 * 2 * 10 * 16 * 4}


def test_convolutions_and_attention_are_counted_for_their_modules() -> None:
    lenet = flops_by_module(record_step(*load_example("digits-lenet", batch_size=2)))
    assert lenet["features.0"] > 0
    assert lenet["features.4"] > lenet["features.0"]
    gpt = flops_by_module(record_step(*load_example("text-gpt", batch_size=1)))
    assert any("attention" in module for module in gpt)
