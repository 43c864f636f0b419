"""Writers that change the tables of `postgres_tables` from several connections at once.

A transaction changes some rows of one to four tables, or thousands of one; it has savepoints that are rolled back, key
changes, swaps, truncates; a tenth is rolled back as a whole. What it has done it writes, as its last statement, into
the table `committed`: its xid, and how often it did what in which table. Thus a transaction is known exactly if it has
committed, however its connection ended.
"""

import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import psycopg

from tests.support.postgres_tables import COMMITTED, PostgresTable

_GIVEN_UP = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.UniqueViolation,
    psycopg.errors.SerializationFailure,
)
_LOCK_TIMEOUT = "300ms"  # the longest wait for a table that somebody truncates, or that a snapshot keeps from it
Done = Counter[tuple[str, str]]


class PostgresWriters:
    """Threads that write until `transactions` each, or until told to stop; use it in a `with`.

    With `outages` a connection that ends is made anew, for as long as it takes. `rows_max` is the size of the largest
    transactions.
    """

    def __init__(
        self,
        url: str,
        tables: Sequence[PostgresTable],
        *,
        seed: int,
        threads: int = 3,
        transactions: int | None = None,
        pace_seconds: float = 0.0,
        rows_max: int = 3000,
        outages: bool = False,
    ) -> None:
        self._url = url
        self._tables = tables
        self._transactions = transactions
        self._pace_seconds = pace_seconds
        self._rows_max = rows_max
        self._outages = outages
        self._numbers = itertools.count(1_000_000 + seed % 1000 * 100_000)
        self._versions = itertools.count(1 + seed % 1000 * 100_000)
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._write, args=(f"{seed}-{number}",), name=f"writer {number}")
            for number in range(threads)
        ]
        self.committed = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None or self._transactions is None:
            self._stopping.set()
        for thread in self._threads:
            thread.join()
        if error is None and self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """After the transactions that are open now."""
        self._stopping.set()

    def _write(self, name: str) -> None:
        rng = random.Random(name)
        left = itertools.count() if self._transactions is None else iter(range(self._transactions))
        try:
            while not self._stopping.is_set():
                try:
                    with psycopg.connect(self._url) as connection:
                        connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT}'")
                        connection.commit()
                        for _ in left:
                            if self._stopping.wait(self._pace_seconds * rng.uniform(0.5, 1.5)) or self._failure:
                                return
                            self._transaction(connection, rng, name)
                    return
                except psycopg.OperationalError:
                    if not self._outages:
                        raise
                    self._stopping.wait(0.05)
        except BaseException as error:  # noqa: BLE001 - the thread's owner raises it
            self._failure = error

    def _transaction(self, connection: psycopg.Connection[Any], rng: random.Random, name: str) -> None:
        try:
            with connection.cursor() as cursor:
                done = self._changes(cursor, rng)
                facts: dict[str, dict[str, int]] = {}
                for (table, op), count in done.items():
                    facts.setdefault(table, {})[op] = count
                cursor.execute(
                    f"INSERT INTO {COMMITTED} (xid, writer, rows) VALUES (pg_current_xact_id()::text, %s, %s)",
                    [name, json.dumps(facts)],
                )
            if rng.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()
                self.committed += 1
        except _GIVEN_UP:
            connection.rollback()

    def _changes(self, cursor: psycopg.Cursor[Any], rng: random.Random) -> Done:
        done: Done = Counter()
        if rng.random() < 0.02:
            self._many(cursor, rng, done)
        for _ in range(rng.randint(1, 4)):
            if rng.random() < 0.15:
                cursor.execute("SAVEPOINT a_try")
                kept: Done = Counter()
                self._change(cursor, rng, kept)
                if rng.random() < 0.5:
                    cursor.execute("ROLLBACK TO SAVEPOINT a_try")
                else:
                    done.update(kept)
                cursor.execute("RELEASE SAVEPOINT a_try")
            else:
                self._change(cursor, rng, done)
        return done

    def _many(self, cursor: psycopg.Cursor[Any], rng: random.Random, done: Done) -> None:
        table = rng.choice([table for table in self._tables if table.rows > self._rows_max // 10])
        count = rng.randint(self._rows_max // 3, self._rows_max)
        if any(column.large for column in table.columns):
            count = min(count, 100)
        version = next(self._versions)
        if rng.random() < 0.4:
            last = next(itertools.islice(self._numbers, count - 1, None))
            statement = table.insert(f"generate_series({last - count + 1}, {last})", version=version)
            self._do(cursor, done, table, "c", statement)
        else:
            first = rng.randint(1, table.rows)
            statement = table.update(
                f"generate_series({first}, {first + count})", rng.sample(table.columns, 1), version=version
            )
            self._do(cursor, done, table, "u", statement)

    def _change(self, cursor: psycopg.Cursor[Any], rng: random.Random, done: Done) -> None:
        table = rng.choice(self._tables)
        if table.swaps and rng.random() < 0.5:
            one, other = rng.sample(range(1, table.rows + 1), 2)
            self._do(cursor, done, table, "u", table.swap(one, other))
            return
        choice = rng.random()
        if choice < 0.25:
            numbers = self._values([next(self._numbers) for _ in range(rng.randint(1, 5))])
            self._do(cursor, done, table, "c", table.insert(numbers, version=next(self._versions)))
        elif choice < 0.35 and not table.swaps:  # rows that may have been deleted before
            numbers = self._values(self._some(table, rng))
            self._do(cursor, done, table, "c", table.insert(numbers, version=next(self._versions)))
        elif choice < 0.68:
            few = [column for column in table.columns if rng.random() < 0.4]
            numbers = self._values(self._some(table, rng))
            self._do(cursor, done, table, "u", table.update(numbers, few, version=next(self._versions)))
        elif choice < 0.83:
            self._do(cursor, done, table, "d", table.delete(self._values(self._some(table, rng))))
        elif choice < 0.99 or not table.truncated:
            self._change_key(cursor, rng, done, table)
        else:
            cursor.execute(f"TRUNCATE {table.name}")
            done[table.name, "t"] += 1
            numbers = f"generate_series(1, {rng.randint(1, 300)})"
            self._do(cursor, done, table, "c", table.insert(numbers, version=next(self._versions)))

    def _change_key(self, cursor: psycopg.Cursor[Any], rng: random.Random, done: Done, table: PostgresTable) -> None:
        number, other = rng.randint(1, table.rows), next(self._numbers)
        moved = [(number, other)]
        if rng.random() < 0.3:  # and back
            moved.append((other, number))
        for old, new in moved:
            cursor.execute(table.change_key(old, new, version=next(self._versions)))
            between = table.moves and old % 3 != new % 3
            for op in ("d", "c") if between else ("u",):
                if cursor.rowcount:
                    done[table.name, op] += cursor.rowcount

    def _do(self, cursor: psycopg.Cursor[Any], done: Done, table: PostgresTable, op: str, statement: str) -> None:
        cursor.execute(statement)
        if cursor.rowcount:
            done[table.name, op] += cursor.rowcount

    @staticmethod
    def _some(table: PostgresTable, rng: random.Random) -> list[int]:
        return rng.sample(range(1, table.rows + 1), rng.randint(1, 4))

    @staticmethod
    def _values(numbers: Sequence[int]) -> str:
        return f"(VALUES {', '.join(f'({number})' for number in numbers)})"
