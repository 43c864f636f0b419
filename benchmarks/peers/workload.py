"""What is written into PostgreSQL: the yardstick row, as inserts or as a mix, in transactions that go round the tables.

Every value follows from a row's number, so that the same call fills a source and its targets alike. A workload ends
with one transaction that adds the row `LAST_ID` to each table: where a target shows it, it has all of that table.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

Connection = psycopg.Connection[tuple[object, ...]]

LAST_ID = 0
TIMEOUT_SECONDS = 900.0

_TABLE = """CREATE TABLE t{n} (id bigint PRIMARY KEY, customer_id integer NOT NULL, amount numeric(12,2) NOT NULL,
    status text NOT NULL, created_at timestamptz NOT NULL, note text)"""
_ROW = """g, g * 7919 % 100000, (g * 7919 % 10000000) / 100.0, (ARRAY['new', 'paid', 'shipped', 'done'])[1 + g % 4],
    timestamptz '2024-01-01 00:00:00Z' + g * interval '1 ms', 'note ' || g"""
_STRIDE = 7919  # a prime: updates meet rows all over a table


@dataclass(frozen=True)
class Shape:
    """How much is written: `rows` changes, cut into transactions of `rows_per_transaction`, each to the next table."""

    rows: int
    rows_per_transaction: int
    tables: int

    @property
    def transactions(self) -> int:
        """Those with rows, without the one that ends the workload."""
        return self.rows // self.rows_per_transaction

    @property
    def changes(self) -> int:
        """All row changes that the log must hold."""
        return self.transactions * self.rows_per_transaction + self.tables

    def facts(self) -> dict[str, object]:
        """What a figure says it was measured on."""
        return {
            "rows": self.changes,
            "row": "yardstick",
            "rows_per_transaction": self.rows_per_transaction,
            "tables": self.tables,
        }

    @property
    def _rows_per_table(self) -> int:
        return -(-self.transactions // self.tables) * self.rows_per_transaction

    @property
    def updated(self) -> int:
        """How many rows of each table the mix may update; every transaction finds all of its rows among them."""
        count = max(self._rows_per_table // 2, self.rows_per_transaction, 1)
        return count + (count % _STRIDE == 0)

    @property
    def deleted(self) -> int:
        """How many rows of each table the mix may delete."""
        return (self._rows_per_table // 100 + 1) * 18


def create_tables(connection: Connection, shape: Shape) -> None:
    """Empty tables, the same at both ends."""
    for first in range(0, shape.tables, 500):
        connection.execute("; ".join(_TABLE.format(n=n) for n in range(first, min(shape.tables, first + 500))))


def write_base(connection: Connection, shape: Shape) -> None:
    """The rows that the mix updates and deletes."""
    count = shape.updated + shape.deleted
    for number in range(shape.tables):
        connection.execute(f"INSERT INTO t{number} SELECT {_ROW} FROM generate_series(1, {count}::bigint) g")


def write_inserts(connection: Connection, shape: Shape) -> None:
    """Nothing but new rows."""
    _write(connection, shape, [f"INSERT INTO @table SELECT {_ROW} FROM generate_series($1 + 1, $2) g"])


def write_mix(connection: Connection, shape: Shape) -> None:
    """Of 100 changes 45 are updates, 37 inserts and 18 deletes; a transaction has those of its rows, kind by kind."""
    updated, deleted = shape.updated, shape.deleted
    numbers = "generate_series($1, $2 - 1) r"
    update = f"""UPDATE @table t SET amount = t.amount + 1, status = 'changed', note = 'change ' || r FROM {numbers}
        WHERE r % 100 < 45 AND t.id = r * {_STRIDE} % {updated} + 1"""
    insert = f"""INSERT INTO @table SELECT {_ROW}
        FROM (SELECT r + {updated + deleted + 1} AS g FROM {numbers} WHERE r % 100 BETWEEN 45 AND 81) n"""
    delete = f"""DELETE FROM @table t USING {numbers}
        WHERE r % 100 > 81 AND t.id = r / 100 * 18 + r % 100 - 82 + {updated + 1}"""
    _write(connection, shape, [update, insert, delete])


def _write(connection: Connection, shape: Shape, statements: list[str]) -> None:
    """`$1` and `$2` are the bounds of the row numbers of a transaction, counted table by table."""
    last = f"INSERT INTO @table SELECT {_ROW} FROM (SELECT {LAST_ID}::bigint AS g) n"
    steps = "".join(f"EXECUTE replace($q${text}$q$, '@table', 't' || at) USING first, behind;" for text in statements)
    connection.execute(f"""DO $do$
        DECLARE at int; first bigint; behind bigint;
        BEGIN
            FOR number IN 0..{shape.transactions - 1} LOOP
                at := number % {shape.tables};
                first := number / {shape.tables} * {shape.rows_per_transaction}::bigint;
                behind := first + {shape.rows_per_transaction};
                {steps}
                COMMIT;
            END LOOP;
            FOR number IN 0..{shape.tables - 1} LOOP
                EXECUTE replace($q${last}$q$, '@table', 't' || number);
            END LOOP;
        END $do$""")


def wait_for_last(connection: Connection, shape: Shape, alive: Callable[[], None] = lambda: None) -> None:
    """Until a target shows the end of the workload in every table; `alive` raises where that will never be."""
    for number in range(shape.tables):
        query = f"SELECT count(*) FROM t{number} WHERE id = {LAST_ID}"
        wait_for(connection, query, pause_seconds=0.01, alive=alive)


def wait_for(
    connection: Connection, query: str, *, pause_seconds: float, alive: Callable[[], None] = lambda: None
) -> None:
    """Until the one value that the query gives is true."""
    until(lambda: value(connection, query), query, pause_seconds=pause_seconds, alive=alive)


def until(
    found: Callable[[], object], what: str, *, pause_seconds: float, alive: Callable[[], None] = lambda: None
) -> None:
    """Until `found` gives something true. The pause does not grow: it is the error of what is measured."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not found():
        alive()
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {TIMEOUT_SECONDS:g} s for: {what}")
        time.sleep(pause_seconds)


def value(connection: Connection, query: str) -> object:
    """The first value of the first row; None where there is no row.

    Planned each time: the plan of a prepared statement, made while its table was empty, reads the whole table for ever.
    """
    row = connection.execute(query, prepare=False).fetchone()
    return row[0] if row else None


def refuse_difference(source: Connection, target: Connection, shape: Shape) -> None:
    """AssertionError that names the first table whose rows, in the order of their keys, are not the same text."""
    for number in range(shape.tables):
        if _digest(source, f"t{number}") != _digest(target, f"t{number}"):
            counts = [value(one, f"SELECT count(*) FROM t{number}") for one in (source, target)]
            raise AssertionError(f"t{number} differs: {counts[0]} rows at the source, {counts[1]} at the target")


def _digest(connection: Connection, table: str) -> bytes:
    digest = hashlib.blake2b()
    with connection.cursor().copy(f"COPY (SELECT * FROM {table} ORDER BY id) TO STDOUT") as copy:
        for data in copy:
            digest.update(data)
    return digest.digest()
