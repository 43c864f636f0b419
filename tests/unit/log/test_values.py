"""Values are exact (promise 8): every type, every state of a cell, through journal and segment unchanged."""

from __future__ import annotations

import datetime as dt
import hashlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kadds.api.change import AS_TEXT_TYPE, NOT_GIVEN_TYPE, ChangeBatch, Op, Transactions, not_given_bitmap
from kadds.api.schema import Column, Table
from kadds.log.log import Log
from kadds.log.slice import StreamChanges
from tests.unit.log.making import SOURCE, opened, sequence

UTC = dt.UTC
VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, False]),
    "int8": (pa.int8(), [-128, 127]),
    "int16": (pa.int16(), [-(2**15), 2**15 - 1]),
    "int32": (pa.int32(), [-(2**31), 2**31 - 1]),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1]),
    "uint8": (pa.uint8(), [0, 255]),
    "uint16": (pa.uint16(), [0, 2**16 - 1]),
    "uint32": (pa.uint32(), [0, 2**32 - 1]),
    "uint64": (pa.uint64(), [0, 2**64 - 1]),
    "float32": (pa.float32(), [float("nan"), -0.0, 1.5, float("-inf")]),
    "float64": (pa.float64(), [float("nan"), -0.0, 5e-324, float("inf")]),
    "string": (pa.string(), ["", " ", "a\0b", "日本 🦆", "x" * 70_000]),
    "binary": (pa.binary(), [b"", b"\0\xff", bytes(range(256))]),
    "date32": (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    "time64": (pa.time64("us"), [dt.time(0), dt.time(23, 59, 59, 999_999)]),
    "timestamp_us": (pa.timestamp("us"), [dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999_999)]),  # noqa: DTZ001
    "timestamp_us_utc": (pa.timestamp("us", "UTC"), [dt.datetime(1, 1, 1, tzinfo=UTC)]),
    "timestamp_ns": (pa.timestamp("ns"), [-(2**63) + 1, 2**63 - 1, 1]),
    "timestamp_ns_utc": (pa.timestamp("ns", "UTC"), [0, 1]),
    "null": (pa.null(), [None]),
    "decimal128": (pa.decimal128(38, 10), [Decimal("-9999999999999999999999999999.9999999999"), Decimal("1E-10")]),
    "decimal128_negative": (pa.decimal128(5, -3), [Decimal("99999E3")]),
    "decimal256": (pa.decimal256(76, 38), [Decimal(10) ** 37, Decimal("-1E-38")]),
}
EVERY_TYPE = Table("public", "every", tuple(Column(name, kind) for name, (kind, _) in VALUES.items()))


def _every_value() -> pa.RecordBatch:
    """Rows in which every value of every type stands, and a NULL beside it."""
    length = 2 * max(len(values) for _, values in VALUES.values())
    arrays = []
    for kind, values in VALUES.values():
        cells = [values[row // 2 % len(values)] if row % 2 == 0 else None for row in range(length)]
        arrays.append(pa.array(cells, kind))
    return pa.RecordBatch.from_arrays(arrays, schema=EVERY_TYPE.arrow_schema)


def _through_every_state(tmp_path: Path, *batches: ChangeBatch) -> list[list[StreamChanges]]:
    """What is read: from the cache, from the journal, from a segment; each by stream and as a whole."""
    read: list[list[StreamChanges]] = []

    def look(log: Log) -> None:
        ids = [stream.id for stream in log.streams()]
        read.append([changes for piece in log.read(log.begin()) for changes in piece.changes])
        read.append([changes for piece in log.read(log.begin(), streams=ids[:1]) for changes in piece.changes])

    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        for number, batch in enumerate(batches, 1):
            producer.append(Transactions.one(sequence(number), [batch]), b"").result()
        look(log)
    for _ in range(2):
        with opened(tmp_path / "log") as log:
            look(log)
            log.seal()
            look(log)
    return read


def _joined(parts: list[StreamChanges], name: str) -> Any:
    arrays = [getattr(part, name) for part in parts]
    if name == "values":
        return pa.Table.from_batches(arrays).combine_chunks()
    return pa.chunked_array(arrays).combine_chunks()


def test_every_type_and_null_survives(tmp_path: Path) -> None:
    values = _every_value()
    expected = pa.Table.from_batches([values, values])
    batches = [ChangeBatch.of(EVERY_TYPE, Op.CREATE, values) for _ in range(2)]
    for parts in _through_every_state(tmp_path, *batches):
        found = _joined(parts, "values")
        assert found.schema == expected.schema
        for name in expected.column_names:
            if name.startswith("float"):  # NaN is not itself, and -0.0 is 0.0: compare the bits
                kind = pa.int32() if name == "float32" else pa.int64()
                found_bits = found.column(name).combine_chunks().view(kind)
                assert found_bits.equals(expected.column(name).combine_chunks().view(kind))
            else:
                assert found.column(name).equals(expected.column(name)), name


@pytest.mark.parametrize("offset", [0, 3])
def test_every_state_of_a_cell_survives(offset: int, tmp_path: Path) -> None:
    """Also where the arrays are slices of larger ones."""
    table = Table("public", "t", tuple(Column(f"c{number}", pa.string()) for number in range(11)), ("c0",))
    length = 8
    values = pa.RecordBatch.from_arrays(
        [pa.array([f"{row}" if row % 2 else None for row in range(length)]) for _ in table.columns],
        schema=table.arrow_schema,
    )
    bitmaps = [None, not_given_bitmap([1], 11), not_given_bitmap([10], 11), None, not_given_bitmap(range(11), 11)]
    not_given = pa.array([bitmaps[row % 5] for row in range(length)], NOT_GIVEN_TYPE)
    texts = [[], None, [{"column": 3, "text": "NaN"}, {"column": 10, "text": ""}], None]
    as_text = pa.array([texts[row % 4] for row in range(length)], AS_TEXT_TYPE)
    before = pa.array([row % 3 == 0 for row in range(length)])
    ops = [Op.UPDATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE, Op.READ, Op.CREATE, Op.UPDATE, Op.UPDATE]
    whole = ChangeBatch.of(table, ops, values, before=before, not_given=not_given, as_text=as_text)
    batch = whole.slice(offset, length)
    batch = ChangeBatch.of(
        table, batch.ops, batch.values, before=batch.before, not_given=batch.not_given, as_text=batch.as_text
    )
    plain = ChangeBatch.of(table, Op.CREATE, values)
    for parts in _through_every_state(tmp_path, batch, plain):
        rows = length - offset
        for name in ("before", "not_given", "as_text"):
            cells = [cell for part in parts for cell in _cells(part, name)]
            assert cells[:rows] == getattr(batch, name).to_pylist(), name
            assert cells[rows:] == [False if name == "before" else None] * length
        assert _joined(parts, "ops").to_pylist() == [*batch.ops.to_pylist(), *plain.ops.to_pylist()]
        assert _joined(parts, "values").equals(pa.Table.from_batches([batch.values, values]).combine_chunks())


def _cells(part: StreamChanges, name: str) -> list[Any]:
    array = getattr(part, name)
    return [False if name == "before" else None] * len(part) if array is None else array.to_pylist()


def test_values_of_five_megabytes_survive(tmp_path: Path) -> None:
    table = Table("public", "t", (Column("s", pa.string()), Column("b", pa.binary())))
    large = [hashlib.shake_256(bytes([number])).digest(5 << 20) for number in range(3)]
    values = pa.RecordBatch.from_arrays(
        [pa.array([part.hex()[: 5 << 20] for part in large]), pa.array(large, pa.binary())], schema=table.arrow_schema
    )
    for parts in _through_every_state(tmp_path, ChangeBatch.of(table, Op.CREATE, values)):
        assert _joined(parts, "values").equals(pa.Table.from_batches([values]).combine_chunks())


def test_a_table_whose_columns_change_is_one_stream_under_several_layouts(tmp_path: Path) -> None:
    first = Table("public", "t", (Column("id", pa.int64(), declared="bigint"), Column("a", pa.string())), ("id",))
    added = Table("public", "t", (*first.columns, Column("b", pa.decimal128(12, 2))), ("id",))
    redeclared = Table("public", "t", (Column("id", pa.int64(), declared="serial"), Column("a", pa.string())), ("id",))
    keyless = Table("public", "t", first.columns)
    versions = [first, added, first, redeclared, keyless, added]

    def batch(table: Table, row: int) -> ChangeBatch:
        arrays = [pa.array([row]), pa.array([f"a{row}"]), pa.array([Decimal(row)], pa.decimal128(12, 2))]
        return ChangeBatch.of(
            table, Op.CREATE, pa.RecordBatch.from_arrays(arrays[: len(table.columns)], schema=table.arrow_schema)
        )

    for parts in _through_every_state(tmp_path, *(batch(table, row) for row, table in enumerate(versions))):
        assert len({part.stream.id for part in parts}) == 1
        by_row = {row: part.table for part in parts for row in part.values.column(0).to_pylist()}
        assert [by_row[row] for row in range(6)] == versions
        assert sorted(offset for part in parts for offset in part.offsets.to_pylist()) == list(range(6))
        assert all(part.values.column(1)[0].as_py().startswith("a") for part in parts)


def test_tables_of_one_shape_share_a_block_whatever_they_declare(tmp_path: Path) -> None:
    tables = [
        Table("public", f"t{number}", (Column("id", pa.int64(), declared=f"kind {number}", nullable=number > 0),))
        for number in range(3)
    ]
    batches = [
        ChangeBatch.of(
            table, Op.CREATE, pa.record_batch([pa.array([number])], schema=table.arrow_schema), first_ordinal=number
        )
        for number, table in enumerate(tables)
    ]
    with opened(tmp_path / "log") as log:
        log.producer(SOURCE, "stream").append(Transactions.one(b"1", batches), b"").result()
        for _ in range(2):
            (piece,) = log.read(log.begin())
            assert len(piece.blocks) == 1
            assert [changes.table for changes in piece.changes] == tables
            log.seal()
