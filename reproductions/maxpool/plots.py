"""How are variations, accuracies and shares of the max-pooling study counted and drawn?"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reproductions.outcome import Cell, Plot, Table
from reproductions.plots import draw


def decade_counts(values: Sequence[float]) -> dict[str, int]:
    """Count values by decade: "0", "1e-08" for [1e-8, 1e-7), ..., "not finite".

    Decades without a value are left out.

    Example:
        >>> decade_counts([0.0, 2e-8, 3e-8])
        {'0': 1, '1e-08': 2}
    """
    counts: dict[float, int] = {}
    for value in values:
        if not math.isfinite(value):
            key = math.inf
        else:
            key = -math.inf if value == 0 else float(_decade(value))
        counts[key] = counts.get(key, 0) + 1
    return {_label(key): counts[key] for key in sorted(counts)}


def _decade(value: float) -> int:
    """The k with 10^k <= value < 10^(k+1), for the decimal 10^k that Python reads."""
    k = math.floor(math.log10(value))
    return k + 1 if value >= float(f"1e{k + 1}") else k - 1 if value < float(f"1e{k}") else k


def _label(key: float) -> str:
    if key == -math.inf:
        return "0"
    return "not finite" if key == math.inf else f"1e{int(key):+03d}"


def variation_table(title: str, groups: Mapping[str, Sequence[float]]) -> Table:
    """One row per group: how many variations, how many are zero, smallest positive, largest."""
    rows: list[tuple[Cell, ...]] = []
    for label, values in groups.items():
        positive = [v for v in values if not v <= 0]
        rows.append(
            (
                label,
                len(values),
                sum(v == 0 for v in values) / len(values),
                min(positive) if positive else None,
                statistics.median(values),
                max(values),
            )
        )
    columns = ("pair", "variations", "share of zeros", "smallest positive", "median", "largest")
    return Table(title, columns, tuple(rows))


def variation_histogram(name: str, title: str, groups: Mapping[str, Sequence[float]]) -> Plot:
    """Draw bars per decade of the variation, beside each other for each group."""
    counted = {label: decade_counts(values) for label, values in groups.items()}
    seen = {key for counts in counted.values() for key in counts}
    keys = sorted(seen, key=_place)

    def paint(axes: Any) -> None:
        width = 0.8 / max(1, len(counted))
        for i, (label, counts) in enumerate(counted.items()):
            total = sum(counts.values())
            places = [j + (i - (len(counted) - 1) / 2) * width for j in range(len(keys))]
            heights = [counts.get(key, 0) / total for key in keys]
            axes.bar(places, heights, width=width, label=label)
        axes.set_xticks(range(len(keys)), keys)
        axes.set(
            title=title,
            xlabel="backprop variation D, 1-norm: zero, or the decade that begins there",
            ylabel="share of pairs (point, mini-batch)",
        )
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small")

    return draw(name, paint)


def _place(key: str) -> float:
    return {"0": -math.inf, "not finite": math.inf}.get(key) or math.log10(float(key))


def box_plot(
    name: str,
    title: str,
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
) -> Plot:
    """Draw a box per group and place on the x axis, with every value as a point.

    Args:
        name: File name of the plot, without its suffix.
        title: Its title.
        groups: Values by group (a colour) and place.
        x_label: What the places are.
        y_label: What the values are.
    """
    places = list(dict.fromkeys(place for group in groups.values() for place in group))

    def paint(axes: Any) -> None:
        width = 0.8 / max(1, len(groups))
        for i, (label, by_place) in enumerate(groups.items()):
            shift = (i - (len(groups) - 1) / 2) * width
            at = [places.index(p) + shift for p in by_place]
            values = list(by_place.values())
            axes.boxplot(
                values, positions=at, widths=0.8 * width, manage_ticks=False, showfliers=False,
                medianprops={"color": f"C{i}"},
            )  # fmt: skip
            xs = [x for x, found in zip(at, values, strict=True) for _ in found]
            axes.plot(xs, [v for found in values for v in found], ".", color=f"C{i}", label=label)
        axes.set_xticks(range(len(places)), places)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small")

    return draw(name, paint)


def bar_plot(
    name: str,
    title: str,
    groups: Mapping[str, Mapping[str, tuple[float, float | None]]],
    *,
    x_label: str,
    y_label: str,
) -> Plot:
    """Draw a bar per group and place, each a height with its margin (None: there is none)."""
    places = list(dict.fromkeys(place for group in groups.values() for place in group))

    def paint(axes: Any) -> None:
        width = 0.8 / max(1, len(groups))
        for i, (label, by_place) in enumerate(groups.items()):
            shift = (i - (len(groups) - 1) / 2) * width
            at = [places.index(p) + shift for p in by_place]
            heights = [height for height, _ in by_place.values()]
            margins = [margin or 0.0 for _, margin in by_place.values()]
            below = [min(h, m) for h, m in zip(heights, margins, strict=True)]
            above = [max(0.0, min(1 - h, m)) for h, m in zip(heights, margins, strict=True)]
            shown = [below, above] if any(margins) else None
            axes.bar(at, heights, width=width, yerr=shown, label=label, capsize=2)
        axes.set_xticks(range(len(places)), places)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, 1.05))
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize="small")

    return draw(name, paint)


def dot_plot(
    name: str,
    title: str,
    groups: Mapping[str, Mapping[str, float | None]],
    *,
    x_label: str,
    y_label: str,
) -> Plot:
    """Draw a dot per group and place on a logarithmic axis; None and 0 are left out."""
    places = list(dict.fromkeys(place for group in groups.values() for place in group))

    def paint(axes: Any) -> None:
        for i, (label, by_place) in enumerate(groups.items()):
            shown = {places.index(p): value for p, value in by_place.items() if value}
            marker, colour = "ox"[i % 2], f"C{i // 2}"
            axes.plot(list(shown), list(shown.values()), marker, color=colour, label=label)
        axes.set_xticks(range(len(places)), places, rotation=20)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, yscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return draw(name, paint)
