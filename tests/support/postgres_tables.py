"""Twenty PostgreSQL tables of mixed types, keys and replica identities, whose rows are made by SQL.

Each column has an expression over `n`, the number of a row, and `v`, a version: row n of version v is the same
wherever it is made, and a hundred thousand of them take a second. A row's key follows from its number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

COMMITTED = "committed"  # the writers' own record: a row for each transaction, written by the transaction itself
_BEGIN = "'2026-01-01Z'::timestamptz"
_LARGE = "repeat(md5((n * 31 + v)::text), 300)"  # 9,600 characters, which leave the row


@dataclass(frozen=True)
class Made:
    """A column: its declaration, and the expression of its values. `large`: stored outside of the row."""

    name: str
    declared: str
    value: str
    large: bool = False


@dataclass(frozen=True)
class PostgresTable:
    """A table. `after` are statements that follow its creation, in which {table} stands for its quoted name."""

    name: str
    key: tuple[Made, ...]
    columns: tuple[Made, ...]
    rows: int
    constraint: str = "PRIMARY KEY ({key})"
    partitioned: str = ""
    after: tuple[str, ...] = field(default=())
    moves: bool = False  # a key change may take a row to another partition: a delete and an insert
    swaps: bool = False
    truncated: bool = False  # by the writers, now and then

    @property
    def key_names(self) -> tuple[str, ...]:
        """The columns that name a row."""
        return tuple(column.name for column in self.key)

    @property
    def all(self) -> tuple[Made, ...]:
        """Every column, in the table's order."""
        return (*self.key, *self.columns, Made("version", "bigint", "v"))

    def create(self) -> list[str]:
        """The statements that make it."""
        columns = ", ".join(f"{column.name} {column.declared}" for column in self.all)
        constraint = self.constraint.format(key=", ".join(self.key_names))
        inside = f"{columns}, {constraint}" if constraint else columns
        made = [f"CREATE TABLE {self.name} ({inside}) {self.partitioned}"]
        made += [
            f"ALTER TABLE {self.name} ALTER COLUMN {column.name} SET STORAGE EXTERNAL"
            for column in self.columns
            if column.large
        ]
        return [*made, *(statement.format(table=self.name) for statement in self.after)]

    def insert(self, numbers: str, *, version: int) -> str:
        """Rows of `numbers`, a relation with one column n; rows that are there already are left out."""
        names = ", ".join(column.name for column in self.all)
        values = ", ".join(column.value for column in self.all)
        known = "" if "DEFERRABLE" in self.constraint else "ON CONFLICT DO NOTHING"
        return f"INSERT INTO {self.name} ({names}) SELECT {values} FROM {_given(numbers, version)} {known}"

    def update(self, numbers: str, columns: Sequence[Made], *, version: int) -> str:
        """New values in `columns`, and the version, of the rows `numbers`."""
        set_ = ", ".join(f"{column.name} = g.{column.name}" for column in columns)
        made = ", ".join([*self._made_key(), *(f"{column.value} AS {column.name}" for column in columns)])
        return (
            f"UPDATE {self.name} AS t SET {set_}{', ' if set_ else ''}version = {version} "
            f"FROM (SELECT {made} FROM {_given(numbers, version)}) AS g WHERE {self._same_key()}"
        )

    def delete(self, numbers: str) -> str:
        """The rows `numbers`."""
        made = f"SELECT {', '.join(self._made_key())} FROM {_given(numbers, 0)}"
        return f"DELETE FROM {self.name} AS t USING ({made}) AS g WHERE {self._same_key()}"

    def change_key(self, number: int, other: int, *, version: int) -> str:
        """Row `number` gets the key of row `other`."""
        set_ = ", ".join(f"{column.name} = g.{column.name}" for column in self.key)
        new = ", ".join(f"{column.value} AS {column.name}" for column in self.key)
        old = ", ".join(self._made_key())
        return (
            f"UPDATE {self.name} AS t SET {set_}, version = {version} "
            f"FROM (SELECT {new} FROM (VALUES ({other}::bigint, 0)) AS f (n, v)) AS g, "
            f"(SELECT {old} FROM (VALUES ({number}::bigint, 0)) AS f (n, v)) AS o "
            f"WHERE {self._same_key('o')}"
        )

    def swap(self, number: int, other: int) -> str:
        """Both rows change their keys in one statement, which only a deferrable constraint allows."""
        (key,) = self.key_names
        return (
            f"UPDATE {self.name} SET {key} = CASE {key} WHEN {number} THEN {other} ELSE {number} END "
            f"WHERE {key} IN ({number}, {other})"
        )

    def _made_key(self) -> list[str]:
        return [f"{column.value} AS key_{column.name}" for column in self.key]

    def _same_key(self, alias: str = "g") -> str:
        return " AND ".join(f"t.{name} = {alias}.key_{name}" for name in self.key_names)


def _given(numbers: str, version: int) -> str:
    return f"(SELECT n::bigint AS n, {version}::bigint AS v FROM {numbers} AS numbers (n)) AS given"


_NUMBERS = (
    Made("small", "smallint", "(n * 7 + v) % 30000"),
    Made("whole", "integer", "CASE WHEN n % 11 = 0 THEN NULL ELSE n * 3 + v END"),
    Made("price", "numeric(12,2)", "CASE WHEN n % 97 = 0 THEN 'NaN' ELSE (n * 7919 + v) % 9999999 / 100.0 END"),
    Made("free", "numeric", "(n::numeric * 1e20 + v) / 7"),
    Made("real_number", "real", "CASE WHEN n % 89 = 0 THEN 'NaN' ELSE n / 3.0 + v END"),
    Made("double_number", "double precision", "CASE WHEN n % 83 = 0 THEN '-Infinity' ELSE n / 7.0 + v END"),
)
_TEXTS = (
    Made("name", "text", "CASE WHEN n % 13 = 0 THEN NULL ELSE E'Zoë \\t\"\\\\' || n || E'\\n漢字🙂,' || v END"),
    Made("short", "varchar(40)", "CASE WHEN n % 17 = 0 THEN '' ELSE 'v' || v || '''' || n END"),
    Made("fixed", "char(8)", "'c' || (n + v) % 1000"),
    Made("fine", "boolean", "CASE (n + v) % 3 WHEN 0 THEN NULL WHEN 1 THEN true ELSE false END"),
)
_TIMES = (
    Made(
        "at",
        "timestamptz",
        f"CASE WHEN n % 101 = 0 THEN 'infinity' ELSE {_BEGIN} + n * '1 s'::interval + v * '1 us'::interval END",
    ),
    Made("local", "timestamp(3)", "'1999-12-31 23:59:59.999'::timestamp + (n + v) * '7 ms'::interval"),
    Made(
        "day", "date", "CASE WHEN n % 103 = 0 THEN '0044-03-15 BC' ELSE '2024-02-29'::date + ((n + v) % 9000)::int END"
    ),
    Made("hour", "time", "'00:00'::time + (n * v) % 86400 * '1 s'::interval"),
    Made("zoned", "timetz", "('12:34:56.789+0' || (n + v) % 10)::timetz"),
    Made("span", "interval", "(n || ' months ' || v || ' days 1.5 s')::interval"),
)
_DOCUMENTS = (
    Made("document", "jsonb", "jsonb_build_object('n', n, 'v', v, 'ä', ARRAY[1.10, NULL])"),
    Made("plain", "json", "('{\"b\": 1, \"a\":  ' || v || '}')::json"),
    Made("tags", "text[]", "CASE WHEN n % 19 = 0 THEN '{}' ELSE ARRAY['a,b', NULL, 'c\"' || v, ''] END"),
    Made("matrix", "integer[]", "ARRAY[[n, v], [NULL, 3]]"),
)
_RANGES = (
    Made("span_of_numbers", "int4range", "int4range((n % 1000)::int, (n % 1000 + v % 1000 + 1)::int, '[]')"),
    Made("span_of_prices", "numrange", "CASE WHEN n % 23 = 0 THEN 'empty' ELSE numrange(n, n + v + 0.5) END"),
    Made("span_of_days", "daterange", "daterange('2026-01-01'::date + (n % 300)::int, NULL)"),
    Made("spans", "int8multirange", "int8multirange(int8range(n, n + 1), int8range(n + 5, n + 6 + v))"),
)
_ODD = (
    Made("feeling", "mood", "(ARRAY['sad', 'so ''so''', 'glücklich'])[1 + (n + v) % 3]::mood"),
    Made("address", "inet", "('10.' || n % 256 || '.' || v % 256 || '.1/24')::inet"),
    Made("flags", "bit varying(12)", "((n + v) % 4096)::int::bit(12)"),
    Made("place", "point", "point(n, v)"),
    Made("words", "tsvector", "to_tsvector('simple', 'word' || n || ' other' || v)"),
    Made("bytes", "bytea", "decode(md5(n::text || v), 'hex')"),
)
_LARGE_ONES = (
    Made("big", "text", _LARGE, large=True),
    Made("big_bytes", "bytea", f"convert_to({_LARGE}, 'UTF8')", large=True),
    Made("big_document", "jsonb", f"CASE WHEN n % 5 > 0 THEN jsonb_build_object('a', {_LARGE}) END", large=True),
    Made("small", "text", "'small ' || v"),
)

_FULL = "ALTER TABLE {table} REPLICA IDENTITY FULL"
_ID = Made("id", "bigint", "n")
_WORD = Made("word", "text", "'wörd ' || n")
_MOOD = Made("mood", "mood", "(ARRAY['sad', 'so ''so''', 'glücklich'])[1 + n % 3]::mood")
_REGION = Made("region", "integer", "(n % 3)::int")
TYPES = ("CREATE TYPE mood AS ENUM ('sad', 'so ''so''', 'glücklich')",)

TABLES: tuple[PostgresTable, ...] = (
    PostgresTable("orders", (_ID,), _NUMBERS, 19_000),
    PostgresTable("customers", (Made("id", "integer", "n::int"),), _TEXTS, 12_000),
    PostgresTable("words", (_WORD,), (_NUMBERS[2], _TIMES[0]), 8_000),
    PostgresTable("sessions", (Made("id", "uuid", "md5(n::text)::uuid"),), _TIMES, 8_000),
    PostgresTable("lines", (_REGION, Made("code", "text", "'c' || n")), (*_TEXTS, _DOCUMENTS[0]), 8_000),
    PostgresTable("accounts", (Made("number", "numeric(20,0)", "n * 1000000007"),), _NUMBERS, 5_000, truncated=True),
    PostgresTable("events", (Made("at", "timestamptz", f"{_BEGIN} + n * '1 ms'::interval"), _ID), _TEXTS, 5_000),
    PostgresTable(
        "triples",
        (_ID, Made("part", "smallint", "n % 7"), Made("code", "varchar(9)", "'t' || n % 99")),
        (_TIMES[5],),
        5_000,
    ),
    PostgresTable("documents", (_ID,), _DOCUMENTS, 5_000),
    PostgresTable("bookings", (_ID,), _RANGES, 5_000, truncated=True),
    PostgresTable("blobs", (Made("digest", "bytea", "decode(md5(n::text), 'hex')"),), (_ODD[5], _TEXTS[0]), 3_000),
    PostgresTable("moods", (_MOOD, _ID), _ODD, 3_000),
    PostgresTable(
        "days", (Made("day", "date", "date '2000-01-01' + (n % 2900000)::int"),), (_TEXTS[1], _NUMBERS[3]), 3_000
    ),
    PostgresTable("large", (_ID,), _LARGE_ONES, 250),
    PostgresTable("large_full", (_ID,), _LARGE_ONES, 250, after=(_FULL,)),
    PostgresTable("full_rows", (_ID,), (*_TEXTS, *_NUMBERS), 2_480, after=(_FULL,)),
    PostgresTable(
        "indexed",
        (Made("code", "text NOT NULL", "'i' || n"),),
        (_TIMES[2], _DOCUMENTS[2]),
        3_000,
        constraint="",
        after=(
            "CREATE UNIQUE INDEX indexed_code ON {table} (code)",
            "ALTER TABLE {table} REPLICA IDENTITY USING INDEX indexed_code",
        ),
    ),
    PostgresTable(
        "parted",
        (_REGION, _ID),
        (_TEXTS[0], _NUMBERS[2]),
        4_000,
        partitioned="PARTITION BY LIST (region)",
        moves=True,
        truncated=True,
        after=tuple(f"CREATE TABLE {{table}}_{n} PARTITION OF {{table}} FOR VALUES IN ({n})" for n in range(3)),
    ),
    PostgresTable(
        "places",
        (_ID,),
        (_TEXTS[0], _NUMBERS[1]),
        1_000,
        constraint="PRIMARY KEY ({key}) DEFERRABLE",
        swaps=True,
        after=(_FULL,),
    ),
    PostgresTable("hot", (_ID,), (_TEXTS[0], _NUMBERS[1]), 20),
)


def scaled(rows: int) -> tuple[PostgresTable, ...]:
    """The same tables with about `rows` rows in all."""
    whole = sum(table.rows for table in TABLES)
    return tuple(replace(table, rows=max(20, table.rows * rows // whole)) for table in TABLES)


def make(url: str, tables: Sequence[PostgresTable]) -> None:
    """Create the tables with their rows, and the writers' record."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in TYPES:
            connection.execute(sql.SQL(statement))
        connection.execute(
            f"CREATE TABLE {COMMITTED} (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, xid text, writer text, "
            "rows jsonb)"
        )
        for table in tables:
            for statement in table.create():
                connection.execute(statement)
            connection.execute(table.insert(f"generate_series(1, {table.rows})", version=0))
