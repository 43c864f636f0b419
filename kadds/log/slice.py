"""What a reader gets: slices of the log, in offset order, each with all that is needed to deliver its changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kadds.api.change import TRANSACTIONS, ControlKind
from kadds.api.position import Cursor
from kadds.api.schema import Table
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
    """A control record in the log. `table` is the stream's table from here on, for kind `schema`."""

    offset: int
    stream: Stream
    kind: ControlKind
    table: Table | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


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
    changes: tuple[StreamChanges, ...] = ()
    controls: tuple[LoggedControl, ...] = ()
    whole: bool = True

    @property
    def rows(self) -> int:
        """How many changes it holds."""
        return sum(map(len, self.changes))
