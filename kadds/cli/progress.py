"""Showing that things move: a live table for a person, a line now and then for machines."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import structlog
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kadds.cli import output
from kadds.cli.words import lag, short

LINE_SECONDS = 10.0
REFRESHES_PER_SECOND = 4
ROWS_MAX = 30
_STYLES = {"failed": "red", "retrying": "yellow", "waiting": "yellow", "no-space": "red", "paused": "magenta"}

Status = Callable[[], Mapping[str, Any]]
_logger = structlog.get_logger(__name__)


def person_watches() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def shown(status: Status, *, person: bool) -> Iterator[None]:
    """Show progress for the time of a block."""
    if person:
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        with Live(
            get_renderable=lambda: tables(status()),
            refresh_per_second=REFRESHES_PER_SECOND,
            console=console,
            transient=True,
        ):
            yield
        console.print(tables(status()))
        return
    ended = threading.Event()
    thread = threading.Thread(target=_lines, args=(status, ended), name="kadds-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def print_tables(plain: Mapping[str, Any]) -> None:
    """The tables once, to standard error, where no terminal refreshes them."""
    Console(stderr=True, highlight=False, markup=False, emoji=False, width=output.LINE_WIDTH).print(tables(plain))


def _lines(status: Status, ended: threading.Event) -> None:
    while not ended.wait(LINE_SECONDS):
        plain = status()
        for kind in ("source", "subscription"):
            for one in plain[f"{kind}s"]:
                facts = {name: one[name] for name in ("state", "rows", "rows_per_second", "lag_seconds")}
                _logger.info("progress", **{kind: one["name"]}, **facts)


def tables(plain: Mapping[str, Any]) -> RenderableType:
    """Sources and subscriptions with their streams, offsets, rows a second and lag."""
    log = plain["log"]
    head = Text(f"log {output.size(log['journal_bytes'] + log['segment_bytes'])}, end offset {log['end_offset']:,}")
    return Group(head, _captured(plain["sources"]), _delivered(plain["subscriptions"]))


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        numbers = heading in ("rows", "rows/s", "lag", "offset")
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=True)
    return table


def _captured(sources: list[Mapping[str, Any]]) -> Table:
    table = _table("source", "table", "state", "rows", "rows/s", "lag")
    rows = [(source, one) for source in sources for one in source["tables"]]
    for source, one in _most_telling(rows):
        table.add_row(
            short(source["name"]), one["table"], _state(one), f"{one['rows']:,}", f"{one['rows_per_second']:,.0f}",
            lag(one["lag_seconds"]),
        )  # fmt: skip
    _rest(table, rows)
    return table


def _delivered(subscriptions: list[Mapping[str, Any]]) -> Table:
    table = _table("subscription", "stream", "state", "offset", "rows", "rows/s", "lag")
    rows = [(subscription, one) for subscription in subscriptions for one in subscription["tables"]]
    for subscription, one in _most_telling(rows):
        table.add_row(
            short(subscription["name"]), short(one["stream"]), _state(one), f"{one['offset']:,}", f"{one['rows']:,}",
            f"{one['rows_per_second']:,.0f}", lag(one["lag_seconds"]),
        )  # fmt: skip
    for subscription in subscriptions:
        if not subscription["tables"] or subscription["problem"]:
            table.add_row(short(subscription["name"]), "", _state(subscription), "", "", "", "")
    _rest(table, rows)
    return table


Row = tuple[Mapping[str, Any], Mapping[str, Any]]


def _most_telling(rows: list[Row]) -> list[Row]:
    """What has a problem first, then what moves most, as many as a screen takes; else in their own order."""
    if len(rows) <= ROWS_MAX:
        return rows
    return sorted(rows, key=lambda row: (row[1]["problem"] is None, -row[1]["rows_per_second"]))[:ROWS_MAX]


def _rest(table: Table, rows: list[Row]) -> None:
    if len(rows) > ROWS_MAX:
        table.add_row("", f"… and {len(rows) - ROWS_MAX} more")


def _state(one: Mapping[str, Any]) -> Text:
    problem = one["problem"] or {}
    reason = problem.get("waiting_for") or (problem.get("message") if one["state"] in _STYLES else None)
    text = f"{one['state']}: {reason}" if reason else one["state"]
    return Text(text if len(text) <= 60 else text[:59] + "…", style=_STYLES.get(one["state"], ""))
