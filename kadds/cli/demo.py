"""`kadds demo`: a shop that keeps changing, the log, a DuckDB sink and Parquet files, with nothing to install or start.

It runs what anybody would run: a configuration file in a folder. When it ends, the copy is compared with the shop.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb

from kadds.api.errors import ConfigurationError
from kadds.app import App, Outcome, load_configuration, secrets_of, serve, status
from kadds.cli import logs, progress
from kadds.cli.demo_shop import TABLES, Shop, query
from kadds.cli.failures import FAILED
from kadds.cli.options import FOLDER
from kadds.cli.run import SWITCH_INTERVAL_SECONDS
from kadds.cli.stopping import StopRequest, stop_by_signal

SECONDS = 15.0
FIRST_ROWS_SECONDS_MAX = 60.0
_LOOK_SECONDS = 0.02

CONFIGURATION = """\
# What `kadds demo` ran. Run it again with: kadds run {file}

log: {{path: log}}

sources:
  shop:
    connector: polling
    url: {url}
    poll_interval_seconds: 0.2
    tables:                                     # SQLite has one writer at a time: no commit is late, no overlap needed
{tables}

sinks:
  warehouse: {{connector: duckdb, path: warehouse.duckdb, idle_close_seconds: 0.5}}
  history: {{connector: files, path: history}}

subscriptions:
  shop-to-warehouse: {{source: shop, sink: warehouse, mode: merge, tables: ["*"]}}
  shop-to-history: {{source: shop, sink: history, mode: append, tables: ["*"]}}
"""


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), default=SECONDS, show_default=True, help="How long it runs.")
@click.option("--folder", type=FOLDER, help="Where everything goes; an empty or a new one. Without it a temporary one.")
@click.pass_context
def demo(context: click.Context, seconds: float, folder: Path | None) -> None:
    """Show changes moving from a small shop into DuckDB and Parquet. Needs no server."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    folder = _prepared(folder)
    shop = Shop(folder / "shop.db")
    config = _write_configuration(folder)
    click.echo(f"a shop in {folder / 'shop.db'}, changed all the time; {config} says where its changes go")
    with stop_by_signal() as stop:
        outcome = _run(config, shop, seconds, stop)
    different = _compare(shop, folder / "warehouse.duckdb")
    _tell(folder, config, outcome, different)
    if outcome.exit_code or different:
        context.exit(FAILED)


def _prepared(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="kadds-demo-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise ConfigurationError(f"the folder cannot be used: {error.strerror}", where=str(folder)) from None
    if not empty:
        raise ConfigurationError("the folder is not empty", where=str(folder), hint="name a new one, or leave it out")
    return folder


def _write_configuration(folder: Path) -> Path:
    path = folder / "kadds.yml"
    change_tables = {table.name: f"{{table: {table.name}_changes, sequence: change_id, op: op}}" for table in TABLES}
    tables = "\n".join(f"      {name}: {{change_table: {how}, overlap: 0}}" for name, how in change_tables.items())
    url = f"sqlite:///{(folder / 'shop.db').absolute()}"
    path.write_text(
        CONFIGURATION.format(file=shlex.quote(str(path)), url=_quoted(url), tables=tables), encoding="utf-8"
    )
    return path


def _quoted(text: str) -> str:
    """Text for YAML, in which a dollar sign begins no reference."""
    return "'" + text.replace("$", "$$").replace("'", "''") + "'"


# ------------------------------------------------------------------------------------------------------------ running


def _run(config: Path, shop: Shop, seconds: float, stop: StopRequest) -> Outcome:
    loaded = load_configuration(config)
    person = progress.person_watches()
    logs.configure(secrets_of(loaded.configuration), person=True)
    app = App.for_running(loaded)
    try:
        serve(app)
        app.start()
        with progress.shown(lambda: status(app), person=person):
            with shop.changing():
                _wait_for_first_rows(app, stop)
                stop.wait(seconds)
            outcome = app.wait_until_caught_up(stop)
        if not person:
            progress.print_tables(status(app))
        drained = app.drain()
    finally:
        app.close()
    return drained if stop.is_set() or drained.exit_code else outcome


def _wait_for_first_rows(app: App, stop: StopRequest) -> None:
    deadline = time.monotonic() + FIRST_ROWS_SECONDS_MAX
    while not any(one["rows"] for one in status(app)["subscriptions"]):
        if time.monotonic() > deadline or stop.wait(_LOOK_SECONDS):
            return
    click.echo(f"first rows in the sink {seconds_since_process_start():.1f} s after the process started", err=True)


def seconds_since_process_start() -> float:
    """The age of this process, its interpreter's start included, as the kernel knows it."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    ticks = int(fields[19])  # field 22, `starttime`; the two before the last bracket are cut off
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------------------------------------------- ending


def _compare(shop: Shop, warehouse: Path) -> list[str]:
    """The tables that are not the same in both, each with the numbers of rows."""
    different = []
    with duckdb.connect(str(warehouse), read_only=True) as database:
        there = {name for (name,) in database.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        for table in TABLES:
            expected = shop.rows(table)
            found = database.execute(query(table)).fetchall() if table.name in there else []
            same = found == expected
            click.echo(
                f"{table.name:<12} {len(expected):>7,} rows in the shop, {'the same' if same else 'NOT the same'}"
            )
            if not same:
                different.append(f"{table.name}: {len(expected)} rows in the shop, {len(found)} in the copy")
    return different


def _tell(folder: Path, config: Path, outcome: Outcome, different: list[str]) -> None:
    for line in (*different, *(f"{name}: {problem.message}" for name, problem in outcome.problems)):
        click.echo(click.style("failed: ", fg="red") + line, err=True)
    if not different:
        click.echo("\nDuckDB has exactly what the shop has. What you can type next:\n")
    for comment, command in commands(folder, config):
        click.echo(f"  # {comment}\n  {command}\n")


def commands(folder: Path, config: Path) -> Iterator[tuple[str, str]]:
    """What a person can type next: what it shows, and the command."""
    kadds, python = _this_kadds(), shlex.quote(_near(Path(sys.executable)))
    file = f"--config {shlex.quote(_near(config))}"
    yield "what there is", f"{kadds} status {file}"
    yield "the changes of one table, as they were captured", f"{kadds} log read --stream orders --limit 10 {file}"
    newest = "FROM orders JOIN order_lines USING (order_id) ORDER BY order_id DESC LIMIT 10"
    warehouse = f"duckdb.connect({_near(folder / 'warehouse.duckdb')!r}, read_only=True)"
    yield "the newest orders in DuckDB", _python(python, f"import duckdb; {warehouse}.sql({newest!r}).show()")
    files = f"duckdb.read_parquet({_near(folder / 'history') + '/**/*.parquet'!r}, union_by_name=True)"
    counted = "_kadds_op, count(*) AS changes"
    yield "what happened, in Parquet files", _python(python, f"import duckdb; {files}.aggregate({counted!r}).show()")
    yield "run it on: capture from where it stopped", f"{kadds} run {shlex.quote(_near(config))} --until-caught-up"


def _python(python: str, program: str) -> str:
    plain = not set('"$`\\!') & set(program)
    return f'{python} -c "{program}"' if plain else f"{python} -c {shlex.quote(program)}"


def _this_kadds() -> str:
    script = Path(sys.argv[0])
    if script.name == "kadds":
        return shlex.quote(_near(script))
    return f"{shlex.quote(_near(Path(sys.executable)))} -m kadds"


def _near(path: Path) -> str:
    """The path as it is shortest from here."""
    absolute = str(path.absolute())
    relative = os.path.relpath(absolute)
    return relative if len(relative) < len(absolute) and not relative.startswith("..") else absolute
