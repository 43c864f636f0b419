"""`kadds jobs`: what runs by a schedule, when, and how it ended."""

from __future__ import annotations

import click

from kadds.app import Place, ask
from kadds.cli import output
from kadds.cli.failures import FAILED
from kadds.cli.options import with_json, with_place
from kadds.cli.status import jobs_table
from kadds.cli.words import short


@click.group()
def jobs() -> None:
    """What runs by a schedule."""


@jobs.command("list")
@with_json
@with_place
def list_jobs(place: Place, as_json: bool) -> None:
    """List the jobs: when each runs next, when it last ran, and what became of it."""
    found = ask(place, "jobs.list")
    if not as_json:
        jobs_table(found)
        return
    for job in found:
        output.json_line(job)


@jobs.command("run")
@click.argument("name")
@with_json
@with_place
@click.pass_context
def run_job(context: click.Context, place: Place, name: str, as_json: bool) -> None:
    """Run job NAME (source:NAME or subscription:NAME) now, and wait for its end.

    Needs a running `kadds run`. Exit code 1 where the run failed.
    """
    run = ask(place, "jobs.run", {"name": name})
    if as_json:
        output.json_line(run)
    else:
        click.echo(f"{short(run['job'])}: {run['outcome']}, {run['rows']:,} rows")
        for subject, problem in run["problems"].items():
            click.echo(f"  {short(subject)}: {problem['message']}")
    if run["outcome"] not in ("done", "joined"):
        context.exit(FAILED)
