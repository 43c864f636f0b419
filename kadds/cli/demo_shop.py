"""The shop of `kadds demo`: a SQLite database whose triggers keep every change in a table beside each table.

A person's own database needs no more than that to be captured with deletes; the triggers below can be copied.
"""

from __future__ import annotations

import datetime as dt
import random
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

PAUSE_SECONDS = 0.02  # between two of the writer's transactions
_SEED = 20


@dataclass(frozen=True)
class ShopTable:
    """A table of the shop: its columns with their declared types, and its key."""

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]

    def statements(self) -> Iterator[str]:
        """What makes the table, its table of changes, and the triggers between them."""
        declared = ", ".join(f"{name} {kind}" for name, kind in self.columns.items())
        names = ", ".join(self.columns)
        yield f"CREATE TABLE {self.name} ({declared}, PRIMARY KEY ({', '.join(self.key)}))"
        yield (
            f"CREATE TABLE {self.name}_changes "
            f"(change_id INTEGER PRIMARY KEY AUTOINCREMENT, op TEXT NOT NULL, {declared})"
        )
        for event, op, row in (("INSERT", "I", "NEW"), ("UPDATE", "U", "NEW"), ("DELETE", "D", "OLD")):
            values = ", ".join(f"{row}.{name}" for name in self.columns)
            yield (
                f"CREATE TRIGGER {self.name}_{event.lower()} AFTER {event} ON {self.name} BEGIN "
                f"INSERT INTO {self.name}_changes (op, {names}) VALUES ('{op}', {values}); END"
            )


TABLES = (
    ShopTable(
        "customers",
        {"customer_id": "INTEGER NOT NULL", "name": "TEXT NOT NULL", "city": "TEXT", "joined_on": "DATE NOT NULL"},
        ("customer_id",),
    ),
    ShopTable(
        "products",
        {"product_id": "INTEGER NOT NULL", "name": "TEXT NOT NULL", "price": "DECIMAL(10,2) NOT NULL"},
        ("product_id",),
    ),
    ShopTable(
        "orders",
        {
            "order_id": "INTEGER NOT NULL",
            "customer_id": "INTEGER NOT NULL",
            "status": "TEXT NOT NULL",
            "ordered_at": "TIMESTAMP NOT NULL",
            "paid": "BOOLEAN NOT NULL",
        },
        ("order_id",),
    ),
    ShopTable(
        "order_lines",
        {
            "order_id": "INTEGER NOT NULL",
            "line": "INTEGER NOT NULL",
            "product_id": "INTEGER NOT NULL",
            "quantity": "INTEGER NOT NULL",
            "price": "DECIMAL(10,2) NOT NULL",
        },
        ("order_id", "line"),
    ),
)
_CITIES = ("Lisbon", "Kraków", "São Paulo", "Osaka", "Nairobi", "Århus", None)
_NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Frances", "Ken", "Radia", "Tony")
_THINGS = ("lamp", "chair", "teapot", "bicycle", "notebook", "kettle", "violin", "umbrella", "clock", "globe")


class Shop:
    """The database, made new, and whoever changes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._random = random.Random(_SEED)  # noqa: S311 - a demonstration, not a key
        self._next_order = 1
        with closing(self._connect()) as database, database:
            database.execute("PRAGMA journal_mode = WAL")
            for table in TABLES:
                for statement in table.statements():
                    database.execute(statement)
        with closing(self._connect()) as database, database:
            self._open_for_business(database)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=30)

    def _open_for_business(self, database: sqlite3.Connection) -> None:
        joined = dt.date(2020, 1, 1)
        customers = [
            (number, f"{self._random.choice(_NAMES)} {number}", self._random.choice(_CITIES), str(joined))
            for number in range(1, 201)
        ]
        database.executemany("INSERT INTO customers VALUES (?, ?, ?, ?)", customers)
        products = [(number, f"{_THINGS[number % 10]} {number}", self._price()) for number in range(1, 51)]
        database.executemany("INSERT INTO products VALUES (?, ?, ?)", products)

    def _price(self) -> float:
        return self._random.randrange(100, 50_000) / 100

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep changing it in a thread for the time of a block."""
        ended = threading.Event()
        thread = threading.Thread(target=self._change, args=(ended,), name="demo-shop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _change(self, ended: threading.Event) -> None:
        steps = (self._order, self._order, self._order, self._pay, self._cancel, self._reprice, self._move)
        with closing(self._connect()) as database:
            while not ended.wait(PAUSE_SECONDS):
                with database:
                    for _ in range(self._random.randrange(1, 6)):
                        self._random.choice(steps)(database)

    def _order(self, database: sqlite3.Connection) -> None:
        number, self._next_order = self._next_order, self._next_order + 1
        now = dt.datetime.now(dt.UTC).replace(tzinfo=None)
        database.execute(
            "INSERT INTO orders VALUES (?, ?, 'new', ?, 0)", (number, self._random.randrange(1, 201), str(now))
        )
        for line in range(1, self._random.randrange(2, 6)):
            database.execute(
                "INSERT INTO order_lines SELECT ?, ?, product_id, ?, price FROM products WHERE product_id = ?",
                (number, line, self._random.randrange(1, 10), self._random.randrange(1, 51)),
            )

    def _some_order(self) -> int:
        return self._random.randrange(max(1, self._next_order - 100), self._next_order + 1)

    def _pay(self, database: sqlite3.Connection) -> None:
        database.execute("UPDATE orders SET paid = 1, status = 'paid' WHERE order_id = ?", (self._some_order(),))

    def _cancel(self, database: sqlite3.Connection) -> None:
        number = self._some_order()
        database.execute("DELETE FROM order_lines WHERE order_id = ?", (number,))
        database.execute("DELETE FROM orders WHERE order_id = ?", (number,))

    def _reprice(self, database: sqlite3.Connection) -> None:
        place = (self._price(), self._random.randrange(1, 51))
        database.execute("UPDATE products SET price = ? WHERE product_id = ?", place)

    def _move(self, database: sqlite3.Connection) -> None:
        place = (self._random.choice(_CITIES), self._random.randrange(1, 201))
        database.execute("UPDATE customers SET city = ? WHERE customer_id = ?", place)

    def rows(self, table: ShopTable) -> list[tuple[Any, ...]]:
        """Every row as it is now, by key, in Python's types for the declared ones."""
        with closing(self._connect()) as database:
            found = database.execute(f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {_key(table)}")
            kinds = [kind.split()[0] for kind in table.columns.values()]
            return [tuple(_value(kind, value) for kind, value in zip(kinds, row, strict=True)) for row in found]


def query(table: ShopTable) -> str:
    """SQL for the rows of `Shop.rows` in another database."""
    return f"SELECT {', '.join(table.columns)} FROM {table.name} ORDER BY {_key(table)}"


def _key(table: ShopTable) -> str:
    return ", ".join(table.key)


def _value(kind: str, value: Any) -> Any:
    if value is None:
        return None
    match kind:
        case "DATE":
            return dt.date.fromisoformat(value)
        case "TIMESTAMP":
            return dt.datetime.fromisoformat(value)
        case "BOOLEAN":
            return bool(value)
        case "DECIMAL(10,2)":
            return Decimal(str(value)).quantize(Decimal("0.01"))
    return value
