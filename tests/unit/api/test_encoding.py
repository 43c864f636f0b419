"""Transactions cross as bytes and come out equal, and the log meets the same tables as the same objects."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from kadds.api import encoding
from kadds.api.change import AS_TEXT_TYPE, NOT_GIVEN_TYPE, ChangeBatch, Control, ControlKind, Op, Transactions
from kadds.api.encoding import Decoder, Encoder
from kadds.api.schema import Column, Table, TableSet

COLUMNS = (Column("ops", pa.decimal128(12, 2), "numeric(12,2)"), Column("ordinals", pa.timestamp("us", "UTC")))
ORDERS = Table("public", "orders", COLUMNS, ("ops",), "16400")
ITEMS = Table(None, "items", COLUMNS)
MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC)
VALUES = pa.record_batch(
    [pa.array([Decimal("1.50"), None, Decimal("-7.25")], COLUMNS[0].type), pa.array([MOMENT, None, MOMENT])],
    schema=ORDERS.arrow_schema,
)


def crossed(transactions: Transactions, encoder: Encoder | None = None, decoder: Decoder | None = None) -> Transactions:
    return (decoder or Decoder()).decode(b"".join((encoder or Encoder()).encode(transactions)))


def one(*changes: ChangeBatch, controls: tuple[Control, ...] = ()) -> Transactions:
    return Transactions.one(b"\x00\xff", changes, controls, lineage="here", token="0/1", xid="7", committed_at=MOMENT)


def test_everything_that_a_batch_can_carry_comes_out_equal() -> None:
    batch = ChangeBatch(
        TableSet.of([ORDERS, ITEMS]),
        pa.array([0, 1, 3], pa.uint32()),
        pa.array(list(b"cud"), pa.uint8()),
        VALUES,
        pa.array([0, 1, 1], pa.int32()),
        pa.array([False, False, True]),
        pa.array([None, b"\x01", None], NOT_GIVEN_TYPE),
        pa.array([[{"column": 0, "text": "NaN"}], None, []], AS_TEXT_TYPE),
    )
    controls = (Control(ControlKind.SCHEMA, 2, ITEMS, {"why": "ä"}), Control(ControlKind.PROGRESS, 4))
    found = crossed(one(batch, controls=controls))
    (same,) = found.changes
    assert same.tables.tables == batch.tables.tables
    for name in ("ordinals", "ops", "values", "table_numbers", "before", "not_given", "as_text"):
        assert getattr(same, name).equals(getattr(batch, name)), name
    assert found.controls == controls
    assert found.facts.equals(one(batch, controls=controls).facts)
    assert found.lineage == "here"


@pytest.mark.parametrize("start", [0, 1, 2])
def test_a_slice_takes_its_own_rows_with_it(start: int) -> None:
    whole = ChangeBatch.of(ORDERS, [Op.CREATE, Op.READ, Op.UPDATE], VALUES, before=pa.array([False, True, False]))
    cut = whole.slice(start, 3)
    (same,) = crossed(Transactions.one(b"1", [cut])).changes
    assert same.values.equals(cut.values)
    assert same.before is not None
    assert same.before.equals(cut.before)
    assert (same.not_given, same.as_text, same.table_numbers) == (None, None, None)


def test_rows_of_a_table_without_columns_are_counted() -> None:
    nothing = pa.record_batch([pa.array([1, 2])], ["a"]).select([])
    (same,) = crossed(one(ChangeBatch.of(Table("public", "empty", ()), Op.CREATE, nothing))).changes
    assert len(same) == 2


def test_a_table_is_described_once_and_is_the_same_object_each_time() -> None:
    encoder, decoder = Encoder(), Decoder()
    first = b"".join(encoder.encode(one(ChangeBatch.of(ORDERS, Op.CREATE, VALUES))))
    again = b"".join(encoder.encode(one(ChangeBatch.of(ORDERS, Op.CREATE, VALUES))))
    assert b"numeric(12,2)" in first
    assert b"numeric(12,2)" not in again
    (one_batch,), (other_batch,) = decoder.decode(first).changes, decoder.decode(again).changes
    assert one_batch.tables is other_batch.tables
    altered = Table("public", "orders", (*COLUMNS[:1], Column("ordinals", pa.timestamp("us", "UTC"), "x")), ("ops",))
    (changed,) = crossed(one(ChangeBatch.of(altered, Op.CREATE, VALUES)), encoder, decoder).changes
    assert changed.table == altered


def test_tables_made_alike_share_their_columns() -> None:
    tables = TableSet.of([Table("public", f"t{number}", COLUMNS) for number in range(3)])
    rows = VALUES.num_rows
    batch = ChangeBatch(
        tables, pa.array(np.arange(rows, dtype=np.uint32)), pa.array(list(b"ccc"), pa.uint8()), VALUES,
        pa.array(np.arange(rows, dtype=np.int32)),
    )  # fmt: skip
    (same,) = crossed(one(batch)).changes
    assert len({id(table.columns) for table in same.tables.tables}) == 1


def test_what_is_remembered_of_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_SETS_MAX", 5)
    encoder, decoder = Encoder(), Decoder()
    for number in range(40):
        table = Table("public", f"t{number % 13}", COLUMNS)
        (same,) = crossed(one(ChangeBatch.of(table, Op.CREATE, VALUES)), encoder, decoder).changes
        assert same.table == table
    assert len(encoder._numbers) <= 6
    assert len(decoder._sets) <= 6


def test_after_an_append_that_cannot_be_encoded_the_next_one_describes_its_tables() -> None:
    encoder, decoder = Encoder(), Decoder()
    unspeakable = Control(ControlKind.SCHEMA, 3, ORDERS, {"why": object()})
    with pytest.raises(TypeError):
        encoder.encode(one(ChangeBatch.of(ORDERS, Op.CREATE, VALUES), controls=(unspeakable,)))
    (same,) = crossed(one(ChangeBatch.of(ORDERS, Op.CREATE, VALUES)), encoder, decoder).changes
    assert same.table == ORDERS
