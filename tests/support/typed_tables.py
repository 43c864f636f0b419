"""Tables of mixed types in PostgreSQL and MariaDB: their columns, their values, and how to read them exactly.

This knows for each type of a product what Arrow type holds its values, and reads them with the product's own driver:
independently of Kadds, so that it can judge it. Each table has a second one, fed by triggers, that records what
happened to it; for part of the tables it is also what Kadds is given to poll.
"""

import datetime as dt
import json
import random
import string
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any

import psycopg
import pyarrow as pa
import pymysql
import sqlalchemy

_LETTERS = string.ascii_letters + string.digits + " '\"\\%_;,|{}\n\t" + "äßÉ€漢字🙂\u0301\u200dﬀ"
_INTEGERS = {"int8": 8, "int16": 16, "int24": 24, "int32": 32, "int64": 64}


class Way(Enum):
    """How Kadds is told to poll a table."""

    CHANGE_TABLE = "change table"
    TIMESTAMP = "timestamp"
    INCREMENTING = "incrementing"
    BOTH = "incrementing and timestamp"


@dataclass(frozen=True)
class Kind:
    """A type of a column: as declared, as Arrow, and its values. `read` is the SQL by which the judge reads it."""

    declared: str
    arrow: pa.DataType
    make: Callable[[random.Random], Any]
    read: str = "{}"
    from_driver: Callable[[Any], Any] = lambda value: value


def _integers(bits: int, signed: bool = True) -> Callable[[random.Random], int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return lambda rng: rng.choice([low, high, 0, 1, rng.randint(low, high), rng.randint(max(low, -99), 99)])


def _decimals(precision: int, scale: int) -> Callable[[random.Random], Decimal]:
    def make(rng: random.Random) -> Decimal:
        digits = rng.choice([precision, precision, rng.randint(1, precision)])
        unscaled = rng.choice([rng.randint(0, 10**digits - 1), 10**digits - 1, 0])
        return Decimal((rng.randint(0, 1), tuple(map(int, str(unscaled))), -scale))

    return make


def _doubles(rng: random.Random) -> float:
    bits: float = struct.unpack("<d", rng.randbytes(8))[0]
    finite = bits if bits == bits and abs(bits) < 1e308 else 0.1
    return rng.choice([finite, rng.uniform(-1e6, 1e6), 0.1, -0.0, 5e-324, 1.7976931348623157e308])


def _floats(rng: random.Random) -> float:
    value = rng.choice([rng.uniform(-1e6, 1e6), 0.1, 16777217.0, 3.4e38, 1e-30, 1 / 3])
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _or_special(make: Callable[[random.Random], float]) -> Callable[[random.Random], float]:
    return lambda rng: rng.choice([float("inf"), float("-inf"), float("nan")]) if rng.random() < 0.1 else make(rng)


def text(rng: random.Random, length_max: int = 60) -> str:
    """Letters of many kinds, also none."""
    return "".join(rng.choices(_LETTERS, k=rng.choice([0, 1, rng.randint(2, length_max)])))


def _dates(rng: random.Random, first: int = 1) -> dt.date:
    return rng.choice(
        [dt.date(first, 1, 1), dt.date(9999, 12, 31), dt.date(2024, 2, 29), dt.date(2026, 1, 1) + _days(rng)]
    )


def _days(rng: random.Random) -> dt.timedelta:
    return dt.timedelta(days=rng.randint(-40_000, 40_000))


def _times(rng: random.Random) -> dt.time:
    micros = rng.choice([0, 999_999, 1, rng.randint(0, 999_999)])
    return dt.time(rng.randint(0, 23), rng.randint(0, 59), rng.randint(0, 59), micros)


def _moments(rng: random.Random, first: int = 1) -> dt.datetime:
    return dt.datetime.combine(_dates(rng, first), _times(rng))


def _unix_moments(rng: random.Random) -> dt.datetime:
    """What a TIMESTAMP of MariaDB holds: 1970 to 2038."""
    seconds = dt.timedelta(seconds=rng.randint(0, 2_145_000_000), microseconds=rng.randint(0, 999_999))
    return dt.datetime.combine(dt.date(1970, 1, 2), dt.time.min) + seconds


def _json(rng: random.Random) -> str:
    plain = {text(rng, 8): rng.choice([None, 1.5, True, text(rng), [1, {"a": "ß"}]]) for _ in range(rng.randint(0, 3))}
    return json.dumps(plain, ensure_ascii=rng.random() < 0.5)


def _uuids(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _utc(value: dt.datetime) -> dt.datetime:
    return value.replace(tzinfo=dt.UTC)


def _time_of(value: dt.timedelta) -> dt.time:
    return (dt.datetime.combine(dt.date.min, dt.time.min) + value).time()


_TEXT = pa.string()
_UTC = pa.timestamp("us", "UTC")

POSTGRES = (
    Kind("smallint", pa.int16(), _integers(16)),
    Kind("integer", pa.int32(), _integers(32)),
    Kind("bigint", pa.int64(), _integers(64)),
    Kind("numeric(12,2)", pa.decimal128(12, 2), _decimals(12, 2)),
    Kind("numeric(38,10)", pa.decimal128(38, 10), _decimals(38, 10)),
    Kind("numeric(60,20)", pa.decimal256(60, 20), _decimals(60, 20)),
    Kind("numeric", _TEXT, lambda rng: _decimals(rng.randint(12, 90), rng.randint(0, 12))(rng), "{}::text"),
    Kind("real", pa.float32(), _or_special(_floats)),
    Kind("double precision", pa.float64(), _or_special(_doubles)),
    Kind("boolean", pa.bool_(), lambda rng: rng.random() < 0.5),
    Kind("text", _TEXT, text),
    Kind("varchar(80)", _TEXT, text),
    Kind("char(10)", _TEXT, lambda rng: text(rng, 10)),
    Kind("bytea", pa.binary(), lambda rng: rng.randbytes(rng.choice([0, 1, 300]))),
    Kind("date", pa.date32(), _dates),
    Kind("time", pa.time64("us"), _times),
    Kind("timestamp", pa.timestamp("us"), _moments),
    Kind("timestamptz", _UTC, lambda rng: _utc(_moments(rng))),
    Kind("timestamp(3)", pa.timestamp("us"), _moments),
    Kind("uuid", _TEXT, _uuids, "{}::text"),
    Kind("json", _TEXT, _json, "{}::text"),
    Kind("jsonb", _TEXT, _json, "{}::text"),
    Kind("interval", _TEXT, lambda rng: f"{rng.randint(-9, 9)} months {rng.randint(-9999, 9999)} seconds", "{}::text"),
    Kind("text[]", _TEXT, lambda rng: [text(rng, 9) for _ in range(rng.randint(0, 3))], "{}::text"),
    Kind("inet", _TEXT, lambda rng: f"10.0.{rng.randint(0, 255)}.{rng.randint(0, 255)}/16", "{}::text"),
)

MARIADB = (
    Kind("tinyint", pa.int8(), _integers(8)),
    Kind("tinyint unsigned", pa.uint8(), _integers(8, signed=False)),
    Kind("smallint", pa.int16(), _integers(16)),
    Kind("mediumint", pa.int32(), _integers(24)),
    Kind("int unsigned", pa.uint32(), _integers(32, signed=False)),
    Kind("int", pa.int32(), _integers(32)),
    Kind("bigint", pa.int64(), _integers(64)),
    Kind("bigint unsigned", pa.uint64(), _integers(64, signed=False)),
    Kind("decimal(12,2)", pa.decimal128(12, 2), _decimals(12, 2)),
    Kind("decimal(38,10)", pa.decimal128(38, 10), _decimals(38, 10)),
    Kind("decimal(60,20)", pa.decimal256(60, 20), _decimals(60, 20)),
    Kind("float", pa.float32(), _floats, "CAST({} AS DOUBLE)"),
    Kind("double", pa.float64(), _doubles),
    Kind("boolean", pa.int8(), lambda rng: rng.randint(0, 1)),
    Kind("bit(1)", pa.bool_(), lambda rng: rng.randint(0, 1), "{} + 0", bool),
    Kind("char(10)", _TEXT, lambda rng: text(rng, 10)),
    Kind("varchar(80)", _TEXT, text),
    Kind("longtext", _TEXT, lambda rng: text(rng, 500)),
    Kind("enum('small','größer','x,y')", _TEXT, lambda rng: rng.choice(["small", "größer", "x,y"])),
    Kind("varbinary(300)", pa.binary(), lambda rng: rng.randbytes(rng.choice([0, 1, 300]))),
    Kind("blob", pa.binary(), lambda rng: rng.randbytes(rng.choice([0, 1, 900]))),
    Kind("date", pa.date32(), lambda rng: _dates(rng, 1000)),
    Kind("time(6)", pa.time64("us"), _times, from_driver=_time_of),
    Kind("datetime(6)", pa.timestamp("us"), lambda rng: _moments(rng, 1000)),
    Kind("timestamp(6)", _UTC, _unix_moments, from_driver=_utc),
    Kind("year", pa.uint16(), lambda rng: rng.randint(1901, 2155)),
    Kind("uuid", _TEXT, _uuids),
    Kind("json", _TEXT, _json),
)


@dataclass(frozen=True)
class TypedColumn:
    """A column of a table."""

    name: str
    kind: Kind
    required: bool = False


@dataclass(frozen=True)
class TypedTable:
    """A table. Rows have a number; `key_of` turns it into the key, `version` is another in every change."""

    name: str
    way: Way
    columns: tuple[TypedColumn, ...]
    key: tuple[str, ...]

    @property
    def record(self) -> str:
        """The table in which triggers write down what happens to this one."""
        return f"{self.name} changes"

    @property
    def sees_deletes(self) -> bool:
        """Whether Kadds can be told of a delete."""
        return self.way is Way.CHANGE_TABLE

    @property
    def numbered(self) -> bool:
        """Whether the database gives the rows their numbers."""
        return self.way in (Way.INCREMENTING, Way.BOTH)

    @property
    def own(self) -> tuple[TypedColumn, ...]:
        """The columns beside key, version and time of change."""
        return tuple(column for column in self.columns if column.name not in (*self.key, "version", "changed_at"))

    @property
    def timed(self) -> bool:
        """Whether it has the column `changed_at`."""
        return self.way in (Way.TIMESTAMP, Way.BOTH)

    def key_of(self, number: int) -> tuple[Any, ...]:
        """The key of row `number`."""
        values = (number, f"k{number % 7} ß", str(uuid.UUID(int=number, version=4)))
        kinds = {column.name: column.kind.arrow for column in self.columns}
        if len(self.key) == 2:
            return values[:2]
        return (values[2],) if kinds[self.key[0]] == _TEXT else (number,)

    def settings(self, change_table: str) -> dict[str, Any]:
        """What Kadds' configuration says of the table."""
        overlap = {"overlap": 5_000, "overlap_seconds": 60}
        if self.way is Way.CHANGE_TABLE:
            return {"change_table": {"table": change_table, "sequence": "sequence", "op": "op"}, "overlap": 5_000}
        by = {"incrementing": self.key[0]} if self.numbered else {}
        if self.timed:
            by["timestamp"] = "changed_at"
        return {**by, **overlap} if self.timed else {**by, "overlap": 5_000}


class Product:
    """What the two products do differently."""

    name: str
    kinds: tuple[Kind, ...]
    number: Kind  # of version and of keys
    auto_number: str
    key_text: Kind
    key_uuid: Kind
    changed_at: Kind
    clock: str

    def __init__(self, url: str) -> None:
        self.url = sqlalchemy.make_url(url)

    @property
    def schema(self) -> str:
        """The schema in which the tables stand, as Kadds names it."""
        raise NotImplementedError

    def connect(self) -> Any:
        """A connection in which statements are one transaction until `commit`."""
        raise NotImplementedError

    def quoted(self, name: str) -> str:
        """A name as SQL."""
        raise NotImplementedError

    def triggers(self, table: TypedTable) -> Iterator[str]:
        """Statements that make the triggers which fill the record."""
        raise NotImplementedError

    def collides(self, error: Exception) -> bool:
        """Whether another transaction was in the way: a deadlock, or a key that it has just taken."""
        raise NotImplementedError

    def tables(self, count: int) -> list[TypedTable]:
        """`count` tables in which every type stands several times, every way of polling and every kind of key."""
        return [self._table(number) for number in range(count)]

    def _table(self, number: int) -> TypedTable:
        ways = (Way.CHANGE_TABLE, Way.TIMESTAMP, Way.CHANGE_TABLE, Way.INCREMENTING, Way.BOTH)
        way = ways[number % len(ways)]
        width = 4 + number % 9
        chosen = [self.kinds[(number * 3 + place) % len(self.kinds)] for place in range(width)]
        names = ("value {0}", "Größe{0}", "c{0}", "列 {0}", 'a "b" {0}')
        own = [TypedColumn(names[(number + place) % 5].format(place), kind) for place, kind in enumerate(chosen)]
        keys = self._keys(way, number)
        own += [TypedColumn("version", self.number, required=True)]
        if way in (Way.TIMESTAMP, Way.BOTH):
            own.append(TypedColumn("changed_at", self.changed_at, required=True))
        # The key does not always stand first.
        columns = (*own[:2], *keys, *own[2:]) if number % 3 == 0 else (*keys, *own)
        name = (f"orders_{number:02}", f"Mixed Case {number:02}", f"größe_{number:02}", f"表 {number:02}")[number % 4]
        return TypedTable(name, way, columns, tuple(column.name for column in keys))

    def _keys(self, way: Way, number: int) -> list[TypedColumn]:
        if way in (Way.INCREMENTING, Way.BOTH):
            return [TypedColumn("id", self.number, required=True)]
        return [
            [TypedColumn("id", self.number, True), TypedColumn("code", self.key_text, True)],
            [TypedColumn("id", self.number, True)],
            [TypedColumn("key", self.key_uuid, True)],
        ][number % 3]

    def create(self, table: TypedTable) -> Iterator[str]:
        """Statements that make the table, its record, and the triggers between them."""
        definitions = [self._definition(table, column) for column in table.columns]
        key = ", ".join(map(self.quoted, table.key))
        yield f"CREATE TABLE {self.quoted(table.name)} ({', '.join(definitions)}, PRIMARY KEY ({key}))"
        if table.timed:
            yield f"CREATE INDEX {self.quoted(table.name + ' at')} ON {self.quoted(table.name)} (changed_at)"
        recorded = [
            f"{self.quoted(c.name)} {c.kind.declared} {'NOT NULL' if c.required else 'NULL'}" for c in table.columns
        ]
        yield (
            f"CREATE TABLE {self.quoted(table.record)} "
            f"(sequence {self.auto_number} PRIMARY KEY, op char(1) NOT NULL, {', '.join(recorded)})"
        )
        yield from self.triggers(table)

    def _definition(self, table: TypedTable, column: TypedColumn) -> str:
        if table.numbered and column.name in table.key:
            return f"{self.quoted(column.name)} {self.auto_number}"
        return f"{self.quoted(column.name)} {column.kind.declared} {'NOT NULL' if column.required else 'NULL'}"

    # ---------------------------------------------------------------------------------------------- reading

    def read(self, connection: Any, table: TypedTable) -> pa.Table:
        """The table as it is now, exactly."""
        return self._read(connection, table.name, table.columns)

    def read_record(self, connection: Any, table: TypedTable) -> pa.Table:
        """What happened to the table: its columns, `op` in Kadds' letters, and `sequence`."""
        op = Kind("", _TEXT, text, from_driver={"I": "c", "U": "u", "D": "d"}.__getitem__)
        extra = (TypedColumn("op", op), TypedColumn("sequence", self.number))
        return self._read(connection, table.record, (*table.columns, *extra))

    def _read(self, connection: Any, name: str, columns: Sequence[TypedColumn]) -> pa.Table:
        expressions = [column.kind.read.format(self.quoted(column.name)) for column in columns]
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(expressions)} FROM {self.quoted(name)}")
            rows = cursor.fetchall()
        connection.commit()
        arrays = []
        for place, column in enumerate(columns):
            convert = column.kind.from_driver
            values = [None if row[place] is None else convert(row[place]) for row in rows]
            arrays.append(pa.array(values, column.kind.arrow))
        return pa.Table.from_arrays(arrays, names=[column.name for column in columns])


class Postgres(Product):
    """PostgreSQL by psycopg."""

    name = "postgres"
    kinds = POSTGRES
    number = Kind("bigint", pa.int64(), _integers(64))
    auto_number = "bigserial"
    key_text = Kind("varchar(40)", _TEXT, text)
    key_uuid = Kind("uuid", _TEXT, _uuids, "{}::text")
    changed_at = Kind("timestamptz", _UTC, _unix_moments)
    clock = "clock_timestamp()"

    @property
    def schema(self) -> str:
        return "public"

    def connect(self) -> Any:
        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        return psycopg.connect(url, options="-c timezone=UTC -c intervalstyle=postgres -c datestyle=ISO")

    def quoted(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def triggers(self, table: TypedTable) -> Iterator[str]:
        record, name = self.quoted(table.record), self.quoted(table.name)
        columns = ", ".join(self.quoted(column.name) for column in table.columns)
        new, old = (", ".join(f"{row}.{self.quoted(c.name)}" for c in table.columns) for row in ("NEW", "OLD"))
        function = self.quoted(f"{table.name} record")
        yield (
            f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF TG_OP = 'DELETE' THEN INSERT INTO {record} (op, {columns}) VALUES ('D', {old}); "
            f"ELSE INSERT INTO {record} (op, {columns}) VALUES (left(TG_OP, 1), {new}); END IF; RETURN NULL; END $$"
        )
        yield (
            f"CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON {name} "
            f"FOR EACH ROW EXECUTE FUNCTION {function}()"
        )

    def collides(self, error: Exception) -> bool:
        return isinstance(error, psycopg.errors.DeadlockDetected | psycopg.errors.UniqueViolation)


class Mariadb(Product):
    """MariaDB by PyMySQL."""

    name = "mariadb"
    kinds = MARIADB
    number = Kind("bigint", pa.int64(), _integers(64))
    auto_number = "bigint NOT NULL AUTO_INCREMENT"
    key_text = Kind("varchar(40) COLLATE utf8mb4_bin", _TEXT, text)
    key_uuid = Kind("uuid", _TEXT, _uuids)
    changed_at = Kind("timestamp(6)", _UTC, _unix_moments, from_driver=_utc)
    clock = "SYSDATE(6)"

    @property
    def schema(self) -> str:
        return str(self.url.database)

    def connect(self) -> Any:
        return pymysql.connect(
            host=self.url.host,
            port=self.url.port or 3306,
            user=self.url.username,
            password=self.url.password or "",
            database=self.schema,
            charset="utf8mb4",
            init_command="SET time_zone = '+00:00'",
        )

    def quoted(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def triggers(self, table: TypedTable) -> Iterator[str]:
        columns = ", ".join(self.quoted(column.name) for column in table.columns)
        for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            values = ", ".join(f"{row}.{self.quoted(column.name)}" for column in table.columns)
            yield (
                f"CREATE TRIGGER {self.quoted(f'{table.name} {event}')} AFTER {event} ON {self.quoted(table.name)} "
                f"FOR EACH ROW INSERT INTO {self.quoted(table.record)} (op, {columns}) VALUES ('{event[0]}', {values})"
            )

    def collides(self, error: Exception) -> bool:
        return isinstance(error, pymysql.err.MySQLError) and error.args[0] in (1213, 1205, 1020, 1062)
