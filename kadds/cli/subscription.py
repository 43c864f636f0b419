"""`kadds subscription`: look at subscriptions, pause and resume them, decide on changed columns, forget old ones."""

from __future__ import annotations

import click

from kadds.app import Place, ask
from kadds.cli import output
from kadds.cli.options import with_json, with_place
from kadds.cli.status import subscription_row
from kadds.cli.words import lag, problems_of, short

_SHOWN_APART = ("tables", "problem", "contract", "schema_changes")


@click.group()
def subscription() -> None:
    """Subscriptions: look at, pause, resume, decide on changed columns, remove."""


@subscription.command("list")
@with_json
@with_place
def list_subscriptions(place: Place, as_json: bool) -> None:
    """List the subscriptions."""
    found = ask(place, "subscription.list")
    if as_json:
        for one in found:
            output.json_line(one)
        return
    headings = ("subscription", "from", "to", "mode", "state", "tables", "rows", "rows/s", "lag")
    output.table(headings, [subscription_row(one) for one in found], empty="no subscriptions")


@subscription.command()
@click.argument("name")
@with_json
@with_place
def show(place: Place, name: str, as_json: bool) -> None:
    """Show subscription NAME and where each of its streams stands."""
    found = ask(place, "subscription.show", {"name": name})
    if as_json:
        output.json_line(found)
        return
    output.fields({key: value for key, value in found.items() if key not in _SHOWN_APART})
    click.echo("")
    output.table(
        ("stream", "state", "target", "offset", "rows", "rows/s", "lag"),
        [
            (
                short(one["stream"]) or "all", one["state"], ", ".join(one["targets"]), one["offset"], one["rows"],
                one["rows_per_second"], lag(one["lag_seconds"]),
            )
            for one in found["tables"]
        ],
        empty="no streams yet",
    )  # fmt: skip
    problems_of("subscription", found)


@subscription.command()
@click.argument("name")
@click.option("--table", help="Only this table (schema.table), or the label of its stream.")
@with_place
def pause(place: Place, name: str, table: str | None) -> None:
    """Stop delivering subscription NAME; its cursor stays; kept over a restart."""
    ask(place, "subscription.pause", {"name": name, "table": table})
    click.echo(f"paused subscription {name}{f' {table}' if table else ''}")


@subscription.command()
@click.argument("name")
@click.option("--table", help="Only this table (schema.table), or the label of its stream.")
@with_place
def resume(place: Place, name: str, table: str | None) -> None:
    """Go on with subscription NAME, its failed tables too."""
    ask(place, "subscription.resume", {"name": name, "table": table})
    click.echo(f"resumed subscription {name}{f' {table}' if table else ''}")


@subscription.command()
@click.argument("name")
@click.argument("table")
@click.argument("decision", type=click.Choice(["apply", "ignore"]), required=False)
@click.option("--clear-mark", is_flag=True, help="The rows have been mended by hand: the table needs no resync.")
@with_place
def schema(place: Place, name: str, table: str, decision: str | None, clear_mark: bool) -> None:
    """Decide on the change of columns that TABLE (schema.table) of subscription NAME waits with.

    `apply` goes on with the columns as they are now, `ignore` with those that there were. Kept over a restart.
    """
    if decision is None and not clear_mark:
        raise click.UsageError("say `apply`, `ignore` or --clear-mark")
    arguments = {"name": name, "table": table, "decision": decision, "clear_mark": clear_mark}
    ask(place, "subscription.schema", arguments)
    if decision is not None:
        click.echo(f"subscription {name} {table}: {decision}")
    if clear_mark:
        click.echo(f"subscription {name} {table}: the mark is cleared")


@subscription.command()
@click.argument("name")
@with_place
def remove(place: Place, name: str) -> None:
    """Forget subscription NAME, which is no longer in the file; what it delivered is left alone."""
    click.echo(f"removed subscription {short(ask(place, 'subscription.remove', {'name': name})['removed'])}")
