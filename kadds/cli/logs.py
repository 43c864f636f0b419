"""What a running Kadds says of itself: one JSON object a line for machines, short lines for a person at a terminal.

Both go to standard error. No row values get here, and every line is freed of the configuration's secrets on its way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any

import click
import structlog

from kadds.app import scrubbed

_COLOURS = {"error": "red", "critical": "red", "warning": "yellow"}
_IN_THE_TABLE = (
    "failed",
    "held",
    "trying_again",
    "log_failed",
)  # seen there, and at the end with their hints
_QUIET = ("timestamp", "level", "event")


def configure(secrets: frozenset[str], *, person: bool) -> None:
    """Set up logging for this process; a `person` gets warnings and errors only."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _for_person if person else structlog.processors.JSONRenderer(),
            _scrubber(secrets),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING if person else logging.INFO),
        logger_factory=lambda *_: _Lines(),
        cache_logger_on_first_use=False,
    )
    for name in ("apscheduler", "psycopg"):
        library = logging.getLogger(name)
        library.handlers = [_ToStructlog()]
        library.propagate = False
        library.setLevel(logging.WARNING)


class _Lines:
    """Writes a line to standard error as it is now: a live table takes it over while it is shown."""

    def msg(self, text: str) -> None:
        click.echo(text, err=True)

    log = debug = info = warning = error = critical = exception = fatal = msg


class _ToStructlog(logging.Handler):
    """What a library logs, among our own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(
            record.levelno, "library", library=record.name, message=record.getMessage(), exc_info=record.exc_info
        )


def _scrubber(secrets: frozenset[str]) -> Callable[[Any, str, Any], str]:
    return lambda _logger, _method, text: scrubbed(str(text), secrets)


def _for_person(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    if event["event"] in _IN_THE_TABLE:
        raise structlog.DropEvent
    subject = " ".join(str(event[name]) for name in ("source", "subscription", "table", "stream") if event.get(name))
    level = click.style(event["level"], fg=_COLOURS.get(event["level"]))
    text = event.get("message") or " ".join(f"{k}={v}" for k, v in event.items() if k not in _QUIET)
    line = f"{level}: {subject + ': ' if subject else ''}{event['event'].replace('_', ' ')}: {text}"
    return line + (f"\n  hint: {event['hint']}" if event.get("hint") else "")
