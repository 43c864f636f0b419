"""Cells that are not given: named in a history, and refused by name by a sink that needs whole rows."""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kadds.api.change import NOT_GIVEN_TYPE, ChangeBatch, Op, Transactions, not_given_bitmap
from kadds.api.connector import Event, Mode, SinkAbilities
from kadds.log.log import Log
from kadds.testing.fake_sink import FakeSink, FakeStorage, abilities
from tests.unit.engine.house import SINK, SOURCE, caught_up, engine_on, log_in, rows_of, subscription, table
from tests.unit.engine.test_real_sinks import add_files

ORDERS = table("orders")


def feed(log: Log) -> None:
    """A whole row, then an update that does not give the name, then a truncate of another table."""
    producer = log.producer(SOURCE, "test")
    whole = pa.record_batch([pa.array([1]), pa.array(["a"])], schema=ORDERS.arrow_schema)
    part = pa.record_batch([pa.array([1]), pa.array([None], pa.string())], schema=ORDERS.arrow_schema)
    bits = pa.array([not_given_bitmap([1], 2)], NOT_GIVEN_TYPE)
    changes = [
        ChangeBatch.of(ORDERS, Op.CREATE, whole),
        ChangeBatch.of(ORDERS, Op.UPDATE, part, first_ordinal=1, not_given=bits),
    ]
    empty = pa.record_batch([pa.nulls(1, column.type) for column in ORDERS.columns], schema=ORDERS.arrow_schema)
    none = pa.array([not_given_bitmap([0, 1], 2)], NOT_GIVEN_TYPE)
    emptied = ChangeBatch.of(table("items"), Op.TRUNCATE, empty, first_ordinal=2, not_given=none)
    producer.append(Transactions.one(struct.pack(">Q", 1), [*changes, emptied]), b"").result()


def test_a_parquet_history_names_cells_that_are_not_given(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed(log)
        add_files(engine, tmp_path / "files")
        engine.add_subscription(subscription("default/h", Mode.APPEND, sink="default/files"))
        engine.start()
        assert caught_up(engine).exit_code == 0
    rows = [row for file in (tmp_path / "files").rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    rows.sort(key=lambda row: row["_kadds_offset"])
    assert [(row["name"], row["_kadds_not_given"]) for row in rows[:2]] == [("a", None), (None, ["name"])]


@pytest.mark.parametrize("mode", [Mode.MERGE, Mode.TRANSACTIONAL, Mode.APPEND])
def test_a_sink_that_needs_whole_rows_refuses_others_by_name(tmp_path: Path, mode: Mode) -> None:
    usual, storage = abilities(), FakeStorage()
    cells = frozenset(cell for cell in usual.cells if cell[0] is not Event.NOT_GIVEN)
    can = SinkAbilities(usual.promise, cells, usual.schema_changes)
    with log_in(tmp_path) as log, engine_on(log) as engine:
        engine.add_sink(SINK, FakeSink(storage, can), can)
        engine.add_subscription(subscription(mode=mode, wanted=lambda name: name == "public.orders"))
        engine.add_subscription(subscription("default/other", mode=mode, wanted=lambda name: name == "public.items"))
        engine.start()
        feed_whole_first(log)
        [(name, problem)] = caught_up(engine).problems
        assert name.startswith("subscription:default/shop-to-warehouse")
        assert (problem.kind, problem.message) == (
            "DataError",
            f"the sink has no not-given in mode {mode.value}, and such a change has come",
        )
        assert (2, None) not in rows_of(storage)


def feed_whole_first(log: Log) -> None:
    """As `feed`, with the update in a transaction of its own, so that it cannot become part of a created row."""
    feed(log)
    part = pa.record_batch([pa.array([2]), pa.array([None], pa.string())], schema=ORDERS.arrow_schema)
    bits = pa.array([not_given_bitmap([1], 2)], NOT_GIVEN_TYPE)
    update = ChangeBatch.of(ORDERS, Op.UPDATE, part, not_given=bits)
    log.producer(SOURCE, "test").append(Transactions.one(struct.pack(">Q", 2), [update]), b"").result()
