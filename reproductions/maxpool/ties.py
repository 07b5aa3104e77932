"""Figure 8: where does a max-pool meet equal values on an image?

One digit through the first convolution and ReLU of LeNet-5: the cells that attain the maximum of
their 2x2 window together with another one are marked (Boustany 2024, figure 8).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reproductions.maxpool.figure import Findings
from reproductions.maxpool.problems import problem
from reproductions.outcome import (
    Cell,
    Plot,
    Settings,
    Table,
)
from reproductions.plots import draw

_SIDE = 2  # of the pool windows


def tied_windows(settings: Settings, name: str, size: int) -> Findings:
    """Map the ties of one image, and count those of all channels.

    Args:
        settings: The seed decides the convolution's weights.
        name: Of the figure.
        size: Which image of the training data, counted from one.
    """
    lenet = problem("LeNet-5", "MNIST", settings)
    model = lenet.model(0, seed=settings.seed, device=settings.device)
    shown = lenet.dataset.train[0][size - 1 : size].to(settings.device)
    features: Any = model.features
    with torch.no_grad():
        activations = torch.relu(features[0](shown))[0].cpu()
    tied = tied_cells(activations)
    dead = tied & (activations == 0)
    rows: list[tuple[Cell, ...]] = []
    for channel in range(len(activations)):
        windows = tied[channel].numel() // _SIDE**2
        rows.append(
            (
                channel,
                windows,
                _windows_with(tied[channel] & ~dead[channel]),
                _windows_with(dead[channel]),
            )
        )
    # The channel with most ties that a gradient can pass: the map shows something.
    alive = (tied & ~dead).flatten(1).sum(dim=1)
    channel = int(alive.argmax())
    table = Table(
        "2x2 windows of one image after the first convolution and ReLU",
        ("channel", "windows", "tied above zero", "tied at zero"),
        tuple(rows),
    )
    return Findings(
        tables=(table,),
        plots=(_map(name, activations[channel], tied[channel]),),
        facts={"image": size - 1, "channel": channel, "network": lenet.label},
        notes=(
            "Ties at zero follow a ReLU that is off everywhere in the window: no gradient passes "
            "them, whatever the pool chooses.",
        ),
        problems=(lenet,),
    )


def tied_cells(images: Tensor) -> Tensor:
    """Mark the cells that attain the maximum of their 2x2 window together with another one.

    Args:
        images: Values [C, H, W], H and W even.

    Returns:
        Bool of the same shape.
    """
    top = F.max_pool2d(images, _SIDE).repeat_interleave(_SIDE, -2).repeat_interleave(_SIDE, -1)
    active = images == top
    count = F.avg_pool2d(active.to(torch.float32), _SIDE, divisor_override=1)
    several = (count > 1).repeat_interleave(_SIDE, -2).repeat_interleave(_SIDE, -1)
    return active & several


def _windows_with(cells: Tensor) -> int:
    return int(F.max_pool2d(cells[None].to(torch.float32), _SIDE).sum())


def _map(name: str, values: Tensor, tied: Tensor) -> Plot:
    def paint(axes: Any) -> None:
        height, width = values.shape
        axes.imshow(values.numpy(), cmap="gray_r", extent=(0, width, height, 0))
        for y, x in tied.nonzero().tolist():
            axes.add_patch(_square(x, y))
        axes.set_xticks(range(0, width + 1, _SIDE))
        axes.set_yticks(range(0, height + 1, _SIDE))
        axes.tick_params(labelbottom=False, labelleft=False)
        axes.grid(linewidth=0.5)
        axes.set(title="Tied cells (red) in the 2x2 windows of a max-pool")

    return draw(name, paint, size=(6, 6))


def _square(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.08, y + 0.08), 0.84, 0.84, fill=False, edgecolor="red", linewidth=1.0)
