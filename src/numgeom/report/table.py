"""How does a certificate look in a terminal?

Every number stands under its unit and beside its guarantee. Names are never read as markup, and
their control characters are escaped.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from numgeom.arithmetic.printing import (
    digits_text,
    nearest,
    nearest_short,
    percent,
    seconds_text,
    upper,
    upper_short,
)
from numgeom.certificate.result import CONSTANTS, Certificate
from numgeom.report.console import console
from numgeom.results.accuracy import MOST_DIGITS, GradientAccuracy
from numgeom.results.guarantee import Guarantee
from numgeom.visible import visible

MUCH_WORSE = 100.0
"""A gradient whose relative error is so many times that of the total is named in the headline."""

_COLOURS = {
    Guarantee.NONE: "red",
    Guarantee.ESTIMATED: "yellow",
    Guarantee.CERTIFIED: "green",
    Guarantee.PROVED: "green",
}


def to_text(certificate: Certificate, *, width: int = 100, rows: int = 40) -> str:
    """Render a certificate as plain text of at most `width` columns."""
    buffer = io.StringIO()
    plain = console(file=buffer, width=width, color_system=None, legacy_windows=False)
    plain.print(view(certificate, rows=rows))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def view(certificate: Certificate, *, rows: int = 40) -> RenderableType:
    """Arrange a certificate for a rich console.

    Args:
        certificate: The result to show.
        rows: Most parameters to show; beyond, those with the largest error are chosen.
    """
    parts: list[RenderableType] = [_summary(certificate)]
    if certificate.first_nonfinite is not None:
        parts.append(_paragraph("Not finite", certificate.first_nonfinite.describe(), "bold red"))
    if certificate.unknown_ops:
        parts.append(_paragraph("No rule for", _counts(certificate), "bold red"))
    parts.append(_Gradients(certificate, rows))
    if any(not math.isnan(module.observed_error) for module in certificate.worst_modules()):
        parts.append(_modules(certificate))
    if certificate.error_sources:
        parts.append(_sources(certificate))
    if certificate.unresolved_kinks:
        parts.append(_list("Unresolved kinks", tuple(map(str, certificate.unresolved_kinks))))
    if certificate.decisions is not None:
        parts.append(Text(str(certificate.decisions)))
    if certificate.notes:
        parts.append(_list("Notes", certificate.notes))
    if certificate.assumptions:
        parts.append(_list("Assumptions", certificate.assumptions))
    parts.append(_footer(certificate))
    return Group(*parts)


def headline(certificate: Certificate) -> Text:
    """Say in one line what matters most: the total error and its guarantee."""
    total = certificate.total
    what = certificate.provenance.get("target", "")
    text = Text(f"Gradient error of {visible(what)}: " if what else "Gradient error: ")
    if certificate.first_nonfinite is not None and math.isnan(total.observed_error):
        text.append("unknown, not all values are finite", "bold red")
    elif total.error_bound is not None:
        estimated = certificate.guarantee < Guarantee.CERTIFIED
        text.append("estimated at most " if estimated else "at most ", "bold")
        text.append(f"{number(total.error_bound)} (relative, 2-norm)", "bold")
    elif math.isnan(total.observed_error):
        text.append("unknown", "bold")
    elif total.observed_error == 0.0:
        text.append("no difference from the float64 reference", "bold")
    else:
        text.append(f"{number(total.observed_error)} (relative, 2-norm)", "bold")
    worst = _much_worse(certificate)
    if worst is not None:
        error = _error_of(worst)
        shown = number(error) if math.isfinite(error) else "no relative bound"
        text.append(f", worst {visible(worst.name)}: {shown}", "bold")
    return text.append(", guarantee ").append_text(_level(certificate.guarantee))


def _much_worse(certificate: Certificate) -> GradientAccuracy | None:
    """The gradient with the largest error, where that is far above the error of the total."""
    worst = max(certificate.parameters.values(), key=_badness, default=None)
    total = _error_of(certificate.total)
    if worst is None or math.isnan(total) or not _badness(worst) > MUCH_WORSE * total:
        return None
    return worst


def _error_of(row: GradientAccuracy) -> float:
    return row.observed_error if row.error_bound is None else row.error_bound


def _summary(certificate: Certificate) -> Text:
    total = certificate.total
    text = headline(certificate).append(f"\n{certificate.guarantee.meaning}\n")
    if certificate.computed_loss is not None and certificate.reference_loss is not None:
        text.append(
            f"Loss {nearest_short(certificate.computed_loss, 9)} computed, "
            f"{nearest_short(certificate.reference_loss, 9)} reference. "
        )
    text.append(f"{total.entries} entries of gradient, computed in {total.dtype}.\n")
    return text


@dataclass(frozen=True)
class _Column:
    title: str
    unit: str  # "" for a column of text
    cell: Callable[[GradientAccuracy], str]


class _Gradients:
    """The table of gradients, with as many columns as there is room for.

    A number is shown whole or not at all: half a number is another number.
    """

    def __init__(self, certificate: Certificate, limit: int) -> None:
        self._certificate = certificate
        self._rows = _chosen(certificate, limit)
        everything = [*certificate.parameters.values(), certificate.total]
        bounded = any(row.error_bound is not None for row in everything)
        self._columns = _ALWAYS + (_WITH_A_BOUND if bounded else ())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update(width=10_000)
        left_out: tuple[str, ...] = ()
        table = self._table(without=left_out)
        for count in range(1, len(_LESS_NEEDED) + 1):
            if Measurement.get(console, unlimited, table).minimum <= options.max_width:
                break
            left_out = _LESS_NEEDED[:count]
            table = self._table(without=left_out)
        yield table
        if left_out:
            names = ", ".join(title.replace("\n", " ") for title in left_out)
            yield Text(f"No room for: {names}. Use a wider terminal, or JSON.")
        hidden = len(self._certificate.parameters) - len(self._rows)
        if hidden:
            yield Text(f"{hidden} parameters with a smaller error are counted, but not shown.")

    def _table(self, without: tuple[str, ...]) -> Table:
        columns = [column for column in self._columns if column.title not in without]
        table = _table("Gradients")
        longest = max(len(visible(row.name)) for row in self._rows)
        room = 9 if without == _LESS_NEEDED else min(longest, 24)
        table.add_column("parameter", overflow="fold", min_width=room)
        for column in columns:
            _add_number(table, column.title, column.unit)
        table.add_column("guarantee", no_wrap=True)
        for row in self._rows:
            cells = (Text(visible(row.name)), *(Text(column.cell(row)) for column in columns))
            table.add_row(*cells, _level(row.guarantee), end_section=row is self._rows[-1])
        whole = self._certificate.total
        cells = [Text("" if column.title == "shape" else column.cell(whole)) for column in columns]
        table.add_row(Text("total"), *cells, _level(whole.guarantee), style="bold")
        return table


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        show_edge=False,
    )


def _add_number(table: Table, title: str, unit: str) -> None:
    if not unit:
        table.add_column(title, justify="right", no_wrap=True)
        return
    lines = title.count("\n") + 1
    header = Text("\n" * (2 - lines) + f"{title}\n[{unit}]")
    table.add_column(header, justify="right", no_wrap=True)


def _chosen(certificate: Certificate, limit: int) -> list[GradientAccuracy]:
    everything = list(certificate.parameters.values())
    if len(everything) <= limit:
        return everything
    worst = sorted(everything, key=_badness, reverse=True)[:limit]
    names = {row.name for row in worst}
    return [row for row in everything if row.name in names]


def _badness(row: GradientAccuracy) -> float:
    error = _error_of(row)
    return math.inf if math.isnan(error) else error


def _shape(row: GradientAccuracy) -> str:
    return "x".join(str(size) for size in row.shape) or "scalar"


def _error(row: GradientAccuracy) -> str:
    if row.nonfinite_entries:
        return f"{row.nonfinite_entries} bad"
    return "ref. bad" if row.reference_nonfinite_entries else number(row.observed_error)


def _entry_error(row: GradientAccuracy) -> str:
    return number(math.nan if math.isnan(row.observed_error) else row.largest_entry_error)


def _digits(row: GradientAccuracy) -> str:
    if row.digits is None:
        return "?"
    if row.error_bound is None and row.observed_error == 0.0:
        return f">{digits_text(MOST_DIGITS)}"  # no difference seen: not exact, only close
    return digits_text(row.digits)


def _ratio(row: GradientAccuracy) -> str:
    """Three digits of the ratio, or of what it is above 1."""
    ratio = row.tightness
    return upper_short(ratio, 5 if ratio is not None and ratio < 1.01 else 3)


_ALWAYS = (
    _Column("shape", "", _shape),
    _Column("norm", "2-norm", lambda row: nearest(row.computed_norm)),
    _Column("observed\nerror", "relative", _error),
    _Column("largest\nentry error", "absolute", _entry_error),
    _Column("correct\ndigits", "decimal", _digits),
)
_WITH_A_BOUND = (
    _Column("error\nbound", "relative", lambda row: number(row.error_bound)),
    _Column("bound /\nobserved", "ratio", _ratio),
)
# What a narrow terminal leaves out, first to last.
_LESS_NEEDED = ("shape", "norm", "largest\nentry error", "bound /\nobserved")


def _modules(certificate: Certificate) -> Table:
    table = _table("Worst modules")
    table.add_column("module", overflow="fold")
    _add_number(table, "observed\nerror", "relative")
    _add_number(table, "share of the\nsquared error", "percent")
    table.add_column("guarantee", no_wrap=True)
    for row in certificate.worst_modules():
        cells = (row.module or "(model)", number(row.observed_error), _percent(row.error_share))
        table.add_row(*(Text(visible(cell)) for cell in cells), _level(row.guarantee))
    return table


def _sources(certificate: Certificate) -> Table:
    table = _table("Sources of the error")
    for title in ("op", "module", "phase", "line"):
        table.add_column(title, overflow="fold")
    _add_number(table, "share of the\nsquared error", "percent")
    table.add_column("guarantee", no_wrap=True)
    for row in certificate.error_sources[:10]:
        cells = (row.op, row.module, row.phase, row.source, _percent(row.error_share))
        table.add_row(*(Text(visible(cell)) for cell in cells), _level(row.guarantee))
    return table


def _percent(share: float) -> str:
    return percent(share).removesuffix("%")


def _counts(certificate: Certificate) -> str:
    ops = certificate.unknown_ops.most_common()
    return ", ".join(f"{op} ({calls} calls)" for op, calls in ops)


def _paragraph(title: str, body: str, style: str) -> Text:
    return Text.assemble((f"{title}: ", style), visible(body), "\n")


# Provenance that `numgeom verify` needs and a reader does not.
_ONLY_IN_FILES = frozenset({
    "target", "judged gradients", "asked method", "asked failure probability", "replay checked",
    "replay device", "step", "system", "processor",
})  # fmt: skip


def _list(title: str, lines: tuple[str, ...]) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for index, line in enumerate(lines, start=1):
        grid.add_row(Text(f"{index}."), Text(visible(line)))
    return Group(Text(f"\n{title}", "italic"), grid)


def _footer(certificate: Certificate) -> Text:
    facts = [f"method {certificate.method}", seconds_text(certificate.seconds)]
    facts += [
        f"{key} {_fact(key, value)}"
        for key, value in certificate.provenance.items()
        if value and key not in _ONLY_IN_FILES
    ]
    return Text("\n" + visible(", ".join(facts)) + ".")


def number(value: float | None) -> str:
    """An error, a bound or a ratio as the tables show it: three digits, rounded up."""
    return upper(value)


def _level(guarantee: Guarantee) -> Text:
    return Text(guarantee.name, _COLOURS[guarantee])


def _fact(key: str, value: str) -> str:
    """Provenance as a person reads it: constants of a theorem are bounds, so rounded upward."""
    if key == "program":
        return value[:12]
    # The probability is text that bounds it already.
    return upper_short(float(value)) if key in CONSTANTS[:-1] else value
