"""`kadds source`: look at sources, pause and resume them, forget those that are no longer in the file."""

from __future__ import annotations

import click

from kadds.app import Place, ask
from kadds.cli import output
from kadds.cli.options import with_json, with_place
from kadds.cli.status import source_row
from kadds.cli.words import problems_of, short


@click.group()
def source() -> None:
    """Sources: look at, pause, resume, remove."""


@source.command("list")
@with_json
@with_place
def list_sources(place: Place, as_json: bool) -> None:
    """List the sources."""
    found = ask(place, "source.list")
    if as_json:
        for one in found:
            output.json_line(one)
        return
    headings = ("source", "connector", "state", "tables", "rows", "rows/s", "lag")
    output.table(headings, [source_row(one) for one in found], empty="no sources")


@source.command()
@click.argument("name")
@with_json
@with_place
def show(place: Place, name: str, as_json: bool) -> None:
    """Show source NAME and each of its tables."""
    found = ask(place, "source.show", {"name": name})
    if as_json:
        output.json_line(found)
        return
    output.fields({key: value for key, value in found.items() if key not in ("tables", "problem", "contract")})
    click.echo("")
    output.table(
        ("table", "state", "key", "columns", "rows", "rows/s", "polled"),
        [
            (
                one["table"], one["state"], ", ".join(one["key"]), one["columns"], one["rows"], one["rows_per_second"],
                output.ago(one["last_polled_at"]),
            )
            for one in found["tables"]
        ],
        empty="no tables yet",
    )  # fmt: skip
    problems_of("source", found)


@source.command()
@click.argument("name")
@click.option("--table", help="Only this table (schema.table).")
@with_place
def pause(place: Place, name: str, table: str | None) -> None:
    """Stop capturing source NAME; kept over a restart."""
    ask(place, "source.pause", {"name": name, "table": table})
    click.echo(f"paused source {name}{f' {table}' if table else ''}")


@source.command()
@click.argument("name")
@click.option("--table", help="Only this table (schema.table).")
@with_place
def resume(place: Place, name: str, table: str | None) -> None:
    """Go on with source NAME, its failed tables too."""
    ask(place, "source.resume", {"name": name, "table": table})
    click.echo(f"resumed source {name}{f' {table}' if table else ''}")


@source.command()
@click.argument("name")
@click.option("--drop-slot", is_flag=True, help="Take back what was made for it on its server, too.")
@with_place
def remove(place: Place, name: str, drop_slot: bool) -> None:
    """Forget source NAME, which is no longer in the file; its changes stay in the log."""
    found = ask(place, "source.remove", {"name": name, "drop_slot": drop_slot})
    for sentence in found["said"]:
        click.echo(sentence)
    click.echo(f"removed source {short(found['removed'])}")
