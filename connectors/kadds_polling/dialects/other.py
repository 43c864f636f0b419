"""Every other SQLAlchemy dialect: by its inspector and its driver's own values, which nobody has tried here.

`check` says so for each table. Nothing is guessed: a value that does not fit its column's type is given as text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import uuid
import warnings
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from kadds.api.schema import Column, Table
from kadds_polling.dialects.interface import Dialect
from kadds_polling.types import decimal_or_text

_TYPES: tuple[tuple[type[sa.types.TypeEngine[Any]], pa.DataType], ...] = (
    (sa.Boolean, pa.bool_()),
    (sa.Integer, pa.int64()),
    (sa.Float, pa.float64()),
    (sa.LargeBinary, pa.binary()),
    (sa.Date, pa.date32()),
    (sa.Time, pa.time64("us")),
)
_WRITTEN = (decimal.Decimal, uuid.UUID, dt.timedelta, int, float)


def type_of(declared: sa.types.TypeEngine[Any]) -> pa.DataType:
    """The Arrow type of a reflected type; text for what Arrow has no type for."""
    if isinstance(declared, sa.Numeric) and not isinstance(declared, sa.Float):
        return decimal_or_text(declared.precision, declared.scale)
    if isinstance(declared, sa.DateTime):
        return pa.timestamp("us", "UTC" if declared.timezone else None)
    return next((arrow for kind, arrow in _TYPES if isinstance(declared, kind)), pa.string())


class Other(Dialect):
    """A product without code of its own here."""

    tried = False

    def tables(self, connection: sa.Connection) -> Sequence[Table]:
        inspector = sa.inspect(connection)
        schemas = [name for name in inspector.get_schema_names() if name.lower() not in ("information_schema", "sys")]
        return [
            table
            for schema in schemas
            for name in inspector.get_table_names(schema)
            if (table := self.table(connection, schema, name)) is not None
        ]

    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        inspector = sa.inspect(connection)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", sa.exc.SAWarning)  # of types it does not know, which are text here
                reflected = inspector.get_columns(name, schema)
                key = inspector.get_pk_constraint(name, schema)["constrained_columns"]
        except sa.exc.NoSuchTableError:
            return None
        columns = tuple(
            Column(c["name"], type_of(c["type"]), _declared(c["type"]), bool(c["nullable"]), "computed" in c)
            for c in reflected
        )
        return Table(schema, name, columns, tuple(key))

    def indexed(self, connection: sa.Connection, table: Table) -> set[str]:
        indexes = sa.inspect(connection).get_indexes(table.name, table.schema)
        first = {index["column_names"][0] for index in indexes if index["column_names"]}
        return {name for name in (*first, *table.key[:1]) if name}

    def values(self, column: Column, values: Sequence[Any]) -> Sequence[Any]:
        if column.type != pa.string():
            return values
        return [str(value) if isinstance(value, _WRITTEN) else value for value in values]

    def upper(self, column: Column, micros: int, raw: Any) -> sa.ColumnElement[Any]:
        return self.bound(column, micros + 1)  # drivers cut what lies below a microsecond

    def cancel(self, connection: Any, url: sa.URL) -> None:
        with contextlib.suppress(Exception):  # what drivers offer differs; closing is what all have
            (getattr(connection, "cancel", None) or connection.close)()


def _declared(declared: sa.types.TypeEngine[Any]) -> str:
    try:
        return str(declared)
    except sa.exc.CompileError:
        return type(declared).__name__
