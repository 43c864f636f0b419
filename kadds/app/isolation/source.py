"""The engine's half: a `StreamSource` whose connector runs in a process of its own.

The process is started with the source and lives as long; one that has died is started again by the next call, after
the error that says so has gone to whoever waited, and that is retried like a lost connection.
"""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from kadds.api.connector import Finding, Inlet, Level
from kadds.api.errors import FencedError, RetryableError
from kadds.api.position import Position
from kadds.api.schema import Table
from kadds.api.settings import Settings
from kadds.app.isolation.carrying import carried
from kadds.app.isolation.process import Process
from kadds.app.isolation.session import Session
from kadds.app.isolation.wire import Asked, Wire

_LOOK_SECONDS = 0.1  # a StopSignal and an answer cannot be waited for at once
_CLOSING_SECONDS = 1.5
_logger = structlog.get_logger(__name__)


def open_isolated(connector: str, settings: Settings, settings_of: Callable[[str], Any]) -> IsolatedSource:
    """Open a source of an installed connector in a new process; errors as in `plugins.open_source`."""
    source = IsolatedSource(connector, settings, settings_of)
    try:
        source.start()
    except BaseException:
        source.close()
        raise
    return source


class IsolatedSource:
    """See the module; made by `open_isolated`. Calls may come from any thread."""

    remove: Callable[..., Sequence[str]]  # only where the connector's source has it

    def __init__(self, connector: str, settings: Settings, settings_of: Callable[[str], Any]) -> None:
        self._connector = connector
        self._settings = settings
        self._settings_of = settings_of
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._closed = False
        self._numbers = itertools.count(1)
        self._wanted: dict[int, Callable[[str], bool]] = {}
        self._sessions: dict[int, Session] = {}

    @property
    def pid(self) -> int | None:
        """The number of its process, while it has one."""
        return self._process.pid if self._process is not None and self._process.running else None

    def start(self) -> None:
        """Start the process and open the source in it."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        packed = carried(self._settings)
        process = self._process = Process(self._connector, self._settings, self._asked)
        if self._closed:  # meanwhile
            process.kill()
        opened = process.wire.call(
            "open", connector=self._connector, settings=packed, switch_seconds=sys.getswitchinterval()
        ).result()
        if opened["removes"]:
            self.remove = self._remove

    def _running(self) -> Process:
        with self._lock:
            if self._closed:
                raise RetryableError("the source has been closed", where=f"connector {self._connector}")
            if self._process is None or not self._process.running:
                self._start()
            assert self._process is not None  # noqa: S101 - it has just been started
            return self._process

    def _remove(self, *, drop_slot: bool) -> Sequence[str]:
        return list(self._call("remove", drop_slot=drop_slot))

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._running().wire.call(method, **arguments).result()

    # ------------------------------------------------------------------------------------------- StreamSource

    def discover(self, wanted: Callable[[str], bool]) -> Sequence[Table]:
        """See `Source`."""
        number = next(self._numbers)
        self._wanted[number] = wanted
        try:
            return [Table.from_json(plain) for plain in self._call("discover", discovery=number)]
        finally:
            del self._wanted[number]

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        """See `Source`."""
        found = self._call("check", tables=[table.to_json() for table in tables])
        return [Finding(**{**plain, "level": Level(plain["level"])}) for plain in found]

    def head(self) -> Position:
        """See `StreamSource`."""
        lineage, sort_key, token = self._call("head")
        return Position(lineage, bytes.fromhex(sort_key), token)

    def stream(self, tables: Sequence[Table], inlet: Inlet) -> None:
        """See `StreamSource`. Raises RetryableError where the process ends by itself."""
        process, number = self._running(), next(self._numbers)
        session = self._sessions[number] = Session(process.wire, inlet, broke_off=process.kill)
        try:
            answer = process.wire.call("stream", session=number, tables=[table.to_json() for table in tables])
            while not answer.done() and not inlet.stopping.wait(_LOOK_SECONDS):
                pass
            process.wire.tell("stop", session=number)
            answer.result()
        except RetryableError:
            if session.defect is not None:
                raise session.defect from None
            raise
        finally:
            session.end()
            del self._sessions[number]

    def close(self) -> None:
        """See `Source`; the process ends."""
        self._closed = True
        if (process := self._process) is not None:
            process.close(_CLOSING_SECONDS)

    # ------------------------------------------------------------------------------------------- what the child asks

    def _asked(self, wire: Wire, asked: Asked) -> None:
        """Called by the thread that reads the wire: answers at once, or gives it to a lane of the session."""
        given = asked.arguments
        try:
            match asked.method:
                case "log":
                    _log(given["level"], given["facts"], self._connector)
                case "wanted":
                    wire.answer(asked.number, bool(self._wanted[given["discovery"]](given["table"])))
                case "settings_of":
                    wire.answer(asked.number, carried(self._settings_of(given["table"])))
                case _ if (session := self._sessions.get(given.pop("session"))) is not None:
                    session.asked(asked)
                case _:
                    wire.refuse(asked.number, FencedError("the session of this producer is over"))
        except Exception as error:  # noqa: BLE001 - it is raised in the connector, which asked
            wire.refuse(asked.number, error)


def _log(level: str, facts: dict[str, Any], connector: str) -> None:
    event = facts.pop("event", "")
    with suppress(ValueError, TypeError):
        number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
        _logger.log(number, event, **{**facts, "connector": connector})
