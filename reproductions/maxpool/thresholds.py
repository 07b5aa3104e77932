"""Table 4: from which size on is a variation more than rounding?

tau1 (Boustany 2024, eq. 13) is the largest variation between two runs of one program, tau2 (eq. 14)
the smallest positive one between ReLU'(0) = 0 and 1; both for each network, data set and format.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from numgeom.examples.data import DataError
from numgeom.nonsmooth import Threshold, tau1, tau1_emulated, tau2
from reproductions.maxpool.figure import Findings
from reproductions.maxpool.plots import dot_plot
from reproductions.maxpool.problems import (
    FORMATS,
    Problem,
    cross_entropy,
    problem,
)
from reproductions.maxpool.sampling import Sample, collect
from reproductions.outcome import Cell, Settings, Table

_FORMATS = ("float16", "float32", "float64")
# Boustany (2024), table 4: (tau1, tau2) in 16, 32 and 64 bits.
PUBLISHED: dict[tuple[str, str], tuple[float, ...]] = {
    ("LeNet-5", "MNIST"): (0, 1e-5, 1e-6, 1e-5, 1e-14, 0),
    ("VGG-11", "CIFAR10"): (0, 1e-1, 1e-8, 1e-7, 1e-14, 0),
    ("VGG-11", "SVHN"): (0, 1e-1, 1e-8, 1e-7, 1e-15, 0),
    ("VGG-13", "CIFAR10"): (0, 1e-1, 1e-9, 1e-9, 1e-14, 0),
    ("VGG-16", "CIFAR10"): (0, 1e-2, 1e-10, 1e-9, 1e-15, 0),
    ("VGG-19", "CIFAR10"): (0, 1e-3, 1e-11, 1e-10, 1e-15, 0),
    ("ResNet-18", "CIFAR10"): (1e-2, 1, 1e-3, 1e-4, 1e-13, 0),
    ("DenseNet-121", "CIFAR100"): (0, 1e-2, 1e-6, 1e-1, 1e-14, 0),
}
_COLUMNS = (
    "network", "format", "tau1", "published tau1", "tau2", "published tau2", "pairs",
    "pairs that ReLU'(0) changes",
)  # fmt: skip


def thresholds(settings: Settings, name: str, size: tuple[Sample, ...]) -> Findings:
    """Both thresholds for each network.

    Args:
        settings: With a data folder, networks whose data are not in it are left out and named.
        name: Of the table.
        size: What is measured of each network.
    """
    emulated = settings.device == "cpu" or torch.are_deterministic_algorithms_enabled()
    rows: list[tuple[Cell, ...]] = []
    problems: list[Problem] = []
    absent: list[str] = []
    for of in size:
        network, data = of.network, of.data
        try:
            each = problem(network, data, settings, width=of.width)
        except DataError as error:
            absent.append(f"{network} on {data} is left out: {error}")
            continue
        if each.label in {other.label for other in problems}:
            absent.append(f"{network} on {data} is left out: the stand-in data are the same.")
            continue
        problems.append(each)
        for index, dtype in enumerate(_FORMATS):
            first, second = _both(settings, name, each, of, dtype, emulated=emulated)
            published = PUBLISHED[network, data]
            rows.append(
                (
                    each.label,
                    dtype,
                    first.value,
                    published[2 * index],
                    second.value,
                    published[2 * index + 1],
                    second.n_pairs,
                    second.n_positive,
                )
            )
    if not problems:
        raise DataError(" ".join(absent))
    notes = [
        "tau1: the largest D of one program run twice. tau2: the smallest positive D of "
        "ReLU'(0) = 0 against 1. Where no pair differs there is none: tau2 is undefined, and the "
        "paper prints 0.",
        "ResNet-18 and DenseNet-121 have no batch norm here, as the VGG networks.",
    ]
    if emulated:
        notes.insert(
            0,
            "EMULATION: this device repeats its sums, so tau1 compares runs with permuted samples. "
            "The paper ran twice on a GPU with nondeterministic kernels.",
        )
    return Findings(
        tables=(Table("Thresholds [1-norm, mean loss]", _COLUMNS, tuple(rows)),),
        plots=tuple(
            dot_plot(
                f"{name}-{tau}",
                f"{tau}, measured and published; an undefined or zero one is left out",
                _groups(rows, 2 + 2 * index),
                x_label="network",
                y_label=f"{tau} [1-norm, mean loss]",
            )
            for index, tau in enumerate(("tau1", "tau2"))
        ),
        facts={"tau1_emulated": emulated},
        notes=(*notes, *absent),
        problems=tuple(problems),
    )


def _groups(rows: list[tuple[Cell, ...]], column: int) -> dict[str, dict[str, float | None]]:
    """Measured and published values by format and network, from a column and the one after it."""
    groups: dict[str, dict[str, float | None]] = {}
    for row in rows:
        for label, cell in (("", row[column]), (", published", row[column + 1])):
            assert cell is None or isinstance(cell, (int, float))
            place = str(row[0]).split(",")[0].split(" ")[0]
            groups.setdefault(f"{row[1]}{label}", {})[place] = cell
    return groups


def _both(
    settings: Settings, name: str, each: Problem, size: Sample, dtype: str, *, emulated: bool
) -> tuple[Threshold, Threshold]:
    """tau1 and tau2 over all points, from those of each point."""
    batches = each.batches(
        size.batches, size.batch_size, dtype=FORMATS[dtype], device=settings.device
    )
    make = partial(each.model, seed=settings.seed, dtype=FORMATS[dtype], device=settings.device)
    runs: Callable[..., Threshold] = tau1

    def measure(number: int) -> list[float]:
        models: tuple[nn.Module, ...] = (make(number),)
        chosen: Any = partial(tau1_emulated, seed=number) if emulated else runs
        first = chosen(models, cross_entropy, batches)
        second = tau2(models, cross_entropy, batches)
        # A threshold that is undefined at a point is no smallest one: infinity.
        least = float("inf") if second.value is None else second.value
        return [first.value, first.n_positive, least, second.n_positive]

    rows = collect(
        settings,
        f"{name}-{each.network}-{each.data}-{dtype}",
        points=size.points,
        task={
            "network": each.label,
            "data": each.dataset.stamp.sha256,
            "batches": size.batches,
            "batch_size": size.batch_size,
            "emulated": emulated,
        },
        measure=measure,
    )
    pairs = size.points * len(batches)
    differing = int(sum(row[3] for row in rows))
    return (
        Threshold(
            "tau1",
            max(row[0] for row in rows),
            "permuted sums" if emulated else "two runs",
            pairs,
            int(sum(row[1] for row in rows)),
        ),
        Threshold(
            "tau2",
            min(row[2] for row in rows) if differing else None,
            "two selections",
            pairs,
            differing,
        ),
    )
