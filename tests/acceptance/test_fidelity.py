"""Every type of PostgreSQL with its edge values, from its log into each sink: equal, or refused by name.

The whole grid, with the arrays of every type, is `make fidelity`. Here is most of it, and what must not change a value:
the settings of databases and roles, and the encoding of a database.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from tests.fidelity import table
from tests.support.fidelity import (
    RULES,
    Found,
    Grid,
    Outcome,
    Route,
    Sample,
    Sink,
    Verdict,
    same_arrow,
    same_json,
    samples,
)
from tests.support.kadds_process import Kadds
from tests.support.postgres_values import BASE, MADE, RANGES, SCHEMA, Kind, array_of, built_in, kinds
from tests.support.servers import PostgresServer

pytestmark = pytest.mark.own_server("postgres")

#: What a database and a role may be set to, each of which writes or reads some value in another way.
SETTINGS = {
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "iso_8601",
    "TimeZone": "'Asia/Kathmandu'",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "xmloption": "document",
    "xmlbinary": "hex",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "backslash_quote": "off",
    "default_text_search_config": "'pg_catalog.german'",
    "search_path": f"{SCHEMA}, public",
    "client_encoding": "LATIN1",
    "default_transaction_isolation": "'repeatable read'",
}
SENSITIVE = (
    "bytea",
    "date",
    "double precision",
    "interval",
    "money",
    "real",
    "regclass",
    "regtype",
    "text",
    "time with time zone",
    "timestamp with time zone",
    "timestamp without time zone",
    "tstzrange",
    "xml",
    f"{SCHEMA}.mood",
    f"{SCHEMA}.pair",
)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server with a log that can be decoded."""
    with PostgresServer({"wal_level": "logical", "max_replication_slots": "20", "max_wal_senders": "20"}) as server:
        yield server


def database(server: PostgresServer, options: str = "") -> str:
    """An empty database's URL, as libpq takes it."""
    url = server.create_database()
    if options:
        name = url.rpartition("/")[2]
        server.execute(f"DROP DATABASE {name}", f"CREATE DATABASE {name} {options}")
    return url.replace("+psycopg", "")


def differences(verdicts: list[Verdict]) -> list[str]:
    """What is neither equal nor refused by a rule."""
    return [
        f"{one.kind}, {one.route.value}, {one.sink.value}: {one.why}"
        for one in verdicts
        if one.outcome is Outcome.DIFFERENT
    ]


def test_the_values_cover_every_type_that_a_column_can_have(server: PostgresServer) -> None:
    with psycopg.connect(database(server), autocommit=True) as connection:
        found = list(kinds(connection))
        declared = ", ".join(
            f"c{number} {kind.declared}"
            for number, kind in enumerate(found)
            if SCHEMA not in kind.declared and "public." not in kind.declared
        )
        connection.execute(f"CREATE TEMPORARY TABLE every_type ({declared})")
        covered = connection.execute(
            "SELECT DISTINCT format_type(atttypid, NULL) FROM pg_attribute "
            "WHERE attrelid = 'every_type'::regclass AND attnum > 0"
        )
        assert {str(name) for (name,) in covered} == set(built_in(connection))


def test_row_33_every_value_is_equal_by_every_route_or_refused_by_name(server: PostgresServer, tmp_path: Path) -> None:
    source, target = database(server), database(server)
    with psycopg.connect(source) as connection:
        grid = Grid(tmp_path, source, target, samples(list(kinds(connection, arrays=False)), quick=True))
    grid.run()
    verdicts = grid.verdicts()

    assert differences(verdicts) == [], "\n".join(table(verdicts))
    assert {one.sink for one in verdicts if one.outcome is Outcome.EQUAL} == set(Sink)
    assert {one.route for one in verdicts if one.outcome is Outcome.EQUAL} == set(Route)
    assert {one.why for one in verdicts if one.outcome is Outcome.REFUSED} == {rule.name for rule in RULES}


def test_row_52_settings_of_databases_and_roles_change_no_value(server: PostgresServer, tmp_path: Path) -> None:
    source, target = database(server), database(server)
    locales = server.execute("SELECT collname FROM pg_collation WHERE collname LIKE '__\\___.utf8'")
    settings = SETTINGS | ({"lc_monetary": f"'{locales[0][0]}'"} if locales else {})
    for url in (source, target):
        name = url.rpartition("/")[2]
        for setting, value in settings.items():
            server.execute(
                f"ALTER DATABASE {name} SET {setting} = {value}",
                f"ALTER ROLE postgres IN DATABASE {name} SET {setting} = {value}",
            )
    sensitive = [kind for kind in (*BASE, *RANGES, *MADE) if kind.declared in SENSITIVE]
    assert {kind.declared for kind in sensitive} == set(SENSITIVE)
    arrays = [array_of(kind) for kind in sensitive if kind.declared in ("bytea", "text", f"{SCHEMA}.mood")]
    grid = Grid(tmp_path, source, target, samples([*sensitive, *arrays], quick=True))
    grid.run()
    assert differences(grid.verdicts()) == []


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP"])
def test_row_54_a_database_in_another_encoding_is_captured_exactly(
    server: PostgresServer, tmp_path: Path, encoding: str
) -> None:
    words = {"LATIN1": "äßÉ ÿ it's", "EUC_JP": "漢字 テスト"}[encoding]
    source = database(server, f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    wanted = [Kind("text", (words, "", words * 2_000)), Kind("json", (f'{{"{words}": 1}}',)), Kind("name", (words,))]
    found = [*wanted, array_of(wanted[0])]
    grid = Grid(tmp_path, source, database(server), samples(found), plain=True)
    grid.run()
    verdicts = grid.verdicts()

    assert differences(verdicts) == []
    assert {one.text for one in verdicts if one.kind == "text"} >= {words, words * 2_000}
    assert {one.outcome for one in verdicts} == {Outcome.EQUAL}


def test_row_54_a_database_in_sql_ascii_is_refused_by_name(server: PostgresServer, tmp_path: Path) -> None:
    source = database(server, "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("CREATE TABLE words (id integer PRIMARY KEY, word text)")
        connection.execute("INSERT INTO words VALUES (1, E'\\\\xe4')")
    kadds = Kadds(
        tmp_path,
        {
            "sources": {"shop": {"connector": "postgres", "url": source, "tables": ["*"]}},
            "sinks": {"lake": {"connector": "files", "path": "lake"}},
            "subscriptions": {"all": {"source": "shop", "sink": "lake", "mode": "append", "tables": ["*"]}},
        },
    )
    done = kadds.catch_up().check(1)

    assert "SQL_ASCII" in done.said
    with psycopg.connect(source, autocommit=True) as connection:
        slots = connection.execute("SELECT slot_name FROM pg_replication_slots WHERE database = current_database()")
        assert slots.fetchall() == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (pa.scalar("a "), "a"),
        (pa.scalar(""), None),
        (pa.scalar(None, pa.string()), ""),
        (pa.scalar(-0.0), "0"),
        (pa.scalar(0.1, pa.float32()), "0.10000001"),
        (pa.scalar(0.30000000000000004), "0.3"),
        (pa.scalar(float("nan")), "Infinity"),
        (pa.scalar(True), "f"),
        (pa.scalar(b"\x00"), "\\x"),
        (pa.scalar(0, pa.date32()), "1970-01-02"),
        (pa.scalar(0, pa.date32()), "1970-01-01 BC"),
        (pa.scalar(1, pa.timestamp("us")), "1970-01-01 00:00:00.00001"),
        (pa.scalar(0, pa.time64("us")), "24:00:00"),
        (pa.scalar(0, pa.timestamp("us", "UTC")), "infinity"),
        (pa.scalar("1.1").cast(pa.decimal128(12, 2)), "1.1"),
    ],
)
def test_the_judge_sees_another_value(value: pa.Scalar, text: str | None) -> None:
    assert not same_arrow(value, text)


@pytest.mark.parametrize(
    ("value", "json_type", "text"),
    [
        ("1", "int64", "1"),
        (None, "string", ""),
        (False, "bool", "t"),
        ("0.0", "float64", "-0"),
        ("AA==", "binary", "\\x"),
        ("1970-01-01T00:00:00.000001", "timestamp[us]", "1970-01-01 00:00:00"),
        ("1.0", "decimal128(12, 2)", "1.00"),
        ("NaN", "decimal128(12, 2)", "0.00"),
    ],
)
def test_the_judge_sees_another_value_in_json(value: object, json_type: str, text: str | None) -> None:
    assert not same_json(value, json_type, text)


def test_the_judge_sees_what_a_sink_does_not_have(tmp_path: Path) -> None:
    """A table that nobody refused, a row too many, a value that is NULL instead."""
    sample = Sample(0, Kind("integer", ("1",)), {Route.SNAPSHOT: ("1", None)})
    grid = Grid(tmp_path, "", "", [sample])
    wanted = {row_id: Found(value) for row_id, value in sample.rows(Route.SNAPSHOT)}

    assert [one.outcome for one in grid.judge(Sink.POSTGRES, sample, wanted, {})] == [Outcome.DIFFERENT] * 2
    outcomes = [
        one.outcome
        for one in grid.judge(Sink.POSTGRES, sample, wanted, {0: Found(None), 1: Found(None), 7: Found("1")})
    ]
    assert outcomes == [Outcome.DIFFERENT, Outcome.EQUAL, Outcome.DIFFERENT]
