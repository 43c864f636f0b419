"""Printing: JSON lines for machines, tables for people. Data goes to standard output, talk to standard error."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table

LINE_WIDTH = 160  # where nobody watches, a table is not folded to a terminal's width


def json_line(plain: Any) -> None:
    """One JSON value on one line."""
    click.echo(json.dumps(plain, ensure_ascii=False))


def console() -> Console:
    """Standard output as rich sees it."""
    person = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if person else LINE_WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=not person, width=width)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table; numbers stand to the right; `empty` is said where there is no row."""
    listed = [list(row) for row in rows]
    if not listed:
        click.echo(empty)
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for at, heading in enumerate(headings):
        numbers = all(isinstance(row[at], int | float) for row in listed)
        shown.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in listed:
        shown.add_row(*(cell(value) for value in row))
    console().print(shown)


def cell(value: object) -> str:
    """A value of a table in words."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def fields(plain: Mapping[str, Any], *, indent: str = "") -> None:
    """Names and values, one a line, maps indented."""
    width = max((len(name) for name in plain), default=0)
    for name, value in plain.items():
        if isinstance(value, Mapping) and value:
            click.echo(f"{indent}{name}")
            fields(value, indent=indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            click.echo(f"{indent}{name}")
            for one in value:
                fields(one, indent=indent + "  ")
                click.echo("")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            click.echo(f"{indent}{name:<{width}}  {'-' if shown in (None, '', {}) else shown}")


def ago(text: str | None, now: dt.datetime | None = None) -> str | None:
    """How long ago an ISO time was, in words; in how long it will be, where it is to come."""
    if text is None:
        return None
    seconds = ((now or dt.datetime.now(dt.UTC)) - dt.datetime.fromisoformat(text)).total_seconds()
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """Seconds in words: 3 s, 4 min, 5 h, 6 d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(count: int) -> str:
    """Bytes in words: 12 kB, 3.4 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
