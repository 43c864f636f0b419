"""The PostgreSQL sink: the conformance suite, and what is its own: types, tables that are there, fences, drift."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from kadds.api.change import HISTORY
from kadds.api.connector import Mode, Sink, Target
from kadds.testing.sink_contract import SinkContract
from kadds_postgres import connector
from kadds_postgres.names import quoted
from kadds_postgres.settings import PostgresSinkSettings
from tests.support.servers import DatabaseServer

assert connector.sink is not None
SIDE = connector.sink


def plain(url: str) -> str:
    """The URL as libpq takes it."""
    return url.replace("postgresql+psycopg:", "postgresql:")


def settings(url: str, **more: Any) -> PostgresSinkSettings:
    return PostgresSinkSettings.model_validate({"url": plain(url), **more})


def rows_there(url: str, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    """What somebody else sees."""
    with psycopg.connect(plain(url), autocommit=True, options="-c timezone=UTC") as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def _read(field: pa.Field) -> str:
    """SQL that gives a column in a form from which its Arrow values are made without a loss."""
    name, kind = quoted(field.name), field.type
    if pa.types.is_timestamp(kind) and kind.unit == "us":
        moment = f"({name} AT TIME ZONE 'UTC')" if kind.tz else name
        days = f"({moment}::date - '1970-01-01'::date)::numeric"  # extract(epoch) itself rounds far moments
        of_day = f"extract(epoch FROM {moment}::time) * 1000000"
        return f"({days} * 86400000000 + {of_day})::numeric(30,0)::text"
    if kind == pa.date32():
        return f"({name} - '1970-01-01'::date)::text"
    if kind == pa.time64("us"):
        return f"(extract(epoch FROM {name}) * 1000000)::numeric(30,0)::text"
    if kind == pa.binary():
        return f"encode({name}, 'hex')"
    return name if pa.types.is_list(kind) else f"{name}::text"


def _nanoseconds(text: str) -> int:
    """Nanoseconds since 1970; Arrow itself reads none of the first day that it can hold."""
    moment, _, fraction = text.removesuffix("+00").partition(".")
    seconds = (datetime.fromisoformat(moment + "+00:00") - datetime.fromtimestamp(0, UTC)) // timedelta(seconds=1)
    return seconds * 10**9 + int(fraction)


def _arrow(cells: list[Any], kind: pa.DataType) -> pa.Array:
    if kind == pa.null():
        assert set(cells) <= {None}
        return pa.nulls(len(cells))
    if kind == pa.binary():
        return pa.array([None if cell is None else bytes.fromhex(cell) for cell in cells], kind)
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.array([None if cell is None else _nanoseconds(cell) for cell in cells], pa.int64()).view(kind)
    if pa.types.is_temporal(kind):
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.array([None if cell is None else int(cell) for cell in cells], width).view(kind)
    if pa.types.is_decimal(kind):
        return pa.array([None if cell in (None, "NaN") else Decimal(cell) for cell in cells], kind)
    if pa.types.is_list(kind) or kind == pa.string():
        return pa.array(cells, kind)
    if kind == pa.bool_():
        return pa.array([None if cell is None else cell == "true" for cell in cells])
    if pa.types.is_floating(kind):
        return pa.array([None if cell is None else float(cell) for cell in cells], kind)
    return pa.array(cells, pa.string()).cast(kind)


def read_all(url: str, target: Target) -> pa.Table:
    """What the owner of the database sees, in the target's own types."""
    fields = [*target.table.arrow_schema, *(HISTORY if target.mode is Mode.APPEND else [])]
    named = target.name == target.table.qualified_name
    names = [target.table.schema or "public", target.table.name] if named else target.name.split(".", 1)
    names = names if len(names) == 2 else ["public", *names]
    columns = ", ".join(_read(field) for field in fields)
    found = rows_there(url, f"SELECT {columns} FROM {quoted(*names)}")
    cells = [list(column) for column in zip(*found, strict=True)] if found else [[] for _ in fields]
    arrays = [_arrow(values, field.type) for values, field in zip(cells, fields, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields))


class TestPostgresSink(SinkContract):
    abilities = SIDE.abilities

    @pytest.fixture(autouse=True)
    def _server(self, postgres_server: DatabaseServer) -> Iterator[None]:
        self.server = postgres_server
        self.urls: list[str] = []
        yield
        for url in self.urls:
            postgres_server.drop_database(url)

    @pytest.fixture(autouse=True)
    def _storage_of_the_test(self, _server: None, tmp_path: Path) -> Iterator[None]:
        self._begin(tmp_path)
        yield
        self._end()

    def fresh_storage(self, folder: Path) -> None:
        self.urls.append(self.server.create_database())
        self.url = self.urls[-1]

    def make_sink(self) -> Sink:
        return SIDE.open(settings(self.url))

    def read_target(self, target: Target) -> pa.Table:
        return read_all(self.url, target)
