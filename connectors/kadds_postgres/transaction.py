"""One transaction: statements go out without waiting for one another's answers, and each answer is looked at.

Invariants: nothing is committed before every answer was looked at (`commit` settles first); the epoch is compared first
of all; an outcome that is not known is a RetryableError and closes the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from kadds.api.errors import DataError, KaddsError, RefusedError, RetryableError
from kadds.api.settings import SecretUrl
from kadds_postgres.binary import COPY_HEAD, COPY_TAIL
from kadds_postgres.connection import Connection
from kadds_postgres.errors import as_ours
from kadds_postgres.pipeline import Answer, Parameter, Pipeline
from kadds_postgres.staged import Staged

Check = Callable[[Answer], None]


@dataclass(frozen=True)
class _Sent:
    """A statement whose answer has not been looked at."""

    check: Check | None
    where: str | None
    staged: Staged | None


class Transaction:
    """An open transaction of one connection, which is in autocommit: BEGIN goes out with the first statements."""

    def __init__(self, connection: Connection, pipeline: Pipeline, url: SecretUrl) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._url = url
        self._pending: list[_Sent] = []
        self._failed: _Sent | None = None
        self.where: str | None = None
        self._copied: Staged | None = None

    def begin(self) -> None:
        """The first statement; what goes wrong with it is `undone` like all that follows."""
        self.send("BEGIN")

    def at(self, where: str | None) -> None:
        """What the statements from now on are for; errors name it."""
        self.where = where

    def send(
        self,
        statement: str,
        parameters: Sequence[Parameter] = (),
        check: Check | None = None,
        staged: Staged | None = None,
    ) -> None:
        """Send a statement with parameters `$1`, …; `check` looks at its answer before anything is committed."""
        self._pending.append(_Sent(check, self.where, staged))
        self._pipeline.send(statement, parameters)

    def settle(self) -> None:
        """Wait for all answers and look at them, in order: what an earlier one shows wins over a later one's error."""
        pending, self._pending = self._pending, []
        for sent, answer in zip(pending, self._pipeline.answers(), strict=False):
            if isinstance(answer, psycopg.Error):
                self._failed = sent
                raise answer
            if sent.check is not None:
                try:
                    sent.check(answer)
                except KaddsError as error:
                    error.where = error.where or sent.where
                    raise

    def fetch(self, statement: str, parameters: Sequence[Parameter] = ()) -> list[tuple[str | None, ...]]:
        """Send a statement and wait for its rows, as PostgreSQL's text."""
        found: list[tuple[str | None, ...]] = []
        self.send(statement, parameters, lambda answer: found.extend(answer.rows))
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
            self._pipeline.send("COMMIT")
            (answer,) = self._pipeline.answers()
            if isinstance(answer, psycopg.Error):
                raise answer
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
        if answer.status != "COMMIT":
            raise RetryableError(f"the server answered COMMIT with {answer.status}", where=str(self._url))

    def undone(self, error: BaseException) -> KaddsError | None:
        """Roll back; `error` as one of ours, None for what is none of PostgreSQL's.

        What was sent and not looked at is looked at now: whoever was fenced is told so, whatever went wrong behind it.
        """
        found: BaseException | None = None
        try:
            self.settle()
        except (KaddsError, psycopg.Error, OSError) as earlier:
            found = earlier
        with suppress(psycopg.Error, OSError):
            self._connection.execute("ROLLBACK")
        if isinstance(found, KaddsError):
            return found
        if not isinstance(error, psycopg.Error | OSError):
            return None
        where, staged = self.where, self._copied
        if self._failed is not None:
            where, staged = self._failed.where, self._failed.staged
        ours = as_ours(error, self._url, where)
        if isinstance(ours, DataError) and staged is not None and not self._connection.closed:
            with suppress(psycopg.Error, OSError):
                self._name_column(ours, staged)
        return ours

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
            kind = stored.there.type if "(" in stored.there.type else stored.there.base
            refused = f"column {stored.name}, {stored.there.type}: {error.message}"
            try:
                statement = (
                    f"SELECT count({column.value}), bool_or({column.value}::text <> {column.value}::{kind}::text)"
                )
                self._pipeline.send(f"{statement} FROM {only.relation}", only.parameters)
                (answer,) = self._pipeline.answers()
                if isinstance(answer, psycopg.Error):
                    raise answer
            except psycopg.DataError as found:
                text = (found.diag.message_primary or "").strip()
                error.message = f"column {stored.name}, {stored.there.type}: {text}"
            else:
                if answer.rows[0][1] != "t":
                    continue
                error.message = refused
            error.args = (error.message,)
            return
