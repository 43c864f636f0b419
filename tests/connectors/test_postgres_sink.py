"""The PostgreSQL sink: the conformance suite, and what is its own: types, tables that are there, fences, drift."""

import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from kadds.api.change import AS_TEXT_TYPE, HISTORY
from kadds.api.connector import Append, Delete, Delivery, Level, Mode, Rekey, Sink, Target, Upsert
from kadds.api.errors import DataError, FencedError, KaddsError, RetryableError, SchemaMismatchError
from kadds.api.schema import Column, Table, decimal_text
from kadds.testing.sink_contract import SinkContract
from kadds.testing.sink_values import history_of, rows_of, text_cell
from kadds_postgres import connector
from kadds_postgres.names import quoted
from kadds_postgres.settings import PostgresSinkSettings
from kadds_postgres.sink import PostgresSink
from kadds_postgres.transaction import Transaction
from kadds_postgres.types import arrow_type
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


# ------------------------------------------------------------------------------------------------------- machinery


CURSORS = {"default/shop/public.t": "cursor"}


@pytest.fixture
def sinks(postgres_database: str) -> Iterator[Callable[..., PostgresSink]]:
    """Opens sinks over the test's database, or another URL, and closes them."""
    opened: list[PostgresSink] = []

    def open_sink(url: str = postgres_database, **more: Any) -> PostgresSink:
        opened.append(PostgresSink(settings(url, **more), SIDE.abilities))
        return opened[-1]

    yield open_sink
    for sink in opened:
        sink.close()


def target_of(*columns: Column, key: tuple[str, ...] = ("id",), mode: Mode = Mode.MERGE, version: int = 0) -> Target:
    """Target public.t with a bigint column id before `columns`."""
    table = Table("public", "t", (Column("id", pa.int64(), "bigint", nullable=False), *columns), key)
    return Target("default/shop/public.t", "public.t", table, mode, version)


TEXT = Column("v", pa.string(), "text")


def upsert(target: Target, *rows: tuple[Any, ...], as_text: pa.Array | None = None) -> Delivery:
    return Delivery(target, (Upsert(rows_of(target, rows), as_text=as_text),))


def keys(target: Target, *numbers: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64())], schema=pa.schema([target.table.arrow_schema[0]]))


def history(target: Target, count: int, first: int = 0) -> Delivery:
    rows = rows_of(target, [(number, f"v{number}") for number in range(first, first + count)])
    return Delivery(target, (Append(history_of(target, rows, "c" * count)),))


def errors_of(sink: PostgresSink, target: Target, level: Level = Level.ERROR) -> list[str]:
    return [finding.message for finding in sink.check([target]) if finding.level is level]


class CuttingProxy:
    """A TCP line to a server that is cut once `COMMIT` was forwarded `commits` times, before the answer passes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(plain(url))
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = plain(url).replace(f":{parts.port}/", f":{self._listener.getsockname()[1]}/")
        self.cut_next_commit = False
        self.cuts = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            cutting = False
            while not self._stop.is_set():
                ready, _, _ = select.select([client, server], [], [], 0.1)
                for end in ready:
                    data = end.recv(1 << 16)
                    if not data or (end is server and cutting):
                        self.cuts += cutting
                        return
                    if end is client and self.cut_next_commit and b"COMMIT" in data:
                        cutting, self.cut_next_commit = True, False
                    (server if end is client else client).sendall(data)

    def close(self) -> None:
        self._stop.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # closing it alone wakes nobody who waits in accept
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def proxy(postgres_database: str) -> Iterator[CuttingProxy]:
    line = CuttingProxy(postgres_database)
    yield line
    line.close()


# ------------------------------------------------------------------------------------ exactly once, whatever is cut


def test_row_73_append_counts_are_exact_though_commits_are_cut_off(
    postgres_database: str, sinks: Callable[..., PostgresSink], proxy: CuttingProxy
) -> None:
    target, sink = target_of(TEXT, mode=Mode.APPEND), sinks(proxy.url)
    session = sink.claim("default/s")
    for number in range(20):
        while True:
            done = int(session.cursors.get("t", "-1"))
            if done >= number:
                break  # the commit that was cut off had happened
            proxy.cut_next_commit = number % 3 == 0 and proxy.cuts <= number // 3
            try:
                session.deliver([history(target, 600 if number % 2 else 3, number * 1000)], {"t": str(number)})
                break
            except RetryableError:
                session.release()
                session = sink.claim("default/s")
    counts = rows_there(postgres_database, "SELECT count(*), count(DISTINCT id) FROM public.t")
    assert proxy.cuts >= 5
    assert counts == [(10 * 600 + 10 * 3, 10 * 600 + 10 * 3)]


def test_row_74_a_commit_without_an_answer_is_read_back_from_the_cursors(
    postgres_database: str, sinks: Callable[..., PostgresSink], proxy: CuttingProxy
) -> None:
    target, sink = target_of(TEXT), sinks(proxy.url)
    session = sink.claim("default/s")
    session.prepare(target)
    proxy.cut_next_commit = True
    with pytest.raises(RetryableError, match="not known") as raised:
        session.deliver([upsert(target, (1, "one"))], CURSORS)
    assert raised.value.hint
    assert proxy.cuts == 1
    with pytest.raises(RetryableError, match="gone"):
        session.deliver([upsert(target, (1, "one"))], CURSORS)
    assert sink.claim("default/s").cursors == CURSORS
    assert rows_there(postgres_database, "SELECT * FROM public.t") == [(1, "one")]


@pytest.mark.parametrize(
    ("failing", "rows"),
    [*((number, 2) for number in range(6)), *((number, 1000) for number in range(7)), ("copy", 1000)],
)
def test_row_76_an_error_at_any_statement_leaves_nothing_and_the_cursor_where_it_was(
    postgres_database: str, sinks: Callable[..., PostgresSink], monkeypatch: pytest.MonkeyPatch, failing: Any, rows: int
) -> None:
    target, sink = target_of(TEXT), sinks()
    session = sink.claim("default/s")
    session.deliver([upsert(target, (1, "one"), (2, "two"))], CURSORS)
    steps = (
        Delete(keys(target, 1)),
        Rekey(keys(target, 2), keys(target, 3)),
        Upsert(rows_of(target, [(number, "new") for number in range(10, 10 + rows)])),
        Upsert(rows_of(target, [(3, None)]), pa.array([b"\x02"], pa.binary())),
    )
    sent, failed, send = 0, 0, Transaction.send

    def refuse(self: Transaction, statement: str, *arguments: Any, **more: Any) -> None:
        nonlocal sent, failed
        sent += 1
        if sent == failing + 3:  # behind BEGIN and the lock
            failed += 1
            send(self, "SELECT 1 / 0")
        else:
            send(self, statement, *arguments, **more)

    def refuse_copy(self: Transaction, statement: str, pieces: Any, binary: bool) -> int:
        nonlocal failed
        failed += 1
        raise psycopg.errors.IoError("as if the disk of the server failed")

    if failing == "copy":
        monkeypatch.setattr(Transaction, "copy", refuse_copy)
    else:
        monkeypatch.setattr(Transaction, "send", refuse)
    before = rows_there(postgres_database, "SELECT * FROM public.t ORDER BY id")
    with pytest.raises(KaddsError):
        session.deliver([Delivery(target, steps)], {"default/shop/public.t": "later"})
    assert failed == 1
    assert rows_there(postgres_database, "SELECT * FROM public.t ORDER BY id") == before
    monkeypatch.undo()
    assert sink.claim("default/s").cursors == CURSORS


def test_row_80_a_reader_sees_parent_and_child_together_and_never_half_a_delivery(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    parent = target_of(TEXT)
    child = replace(parent, stream="default/shop/public.c", name="public.c", table=replace(parent.table, name="c"))
    session = sinks().claim("default/s")
    session.prepare(parent)
    session.prepare(child)
    rows_there(postgres_database, "ALTER TABLE public.c ADD FOREIGN KEY (id) REFERENCES public.t")
    stop, broken, seen = threading.Event(), list[Any](), 0

    def read() -> None:
        nonlocal seen
        with psycopg.connect(plain(postgres_database), autocommit=True) as connection:
            while not stop.is_set():
                row = connection.execute(
                    "SELECT (SELECT count(*) FROM public.t), (SELECT count(*) FROM public.c), "
                    "(SELECT max(cursor::int) FROM kadds.cursors)"
                ).fetchone()
                assert row is not None
                seen += row[0] > 0
                if row[0] != row[1] or (row[2] or 0) * 2 != row[0]:
                    broken.append(row)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 101):
        rows = [(2 * number, "a"), (2 * number + 1, "b")]
        session.deliver([upsert(parent, *rows), upsert(child, *rows)], {"t": str(number)})
    stop.set()
    reader.join()
    assert seen
    assert not broken


# --------------------------------------------------------------------------------------------------------- fences


def test_row_82_an_older_session_is_refused_inside_its_transaction(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    target = target_of(TEXT)
    older = sinks().claim("default/s")
    older.deliver([upsert(target, (1, "one"))], CURSORS)
    newer = sinks().claim("default/s")
    for size in (1, 1000):
        with pytest.raises(FencedError, match="claimed again"):
            older.deliver([upsert(target, *((number, "old") for number in range(size)))], {"x": "y"})
    newer.deliver([upsert(target, (2, "two"))], CURSORS)
    assert rows_there(postgres_database, "SELECT * FROM public.t ORDER BY id") == [(1, "one"), (2, "two")]


def test_row_82_a_stopped_process_with_an_open_transaction_is_waited_for_by_name(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    program = (
        "import sys\n"
        "from kadds_postgres import connector\n"
        "from kadds_postgres.settings import PostgresSinkSettings\n"
        "from kadds_postgres.transaction import Transaction\n"
        "session = connector.sink.open(PostgresSinkSettings(url=sys.argv[1])).claim('default/s')\n"
        "commit = Transaction.commit\n"
        "def wait(self):\n"
        "    self.settle()\n"
        "    print('open', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    commit(self)\n"
        "Transaction.commit = wait\n"
        "session.deliver([], {'t': 'of the stopped one'})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, plain(postgres_database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"open\n"
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(RetryableError, match=r"still being written by an older session.*backend \d+") as raised:
            sinks(claim_timeout_seconds=0.2).claim("default/s")
        assert "pg_terminate_backend" in str(raised.value.hint)
        waiting = threading.Thread(target=lambda: claimed.append(sinks().claim("default/s")))
        claimed: list[Any] = []
        waiting.start()
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        waiting.join()
        assert process.wait() == 0
        assert claimed[0].cursors == {"t": "of the stopped one"}, "the newer claim must read what the older committed"
    finally:
        process.kill()
        process.communicate()


def test_first_claims_at_the_same_time_make_the_tables_once(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    sink = sinks()
    with ThreadPoolExecutor(8) as threads:
        sessions = list(threads.map(lambda number: sink.claim(f"default/s{number}"), range(8)))
    assert len(sessions) == 8
    assert rows_there(postgres_database, "SELECT count(*), sum(epoch) FROM kadds.subscriptions") == [(8, 8)]


# ------------------------------------------------------------------------------------------------------ key changes


@pytest.mark.parametrize("identity", ["", "GENERATED ALWAYS AS IDENTITY"])
def test_row_38_all_keys_shift_by_one_and_two_change_places(
    postgres_database: str, sinks: Callable[..., PostgresSink], identity: str
) -> None:
    rows_there(
        postgres_database,
        f"CREATE TABLE public.t (own text DEFAULT 'kept', id bigint PRIMARY KEY {identity}, v text, "
        "twice text GENERATED ALWAYS AS (v || v) STORED)",
    )
    target, session = target_of(TEXT), sinks().claim("default/s")
    numbers = np.arange(10_000)
    rows = pa.RecordBatch.from_arrays(
        [pa.array(numbers), pa.array(numbers).cast(pa.string())], schema=target.table.arrow_schema
    )
    session.deliver([Delivery(target, (Upsert(rows),))], CURSORS)
    rows_there(postgres_database, "UPDATE public.t SET own = 'of ' || v")
    shift = Rekey(keys(target, *numbers.tolist()), keys(target, *(numbers + 1).tolist()))
    swap = Rekey(keys(target, 5, 6), keys(target, 6, 5))
    session.deliver([Delivery(target, (shift, swap))], CURSORS)
    there = rows_there(postgres_database, "SELECT id, v, own, twice FROM public.t ORDER BY v::int")
    expected = [(number + 1, str(number), f"of {number}", f"{number}{number}") for number in range(10_000)]
    expected[4], expected[5] = (6, "4", "of 4", "44"), (5, "5", "of 5", "55")
    assert there == expected


def test_keys_that_change_places_under_a_cascade_are_refused_and_others_move(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    rows_there(
        postgres_database,
        "CREATE TABLE public.t (id bigint PRIMARY KEY, v text);"
        "CREATE TABLE public.child (t bigint REFERENCES public.t ON DELETE CASCADE ON UPDATE CASCADE)",
    )
    target, sink = target_of(TEXT), sinks()
    session = sink.claim("default/s")
    session.deliver([upsert(target, (1, "one"), (2, "two"))], CURSORS)
    rows_there(postgres_database, "INSERT INTO public.child VALUES (1)")
    assert any("overlap" in text for text in errors_of(sink, target, Level.WARNING))
    with pytest.raises(DataError, match="child_t_fkey"):
        session.deliver([Delivery(target, (Rekey(keys(target, 1, 2), keys(target, 2, 1)),))], CURSORS)
    session.deliver([Delivery(target, (Rekey(keys(target, 1), keys(target, 7)),))], CURSORS)
    assert rows_there(postgres_database, "SELECT t FROM public.child") == [(7,)]


# ------------------------------------------------------------------------------------------------ tables that are there


def test_row_41_generated_and_identity_columns_are_written_by_name(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    rows_there(
        postgres_database,
        "CREATE TABLE public.t (twice text GENERATED ALWAYS AS (v || v) STORED, "
        "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text)",
    )
    generated = Column("twice", pa.string(), "text", generated=True)
    target, sink = target_of(TEXT, generated), sinks()
    assert not errors_of(sink, target)
    session = sink.claim("default/s")
    session.deliver([upsert(target, (7, "a", "aa"))], CURSORS)
    session.deliver([upsert(target, (7, "b", "bb"), (8, "c", None))], CURSORS)
    session.deliver([upsert(target, *((number, "n", None) for number in range(100, 1100)))], CURSORS)
    assert rows_there(postgres_database, "SELECT id, v, twice FROM public.t ORDER BY id LIMIT 3") == [
        (7, "b", "bb"),
        (8, "c", "cc"),
        (100, "n", "nn"),
    ]
    assert errors_of(sink, target_of(TEXT, replace(generated, generated=False))) == [
        "table public.t: column twice is computed by the table"
    ]
    rows_there(postgres_database, "ALTER TABLE public.t ADD n integer GENERATED ALWAYS AS IDENTITY")
    number = Column("n", pa.int32(), "integer")
    assert "SET GENERATED BY DEFAULT" in errors_of(sink, target_of(TEXT, number))[0]
    assert not errors_of(sink, target_of(TEXT, number, mode=Mode.MERGE, key=("id", "n")))[1:]


MISFITS = {
    "a missing column": ("id bigint PRIMARY KEY", "column v is missing"),
    "a narrow text": ("id bigint PRIMARY KEY, v varchar(3)", "column v is character varying(3)"),
    "a padded text": ("id bigint PRIMARY KEY, v char(3)", "column v is character(3)"),
    "a narrow key": ("id integer PRIMARY KEY, v text", "column id is integer"),
    "a required extra": ("id bigint PRIMARY KEY, v text, extra text NOT NULL", "column extra"),
    "no key": ("id bigint, v text", "ADD PRIMARY KEY"),
    "another key": ("id bigint, v text, PRIMARY KEY (id, v)", "is not unique"),
    "a partial key": ("id bigint, v text, EXCLUDE (id WITH =)", "is not unique"),
    "a deferrable key": ("id bigint PRIMARY KEY DEFERRABLE, v text", "is not unique"),
}


@pytest.mark.parametrize("there", MISFITS)
def test_row_83_a_table_that_does_not_fit_is_refused_by_column(
    postgres_database: str, sinks: Callable[..., PostgresSink], there: str
) -> None:
    columns, said = MISFITS[there]
    rows_there(postgres_database, f"CREATE TABLE public.t ({columns})")
    target, sink = target_of(TEXT), sinks()
    assert any(said in text for text in errors_of(sink, target))
    with pytest.raises(SchemaMismatchError) as raised:
        sink.claim("default/s").prepare(target)
    assert said in str(raised.value)
    assert raised.value.hint


def test_row_83_extra_columns_with_defaults_fit_and_keep_their_values(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    rows_there(
        postgres_database,
        "CREATE DOMAIN public.words AS text; CREATE TABLE public.t (own text NOT NULL DEFAULT 'own', v public.words, "
        "id numeric(30,2), n serial, UNIQUE (id))",
    )
    target, sink = target_of(TEXT), sinks()
    assert not errors_of(sink, target)
    session = sink.claim("default/s")
    session.deliver([upsert(target, (1, "one"))], CURSORS)
    rows_there(postgres_database, "UPDATE public.t SET own = 'changed'")
    session.deliver([upsert(target, (1, "eins"), (2, "two"))], CURSORS)
    there = rows_there(postgres_database, "SELECT id::int, v, own, n FROM public.t ORDER BY id")
    assert [row[:3] for row in there] == [(1, "eins", "changed"), (2, "two", "own")]


@pytest.mark.parametrize("rows", [1, 1000])
def test_row_83_what_the_owner_changes_while_it_runs_is_seen_before_the_commit(
    postgres_database: str, sinks: Callable[..., PostgresSink], rows: int
) -> None:
    amount = Column("amount", pa.decimal128(12, 2), "numeric(12,2)")
    target, session = target_of(amount), sinks().claim("default/s")
    session.deliver([upsert(target, (1, Decimal("1.11")))], CURSORS)
    rows_there(postgres_database, "ALTER TABLE public.t ALTER amount TYPE numeric(12,1)")
    values = [(number, Decimal("2.22")) for number in range(2, 2 + rows)]
    rows_there(postgres_database, "COMMENT ON TABLE public.t IS 'mine now'")
    with pytest.raises(SchemaMismatchError, match="amount"):
        session.deliver([upsert(target, *values)], {})
    rows_there(postgres_database, "ALTER TABLE public.t ALTER amount TYPE numeric(14,3)")
    session.deliver([upsert(target, *values)], CURSORS)
    assert rows_there(postgres_database, "SELECT count(*), max(amount) FROM public.t") == [(rows + 1, Decimal("2.22"))]
    for statement in ("DROP TABLE public.t", "CREATE TABLE public.t (id bigint PRIMARY KEY, amount numeric(12,2))"):
        rows_there(postgres_database, statement)
        for _ in range(2):
            with pytest.raises(SchemaMismatchError) as raised:
                session.deliver([upsert(target, *values)], CURSORS)
            assert "resync" in str(raised.value)


@pytest.mark.parametrize("rows", [1, 1000])
def test_row_83_a_trigger_is_warned_of_and_one_that_leaves_rows_out_is_found(
    postgres_database: str, sinks: Callable[..., PostgresSink], rows: int
) -> None:
    rows_there(
        postgres_database,
        "CREATE TABLE public.t (id bigint PRIMARY KEY, v text);"
        "CREATE FUNCTION public.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER swallow BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.nothing()",
    )
    target, sink = target_of(TEXT), sinks()
    assert any("trigger swallow" in text for text in errors_of(sink, target, Level.WARNING))
    with pytest.raises(DataError, match="took 0 of"):
        sink.claim("default/s").deliver([upsert(target, *((number, "x") for number in range(rows)))], CURSORS)


def test_row_83_row_level_security_and_rules_and_views_are_refused(
    postgres_server: DatabaseServer, postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    role = f"kadds_plain_{secrets.token_hex(4)}"
    rows_there(
        postgres_database,
        f"CREATE ROLE {role} LOGIN PASSWORD 'plain'; GRANT CREATE ON DATABASE "
        f"{urlsplit(postgres_database).path[1:]} TO {role};"
        "CREATE TABLE public.t (id bigint PRIMARY KEY, v text); ALTER TABLE public.t ENABLE ROW LEVEL SECURITY;"
        f"CREATE POLICY few ON public.t USING (id > 0); GRANT ALL ON public.t TO {role}",
    )
    try:
        url = urlsplit(plain(postgres_database))
        sink = sinks(url._replace(netloc=f"{role}:plain@{url.hostname}:{url.port}").geturl())
        assert any("row-level security" in text for text in errors_of(sink, target_of(TEXT)))
        with pytest.raises(SchemaMismatchError, match="row-level security"):
            sink.claim("default/s").prepare(target_of(TEXT))
        sink.close()
    finally:
        rows_there(
            postgres_database, f"DROP SCHEMA kadds CASCADE; DROP TABLE public.t; DROP OWNED BY {role}; DROP ROLE {role}"
        )
    rows_there(postgres_database, "CREATE VIEW public.t AS SELECT 1::bigint AS id, ''::text AS v")
    assert any("it is a view" in text for text in errors_of(sinks(), target_of(TEXT)))


def test_a_table_that_kadds_made_follows_the_stream_and_loses_nothing(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    small, gone = Column("n", pa.int32(), "integer"), Column("gone", pa.string(), "character varying(5)")
    sink = sinks()
    session = sink.claim("default/s")
    first = target_of(small, gone)
    session.deliver([upsert(first, (1, 1, "kept"))], CURSORS)
    assert rows_there(postgres_database, "SELECT obj_description('public.t'::regclass)")[0][0].startswith(
        "made by Kadds"
    )
    wide = Column("n", pa.int64(), "bigint")
    new = Column("price", pa.decimal128(12, 2), "numeric(12,2)")
    second = target_of(wide, new, version=1)
    assert not errors_of(sink, second)
    session.deliver([upsert(second, (2, 2**40, Decimal("0.10")))], CURSORS)
    assert rows_there(postgres_database, "SELECT id, n, gone, price::text FROM public.t ORDER BY id") == [
        (1, 1, "kept", None),
        (2, 2**40, None, "0.10"),
    ]
    narrower = target_of(Column("n", pa.string(), "date"), version=2)
    assert any("column n is bigint" in text for text in errors_of(sink, narrower))


# ------------------------------------------------------------------------------------------------------------- values


DECLARED = {
    "numeric(12,2)": "1.20",
    "numeric": "1E-20",
    "uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    "jsonb": '{"a": [1, "\\\\ \\" x"]}',
    "json": '{"a" :  1}',
    "text[]": '{a,"b c",NULL,"\\"","{x}"}',
    "integer[]": "{{1,2},{3,4}}",
    "inet": "10.0.0.1/8",
    "interval": "1 year 2 days 03:04:05.000006",
    "time with time zone": "12:00:00.5+02",
    "character(5)": "ab   ",
    "character varying(5)": "ab ",
    "bit(3)": "101",
    "bit varying(7)": "10101",
    "timestamp(3) with time zone": "2020-01-02 03:04:05.678+00",
    "money": "$1,234.56",
    "box": "(3,4),(1,2)",
    "int4range": "[1,5)",
    "datemultirange": "{[2020-01-01,2020-02-01)}",
    "xml": "<a>&lt;</a>",
    "tsvector": "'a':1 'b':2",
    '"char"': "x",
}


@pytest.mark.parametrize("rows", [1, 1000])
@pytest.mark.parametrize("declared", DECLARED)
def test_declared_types_come_back_and_their_values_are_the_same(
    postgres_database: str, sinks: Callable[..., PostgresSink], declared: str, rows: int
) -> None:
    column = Column("v", arrow_type(declared), declared)
    target, text = target_of(column), DECLARED[declared]
    value = text if column.type == pa.string() else pa.array([text]).cast(column.type)[0].as_py()
    sink = sinks()
    session = sink.claim("default/s")
    session.deliver([upsert(target, *((number, value) for number in range(rows)))], CURSORS)
    session.deliver([upsert(target, (0, value))], CURSORS)
    assert not errors_of(sink, target)
    kind = (
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = 'public.t'::regclass AND attname = 'v'"
    )
    assert rows_there(postgres_database, kind) == [(declared,)]
    typed = f"'{text.replace(chr(39), chr(39) * 2)}'::{declared}"
    assert rows_there(postgres_database, f"SELECT DISTINCT v::text = ({typed})::text FROM public.t") == [(True,)]


def test_words_of_other_systems_do_not_reach_sql(postgres_database: str, sinks: Callable[..., PostgresSink]) -> None:
    odd = Column("odd", pa.string(), "text); DROP TABLE public.t; --")
    other = Column("other", pa.int32(), "int(11) unsigned")
    mood = Column("mood", pa.string(), "public.mood")
    target = target_of(odd, other, mood)
    sinks().claim("default/s").deliver([upsert(target, (1, "x", 2, "happy"))], CURSORS)
    assert rows_there(postgres_database, "SELECT * FROM public.t") == [(1, "x", 2, "happy")]


@pytest.mark.parametrize("rows", [1, 1000])
def test_texts_that_arrow_has_no_value_for_go_in_as_they_are(
    postgres_database: str, sinks: Callable[..., PostgresSink], rows: int
) -> None:
    columns = (
        Column("amount", pa.decimal128(12, 2), "numeric(12,2)"),
        Column("at", pa.timestamp("us", "UTC"), "timestamp with time zone"),
        Column("of_day", pa.time64("us"), "time without time zone"),
    )
    target, session = target_of(*columns), sinks().claim("default/s")
    texts = [{"column": 1, "text": "NaN"}, {"column": 2, "text": "-infinity"}, {"column": 3, "text": "24:00:00"}]
    cells = pa.array([texts, *[None] * (rows - 1)], AS_TEXT_TYPE)
    session.deliver([upsert(target, *((number, None, None, None) for number in range(rows)), as_text=cells)], CURSORS)
    first = "SELECT amount::text, at::text, of_day::text FROM public.t WHERE id = 0"
    assert rows_there(postgres_database, first) == [("NaN", "-infinity", "24:00:00")]
    for column, text in ((1, "1.239"), (1, "12345678901.00"), (1, "x"), (2, "never"), (3, "25:00:00")):
        with pytest.raises(DataError, match=target.table.columns[column].name):
            session.deliver([upsert(target, (5, None, None, None), as_text=text_cell(1, 0, column, text))], {})
    assert rows_there(postgres_database, "SELECT count(*) FROM public.t") == [(rows,)]


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_value_that_a_column_refuses_is_named_with_table_and_column(
    postgres_database: str, sinks: Callable[..., PostgresSink], rows: int
) -> None:
    target, session = target_of(Column("v", pa.string(), "jsonb")), sinks().claim("default/s")
    good = [(number, '{"a": 1}') for number in range(rows)]
    with pytest.raises(DataError, match=r"public\.t.*column v") as raised:
        session.deliver([upsert(target, *good, (5000, "{not json"))], CURSORS)
    assert raised.value.hint
    assert rows_there(postgres_database, "SELECT count(*) FROM public.t") == [(0,)]
    session.deliver([upsert(target, *good)], CURSORS)


@pytest.mark.parametrize("nulls", [False, True])
@pytest.mark.parametrize(
    ("precision", "scale"),
    [(1, 0), (1, 1), (4, 4), (5, 0), (9, 3), (12, 2), (15, 15), (18, 0), (18, 4), (18, 15), (18, 17)],
)
def test_numbers_of_every_scale_are_exact_by_copy_and_by_merge(
    postgres_database: str, sinks: Callable[..., PostgresSink], precision: int, scale: int, nulls: bool
) -> None:
    generator = np.random.default_rng(precision * 100 + scale)
    digits = generator.integers(0, precision + 1, 1000)
    unscaled = generator.integers(-(10**precision) + 1, 10**precision, 1000) // 10**digits
    unscaled[:4] = (0, -1, 10**precision - 1, 1 - 10**precision)
    kind = pa.decimal128(precision, scale)
    values = pa.array([str(number) for number in unscaled]).cast(pa.decimal128(precision, 0)).view(kind)
    if nulls:
        values = pc.if_else(pa.array(generator.integers(0, 3, 1000) > 0), values, pa.scalar(None, kind))
    target, session = target_of(Column("v", kind)), sinks().claim("default/s")
    rows = pa.RecordBatch.from_arrays([pa.array(range(1000)), values], schema=target.table.arrow_schema)
    for part in (rows, rows.slice(300, 200)):
        session.deliver([Delivery(target, (Upsert(part),))], CURSORS)
        there = [text for (text,) in rows_there(postgres_database, "SELECT v::text FROM public.t ORDER BY id")]
        assert there == decimal_text(values).to_pylist()


# -------------------------------------------------------------------------------------------------------- COPY or merge


def test_a_first_load_is_copied_and_what_was_there_is_merged(
    postgres_database: str, sinks: Callable[..., PostgresSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, session = target_of(TEXT, key=("id",)), sinks().claim("default/s")
    copies, copy = [], Transaction.copy

    def counted(self: Transaction, statement: str, pieces: Any, binary: bool) -> int:
        copies.append(statement)
        return copy(self, statement, pieces, binary)

    monkeypatch.setattr(Transaction, "copy", counted)

    def load(first: int, text: str) -> int:
        copies.clear()
        session.deliver([upsert(target, *((number, text) for number in range(first, first + 1000)))], CURSORS)
        return len(copies)

    assert load(0, "first") == 1
    assert load(5000, "next") == 1
    assert load(500, "meets what is there") == 1
    assert load(700, "a range that is not empty") == 0
    assert load(10_000, "a range that is empty") == 1
    counts = "SELECT v, count(*) FROM public.t GROUP BY 1 ORDER BY min(id)"
    assert rows_there(postgres_database, counts) == [
        ("first", 500),
        ("meets what is there", 200),
        ("a range that is not empty", 1000),
        ("next", 1000),
        ("a range that is empty", 1000),
    ]


def test_text_that_looks_like_the_format_goes_through_copy_unchanged(
    postgres_database: str, sinks: Callable[..., PostgresSink]
) -> None:
    texts = ["\\.", "\\N", "", "a\tb", "c\nd", "\n\\.\n", "\r\n", "\\\\", '{"x"}', "NULL", None, "\x08\x0b", "🂡"]
    target, session = target_of(TEXT), sinks().claim("default/s")
    values = [texts[number % len(texts)] for number in range(1300)]
    session.deliver([upsert(target, *enumerate(values))], CURSORS)
    there = [text for (text,) in rows_there(postgres_database, "SELECT v FROM public.t ORDER BY id")]
    assert there == values
    session.deliver([upsert(target, *enumerate(values))], CURSORS)
    assert [text for (text,) in rows_there(postgres_database, "SELECT v FROM public.t ORDER BY id")] == values
