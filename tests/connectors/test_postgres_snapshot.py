"""Snapshots of the PostgreSQL source, their seam with the stream, and which tables there are."""

import itertools
import random
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest

from kadds.api.change import ControlKind
from kadds.api.connector import Level
from kadds.api.errors import RefusedError, RetryableError
from kadds.testing.memory_log import Killed, MemoryLog
from kadds_postgres import snapshot
from kadds_postgres.catalog import CatalogTable
from kadds_postgres.claim import StateTables
from kadds_postgres.snapshot import Snapshot
from tests.support.capturing import SLOT, CapturedDatabase, same_rows
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.own_server("postgres")
_PACE_SECONDS = 0.002  # so that the log in memory, which is read row by row, does not grow without end
ORDERS = "CREATE TABLE orders (id integer PRIMARY KEY, label text)"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One server for the module."""
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[CapturedDatabase]:
    """An empty database."""
    database = CapturedDatabase(server)
    yield database
    database.remove()


def _controls(log: MemoryLog, kind: ControlKind, table: str | None = None) -> list[dict[str, Any]]:
    return [
        dict(control.facts)
        for transaction in log.transactions()
        for control in transaction.controls
        if control.kind is kind
        and (table is None or (control.table is not None and control.table.qualified_name == table))
    ]


class _Writer:
    """Commits one change after another while a test runs; every row that it inserts has a number of its own."""

    def __init__(self, database: CapturedDatabase, table: str = "orders") -> None:
        self._database = database
        self._table = table
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.commits = 0

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self.commits > 5, waiting_for="the writer to begin")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _write(self) -> None:
        rng, name = random.Random(7), self._table
        with self._database.connect() as connection:
            for number in itertools.count(100_000):
                if self._stopping.wait(_PACE_SECONDS):
                    return
                connection.execute(f"INSERT INTO {name} VALUES ({number}, 'made')")
                old = rng.randint(1, number)
                connection.execute(f"UPDATE {name} SET label = 'changed {number}' WHERE id = {old}")
                if number % 7 == 0:
                    connection.execute(f"DELETE FROM {name} WHERE id = {rng.randint(1, 400)}")
                if number % 11 == 0:
                    connection.execute(f"UPDATE {name} SET id = -id WHERE id = {old}")
                self.commits = number


def _created(log: MemoryLog, table: str) -> list[int]:
    """The rows that came in, by copies and by inserts, since the last truncate."""
    found: list[int] = []
    for row in log.rows(table):
        if row.op == "t":
            found.clear()
        elif row.op in "cr":
            found.append(row.values["id"])
    return found


# ------------------------------------------------------------------------------------------------ the seam


def test_rows_29_and_30_a_writer_during_the_snapshot_leaves_no_gap_and_no_overlap(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 100)
    log = MemoryLog()
    database.run(ORDERS, "INSERT INTO orders SELECT i, 'there' FROM generate_series(1, 2000) i")
    with _Writer(database):
        database.capture(log)
        database.capture(log)
    database.capture(log)
    same_rows(log, database, "public.orders")
    created = _created(log, "public.orders")
    assert len(created) == len(set(created)), "a row came by the copy and by the stream"


def test_row_29_killed_at_every_boundary_of_a_chunk_it_converges(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 100)
    database.run(ORDERS)
    was_killed, step = True, 0
    while was_killed:
        log, step = MemoryLog(), step + 1
        log.kill_at, slot = step, f"killed_{step}"
        database.run("TRUNCATE orders", "INSERT INTO orders SELECT i, 'there' FROM generate_series(1, 500) i")
        with _Writer(database):
            was_killed = _capture_until_killed(database, log, slot)
            log.crash()
            database.capture(log, slot=slot)
        database.capture(log, slot=slot)
        same_rows(log, database, "public.orders")
        created = _created(log, "public.orders")
        assert len(created) == len(set(created)), f"killed at step {step}"
        database.run(f"SELECT pg_drop_replication_slot('{slot}')")
    assert step > 15


def _capture_until_killed(database: CapturedDatabase, log: MemoryLog, slot: str) -> bool:
    try:
        database.capture(log, slot=slot)
    except Killed:
        return True
    return False


def test_row_30_a_table_that_is_added_later_is_copied_beside_the_stream_without_overlap(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_ROWS", 100)
    log = MemoryLog()
    database.run(ORDERS, "CREATE TABLE later (id integer PRIMARY KEY, label text)")
    database.run("INSERT INTO later SELECT i, 'there' FROM generate_series(1, 500) i")
    database.capture(log, "public.orders")
    with _Writer(database, "later"), _Writer(database, "orders"):
        for _ in range(3):
            database.capture(log)
    database.capture(log)
    for table in ("public.orders", "public.later"):
        same_rows(log, database, table)
        created = _created(log, table)
        assert len(created) == len(set(created))
    assert not _controls(log, ControlKind.SCHEMA)


def test_a_table_added_while_a_transaction_writes_to_it_is_whole(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(ORDERS, "CREATE TABLE later (id integer PRIMARY KEY, label text)")
    database.capture(log, "public.orders")
    with database.connect(autocommit=False) as writer, database.opened() as source:
        writer.execute("INSERT INTO later VALUES (1, 'before it was published')")
        running = database.start(source, log)
        wait_until(
            lambda: database.run(f"SELECT 1 FROM pg_publication_tables WHERE pubname = '{SLOT}' AND tablename='later'")
        )
        writer.execute("INSERT INTO later VALUES (2, 'behind that')")
        writer.commit()
        running.reach_head()
        running.stop()
    same_rows(log, database, "public.later")


def test_text_that_looks_like_structure_is_copied_as_it_is(database: CapturedDatabase) -> None:
    texts = ["", "\\N", "\\.", '"', '""', ",", "\n", "\r\n", "a\r", "NULL", "null", " ", "\t", "\\", "é\u2028漢", "'"]
    log = MemoryLog()
    database.run("CREATE TABLE texts (id integer PRIMARY KEY, one text)", "CREATE TABLE alone (label text)")
    database.run("ALTER TABLE alone REPLICA IDENTITY FULL")
    with database.connect() as connection:
        for number, text in enumerate([*texts, None]):
            connection.execute("INSERT INTO texts VALUES (%s, %s)", [number, text])
            connection.execute("INSERT INTO alone VALUES (%s)", [text])
    database.capture(log)
    assert [values["one"] for values in log.image("public.texts").values()] == [*texts, None]
    assert [row.values["label"] for row in log.rows("public.alone")] == [*texts, None]


def test_rows_hidden_by_policies_are_an_error_and_not_left_out(
    server: PostgresServer, database: CapturedDatabase
) -> None:
    database.run(
        ORDERS,
        "INSERT INTO orders VALUES (1, 'hidden')",
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
        "CREATE PUBLICATION theirs FOR TABLE orders WITH (publish_via_partition_root)",
    )
    server.execute("CREATE ROLE watched LOGIN REPLICATION PASSWORD 'kadds'")
    try:
        database.run("GRANT SELECT ON orders TO watched")
        parts = psycopg.conninfo.conninfo_to_dict(database.url)
        url = f"postgresql://watched:kadds@{parts['host']}:{parts['port']}/{database.name}"
        error = database.refuse(MemoryLog(), url=url, publication="theirs")
        assert isinstance(error, RefusedError)
        assert "row-level security" in error.message
    finally:
        database.run("DROP OWNED BY watched")
        server.execute("DROP ROLE watched")


# ------------------------------------------------------------------------------------------------ when


def test_never_captures_what_comes_and_nothing_that_is_there(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(ORDERS, "INSERT INTO orders VALUES (1, 'there')")
    database.capture(log, snapshot="never")
    database.run("INSERT INTO orders VALUES (2, 'came')", "CREATE TABLE later (id integer PRIMARY KEY)")
    database.run("INSERT INTO later VALUES (1)")
    database.capture(log, snapshot="never")
    database.run("INSERT INTO later VALUES (2)")
    database.capture(log, snapshot="never")
    assert [row.values["id"] for row in log.rows("public.orders")] == [2]
    assert [row.values["id"] for row in log.rows("public.later")] == [2]


@pytest.mark.parametrize("streamed_from", ["begin", "later"])
def test_never_followed_by_initial_copies_a_table_made_again_behind_a_truncate(
    database: CapturedDatabase, streamed_from: str
) -> None:
    log = MemoryLog()
    if streamed_from == "later":
        database.run("CREATE TABLE first (id integer PRIMARY KEY)")
        database.capture(log)
    database.run(ORDERS)
    database.capture(log, snapshot="never")
    database.run("INSERT INTO orders VALUES (1, 'streamed')")
    database.capture(log, snapshot="never")
    database.run("DROP TABLE orders")
    database.capture(log)
    database.run(ORDERS, "INSERT INTO orders VALUES (2, 'copied')")
    database.capture(log)
    same_rows(log, database, "public.orders")


def test_only_copies_once_and_makes_nothing_on_the_server(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run("CREATE TABLE orders (id integer, label text)", "INSERT INTO orders VALUES (1, 'there')")
    assert not [f for f in database.findings(snapshot="only") if f.level is Level.ERROR]
    database.capture(log, snapshot="only")
    database.run("INSERT INTO orders VALUES (2, 'came')", "CREATE TABLE later (id integer)")
    database.run("INSERT INTO later VALUES (1)")
    database.capture(log, snapshot="only")
    assert [row.values["id"] for row in log.rows("public.orders")] == [1]
    assert [row.values["id"] for row in log.rows("public.later")] == [1]
    assert not database.slot()
    assert not database.run("SELECT * FROM pg_publication")


def test_only_followed_by_initial_begins_anew(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(ORDERS, "INSERT INTO orders VALUES (1, 'there')")
    database.capture(log, snapshot="only")
    database.run("INSERT INTO orders VALUES (2, 'came')", "DELETE FROM orders WHERE id = 1")
    database.capture(log)
    database.run("INSERT INTO orders VALUES (3, 'came')")
    database.capture(log)
    same_rows(log, database, "public.orders")


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE orders ALTER COLUMN id TYPE bigint",  # rewrites it: it is empty to an older snapshot
        "ALTER TABLE orders ALTER COLUMN label TYPE text USING label || '!'",
        "ALTER TABLE orders RENAME COLUMN label TO title",
        "ALTER TABLE orders DROP COLUMN label",
        "ALTER TABLE orders ADD COLUMN more text DEFAULT 'x'",
        "TRUNCATE orders",
        "DROP TABLE orders",
    ],
)
def test_a_table_changed_between_the_snapshot_and_its_copy_is_copied_again(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    lock, statements = Snapshot._lock, [statement]

    def changing(this: Snapshot, found: CatalogTable) -> None:
        while statements:
            database.run(statements.pop())
        lock(this, found)

    monkeypatch.setattr(Snapshot, "_lock", changing)
    log = MemoryLog()
    database.run(ORDERS, "INSERT INTO orders VALUES (1, 'there')")
    error = database.refuse(log)
    assert isinstance(error, RetryableError)
    assert "public.orders" in str(error)
    database.capture(log)
    if "DROP TABLE" not in statement:
        same_rows(log, database, "public.orders")


# ------------------------------------------------------------------------------------------------ partitions


PARTED = (
    "CREATE TABLE parted (id integer PRIMARY KEY, label text) PARTITION BY RANGE (id)",
    "CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE high PARTITION OF parted FOR VALUES FROM (100) TO (200)",
)


def test_row_12_partitions_as_one_stream_of_their_root(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(*PARTED, "INSERT INTO parted VALUES (1, 'low'), (101, 'high')")
    (note,) = database.findings()
    assert (note.level, note.where) == (Level.NOTE, "public.parted")
    database.capture(log)
    database.run("INSERT INTO parted VALUES (2, 'low')", "UPDATE parted SET id = 102 WHERE id = 1")
    database.capture(log)
    same_rows(log, database, "public.parted")
    assert {name for name in ("public.low", "public.high") if log.rows(name)} == set()
    database.run(
        "CREATE TABLE more (id integer PRIMARY KEY, label text)",
        "ALTER TABLE parted ATTACH PARTITION more FOR VALUES FROM (200) TO (300)",
        "INSERT INTO parted VALUES (201, 'more')",
    )
    database.capture(log)
    same_rows(log, database, "public.parted")
    database.run("TRUNCATE parted")
    database.capture(log)
    assert not log.image("public.parted")


def test_row_12_what_moves_without_events_is_not_in_the_stream_of_the_root_and_check_says_so(
    database: CapturedDatabase,
) -> None:
    log = MemoryLog()
    database.run(*PARTED, "INSERT INTO parted VALUES (1, 'low'), (101, 'high')")
    database.capture(log)
    database.run(
        "CREATE TABLE more (id integer PRIMARY KEY, label text)",
        "INSERT INTO more VALUES (201, 'moved in')",
        "ALTER TABLE parted ATTACH PARTITION more FOR VALUES FROM (200) TO (300)",
        "ALTER TABLE parted DETACH PARTITION low",
        "TRUNCATE high",
    )
    (note,) = [f for f in database.findings("public.parted") if f.level is Level.NOTE]
    for word in ("ATTACH", "DETACH", "TRUNCATE"):
        assert word in note.message
    database.capture(log, "public.parted")
    assert set(log.image("public.parted")) == {1, 101}
    database.run(f"SELECT pg_drop_replication_slot('{SLOT}')")
    database.capture(log, "public.parted", snapshot="when_needed")
    same_rows(log, database, "public.parted")


def test_row_12_partitions_as_streams_of_their_own(database: CapturedDatabase) -> None:
    log = MemoryLog()
    settings = {"publish_via_partition_root": False}
    database.run(*PARTED, "INSERT INTO parted VALUES (1, 'low'), (101, 'high')")
    assert not database.findings(**settings)
    database.capture(log, **settings)
    database.run("INSERT INTO parted VALUES (2, 'low')", "UPDATE parted SET id = 102 WHERE id = 1")
    database.capture(log, **settings)
    tables = ["public.low", "public.high"]
    for table in tables:
        same_rows(log, database, table)
    assert not log.rows("public.parted")
    database.run(
        "CREATE TABLE more (id integer PRIMARY KEY, label text)",
        "INSERT INTO more VALUES (201, 'moved in')",
        "ALTER TABLE parted ATTACH PARTITION more FOR VALUES FROM (200) TO (300)",
        "ALTER TABLE parted DETACH PARTITION low",
        "INSERT INTO low VALUES (3, 'on its own')",
        "TRUNCATE high",
    )
    database.capture(log, **settings)
    for table in [*tables, "public.more"]:
        same_rows(log, database, table)


def test_row_27_a_partition_without_identity_is_named(database: CapturedDatabase) -> None:
    database.run(
        "CREATE TABLE parted (id integer, label text) PARTITION BY RANGE (id)",
        "CREATE TABLE low PARTITION OF parted FOR VALUES FROM (0) TO (100)",
        "ALTER TABLE parted REPLICA IDENTITY FULL",
    )
    errors = [f for f in database.findings() if f.level is Level.ERROR]
    assert [f.where for f in errors] == ["public.parted"]
    assert "public.low" in errors[0].message
    database.run("ALTER TABLE low REPLICA IDENTITY FULL")
    assert not [f for f in database.findings() if f.level is Level.ERROR]


# ------------------------------------------------------------------------------------------- which table, which column


def test_row_47_a_table_dropped_and_made_again_is_another_one(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(ORDERS, "INSERT INTO orders VALUES (1, 'old')")
    database.capture(log)
    database.run(
        "DROP TABLE orders",
        "CREATE TABLE orders (label text, id integer PRIMARY KEY)",
        "INSERT INTO orders VALUES ('new', 2)",
    )
    database.capture(log)
    database.run("UPDATE orders SET label = 'newer'")
    database.capture(log)
    tables = {batch.table for t in log.transactions() for batch in t.changes}
    assert len({table.incarnation for table in tables}) == 2
    assert {k: v["label"] for k, v in log.image("public.orders").items()} == {2: "newer"}


def test_row_47_columns_are_followed_by_their_number(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(
        "CREATE TABLE orders (id integer PRIMARY KEY, a text, b text)", "INSERT INTO orders VALUES (1, 'a', 'b')"
    )
    database.capture(log)
    database.run(
        "ALTER TABLE orders RENAME COLUMN a TO c",
        "ALTER TABLE orders RENAME COLUMN b TO a",
        "ALTER TABLE orders ADD COLUMN n integer DEFAULT 7",
        "UPDATE orders SET c = 'was a', a = 'was b'",
    )
    database.capture(log)
    (facts,) = _controls(log, ControlKind.SCHEMA, "public.orders")
    assert sorted(facts["renamed"]) == [["a", "c"], ["b", "a"]]
    assert (facts["added"], facts["dropped"], facts["retyped"]) == (["n"], [], [])
    assert facts["with_default"] == ["n"]
    assert dict(log.rows("public.orders")[-1].values) == {"id": 1, "c": "was a", "a": "was b", "n": 7}
    database.run("ALTER TABLE orders DROP COLUMN c", "ALTER TABLE orders ALTER COLUMN n TYPE bigint")
    database.run("UPDATE orders SET a = 'again'")
    database.capture(log)
    facts = _controls(log, ControlKind.SCHEMA, "public.orders")[-1]
    assert (facts["added"], facts["dropped"], facts["retyped"], facts["renamed"]) == ([], ["c"], ["n"], [])


def test_row_47_a_column_dropped_and_made_again_alike_is_copied_anew(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(ORDERS, "INSERT INTO orders VALUES (1, 'old'), (2, 'old')")
    database.capture(log)
    database.run(
        "ALTER TABLE orders DROP COLUMN label",
        "ALTER TABLE orders ADD COLUMN label text",
        "INSERT INTO orders VALUES (3, 'new')",
    )
    database.capture(log)
    same_rows(log, database, "public.orders")
    database.run("INSERT INTO orders VALUES (4, 'new')")
    database.capture(log)
    same_rows(log, database, "public.orders")


def test_row_47_a_table_that_was_renamed_is_another_stream(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(ORDERS, "INSERT INTO orders VALUES (1, 'one')")
    database.capture(log)
    database.run("ALTER TABLE orders RENAME TO purchases", "INSERT INTO purchases VALUES (2, 'two')", ORDERS)
    database.run("INSERT INTO orders VALUES (3, 'three')")
    database.capture(log)
    same_rows(log, database, "public.orders")
    same_rows(log, database, "public.purchases")


def test_row_47_a_changed_table_goes_on_after_a_restart_without_a_second_record(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(ORDERS)
    database.capture(log)
    database.run("ALTER TABLE orders ADD COLUMN more text", "INSERT INTO orders VALUES (1, 'one', 'more')")
    for number in range(2, 5):
        database.capture(log)
        log.crash()
        database.run(f"INSERT INTO orders VALUES ({number}, 'x', 'more')")
    database.capture(log)
    assert len(_controls(log, ControlKind.SCHEMA)) == 1
    same_rows(log, database, "public.orders")


def test_row_47_a_column_added_to_a_table_that_is_copied_later_has_no_record_of_its_own(
    database: CapturedDatabase,
) -> None:
    """The stream has changes of the time before the copy, under the columns of that time: neither counts."""
    log = MemoryLog()
    database.run(ORDERS, "CREATE TABLE later (id integer PRIMARY KEY)")
    database.capture(log)
    database.run(
        "INSERT INTO later VALUES (1)", "ALTER TABLE later RENAME TO renamed", "INSERT INTO renamed VALUES (2)"
    )
    database.run("ALTER TABLE renamed ADD COLUMN label text", "INSERT INTO renamed VALUES (3, 'three')")
    database.capture(log)
    assert not _controls(log, ControlKind.SCHEMA)
    database.run("INSERT INTO renamed VALUES (4, 'four')")
    database.capture(log)
    assert not _controls(log, ControlKind.SCHEMA)
    same_rows(log, database, "public.renamed")


def test_row_48_names_that_differ_in_case_accent_or_schema_are_different_tables(database: CapturedDatabase) -> None:
    log, names = MemoryLog(), ['"A"', "a", '"é"', '"a.b"', '"we""ird"']
    for schema in ("public", "one", '"Two"'):
        database.run(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        for name in names:
            database.run(
                f'CREATE TABLE {schema}.{name} (id integer PRIMARY KEY, "Label é" text)',
                f"INSERT INTO {schema}.{name} VALUES (1, $${schema} {name}$$)",
            )
    database.capture(log)
    for schema in ("public", "one", '"Two"'):
        for name in names:
            database.run(f"INSERT INTO {schema}.{name} VALUES (2, $${schema} {name} 2$$)")
    database.capture(log)
    for schema in ("public", "one", '"Two"'):
        for name in names:
            plain = f"{schema.strip(chr(34))}.{name[1:-1] if name[0] == chr(34) else name}".replace('""', '"')
            labels = [values["Label é"] for values in log.image(plain).values()]
            assert labels == [f"{schema} {name}", f"{schema} {name} 2"], plain


def test_row_48_a_schema_called_kadds_is_captured_and_the_tables_of_a_sink_are_not(database: CapturedDatabase) -> None:
    cursors = (
        "CREATE TABLE {}.cursors (subscription text, stream text, cursor text, PRIMARY KEY (subscription, stream))"
    )
    database.run("CREATE SCHEMA kadds", "CREATE TABLE kadds.subscriptions (id integer PRIMARY KEY)", ORDERS)
    with psycopg.connect(database.url) as connection:
        StateTables("state").claim(connection, "default/copy", 1.0)
    database.run("INSERT INTO kadds.subscriptions VALUES (1)", cursors.format("kadds"))
    with database.opened() as source:
        assert [t.qualified_name for t in database.tables(source)] == ["kadds.subscriptions", "public.orders"]


def test_row_42_sequences_are_named(database: CapturedDatabase) -> None:
    database.run(ORDERS)
    assert not database.findings()
    database.run("CREATE TABLE numbered (id serial PRIMARY KEY)")
    (note,) = database.findings()
    assert note.level is Level.NOTE
    assert "numbered_id_seq" in note.message


def test_keys_are_those_of_the_replica_identity(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(
        "CREATE TABLE by_index (a integer, b integer NOT NULL, c integer NOT NULL, label text, PRIMARY KEY (a))",
        "CREATE UNIQUE INDEX chosen ON by_index (c, b)",
        "ALTER TABLE by_index REPLICA IDENTITY USING INDEX chosen",
        "CREATE TABLE whole (id integer PRIMARY KEY, label text)",
        "ALTER TABLE whole REPLICA IDENTITY FULL",
        "CREATE TABLE late (id integer PRIMARY KEY DEFERRABLE)",
    )
    with database.opened() as source:
        keys = {table.name: table.key for table in database.tables(source)}
    assert keys == {"by_index": ("c", "b"), "whole": ("id",), "late": ()}
    assert [f.where for f in database.findings() if f.level is Level.ERROR] == ["public.late"]
    wanted = ("public.by_index", "public.whole")
    database.run("INSERT INTO by_index VALUES (1, 2, 3, 'x')", "INSERT INTO whole VALUES (1, 'x')")
    database.capture(log, *wanted)
    database.run("UPDATE by_index SET b = 5", "UPDATE whole SET label = 'y'", "DELETE FROM by_index")
    database.capture(log, *wanted)
    assert not _controls(log, ControlKind.SCHEMA)
    changed = [(row.op, row.before, dict(row.values)) for row in log.rows("public.by_index") if row.op != "r"]
    assert changed == [
        ("u", True, {"b": 2, "c": 3}),
        ("u", False, {"a": 1, "b": 5, "c": 3, "label": "x"}),
        ("d", True, {"b": 5, "c": 3}),
    ]
    assert [(row.before, row.values["label"]) for row in log.rows("public.whole")[1:]] == [(True, "x"), (False, "y")]
