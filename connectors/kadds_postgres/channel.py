"""A connection driven without blocking, so that whoever waits on it can be told to stop.

Everything the source asks of a server goes through here: queries, COPY, the replication protocol. A wait ends when the
server answers, when `stopping` is set (`Stopping` is raised), or when another thread cuts the connection.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from kadds.api.connector import StopSignal
from kadds.api.errors import RetryableError, Stopping
from kadds_postgres.connection import connect
from kadds_postgres.errors import translated
from kadds_postgres.settings import ConnectionSettings

Row = tuple[str | None, ...]

#: What would end a connection that waits, or a long copy; which of them there are depends on the server's version.
_NO_TIMEOUTS = """
SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings
WHERE name IN ('idle_session_timeout', 'transaction_timeout')
"""
_LOOK_SECONDS = 0.1  # a StopSignal cannot wake a wait for the server
_FAILED = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE, pq.ExecStatus.EMPTY_QUERY)
_COPYING = (pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)


class Channels:
    """The open channels of a source; `close` cuts them all and lets none be opened any more."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._open: set[Channel] = set()
        self._closed = False

    def open(self, stopping: StopSignal | None = None, **more: Any) -> Channel:
        """A new channel; `more` as for `connection.connect`."""
        self._check()
        channel = Channel(self, connect(self.settings, **more), stopping)
        with self._lock:
            self._open.add(channel)
        try:
            self._check()
            channel.rows(_NO_TIMEOUTS)
        except BaseException:
            channel.close()
            raise
        return channel

    def _check(self) -> None:
        with self._lock:
            if self._closed:
                raise RetryableError("the source is closed", where=str(self.settings.url))

    def forget(self, channel: Channel) -> None:
        """`channel` is closed."""
        with self._lock:
            self._open.discard(channel)

    def close(self) -> None:
        """Cut everything; calls under way fail soon."""
        with self._lock:
            self._closed = True
            channels = list(self._open)
        for channel in channels:
            channel.cut()


class Channel:
    """One connection, used by one thread at a time."""

    def __init__(self, owner: Channels, connection: psycopg.Connection[Any], stopping: StopSignal | None) -> None:
        self._owner = owner
        self._connection = connection
        self._stopping = stopping
        self.pgconn = connection.pgconn
        self.pgconn.nonblocking = 1
        self._descriptor = os.dup(self.pgconn.socket)  # ours, so that no other thread can meet a reused number
        self._poll = select.poll()
        self._poll.register(self.pgconn.socket, select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back; a channel may be closed twice."""
        self._owner.forget(self)
        self._connection.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def cut(self) -> None:
        """From another thread: what waits on this connection fails."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------------------------------------ asking

    def rows(self, query: str, *parameters: str | None) -> list[Row]:
        """The rows of the last statement, each cell as PostgreSQL's text; `$1`, … stand for the parameters.

        Without parameters the query may be several statements (one transaction) or a replication command.
        """
        with translated(self._owner.settings.url):
            if parameters:
                values = [None if value is None else value.encode() for value in parameters]
                self.pgconn.send_query_params(query.encode(), values)
            else:
                self.pgconn.send_query(query.encode())
            found: list[Row] = []
            for result in self._results():
                if result.status == pq.ExecStatus.TUPLES_OK:
                    columns = range(result.nfields)
                    found = [
                        tuple(_text(result.get_value(row, column)) for column in columns)
                        for row in range(result.ntuples)
                    ]
            return found

    def row(self, query: str, *parameters: str | None) -> Row | None:
        """The first row, if there is one."""
        return next(iter(self.rows(query, *parameters)), None)

    def only_row(self, query: str, *parameters: str | None) -> Row:
        """The first row of a query that always has one."""
        return self.rows(query, *parameters)[0]

    def copy_out(self, query: str, *, rows_max: int, bytes_max: int) -> Iterator[list[bytes]]:
        """The messages of a COPY TO STDOUT, each one row, in lists of about these sizes.

        A caller that does not read to the end has to close the channel.
        """
        with translated(self._owner.settings.url):
            self.begin_copy(query)
            take = self.pgconn.get_copy_data
            rows: list[bytes] = []
            size = 0
            while True:
                count, data = take(1)
                if count > 0:
                    rows.append(bytes(data))
                    size += count
                    if size >= bytes_max or len(rows) >= rows_max:
                        yield rows
                        rows, size = [], 0
                elif count == 0:
                    self._receive()
                else:
                    break
            if rows:
                yield rows
            self.end_of_copy()

    def begin_copy(self, query: str) -> None:
        """Send `query`, which makes the server copy (COPY, START_REPLICATION), and wait for it to begin."""
        with translated(self._owner.settings.url):
            self.pgconn.send_query(query.encode())
            result = self._next_result()
            if result is None or result.status not in _COPYING:
                raise psycopg.OperationalError("the server does not copy") if result is None else _failure(result)

    def end_of_copy(self) -> None:
        """After the last message of a copy: raises the server's error, if that is why it ended."""
        for _ in self._results():
            pass

    # ------------------------------------------------------------------------------------------ waiting

    def flush(self) -> None:
        """Hand to the kernel what is to be sent, reading meanwhile so that neither side waits for the other."""
        while self.pgconn.flush() == 1:
            self._wait(select.POLLIN | select.POLLOUT)
            self.pgconn.consume_input()

    def _results(self) -> Iterator[pq.abc.PGresult]:
        failed: pq.abc.PGresult | None = None
        while (result := self._next_result()) is not None:
            if result.status in _FAILED:
                failed = result
            else:
                yield result
        if failed is not None:
            raise _failure(failed)

    def _next_result(self) -> pq.abc.PGresult | None:
        self.flush()
        while self.pgconn.is_busy():
            self._receive()
        return self.pgconn.get_result()

    def _receive(self) -> None:
        self._wait(select.POLLIN)
        self.pgconn.consume_input()

    def _wait(self, events: int) -> None:
        self._poll.modify(self.pgconn.socket, events)
        while not self._poll.poll(_LOOK_SECONDS * 1000):
            if self._stopping is not None and self._stopping.is_set():
                raise Stopping


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _failure(result: pq.abc.PGresult) -> psycopg.Error:
    return error_from_result(result)


def number(cell: str | None) -> int:
    """A cell that is a number; a NULL counts as 0."""
    return int(cell or 0)


def numbers(values: Sequence[int]) -> str:
    """Numbers as PostgreSQL's text of an array, for a parameter."""
    return "{" + ",".join(map(str, values)) + "}"
