"""What the PostgreSQL source keeps in the log in order to go on: nothing doubled, nothing lost, and nothing dropped on
the server that is not its own, wherever it is broken off."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kadds.api.change import ControlKind
from kadds.api.errors import FencedError, GapError
from kadds.testing.memory_log import Killed, MemoryLog
from kadds_postgres import slot
from kadds_postgres.channel import Channel
from kadds_postgres.receiver import Received, Receiver
from kadds_postgres.session import Session
from tests.support.capturing import SLOT, SOURCE, CapturedDatabase, same_rows
from tests.support.servers import PostgresServer

pytestmark = pytest.mark.own_server("postgres")
ORDERS = "CREATE TABLE orders (id integer PRIMARY KEY, label text)"
LATER = "CREATE TABLE later (id integer PRIMARY KEY, label text)"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One server for the module."""
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


@pytest.fixture
def database(server: PostgresServer) -> Iterator[CapturedDatabase]:
    """A database with an empty table."""
    database = CapturedDatabase(server)
    database.run(ORDERS)
    yield database
    database.remove()


@pytest.fixture
def all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pending when a stream begins comes in one piece, with the server's word that nothing else is."""
    take = Receiver.take

    def taking(this: Receiver, timeout_seconds: float) -> Received:
        messages: list[bytes] = []
        while not (received := take(this, timeout_seconds)).idle_lsn and not this._stopping:
            messages += received.messages
            this.ask()
        return Received(messages + received.messages, received.idle_lsn)

    monkeypatch.setattr(Receiver, "take", taking)


def _controls(log: MemoryLog, kind: ControlKind) -> list[tuple[str | None, dict[str, Any]]]:
    return [
        (control.table.qualified_name if control.table else None, dict(control.facts))
        for transaction in log.transactions()
        for control in transaction.controls
        if control.kind is kind
    ]


def _added(log: MemoryLog) -> list[str]:
    return [name for _, facts in _controls(log, ControlKind.SCHEMA) for name in facts["added"]]


def _created(log: MemoryLog, table: str) -> list[int]:
    """The rows that came in since the last truncate."""
    found: list[int] = []
    for row in log.rows(table):
        if row.op == "t":
            found.clear()
        elif row.op in "cr":
            found.append(row.values["id"])
    return found


# ------------------------------------------------------------------------------------------------ two producers


@pytest.mark.parametrize("pieces", [False, True])
def test_row_47_killed_at_every_step_a_change_of_columns_is_recorded_once(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch, pieces: bool
) -> None:
    if pieces:
        monkeypatch.setattr("kadds_postgres.stream.PIECE_BYTES", 1)
    log, names = MemoryLog(), []
    database.capture(log)
    was_killed, step = True, 0
    while was_killed:
        step += 1
        names.append(f"column_{step}")
        database.together(f"ALTER TABLE orders ADD COLUMN {names[-1]} text", f"INSERT INTO orders VALUES ({step})")
        log.kill_at = log.steps + step
        try:
            with database.capturing(log) as running:
                running.reach_head()
            was_killed = False
        except Killed:
            log.crash()
        log.kill_at = None
        database.capture(log)
        assert _added(log) == names, f"killed at step {step}"
    assert step > 4
    assert _created(log, "public.orders") == list(range(1, step + 1))


def test_row_46_what_the_stream_kept_of_a_table_does_not_outlive_the_note_of_it(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.capture(log)
    database.run("ALTER TABLE orders ADD COLUMN more text", "INSERT INTO orders VALUES (1, 'one', 'more')")
    database.capture(log)
    database.run("DROP TABLE orders", ORDERS, "INSERT INTO orders VALUES (2, 'two')")
    for number in range(3, 6):
        database.capture(log)
        log.crash()
        database.run(f"INSERT INTO orders VALUES ({number}, 'x')")
    database.capture(log)
    assert _added(log) == ["more"]
    same_rows(log, database, "public.orders")


def test_row_30_a_copy_ahead_of_the_stream_stays_ahead_until_the_log_is_there(
    database: CapturedDatabase, all_at_once: None
) -> None:
    """The stream notes a change of columns when it has read, and not yet logged, what the copy has already."""
    log = MemoryLog()
    database.run(LATER)
    database.capture(log, "public.orders")
    database.run("ALTER TABLE orders ADD COLUMN more text", "INSERT INTO orders VALUES (1, 'one', 'more')")
    database.run(f"ALTER PUBLICATION {SLOT} ADD TABLE later", "INSERT INTO later VALUES (1, 'there before the copy')")
    with database.opened() as source:
        running = database.start(source, log)
        running.until(lambda: _added(log) == ["more"] and len(log.transactions(producer="tables")) > 2)
        running.inlet.stopping.set()
        log.crash()
        running.join()
    database.capture(log)
    assert _created(log, "public.later") == [1]


def test_row_35_changes_of_columns_on_both_sides_of_a_copy_are_told_apart(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch, all_at_once: None
) -> None:
    copy = Session._copy

    def copying(this: Session, *given: Any, **more: Any) -> None:
        copy(this, *given, **more)
        for name in ("second", "third"):
            database.run(f"ALTER TABLE later ADD COLUMN {name} text", "INSERT INTO later DEFAULT VALUES")

    log = MemoryLog()
    database.run("CREATE TABLE later (id serial PRIMARY KEY)")
    database.capture(log, "public.orders")
    database.run(f"ALTER PUBLICATION {SLOT} ADD TABLE later", "INSERT INTO later DEFAULT VALUES")
    database.run("ALTER TABLE later ADD COLUMN first text", "INSERT INTO later DEFAULT VALUES")
    monkeypatch.setattr(Session, "_copy", copying)
    database.capture(log)
    assert [facts["added"] for _, facts in _controls(log, ControlKind.SCHEMA)] == [["second"], ["third"]]
    assert _created(log, "public.later") == [1, 2, 3, 4]


def test_row_35_columns_of_the_time_before_a_copy_are_not_recorded(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.run(LATER)
    database.capture(log, "public.orders")
    database.run(f"ALTER PUBLICATION {SLOT} ADD TABLE later", "INSERT INTO later VALUES (1, 'one')")
    database.run("ALTER TABLE later ADD COLUMN more text", "INSERT INTO later VALUES (2, 'two', 'more')")
    database.capture(log)
    database.run("INSERT INTO later VALUES (3, 'three', 'more')")
    database.capture(log)
    assert not _controls(log, ControlKind.SCHEMA)
    assert _created(log, "public.later") == [1, 2, 3]


def test_row_10_the_stream_begins_anew_behind_a_copy(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older minor releases keep that a table is not published, where a transaction wrote to it before it was."""
    begun: list[int] = []
    monkeypatch.setattr(
        "kadds_postgres.session.Receiver",
        lambda channel, seconds, lsn: begun.append(lsn) or Receiver(channel, seconds, lsn),  # type: ignore[func-returns-value]
    )
    log = MemoryLog()
    database.capture(log, "public.orders")
    database.run(LATER, "INSERT INTO later VALUES (1, 'there')")
    begun.clear()
    with database.capturing(log) as running:
        running.reach_head()
        running.until(lambda: len(begun) == 2)
        database.run("INSERT INTO later VALUES (2, 'came')")
        running.reach_head()
    assert begun[0] < begun[1]
    assert _created(log, "public.later") == [1, 2]
    begun.clear()
    database.capture(log)
    assert len(begun) == 1


# ------------------------------------------------------------------------------------------------ the publication


@pytest.mark.parametrize(
    "statement",
    [
        f"ALTER PUBLICATION {SLOT} DROP TABLE orders",
        f"ALTER PUBLICATION {SLOT} SET TABLE orders WHERE (id > 100)",
        f"ALTER PUBLICATION {SLOT} SET TABLE orders (id)",
        f"ALTER PUBLICATION {SLOT} SET (publish = 'insert')",
    ],
)
def test_row_11_our_publication_altered_by_hand_is_a_gap_of_the_table_and_a_new_copy(
    database: CapturedDatabase, statement: str
) -> None:
    log = MemoryLog()
    database.run("INSERT INTO orders VALUES (1, 'one'), (2, 'two')")
    database.capture(log)
    database.run(statement, "INSERT INTO orders VALUES (3, 'three')", "DELETE FROM orders WHERE id = 1")
    database.capture(log)
    same_rows(log, database, "public.orders")
    ((table, facts),) = _controls(log, ControlKind.GAP)
    assert table == "public.orders"
    assert SLOT in facts["reason"]
    database.run("INSERT INTO orders VALUES (4, 'four')", "UPDATE orders SET label = 'x' WHERE id = 2")
    database.capture(log)
    same_rows(log, database, "public.orders")
    assert len(_controls(log, ControlKind.GAP)) == 1


def test_row_11_a_gap_of_a_table_is_there_though_the_session_is_killed_before_its_copy(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    database.run("INSERT INTO orders VALUES (1, 'one')")
    database.capture(log)
    database.run(f"ALTER PUBLICATION {SLOT} DROP TABLE orders", "INSERT INTO orders VALUES (2, 'two')")
    with monkeypatch.context() as patched:
        patched.setattr(Session, "_copy", _killed)
        with pytest.raises(Killed):
            database.capture(log)
    log.crash()
    database.capture(log)
    same_rows(log, database, "public.orders")
    assert len(_controls(log, ControlKind.GAP)) == 1


def _killed(*_: Any, **__: Any) -> None:
    raise Killed("here")


# ------------------------------------------------------------------------------------------------ whose slot


def _intended(database: CapturedDatabase, log: MemoryLog, patched: pytest.MonkeyPatch) -> None:
    """A session that was killed when it had said what it intends, and had made nothing."""
    with patched.context() as context:
        context.setattr(slot, "create", _killed)
        with pytest.raises(Killed):
            database.capture(log)
    log.crash()


@pytest.mark.parametrize("plugin", ["pgoutput", "test_decoding"])
def test_a_slot_that_somebody_makes_where_we_intended_one_is_left_alone(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    create = slot.create

    def creating(channel: Channel, name: str, **more: Any) -> tuple[int, str]:
        database.run(f"SELECT pg_create_logical_replication_slot('{SLOT}', '{plugin}')")
        return create(channel, name, **more)

    log = MemoryLog()
    with monkeypatch.context() as patched:
        patched.setattr(slot, "create", creating)
        assert isinstance(database.refuse(log), slot.ForeignSlotError)
    made = database.slot()
    for when in ("initial", "when_needed"):
        assert isinstance(database.refuse(log, snapshot=when), slot.ForeignSlotError)
    assert database.slot() == made
    database.run(f"SELECT pg_drop_replication_slot('{SLOT}')")
    database.capture(log)


def test_a_slot_of_another_plugin_where_we_intended_one_is_left_alone(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    _intended(database, log, monkeypatch)
    database.run(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')")
    for when in ("initial", "when_needed"):
        assert isinstance(database.refuse(log, snapshot=when), slot.ForeignSlotError)
    assert database.slot()["plugin"] == "test_decoding"


def test_a_slot_older_than_our_intention_is_left_alone(
    server: PostgresServer, database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    database.run("SELECT pg_create_logical_replication_slot('older', 'pgoutput')")
    _intended(database, log, monkeypatch)
    database.run(f"SELECT pg_copy_logical_replication_slot('older', '{SLOT}')")
    assert isinstance(database.refuse(log), slot.ForeignSlotError)
    assert database.slot()


def test_row_03_a_slot_of_the_same_name_on_another_server_is_left_alone(database: CapturedDatabase) -> None:
    log = MemoryLog()
    database.capture(log)
    with PostgresServer({"wal_level": "logical"}) as other:
        elsewhere = CapturedDatabase(other)
        elsewhere.run(ORDERS, f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")
        for when in ("initial", "when_needed"):
            assert isinstance(elsewhere.refuse(log, snapshot=when), GapError)
        assert elsewhere.slot()


def test_row_28_an_older_session_does_not_drop_the_slot_of_a_newer_one(
    database: CapturedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MemoryLog()
    _intended(database, log, monkeypatch)
    database.run(f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')")  # as that session was about to
    let_go: Callable[..., None] = slot.let_go

    def overtaken(*given: Any) -> None:
        let_go(*given)
        log.producer(SOURCE, "stream")

    with monkeypatch.context() as patched:
        patched.setattr(slot, "let_go", overtaken)
        assert isinstance(database.refuse(log), FencedError)
    assert database.slot()
    database.capture(log)
