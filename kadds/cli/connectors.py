"""`kadds connectors`: what is installed, what it can do, which settings it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from kadds.app import describe_connector, list_connectors
from kadds.cli import output
from kadds.cli.options import with_json


@click.group(invoke_without_command=True)
@with_json
@click.pass_context
def connectors(context: click.Context, as_json: bool) -> None:
    """List the installed connectors: name, distribution, abilities."""
    if context.invoked_subcommand is not None:
        return
    found = [_summary(name) for name in list_connectors()]
    if as_json:
        for one in found:
            output.json_line(one)
        return
    output.table(
        ("name", "as", "distribution", "what it is for"),
        [
            (
                one["name"],
                " and ".join(side for side in ("source", "sink") if one[side]),
                f"{one['distribution']} {one['version']}",
                one["summary"],
            )
            for one in found
        ],
        empty="no connector is installed",
    )
    click.echo("")
    output.table(
        ("name", "side", "can do"),
        [(one["name"], side, _abilities(one[side])) for one in found for side in ("source", "sink") if one[side]],
        empty="",
    )


def _summary(name: str) -> dict[str, Any]:
    plain = describe_connector(name)
    for side in ("source", "sink"):
        plain[side] = plain[side] and plain[side]["abilities"]
    return plain


def _abilities(plain: Mapping[str, Any]) -> str:
    if "capture" in plain:
        images = ", with before images" if plain["before_images"] else ""
        return f"{plain['capture']}: {', '.join(plain['events'])}{images}"
    return f"modes {', '.join(plain['cells'])}; {plain['promise']}"


@connectors.command()
@click.argument("name")
@with_json
def describe(name: str, as_json: bool) -> None:
    """Print what connector NAME can do and every setting it has."""
    plain = describe_connector(name)
    if as_json:
        output.json_line(plain)
        return
    click.echo(f"{plain['name']}: {plain['summary']}")
    click.echo(f"distribution {plain['distribution']} {plain['version']}" + _extra(plain["extra"]))
    for side in ("source", "sink"):
        if plain[side]:
            _side(side, plain[side])


def _extra(extra: str | None) -> str:
    return f", driver by pip install 'kadds[{extra}]'" if extra else ""


def _side(side: str, plain: Mapping[str, Any]) -> None:
    click.echo(f"\nas a {side}")
    abilities = plain["abilities"]
    if side == "source":
        output.fields(abilities, indent="  ")
    else:
        click.echo(f"  {abilities['promise']}")
        rows = [
            (mode, event, ", ".join(kinds))
            for mode, events in abilities["cells"].items()
            for event, kinds in events.items()
        ]
        output.table(("mode", "what happens", "tables with a key that is"), rows, empty="  it can do nothing")
    click.echo("\n  settings")
    _settings(plain["settings"])
    if plain.get("table_settings"):
        click.echo("\n  settings of a table")
        _settings(plain["table_settings"])


def _settings(settings: Sequence[Mapping[str, Any]]) -> None:
    output.table(
        ("setting", "type", "default", "what it says"),
        [
            (
                one["name"],
                one["type"] + (", secret" if one["secret"] else ""),
                "required" if one["required"] else one["default"],
                one["description"],
            )
            for one in settings
        ],
        empty="  none",
    )
