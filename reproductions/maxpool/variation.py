"""Figures 1, 2, 3, 9 and 10: how large are backprop variations?

Histograms of D (Boustany 2024, eq. 12) on LeNet-5: native against minimal max-pooling, one program
against itself, ReLU'(0) = 0 against 1, the maximum written through ReLU, and pooling by a norm.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from numgeom.nonsmooth import backprop, compare_gradients
from reproductions.maxpool.figure import Findings
from reproductions.maxpool.plots import variation_histogram, variation_table
from reproductions.maxpool.pool_arms import exchange_pools
from reproductions.maxpool.problems import (
    FORMATS,
    NATIVE,
    RELU_PAIR,
    Problem,
    cross_entropy,
    problem,
)
from reproductions.maxpool.programs import written_through_relu
from reproductions.maxpool.sampling import collect, volume
from reproductions.maxpool.small_programs import AtZero, NormPool2d, ReLUMaxPool2d
from reproductions.outcome import Cell, Settings, Table

Make = Callable[[nn.MaxPool2d], nn.Module]


@dataclass(frozen=True)
class Size:
    """How many initialisations, mini-batches (None: all) and samples in one."""

    points: int
    batches: int | None
    batch_size: int = 128


def native_against_minimal(settings: Settings, name: str, size: Size) -> Findings:
    """D of one program against its copy, and of native against minimal max-pooling, in float32.

    Native against minimal from two kinds of initial values: torch's own, as in the program
    published for this figure, and Kaiming's, as in the one for table 2.
    """
    lenet = problem("LeNet-5", "MNIST", settings)
    copies = volume(
        settings, f"{name}-copy", lenet, dtype="float32", points=size.points,
        batches=size.batches, batch_size=size.batch_size, kaiming=False,
        selections=(NATIVE, NATIVE),
    )  # fmt: skip
    groups = {"one program, twice": copies.variations.flatten().tolist()}
    pairs: list[tuple[str, float, float]] = []
    replays: list[tuple[Cell, ...]] = []
    for kaiming, label in ((False, "torch's initial values"), (True, "Kaiming's")):
        found = volume(
            settings, f"{name}{'-kaiming' if kaiming else ''}", lenet, dtype="float32",
            points=size.points, batches=size.batches, batch_size=size.batch_size,
            kaiming=kaiming, zones=True,
        )  # fmt: skip
        assert found.zones is not None
        assert found.replayed is not None
        zones = [zone for row in found.zones for zone in row]
        computed, replayed = (d.flatten().tolist() for d in (found.variations, found.replayed))
        of_label = list(zip(zones, computed, replayed, strict=True))
        for zone in dict.fromkeys(sorted(zones, reverse=True)):
            both = [(d, again) for z, d, again in of_label if z == zone]
            group = f"native - minimal, {zone}, {label}"
            groups[group] = [d for d, _ in both]
            of_group = [again for _, again in both]
            replays.append((group, len(both), min(of_group), max(of_group)))
        pairs += of_label
    of_zone = {
        zone: [again for z, _, again in pairs if z == zone]
        for zone in ("compensation", "bifurcation")
    }
    result = _findings(
        name,
        groups,
        lenet,
        size,
        facts={
            "share_of_positive_variations": sum(d > 0 for _, d, _ in pairs) / len(pairs),
            "share_compensation": len(of_zone["compensation"]) / len(pairs),
            "orders_of_magnitude_between_the_zones": _gap(of_zone),
            "published": {"share_minor": 0.9878, "minor": [1e-8, 1e-7], "major": 1e-3},
        },
        notes=(
            "Zones by float64 replays of the frozen forward pass, without a threshold. The paper "
            "splits by size: 98.78 % of the pairs at 1e-8 to 1e-7, the others around 1e-3.",
        ),
    )
    columns = ("pair", "variations", "smallest", "largest")
    table = Table("D with the backward pass replayed in float64", columns, tuple(replays))
    return replace(result, tables=(*result.tables, table))


def _gap(of_zone: Mapping[str, list[float]]) -> float | None:
    """How far the least replay of bifurcation lies above the largest of compensation."""
    low, high = of_zone["compensation"], of_zone["bifurcation"]
    return math.log10(min(high) / max(low)) if low and high and max(low) > 0 else None


def run_twice(settings: Settings, name: str, size: Size) -> Findings:
    """D of one program against itself where sums have no fixed order, by format."""
    lenet = problem("LeNet-5", "MNIST", settings)
    emulated = settings.device == "cpu" or torch.are_deterministic_algorithms_enabled()
    groups = {}
    for dtype in ("float16", "float32", "float64"):
        rows = collect(
            settings,
            f"{name}-{dtype}",
            points=size.points,
            task=_task(lenet, size) | {"dtype": dtype, "emulated": emulated},
            measure=lambda number, dtype=dtype: _twice(
                settings, lenet, number, dtype=dtype, size=size, permuted=emulated
            ),
        )
        groups[dtype] = [d for row in rows for d in row]
    note = (
        "EMULATION: this device repeats its sums, so the order of the samples was permuted between "
        "the two runs. The paper ran twice on a GPU with nondeterministic kernels, where it saw no "
        "variation in 16 bits."
        if emulated
        else "Two runs on this device, with nondeterministic kernels allowed."
    )
    return _findings(
        name,
        groups,
        lenet,
        size,
        facts={"emulated": emulated},
        notes=(note,),
    )


def relu_at_zero(settings: Settings, name: str, size: Size) -> Findings:
    """D of ReLU'(0) = 0 against 1, by format."""
    lenet = problem("LeNet-5", "MNIST", settings)
    groups = {}
    for dtype in FORMATS:
        found = volume(
            settings, name, lenet, dtype=dtype, points=size.points,
            batches=size.batches, batch_size=size.batch_size, kaiming=False,
            selections=RELU_PAIR,
        )  # fmt: skip
        groups[dtype] = found.variations.flatten().tolist()
    return _findings(
        name,
        groups,
        lenet,
        size,
        notes=(
            "Deterministic sums, on this device. The paper: large or none, on a deterministic GPU.",
        ),
    )


def max_through_relu(settings: Settings, name: str, size: Size) -> Findings:
    """The programs of figure 9, and D on LeNet-5 with its max-pools written through ReLU."""
    lenet = problem("LeNet-5", "MNIST", settings)
    pair: tuple[Make, Make] = (lambda _: ReLUMaxPool2d(s=0.0), lambda _: ReLUMaxPool2d(s=1.0))
    groups = {
        dtype: _exchanged(settings, name, lenet, pair, dtype=dtype, size=size) for dtype in FORMATS
    }
    programs = written_through_relu(settings, name, None)
    found = _findings(name, groups, lenet, size)
    return replace(
        found,
        tables=(*programs.tables, *found.tables),
        plots=(*programs.plots, *(replace(p, name=f"{name}-lenet") for p in found.plots)),
        notes=programs.notes,
    )


def norm_pools(settings: Settings, name: str, size: Size) -> Findings:
    """D of two derivatives of the Euclidean norm at zero, on LeNet-5 with norm pooling."""
    lenet = problem("LeNet-5", "MNIST", settings)
    groups: dict[str, list[float]] = {}
    for kind, label, dtype, at_zero, accumulate in _NORM_PAIRS:
        groups[label] = _exchanged(
            settings,
            f"{name}-{kind}",
            lenet,
            (_norm_pool(AtZero.MINIMAL, accumulate), _norm_pool(at_zero, accumulate)),
            dtype=dtype,
            size=size,
        )
    computed, wide = groups[_NORM_PAIRS[0][1]], groups[_NORM_PAIRS[2][1]]
    notes = [
        "Ones are the paper's second program; their norm is 2, so they are no Clarke derivative "
        "of the norm at zero. Equal entries of norm 1 are one."
    ]
    if max(computed) > 0 and max(wide) == 0:
        notes.append(
            "In float16 the variation comes from windows whose small squares round to zero, not "
            "from the corner: with squares in float32 it is gone."
        )
    return _findings(
        name,
        groups,
        lenet,
        size,
        facts={"underflown_windows": _underflows(settings, lenet, size)},
        notes=tuple(notes),
    )


# Name of the state, label, format, derivative at zero against the zero vector, format of squares.
_NORM_PAIRS: tuple[tuple[str, str, str, AtZero, torch.dtype | None], ...] = (
    ("ones", "float16: 0 - ones", "float16", AtZero.ONES, None),
    ("equal", "float16: 0 - equal entries of norm 1", "float16", AtZero.EQUAL, None),
    ("wide", "float16, squares in float32: 0 - ones", "float16", AtZero.ONES, torch.float32),
    ("ones", "float32: 0 - ones", "float32", AtZero.ONES, None),
)


def _norm_pool(at_zero: AtZero, accumulate: torch.dtype | None) -> Make:
    def make(pool: nn.MaxPool2d) -> nn.Module:
        side = pool.kernel_size
        assert isinstance(side, int)
        return NormPool2d(side, at_zero=at_zero, accumulate=accumulate)

    return make


def _underflows(settings: Settings, lenet: Problem, size: Size) -> int:
    """Windows of the first point and mini-batch in float16 that are not zero but have norm zero."""
    model = lenet.model(0, seed=settings.seed, dtype=torch.float16, device=settings.device)
    exchange_pools(model, _norm_pool(AtZero.MINIMAL, None))
    (batch,) = lenet.batches(1, size.batch_size, dtype=torch.float16, device=settings.device)
    with torch.no_grad():
        model(batch[0])
    return sum(pool.n_underflows for pool in model.modules() if isinstance(pool, NormPool2d))


def _exchanged(
    settings: Settings,
    name: str,
    lenet: Problem,
    pair: tuple[Make, Make],
    *,
    dtype: str,
    size: Size,
) -> list[float]:
    """D between two networks that differ in what stands in place of the max-pools."""

    def measure(number: int) -> list[float]:
        found = []
        models = []
        for make in pair:
            models.append(
                lenet.model(
                    number, seed=settings.seed, dtype=FORMATS[dtype], device=settings.device
                )
            )
            exchange_pools(models[-1], make)
        for batch in lenet.batches(
            size.batches, size.batch_size, dtype=FORMATS[dtype], device=settings.device
        ):
            first, second = (backprop(model, cross_entropy, batch) for model in models)
            found.append(compare_gradients(first, second).l1)
        return found

    rows = collect(
        settings,
        f"{name}-{dtype}",
        points=size.points,
        task=_task(lenet, size) | {"pair": name, "dtype": dtype},
        measure=measure,
    )
    return [d for row in rows for d in row]


def _twice(
    settings: Settings, lenet: Problem, number: int, *, dtype: str, size: Size, permuted: bool
) -> list[float]:
    """D between two runs of one program, the second on permuted samples if asked for."""
    model = lenet.model(number, seed=settings.seed, dtype=FORMATS[dtype], device=settings.device)
    order = torch.Generator("cpu").manual_seed(number)
    found = []
    for images, labels in lenet.batches(
        size.batches, size.batch_size, dtype=FORMATS[dtype], device=settings.device
    ):
        again = (images, labels)
        if permuted:
            chosen = torch.randperm(len(labels), generator=order, device="cpu").to(labels.device)
            again = (images[chosen], labels[chosen])
        first = backprop(model, cross_entropy, (images, labels))
        found.append(compare_gradients(first, backprop(model, cross_entropy, again)).l1)
    return found


def _task(lenet: Problem, size: Size) -> dict[str, object]:
    return {
        "network": lenet.label,
        "data": lenet.dataset.stamp.sha256,
        "batches": size.batches,
        "batch_size": size.batch_size,
    }


def _findings(
    name: str,
    groups: Mapping[str, list[float]],
    lenet: Problem,
    size: Size,
    *,
    facts: Mapping[str, object] | None = None,
    notes: tuple[str, ...] = (),
) -> Findings:
    title = "Backprop variation D [1-norm, mean loss]"
    return Findings(
        tables=(variation_table(title, groups),),
        plots=(variation_histogram(name, f"{title}, {lenet.label}", groups),),
        facts={"network": lenet.label, "points": size.points, "batch_size": size.batch_size}
        | dict(facts or {}),
        notes=notes,
        problems=(lenet,),
    )
