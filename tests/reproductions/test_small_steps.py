"""Are the small networks what tables and benchmarks take them for?"""

import pytest
import torch
from torch import Tensor

from numgeom.examples.recipes import Step
from reproductions.small_steps import SMALL_STEPS, train

pytestmark = pytest.mark.usefixtures("quiet_libraries")


def _loss(step: Step) -> Tensor:
    model, loss_fn, batch = step
    return loss_fn(model, batch)


@pytest.mark.parametrize("name", SMALL_STEPS)
def test_a_seed_decides_the_step_and_a_few_steps_lower_its_loss(name: str) -> None:
    if "layers" in name and "tanh" not in name or "transformers" in name:
        pytest.importorskip("transformers")
    torch.rand(1)
    one, again, other = (SMALL_STEPS[name](seed) for seed in (3, 3, 4))
    states = [torch.random.get_rng_state()]
    before = []
    for step in (one, again, other):
        torch.random.set_rng_state(states[0])  # dropout
        before.append(float(_loss(step)))
    assert before[0] == before[1] != before[2]
    train(one)
    assert all(p.grad is None for p in one.model.parameters())
    torch.random.set_rng_state(states[0])
    assert float(_loss(one)) < before[0]
