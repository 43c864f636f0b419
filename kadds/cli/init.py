"""`kadds init`: a first configuration file, with comments, and the schema that helps an editor with it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kadds.api.errors import ConfigurationError
from kadds.app import json_schema
from kadds.cli.options import FILE

SCHEMA_NAME = "kadds.schema.json"

STARTER = """\
# yaml-language-server: $schema=kadds.schema.json
#
# A first Kadds configuration. `kadds validate` says what is wrong with it, `kadds run` runs it.
# Values may hold ${VAR}, ${VAR:-default}, ${VAR:?message} and ${file:/path}; secrets belong into such references.

log:
  path: data/log                       # where every change is kept, relative to this file

# memory_limit: 512MB                  # all memory that is used; a quarter of the machine if not given

# metrics:
#   listen: 127.0.0.1:9187             # /metrics for Prometheus, /livez and /readyz

sources:
  shop:
    connector: polling                 # `kadds connectors` lists them, `kadds connectors describe polling` its settings
    url: ${SHOP_URL:-sqlite:///shop.db}
    poll_interval_seconds: 2           # or  schedule: {cron: "*/5 * * * *", timezone: Europe/Berlin}
    tables:
      # How a table tells what is new in it: a rising number, a time of change, or a table of changes.
      "*": {incrementing: id}          # sees new rows only
      # orders: {timestamp: updated_at}
      # customers: {change_table: {table: customers_changes, sequence: n, op: op}}

sinks:
  warehouse:
    connector: duckdb
    path: data/warehouse.duckdb        # relative to this file
  # lake:
  #   connector: files
  #   path: data/lake

subscriptions:
  shop-to-warehouse:
    source: shop
    sink: warehouse
    mode: merge                        # merge: each key once, as it is now; append: every change, as history
    tables:
      "*": {}
      # orders: {target: sales.orders, columns: ["!card"], where: "status <> 'draft'", mask: {email: redact}}
"""


@click.command()
@click.argument("path", type=FILE, default=Path("kadds.yml"))
def init(path: Path) -> None:
    """Write a first configuration to PATH (kadds.yml), with comments. Overwrites nothing."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError:
        raise ConfigurationError(
            "this file is there already", where=str(path), hint="name another one: kadds init other.yml"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"it cannot be written: {error.strerror}", where=str(path)) from None
    schema = path.parent / SCHEMA_NAME
    if not schema.exists():
        schema.write_text(json.dumps(json_schema(), indent=2) + "\n", encoding="utf-8")
    click.echo(f"wrote {path} and {schema}\nnext: kadds validate {path}; kadds run {path}")
