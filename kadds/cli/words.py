"""Things of the status in words, the same wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from kadds.cli import output

DEFAULT_TENANT = "default/"


def short(name: str | None) -> str:
    """A name as people of the default tenant write it."""
    return (name or "-").replace(f":{DEFAULT_TENANT}", ":").removeprefix(DEFAULT_TENANT)


def lag(seconds: float | None) -> str:
    """How far behind."""
    return "-" if seconds is None else output.duration(seconds)


def problem(name: str, plain: Mapping[str, Any] | None) -> None:
    """Print why something is in its state, to standard output, with what to do."""
    if not plain:
        return
    where = f" {plain['where']}:" if plain["where"] else ""
    waiting = f"waiting for {plain['waiting_for']}: " if plain["waiting_for"] else ""
    times = f" ({plain['attempts']} times since {plain['since']})" if plain["attempts"] > 1 else ""
    click.echo(f"{name}:{where} {waiting}{plain['message']}{times}")
    if plain["hint"]:
        click.echo(f"  hint: {plain['hint']}")


def problems_of(kind: str, plain: Mapping[str, Any]) -> None:
    """Print the problem of a source or subscription, and those of its tables."""
    name = f"{kind} {short(plain['name'])}"
    problem(name, plain["problem"])
    for table in plain["tables"]:
        if table["problem"] != plain["problem"]:
            problem(f"{name} {short(table.get('table') or table.get('stream'))}", table["problem"])
    for one in plain.get("schema_changes", ()):
        stream = f"{name} {short(one['stream'])}"
        if one["decided"]:
            click.echo(f"{stream}: {', '.join(one['held'])}; decided: {one['decided']}")
        elif one["held"] and not plain["tables"]:  # nothing runs: no state says so
            click.echo(f"{stream}: {', '.join(one['held'])}, which waits for a decision")
        for mark in one["needs_resync"]:
            click.echo(f"{stream}: needs resync: {mark}")


def when(job: Mapping[str, Any]) -> str:
    """A job's schedule."""
    if job["cron"]:
        return f"{job['cron']} ({job['timezone']})"
    return f"every {output.duration(job['interval_seconds'])}"
