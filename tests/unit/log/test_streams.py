"""Streams: names of any letters, incarnations, and a hundred thousand of them in one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kadds.api.change import ChangeBatch, Op, Transactions
from kadds.api.schema import Column, Table, TableSet
from kadds.log.log import Log
from kadds.log.stream import qualified_name, stream_name, table_names
from tests.unit.log.making import SOURCE, opened, sequence
from tests.unit.log.reading import found, slices

NAMES = [
    "orders",
    "a.b",
    "a/b",
    "a%2Eb",
    "%",
    ".",
    "..",
    "/",
    "Größe",
    "日本",
    "a b",
    'a"b',
    "a'b",
    "🦆",
    "a\nb",
    "_kadds",
]
COLUMNS = (Column("id", pa.int64()),)


def _table(schema: str | None, name: str, incarnation: str = "") -> Table:
    return Table(schema, name, COLUMNS, ("id",), incarnation)


def _one_row(table: Table, value: int) -> list[ChangeBatch]:
    return [ChangeBatch.of(table, Op.CREATE, pa.record_batch([pa.array([value])], schema=table.arrow_schema))]


def test_different_tables_have_different_names_that_say_which_they_are() -> None:
    tables = [_table(schema, name) for schema in (None, *NAMES) for name in NAMES]
    names = [stream_name(SOURCE, table) for table in tables]
    assert len(set(names)) == len(tables)
    for table, name in zip(tables, names, strict=True):
        assert table_names(name) == (table.schema, table.name)
        assert qualified_name(name) == table.qualified_name
        assert name.count("/") == 2
    assert stream_name("t/s", _table("public", "orders")) == "t/s/public.orders"


@pytest.mark.parametrize("state", ["open", "sealed", "reopened", "sealed and reopened"])
def test_tables_of_any_name_are_found_and_read_as_themselves(state: str, tmp_path: Path) -> None:
    tables = [_table(schema, name) for schema in (None, "public", "a.b/c%") for name in NAMES]
    log = opened(tmp_path / "log")
    producer = log.producer(SOURCE, "stream")
    for number, table in enumerate(tables, 1):
        producer.append(Transactions.one(sequence(number), _one_row(table, number)), b"")
    producer.resume()
    if "sealed" in state:
        log.seal()
    if "reopened" in state:
        log.close()
        log = opened(tmp_path / "log")
    assert len(log.streams()) == len(log.streams(SOURCE)) == len(tables)
    for number, table in enumerate(tables, 1):
        (stream,) = log.named(stream_name(SOURCE, table))
        (piece,) = (piece for piece in log.read(log.begin(), streams=[stream.id]) if piece.rows)
        (changes,) = piece.changes
        assert changes.table == table
        assert changes.values.column(0).to_pylist() == [number]
    assert log.named("default/shop/nothing") == []
    log.close()


def test_sources_whose_names_begin_alike_are_not_mixed(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        for source in ("default/shop", "default/shop2", "defaul/shop", "default/sho"):
            log.producer(source, "stream").append(Transactions.one(b"1", _one_row(_table(None, "t"), 1)), b"").result()
        for _ in range(2):
            assert [stream.source for stream in log.streams("default/shop")] == ["default/shop"]
            assert len(found(log, source="default/sho")) == 1
            assert len(log.streams()) == 4
            log.seal()


def _append(log: Log, number: int, incarnation: str) -> None:
    one = Transactions.one(sequence(number), _one_row(_table("public", "orders", incarnation), number))
    log.producer(SOURCE, "stream").append(one, b"").result()


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("seal_at", [(), (2,), (1, 2, 3, 4), (4,)])
@pytest.mark.parametrize("look", [False, True])
def test_a_table_made_again_is_a_new_stream_of_the_same_name(
    reopen: bool, seal_at: tuple[int, ...], look: bool, tmp_path: Path
) -> None:
    """`look`: the streams become known by their ids first, by reading."""
    log = opened(tmp_path / "log")
    for number, incarnation in enumerate(["a", "b", "c", "a", "b", "d"], 1):
        _append(log, number, incarnation)
        if number in seal_at:
            log.seal()
        if reopen:
            log.close()
            log = opened(tmp_path / "log")
            if look:
                cursors = [log.begin(), *(piece.cursor for piece in slices(log, max_rows=1))]
                log.close()
                log = opened(tmp_path / "log")
                assert found(log, cursors[-2])
    streams = log.named("default/shop/public.orders")
    assert [(stream.incarnation, stream.token) for stream in streams] == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert len({stream.id for stream in streams}) == 4
    by_label = {stream.label: [dict(one.values)["id"] for one in found(log, streams=[stream.id])] for stream in streams}
    name = "default/shop/public.orders"
    assert by_label == {name: [1, 4], f"{name}@2": [2, 5], f"{name}@3": [3], f"{name}@4": [6]}
    for piece in slices(log):
        assert all(changes.table.incarnation == changes.stream.token for changes in piece.changes)
    log.close()


def test_a_hundred_thousand_streams_of_one_shape_are_a_batch(tmp_path: Path) -> None:
    count = 100_000
    tables = TableSet(tuple(_table("public", f"t{number}") for number in range(count)))
    numbers = np.random.default_rng(1).permutation(np.repeat(np.arange(count, dtype=np.int32), 2))
    values = pa.record_batch([pa.array(np.arange(2 * count))], schema=tables.tables[0].arrow_schema)
    batch = ChangeBatch(
        tables,
        pa.array(np.arange(2 * count, dtype=np.uint32)),
        pa.array(np.full(2 * count, int(Op.CREATE), np.uint8)),
        values,
        table_numbers=pa.array(numbers),
    )
    with opened(tmp_path / "log") as log:
        log.producer(SOURCE, "stream").append(Transactions.one(b"1", [batch]), b"").result()
        _has_them(log, numbers, count)
        log.seal()
        _has_them(log, numbers, count)
    with opened(tmp_path / "log") as log:
        _has_them(log, numbers, count)
        log.producer(SOURCE, "stream").append(Transactions.one(b"2", [batch]), b"").result()
        assert len(log.streams()) == count


def _has_them(log: Log, numbers: np.ndarray, count: int) -> None:  # type: ignore[type-arg]
    assert len(log.streams(SOURCE)) == count
    rows = 0
    for piece in log.read(log.begin(), max_rows=1 << 20):
        rows += piece.rows
        for logged in piece.blocks:
            ids = np.repeat(logged.block.streams, logged.block.counts)
            assert (logged.block.values.column(0).to_numpy() == logged.offsets).all(), (
                "a row's value is its offset here"
            )
            assert ((np.diff(ids) > 0) | ((np.diff(ids) == 0) & (np.diff(logged.offsets) > 0))).all()
    assert rows == 2 * count
    for number in (0, 1, count // 2, count - 1):
        (stream,) = log.named(f"default/shop/public.t{number}")
        (piece,) = (piece for piece in log.read(log.begin(), streams=[stream.id]) if piece.rows)
        (changes,) = piece.changes
        assert changes.values.column(0).to_pylist() == np.flatnonzero(numbers == number).tolist()
