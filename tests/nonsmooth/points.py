"""A small sampling of parameter points, importable by other processes.

Run by torchrun: `points.py STATE POINTS` estimates the volume and prints it from every process.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from numgeom.nonsmooth import Minimal, Sampling, Selection, estimate_volume

PAIR = (Selection(), Selection(maxpool=Minimal()))


def make_model(number: int) -> nn.Module:
    """Some points have ties between different patches, others none."""
    generator = torch.Generator().manual_seed(number)
    model = nn.Sequential(nn.Conv1d(1, 1, 2), nn.MaxPool1d(2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-1, 2, p.shape, generator=generator))
    return model


def total(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).sum()


def sampling(*, zones: bool = True) -> Sampling:
    generator = torch.Generator().manual_seed(0)
    batches = tuple(torch.randint(0, 3, (1, 1, 7), generator=generator).float() for _ in range(3))
    return Sampling(
        make_model=make_model, loss_fn=total, batches=batches, selections=PAIR, zones=zones
    )


if __name__ == "__main__":
    measured: list[int] = []
    estimate_volume(sampling(zones=False), points=3)  # a process group after another
    found = estimate_volume(
        sampling(),
        points=int(sys.argv[2]),
        state=Path(sys.argv[1]),
        progress=lambda what, done, count: measured.append(done),
    )
    line = json.dumps(
        {"variations": found.variations.tolist(), "zones": found.zones, "mine": len(measured)}
    )
    sys.stdout.write(line + "\n")
