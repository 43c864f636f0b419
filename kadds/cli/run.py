"""`kadds run`: everything in one process, until it is told to stop or has caught up."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import structlog

from kadds.api.connector import StopSignal
from kadds.app import (
    App,
    Effect,
    Loaded,
    Outcome,
    load_configuration,
    secrets_of,
    serve,
    serve_metrics,
    status,
)
from kadds.cli import logs, progress
from kadds.cli.options import with_config
from kadds.cli.stopping import stop_by_signal
from kadds.cli.words import short
from kadds.jobs import Jobs

# One busy thread must not keep the others waiting for Python's usual 5 ms; see docs/OPERATIONS.md.
SWITCH_INTERVAL_SECONDS = 0.0005

_logger = structlog.get_logger(__name__)


@click.command()
@with_config
@click.option("--until-caught-up", is_flag=True, help="End when all that is in the sources now is in the sinks.")
@click.pass_context
def run(context: click.Context, config: Path, until_caught_up: bool) -> None:
    """Run CONFIG (without it $KADDS_CONFIG, then ./kadds.yml): capture, keep, deliver.

    Ctrl-C or SIGTERM ends it well; a second one ends it at once. Exit code 0 when all went well, 1 when something
    failed, 2 when the configuration is wrong.
    """
    loaded = load_configuration(config)
    context.exit(run_loaded(loaded, until_caught_up=until_caught_up))


def run_loaded(loaded: Loaded, *, until_caught_up: bool) -> int:
    """Run a configuration in this process; the exit code."""
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    person = progress.person_watches()
    logs.configure(secrets_of(loaded.configuration), person=person)
    with stop_by_signal() as stop:
        app = App.for_running(loaded, narrate=lambda text: _logger.info("opening", message=text))
        try:
            logs.configure(app.secrets(), person=person)  # now that registered sinks are known
            return _run(app, loaded, stop, until_caught_up=until_caught_up, person=person)
        finally:
            app.close()


def _run(app: App, loaded: Loaded, stop: StopSignal, *, until_caught_up: bool, person: bool) -> int:
    serve(app)
    if loaded.configuration.metrics is not None:
        serve_metrics(app, *loaded.configuration.metrics.address)
    _tell_differences(app, loaded)
    app.start()
    if person:
        click.echo(f"running {loaded.files[0]}; Ctrl-C ends it, `kadds status` in another terminal shows it", err=True)
    _logger.info("running", config=str(loaded.files[0]), log=str(app.log.path), uuid=str(app.log.uuid))
    with progress.shown(lambda: status(app), person=person):
        caught_up = _move(app, stop, until_caught_up=until_caught_up)
        drained = app.drain()
    outcome = drained if caught_up is None else caught_up
    code = max(drained.exit_code, outcome.exit_code)
    _tell_end(outcome, drained, code, person=person)
    return code


def _move(app: App, stop: StopSignal, *, until_caught_up: bool) -> Outcome | None:
    """Move data until it is time to end; the outcome where everything was to be caught up and nobody broke it off."""
    if until_caught_up:
        outcome = app.wait_until_caught_up(stop)
        return None if stop.is_set() else outcome
    jobs = Jobs(app)
    jobs.start()
    try:
        app.wait(stop)
    finally:
        jobs.close()
    return None


def _tell_differences(app: App, loaded: Loaded) -> None:
    """Name what has changed since the last start; secrets written into the file are warned of as well."""
    for one in app.differences:
        tell = _logger.warning if one.effect is Effect.KEPT else _logger.info
        tell("configuration_changed", subject=one.subject, effect=one.effect.value, message=str(one))
    for problem in loaded.warnings:
        _logger.warning("configuration", where=str(problem.place), message=problem.message, hint=problem.hint)


def _tell_end(outcome: Outcome, drained: Outcome, code: int, *, person: bool) -> None:
    unfinished = dict.fromkeys((*outcome.unfinished, *drained.unfinished))
    if not person:
        plain = {**outcome.to_json(), "exit_code": code, "unfinished": list(unfinished)}
        _logger.info("ended", **plain)
        return
    for name, problem in outcome.problems:
        where = f"{problem.where}: " if problem.where else ""
        click.echo(f"{click.style('failed', fg='red')}: {short(name)}: {where}{problem.message}", err=True)
        if problem.hint:
            click.echo(f"  hint: {problem.hint}", err=True)
    for what, names in (("paused", outcome.paused), ("unfinished", unfinished)):
        for name in names:
            click.echo(f"{what}: {short(name)}", err=True)
    click.echo("done" if code == 0 else f"ended with exit code {code}", err=True)
