"""One transaction: statements go out without waiting for one another's answers, and each answer is looked at.

Invariants: nothing is committed before every answer was looked at (`commit` settles first); the epoch is compared first
of all; an outcome that is not known is a RetryableError and closes the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from kadds.api.errors import DataError, KaddsError, RefusedError, RetryableError
from kadds.api.settings import SecretUrl
from kadds_postgres.binary import COPY_HEAD, COPY_TAIL
from kadds_postgres.connection import Connection
from kadds_postgres.errors import as_ours
from kadds_postgres.staged import Staged

Cursor = psycopg.Cursor[tuple[Any, ...]]
Check = Callable[[Cursor], None]


@dataclass
class _Sent:
    """A statement whose answer has not been looked at."""

    cursor: Cursor
    check: Check | None
    where: str | None
    staged: Staged | None


class Transaction:
    """An open transaction of one connection, which is in autocommit: BEGIN goes out with the first statements."""

    def __init__(self, connection: Connection, url: SecretUrl) -> None:
        self._connection = connection
        self._url = url
        self._pending: list[_Sent] = []
        self._pipeline: ExitStack | None = None
        self.where: str | None = None
        self._copied: Staged | None = None

    def begin(self) -> None:
        """The first statement; what goes wrong with it is `undone` like all that follows."""
        self.send("BEGIN")

    def at(self, where: str | None) -> None:
        """What the statements from now on are for; errors name it."""
        self.where = where

    def send(
        self, statement: str, parameters: Sequence[Any] = (), check: Check | None = None, staged: Staged | None = None
    ) -> None:
        """Send a statement with parameters `$1`, …; `check` looks at its answer before anything is committed."""
        if self._pipeline is None:
            self._pipeline = ExitStack()
            self._pipeline.enter_context(self._connection.pipeline())
        cursor = psycopg.RawCursor(self._connection)
        self._pending.append(_Sent(cursor, check, self.where, staged))
        cursor.execute(statement.encode(), parameters or None)

    def settle(self) -> None:
        """Wait for all answers and look at them, in order."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            pipeline.close()
        while self._pending:
            sent = self._pending.pop(0)
            if sent.check is not None:
                try:
                    sent.check(sent.cursor)
                except KaddsError as error:
                    error.where = error.where or sent.where
                    raise

    def fetch(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Send a statement and wait for its rows."""
        found: list[tuple[Any, ...]] = []
        self.send(statement, parameters, lambda cursor: found.extend(cursor.fetchall()))
        self.settle()
        return found

    def copy(self, statement: str, pieces: Iterable[Staged], binary: bool) -> int:
        """COPY rows in; how many the table took."""
        self.settle()
        with self._connection.cursor() as cursor:
            with cursor.copy(f"{statement} (FORMAT {'binary' if binary else 'text'})".encode()) as copy:
                if binary:
                    copy.write(COPY_HEAD)
                for self._copied in pieces:
                    copy.write(self._copied.copy_data(binary))
                if binary:
                    copy.write(COPY_TAIL)
            self._copied = None
            return cursor.rowcount

    def commit(self) -> None:
        """Commit; RetryableError where it is not known whether that happened."""
        self.settle()
        self.where = None
        try:
            status = self._connection.execute("COMMIT").statusmessage
        except psycopg.Error as error:
            ours = as_ours(error, self._url)
            if error.sqlstate is not None and isinstance(ours, DataError | RefusedError):
                raise ours from error  # a constraint that is checked at the end
            self._connection.close()
            raise RetryableError(
                f"the outcome of a commit is not known: {ours.message}",
                where=str(self._url),
                hint="Kadds claims the subscription again and reads from its cursors whether the commit happened",
            ) from error
        if status != "COMMIT":
            raise RetryableError(f"the server answered COMMIT with {status}", where=str(self._url))

    def undone(self, error: BaseException) -> KaddsError | None:
        """Roll back; `error` as one of ours, None for what is none of PostgreSQL's.

        What an earlier statement found wins: whoever was fenced is told so, whatever went wrong behind it.
        """
        sent = next((sent for sent in self._pending if sent.cursor.statusmessage is None), None)
        found = self._found_before(sent) if isinstance(error, psycopg.Error) else None
        if self._pipeline is not None:
            with suppress(psycopg.Error, OSError):
                self._pipeline.close()
        with suppress(psycopg.Error, OSError):
            self._connection.execute("ROLLBACK")
        if found is not None:
            return found
        if not isinstance(error, psycopg.Error | OSError):
            return None
        where, staged = (sent.where, sent.staged) if sent is not None else (self.where, self._copied)
        ours = as_ours(error, self._url, where)
        if isinstance(ours, DataError) and staged is not None and not self._connection.closed:
            with suppress(psycopg.Error, OSError):
                self._name_column(ours, staged)
        return ours

    def _found_before(self, failed: _Sent | None) -> KaddsError | None:
        for sent in self._pending:
            if sent is failed:
                return None
            if sent.check is not None:
                try:
                    sent.check(sent.cursor)
                except KaddsError as error:
                    error.where = error.where or sent.where
                    return error
                except psycopg.Error:
                    return None
        return None

    def _name_column(self, error: DataError, staged: Staged) -> None:
        """Find the column whose values the server refuses, by reading them once more one column at a time."""
        for column in staged.columns:
            stored = column.stored
            if stored is None:
                continue
            if stored.sql in error.message:
                return
            only = Staged()
            only.columns.append(column)
            cursor = psycopg.RawCursor(self._connection)
            kind = stored.there.type if "(" in stored.there.type else stored.there.base
            refused = f"column {stored.name}, {stored.there.type}: {error.message}"
            try:
                statement = (
                    f"SELECT count({column.value}), bool_or({column.value}::text <> {column.value}::{kind}::text)"
                )
                row = cursor.execute(f"{statement} FROM {only.relation}".encode(), only.parameters).fetchone()
            except psycopg.DataError as found:
                text = (found.diag.message_primary or "").strip()
                error.message = f"column {stored.name}, {stored.there.type}: {text}"
            else:
                if row is None or not row[1]:
                    continue
                error.message = refused
            error.args = (error.message,)
            return
