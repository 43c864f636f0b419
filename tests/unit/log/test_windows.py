"""Windows hold every row once, in order, and end with a transaction wherever one fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from kadds.log.block import Block, runs
from kadds.log.layout import Layouts
from kadds.log.slice import LoggedBlock
from kadds.log.windows import split, window_ends
from tests.unit.log.making import ORDERS

Ids = npt.NDArray[np.int64]


def block_of(streams: Ids, offsets: Ids) -> LoggedBlock:
    """Rows of these streams at these offsets, sorted as a segment has them; each row's id is its offset."""
    order = np.lexsort((offsets, streams))
    streams, offsets = streams[order], offsets[order]
    layout, _ = Layouts().of(ORDERS)
    extents: Any = runs(streams, np.full(len(streams), layout.number, np.uint32))
    columns = [pa.array(offsets).cast(column.type) for column in ORDERS.columns]
    values = pa.RecordBatch.from_arrays(columns, schema=ORDERS.arrow_schema)
    places, ops = pa.array(offsets.astype(np.uint32)), pa.array(np.full(len(offsets), ord("c"), np.uint8))
    return LoggedBlock(Block((layout,), *extents, places, ops, values), offsets)


@given(st.data())
def test_every_row_is_in_its_window_once_by_stream_and_offset(data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 1000))
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=30))  # of transactions
    starts = first + np.cumsum([0, *lengths[:-1]])
    end = first + sum(lengths)
    rows_max = data.draw(st.integers(1, 60))
    blocks = data.draw(st.integers(1, 3))
    owners = np.array(data.draw(st.lists(st.integers(0, 4 * blocks), min_size=end - first, max_size=end - first)))
    logged = [
        block_of(owners[mask], first + np.flatnonzero(mask))
        for number in range(blocks)
        if (mask := (owners % (blocks + 1)) == number).any()  # some rows are those of nobody who asks
    ]
    ends = window_ends(logged, starts, first, end, rows_max)
    assert ends == sorted(set(ends))
    assert ends[-1] == end

    found: dict[int, list[LoggedBlock]] = {}
    for one in logged:
        for number, piece in split(one, np.array(ends)):
            found.setdefault(number, []).append(piece)
    low = first
    for number, high in enumerate(ends):
        pieces = found.pop(number, [])
        expected = sorted(offset for one in logged for offset in one.offsets.tolist() if low <= offset < high)
        assert sorted(offset for piece in pieces for offset in piece.offsets.tolist()) == expected
        for piece in pieces:
            ids = np.repeat(piece.block.streams, piece.block.counts)
            assert piece.block.values.column(0).to_pylist() == piece.offsets.tolist()
            assert owners[piece.offsets - first].tolist() == ids.tolist()
            assert np.lexsort((piece.offsets, ids)).tolist() == list(range(len(ids)))
        inside_one_transaction = not ((starts > low) & (starts <= high)).any()
        assert high == end or high in starts or inside_one_transaction
        bin_rows = max(1, rows_max // 16)
        assert len(expected) <= rows_max + bin_rows or inside_one_transaction or high in starts
        low = high
    assert not found


def test_windows_are_about_as_large_as_was_asked() -> None:
    everything = [block_of(np.zeros(10_000, np.int64), np.arange(10_000))]
    ends = window_ends(everything, np.arange(0, 10_000, 10), 0, 10_000, 1000)
    assert np.diff([0, *ends]).max() <= 1000
    assert len(ends) <= 12


def test_rows_that_stand_in_order_are_not_copied() -> None:
    logged = block_of(np.zeros(100, np.int64), np.arange(100))
    pieces = [piece for _, piece in split(logged, np.array([50, 100]))]
    buffers = {piece.block.values.column(0).buffers()[1].address for piece in pieces}
    assert buffers == {logged.block.values.column(0).buffers()[1].address}
