"""The source's half: opens the connector, answers the engine's calls, and ends when the wire does.

Signals that a terminal or a service manager sends to a whole group are left to the engine's process, which then says
what to do. What connectors and drivers log goes over the wire into the engine's log; what they print, to its standard
error.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import structlog

from kadds import plugins
from kadds.api.connector import Source, StreamSource
from kadds.api.errors import KaddsError
from kadds.api.schema import Table
from kadds.api.settings import Settings
from kadds.app.isolation.carrying import unpacked
from kadds.app.isolation.inlet import RemoteInlet
from kadds.app.isolation.wire import Allowance, Asked, Wire

ON_THE_WAY_BYTES_MAX = 64 << 20
_CLOSING_SECONDS = 1.0
_LOST = 3  # the exit code after the wire has ended by itself
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Serve the wire that is this process's standard input, until it ends."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable(all_threads=False)  # the last words are few
    end = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    _Child(end).run()


class _Child:
    def __init__(self, end: socket.socket) -> None:
        self._wire = Wire(end, self._asked, self._lost)
        self._allowance = Allowance(ON_THE_WAY_BYTES_MAX)
        self._source: Source | None = None
        self._table_settings: type[Settings] = Settings
        self._stopping: dict[int, threading.Event] = {}
        self._calls: set[threading.Thread] = set()
        self._closed = threading.Event()

    def run(self) -> None:
        """Until the engine says `close`."""
        self._log_over_the_wire()
        self._wire.start()
        self._closed.wait()
        if self._source is not None:
            with suppress(KaddsError):
                self._source.close()
        deadline = time.monotonic() + _CLOSING_SECONDS
        for thread in list(self._calls):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._wire.finish(_CLOSING_SECONDS)
        os._exit(0)  # a connector's own threads end with it

    def _lost(self) -> None:
        """The engine's process is gone, or cut us off: nobody is left to give anything to."""
        os._exit(_LOST)

    # ------------------------------------------------------------------------------------------- calls

    def _asked(self, asked: Asked) -> None:
        if asked.method == "stop":
            if (stopping := self._stopping.get(asked.arguments["session"])) is not None:
                stopping.set()
        elif asked.method == "close":
            self._closed.set()
        else:
            if asked.method == "stream":
                self._stopping[asked.arguments["session"]] = threading.Event()
            thread = threading.Thread(target=self._serve, args=(asked,), name=f"kadds-{asked.method}", daemon=True)
            self._calls.add(thread)
            thread.start()

    def _serve(self, asked: Asked) -> None:
        methods: Mapping[str, Callable[..., Any]] = {
            "open": self._open,
            "discover": self._discover,
            "check": self._check,
            "head": self._head,
            "stream": self._stream,
            "remove": self._remove,
        }
        try:
            self._wire.answer(asked.number, methods[asked.method](**asked.arguments))
        except BaseException as error:  # noqa: BLE001 - it is raised again in the engine's process
            self._wire.refuse(asked.number, error)
        finally:
            self._calls.discard(threading.current_thread())

    def _open(self, connector: str, settings: str, switch_seconds: float) -> dict[str, Any]:
        sys.setswitchinterval(switch_seconds)  # as in the engine's process
        side = plugins.installed(connector).connector.source
        assert side is not None  # noqa: S101 - the engine's process has looked
        self._table_settings = side.table_settings or Settings
        self._source = plugins.open_source(connector, unpacked(side.settings, settings), self._settings_of)
        return {"removes": hasattr(self._source, "remove")}

    def _settings_of(self, table: str) -> Any:
        return unpacked(self._table_settings, self._wire.call("settings_of", table=table).result())

    @property
    def _opened(self) -> StreamSource:
        assert isinstance(self._source, StreamSource)  # noqa: S101 - `open` is the first call, of what streams
        return self._source

    def _discover(self, discovery: int) -> list[dict[str, Any]]:
        def wanted(table: str) -> bool:
            return bool(self._wire.call("wanted", discovery=discovery, table=table).result())

        return [table.to_json() for table in self._opened.discover(wanted)]

    def _check(self, tables: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [asdict(finding) for finding in self._opened.check(_tables(tables))]

    def _head(self) -> list[str]:
        head = self._opened.head()
        return [head.lineage, head.sort_key.hex(), head.token]

    def _stream(self, session: int, tables: Sequence[dict[str, Any]]) -> None:
        inlet = RemoteInlet(self._wire, self._allowance, session, self._stopping[session])
        try:
            self._opened.stream(_tables(tables), inlet)
        finally:
            del self._stopping[session]

    def _remove(self, drop_slot: bool) -> list[str]:
        return list(self._opened.remove(drop_slot=drop_slot))  # type: ignore[attr-defined]  # `open` said that it has it

    # ------------------------------------------------------------------------------------------- logging

    def _log_over_the_wire(self) -> None:
        structlog.configure(
            processors=[structlog.processors.format_exc_info, self._log],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            cache_logger_on_first_use=False,
        )
        logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()])

    def _log(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        self._wire.tell("log", level=method, facts=json.loads(json.dumps(event, default=str)))
        raise structlog.DropEvent


class _ToStructlog(logging.Handler):
    """What a library logs, among the connector's own lines."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, "library", library=record.name, message=record.getMessage(), exc_info=record.exc_info
        )


def _tables(plain: Sequence[dict[str, Any]]) -> list[Table]:
    return [Table.from_json(one) for one in plain]
