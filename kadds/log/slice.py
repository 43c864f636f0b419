"""What a reader gets: slices of the log, in offset order, each with all that is needed to deliver its changes.

A slice holds its rows by shape (`blocks`), which costs the same for one stream and for a hundred thousand; `changes`
cuts them into one batch a stream for those who deliver stream by stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.arrays import fixed
from kadds.api.change import TRANSACTIONS, ControlKind
from kadds.api.position import Cursor
from kadds.api.schema import Table
from kadds.log.block import Block
from kadds.log.stream import Stream

#: The facts of transactions in a slice: those of the API, and where in the log each begins and who appended it.
LOGGED_TRANSACTIONS = pa.schema(
    [
        pa.field("first_offset", pa.int64()),
        pa.field("producer", pa.string()),  # tenant/source/producer
        pa.field("lineage", pa.string()),
        *TRANSACTIONS,
    ]
)


@dataclass(frozen=True, eq=False)
class StreamChanges:
    """Changes of one stream under one schema version, in offset order. Arrays as in `ChangeBatch`.

    `transactions` (int32) points into the slice's table of transactions.
    """

    stream: Stream
    table: Table
    offsets: pa.Array  # int64, strictly rising
    ops: pa.Array  # uint8
    values: pa.RecordBatch
    transactions: pa.Array
    before: pa.Array | None = None
    not_given: pa.Array | None = None
    as_text: pa.Array | None = None

    def __len__(self) -> int:
        return int(self.values.num_rows)


@dataclass(frozen=True)
class LoggedControl:
    """A control record in the log. `table` is the stream's table from here on, for kind `schema`.

    `kind` is plain text where the log holds a kind that this version does not know: its reader stops.
    """

    offset: int
    stream: Stream
    kind: ControlKind | str
    table: Table | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LoggedBlock:
    """Rows of one shape, sorted by stream and offset; `offsets` stands for the block's places."""

    block: Block
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Slice:
    """All that the streams asked for have in the offsets [first_offset, end_offset).

    It never ends inside a transaction, except where one transaction alone is larger than the reader's limit:
    `whole` is False on the pieces before the last. `cursor` says "everything below end_offset has been read".
    """

    first_offset: int
    end_offset: int
    cursor: Cursor
    transactions: pa.RecordBatch  # LOGGED_TRANSACTIONS, in offset order
    stream_of: Callable[[int], Stream] = field(repr=False)
    blocks: tuple[LoggedBlock, ...] = ()
    controls: tuple[LoggedControl, ...] = ()
    whole: bool = True

    @property
    def rows(self) -> int:
        """How many changes it holds."""
        return sum(len(logged.offsets) for logged in self.blocks)

    @cached_property
    def changes(self) -> tuple[StreamChanges, ...]:
        """The rows, one batch a stream and schema version, in the order of their first offsets."""
        first_offsets = self.transactions.column("first_offset").to_numpy()
        found = [changes for logged in self.blocks for changes in self._cut(logged, first_offsets)]
        found.sort(key=lambda changes: changes.offsets[0].as_py())
        return tuple(found)

    def _cut(self, logged: LoggedBlock, first_offsets: npt.NDArray[np.int64]) -> list[StreamChanges]:
        block = logged.block
        numbers = fixed(pa.int32(), (np.searchsorted(first_offsets, logged.offsets, "right") - 1).astype(np.int32))
        offsets = fixed(pa.int64(), logged.offsets)
        starts = block.starts()
        by_number = {layout.number: layout for layout in block.layouts_used}
        changes = []
        for i, (stream_id, layout) in enumerate(zip(block.streams.tolist(), block.layouts.tolist(), strict=True)):
            start, length = int(starts[i]), int(block.counts[i])
            stream = self.stream_of(stream_id)

            def cut(array: pa.Array | None, start: int = start, length: int = length) -> pa.Array | None:
                return None if array is None else array.slice(start, length)

            changes.append(
                StreamChanges(
                    stream,
                    by_number[layout].table_of(stream),
                    offsets.slice(start, length),
                    block.ops.slice(start, length),
                    block.values.slice(start, length),
                    numbers.slice(start, length),
                    cut(block.before),
                    cut(block.not_given),
                    cut(block.as_text),
                )
            )
        return changes
