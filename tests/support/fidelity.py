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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
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
)


class Route(Enum):
    """How a value comes into the log."""

    SNAPSHOT = "snapshot"
    INSERT = "stream insert"
    UPDATE = "stream update"
    UNCHANGED = "update of another column"  # what is stored out of line is not given


STREAMED = (Route.INSERT, Route.UPDATE)


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


class Special(Enum):
    """Why a value has a table of its own."""

    BEYOND = "beyond"
    LOCAL = "local"


@dataclass(frozen=True)
class Rule:
    """A refusal that may be: for these values, in this sink, told in these words."""

    name: str
    sink: Sink
    special: Special
    words: str


RULES = (
    Rule("a typed column holds no text", Sink.DUCKDB, Special.BEYOND, "cannot hold"),
    Rule("a typed column holds no text", Sink.PARQUET, Special.BEYOND, "cannot hold"),
    Rule("the target does not have what the value names", Sink.POSTGRES, Special.LOCAL, "does not exist"),
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
    special: Special | None = None

    @property
    def name(self) -> str:
        """The table's, in `SCHEMA`."""
        return f"t{self.number:04}"

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
        usual = self.kind.values[0] if self.kind.values and self.special is None else None
        return None if value == usual else usual


def route_of(row_id: int) -> Route:
    """By which route the row's value came."""
    return list(Route)[row_id // _IDS_PER_ROUTE]


def samples(kinds: Sequence[Kind]) -> list[Sample]:
    """A table for each kind, and one for each route of each special value."""
    found: list[Sample] = []
    for kind in kinds:
        usual = (*kind.values, None)
        values = {route: usual + (kind.later if route in STREAMED else ()) for route in Route}
        found.append(Sample(len(found), kind, values))
        for special, some in ((Special.BEYOND, kind.beyond), (Special.LOCAL, kind.local)):
            for value in some:
                for route in (Route.SNAPSHOT, *STREAMED):
                    found.append(Sample(len(found), kind, {route: (value,)}, special))
    return found


# ------------------------------------------------------------------------------------------------- what the source does


def prepare(connection: Connection, some: Sequence[Sample]) -> None:
    """Tables, and the rows that a snapshot finds."""
    for sample in some:
        connection.execute(
            f"CREATE TABLE {sample.qualified_name} (id integer PRIMARY KEY, touched integer, v {sample.kind.declared})"
        )
        rows = [*sample.rows(Route.SNAPSHOT, Route.UNCHANGED)]
        rows += [(row_id, sample.before_update(value)) for row_id, value in sample.rows(Route.UPDATE)]
        _insert(connection, sample, rows)


def change(connection: Connection, some: Sequence[Sample]) -> None:
    """What the stream carries."""
    first = list(Route).index(Route.UNCHANGED) * _IDS_PER_ROUTE
    for sample in some:
        _insert(connection, sample, [*sample.rows(Route.INSERT)])
        if updated := [*sample.rows(Route.UPDATE)]:
            cases = " ".join(f"WHEN {row_id} THEN {_sql(sample, value)}" for row_id, value in updated)
            ids = ", ".join(str(row_id) for row_id, _ in updated)
            connection.execute(f"UPDATE {sample.qualified_name} SET v = CASE id {cases} END WHERE id IN ({ids})")
        connection.execute(f"UPDATE {sample.qualified_name} SET touched = 1 WHERE id >= {first}")


def _insert(connection: Connection, sample: Sample, rows: Sequence[tuple[int, str | None]]) -> None:
    if rows:
        values = ", ".join(f"({row_id}, 0, {_sql(sample, value)})" for row_id, value in rows)
        connection.execute(f"INSERT INTO {sample.qualified_name} (id, touched, v) VALUES {values}")


def _sql(sample: Sample, value: str | None) -> str:
    return f"CAST({literal(value)} AS {sample.kind.declared})"


# ------------------------------------------------------------------------------------------------ what the judge reads


@dataclass(frozen=True)
class Found:
    """A cell as a sink has it: PostgreSQL's text, an Arrow scalar, or a value of JSON with its type's name."""

    value: Any
    json_type: str = ""

    def same(self, text: str | None) -> bool:
        """Whether it is the value that PostgreSQL writes as `text`."""
        if self.json_type:
            return same_json(self.value, self.json_type, text)
        return same_arrow(self.value, text) if isinstance(self.value, pa.Scalar) else bool(self.value == text)

    def __str__(self) -> str:
        return f"{self.value!r}"[:200]


def postgres_texts(connection: Connection, table: str) -> dict[int, str | None] | None:
    """Each row's value as the server writes it, no driver between; None where there is no table."""
    result = connection.pgconn.exec_(f"SELECT id, v FROM {table}".encode())
    if result.status != psycopg.pq.ExecStatus.TUPLES_OK:
        if b"does not exist" in result.error_message:
            return None
        raise AssertionError(result.error_message.decode())
    found = {}
    for row in range(result.ntuples):
        row_id, value = result.get_value(row, 0), result.get_value(row, 1)
        assert row_id is not None
        found[int(row_id)] = None if value is None else value.decode()
    return found


def postgres_tables(url: str, names: Sequence[str]) -> dict[str, dict[int, str | None]]:
    """The tables that there are, as `postgres_texts`."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in JUDGE:
            connection.execute(statement)
        read = {name: postgres_texts(connection, name) for name in names}
    return {name: texts for name, texts in read.items() if texts is not None}


def _in_postgres(url: str, names: Sequence[str]) -> dict[str, dict[int, Found]]:
    tables = postgres_tables(url, names).items()
    return {name: {row_id: Found(text) for row_id, text in texts.items()} for name, texts in tables}


def _in_duckdb(path: Path) -> dict[str, dict[int, Found]]:
    found: dict[str, dict[int, Found]] = {}
    if not path.exists():
        return found
    with closing(duckdb.connect(str(path), read_only=True, config={"threads": 1})) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for schema, name in connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall():
            if schema == SCHEMA:
                table = connection.sql(f'SELECT id, v FROM "{schema}"."{name}"').to_arrow_table()
                found[f"{schema}.{name}"] = _scalars(table)
    return found


def _scalars(table: pa.Table) -> dict[int, Found]:
    return {row_id: Found(value) for row_id, value in zip(table["id"].to_pylist(), table["v"], strict=True)}


def _in_files(folder: Path) -> dict[str, dict[int, Found]]:
    """The histories, replayed: what each row's last change that gave the value says."""
    lake, found = Lake(folder), dict[str, dict[int, Found]]()
    for entry in lake.entries():
        rows = found.setdefault(entry["target"], {})
        path = folder / entry["path"]
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            not_given = table["_kadds_not_given"].to_pylist()
            given = pa.array([names is None or "v" not in names for names in not_given])
            rows.update(_scalars(table.filter(given)))
            continue
        columns = json.loads((path.parent / "_schema.json").read_text(encoding="utf-8"))["columns"]
        json_type = next(column["type"] for column in columns if column["name"] == "v")
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line and "v" in (plain := json.loads(line, parse_float=_Number, parse_int=_Number)):
                rows[int(plain["id"])] = Found(plain["v"], json_type)
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
        merging = (Sink.POSTGRES, Sink.DUCKDB)
        subscriptions = {
            sink.key: {
                "source": "shop",
                "sink": sink.key,
                "mode": "merge" if sink in merging else "append",
                "tables": [f"{SCHEMA}.t*"],
            }
            for sink in self.sinks
        }
        sinks = {sink.key: settings[sink] for sink in self.sinks}
        source = {"connector": "postgres", "url": self.source_url}
        return Kadds(self.folder, {"sources": {"shop": source}, "sinks": sinks, "subscriptions": subscriptions})

    def run(self) -> None:
        """Snapshot, then stream."""
        with psycopg.connect(self.source_url, autocommit=True) as connection:
            connection.prepare_threshold = None
            for statement in (*JUDGE, *([f"CREATE SCHEMA {SCHEMA}"] if self.plain else MAKE)):
                connection.execute(statement)
            if not self.plain:
                extensions(connection)
            prepare(connection, self.samples)
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
                cells = there.get(sample.qualified_name, {})
                found += self.judge(sink, sample, wanted[sample.qualified_name], cells)
        return found

    def _read(self, sink: Sink, names: Sequence[str]) -> dict[str, dict[int, Found]]:
        match sink:
            case Sink.POSTGRES:
                return _in_postgres(self.target_url, names)
            case Sink.DUCKDB:
                return _in_duckdb(self.folder / "warehouse.duckdb")
            case Sink.PARQUET:
                return _in_files(self.folder / "parquet")
            case Sink.JSON:
                return _in_files(self.folder / "json")

    def judge(
        self, sink: Sink, sample: Sample, wanted: Mapping[int, str | None], there: Mapping[int, Found]
    ) -> Iterator[Verdict]:
        said = self.refusals.get((sink.key, sample.qualified_name)) or self.refusals.get(("", sample.qualified_name))
        rule = next((rule for rule in RULES if _applies(rule, sink, sample, said)), None)
        for row_id in sorted({*wanted, *there}):
            text, cell, route = wanted.get(row_id), there.get(row_id), route_of(row_id)
            outcome, why = Outcome.DIFFERENT, f"{cell} instead of {text!r}"[:400]
            if row_id in wanted and cell is not None and cell.same(text):
                outcome, why = Outcome.EQUAL, ""
            elif cell is None or (route is Route.UPDATE and cell.same(None) and sample.special is not None):
                why = said or "it is not there, and nothing was said"
                if rule is not None:
                    outcome, why = Outcome.REFUSED, rule.name
            yield Verdict(sample.kind.declared, route, sink, outcome, text, why)


def _applies(rule: Rule, sink: Sink, sample: Sample, said: str | None) -> bool:
    return said is not None and rule.sink is sink and rule.special is sample.special and rule.words in said


def _events(done: Finished) -> Iterator[dict[str, Any]]:
    for line in done.said.splitlines():
        if line.startswith("{"):
            plain = json.loads(line)
            if isinstance(plain, dict):
                yield plain
