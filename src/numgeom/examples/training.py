"""How is an example trained, so that the same seed gives the same parameters bit for bit?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LossFunction = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class EpochReport:
    """What one pass over the training data did.

    Attributes:
        epoch: Which pass this was, from 1.
        epochs: How many passes there will be.
        mean_loss: Mean over the samples of the loss at the moment each was seen.
    """

    epoch: int
    epochs: int
    mean_loss: float


def train(
    model: nn.Module,
    loss_fn: LossFunction,
    samples: tuple[Tensor, ...],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[EpochReport], None] | None = None,
) -> tuple[EpochReport, ...]:
    """Train a model in place with Adam (Kingma and Ba 2015) on shuffled mini-batches.

    The order of the samples comes from a generator of its own, so that the global random state
    is used only by what the model itself draws. On one machine, with one number of threads, the
    same arguments give the same parameters bit for bit. Gradients are cleared at the end.

    Args:
        model: The model, changed in place.
        loss_fn: Mean loss of a batch: `loss_fn(model, batch)`.
        samples: Tensors with the samples along their first dimension; a batch is a slice of each.
        epochs: Passes over the samples; 0 leaves the model as it is.
        batch_size: Samples in a mini-batch; the last one of a pass may be smaller.
        learning_rate: Step size of Adam.
        seed: Decides the order of the samples.
        progress: Called after each pass.

    Returns:
        One report per pass.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    count = len(samples[0])
    reports: list[EpochReport] = []
    for epoch in range(1, epochs + 1):
        total_loss = 0.0
        order = torch.randperm(count, generator=generator, device="cpu")
        for chosen in order.split(batch_size):
            batch = tuple(tensor[chosen] for tensor in samples)
            optimizer.zero_grad(set_to_none=True)
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(chosen)
        reports.append(EpochReport(epoch=epoch, epochs=epochs, mean_loss=total_loss / count))
        if progress is not None:
            progress(reports[-1])
    optimizer.zero_grad(set_to_none=True)
    return tuple(reports)
