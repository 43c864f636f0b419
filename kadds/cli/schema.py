"""`kadds schema`: the JSON Schema of the configuration file, for editors."""

from __future__ import annotations

import json

import click

from kadds.app import json_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file.

    An editor uses it when the file begins with: # yaml-language-server: $schema=kadds.schema.json
    """
    click.echo(json.dumps(json_schema(), indent=2))
