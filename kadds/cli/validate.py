"""`kadds validate`: everything that is wrong with a configuration, all at once, before anything moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kadds.api.connector import Level
from kadds.app import ConfigurationProblems, Found, Loaded, Problem, exit_code, explain, validate_online
from kadds.app import load_configuration as load
from kadds.cli import output
from kadds.cli.failures import WRONG
from kadds.cli.options import with_config, with_json

_COLOURS = {Level.ERROR: "red", Level.WARNING: "yellow", Level.NOTE: "blue"}


@click.command()
@with_config
@click.option("--offline", is_flag=True, help="Look at the file only; connect to nothing.")
@click.option("--explain", "table", metavar="TABLE", help="Print where each setting of a table comes from.")
@click.option("--show", is_flag=True, help="Print the whole configuration with its includes, secrets masked.")
@with_json
@click.pass_context
def validate(context: click.Context, config: Path, offline: bool, table: str | None, show: bool, as_json: bool) -> None:
    """Check CONFIG (without it $KADDS_CONFIG, then ./kadds.yml): the file, then, by connecting, what it names.

    Exit code 2 where the file is at fault, 1 where a server refuses.
    """
    try:
        loaded = load(config)
    except ConfigurationProblems as problems:
        _print_problems(problems, as_json)
        context.exit(WRONG)
    if table is not None:
        click.echo(explain(loaded, table))
        return
    if show:
        click.echo(loaded.printable(), nl=False)
        return
    found: list[Found] = [_warning(problem) for problem in loaded.warnings]
    for one in found:
        _print(one, as_json)
    if not offline:
        for one in validate_online(loaded):
            _print(one, as_json)
            found.append(one)
    _print_end(loaded, found, as_json, offline=offline)
    context.exit(exit_code(found))


def _warning(problem: Problem) -> Found:
    return Found(Level.WARNING, "file", str(problem.file), problem.message, problem.hint, problem.place, in_file=True)


def _print_problems(problems: ConfigurationProblems, as_json: bool) -> None:
    for problem in problems.problems:
        one = Found(Level.ERROR, "file", str(problem.file), problem.message, problem.hint, problem.place, in_file=True)
        _print(one, as_json)
    if as_json:
        output.json_line(_counts([Level.ERROR] * len(problems.problems)))
    else:
        count = len(problems.problems)
        click.echo(f"{count} problem{'s' if count != 1 else ''}; nothing was connected to", err=True)


def _counts(levels: list[Level]) -> Mapping[str, Any]:
    return {"type": "summary", **{f"{level.value}s": levels.count(level) for level in Level}}


def _print(one: Found, as_json: bool) -> None:
    if as_json:
        output.json_line({"type": "finding", **one.to_json()})
        return
    place = f"{one.place}: " if one.place else ""
    level = click.style(f"{one.level.value}: ", fg=_COLOURS[one.level])
    subject = "" if one.subject == "file" else f"{one.subject}: "
    where = "" if one.subject == "file" or one.where in (one.subject, str(one.place)) else f"{one.where}: "
    click.echo(f"{place}{level}{subject}{where}{one.message}")
    if one.hint:
        click.echo(f"  hint: {one.hint}")


def _print_end(loaded: Loaded, found: list[Found], as_json: bool, *, offline: bool) -> None:
    levels = [one.level for one in found]
    if as_json:
        output.json_line(_counts(levels))
        return
    configuration = loaded.configuration
    counted = [
        (len(configuration.sources), "source"),
        (len(configuration.sinks), "sink"),
        (len(configuration.subscriptions), "subscription"),
    ]
    what = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for count, name in counted)
    errors = levels.count(Level.ERROR)
    verdict = f"{errors} error{'s' if errors != 1 else ''}" if errors else "no error"
    click.echo(f"{loaded.files[0]}: {what}; {verdict}" + (" (nothing was connected to)" if offline else ""), err=True)
