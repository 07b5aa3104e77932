"""How is the outcome of a reproduction shown to a person?"""

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from reproductions.outcome import Cell, Outcome, Table


def outcome_view(outcome: Outcome) -> Group:
    """Arrange title, tables, facts, notes and the stamp of an outcome."""
    parts: list[RenderableType] = [Text(outcome.title, style="bold")]
    parts += [_table(table) for table in outcome.tables]
    parts += [Text(f"{key}: {cell(value)}") for key, value in outcome.facts.items()]
    parts += [Text(note) for note in outcome.notes]
    stamps = [f"{stamp.source}, sha256 {stamp.sha256[:12]}" for stamp in outcome.data]
    circumstances = dict(outcome.circumstances)
    versions = circumstances.pop("versions", {})
    said = [f"data {'; '.join(stamps)}"] if stamps else []
    said += [f"{key.replace('_', ' ')} {value}" for key, value in circumstances.items()]
    said += [f"{package} {version}" for package, version in dict(versions).items()]
    if said:
        parts.append(Text(", ".join(said), style="dim"))
    return Group(*parts)


def cell(value: object) -> str:
    """One value as text: three digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(table: Table) -> RichTable:
    shown = RichTable(
        title=escape(table.title), title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    for index, column in enumerate(table.columns):
        numeric = all(_is_number(row[index]) for row in table.rows)
        # A number is shown whole or not at all; headers wrap at spaces.
        widest = max([len(cell(row[index])) for row in table.rows] if numeric else [0], default=0)
        shown.add_column(
            escape(column),
            justify="right" if numeric else "left",
            min_width=max(widest, *map(len, column.split()), 1),
            overflow="fold",
        )
    for row in table.rows:
        shown.add_row(*(escape(cell(value)) for value in row))
    return shown


def _is_number(value: Cell) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
