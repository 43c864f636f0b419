"""A small shop in SQLite that keeps changing: the cheapest source under load, with every way of polling.

`customer` and `order_line` (a key of two columns) have tables of changes, `note` a time of change, `reading` rising
numbers only. Each change bears another `version`, so that it can be told from every other. SQLite has one writer at a
time, so its numbers rise in the order of commits.
"""

import datetime as dt
import itertools
import random
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

_LETTERS = "abcXYZ 0'\"\\\n,;äß漢🙂"
_NOTE_CLOCK = "strftime('%Y-%m-%d %H:%M:%f', 'now')"


@dataclass(frozen=True)
class ShopTable:
    """A table: its columns in order, as declared and as Arrow; `polled` is what Kadds is told of it."""

    name: str
    columns: Mapping[str, tuple[str, pa.DataType]]
    key: tuple[str, ...]
    polled: Mapping[str, Any]

    @property
    def sees_deletes(self) -> bool:
        """Whether Kadds is told of deletes, and of each single change."""
        return "change_table" in self.polled

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of its rows."""
        return pa.schema([pa.field(name, kind) for name, (_, kind) in self.columns.items()])

    @property
    def record(self) -> str:
        """The table in which triggers write down what happens to this one."""
        return f"{self.name}_changes"


def _change_table(name: str) -> dict[str, Any]:
    return {"change_table": {"table": f"{name}_changes", "sequence": "sequence", "op": "op"}}


CUSTOMER = ShopTable(
    "customer",
    {
        "id": ("INTEGER", pa.int64()),
        "name": ("TEXT", pa.string()),
        "card": ("TEXT", pa.string()),
        "balance": ("DECIMAL(12, 2)", pa.decimal128(12, 2)),
        "active": ("BOOLEAN", pa.bool_()),
        "version": ("INTEGER", pa.int64()),
    },
    ("id",),
    _change_table("customer"),
)
ORDER_LINE = ShopTable(
    "order_line",
    {
        "order_id": ("INTEGER NOT NULL", pa.int64()),
        "line": ("TEXT NOT NULL", pa.string()),
        "quantity": ("REAL", pa.float64()),
        "label": ("BLOB", pa.binary()),
        "due": ("DATE", pa.date32()),
        "version": ("INTEGER", pa.int64()),
    },
    ("order_id", "line"),
    _change_table("order_line"),
)
NOTE = ShopTable(
    "note",
    {
        "id": ("INTEGER", pa.int64()),
        "text": ("TEXT", pa.string()),
        "changed_at": ("TIMESTAMP NOT NULL", pa.timestamp("us")),
        "version": ("INTEGER", pa.int64()),
    },
    ("id",),
    {"timestamp": "changed_at", "overlap_seconds": 5},
)
READING = ShopTable(
    "reading",
    {"id": ("INTEGER", pa.int64()), "value": ("REAL", pa.float64()), "version": ("INTEGER", pa.int64())},
    ("id",),
    {"incrementing": "id", "overlap": 50},
)
TABLES = (CUSTOMER, ORDER_LINE, NOTE, READING)


class Shop:
    """The shop in the file `path`, made if it is not there. One thread at a time changes it."""

    def __init__(
        self, path: Path, *, seed: int = 0, tables: tuple[ShopTable, ...] = TABLES, rows_max: int = 40
    ) -> None:
        self.path = path
        self.tables = tables
        self._rng = random.Random(f"shop {seed}")
        self._rows_max = rows_max
        self._versions = itertools.count(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            for table in tables:
                for statement in _statements(table):
                    connection.execute(statement)

    def source(self, *, poll_interval_seconds: float = 0.05, **more: Any) -> dict[str, Any]:
        """The shop in Kadds' configuration."""
        interval = {} if "schedule" in more else {"poll_interval_seconds": poll_interval_seconds}
        tables = {table.name: dict(table.polled) for table in self.tables}
        return {"connector": "polling", "url": f"sqlite:///{self.path}", **interval, "tables": tables, **more}

    def connect(self) -> sqlite3.Connection:
        """A connection for a change of one's own."""
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=30)
        connection.execute("PRAGMA synchronous = OFF")  # the shop itself is not what is killed
        return connection

    def change(self, transactions: int = 1) -> None:
        """Do some transactions of one to eight changes; one in ten is rolled back."""
        with closing(self.connect()) as connection:
            for _ in range(transactions):
                connection.execute("BEGIN IMMEDIATE")
                for _ in range(self._rng.randint(1, 8)):
                    self._change(connection, self._rng.choice(self.tables))
                connection.execute("ROLLBACK" if self._rng.random() < 0.1 else "COMMIT")

    @contextmanager
    def changing(self, *, pace_seconds: float = 0.005) -> Iterator[None]:
        """Change it all the time, in a thread."""
        stopping = threading.Event()

        def keep_changing() -> None:
            while not stopping.wait(pace_seconds):
                self.change()

        thread = threading.Thread(target=keep_changing)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()

    def execute(self, *statements: str) -> None:
        """Run statements, each a transaction."""
        with closing(self.connect()) as connection:
            for statement in statements:
                connection.execute(statement)

    def read(self, table: ShopTable) -> pa.Table:
        """The table as it is now."""
        return self._read(table.name, table.schema)

    def read_record(self, table: ShopTable) -> pa.Table:
        """What happened to the table: its columns, `op` in Kadds' letters, and `sequence`."""
        extra = [pa.field("op", pa.string()), pa.field("sequence", pa.int64())]
        return self._read(table.record, pa.schema([*table.schema, *extra]))

    def _read(self, name: str, schema: pa.Schema) -> pa.Table:
        with closing(self.connect()) as connection:
            rows = connection.execute(f"SELECT {', '.join(schema.names)} FROM {name}").fetchall()
        columns = [
            pa.array([_value(row[place], field.type) for row in rows], field.type) for place, field in enumerate(schema)
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    # ------------------------------------------------------------------------------------------ one change

    def _change(self, connection: sqlite3.Connection, table: ShopTable) -> None:
        rng = self._rng
        key = self._key(table)
        there = " AND ".join(f"{name} = ?" for name in table.key)
        exists = connection.execute(f"SELECT 1 FROM {table.name} WHERE {there}", key).fetchone() is not None
        if table is READING:
            self._insert(connection, table, ())
        elif not exists:
            self._insert(connection, table, key)
        elif table.sees_deletes and rng.random() < 0.25:
            connection.execute(f"DELETE FROM {table.name} WHERE {there}", key)
        else:
            values = self._values(table)
            chosen = {name: value for name, value in values.items() if name == "version" or rng.random() < 0.7}
            settings = [f"{name} = ?" for name in chosen]
            settings += [f"changed_at = {_NOTE_CLOCK}"] if table is NOTE else []
            connection.execute(f"UPDATE {table.name} SET {', '.join(settings)} WHERE {there}", [*chosen.values(), *key])

    def _insert(self, connection: sqlite3.Connection, table: ShopTable, key: tuple[Any, ...]) -> None:
        values = {**dict(zip(table.key, key, strict=False)), **self._values(table)}
        names, places = [*values], ["?"] * len(values)
        if table is NOTE:
            names.append("changed_at")
            places.append(_NOTE_CLOCK)
        connection.execute(
            f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join(places)})", [*values.values()]
        )

    def _key(self, table: ShopTable) -> tuple[Any, ...]:
        number = self._rng.randint(1, self._rows_max)
        return (number // 4, f"line {number % 4} ß") if len(table.key) == 2 else (number,)

    def _values(self, table: ShopTable) -> dict[str, Any]:
        own = [name for name in table.columns if name not in (*table.key, "version", "changed_at")]
        return {
            **{name: None if self._rng.random() < 0.15 else self._value(table.columns[name][1]) for name in own},
            "version": next(self._versions),
        }

    def _value(self, kind: pa.DataType) -> Any:
        rng = self._rng
        if pa.types.is_boolean(kind):
            return rng.randint(0, 1)
        if pa.types.is_decimal(kind):
            return str(Decimal(rng.randint(-(10**9), 10**9)).scaleb(-2))
        if pa.types.is_floating(kind):
            return rng.choice([rng.uniform(-1e9, 1e9), 0.1, 1e300, 5e-324])
        if pa.types.is_date(kind):
            return str(dt.date(2026, 1, 1) + dt.timedelta(days=rng.randint(-50_000, 50_000)))
        if pa.types.is_binary(kind):
            return rng.randbytes(rng.choice([0, 1, 64]))
        return "".join(rng.choices(_LETTERS, k=rng.randint(0, 30)))


def _value(value: Any, kind: pa.DataType) -> Any:
    """A cell of SQLite as what its column is meant to hold."""
    if value is None:
        return None
    if pa.types.is_boolean(kind):
        return bool(value)
    if pa.types.is_decimal(kind):
        return Decimal(repr(value)).quantize(Decimal("0.01"))
    if pa.types.is_date(kind):
        return dt.date.fromisoformat(value)
    if pa.types.is_timestamp(kind):
        return dt.datetime.fromisoformat(value)
    return value


def _statements(table: ShopTable) -> Iterator[str]:
    columns = ", ".join(f"{name} {declared}" for name, (declared, _) in table.columns.items())
    yield f"CREATE TABLE IF NOT EXISTS {table.name} ({columns}, PRIMARY KEY ({', '.join(table.key)}))"
    yield (
        f"CREATE TABLE IF NOT EXISTS {table.record} "
        f"(sequence INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT NOT NULL, {columns})"
    )
    if "timestamp" in table.polled:
        yield f"CREATE INDEX IF NOT EXISTS {table.name}_at ON {table.name} ({table.polled['timestamp']})"
    names = ", ".join(table.columns)
    for event, op, row in (("INSERT", "c", "NEW"), ("UPDATE", "u", "NEW"), ("DELETE", "d", "OLD")):
        values = ", ".join(f"{row}.{name}" for name in table.columns)
        yield (
            f"CREATE TRIGGER IF NOT EXISTS {table.name}_{event} AFTER {event} ON {table.name} BEGIN "
            f"INSERT INTO {table.record} (op, {names}) VALUES ('{op}', {values}); END"
        )
