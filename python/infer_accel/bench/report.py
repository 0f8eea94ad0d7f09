"""The table of a run, for people."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, RenderableType

    from infer_accel.bench.compare import Comparison
    from infer_accel.bench.rows import Row

__all__ = ["format_value", "print_comparison", "print_notes", "print_rows"]


#: In the table; the record has them all.
_RIVALS_SHOWN = 3


def format_value(value: float) -> str:
    """Return three significant digits, without an exponent where a reader expects none.

    Examples
    --------
    >>> format_value(0.01234), format_value(7.25), format_value(1234.5)
    ('0.0123', '7.25', '1,234')
    """
    if value >= 1000:
        return f"{value:,.0f}"
    if value < 1e-3:
        return f"{value:.2e}"
    digits = 2
    threshold = 10.0
    while digits and value >= threshold:
        digits -= 1
        threshold *= 10
    threshold = 1.0
    while value < threshold:
        digits += 1
        threshold /= 10
    return f"{value:.{digits}f}"


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print one table a part."""
    for part, group in groupby(rows, key=lambda row: row.part):
        console.print(_table(part, list(group)))
        console.print()


def _table(part: str, rows: Sequence[Row]) -> RenderableType:
    table = Table(title=f"[bold]{part}[/bold]", title_justify="left", box=None, pad_edge=False, expand=False)
    table.add_column("case", overflow="fold")
    table.add_column("infer-accel", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, style="dim")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("of the limit", justify="right", no_wrap=True)
    table.add_column("rivals, the best first", overflow="fold")
    for row in rows:
        table.add_row(
            escape(row.case),
            format_value(row.ours),
            row.unit,
            _ratio(row.ratio),
            _share(row),
            _rivals(row),
        )
    return Group(table)


def _ratio(ratio: float | None) -> Text:
    if ratio is None:
        return Text("–", style="dim")
    style = "bold green" if ratio >= 1.05 else "yellow" if ratio >= 0.95 else "bold red"
    return Text(f"×{format_value(ratio)}", style=style)


def _share(row: Row) -> Text:
    if row.efficiency is None:
        return Text("–", style="dim")
    return Text(f"{row.efficiency:.0%}", style="cyan" if row.efficiency >= 0.5 else "")


def _rivals(row: Row) -> Text:
    text = Text()
    ranked = row.ranked_peers()
    for index, (name, value) in enumerate(ranked[:_RIVALS_SHOWN]):
        text.append(" · " if index else "", style="dim")
        # No-break spaces keep a name and its figure on one line.
        text.append(f"{name} {format_value(value)}".replace(" ", "\xa0"), style="" if index == 0 else "dim")
    if len(ranked) > _RIVALS_SHOWN:
        text.append(f" · {len(ranked) - _RIVALS_SHOWN}\xa0more", style="dim")
    return text or Text("–", style="dim")


def print_notes(
    console: Console,
    *,
    limits: Mapping[str, float],
    absent: Mapping[str, str],
    left_out: Mapping[str, str],
    failures: Sequence[str],
) -> None:
    """Print what a reader of the table must know: limits, missing rivals, rows that failed."""
    if limits:
        shown = " · ".join(f"{name} {value / 1e9:.3g} G/s" for name, value in limits.items())
        console.print(Text(f"limits of this machine, measured in this run: {shown}", style="dim"))
    console.print(
        Text(
            "ratio: against the best rival, above 1 is faster; each row was checked before it was timed",
            "dim",
        )
    )
    for name, how in absent.items():
        console.print(Text.assemble("not measured against ", (name, "bold"), f": {how}"))
    for name, why in left_out.items():
        console.print(Text(f"left out: {name}: {why}", style="yellow"))
    for failure in failures:
        console.print(Text(f"WRONG: {failure}", style="bold red"))


def print_comparison(console: Console, comparison: Comparison, tolerance: float) -> None:
    """Print the rows that fell by more than `tolerance`, and what could not be compared."""
    fallen = comparison.fallen(tolerance)
    for change in fallen:
        console.print(
            Text.assemble(
                ("fell  ", "bold red"),
                f"{change.key}: {change.by} {format_value(change.before)} → {format_value(change.now)} ",
                (f"({change.factor - 1:+.0%})", "red"),
            )
        )
    for key in comparison.missing:
        console.print(Text(f"not in this run: {key}", style="yellow"))
    for key in comparison.incomparable:
        console.print(Text(f"no rival and no limit in common: {key}", style="yellow"))
    kept = len(comparison.changes) - len(fallen)
    console.print(Text(f"{len(fallen)} fell by more than {tolerance:.0%}, {kept} held", style="bold"))
