"""Are tiny transformers models left in peace after some training?"""

import pytest
import torch

from numgeom.diagnosis import diagnose
from tests.recording import workloads

NAMES = ("hf-gpt2-sdpa", "hf-llama-eager", "hf-bert-eager", "hf-vit-eager", "hf-resnet",
         "hf-convnext")  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # transformers warns of its own tiny configurations
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_has_no_finding(name: str) -> None:
    pytest.importorskip("transformers")
    model, step = workloads.build(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        step()
        optimizer.step()
    optimizer.zero_grad()
    found = diagnose(step)
    assert not found, str(found)
