"""How a command reaches the log: it asks the process that holds it, else it takes the lock for as long as it needs.

Either way the same function answers. A holder that does not answer yet (it is opening the log, or is itself a short
command) is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import tenacity

from kadds.api.errors import ConfigurationError, LockedError
from kadds.app.app import App
from kadds.app.places import Place
from kadds.app.verbs import VERBS, answer
from kadds.log.manifest import MANIFEST_NAME
from kadds.log.socket import NobodyServesError, Part, call

PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.05


def ask(
    place: Place,
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Any:
    """The answer of a verb: a JSON value, or an iterator of parts that holds what it reads from until it is closed.

    Raises what the verb raises, ConfigurationError where there is no log, LockedError where its holder does not answer.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(LockedError),
        wait=tenacity.wait_fixed(_LOOK_SECONDS),
        stop=tenacity.stop_after_delay(patience_seconds),
        reraise=True,
    )
    return retrying(_ask_once, place, verb, dict(arguments or {}), environment)


def _ask_once(place: Place, verb: str, arguments: dict[str, Any], environment: Mapping[str, str]) -> Any:
    try:
        return call(place.log, verb, arguments)
    except NobodyServesError:
        pass
    if not VERBS[verb].makes_log:
        _refuse_no_log(place)
    app = App.open(place, writable=VERBS[verb].writes, environment=environment)
    try:
        found = answer(app, verb, arguments)
        if isinstance(found, Iterator):
            return _held(app, found)
    except BaseException:
        app.close()
        raise
    app.close()
    return found


def _held(app: App, parts: Iterator[Part | None]) -> Iterator[Part | None]:
    with closing(app):
        yield from parts


def _refuse_no_log(place: Place) -> None:
    """Opening a folder makes a log of it; a command that only looks, or changes what is there, must not."""
    if not (place.log / MANIFEST_NAME).exists():
        raise ConfigurationError(
            "there is no log in this folder yet", where=str(place.log), hint="`kadds run` makes it, or check --log"
        )
