"""Writers that change tables of mixed types from several threads at once, each with a seed of its own.

A transaction has one to five changes, in tables and rows that the others use as well; some are rolled back, and some
are given up for the sake of another (a deadlock, a key that was just taken). What really happened stands in the
tables' records.
"""

import itertools
import random
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tests.support.typed_tables import Product, TypedColumn, TypedTable

_ROWS_MAX = 80
_NULLS = 0.15


class Writers:
    """Threads that write to the `tables` of a product until each has done `transactions`; use it in a `with`.

    Each lets `pace_seconds` pass between two transactions, so that there is something to see between two polls.
    """

    def __init__(
        self,
        product: Product,
        tables: Sequence[TypedTable],
        *,
        threads: int,
        transactions: int,
        seed: int,
        pace_seconds: float = 0.0,
    ) -> None:
        self._product = product
        self._tables = tables
        self._transactions = transactions
        self._pace_seconds = pace_seconds
        self._versions = itertools.count(1)
        self._numbers = itertools.count(1)
        self._live: dict[str, set[int]] = {table.name: set() for table in tables}
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self.committed = 0
        self._threads = [
            threading.Thread(target=self._write, args=(random.Random(f"{product.name} {seed} {number}"),))
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._stopping.set()
        for thread in self._threads:
            thread.join()
        if error is None and self._failure is not None:
            raise self._failure

    def _write(self, rng: random.Random) -> None:
        try:
            connection = self._product.connect()
            try:
                for _ in range(self._transactions):
                    if self._stopping.wait(self._pace_seconds) or self._failure is not None:
                        return
                    self._transaction(connection, rng)
            finally:
                connection.close()
        except BaseException as error:  # noqa: BLE001 - the thread's owner raises it
            self._failure = error

    def _transaction(self, connection: Any, rng: random.Random) -> None:
        try:
            with connection.cursor() as cursor:
                for _ in range(rng.randint(1, 5)):
                    self._change(cursor, rng.choice(self._tables), rng)
            if rng.random() < 0.1:
                connection.rollback()
            else:
                connection.commit()
                self.committed += 1
        except Exception as error:
            connection.rollback()
            if not self._product.collides(error):
                raise

    def _change(self, cursor: Any, table: TypedTable, rng: random.Random) -> None:
        live = self._live[table.name]
        choice = rng.random()
        if len(live) < 3 or (choice < 0.35 and len(live) < _ROWS_MAX):
            live.add(self._insert(cursor, table, rng))
        elif table.sees_deletes and choice > 0.85:
            number = rng.choice(sorted(live))
            live.discard(number)
            cursor.execute(
                f"DELETE FROM {self._product.quoted(table.name)} WHERE {self._where(table)}", table.key_of(number)
            )
        elif table.timed or table.sees_deletes:
            self._update(cursor, table, rng, rng.choice(sorted(live)))
        else:
            self._insert(cursor, table, rng)  # a table polled by a rising number alone is never changed

    def _insert(self, cursor: Any, table: TypedTable, rng: random.Random) -> int:
        key: dict[str, Any] = {}
        number = rng.randint(1, _ROWS_MAX)
        if not table.numbered:
            number = rng.choice(sorted(set(range(1, 2 * _ROWS_MAX)) - self._live[table.name]))
            key = dict(zip(table.key, table.key_of(number), strict=True))
        values = {**key, **self._values(table, rng, table.own), "version": next(self._versions)}
        names = ", ".join(map(self._product.quoted, [*values, *(["changed_at"] if table.timed else [])]))
        places = ", ".join([*["%s"] * len(values), *([self._product.clock] if table.timed else [])])
        cursor.execute(
            f"INSERT INTO {self._product.quoted(table.name)} ({names}) VALUES ({places})", [*values.values()]
        )
        return number

    def _update(self, cursor: Any, table: TypedTable, rng: random.Random, number: int) -> None:
        chosen = [column for column in table.own if rng.random() < 0.6]
        values = {**self._values(table, rng, chosen), "version": next(self._versions)}
        settings = [f"{self._product.quoted(name)} = %s" for name in values]
        if table.timed:
            settings.append(f"changed_at = {self._product.clock}")
        cursor.execute(
            f"UPDATE {self._product.quoted(table.name)} SET {', '.join(settings)} WHERE {self._where(table)}",
            [*values.values(), *table.key_of(number)],
        )

    def _values(self, table: TypedTable, rng: random.Random, columns: Sequence[TypedColumn]) -> dict[str, Any]:
        return {c.name: None if rng.random() < _NULLS else c.kind.make(rng) for c in columns}

    def _where(self, table: TypedTable) -> str:
        return " AND ".join(f"{self._product.quoted(name)} = %s" for name in table.key)
