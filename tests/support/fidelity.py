"""The grid of fidelity: every kind of value × its route × the sink it reaches, each cell equal or refused by a rule.

One table of the source carries one kind, so that a refusal concerns one table; a value that a sink may refuse has a
table for each route. The judge reads every sink with a reader of its own and compares with what PostgreSQL itself
writes: the text where a value travels as text, the value by its type where it is typed. A cell that is neither equal
nor refused by one of `RULES` is silently different, and that is what the grid is made to find.
"""

import base64
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import date
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.kadds_process import Finished, Kadds
from tests.support.postgres_values import MADE_LATER, MAKE, SCHEMA, Kind, extensions, literal
from tests.support.targets import Lake

Connection = psycopg.Connection[tuple[Any, ...]]

_IDS_PER_ROUTE = 1_000
_MOMENT = re.compile(r"(?:(-?\d+)-(\d\d)-(\d\d))?[ T]?(?:(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?(?:\+00|Z)?( BC)?")

#: How the judge's own sessions write values, whatever a database or a role says.
JUDGE = (
    "SET datestyle = ISO",
    "SET timezone = 'UTC'",
    "SET intervalstyle = postgres",
    "SET extra_float_digits = 3",
    "SET bytea_output = hex",
    "SET lc_monetary = 'C'",
    "SET client_encoding = 'UTF8'",
    "SET search_path = ''",
    "SET array_nulls = on",
    "SET quote_all_identifiers = off",
    "SET standard_conforming_strings = on",
    "SET xmloption = content",
)


class Route(Enum):
    """How a value comes into the log."""

    SNAPSHOT = "snapshot"
    INSERT = "stream insert"
    UPDATE = "stream update"
    UNCHANGED = "update of another column"  # what is stored out of line is not given
    KEY = "as the key of updates and deletes"


STREAMED = (Route.INSERT, Route.UPDATE)
_KEYS_FIRST = ("bytea", "character(10)", "numeric(12,2)", "text", "timestamp with time zone", "uuid", f"{SCHEMA}.mood")
_KEY_LENGTH_MAX = 500  # of a value; an entry of an index is much smaller than a cell


class Sink(Enum):
    """Where it goes, by the name that the grid prints."""

    POSTGRES = "PostgreSQL"
    DUCKDB = "DuckDB"
    PARQUET = "Parquet"
    JSON = "JSON lines"

    @property
    def key(self) -> str:
        """The name in the configuration."""
        return self.name.lower()

    @property
    def merges(self) -> bool:
        """Whether it finds rows by their key; a history does not."""
        return self in (Sink.POSTGRES, Sink.DUCKDB)


@dataclass(frozen=True)
class Rule:
    """A refusal that may be, of values beyond the Arrow form of their type: in these sinks, told in these words."""

    name: str
    sinks: tuple[Sink, ...]
    words: str


RULES = (
    Rule("a typed column holds no text", (Sink.DUCKDB, Sink.PARQUET), "cannot hold '"),
    Rule("a key is typed", (Sink.POSTGRES, Sink.DUCKDB), "is part of the key, and the change at offset"),
)


class Outcome(Enum):
    """What became of a cell."""

    EQUAL = "equal"
    REFUSED = "refused"
    DIFFERENT = "DIFFERENT"


@dataclass(frozen=True)
class Verdict:
    """Of one cell: the rule that refused it, or what the sink has instead of what it should."""

    kind: str
    route: Route
    sink: Sink
    outcome: Outcome
    text: str | None
    why: str = ""


@dataclass(frozen=True)
class Sample:
    """One table: a kind, and which of its values take which routes."""

    number: int
    kind: Kind
    values: Mapping[Route, tuple[str | None, ...]]
    beyond: bool = False

    @property
    def name(self) -> str:
        """The table's, in `SCHEMA`."""
        return f"{'k' if self.is_key else 't'}{self.number:04}"

    @property
    def is_key(self) -> bool:
        """Whether the value is the table's key."""
        return Route.KEY in self.values

    @property
    def qualified_name(self) -> str:
        """As Kadds calls it."""
        return f"{SCHEMA}.{self.name}"

    def rows(self, *routes: Route) -> Iterator[tuple[int, str | None]]:
        """The ids and values of these routes; ids say the route."""
        for route in routes:
            first = list(Route).index(route) * _IDS_PER_ROUTE
            yield from enumerate(self.values.get(route, ()), first)

    def before_update(self, value: str | None) -> str | None:
        """What a row holds that is to become `value`."""
        usual = self.kind.values[0] if self.kind.values and not self.beyond else None
        return None if value == usual else usual


def route_of(row_id: int) -> Route:
    """By which route the row's value came."""
    return list(Route)[row_id // _IDS_PER_ROUTE]


def samples(kinds: Sequence[Kind], *, quick: bool = False) -> list[Sample]:
    """Two tables for each kind, in one it is the key, and one for each route of each value that may be refused.

    `quick` leaves out most keys, and all but one of a kind's values that may be refused.
    """
    found: list[Sample] = []
    for kind in kinds:
        is_key = not quick or kind.declared in _KEYS_FIRST
        usual = (*kind.values, None)
        values: dict[Route, tuple[str | None, ...]] = {
            route: usual + (kind.later if route in STREAMED else ()) for route in Route if route is not Route.KEY
        }
        found.append(Sample(len(found), kind, values))
        if is_key:
            short = tuple(value for value in kind.values if len(value) <= _KEY_LENGTH_MAX)
            found.append(Sample(len(found), kind, {Route.KEY: short}))
        for value in kind.beyond[: 1 if quick else None]:
            for route in (Route.SNAPSHOT, *STREAMED[quick:], *([Route.KEY] if is_key else [])):
                found.append(Sample(len(found), kind, {route: (value,)}, beyond=True))
    return found


# ------------------------------------------------------------------------------------------------- what the source does


def prepare(connection: Connection, some: Sequence[Sample]) -> list[Sample]:
    """Tables, and the rows that a snapshot finds; the samples without keys of a type that cannot be one."""
    made = []
    for sample in some:
        id_key, value_key = ("", " PRIMARY KEY") if sample.is_key else (" PRIMARY KEY", "")
        columns = f"id integer{id_key}, touched integer, v {sample.kind.declared}{value_key}"
        rows = [*sample.rows(Route.SNAPSHOT, Route.UNCHANGED, Route.KEY)]
        rows += [(row_id, sample.before_update(value)) for row_id, value in sample.rows(Route.UPDATE)]
        try:
            connection.execute(f"CREATE TABLE {sample.qualified_name} ({columns})")
            _insert(connection, sample, rows)
        except (psycopg.errors.UndefinedObject, psycopg.errors.UndefinedFunction):  # the type has no order
            assert sample.is_key
            connection.execute(f"DROP TABLE IF EXISTS {sample.qualified_name}")
            continue
        made.append(sample)
    return made


def change(connection: Connection, some: Sequence[Sample]) -> None:
    """What the stream carries."""
    first, first_of_keys = (list(Route).index(route) * _IDS_PER_ROUTE for route in (Route.UNCHANGED, Route.KEY))
    for sample in some:
        table = sample.qualified_name
        _insert(connection, sample, [*sample.rows(Route.INSERT)])
        if updated := [*sample.rows(Route.UPDATE)]:
            cases = " ".join(f"WHEN {row_id} THEN {_sql(sample, value)}" for row_id, value in updated)
            ids = ", ".join(str(row_id) for row_id, _ in updated)
            connection.execute(f"UPDATE {table} SET v = CASE id {cases} END WHERE id IN ({ids})")
        connection.execute(f"UPDATE {table} SET touched = 1 WHERE id >= {first}")
        connection.execute(f"DELETE FROM {table} WHERE id > {first_of_keys} AND id % 2 = 0")


def _insert(connection: Connection, sample: Sample, rows: Sequence[tuple[int, str | None]]) -> None:
    """Two values that are one as a key are inserted once."""
    if rows:
        values = ", ".join(f"({row_id}, 0, {_sql(sample, value)})" for row_id, value in rows)
        more = " ON CONFLICT DO NOTHING" if sample.is_key else ""
        connection.execute(f"INSERT INTO {sample.qualified_name} (id, touched, v) VALUES {values}{more}")


def _sql(sample: Sample, value: str | None) -> str:
    return f"CAST({literal(value)} AS {sample.kind.declared})"


# ------------------------------------------------------------------------------------------------ what the judge reads


@dataclass(frozen=True)
class Found:
    """A row as a sink has it: the cell as PostgreSQL's text, as an Arrow scalar, or as JSON with its type's name."""

    value: Any
    touched: int | None = 0
    json_type: str = ""

    def same(self, text: str | None) -> bool:
        """Whether it is the value that PostgreSQL writes as `text`."""
        if self.json_type:
            return same_json(self.value, self.json_type, text)
        return same_arrow(self.value, text) if isinstance(self.value, pa.Scalar) else bool(self.value == text)

    def __str__(self) -> str:
        return f"{self.value!r}"[:200] + (f", touched {self.touched}" if self.touched != 0 else "")


def postgres_rows(connection: Connection, table: str) -> dict[int, Found] | None:
    """Each row as the server writes it, no driver between; None where there is no table."""
    result = connection.pgconn.exec_(f"SELECT id, v, touched FROM {table}".encode())
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        if b"does not exist" in result.error_message:
            return None
        raise AssertionError(result.error_message.decode())
    cells = [[result.get_value(row, column) for column in range(3)] for row in range(result.ntuples)]
    return _by_id(
        (row_id, Found(None if value is None else value.decode(), None if touched is None else int(touched)))
        for row_id, value, touched in cells
    )


def _by_id(rows: Iterable[tuple[Any, Found]]) -> dict[int, Found]:
    """The rows by their id; one of which there are two is none that was asked for."""
    found: dict[int, Found] = {}
    for row_id, row in rows:
        found[int(row_id)] = Found("two rows", None) if int(row_id) in found else row
    return found


def postgres_tables(url: str, names: Sequence[str]) -> dict[str, dict[int, Found]]:
    """The tables that there are, as `postgres_rows`."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in JUDGE:
            connection.execute(statement)
        read = {name: postgres_rows(connection, name) for name in names}
    return {name: rows for name, rows in read.items() if rows is not None}


def _in_duckdb(path: Path) -> dict[str, dict[int, Found]]:
    found: dict[str, dict[int, Found]] = {}
    if not path.exists():
        return found
    with closing(duckdb.connect(str(path), read_only=True, config={"threads": 1})) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for schema, name in connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall():
            if schema == SCHEMA:
                table = connection.sql(f'SELECT id, v, touched FROM "{schema}"."{name}"').to_arrow_table()
                found[f"{schema}.{name}"] = _by_id(_rows(table))
    return found


def _rows(table: pa.Table) -> Iterator[tuple[int, Found]]:
    touched = table["touched"].to_pylist()
    yield from zip(table["id"].to_pylist(), map(Found, table["v"], touched), strict=True)


def _in_files(folder: Path) -> dict[str, dict[int, Found]]:
    """The histories, replayed: a row is as its last change says, with the value of the last that gave one."""
    lake, found = Lake(folder), dict[str, dict[int, Found]]()
    for entry in lake.entries():
        rows = found.setdefault(entry["target"], {})
        path = folder / entry["path"]
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            not_given = table["_kadds_not_given"].to_pylist()
            for (row_id, row), missing in zip(_rows(table), not_given, strict=True):
                rows[row_id] = replace(row, value=rows[row_id].value) if "v" in (missing or ()) else row
            continue
        columns = json.loads((path.parent / "_schema.json").read_text(encoding="utf-8"))["columns"]
        json_type = next(column["type"] for column in columns if column["name"] == "v")
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                plain = json.loads(line, parse_float=_Number, parse_int=_Number)
                row_id = int(plain["id"])
                value = plain["v"] if "v" in plain else rows[row_id].value
                rows[row_id] = Found(value, int(plain["touched"]), json_type)
    return found


class _Number(str):
    """A number of JSON, digit by digit."""

    __slots__ = ()


# ------------------------------------------------------------------------------------------------- what counts as equal


def same_arrow(value: pa.Scalar, text: str | None) -> bool:
    """Whether an Arrow value is the one that PostgreSQL writes as `text`."""
    if text is None or not value.is_valid:
        return text is None and not value.is_valid
    kind, plain = value.type, value.as_py() if not pa.types.is_temporal(value.type) else value.value
    if pa.types.is_temporal(kind):
        return bool(plain == _moment(text, pa.types.is_date(kind)))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return text.startswith("\\x") and bytes.fromhex(text[2:]) == plain
    if pa.types.is_boolean(kind):
        return {"t": True, "f": False}[text] is plain
    if pa.types.is_floating(kind):
        return _same_float(plain, text, kind.bit_width)
    if pa.types.is_decimal(kind):
        return f"{plain:f}" == text
    return str(plain) == text


def same_json(value: Any, json_type: str, text: str | None) -> bool:
    """Whether a value of JSON lines, in a column of this type of the log, is the one that PostgreSQL writes so."""
    if text is None or value is None:
        return text is value
    if json_type == "bool":
        return {"t": True, "f": False}[text] is value
    if json_type.startswith("float"):
        return _same_float(float(value), text, int(json_type.removeprefix("float")))
    if isinstance(value, _Number) or value == text:
        return isinstance(value, _Number) == json_type.lstrip("u").startswith("int") and value == text
    if json_type == "binary":
        return base64.b64decode(value, validate=True) == bytes.fromhex(text[2:])
    if json_type.startswith(("date", "time")):
        wanted = _moment(text, json_type.startswith("date"))
        return wanted is not None and _moment(value, json_type.startswith("date")) == wanted
    return False


def _same_float(value: float, text: str, bits: int) -> bool:
    number, form = float(text), {32: "<f", 64: "<d"}[bits]
    return (number != number and value != value) or struct.pack(form, number) == struct.pack(form, value)


def _moment(text: str, as_days: bool) -> int | None:
    """Days, or microseconds, since 1970 (of a time alone: since midnight); None for what is no such thing."""
    match = _MOMENT.fullmatch(text)
    if match is None:
        return None
    days = 0
    if match[1]:
        year = 1 - int(match[1]) if match[8] else int(match[1])
        cycles = (year - 1) // 400  # of 146097 days each, so that a year within Python's can stand for it
        days = date(year - 400 * cycles, int(match[2]), int(match[3])).toordinal() + 146_097 * cycles
        days -= date(1970, 1, 1).toordinal()
    if as_days:
        return days
    hours, minutes, seconds = (int(part or 0) for part in match.group(4, 5, 6))
    micros = int((match[7] or "").ljust(6, "0"))
    return ((days * 24 + hours) * 60 + minutes) * 60_000_000 + seconds * 1_000_000 + micros


# ------------------------------------------------------------------------------------------------------------- the grid


@dataclass
class Grid:
    """A source and its sinks in `folder`; `run` moves everything, `verdicts` judge each cell."""

    folder: Path
    source_url: str
    target_url: str
    samples: Sequence[Sample]
    sinks: Sequence[Sink] = tuple(Sink)
    plain: bool = False  # only what every database has: no extensions, no types of its own
    refusals: dict[tuple[str, str], str] = field(default_factory=dict)  # (sink's key or "", table) → what was said

    @cached_property
    def kadds(self) -> Kadds:
        """Kadds, configured."""
        settings: dict[Sink, dict[str, Any]] = {
            Sink.POSTGRES: {"connector": "postgres", "url": self.target_url},
            Sink.DUCKDB: {"connector": "duckdb", "path": "warehouse.duckdb"},
            Sink.PARQUET: {"connector": "files", "path": "parquet"},
            Sink.JSON: {"connector": "files", "path": "json", "format": "jsonl"},
        }
        subscriptions = {
            sink.key: {
                "source": "shop",
                "sink": sink.key,
                "mode": "merge" if sink.merges else "append",
                "tables": [f"{SCHEMA}.t*", f"{SCHEMA}.k*"] if sink.merges else [f"{SCHEMA}.t*"],
            }
            for sink in self.sinks
        }
        sinks = {sink.key: settings[sink] for sink in self.sinks}
        source = {"connector": "postgres", "url": self.source_url, "tables": [f"{SCHEMA}.t*", f"{SCHEMA}.k*"]}
        return Kadds(self.folder, {"sources": {"shop": source}, "sinks": sinks, "subscriptions": subscriptions})

    def run(self) -> None:
        """Snapshot, then stream."""
        with psycopg.connect(self.source_url, autocommit=True) as connection:
            connection.prepare_threshold = None
            for statement in (*JUDGE, *([f"CREATE SCHEMA {SCHEMA}"] if self.plain else MAKE)):
                connection.execute(statement)
            if not self.plain:
                extensions(connection)
            self.samples = prepare(connection, self.samples)
            self._catch_up()
            for statement in () if self.plain else MADE_LATER:
                connection.execute(statement)
            change(connection, self.samples)
        self._catch_up()

    def _catch_up(self) -> None:
        done = self.kadds.catch_up(timeout_seconds=600)
        assert done.code in (0, 1), done.said[-8000:]
        for plain in _events(done):
            if plain.get("event") in ("failed", "defect"):
                label = plain.get("stream") or plain.get("table")
                assert label, f"more than a table has failed: {plain}"
                key = (str(plain.get("subscription", "")).split("/")[-1], ".".join(str(label).split("/")[-1:]))
                self.refusals.setdefault(key, f"{plain.get('error')}: {plain.get('message')}")

    def verdicts(self) -> list[Verdict]:
        """Of every cell."""
        names = [sample.qualified_name for sample in self.samples]
        wanted = postgres_tables(self.source_url, names)
        found: list[Verdict] = []
        for sink in self.sinks:
            there = self._read(sink, names)
            for sample in self.samples:
                if sample.is_key and not sink.merges:
                    continue
                cells = there.get(sample.qualified_name, {})
                found += self.judge(sink, sample, wanted[sample.qualified_name], cells)
        return found

    def _read(self, sink: Sink, names: Sequence[str]) -> dict[str, dict[int, Found]]:
        match sink:
            case Sink.POSTGRES:
                return postgres_tables(self.target_url, names)
            case Sink.DUCKDB:
                return _in_duckdb(self.folder / "warehouse.duckdb")
            case Sink.PARQUET:
                return _in_files(self.folder / "parquet")
            case Sink.JSON:
                return _in_files(self.folder / "json")

    def judge(
        self, sink: Sink, sample: Sample, wanted: Mapping[int, Found], there: Mapping[int, Found]
    ) -> Iterator[Verdict]:
        said = self.refusals.get((sink.key, sample.qualified_name)) or self.refusals.get(("", sample.qualified_name))
        rule = next((rule for rule in RULES if _applies(rule, sink, sample, said)), None)
        for row_id in sorted({*wanted, *there}):
            source, cell, route = wanted.get(row_id), there.get(row_id), route_of(row_id)
            text = None if source is None else source.value
            outcome, why = Outcome.DIFFERENT, f"{cell} instead of {source}"
            if source is not None and cell is not None and cell.same(text) and cell.touched == source.touched:
                outcome, why = Outcome.EQUAL, ""
            elif source is not None and (cell is None or (route is Route.UPDATE and sample.beyond and cell.same(None))):
                why = said or "it is not there, and nothing was said"
                if rule is not None:
                    outcome, why = Outcome.REFUSED, rule.name
            yield Verdict(sample.kind.declared, route, sink, outcome, text, why)


def _applies(rule: Rule, sink: Sink, sample: Sample, said: str | None) -> bool:
    return said is not None and sample.beyond and sink in rule.sinks and rule.words in said


def _events(done: Finished) -> Iterator[dict[str, Any]]:
    for line in done.said.splitlines():
        if line.startswith("{"):
            plain = json.loads(line)
            if isinstance(plain, dict):
                yield plain
