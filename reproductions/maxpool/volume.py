"""Table 2 and figure 4: how often do initialisations meet the bifurcation zone?

Two measures stand side by side: the zone by float64 replays, which needs no threshold, and the
paper's criterion 1, D > tau. The share of parameter points is equation 18 with Clopper and
Pearson's interval; the share of (point, mini-batch) pairs is equation 19 with McDiarmid's margin.
"""

from dataclasses import dataclass

import torch

from numgeom.nonsmooth import Volume, tau1, tau1_emulated, tau2
from reproductions.maxpool.figure import Findings
from reproductions.maxpool.plots import bar_plot
from reproductions.maxpool.problems import (
    FORMATS,
    Problem,
    cross_entropy,
    problem,
)
from reproductions.maxpool.sampling import Sample, volume
from reproductions.outcome import (
    Cell,
    Plot,
    Settings,
    Table,
)
from reproductions.plots import Series, line_plot

_ZONE_COLUMNS = (
    "network", "format", "initial values", "mini-batches", "bifurcating initial values",
    "95 % from", "to", "bifurcating pairs", "margin",
)  # fmt: skip
_TAU_COLUMNS = (
    "network", "format", "tau", "source", "initial values, D > tau", "95 % from", "to",
    "pairs, D > tau", "margin",
)  # fmt: skip
# Boustany (2024), table 2: (points, pairs) by format.
PUBLISHED = {"float16": (1.0, 1.0), "float32": (1.0, 0.4667), "float64": (0.0, 0.0)}
_TAU_POINTS = 2  # initialisations that a threshold is taken from, at the small scale


def zone_volume(settings: Settings, name: str, size: tuple[Sample, ...]) -> Findings:
    """The volume of the bifurcation zone by format."""
    chosen = size
    if settings.data is not None and len(size) > 1:
        # One folder need not hold every data set: the paper's table is on one.
        chosen = tuple(case for case in size if case.network == "VGG-11")
    zone_rows: list[tuple[Cell, ...]] = []
    tau_rows: list[tuple[Cell, ...]] = []
    plots: list[Plot] = []
    problems: list[Problem] = []
    for case in chosen:
        each = problem(case.network, case.data, settings, width=case.width)
        problems.append(each)
        curves: list[Series] = []
        for dtype in PUBLISHED:
            found = volume(
                settings, f"{name}-{each.network}", each, dtype=dtype,
                points=case.points, batches=_batches(case, dtype), batch_size=case.batch_size,
                zones=True,
            )  # fmt: skip
            tau, source = _threshold(settings, each, case, dtype)
            zone_rows.append((each.label, dtype, *_zone_shares(found)))
            tau_rows.append((each.label, dtype, tau, source, *_tau_shares(found, tau)))
            curve = found.curve()
            curves.append(Series(dtype, [c[0] for c in curve], [c[2] for c in curve]))
        plots.append(
            line_plot(
                f"{name}-{each.network.lower()}",
                f"{each.label}: pairs with D > tau (equation 19)",
                curves,
                x_label="tau",
                y_label="share of pairs",
                x_scale="log",
            )
        )
    return Findings(
        tables=(
            Table("Bifurcation zone by float64 replays", _ZONE_COLUMNS, tuple(zone_rows)),
            Table("The paper's criterion, native - minimal D > tau", _TAU_COLUMNS, tuple(tau_rows)),
        ),
        plots=tuple(plots),
        facts={"published_points_and_pairs": PUBLISHED},
        notes=(
            "Initial values bifurcate if some mini-batch does: a frozen forward pass with the "
            "backward pass redone in float64 under native and minimal max-pooling still differs. "
            "Their interval is Clopper and Pearson's.",
            "A pair is initial values with a mini-batch; its margin is McDiarmid's, and it is left "
            "out where it would be 1 or more.",
            "tau: tau2 in float16, tau1 in float32 and float64, as in the paper. On a device that "
            "repeats its sums tau1 is emulated by permuted samples. No tau: an undefined "
            "threshold, ReLU'(0) made no difference.",
        ),
        problems=tuple(problems),
    )


def _batches(case: Sample, dtype: str) -> int | None:
    narrow = FORMATS[dtype].itemsize == 2 and case.batches16 is not None
    return case.batches16 if narrow else case.batches


def _zone_shares(found: Volume) -> tuple[Cell, ...]:
    assert found.zones is not None
    pairs = [zone == "bifurcation" for row in found.zones for zone in row]
    shares = found.zone_shares()
    interval = found.zone_interval("bifurcation")
    assert shares is not None
    assert interval is not None
    return (
        found.n_points,
        found.n_batches,
        shares["bifurcation"],
        *interval,
        sum(pairs) / len(pairs),
        found.margin(),
    )


def _tau_shares(found: Volume, tau: float | None) -> tuple[Cell, ...]:
    if tau is None:
        return (None,) * 5
    pairs = found.share_of_pairs(tau)
    return found.share_of_points(tau), *found.interval(tau), pairs, found.margin()


def _threshold(
    settings: Settings, each: Problem, case: Sample, dtype: str
) -> tuple[float | None, str]:
    """The paper's threshold of a format: tau2 in 16 bits, tau1 in 32 and 64."""
    points = min(case.points, _TAU_POINTS) if settings.is_small else case.points
    models = (
        each.model(
            number,
            seed=settings.seed,
            kaiming=True,
            dtype=FORMATS[dtype],
            device=settings.device,
        )
        for number in range(points)
    )
    batches = each.batches(
        _batches(case, dtype), case.batch_size, dtype=FORMATS[dtype], device=settings.device
    )
    if FORMATS[dtype].itemsize == 2:
        found = tau2(models, cross_entropy, batches)
    elif settings.device == "cpu" or torch.are_deterministic_algorithms_enabled():
        found = tau1_emulated(models, cross_entropy, batches, seed=settings.seed)
    else:
        found = tau1(models, cross_entropy, batches)
    return found.value, f"{found.name}, {found.source}"


# -- figure 4 --------------------------------------------------------------------------------


PUBLISHED_TAUS = {"float16": 1e-1, "float32": 1e-8, "float64": 1e-14}
"""Thresholds of VGG-11 on CIFAR10: tau2, tau1, tau1 (Boustany 2024, table 4)."""


@dataclass(frozen=True)
class Panels:
    """How large figure 4 is.

    Attributes:
        width: Channels of the first stage; None: as published.
        points: Initialisations.
        samples: Training samples that are cut into mini-batches; None: all.
        batch_sizes: Sizes of the mini-batches of the second panel; the first is that of the others.
        depths: Of the VGG networks of the first panel.
        dtypes: Formats.
    """

    width: int | None
    points: int
    samples: int | None
    batch_sizes: tuple[int, ...]
    depths: tuple[int, ...] = (11, 13, 16, 19)
    dtypes: tuple[str, ...] = ("float16", "float32", "float64")


def shares_by_panel(settings: Settings, name: str, size: Panels) -> Findings:
    """The share of pairs above tau by depth, by size of the mini-batch, and by batch norm."""
    one = size.batch_sizes[0]
    panels: dict[str, list[tuple[str, int, int, bool]]] = {
        "depth": [(f"VGG-{depth}", depth, one, False) for depth in size.depths],
        "batch size": [(str(n), 11, n, False) for n in sorted(size.batch_sizes)],
        "batch norm": [("without", 11, one, False), ("with", 11, one, True)],
    }
    known: dict[tuple[int, int, bool, str], Volume] = {}
    problems = {
        depth: problem(f"VGG-{depth}", "CIFAR10", settings, width=size.width)
        for depth in sorted({11, *size.depths})
    }
    reference = problems[11]
    taus = PUBLISHED_TAUS
    if reference.stand_in or reference.width is not None:
        key = (11, one, False, "float32")
        known[key] = _panel(settings, name, reference, key, size)
        taus = dict.fromkeys(size.dtypes, float(known[key].variations.median()))
    rows: list[tuple[Cell, ...]] = []
    plots: list[Plot] = []
    for panel, places in panels.items():
        bars: dict[str, dict[str, tuple[float, float | None]]] = {}
        for dtype in size.dtypes:
            bars[dtype] = {}
            for place, depth, batch_size, batch_norm in places:
                key = (depth, batch_size, batch_norm, dtype)
                if key not in known:
                    known[key] = _panel(settings, name, problems[depth], key, size)
                found = known[key]
                tau = taus[dtype]
                share = found.share_of_pairs(tau)
                bars[dtype][place] = (share, found.margin())
                median = float(found.variations.median())
                rows.append(
                    (panel, place, dtype, found.n_points, found.n_batches, tau, share,
                     found.margin(), median)
                )  # fmt: skip
        plots.append(
            bar_plot(
                f"{name}-{panel.replace(' ', '-')}",
                f"Pairs with D > tau, by {panel}",
                bars,
                x_label=panel,
                y_label="share of (point, mini-batch) pairs",
            )
        )
    columns = (
        "panel", "network or size", "format", "initial values", "mini-batches", "tau",
        "pairs, D > tau", "margin", "median D",
    )  # fmt: skip
    return Findings(
        tables=(Table("Equation 19 on VGG networks", columns, tuple(rows)),),
        plots=tuple(plots),
        notes=(
            "tau: the paper's thresholds of VGG-11 on CIFAR10 (its table 4), one for each format."
            if taus is PUBLISHED_TAUS
            else "tau: the median of D of VGG-11 in float32, for all formats, so that its own "
            "share is one half by construction (published: 46.67 %). The published thresholds do "
            "not carry over to other data or widths.",
            "Every share depends on tau: the median of D stands beside it.",
        ),
        problems=tuple(problems.values()),
    )


def _panel(
    settings: Settings, name: str, each: Problem, key: tuple[int, int, bool, str], size: Panels
) -> Volume:
    depth, batch_size, batch_norm, dtype = key
    return volume(
        settings,
        f"{name}-vgg{depth}-b{batch_size}{'-bn' if batch_norm else ''}",
        each,
        dtype=dtype,
        points=size.points,
        batches=None if size.samples is None else size.samples // batch_size,
        batch_size=batch_size,
        batch_norm=batch_norm,
    )
