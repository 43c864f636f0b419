"""The source suite over a database in memory: what a test does to it, and how it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from kadds.api.change import Op
from kadds.api.connector import Source
from kadds.api.position import Position
from kadds.api.schema import Column
from kadds.testing.fake_source import LINEAGE, Cells, FakeChange, FakeDatabase
from kadds.testing.source_contract import ExactValues, Row, SourceContract

_COLUMNS = (Column("id", pa.int64(), "bigint", nullable=False), Column("label", pa.string(), "text"))


class OverFakeDatabase(SourceContract):
    """A subclass sets `database` before each test and makes sources of it."""

    database: FakeDatabase

    def make_unusable_source(self) -> Source:
        self.database.reachable = False
        return self.make_source()

    def create_table(self, name: str) -> str:
        return self.database.create(name, _COLUMNS)

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        self.insert_together({table: rows})

    def insert_together(self, rows: Mapping[str, Sequence[Row]]) -> None:
        self.database.commit(*(_created(table, row) for table, some in rows.items() for row in some))

    def update(self, table: str, rows: Sequence[Row]) -> None:
        self.database.commit(*(FakeChange(table, Op.UPDATE, _cells(row), _cells(row)) for row in rows))

    def delete(self, table: str, ids: Sequence[int]) -> None:
        self.database.commit(*(FakeChange(table, Op.DELETE, {"id": number}) for number in ids))

    def truncate(self, table: str) -> None:
        self.database.commit(FakeChange(table, Op.TRUNCATE))

    def change_key(self, table: str, old: int, new: int) -> None:
        cells = self.database.rows[table][old]
        self.database.commit(FakeChange(table, Op.UPDATE, cells, {**cells, "id": new}))

    def late_commit(self, table: str, rows: Sequence[Row]) -> Callable[[], None]:
        return lambda: self.insert(table, rows)

    def store_exact_values(self) -> ExactValues:
        values: dict[str, list[object]] = {"id": [1, 2], "label": ["", "\x00ü😀"], "price": [None, -0.0]}
        table = self.database.create("exact", [*_COLUMNS, Column("price", pa.float64(), "double")])
        for number in range(2):
            self.database.commit(
                FakeChange(table, Op.CREATE, None, {n: column[number] for n, column in values.items()})
            )
        return ExactValues(table, "id", values)

    def acknowledged(self) -> Position | None:
        number = self.database.acknowledged
        return Position(LINEAGE, number.to_bytes(8, "big"), str(number)) if number else None


def _cells(row: Row) -> Cells:
    return {"id": row[0], "label": row[1]}


def _created(table: str, row: Row) -> FakeChange:
    return FakeChange(table, Op.CREATE, None, _cells(row))
