"""`kadds sink`: sinks that are registered by command, and those of the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kadds.api.connector import Level
from kadds.api.errors import ConfigurationError
from kadds.app import Place, ask
from kadds.cli import output
from kadds.cli.failures import FAILED
from kadds.cli.options import with_json, with_place
from kadds.cli.words import short


@click.group()
def sink() -> None:
    """Sinks: register, look at, try, pause, remove."""


@sink.command()
@click.argument("name")
@click.option("--connector", required=True, help="Its connector; `kadds connectors` lists them.")
@click.option(
    "--set", "settings", multiple=True, metavar="SETTING=VALUE", help="A setting of the connector; repeatable."
)
@with_json
@with_place
def register(place: Place, name: str, connector: str, settings: Sequence[str], as_json: bool) -> None:
    """Register sink NAME in the log, for subscriptions to use from the next start of `kadds run` on.

    Secrets are accepted as ${…} references only; they are kept as written and resolved by the running process.
    A path is relative to the current folder.
    """
    arguments = {"name": name, "connector": connector, "settings": given(settings), "folder": str(Path.cwd())}
    found = ask(place, "sink.register", arguments)
    if as_json:
        output.json_line(found)
    else:
        click.echo(f"registered sink {short(found['name'])}\nnext: kadds sink test {short(found['name'])}")


def given(settings: Sequence[str]) -> dict[str, Any]:
    """The settings out of `a=1` and `a.b=[1, 2]`; what begins with a bracket is JSON, all else is text."""
    found: dict[str, Any] = {}
    for text in settings:
        path, sign, value = text.partition("=")
        *outer, last = path.split(".")
        if not sign or not last:
            raise ConfigurationError(f"--set {text!r} is not SETTING=VALUE", hint="write --set path=data/out")
        inner = found
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"--set {path}: {name} has a value already")
        inner[last] = _value(path, value)
    return found


def _value(path: str, text: str) -> Any:
    if text[:1] not in ("[", "{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise ConfigurationError(f"--set {path}: what begins with a bracket must be JSON") from None


@sink.command("list")
@with_json
@with_place
def list_sinks(place: Place, as_json: bool) -> None:
    """List the sinks of the file and those registered in the log."""
    found = ask(place, "sink.list")
    if as_json:
        for one in found:
            output.json_line(one)
        return
    output.table(
        ("sink", "connector", "from", "used by"),
        [
            (
                short(one["name"]),
                one["connector"],
                "the log" if one["registered"] else "the file",
                ", ".join(map(short, one["subscriptions"])) or None,
            )
            for one in found
        ],
        empty="no sinks",
    )


@sink.command()
@click.argument("name")
@with_json
@with_place
def show(place: Place, name: str, as_json: bool) -> None:
    """Show sink NAME and its settings; references stand as they were written."""
    found = ask(place, "sink.show", {"name": name})
    if as_json:
        output.json_line(found)
    else:
        output.fields(found)


@sink.command()
@click.argument("name")
@with_json
@with_place
@click.pass_context
def test(context: click.Context, place: Place, name: str, as_json: bool) -> None:
    """Open sink NAME and ask it what it would refuse; changes nothing there. Exit code 1 where it refuses."""
    found = ask(place, "sink.test", {"name": name})
    if as_json:
        for one in found:
            output.json_line(one)
    else:
        for one in found:
            click.echo(f"{one['level']}: {one['where']}: {one['message']}")
            if one["hint"]:
                click.echo(f"  hint: {one['hint']}")
        click.echo(f"sink {name} answers" if not found else f"{len(found)} findings")
    if any(one["level"] == Level.ERROR.value for one in found):
        context.exit(FAILED)


@sink.command()
@click.argument("name")
@with_place
def pause(place: Place, name: str) -> None:
    """Pause every subscription of sink NAME; kept over a restart."""
    _say("paused", ask(place, "sink.pause", {"name": name}))


@sink.command()
@click.argument("name")
@with_place
def resume(place: Place, name: str) -> None:
    """Resume every subscription of sink NAME, those that failed too."""
    _say("resumed", ask(place, "sink.resume", {"name": name}))


def _say(what: str, subscriptions: Sequence[str]) -> None:
    click.echo(f"{what}: {', '.join(map(short, subscriptions)) or 'no subscription uses it'}")


@sink.command()
@click.argument("name")
@with_place
def remove(place: Place, name: str) -> None:
    """Forget sink NAME, which no subscription uses; what it holds is left alone."""
    click.echo(f"removed sink {short(ask(place, 'sink.remove', {'name': name})['removed'])}")
