"""How is a figure drawn as SVG, the same bytes for the same numbers?"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from reproductions.outcome import Plot, ReproductionError

AxisScale = Literal["linear", "log", "symlog"]


@dataclass(frozen=True)
class Series:
    """Points that belong together: `spread`, if given, is (low, high) per point."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[tuple[float, float]] | None = None
    style: str = "o-"


def line_plot(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_scale: AxisScale = "linear",
    y_scale: AxisScale = "linear",
) -> Plot:
    """Draw series of points over two axes."""

    def paint(axes: Any) -> None:
        for each in series:
            (line,) = axes.plot(each.x, each.y, each.style, label=each.label)
            if each.spread is not None:
                low, high = zip(*each.spread, strict=True)
                axes.fill_between(each.x, low, high, color=line.get_color(), alpha=0.2)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale=x_scale, yscale=y_scale)
        axes.grid(alpha=0.3)
        if series:
            axes.legend(fontsize="small")

    return draw(name, paint)


def draw(name: str, paint: Callable[[Any], None], *, size: tuple[float, float] = (7, 4.5)) -> Plot:
    """Let `paint` draw on matplotlib axes and return the figure as SVG text.

    No window system, no global state of pyplot; ids and date are fixed, so that equal numbers
    give equal files.

    Args:
        name: File name of the plot, without its suffix.
        paint: Draws on the axes that it is given.
        size: Width and height in inches.

    Raises:
        ReproductionError: If matplotlib cannot be imported.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReproductionError(
            "Figures are drawn by matplotlib, which cannot be imported "
            f"({error}); install it with: pip install matplotlib"
        ) from error
    with matplotlib.rc_context({"svg.hashsalt": "numgeom", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasSVG(figure)
        paint(figure.subplots())
        buffer = io.StringIO()
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": "numgeom"})
    return Plot(name=name, svg=buffer.getvalue())
