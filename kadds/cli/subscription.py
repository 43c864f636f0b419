"""`kadds subscription`: look at subscriptions, pause and resume them, forget those that are no longer in the file."""

from __future__ import annotations

import click

from kadds.app import Place, ask
from kadds.cli import output
from kadds.cli.options import with_json, with_place
from kadds.cli.status import subscription_row
from kadds.cli.words import lag, problems_of, short


@click.group()
def subscription() -> None:
    """Subscriptions: look at, pause, resume, remove."""


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
    output.fields({key: value for key, value in found.items() if key not in ("tables", "problem", "contract")})
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
@with_place
def remove(place: Place, name: str) -> None:
    """Forget subscription NAME, which is no longer in the file; what it delivered is left alone."""
    click.echo(f"removed subscription {short(ask(place, 'subscription.remove', {'name': name})['removed'])}")
