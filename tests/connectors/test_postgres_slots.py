"""The slot, the publication and the stream of the PostgreSQL source: what is lost by others is named, never skipped."""

import copy
import json
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from kadds.api.change import ControlKind
from kadds.api.connector import Level
from kadds.api.errors import GapError, RefusedError, RetryableError
from kadds.testing.memory_log import Killed, MemoryLog
from kadds_postgres import receiver
from kadds_postgres.channel import Channels
from kadds_postgres.receiver import Receiver
from kadds_postgres.settings import PostgresSourceSettings
from tests.support.capturing import SLOT, SOURCE, CapturedDatabase, same_rows
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.own_server("postgres")
ORDERS = "CREATE TABLE orders (id integer PRIMARY KEY, label text)"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One server for the module; tests that kill it leave it running."""
    with PostgresServer({"wal_level": "logical", "max_wal_size": "64MB", "min_wal_size": "32MB"}) as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[CapturedDatabase]:
    """A database with an empty table."""
    database = CapturedDatabase(server)
    database.run(ORDERS)
    yield database
    database.remove()


def _ids(log: MemoryLog, table: str = "public.orders") -> list[Any]:
    return [row.values["id"] for row in log.rows(table) if row.op == "c"]


def _insert(database: CapturedDatabase, first: int, last: int) -> None:
    database.run(f"INSERT INTO orders SELECT i, 'label' FROM generate_series({first}, {last}) i")


def _gaps(log: MemoryLog) -> list[Any]:
    return [c.facts["reason"] for t in log.transactions() for c in t.controls if c.kind is ControlKind.GAP]


# ------------------------------------------------------------------------------------------------ lost, moved, foreign


def test_row_01_a_slot_that_lost_its_log_is_a_gap_and_a_new_snapshot_converges(
    server: PostgresServer, database: CapturedDatabase
) -> None:
    log = MemoryLog()
    _insert(database, 1, 3)
    database.capture(log)
    server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'", "SELECT pg_reload_conf()")
    try:
        _insert(database, 4, 6)
        database.run("DELETE FROM orders WHERE id = 1")
        for _ in range(6):
            server.execute("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000))")
            server.execute("SELECT pg_switch_wal()", "CHECKPOINT")
        assert database.slot()["wal_status"] == "lost"
        error = database.refuse(log)
        assert isinstance(error, GapError)
        assert SLOT in str(error)
        assert "when_needed" in str(error.hint)
        assert database.refuse(log).message == error.message  # it stays one until somebody decides
        database.capture(log, snapshot="when_needed")
        same_rows(log, database, "public.orders")
        assert _gaps(log) == [error.message]
        _insert(database, 7, 7)
        database.capture(log)
        same_rows(log, database, "public.orders")
    finally:
        server.execute("ALTER SYSTEM RESET max_slot_wal_keep_size", "SELECT pg_reload_conf()")


def test_row_02_a_slot_dropped_and_made_again_is_a_gap(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.capture(log)
    database.run(f"SELECT pg_drop_replication_slot('{SLOT}')")
    _insert(database, 1, 5)
    assert isinstance(database.refuse(log), GapError)
    database.run(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
    error = database.refuse(log)
    assert isinstance(error, GapError)
    assert "ahead" in error.message
    assert not log.rows()
    database.capture(log, snapshot="when_needed")
    same_rows(log, database, "public.orders")


def test_row_02_a_slot_that_was_moved_ahead_is_a_gap(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.capture(log)
    _insert(database, 1, 5)
    database.run(f"SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_lsn())")
    assert isinstance(database.refuse(log), GapError)


@pytest.mark.parametrize("plugin", ["pgoutput", "test_decoding"])
def test_a_slot_that_this_log_has_not_made_is_refused_and_left_alone(database: CapturedDatabase, plugin: str) -> None:
    database.run(f"SELECT pg_create_logical_replication_slot('{SLOT}', '{plugin}')")
    for when in ("initial", "when_needed"):
        error = database.refuse(MemoryLog(), snapshot=when)
        assert isinstance(error, GapError)
        assert f"pg_drop_replication_slot('{SLOT}')" in str(error.hint)
    assert database.slot()["plugin"] == plugin


def test_another_server_under_the_same_address_is_a_gap(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.capture(log)
    with PostgresServer({"wal_level": "logical"}) as other:
        elsewhere = CapturedDatabase(other)
        elsewhere.run(ORDERS, "INSERT INTO orders VALUES (1, 'elsewhere')")
        error = elsewhere.refuse(log)
        assert isinstance(error, GapError)
        assert "system identifier" in error.message
        elsewhere.capture(log, snapshot="when_needed")
        assert len({t.lineage for t in log.transactions()}) == 2
        same_rows(log, elsewhere, "public.orders")


def test_other_names_than_the_log_reads_from_are_refused(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.capture(log)
    error = database.refuse(log, slot="another")
    assert isinstance(error, RefusedError)
    assert SLOT in error.message


# ------------------------------------------------------------------------------------------------ acknowledging


class _Told:
    """Every position that was told to the server, beside what was on disk at that moment."""

    def __init__(self, log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = log
        self.pairs: list[tuple[int, int]] = []
        tell = Receiver._tell

        def telling(this: Receiver, *, ask: bool = False) -> None:
            tell(this, ask=ask)
            self.pairs.append((this._told, self.durable()))

        monkeypatch.setattr(Receiver, "_tell", telling)
        monkeypatch.setattr(receiver, "_LOOK_SECONDS", 0.01)
        monkeypatch.setattr(receiver, "_STATUS_SECONDS_MAX", 0.1)

    def durable(self) -> int:
        """The highest position on disk."""
        positions = [t.facts["sort_key"] for t in self.log.transactions(SOURCE, "stream")]
        return int(struct.unpack(">Q", max(positions, default=bytes(8)))[0])


def test_row_04_nothing_is_told_to_the_server_before_it_is_on_disk(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    database.capture(log)
    told, before = _Told(log, monkeypatch), database.slot()["confirmed"]
    log.automatic = False
    with database.opened() as source:
        running = database.start(source, log)
        for number in range(1, 21):
            _insert(database, number, number)
        log.wait(lambda: log.queued > 1)
        wait_until(lambda: len(told.pairs) >= 2, waiting_for="something told while nothing was on disk")
        assert told.durable() <= before
        log.flush()
        wait_until(lambda: told.pairs[-1][0] > before, waiting_for="the position on disk to be told")
        _insert(database, 21, 21)
        log.wait(lambda: log.queued > 0)
        running.inlet.stopping.set()
        log.automatic = True
        log.flush()
        running.stop()
    assert told.pairs
    assert all(position <= durable for position, durable in told.pairs)
    assert database.slot()["confirmed"] <= told.durable()
    database.capture(log)
    assert _ids(log) == list(range(1, 22))


def test_row_05_the_servers_own_position_is_not_told_past_a_commit_that_is_not_on_disk(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    database.run("CREATE TABLE busy (id integer PRIMARY KEY)")
    database.capture(log, "public.orders")
    told = _Told(log, monkeypatch)
    with database.opened(progress_interval_seconds=0.05) as source:
        running = database.start(source, log, "public.orders")
        running.reach_head()
        log.automatic = False
        _insert(database, 1, 1)
        log.wait(lambda: log.queued > 0)
        mark = told.durable()
        for number in range(200):
            database.run(f"INSERT INTO busy VALUES ({number})")
        count = len(told.pairs)
        wait_until(lambda: len(told.pairs) > count + 2, waiting_for="keepalives while the commit is not on disk")
        assert max(position for position, _ in told.pairs) <= mark
        assert database.slot()["confirmed"] <= mark
        log.automatic = True
        log.flush()
        running.reach_head()
        running.stop()
    assert all(position <= durable for position, durable in told.pairs)
    assert _ids(log) == [1]


def test_row_06_a_server_killed_after_it_was_told_sends_again_and_the_log_drops_it(
    server: PostgresServer, database: CapturedDatabase
) -> None:
    log = MemoryLog()
    database.capture(log)
    server.execute("CHECKPOINT")
    with database.opened() as source:
        running = database.start(source, log)
        for number in range(1, 6):
            _insert(database, number, number)
        running.reach_head()
        running.stop()
    confirmed = database.slot()["confirmed"]
    server.kill()
    server.start()
    assert database.slot()["confirmed"] < confirmed, "the server has not rewound, so nothing is shown"
    _insert(database, 6, 6)
    database.capture(log)
    assert _ids(log) == [1, 2, 3, 4, 5, 6]


def test_row_06_a_server_killed_under_the_stream_is_an_error_that_may_pass(
    server: PostgresServer, database: CapturedDatabase
) -> None:
    log = MemoryLog()
    database.capture(log)
    with database.opened() as source:
        running = database.start(source, log)
        _insert(database, 1, 3)
        running.until(lambda: len(log.rows()) == 3)
        server.kill()
        assert isinstance(running.failed(), RetryableError)
        server.start()
    _insert(database, 4, 4)
    database.capture(log)
    assert _ids(log) == [1, 2, 3, 4]


# ------------------------------------------------------------------------------------------------ cut points


def _capture_unless_killed(database: CapturedDatabase, log: MemoryLog) -> bool:
    try:
        database.capture(log)
    except Killed:
        return False
    return True


def test_row_07_interleaved_transactions_come_in_the_order_of_commits_whatever_kills_the_capture(
    database: CapturedDatabase,
) -> None:
    log, step = MemoryLog(), 1
    database.capture(log)
    expected: list[int] = []
    finished = False
    while not finished:
        base = 10 * step
        with database.connect(autocommit=False) as first, database.connect(autocommit=False) as second:
            first.execute(f"INSERT INTO orders VALUES ({base}, 'first')")
            second.execute(f"INSERT INTO orders VALUES ({base + 1}, 'second')")
            first.execute(f"INSERT INTO orders VALUES ({base + 2}, 'first')")
            second.commit()
            first.commit()
        expected += [base + 1, base, base + 2]
        log.kill_at = log.steps + step
        finished = _capture_unless_killed(database, log)
        log.crash()
        database.capture(log)
        assert _ids(log) == expected, f"killed at step {step}"
        step += 1
    assert step > 4


@pytest.mark.parametrize("kills", [0, 1, 7, 20])
def test_row_08_killed_inside_a_large_transaction_it_comes_whole_and_once(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    monkeypatch.setattr("kadds_postgres.stream.PIECE_BYTES", 16 << 10)
    monkeypatch.setattr(receiver, "_HAND_OVER_BYTES", 16 << 10)
    monkeypatch.setattr(receiver, "_TAKE_BYTES", 16 << 10)
    log = MemoryLog()
    database.capture(log)
    _insert(database, 1, 20_000)
    log.kill_at = log.steps + 2 + kills
    with database.opened() as source:
        running = database.start(source, log)
        log.wait(lambda: running.ended)
        assert running.error is not None
    assert not log.rows()
    log.crash()
    database.capture(log)
    (holding,) = [t for t in log.transactions() if t.changes]
    assert [row.values["id"] for row in holding.rows()] == list(range(1, 20_001))


def test_a_server_that_waits_little_for_an_answer_gets_one_while_the_queue_is_full(
    server: PostgresServer, database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog(queue_bytes=1)
    database.capture(log)
    server.execute("ALTER SYSTEM SET wal_sender_timeout = '900ms'", "SELECT pg_reload_conf()")
    try:
        monkeypatch.setattr(receiver, "QUEUE_BYTES", 1)
        monkeypatch.setattr(receiver, "_HAND_OVER_BYTES", 1)
        monkeypatch.setattr(receiver, "_TAKE_BYTES", 1)
        told: list[float] = []
        tell = Receiver._tell
        monkeypatch.setattr(
            Receiver, "_tell", lambda this, *, ask=False: (tell(this, ask=ask), told.append(time.monotonic()))
        )
        log.automatic = False
        with database.opened() as source:
            running = database.start(source, log)
            for number in range(1, 20):
                _insert(database, number, number)
            log.wait(lambda: log.waiting > 0)
            begin = time.monotonic()
            wait_until(lambda: told[-1] - begin > 2.5 or running.ended, waiting_for="three timeouts of the server")
            log.automatic = True
            log.flush()
            running.reach_head()
            running.stop()
    finally:
        server.execute("ALTER SYSTEM RESET wal_sender_timeout", "SELECT pg_reload_conf()")
    assert _ids(log) == list(range(1, 20))


def test_no_timeout_of_the_server_ends_a_connection_that_waits(
    server: PostgresServer, database: CapturedDatabase
) -> None:
    server.execute(f"ALTER DATABASE {database.name} SET idle_session_timeout = '50ms'")
    channels = Channels(PostgresSourceSettings.model_validate({"url": database.url}))
    for more in ({}, {"replication": "database"}):
        with channels.open(**more) as channel:
            assert channel.only_row("SHOW idle_session_timeout") == ("0",)


# ------------------------------------------------------------------------------------------------ the publication


def test_row_11_a_publication_dropped_under_pending_changes_is_a_gap_with_its_repair(
    database: CapturedDatabase,
) -> None:
    log = MemoryLog()
    database.capture(log)
    _insert(database, 1, 2)
    database.run(f"DROP PUBLICATION {SLOT}")
    _insert(database, 3, 4)
    error = database.refuse(log)
    assert isinstance(error, GapError)
    assert f"publication {SLOT}" in error.message
    assert "when_needed" in str(error.hint)
    database.run(f"CREATE PUBLICATION {SLOT} FOR TABLE orders WITH (publish_via_partition_root)")
    assert isinstance(database.refuse(log), GapError)  # made again too late for what is pending
    database.capture(log, snapshot="when_needed")
    same_rows(log, database, "public.orders")


def test_a_publication_of_somebody_else_is_used_as_it_is(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(
        "CREATE TABLE others (id integer PRIMARY KEY)",
        "CREATE PUBLICATION theirs FOR TABLE others, orders WITH (publish_via_partition_root)",
    )
    database.capture(log, "public.orders", publication="theirs")
    _insert(database, 1, 1)
    database.run("INSERT INTO others VALUES (1)")
    database.capture(log, "public.orders", publication="theirs")
    assert _ids(log) == [1]
    assert not log.rows("public.others")
    assert database.run("SELECT count(*) FROM pg_publication_tables WHERE pubname = 'theirs'") == [(2,)]


@pytest.mark.parametrize(
    ("statement", "where", "message"),
    [
        ("FOR TABLE others WITH (publish_via_partition_root)", "public.orders", "does not publish it"),
        ("FOR TABLE orders WHERE (id > 5) WITH (publish_via_partition_root)", "public.orders", "row filter"),
        ("FOR TABLE orders (id) WITH (publish_via_partition_root)", "public.orders", "column list"),
        ("FOR TABLE orders WITH (publish_via_partition_root, publish = 'insert')", None, "does not publish all"),
        ("FOR TABLE orders", None, "publish_via_partition_root = false"),
    ],
)
def test_a_publication_of_somebody_else_that_leaves_changes_out_is_refused(
    database: CapturedDatabase, statement: str, where: str | None, message: str
) -> None:
    database.run("CREATE TABLE others (id integer PRIMARY KEY)", f"CREATE PUBLICATION theirs {statement}")
    (finding,) = [f for f in database.findings("public.orders", publication="theirs") if f.level is Level.ERROR]
    assert message in finding.message
    assert "ALTER PUBLICATION" in str(finding.hint)
    assert where is None or finding.where == where
    error = database.refuse(MemoryLog(), "public.orders", publication="theirs")
    assert isinstance(error, RefusedError)
    assert message in error.message


def test_a_publication_for_all_tables_is_fine(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run("CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root)")
    assert not database.findings(publication="everything")
    database.capture(log, publication="everything")
    _insert(database, 1, 1)
    database.run("CREATE TABLE later (id integer PRIMARY KEY)", "INSERT INTO later VALUES (1)")
    database.capture(log, publication="everything")
    assert _ids(log) == [1]
    assert log.image("public.later") == {1: {"id": 1}}


def test_tables_that_are_not_wanted_any_more_leave_the_publication(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run("CREATE TABLE others (id integer PRIMARY KEY)")
    database.capture(log)
    published = f"SELECT tablename FROM pg_publication_tables WHERE pubname = '{SLOT}' ORDER BY 1"
    assert database.run(published) == [("orders",), ("others",)]
    database.capture(log, "public.orders")
    assert database.run(published) == [("orders",)]


# ------------------------------------------------------------------------------------------------ what is not ours


def test_row_26_a_captured_database_that_is_idle_does_not_hold_the_log_of_a_busy_one(
    server: PostgresServer, database: CapturedDatabase
) -> None:
    log, busy = MemoryLog(), CapturedDatabase(server)
    busy.run("CREATE TABLE busy (id integer)")
    try:
        with database.capturing(log, progress_interval_seconds=0.2) as running:
            running.reach_head()
            before = database.slot()["restart"]

            def moved() -> bool:
                busy.run("INSERT INTO busy SELECT generate_series(1, 1000)", "CHECKPOINT")
                return bool(database.slot()["restart"] > before)

            wait_until(moved, 60, "the restart position of the idle database's slot to move")
    finally:
        busy.remove()


def test_row_27_a_table_without_identity_is_refused_before_it_is_published(database: CapturedDatabase) -> None:
    database.run("CREATE TABLE keyless (id integer)", "INSERT INTO keyless VALUES (1)")
    (finding,) = [f for f in database.findings() if f.level is Level.ERROR]
    assert finding.where == "public.keyless"
    assert "REPLICA IDENTITY FULL" in str(finding.hint)
    assert "ADD PRIMARY KEY" in str(finding.hint)
    log = MemoryLog()
    database.capture(log, "public.orders")
    database.run("UPDATE keyless SET id = 2", "ALTER TABLE keyless REPLICA IDENTITY FULL")
    assert not database.findings()
    database.capture(log)
    database.run("UPDATE keyless SET id = 3", "DELETE FROM keyless")
    database.capture(log)
    rows = [(row.op, row.before, row.values["id"]) for row in log.rows("public.keyless")]
    assert rows == [("r", False, 2), ("u", True, 2), ("u", False, 3), ("d", True, 3)]


def test_row_28_a_second_reader_of_a_slot_fails_clearly_and_the_first_goes_on(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kadds_postgres.slot._RELEASE_SECONDS", 0.2)
    log = MemoryLog()
    with database.capturing(log) as running:
        running.reach_head()
        pid = database.slot()["active_pid"]
        copied = MemoryLog()  # a second log over the same slot: as the first one's folder was, copied before it began
        copied._claims = _copied_claims(log)
        error = database.refuse(copied)
        assert isinstance(error, RetryableError)
        assert str(pid) in error.message
        assert isinstance(database.refuse(MemoryLog()), GapError)
        _insert(database, 1, 1)
        running.until(lambda: _ids(log) == [1])
        assert database.slot()["active_pid"] == pid


def _copied_claims(log: MemoryLog) -> dict[Any, Any]:
    """What a copy of the log's folder would know, but for who reads the slot since."""
    claims = {name: copy.copy(claim) for name, claim in log._claims.items()}
    stream = claims[SOURCE, "stream"]
    state = {**json.loads(stream.durable.state), "reader": "kadds of another time"}
    stream.durable = replace(stream.durable, state=json.dumps(state).encode())
    return claims


def test_a_reader_that_was_left_behind_by_this_log_is_ended(database: CapturedDatabase) -> None:
    log = MemoryLog()
    with database.opened() as source:
        older = database.start(source, log)
        older.reach_head()
        log.crash()  # its process has ended, but the server has not noticed
        _insert(database, 1, 1)
        database.capture(log)
        older.join()
    assert older.error is not None
    assert _ids(log) == [1]


# ------------------------------------------------------------------------------------------------ checks and removal


def test_minimal_grants_are_enough_and_what_is_missing_is_named(
    server: PostgresServer, database: CapturedDatabase
) -> None:
    server.execute("CREATE ROLE reader LOGIN PASSWORD 'kadds'")
    try:
        url = psycopg.conninfo.make_conninfo(database.url)
        parts = psycopg.conninfo.conninfo_to_dict(url)
        mine = f"postgresql://reader:kadds@{parts['host']}:{parts['port']}/{database.name}"
        messages = [f.message for f in database.findings(url=mine) if f.level is Level.ERROR]
        assert any("may not replicate" in message for message in messages)
        assert any("may not read it" in message for message in messages)
        assert any("may not make it" in message for message in messages)
        server.execute("ALTER ROLE reader REPLICATION")
        database.run(
            "GRANT SELECT ON orders TO reader",
            "CREATE PUBLICATION theirs FOR TABLE orders WITH (publish_via_partition_root)",
        )
        settings = {"url": mine, "publication": "theirs"}
        assert not database.findings(**settings)
        log = MemoryLog()
        _insert(database, 1, 1)
        database.capture(log, **settings)
        _insert(database, 2, 2)
        database.capture(log, **settings)
        same_rows(log, database, "public.orders")
        with psycopg.connect(mine) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO orders VALUES (3, 'x')")
    finally:
        database.run("DROP OWNED BY reader")
        server.execute("DROP ROLE reader")


def test_what_a_server_cannot_do_is_named_with_its_repair() -> None:
    with PostgresServer({"wal_level": "replica", "max_replication_slots": "1"}) as server:
        database = CapturedDatabase(server)
        database.run(ORDERS, "CREATE UNLOGGED TABLE fleeting (id integer PRIMARY KEY)")
        server.execute("SELECT pg_create_physical_replication_slot('taken')")
        errors = {f.where: f for f in database.findings() if f.level is Level.ERROR and f.where.startswith("public")}
        assert "unlogged" in errors["public.fleeting"].message
        of_server = [f for f in database.findings() if f.level is Level.ERROR and not f.where.startswith("public")]
        assert [("wal_level" in f.message, "replication slots" in f.message) for f in of_server] == [
            (True, False),
            (False, True),
        ]
        assert all("kadds@" not in f.where for f in of_server)
        assert isinstance(database.refuse(MemoryLog(), "public.orders"), RefusedError | RetryableError)


def test_generated_columns_are_named_and_left_out(database: CapturedDatabase) -> None:
    database.run("CREATE TABLE made (id integer PRIMARY KEY, twice integer GENERATED ALWAYS AS (id * 2) STORED)")
    (finding,) = database.findings("public.made")
    assert finding.level is Level.NOTE
    assert "twice" in finding.message
    log = MemoryLog()
    database.capture(log, "public.made")
    database.run("INSERT INTO made VALUES (1)")
    database.capture(log, "public.made")
    assert log.image("public.made") == {1: {"id": 1}}


def test_removal_says_what_it_did_and_what_remains(database: CapturedDatabase) -> None:
    log = MemoryLog()
    with database.capturing(log) as running, database.opened() as other:
        running.reach_head()
        with pytest.raises(RefusedError, match="is being read"):
            other.remove(drop_slot=True)
    with database.opened(slot="theirs") as source:
        database.run("SELECT pg_create_logical_replication_slot('theirs', 'test_decoding')")
        with pytest.raises(GapError, match="has not made it"):
            source.remove(drop_slot=True)
        assert database.slot("theirs")
    with database.opened() as source:
        assert any(f"pg_drop_replication_slot('{SLOT}')" in text for text in source.remove(drop_slot=False))
        assert database.slot()
        said = source.remove(drop_slot=True)
        assert any("slot" in text for text in said)
        assert any("publication" in text for text in said)
        assert not database.slot()
        assert not database.run("SELECT * FROM pg_publication")
        assert not source.remove(drop_slot=True)


def test_closing_ends_what_is_under_way(database: CapturedDatabase) -> None:
    log = MemoryLog()
    source = database.source()
    running = database.start(source, log)
    running.reach_head()
    source.close()
    assert isinstance(running.failed(), RetryableError)


def test_a_single_commit_is_in_the_log_without_any_timer(database: CapturedDatabase) -> None:
    """The bound is a hundred times what it takes, and half of the shortest wait in the source."""
    log = MemoryLog()
    with database.capturing(log) as running, database.connect() as writer:
        running.reach_head()
        seconds = [_until_logged(log, running.until, writer, number) for number in range(1, 31)]
    assert sorted(seconds)[15] < 0.025


def _until_logged(
    log: MemoryLog, until: Callable[[Callable[[], bool]], None], writer: psycopg.Connection[Any], number: int
) -> float:
    writer.execute(f"INSERT INTO orders VALUES ({number}, 'x')")
    begin = time.monotonic()
    until(lambda: len(log.rows()) == number)
    return time.monotonic() - begin


def test_a_head_is_reached_though_the_last_record_is_no_commit(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.capture(log)
    with database.capturing(log) as running, database.connect(autocommit=False) as writer:
        writer.execute("INSERT INTO orders VALUES (1, 'not committed')")
        running.reach_head()
        with database.connect() as lazy:
            lazy.execute("SET synchronous_commit = off")
            lazy.execute("INSERT INTO orders VALUES (2, 'committed')")
        running.reach_head()
        assert _ids(log) == [2]
        writer.rollback()
