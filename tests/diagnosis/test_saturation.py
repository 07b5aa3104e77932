"""Are large activations looked at whole where a sample leaves a suspicion, and only there?"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from numgeom.diagnosis import diagnose, saturation
from numgeom.diagnosis.trace import take
from numgeom.recording import record_step


class Scaled(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        return x.softmax(-1) if self.name == "softmax" else getattr(x, self.name)()


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x)[..., 0].square().mean() + model.scale.square()


def large(flat: float) -> Tensor:
    """Rows of which a part is far out, in the middle of many."""
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    x[: int(flat * 4000)] *= 1000.0
    return x[torch.randperm(4000, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("name", ["softmax", "tanh", "sigmoid"])
def test_a_share_near_the_threshold_is_measured_exactly(name: str) -> None:
    for flat, found in ((0.7, False), (0.9, True)):
        kinds = [f.kind for f in diagnose(Scaled(name), loss, large(flat))]
        assert ("saturation" in kinds) == found, flat


@pytest.mark.parametrize("name", ["softmax", "tanh", "sigmoid"])
def test_healthy_ones_are_seen_by_a_sample(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def share(where: Tensor) -> float:
        sizes.append(where.numel())
        return float(where.double().mean())

    monkeypatch.setattr(saturation, "_share", share)
    take(record_step(Scaled(name), loss, large(0.0)), [saturation.SaturationDetector()])
    assert sizes
    assert max(sizes) <= 2 * 4096


def test_a_sample_of_entries_comes_from_all_columns() -> None:
    x = torch.zeros(4096, 64)
    x[:, 1::2] = 1.0
    share = float(saturation._sample(x).mean())
    assert share == pytest.approx(0.5, abs=0.01)
