"""What the source asks of a database product: catalog, how a cell is read exactly, one consistent view, cancelling.

Names reach SQL only through SQLAlchemy constructs; catalog queries carry none.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from kadds.api.errors import DataError, RefusedError, RetryableError
from kadds.api.schema import Column, Table

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_FIRST = dt.datetime.min.replace(tzinfo=dt.UTC)


#: What a driver's failure can become.
Failure = RefusedError | DataError | RetryableError


class Dialect(ABC):
    """One database product."""

    #: Whether what a driver gives has been tried value by value; otherwise `check` says so.
    tried = True
    #: Whether times may stand in columns of text, because the product has no type for them.
    text_times = False

    @abstractmethod
    def tables(self, connection: sa.Connection) -> Sequence[Table]:
        """Every table that the user may know of, with columns and primary key, in few queries."""

    @abstractmethod
    def table(self, connection: sa.Connection, schema: str | None, name: str) -> Table | None:
        """One table or view; None if there is none."""

    @abstractmethod
    def indexed(self, connection: sa.Connection, table: Table) -> set[str]:
        """The columns that stand first in an index."""

    def read(self, expression: sa.ColumnElement[Any], column: Column) -> sa.ColumnElement[Any]:
        """`expression`, whose values are those of `column`, so that the driver gives each value whole."""
        return expression

    def values(self, column: Column, values: Sequence[Any]) -> Sequence[Any]:
        """The values of a column before they are decoded, where a driver's value needs another form."""
        return values

    def bound(self, column: Column, micros: int) -> sa.ColumnElement[Any]:
        """A time (microseconds since 1970 UTC) to compare `column` with, never later than it."""
        moment = max(_EPOCH + dt.timedelta(microseconds=micros), _FIRST) if micros > -(10**17) else _FIRST
        if pa.types.is_date(column.type):
            return sa.literal(moment.date(), sa.Date())
        if column.type.tz is None:
            return sa.literal(moment.replace(tzinfo=None), sa.DateTime())
        return sa.literal(moment, sa.DateTime(timezone=True))

    def upper(self, column: Column, micros: int, raw: Any) -> sa.ColumnElement[Any]:
        """The latest time in `column` to compare it with; `raw` is what the driver gave for it."""
        return self.bound(column, micros)

    def connect_arguments(self, timeout_seconds: int) -> Mapping[str, Any]:
        """Arguments for the driver."""
        return {}

    def check_place(self, url: sa.URL) -> None:  # noqa: B027 - most products need none
        """Raise where connecting would do harm, such as making a file."""

    def prepare(self, connection: Any) -> None:  # noqa: B027 - most products need none
        """Set up a new DBAPI connection: values must not depend on the server's habits."""

    def snapshot(self, connection: sa.Connection) -> sa.Connection:
        """`connection`, so that all that is read in its transaction is of one moment, where the product can."""
        return connection

    def abandon(self, cursor: Any) -> None:
        """Forget the rest of a result whose connection is about to be closed."""
        with contextlib.suppress(Exception):  # the line may be dead, and it ends here anyway
            cursor.close()

    @abstractmethod
    def cancel(self, connection: Any, url: sa.URL) -> None:
        """Make a call under way on a DBAPI connection fail soon; called from another thread."""

    def classify(self, error: BaseException, connecting: bool) -> type[Failure] | None:
        """Which error the driver's `error` is; None if the product's own codes do not say."""
        return None


def with_primary_key(rows: Sequence[tuple[str | None, str, str, Column, int | None]]) -> list[Table]:
    """Tables from rows (schema, table, incarnation, column, place in the primary key), in the order of columns."""
    grouped: dict[tuple[str | None, str, str], list[tuple[Column, int | None]]] = {}
    for schema, name, incarnation, column, place in rows:
        grouped.setdefault((schema, name, incarnation), []).append((column, place))
    tables = []
    for (schema, name, incarnation), columns in grouped.items():
        key = sorted((place, column.name) for column, place in columns if place)
        tables.append(
            Table(schema, name, tuple(column for column, _ in columns), tuple(name for _, name in key), incarnation)
        )
    return tables


def quoted(name: str) -> sa.sql.quoted_name:
    """A name that is always quoted, so that no product folds its case."""
    return sa.sql.quoted_name(name, quote=True)


def selectable(table: Table) -> sa.TableClause:
    """The table for use in SQL, its columns without a type: values come as the driver gives them."""
    columns: list[sa.ColumnClause[Any]] = [sa.column(quoted(column.name)) for column in table.columns]
    schema = quoted(table.schema) if table.schema else None
    return sa.table(quoted(table.name), *columns, schema=schema)
