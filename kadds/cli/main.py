"""The command `kadds`: its groups put together."""

from __future__ import annotations

import click

from kadds import __version__
from kadds.cli.connectors import connectors
from kadds.cli.demo import demo
from kadds.cli.failures import Commands
from kadds.cli.init import init
from kadds.cli.jobs import jobs
from kadds.cli.log import log
from kadds.cli.run import run
from kadds.cli.schema import schema
from kadds.cli.sink import sink
from kadds.cli.source import source
from kadds.cli.status import status
from kadds.cli.subscription import subscription
from kadds.cli.validate import validate

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Commands, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="kadds")
def main() -> None:
    """Change data capture: reads changes once, keeps every one, delivers them exactly."""


for command in (run, validate, status, demo, init, connectors, schema, source, sink, subscription, jobs, log):
    main.add_command(command)
