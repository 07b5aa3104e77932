"""Figure 6: how far apart do runs drift that differ in beta alone?

Networks with one initialisation and one order of samples are trained side by side, each with its
own beta; the last repeats the first. After each epoch: the 1-norm of the difference of parameters
to the first network, and the test accuracy (Boustany 2024, figure 6).
"""

from dataclasses import dataclass

import torch
from torch import nn

from numgeom.arithmetic.printing import nearest_short
from reproductions.maxpool.figure import Findings
from reproductions.maxpool.pool_arms import Arm
from reproductions.maxpool.problems import problem
from reproductions.maxpool.training import BETAS
from reproductions.maxpool.training_study import Recipe, Training, Trial
from reproductions.outcome import Cell, Settings, Table
from reproductions.plots import Series, line_plot


@dataclass(frozen=True)
class Size:
    """How long is trained, and on what.

    Attributes:
        epochs: Of each network.
        train_size: Samples; None: all.
        batch_size: Samples in a mini-batch.
        width: Channels of the first stage; None: as published.
        step_size: Of plain SGD; the figure alone uses a constant one, of 0.01 to 0.012.
        arm: How beta enters.
    """

    epochs: int
    train_size: int | None
    batch_size: int
    width: int | None
    step_size: float = 0.01
    arm: Arm = "exact"


def drift(settings: Settings, name: str, size: Size) -> Findings:
    """Train seven networks side by side, from the initial values that the seed decides."""
    vgg = problem("VGG-11", "CIFAR10", settings, width=size.width)
    recipe = Recipe(
        epochs=size.epochs,
        batch_size=size.batch_size,
        train_size=size.train_size,
        learning_rate=size.step_size,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        kaiming=True,
    )
    betas = (*BETAS, 0.0)
    runs = [
        Training(
            vgg, recipe, Trial(beta=beta, arm=size.arm, seed=settings.seed), device=settings.device
        )
        for beta in betas
    ]
    distances: list[list[float]] = [[] for _ in runs]
    accuracies: list[list[float]] = [[] for _ in runs]
    for epoch in range(size.epochs):
        settings.progress(f"{name}, epochs", epoch, size.epochs)
        for index, run in enumerate(runs):
            run.epoch()
            accuracies[index].append(run.accuracy())
            distances[index].append(parameter_distance(runs[0].model, run.model))
    labels = [*(f"0 vs {nearest_short(beta, 6)}" for beta in betas[:-1]), "0 vs 0, again"]
    rows: list[tuple[Cell, ...]] = [
        (label, of[0], of[-1], right[-1], run.nonfinite_step)
        for label, of, right, run in zip(labels, distances, accuracies, runs, strict=True)
    ]
    epochs = list(range(1, size.epochs + 1))
    return Findings(
        tables=(
            Table(
                f"{vgg.label}, float32",
                (
                    "pair",
                    "distance after 1 epoch",
                    "distance at the end",
                    "accuracy at the end",
                    "first step not finite",
                ),
                tuple(rows),
            ),
        ),
        plots=(
            line_plot(
                f"{name}-distance",
                "1-norm of the difference of parameters to the run with beta = 0",
                [
                    Series(label, epochs, of, style=".-")
                    for label, of in zip(labels[1:], distances[1:], strict=True)
                ],
                x_label="epoch",
                y_label="1-norm",
                y_scale="symlog",
            ),
            line_plot(
                f"{name}-accuracy",
                "Test accuracy",
                [
                    Series(f"beta {nearest_short(beta, 6)}", epochs, right, style=".-")
                    for beta, right in zip(betas[:-1], accuracies[:-1], strict=True)
                ],
                x_label="epoch",
                y_label="share of test samples classified right",
            ),
        ),
        facts={"epochs": size.epochs, "batch_size": size.batch_size, "step_size": size.step_size},
        notes=(
            "All runs stay in memory together; an interrupted one begins again.",
            "The paper trained on a GPU with nondeterministic kernels, where two equal runs drift "
            "apart as well. On a device that repeats its sums they stay equal: the last row is 0.",
        ),
        problems=(vgg,),
    )


@torch.no_grad()
def parameter_distance(first: nn.Module, second: nn.Module) -> float:
    """The 1-norm of the difference of all parameters, accumulated in float64."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return sum(float((a.double() - b.double()).abs().sum()) for a, b in pairs)
