"""How are predicted errors and precision plans shown to a person?"""

from collections.abc import Iterable

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from numgeom.arithmetic.printing import lower, nearest, percent, percent_upper, seconds_text, upper
from numgeom.precision import BitsNeeded, Estimate, GradientEstimate, PrecisionPlan, Verification
from numgeom.visible import visible

# Shares of numbers that become zero are shown from here on.
_UNDERFLOW = 1e-3


def estimate_view(found: Estimate, *, rows: int = 40) -> Group:
    """A headline and a table of parameters, largest error first."""
    least, most = found.total.interval
    headline = Text(
        f"Predicted error of the gradient: {nearest(found.total.predicted_error)} (relative, "
        f"2-norm), {lower(least)} to {upper(most)} in 95 of 100 runs, "
        f"guarantee {found.total.guarantee.name}",
        style="bold",
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("parameter")
    for column in ("entries", "predicted error", "from", "to"):
        table.add_column(column, justify="right")
    ranked = sorted(found.parameters.values(), key=_size, reverse=True)
    for row in ranked[:rows]:
        ends = (lower(row.interval[0]), upper(row.interval[1]))
        table.add_row(
            Text(visible(row.name)), str(row.entries), nearest(row.predicted_error), *ends
        )
    hidden = len(ranked) - rows
    more = [Text(f"{hidden} parameters with a smaller error are not shown.")] if hidden > 0 else []
    facts = f"{visible(found.formats)}, {found.samples} samples, {seconds_text(found.seconds)}"
    return Group(headline, table, *more, Text(facts, style="dim"))


def bits_view(needs: Iterable[BitsNeeded], *, by: str) -> Table:
    """A table of parts and the significant bits that each of them needs alone."""
    table = Table(
        box=box.SIMPLE_HEAD, title=f"Significant bits needed, by {by}", title_justify="left"
    )
    table.add_column(by)
    for column in ("bits", "predicted bits", "error with them [relative]"):
        table.add_column(column, justify="right")
    for need in needs:
        bits = "more than 53" if need.bits is None else str(need.bits)
        name = Text(visible(need.part or "(outside of modules)"))
        table.add_row(name, bits, str(need.predicted_bits), nearest(need.error))
    return table


def plan_view(plan: PrecisionPlan, checked: Verification | None) -> Group:
    """The formats of all modules, and what they cost and save."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("module")
    table.add_column("format")
    table.add_column("share of the work", justify="right")
    columns = sorted({f for row in plan.module_errors.values() for f in row} - {"float32"})
    for name in columns:
        table.add_column(f"error if {name} alone", justify="right")
    everything = max(sum(plan.flops.values()), 1)
    for module, chosen in plan.formats.items():
        errors = plan.module_errors.get(module, {})
        cells = (nearest(errors[name]) if name in errors else "" for name in columns)
        share = plan.flops.get(module, 0) / everything
        table.add_row(Text(visible(module or "(the model)")), chosen, percent(share), *cells)
    lines = [
        Text(
            f"{percent(plan.low_precision_share, 0)} of the work in low precision, predicted error "
            f"{nearest(plan.predicted_error)} (relative, 2-norm), tolerance "
            f"{nearest(plan.tolerance)}, guarantee ESTIMATED",
            style="bold",
        ),
        table,
        Text(_loss_scale(plan)),
    ]
    lost = [
        f"{percent_upper(share, 2)} in {module or 'the model'} ({plan.formats[module]})"
        for module, row in plan.underflow.items()
        if (share := row.get(plan.formats.get(module, ""), 0.0)) >= _UNDERFLOW
    ]
    if lost:
        lines.append(Text(visible(f"Numbers that become zero: {', '.join(lost)}.")))
    if checked is not None:
        verdict = "holds" if checked.holds else "does not hold"
        lines.append(
            Text(
                f"Run for real: measured error {nearest(checked.measured_error)}, predicted "
                f"{nearest(checked.predicted_error)}; the tolerance {verdict}."
            )
        )
    return Group(*lines)


def _loss_scale(plan: PrecisionPlan) -> str:
    if "float16" in plan.formats.values() and plan.scaling is not None:
        return str(plan.scaling)
    if "bfloat16" in plan.formats.values():
        return "No loss scale is needed: bfloat16 ranges as far as float32."
    return "No loss scale is needed."


def _size(row: GradientEstimate) -> float:
    return row.predicted_error if row.predicted_error == row.predicted_error else float("inf")
