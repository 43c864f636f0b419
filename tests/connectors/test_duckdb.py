"""The DuckDB sink: the conformance suite, and what is its own: the file, its owner, and its types."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from kadds.api.change import HISTORY
from kadds.api.connector import Delete, Delivery, Level, Mode, Rekey, Sink, Target, Upsert
from kadds.api.errors import (
    ConfigurationError,
    DataError,
    FencedError,
    RefusedError,
    RetryableError,
    SchemaMismatchError,
)
from kadds.api.schema import Column, Table
from kadds.testing.faults import file_size_limit
from kadds.testing.sink_contract import SinkContract
from kadds.testing.sink_values import HOSTILE_NAMES, orders, rows_of, text_cell
from kadds_duckdb import connector
from kadds_duckdb.file import DatabaseFile
from kadds_duckdb.settings import DuckdbSettings
from kadds_duckdb.sink import DuckdbSink
from kadds_duckdb.types import _RANGES
from tests.support.waiting import wait_until

assert connector.sink is not None
SIDE = connector.sink


def read_all(path: Path, target: Target, schema: str = "main") -> pa.Table:
    """What the owner of the file sees, in the target's own types."""
    fields = [*target.table.arrow_schema, *(HISTORY if target.mode is Mode.APPEND else [])]
    named = target.name == target.table.qualified_name
    names = [target.table.schema or schema, target.table.name] if named else target.name.split(".", 1)
    table = ".".join('"' + name.replace('"', '""') + '"' for name in names)
    columns = ", ".join('"' + field.name.replace('"', '""') + '"' for field in fields)
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(f"SELECT {columns} FROM {table}").to_arrow_table()
    wanted = [pa.field(field.name, pa.string() if field.type == pa.null() else field.type) for field in fields]
    found = found.cast(pa.schema(wanted))
    arrays = [
        pa.nulls(len(found)) if f.type == pa.null() and c.null_count == len(c) else c
        for f, c in zip(fields, found.columns, strict=True)
    ]
    return pa.table(arrays, schema=pa.schema(fields))


class TestDuckdbSink(SinkContract):
    abilities = SIDE.abilities

    def fresh_storage(self, folder: Path) -> None:
        self.path = folder / "target.duckdb"

    def make_sink(self) -> Sink:
        return SIDE.open(DuckdbSettings(path=self.path, idle_close_seconds=600, threads=1))

    def read_target(self, target: Target) -> pa.Table:
        for sink in self._sinks:
            sink.file.close()  # as its owner would wait for
        return read_all(self.path, target)


# ------------------------------------------------------------------------------------------ the file and its owner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "warehouse.duckdb"


@pytest.fixture
def open_sink(path: Path) -> Iterator[Callable[..., DuckdbSink]]:
    opened: list[DuckdbSink] = []

    def make(**settings: Any) -> DuckdbSink:
        opened.append(SIDE.open(DuckdbSettings(path=path, **{"idle_close_seconds": 0, "threads": 1, **settings})))
        return opened[-1]

    yield make
    for sink in opened:
        sink.close()


def owner(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """What the owner of the file does with it, in one go; the rows of the last statement."""
    with duckdb.connect(str(path)) as connection:
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def one_row(target: Target, number: int) -> Delivery:
    return Delivery(target, (Upsert(rows_of(target, [(number, "a", number, f"note {number}")])),))


class StoppedClock:
    """Time passes when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.changed: threading.Condition | None = None

    def now(self) -> float:
        return self.seconds

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        self.changed = changed
        changed.wait()

    def advance(self, seconds: float) -> None:
        assert self.changed is not None
        with self.changed:
            self.seconds += seconds
            self.changed.notify_all()


def test_the_file_stays_open_while_batches_follow_and_is_then_its_owners(path: Path) -> None:
    clock, target = StoppedClock(), orders(Mode.MERGE)
    settings = DuckdbSettings(path=path, idle_close_seconds=1.0)
    file = DatabaseFile(settings, clock)
    session = DuckdbSink(settings, SIDE.abilities, file).claim("default/s")
    session.prepare(target)
    for number in range(3):
        session.deliver([one_row(target, number)], {})
        wait_until(lambda: clock.changed is not None)
        clock.advance(0.75)
    assert file.openings == 1
    assert file.is_open
    clock.advance(0.75)
    wait_until(lambda: not file.is_open)
    assert owner(path, "SELECT count(*) FROM public.orders") == [(3,)]
    session.deliver([one_row(target, 3)], {})
    assert file.openings == 2
    file.close()


def test_a_file_held_by_another_process_is_waited_for_by_its_pid(path: Path, open_sink: Any) -> None:
    sink, target = open_sink(), orders(Mode.MERGE)
    session = sink.claim("default/s")
    session.prepare(target)
    hold = f"import duckdb; c = duckdb.connect({str(path)!r}); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for attempt in (lambda: session.deliver([one_row(target, 1)], {}), lambda: sink.claim("default/s")):
        with pytest.raises(RetryableError) as caught:
            attempt()
        assert caught.value.waiting_for == f"{path}, held by PID {holder.pid}"
    assert [finding.level for finding in sink.check([target])] == [Level.WARNING]
    holder.communicate("\n")
    session.deliver([one_row(target, 1)], {})
    assert owner(path, "SELECT id FROM public.orders") == [(1,)]


def test_sinks_of_one_file_share_it_and_must_agree_on_its_settings(open_sink: Any) -> None:
    one, two = open_sink(), open_sink()
    assert one.file is two.file
    with pytest.raises(ConfigurationError, match="different settings"):
        open_sink(memory_limit_bytes=256 << 20)


def test_what_is_no_database_file_is_refused(path: Path, open_sink: Any) -> None:
    path.write_text("no database" * 1000)
    with pytest.raises(RefusedError, match=str(path)):
        open_sink().claim("default/s")


def test_a_file_that_its_owner_replaced_fences_the_session(path: Path, open_sink: Any) -> None:
    session = open_sink().claim("default/s")
    path.unlink()
    with pytest.raises(FencedError):
        session.deliver([], {"stream": "1"})


def test_on_a_full_disk_a_delivery_waits_and_leaves_nothing(path: Path, open_sink: Any) -> None:
    sink, target = open_sink(), orders(Mode.MERGE)
    session = sink.claim("default/s")
    session.prepare(target)
    session.deliver([one_row(target, 1)], {"stream": "1"})
    notes = [(number, "a", number, os.urandom(500).hex()) for number in range(2000)]
    with file_size_limit(path.stat().st_size + 4096), pytest.raises(RetryableError) as caught:
        session.deliver([Delivery(target, (Upsert(rows_of(target, notes)),))], {"stream": "2"})
    assert caught.value.waiting_for is not None
    session = sink.claim("default/s")
    assert dict(session.cursors) == {"stream": "1"}
    assert owner(path, "SELECT id FROM public.orders") == [(1,)]
    session.deliver([Delivery(target, (Upsert(rows_of(target, notes)),))], {"stream": "2"})
    assert owner(path, "SELECT count(*) FROM public.orders") == [(2000,)]


_DELIVER_FOREVER = """
import sys, pathlib
from kadds.api.connector import Delivery, Mode, Upsert
from kadds.testing.sink_values import HOSTILE_NAMES, orders, rows_of
from kadds_duckdb import connector
from kadds_duckdb.settings import DuckdbSettings
sink = connector.sink.open(DuckdbSettings(path=pathlib.Path(sys.argv[1]), threads=1))
session = sink.claim("default/s")
target = orders(Mode.MERGE)
session.prepare(target)
number = int(session.cursors.get("stream", 0))
while True:
    number += 1
    rows = rows_of(target, [(number * 10 + i, "a", number, "x" * 200) for i in range(10)])
    session.deliver([Delivery(target, (Upsert(rows),))], {"stream": str(number)})
    print(number, flush=True)
"""


def test_killed_between_any_two_instructions_rows_and_cursor_agree(path: Path) -> None:
    acknowledged = 0
    for round_number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _DELIVER_FOREVER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(3 + 7 * round_number):
            acknowledged = int(process.stdout.readline())
        process.kill()
        process.communicate()
        (cursor,) = owner(path, "SELECT cursor::BIGINT FROM _kadds_cursors")[0]
        assert cursor >= acknowledged
        count = "SELECT count(*), count(DISTINCT id), max(amount)::BIGINT FROM public.orders"
        assert owner(path, count) == [(10 * cursor, 10 * cursor, cursor)]


# ------------------------------------------------------------------------------------------------ tables of the owner


def test_a_table_of_the_owner_keeps_its_key_its_columns_and_what_stands_in_them(path: Path, open_sink: Any) -> None:
    owner(
        path,
        "CREATE SCHEMA public",
        "CREATE TABLE public.orders (note VARCHAR, remark VARCHAR DEFAULT 'none', id HUGEINT PRIMARY KEY, "
        "amount DECIMAL(20,4), doubled DECIMAL(21,4) GENERATED ALWAYS AS (amount * 2), part VARCHAR)",
        "INSERT INTO public.orders SELECT 'old', 'mine', id, 1, 'a' FROM range(1, 4) AS r(id)",
    )
    target = orders(Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    keys = [rows_of(target, [(number, "", None, None)]).select(["id"]) for number in (2, 3)]
    session.deliver(
        [
            one_row(target, 1),
            Delivery(target, (Delete(keys[1]), Rekey(keys[0], keys[1]))),
            one_row(target, 4),
        ],
        {},
    )
    assert owner(
        path, "SELECT id, part, amount::INTEGER, note, remark, doubled::INTEGER FROM public.orders ORDER BY id"
    ) == [
        (1, "a", 1, "note 1", "mine", 2),
        (3, "a", 1, "old", "mine", 2),
        (4, "a", 4, "note 4", "none", 8),
    ]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ("id BIGINT, part VARCHAR, amount DECIMAL(12,1), note VARCHAR", ["amount", "DECIMAL(12,1)"]),
        ("id INTEGER, part VARCHAR, note VARCHAR", ["id", "INTEGER", "amount is missing"]),
        ("id BIGINT, part VARCHAR, amount DOUBLE, note VARCHAR", ["amount", "DOUBLE"]),
        ("id BIGINT, part VARCHAR, amount DECIMAL(12,2), note VARCHAR, more INT NOT NULL", ["more", "NOT NULL"]),
        ("id BIGINT, part VARCHAR, amount DECIMAL(12,2), NOTE VARCHAR", ["note is missing (there is NOTE)"]),
    ],
)
def test_every_difference_of_the_owners_table_is_named(
    path: Path, open_sink: Any, columns: str, names: list[str]
) -> None:
    owner(path, "CREATE SCHEMA public", f"CREATE TABLE public.orders ({columns})")
    sink, target = open_sink(), orders(Mode.MERGE)
    session = sink.claim("default/s")
    with pytest.raises(SchemaMismatchError) as caught:
        session.prepare(target)
    found = " ".join(finding.message for finding in sink.check([target]))
    for name in names:
        assert name in str(caught.value)
        assert name in found


def test_a_view_is_no_target(path: Path, open_sink: Any) -> None:
    owner(path, "CREATE SCHEMA public", "CREATE VIEW public.orders AS SELECT 1 AS id")
    with pytest.raises(SchemaMismatchError, match="view"):
        open_sink().claim("default/s").prepare(orders(Mode.MERGE))


def test_a_table_that_the_owner_changed_while_the_file_was_closed_is_looked_at_again(
    path: Path, open_sink: Any
) -> None:
    target = orders(Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    owner(path, "ALTER TABLE public.orders ALTER amount TYPE BOOLEAN")
    with pytest.raises(SchemaMismatchError, match="amount"):
        session.deliver([one_row(target, 1)], {})
    owner(path, "DROP TABLE public.orders")
    session.deliver([one_row(target, 1)], {})
    assert owner(path, "SELECT id FROM public.orders") == [(1,)]


def test_text_that_a_number_cannot_hold_stands_in_a_column_that_the_owner_made_varchar(
    path: Path, open_sink: Any
) -> None:
    owner(path, "CREATE SCHEMA public", "CREATE TABLE public.orders (id BIGINT, part TEXT, amount TEXT, note TEXT)")
    target = orders(Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    rows = rows_of(target, [(1, "a", None, None), (2, "a", 2, None)])
    session.deliver([Delivery(target, (Upsert(rows, as_text=text_cell(2, 0, 2, "NaN")),))], {})
    assert owner(path, "SELECT id, amount FROM public.orders ORDER BY id") == [(1, "NaN"), (2, "2.00")]


def test_text_that_does_not_fit_is_refused_with_table_column_and_text(open_sink: Any) -> None:
    target = orders(Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    rows = rows_of(target, [(1, "a", None, None)])
    with pytest.raises(DataError, match=r"public\.orders: column amount .*'NaN'"):
        session.deliver([Delivery(target, (Upsert(rows, as_text=text_cell(1, 0, 2, "NaN")),))], {})


def test_decimals_wider_than_duckdbs_are_text_and_say_so(path: Path, open_sink: Any) -> None:
    table = Table("public", "wide", (Column("id", pa.int64()), Column("sum", pa.decimal256(65, 30))), ("id",))
    target = Target("default/shop/public.wide", "public.wide", table, Mode.MERGE)
    sink = open_sink()
    (note,) = sink.check([target])
    assert (note.level, "sum" in note.message) == (Level.NOTE, True)
    session = sink.claim("default/s")
    session.prepare(target)
    rows = pa.RecordBatch.from_pylist([{"id": 1, "sum": Decimal("-1E-30")}], schema=table.arrow_schema)
    session.deliver([Delivery(target, (Upsert(rows),))], {})
    assert owner(path, "SELECT sum FROM public.wide") == [("-0." + "0" * 29 + "1",)]
    assert "text" in owner(path, "SELECT comment FROM duckdb_columns() WHERE column_name = 'sum'")[0][0]


def test_names_choose_schema_and_table_and_ours_are_taken(path: Path, open_sink: Any) -> None:
    sink = open_sink(default_schema="landing")
    session = sink.claim("default/s")
    source = orders(Mode.MERGE)
    for name in ("sales.orders", "orders", "sales.dot.ted"):
        session.prepare(replace(source, name=name))
    tables = "SELECT schema_name, table_name FROM duckdb_tables() WHERE schema_name <> 'main' ORDER BY ALL"
    assert owner(path, tables) == [("landing", "orders"), ("sales", "dot.ted"), ("sales", "orders")]
    taken = replace(source, name="main._KADDS_cursors")
    assert next(finding.level for finding in sink.check([taken])) is Level.ERROR
    with pytest.raises(ConfigurationError, match="cursors"):
        session.prepare(taken)


def test_a_column_that_may_not_be_null_is_not_added_to_rows_that_are_there(open_sink: Any) -> None:
    target = orders(Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    columns = (*target.table.columns, Column("added", pa.int32(), nullable=False))
    with pytest.raises(SchemaMismatchError, match="added"):
        session.prepare(replace(target, table=replace(target.table, columns=columns), version=1))


def test_a_key_that_is_null_or_stands_twice_is_refused(open_sink: Any) -> None:
    target = orders(Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    for rows in ([(None, "a", 1, "x")], [(1, "a", 1, "x"), (1, "a", 2, "y")]):
        with pytest.raises(DataError):
            session.deliver([Delivery(target, (Upsert(rows_of(target, rows)),))], {})


def test_a_key_change_onto_a_row_that_is_there_is_refused(open_sink: Any) -> None:
    target = orders(Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    session.deliver([one_row(target, 1), one_row(target, 2)], {})
    keys = [rows_of(target, [(number, "", None, None)]).select(["id"]) for number in (1, 2)]
    with pytest.raises(DataError, match="key 2"):
        session.deliver([Delivery(target, (Rekey(*keys),))], {})


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_any_name_of_a_table_or_column_is_kept_letter_by_letter(path: Path, open_sink: Any, name: str) -> None:
    columns = (Column("id", pa.int64(), nullable=False), Column(name, pa.string()))
    target = Target("default/shop/x", f"{name}.{name}", Table(name, name, columns, ("id",)), Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    session.deliver([Delivery(target, (Upsert(rows_of(target, [(1, name)])),))], {})
    assert read_all(path, target).to_pylist() == [{"id": 1, name: name}]
    found = owner(path, "SELECT schema_name, table_name FROM duckdb_tables() WHERE schema_name <> 'main'")
    assert found == [(name, name)]


@pytest.mark.parametrize("arrow", _RANGES, ids=str)
def test_times_that_duckdb_would_show_as_others_are_refused_and_the_next_are_not(
    path: Path, open_sink: Any, arrow: pa.DataType
) -> None:
    table = Table("public", "times", (Column("id", pa.int64()), Column("at", arrow)), ("id",))
    target = Target("default/shop/public.times", "public.times", table, Mode.MERGE)
    session = open_sink().claim("default/s")
    session.prepare(target)
    first, last = _RANGES[arrow]
    storage = pa.int32() if arrow == pa.date32() else pa.int64()

    def deliver(*values: int) -> None:
        columns = [pa.array(range(len(values)), pa.int64()), pa.array(values, storage).view(arrow)]
        rows = pa.RecordBatch.from_arrays(columns, schema=table.arrow_schema)
        session.deliver([Delivery(target, (Upsert(rows),))], {})

    deliver(first, last)
    shown = [text for (text,) in owner(path, 'SELECT "at"::VARCHAR FROM public.times')]
    assert not [text for text in shown if "inf" in text]
    for value in (first - 1, last + 1):
        with pytest.raises(DataError, match="column at"):
            deliver(value)


@pytest.mark.parametrize(
    "existing", ['CREATE SCHEMA "Public"', "CREATE SCHEMA public; CREATE TABLE public.Orders (id BIGINT)"]
)
def test_what_differs_in_case_alone_is_named_before_anything_is_made(path: Path, open_sink: Any, existing: str) -> None:
    owner(path, existing)
    sink, target = open_sink(), orders(Mode.MERGE)
    with pytest.raises(SchemaMismatchError, match="does not tell"):
        sink.claim("default/s").prepare(target)
    assert [finding.level for finding in sink.check([target])] == [Level.ERROR]
