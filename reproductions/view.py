"""How is the outcome of a reproduction shown to a person?"""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from numgeom.arithmetic.printing import nearest_short, upper_short
from numgeom.visible import visible, visible_lines
from reproductions.outcome import Cell, Outcome, Table


def outcome_view(outcome: Outcome) -> Group:
    """Arrange title, tables, facts, notes and the stamp of an outcome."""
    parts: list[RenderableType] = [Text(outcome.title, style="bold")]
    parts += [_table(table) for table in outcome.tables]
    parts += [Text(f"{visible(key)}: {cell(value)}") for key, value in outcome.facts.items()]
    parts += [Text(visible_lines(note)) for note in outcome.notes]
    stamps = [f"{stamp.source}, sha256 {stamp.sha256[:12]}" for stamp in outcome.data]
    circumstances = dict(outcome.circumstances)
    versions = circumstances.pop("versions", {})
    said = [f"data {'; '.join(stamps)}"] if stamps else []
    said += [f"{key.replace('_', ' ')} {value}" for key, value in circumstances.items()]
    said += [f"{package} {version}" for package, version in dict(versions).items()]
    if said:
        parts.append(Text(visible(", ".join(said)), style="dim"))
    return Group(*parts)


def cell(value: object, *, is_bound: bool = False) -> str:
    """One value as text: three digits, upward for a bound, and nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return visible(value)
    return upper_short(value) if is_bound else nearest_short(value)


def _table(table: Table) -> RichTable:
    shown = RichTable(
        title=Text(visible(table.title)), title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    cells = [
        [cell(v, is_bound=c in table.bounds) for c, v in zip(table.columns, row, strict=True)]
        for row in table.rows
    ]
    for index, column in enumerate(table.columns):
        numeric = all(_is_number(row[index]) for row in table.rows)
        # A number is shown whole or not at all; headers wrap at spaces.
        texts = [shown_row[index] for shown_row in cells]
        widest = max(map(len, texts), default=0) if numeric else 0
        shown.add_column(
            Text(visible(column)),
            justify="right" if numeric else "left",
            min_width=max(widest, *map(len, column.split()), 1),
            overflow="fold",
        )
    for texts in cells:
        shown.add_row(*map(Text, texts))
    return shown


def _is_number(value: Cell) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
