"""`kadds status`: what there is and how it does, also when nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kadds.app import Place, ask
from kadds.cli import output
from kadds.cli.options import with_json, with_place
from kadds.cli.words import lag, problem, problems_of, short, when


@click.command()
@with_json
@with_place
def status(place: Place, as_json: bool) -> None:
    """Show sources, subscriptions, lag, jobs and errors."""
    plain = ask(place, "status")
    if as_json:
        output.json_line(plain)
    else:
        show(plain)


def show(plain: Mapping[str, Any]) -> None:
    """For a person."""
    log = plain["log"]
    running = f"running since {plain['started_at']}, process {plain['pid']}" if plain["running"] else "not running"
    click.echo(f"{running}")
    size = output.size(log["journal_bytes"] + log["segment_bytes"])
    click.echo(f"log {log['path']}: {size}, ends at {log['end']}, {output.size(log['free_bytes'])} free on its disk\n")
    output.table(
        ("source", "connector", "state", "tables", "rows", "rows/s", "lag"),
        [source_row(one) for one in plain["sources"]],
        empty="no sources",
    )
    click.echo("")
    output.table(
        ("subscription", "from", "to", "mode", "state", "tables", "rows", "rows/s", "lag"),
        [subscription_row(one) for one in plain["subscriptions"]],
        empty="no subscriptions",
    )
    if plain["jobs"]:
        click.echo("")
        jobs_table(plain["jobs"])
    _problems(plain)


def source_row(one: Mapping[str, Any]) -> tuple[object, ...]:
    """A source in a table."""
    return (
        short(one["name"]), one["connector"], one["state"], len(one["tables"]), one["rows"], one["rows_per_second"],
        lag(one["lag_seconds"]),
    )  # fmt: skip


def subscription_row(one: Mapping[str, Any]) -> tuple[object, ...]:
    """A subscription in a table."""
    behind = f", {output.size(one['lag_bytes'])}" if one["lag_bytes"] else ""
    return (
        short(one["name"]), short(one["source"]), short(one["sink"]), one["mode"], one["state"], len(one["tables"]),
        one["rows"], one["rows_per_second"], lag(one["lag_seconds"]) + behind,
    )  # fmt: skip


def jobs_table(jobs: list[Mapping[str, Any]]) -> None:
    """Jobs, when each runs, and how its last run ended."""
    output.table(
        ("job", "runs", "next", "last", "outcome", "rows"),
        [
            (
                short(job["job"]),
                when(job),
                output.ago(job["next_run_at"]),
                output.ago(last["started_at"]) if (last := job["last_run"]) else None,
                last and last["outcome"],
                last and last["rows"],
            )
            for job in jobs
        ],
        empty="no jobs: nothing has a schedule",
    )


def _problems(plain: Mapping[str, Any]) -> None:
    problem("log", plain["problem"])
    for name in ("failure", "sealing_failure"):
        if plain["log"][name]:
            click.echo(f"log: {plain['log'][name]}")
    for kind in ("source", "subscription"):
        for one in plain[f"{kind}s"]:
            problems_of(kind, one)
    for warning in plain["warnings"]:
        click.echo(f"warning: {warning}")
