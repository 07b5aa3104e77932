"""Figures 5, 11, 12 and 13: does beta harm training?

Final test accuracy and training loss against beta, by format, batch norm and arm (Boustany 2024,
figures 5, 11, 12 and 13). The paper's program blended the forward pass as well; the arms tell that
from the derivative (`reproductions.maxpool.pool_arms`).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from numgeom.arithmetic.printing import nearest_short
from reproductions.maxpool.figure import Findings
from reproductions.maxpool.plots import box_plot
from reproductions.maxpool.pool_arms import Arm
from reproductions.maxpool.problems import problem
from reproductions.maxpool.sampling import state_file
from reproductions.maxpool.training_study import OptimizerName, Recipe, Run, Trial, grid, run_study
from reproductions.outcome import Cell, Plot, Settings, Table
from reproductions.plots import Series, line_plot

BETAS = (0.0, 1.0, 10.0, 1e2, 1e3, 1e4)
"""The values of beta in the paper."""

_COLUMNS = (
    "optimizer", "format", "batch norm", "arm", "beta", "runs", "accuracy, median", "lowest",
    "highest", "loss", "not finite", "from step",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Which networks a figure trains, as the published program does unless it says otherwise.

    Attributes:
        network: As `problem` names it.
        data: Its published data set.
        epochs: Of every trial.
        betas: Weights of the minimal max-pool.
        optimizers: Of the trials, as the following.
        dtypes: Formats of parameters, inputs and optimizer state.
        batch_norms: Whether with batch norm.
        arms: How beta enters.
        seeds: How many, from the seed of the settings on.
        batch_size: Samples in a mini-batch.
        train_size: Samples; None: all.
        width: Channels of the first stage; None: as published.
        learning_rate: Step size; None: that of the paper's published program.
        kaiming: Initial values of the volume experiments in place of torch's.
    """

    network: str
    data: str
    epochs: int
    betas: tuple[float, ...] = BETAS
    optimizers: tuple[OptimizerName, ...] = ("sgd",)
    dtypes: tuple[str, ...] = ("float16", "float32")
    batch_norms: tuple[bool, ...] = (False,)
    arms: tuple[Arm, ...] = ("exact", "blended")
    seeds: int = 10
    batch_size: int = 128
    train_size: int | None = None
    width: int | None = None
    learning_rate: float | None = None
    kaiming: bool = False

    @property
    def recipe(self) -> Recipe:
        """What the trials share."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            train_size=self.train_size,
            learning_rate=self.learning_rate,
            kaiming=self.kaiming,
        )

    def trials(self, seed: int) -> tuple[Trial, ...]:
        """The trials, with seeds from this one on."""
        return grid(
            betas=self.betas,
            optimizers=self.optimizers,
            dtypes=self.dtypes,
            batch_norms=self.batch_norms,
            arms=self.arms,
            seeds=range(seed, seed + self.seeds),
        )


def accuracy_by_beta(settings: Settings, name: str, size: Grid) -> Findings:
    """Train a grid and show accuracies and losses by optimizer, format, batch norm, arm, beta."""
    each = problem(size.network, size.data, settings, width=size.width)
    recipe = size.recipe
    runs = run_study(
        each,
        recipe,
        size.trials(settings.seed),
        device=settings.device,
        state=state_file(settings, name),
        progress=settings.progress,
    )
    groups = _grouped(runs)
    notes = [
        "Parameters, inputs and optimizer state are in the format that stands in the table. A run "
        "ends at its first step with a loss or gradient that is not finite: the last two columns "
        "count these runs and give the earliest such step.",
        "Accuracies on the test samples and the mean training loss are those after the last epoch.",
        "Step sizes are those of the paper's published program where it has one, found by a search "
        "at beta = 0."
        if recipe.learning_rate is None
        else f"The step size is {nearest_short(recipe.learning_rate, 6)} for every beta.",
    ]
    if recipe.kaiming:
        notes.append("Initial values are Kaiming's: narrow networks stay at chance with torch's.")
    if any(run.trial.arm != "exact" for run in runs):
        notes.append(
            "The paper's program is the blended arm: its forward pass rounds in every window. The "
            "exact arm has torch's forward pass and differs in the derivative alone."
        )
    if settings.device == "cpu":
        notes.append("The paper trained on GPUs, whose sums have no fixed order; here they have.")
    if any(run.trial.optimizer == "adam" and run.trial.dtype == "float16" for run in runs):
        notes.append("Adam's eps is 1e-4 in float16, where torch's 1e-8 is zero.")
    return Findings(
        tables=(Table(each.label, _COLUMNS, tuple(_row(group) for group in groups)),),
        plots=_plots(name, runs),
        facts={
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "train_size": recipe.train_size or len(each.dataset.train[1]),
            "seconds_of_training": sum(run.seconds for run in runs),
        },
        notes=tuple(notes),
        problems=(each,),
    )


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in the seed alone, in the order of their first one."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        trial = run.trial
        key = (trial.optimizer, trial.dtype, trial.batch_norm, trial.arm, trial.beta)
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _row(group: list[Run]) -> tuple[Cell, ...]:
    trial = group[0].trial
    accuracies = sorted(run.accuracies[-1] for run in group)
    steps = [run.nonfinite_step for run in group if run.nonfinite_step is not None]
    return (
        trial.optimizer,
        trial.dtype,
        trial.batch_norm,
        trial.arm,
        trial.beta,
        len(group),
        statistics.median(accuracies),
        accuracies[0],
        accuracies[-1],
        sum(run.losses[-1] for run in group) / len(group),
        len(steps),
        min(steps) if steps else None,
    )


def _plots(name: str, runs: Sequence[Run]) -> tuple[Plot, ...]:
    """Boxes of the final accuracy, and curves of the loss, for each optimizer and batch norm."""
    plots: list[Plot] = []
    for optimizer, batch_norm in dict.fromkeys(
        (run.trial.optimizer, run.trial.batch_norm) for run in runs
    ):
        chosen = [
            run
            for run in runs
            if run.trial.optimizer == optimizer and run.trial.batch_norm == batch_norm
        ]
        several = len({(r.trial.optimizer, r.trial.batch_norm) for r in runs}) > 1
        tag = f"-{optimizer}{'-bn' if batch_norm else ''}" if several else ""
        title = f"{optimizer}, {'with' if batch_norm else 'without'} batch norm"
        boxes: dict[str, dict[str, list[float]]] = {}
        for run in chosen:
            label = f"{run.trial.dtype}, {run.trial.arm}"
            place = nearest_short(run.trial.beta, 6)
            boxes.setdefault(label, {}).setdefault(place, []).append(run.accuracies[-1])
        plots.append(
            box_plot(
                f"{name}{tag}-accuracy",
                f"Test accuracy after training: {title}",
                boxes,
                x_label="beta",
                y_label="share of test samples classified right",
            )
        )
        for dtype in dict.fromkeys(run.trial.dtype for run in chosen):
            series = [_loss(group) for group in _grouped(chosen) if group[0].trial.dtype == dtype]
            plots.append(
                line_plot(
                    f"{name}{tag}-loss-{dtype}",
                    f"Training loss, mean and deviation over seeds: {dtype}, {title}",
                    series,
                    x_label="epoch",
                    y_label="mean cross-entropy",
                    y_scale="log",
                )
            )
    return tuple(plots)


def _loss(group: list[Run]) -> Series:
    trial = group[0].trial
    epochs = range(len(group[0].losses))
    means = [sum(run.losses[e] for run in group) / len(group) for e in epochs]
    deviations = [
        math.sqrt(sum((run.losses[e] - means[e]) ** 2 for run in group) / len(group))
        for e in epochs
    ]
    return Series(
        label=f"beta {nearest_short(trial.beta, 6)}, {trial.arm}",
        x=[e + 1 for e in epochs],
        y=means,
        spread=[(max(m - d, 1e-6), m + d) for m, d in zip(means, deviations, strict=True)],
        style=".-",
    )
