"""Statements that go out without waiting for one another's answers: libpq's pipeline mode, with as little as possible
around it, because this is most of what a delivery of one row costs.

https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from kadds_postgres.connection import Connection

_LOOK_SECONDS = 0.1  # how soon it is seen that another thread has closed the connection
_PREPARED_MAX = 200
_BAD = (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE)


@dataclass(frozen=True)
class TextParameter:
    """A value in its text form; its type is what the statement makes of it."""

    data: bytes


@dataclass(frozen=True)
class BinaryParameter:
    """A value in its binary form; its type is what the statement casts it to."""

    data: bytes


Parameter = str | int | TextParameter | BinaryParameter


@dataclass(frozen=True)
class Answer:
    """What the server said to one statement: `rows` as PostgreSQL's text, and how many rows it concerned."""

    rows: tuple[tuple[str | None, ...], ...]
    count: int
    status: str


@dataclass(eq=False)
class _Sent:
    prepares: str | None  # the statement that is kept under a name, if this is where it is prepared


class Pipeline:
    """The statements of one connection, used by one thread. A statement with parameters that comes again is
    kept prepared: to plan one takes the server as long as to run it for a row."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._poll = select.poll()
        self._poll.register(self._pgconn.socket, select.POLLIN)
        self._sent: list[_Sent] = []
        self._once: set[str] = set()
        self._prepared: dict[str, bytes] = {}
        self._names = 0

    def send(self, statement: str, parameters: Sequence[Parameter] = ()) -> None:
        """Queue a statement with parameters `$1`, …; nothing is waited for."""
        pgconn = self._pgconn
        if not self._sent:
            pgconn.enter_pipeline_mode()
        values = [_bytes(parameter) for parameter in parameters]
        formats = [pq.Format.BINARY if isinstance(one, BinaryParameter) else pq.Format.TEXT for one in parameters]
        name = self._prepared.get(statement)
        if name is None and statement in self._once and len(self._prepared) < _PREPARED_MAX:
            self._names += 1
            name = self._prepared[statement] = f"kadds{self._names}".encode()
            pgconn.send_prepare(name, statement.encode())
            self._sent.append(_Sent(statement))
        if name is not None:
            pgconn.send_query_prepared(name, values, formats)
        else:
            if parameters and len(self._once) < _PREPARED_MAX:  # BEGIN needs no plan
                self._once.add(statement)
            pgconn.send_query_params(statement.encode(), values, param_formats=formats)
        self._sent.append(_Sent(None))

    def answers(self) -> list[Answer | psycopg.Error]:
        """One for each statement since the last call, in order; behind an error there is nothing more."""
        if not self._sent:
            return []
        sent, self._sent = self._sent, []
        try:
            return self._answers(sent)
        except BaseException:
            self._connection.close()  # what it would answer next is not known
            raise

    def _answers(self, sent: Sequence[_Sent]) -> list[Answer | psycopg.Error]:
        self._pgconn.pipeline_sync()
        while self._pgconn.flush() == 1:
            self._wait(select.POLLIN | select.POLLOUT)
            self._pgconn.consume_input()
        found: list[Answer | psycopg.Error] = []
        failed = False
        for one in sent:
            result = self._result()
            self._result_end()
            if failed or result.status in _BAD or result.status == pq.ExecStatus.PIPELINE_ABORTED:
                if one.prepares is not None:
                    del self._prepared[one.prepares]
                if not failed:
                    found.append(error_from_result(result))
                failed = True
            elif one.prepares is None:
                found.append(_answer(result))
        self._result()  # of the synchronisation
        self._pgconn.exit_pipeline_mode()
        return found

    def _result(self) -> pq.abc.PGresult:
        result = self._next()
        if result is None:
            raise psycopg.OperationalError("the server has answered fewer statements than it was sent")
        return result

    def _result_end(self) -> None:
        if self._next() is not None:
            raise psycopg.OperationalError("the server has answered a statement twice")

    def _next(self) -> pq.abc.PGresult | None:
        while self._pgconn.is_busy():
            self._wait(select.POLLIN)
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    def _wait(self, events: int) -> None:
        if self._connection.closed:
            raise psycopg.OperationalError("the connection was closed")
        self._poll.modify(self._pgconn.socket, events)
        while not self._poll.poll(_LOOK_SECONDS * 1000):
            if self._connection.closed:
                raise psycopg.OperationalError("the connection was closed")


def _bytes(parameter: Parameter) -> bytes:
    if isinstance(parameter, TextParameter | BinaryParameter):
        return parameter.data
    return str(parameter).encode()


def _answer(result: pq.abc.PGresult) -> Answer:
    columns = range(result.nfields)
    rows = tuple(tuple(_text(result.get_value(row, column)) for column in columns) for row in range(result.ntuples))
    return Answer(rows, result.command_tuples or 0, (result.command_status or b"").decode())


def _text(cell: bytes | None) -> str | None:
    return None if cell is None else cell.decode()
