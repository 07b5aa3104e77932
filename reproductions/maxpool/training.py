"""numgeom reproduce maxpool-fig5, -fig11, -fig12, -fig13, -training: does beta harm training?

Final test accuracy and training loss against beta, by format, batch norm and arm (Boustany 2024,
figures 5, 11, 12 and 13). The paper's program blended the forward pass as well; the arms tell that
from the derivative (`reproductions.maxpool.pool_arms`).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reproductions.maxpool.plots import box_plot
from reproductions.maxpool.pool_arms import ARMS, Arm
from reproductions.maxpool.problems import problem, standing
from reproductions.maxpool.sampling import state_file
from reproductions.maxpool.training_study import OptimizerName, Recipe, Run, Trial, grid, run_study
from reproductions.outcome import Cell, Outcome, Plot, Settings, Table, circumstances
from reproductions.plots import Series, line_plot

BETAS = (0.0, 1.0, 10.0, 1e2, 1e3, 1e4)
"""The values of beta in the paper."""

# Of the narrow networks at the small scale, chosen at beta = 0 on the digits: without batch norm,
# VGG-11 and ResNet-18 learn within a few epochs from Kaiming's initial values (at 0.02 ResNet-18
# does not), and neither does from torch's own.
_SMALL_RATES = {"sgd": 0.01, "adam": 1e-3}

_COLUMNS = (
    "optimizer", "format", "batch norm", "arm", "beta", "runs", "accuracy, median", "lowest",
    "highest", "loss", "not finite", "from step",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What a figure trains.

    Attributes:
        recipe: What the trials share.
        trials: The trials.
        width: Channels of the first stage; None: as published.
    """

    recipe: Recipe
    trials: tuple[Trial, ...]
    width: int | None = None


def fig5(settings: Settings, *, study: Study | None = None) -> Outcome:
    """VGG-11 with SGD, in 16 and 32 bits, with and without batch norm."""
    return training_figure(
        settings,
        "maxpool-fig5",
        "Training VGG-11 with SGD (Boustany 2024, figure 5)",
        ("VGG-11", "CIFAR10"),
        study
        or usual_study(
            settings,
            epochs=200,
            width=4,
            batch_norms=(False, True),
            small_betas=(0.0, 1e3, 1e4),
        ),
    )


def fig11(settings: Settings, *, study: Study | None = None) -> Outcome:
    """VGG-11 with Adam in 32 bits without batch norm."""
    return training_figure(
        settings,
        "maxpool-fig11",
        "Training VGG-11 with Adam (Boustany 2024, figure 11)",
        ("VGG-11", "CIFAR10"),
        study
        or usual_study(
            settings, epochs=200, width=4, optimizers=("adam",), dtypes=("float32",), seeds=2
        ),
    )


def fig12(settings: Settings, *, study: Study | None = None) -> Outcome:
    """LeNet-5 with SGD in 16 and 32 bits, in all three arms."""
    return training_figure(
        settings,
        "maxpool-fig12",
        "Training LeNet-5 with SGD (Boustany 2024, figure 12)",
        ("LeNet-5", "MNIST"),
        study
        or usual_study(
            settings,
            epochs=100,
            width=None,
            arms=ARMS,
            seeds=2,
            small_betas=(0.0, 1e3, 1e4),
        ),
    )


def fig13(settings: Settings, *, study: Study | None = None) -> Outcome:
    """ResNet-18 with SGD in 16 and 32 bits, with and without batch norm."""
    return training_figure(
        settings,
        "maxpool-fig13",
        "Training ResNet-18 with SGD (Boustany 2024, figure 13)",
        ("ResNet-18", "CIFAR10"),
        study
        or usual_study(
            settings,
            epochs=200,
            width=4,
            batch_norms=(False, True),
            small_betas=(0.0, 1e3, 1e4),
            small_epochs=4,
        ),
    )


def training(settings: Settings, *, study: Study | None = None) -> Outcome:
    """LeNet-5 over beta, optimizer, format, batch norm and arm: the whole grid."""
    return training_figure(
        settings,
        "maxpool-training",
        "Training LeNet-5: beta, optimizer, format, batch norm and arm",
        ("LeNet-5", "MNIST"),
        study
        or usual_study(
            settings,
            epochs=100,
            width=None,
            optimizers=("sgd", "adam"),
            dtypes=("float16", "bfloat16", "float32", "float64"),
            batch_norms=(False, True),
            arms=ARMS,
            small_betas=(0.0, 1e4),
            small_epochs=4,
        ),
    )


def usual_study(
    settings: Settings,
    *,
    epochs: int,
    width: int | None,
    optimizers: tuple[OptimizerName, ...] = ("sgd",),
    dtypes: tuple[str, ...] = ("float16", "float32"),
    batch_norms: tuple[bool, ...] = (False,),
    arms: tuple[Arm, ...] = ("exact", "blended"),
    seeds: int = 1,
    small_betas: tuple[float, ...] = (0.0, 1e2, 1e3, 1e4),
    small_epochs: int = 6,
    small_rate: float | None = None,
) -> Study:
    """The published size, or one that ends within minutes on two cores.

    Args:
        settings: Decide which of the two, and the first seed.
        epochs: At the published scale.
        width: Channels of the first stage at the small scale; None: as published.
        optimizers: Of all trials, as the following.
        dtypes: Formats.
        batch_norms: Whether with batch norm.
        arms: How beta enters.
        seeds: How many at the small scale; the published scale has ten.
        small_betas: The values of beta at the small scale.
        small_epochs: At the small scale.
        small_rate: Step size of a narrow network at the small scale; None: the usual one.
    """
    first = settings.seed
    if settings.is_small:
        rate = None if width is None else small_rate or _SMALL_RATES[optimizers[0]]
        narrow = width is not None
        recipe = Recipe(epochs=small_epochs, batch_size=32, learning_rate=rate, kaiming=narrow)
        betas = small_betas
    else:
        recipe = Recipe(epochs=epochs, batch_size=128)
        betas, seeds = BETAS, 10
    trials = grid(
        betas=betas,
        optimizers=optimizers,
        dtypes=dtypes,
        batch_norms=batch_norms,
        arms=arms,
        seeds=range(first, first + seeds),
    )
    return Study(recipe, trials, width)


def training_figure(
    settings: Settings, name: str, title: str, what: tuple[str, str], study: Study
) -> Outcome:
    """Run a study and show accuracies and losses by optimizer, format, batch norm, arm and beta.

    Args:
        settings: As for every reproduction.
        name: Of the reproduction.
        title: Its title.
        what: Network and data set, as `problem` names them.
        study: What is trained.
    """
    each = problem(*what, settings, width=study.width)
    runs = run_study(
        each,
        study.recipe,
        study.trials,
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
        if study.recipe.learning_rate is None
        else f"The step size is {study.recipe.learning_rate:g} for every beta.",
    ]
    if study.recipe.kaiming:
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
    return Outcome(
        name=name,
        title=title,
        tables=(Table(each.label, _COLUMNS, tuple(_row(group) for group in groups)),),
        plots=_plots(name, runs),
        facts={
            "epochs": study.recipe.epochs,
            "batch_size": study.recipe.batch_size,
            "train_size": study.recipe.train_size or len(each.dataset.train[1]),
            "seconds_of_training": sum(run.seconds for run in runs),
        },
        notes=(*notes, *standing(settings, each)),
        data=(each.dataset.stamp,),
        circumstances=circumstances(settings),
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
            place = f"{run.trial.beta:g}"
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
        label=f"beta {trial.beta:g}, {trial.arm}",
        x=[e + 1 for e in epochs],
        y=means,
        spread=[(max(m - d, 1e-6), m + d) for m, d in zip(means, deviations, strict=True)],
        style=".-",
    )
