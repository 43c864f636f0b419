"""`kadds log`: look into the log."""

from __future__ import annotations

from collections.abc import Iterable

import click

from kadds.app import Part, Place, ask
from kadds.cli import output
from kadds.cli.changes import Line, lines, person_line
from kadds.cli.options import with_json, with_place


@click.group()
def log() -> None:
    """Look into the log."""


@log.command()
@click.option("--source", help="Only the streams of this source.")
@with_json
@with_place
def streams(place: Place, source: str | None, as_json: bool) -> None:
    """List the streams: one for each captured table."""
    full = source if source is None or "/" in source else f"default/{source}"
    found = ask(place, "log.streams", {"source": full})
    if as_json:
        for one in found:
            output.json_line(one)
        return
    output.table(
        ("id", "stream", "source", "table", "incarnation"),
        [(one["id"], one["stream"], one["source"], one["table"], one["incarnation"]) for one in found],
        empty="the log has no streams yet",
    )


@log.command()
@click.option(
    "--stream", multiple=True, help="Only this stream (a name of `kadds log streams`, or a table); repeatable."
)
@click.option("--from", "after", metavar="CURSOR", help="Begin behind this cursor instead of at the beginning.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many changes and control records.")
@with_json
@with_place
def read(place: Place, stream: tuple[str, ...], after: str | None, limit: int | None, as_json: bool) -> None:
    """Print changes in the order of the log, exactly as they were captured."""
    arguments = {"stream": list(stream), "after": after, "limit": limit}
    _print(ask(place, "log.read", arguments), as_json, follow=False)


@log.command()
@click.option(
    "--stream", multiple=True, help="Only this stream (a name of `kadds log streams`, or a table); repeatable."
)
@click.option("--from", "after", metavar="CURSOR", help="Begin behind this cursor instead of with what comes next.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many changes and control records.")
@with_json
@with_place
def tail(place: Place, stream: tuple[str, ...], after: str | None, limit: int | None, as_json: bool) -> None:
    """Print changes as they come, while `kadds run` is up; Ctrl-C ends it."""
    parts = ask(place, "log.tail", {"stream": list(stream), "after": after})
    try:
        _print(parts, as_json, follow=True, limit=limit)
    except KeyboardInterrupt:
        parts.close()


def _print(parts: Iterable[Part | None], as_json: bool, *, follow: bool, limit: int | None = None) -> None:
    cursor = None
    count = 0
    for found in lines(parts):
        if not isinstance(found, Line):
            cursor = found
            continue
        if as_json:
            output.json_line(found.plain)
        else:
            click.echo(person_line(found))
        count += 1
        if follow and count == limit:
            return
    if as_json:
        output.json_line({"type": "end", "cursor": cursor})
    else:
        click.echo(f"{count:,} lines; go on with --from {cursor}", err=True)
