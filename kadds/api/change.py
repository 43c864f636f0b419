"""What a change is: `ChangeBatch`, the operations, control records, and whole transactions on their way to the log.

Rows are Arrow columns; nothing here is per row. The three states of a cell:

* **given**: the value in `values`, where NULL is a value too;
* **not given**: its bit in `not_given` is set (unchanged TOAST, minimal images): neither NULL nor a value;
* **given as text**: the column's type cannot hold it (NaN in numeric(12,2)): the typed cell is null, and `as_text` of
  the row has an entry (column number, text).

An update is two rows, `before` then `after`, where the source gives a before image, otherwise one. A delete is a row
with `before` set. A truncate is a row whose cells are all not given.

Order. Within one append every change and every control record has an **ordinal**: 0, 1, 2, … without holes, in the
order of the source's commits. The log gives offset = base + ordinal; that is why no code sorts or counts rows to
number them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.arrays import byte_count
from kadds.api.errors import UnknownInputError
from kadds.api.schema import Table, TableSet


class Op(IntEnum):
    """The operations, as the code points of Debezium's letters."""

    CREATE = ord("c")
    UPDATE = ord("u")
    DELETE = ord("d")
    READ = ord("r")  # a row found by a snapshot
    TRUNCATE = ord("t")

    @property
    def letter(self) -> str:
        """`c`, `u`, `d`, `r` or `t`."""
        return chr(self)


class ControlKind(StrEnum):
    """What a control record says. A reader that meets another kind stops."""

    PROGRESS = "progress"  # the source has moved on to `position`; nothing captured up to there is missing
    SCHEMA = "schema"  # from here on the stream has the table's columns of `table`
    SNAPSHOT_BEGIN = "snapshot-begin"  # rows of generation `generation` follow
    SNAPSHOT_END = "snapshot-end"  # generation `generation` is complete
    GAP = "gap"  # changes are missing, `reason` says why; with `copied`, a whole copy of the table follows at once
    STOPPED = "stopped"  # the stream takes no changes until `resumed`
    RESUMED = "resumed"
    HEARTBEAT = "heartbeat"  # written by Kadds itself, to measure the whole way
    PLAN = "plan"  # a delivery that has been decided and not yet finished


NOT_GIVEN_TYPE = pa.binary()  # bit i (least significant first) of the bytes: column i is not given; NULL: all are given
AS_TEXT_TYPE = pa.list_(pa.struct([pa.field("column", pa.int16()), pa.field("text", pa.string())]))

#: The facts of transactions, one row each, in commit order. `rows` counts its changes and control records.
TRANSACTIONS = pa.schema(
    [
        pa.field("sequence", pa.binary()),  # rises byte-wise within the producer; what is not above the last is dropped
        pa.field("rows", pa.uint32()),
        pa.field("sort_key", pa.binary()),  # of the position, in the lineage of the append
        pa.field("token", pa.string()),
        pa.field("xid", pa.string()),
        pa.field("committed_at", pa.timestamp("us", "UTC")),
        pa.field("origin", pa.string()),  # where the change was first made, so that pairs do not loop
    ]
)

#: The columns that a history (append sinks, files) carries behind the table's own. A public format.
HISTORY = pa.schema(
    [
        pa.field("_kadds_op", pa.string()),
        pa.field("_kadds_offset", pa.int64()),
        pa.field("_kadds_xid", pa.string()),
        pa.field("_kadds_committed_at", pa.timestamp("us", "UTC")),
        pa.field("_kadds_position", pa.string()),
        pa.field("_kadds_image", pa.string()),  # before | after
        pa.field("_kadds_not_given", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, eq=False)
class ChangeBatch:
    """Many changes of one stream under one schema version; or of many streams of one shape, by `table_numbers`.

    All arrays have one length. `table_numbers` (int32, null-free) points into `tables.tables` and is None where there
    is one table. `before`, `not_given` and `as_text` are None where no row has any.
    """

    tables: TableSet
    ordinals: pa.Array  # uint32, strictly rising
    ops: pa.Array  # uint8, values of Op
    values: pa.RecordBatch  # columns of the table, in its order
    table_numbers: pa.Array | None = None
    before: pa.Array | None = None  # bool
    not_given: pa.Array | None = None  # NOT_GIVEN_TYPE
    as_text: pa.Array | None = None  # AS_TEXT_TYPE

    def __post_init__(self) -> None:
        rows = self.values.num_rows
        for name in ("ordinals", "ops", "table_numbers", "before", "not_given", "as_text"):
            array = getattr(self, name)
            if array is not None and len(array) != rows:
                raise UnknownInputError(f"{name} has {len(array)} entries for {rows} rows of {self._where()}")
        if self.table_numbers is None and len(self.tables.tables) != 1:
            raise UnknownInputError(f"rows of {len(self.tables.tables)} tables need table_numbers")
        expected = self.tables.tables[0].arrow_schema
        schema = self.values.schema
        if not schema.equals(expected) and (schema.names != expected.names or schema.types != expected.types):
            raise UnknownInputError(
                f"rows of {self._where()} have columns {schema.to_string()} where the table has {expected.to_string()}"
            )

    def _where(self) -> str:
        first = self.tables.tables[0].qualified_name
        return first if len(self.tables.tables) == 1 else f"{first} and {len(self.tables.tables) - 1} more"

    def __len__(self) -> int:
        return int(self.values.num_rows)

    @property
    def table(self) -> Table:
        """The one table; UnknownInputError where the batch carries several."""
        if len(self.tables.tables) != 1:
            raise UnknownInputError("this batch carries several tables")
        return self.tables.tables[0]

    @cached_property
    def nbytes(self) -> int:
        """The bytes that the values take in memory, for budgets."""
        return byte_count(self.values)

    def slice(self, start: int, stop: int) -> ChangeBatch:
        """The rows from `start` up to `stop`, without copying."""
        length = stop - start

        def cut(array: pa.Array | None) -> pa.Array | None:
            return None if array is None else array.slice(start, length)

        return replace(
            self,
            ordinals=cut(self.ordinals),
            ops=cut(self.ops),
            values=self.values.slice(start, length),
            table_numbers=cut(self.table_numbers),
            before=cut(self.before),
            not_given=cut(self.not_given),
            as_text=cut(self.as_text),
        )

    @classmethod
    def of(
        cls,
        table: Table,
        ops: Op | Sequence[Op] | pa.Array,
        values: pa.RecordBatch,
        *,
        first_ordinal: int = 0,
        before: pa.Array | None = None,
        not_given: pa.Array | None = None,
        as_text: pa.Array | None = None,
    ) -> ChangeBatch:
        """Changes of one table whose ordinals follow one another from `first_ordinal`."""
        rows = values.num_rows
        if isinstance(ops, Op):
            ops = pa.array(np.full(rows, int(ops), np.uint8))
        elif not isinstance(ops, pa.Array):
            ops = pa.array([int(op) for op in ops], pa.uint8())
        ordinals = pa.array(np.arange(first_ordinal, first_ordinal + rows, dtype=np.uint32))
        return cls(TableSet.of(table), ordinals, ops, values, None, before, not_given, as_text)


@dataclass(frozen=True)
class Control:
    """A control record: takes an ordinal (and so an offset) between the changes.

    `table` is the stream it speaks of, None where it speaks of the source as a whole. `facts` is a JSON object; which
    fields it has is said beside each kind.
    """

    kind: ControlKind
    ordinal: int
    table: Table | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Transactions:
    """Whole transactions of one producer, in commit order.

    `facts` has the schema `TRANSACTIONS`; the sum of its `rows` is the number of ordinals, each of which is a change
    or a control record. `lineage` is that of every position in `facts`.
    """

    facts: pa.RecordBatch
    changes: tuple[ChangeBatch, ...] = ()
    controls: tuple[Control, ...] = ()
    lineage: str = ""

    def __post_init__(self) -> None:
        if self.facts.schema != TRANSACTIONS:
            raise UnknownInputError(
                f"transactions need the columns of TRANSACTIONS, not {self.facts.schema.to_string()}"
            )
        held = sum(map(len, self.changes)) + len(self.controls)
        if held != self.rows:
            raise UnknownInputError(f"the transactions announce {self.rows} rows and hold {held}")

    @cached_property
    def rows(self) -> int:
        """How many ordinals there are: changes and control records."""
        return int(np.sum(self.facts.column("rows").to_numpy(), dtype=np.int64)) if self.facts.num_rows else 0

    def nbytes(self) -> int:
        """The bytes that the values take in memory, for budgets."""
        return int(sum(batch.nbytes for batch in self.changes)) + 256 * (len(self.changes) + len(self.controls))

    @classmethod
    def one(
        cls,
        sequence: bytes,
        changes: Iterable[ChangeBatch] = (),
        controls: Iterable[Control] = (),
        *,
        lineage: str = "",
        sort_key: bytes | None = None,
        token: str = "",
        xid: str | None = None,
        committed_at: Any = None,
        origin: str | None = None,
    ) -> Transactions:
        """A single transaction; `committed_at` is a datetime or microseconds since 1970 UTC."""
        changes, controls = tuple(changes), tuple(controls)
        facts = transaction_facts(
            sequence,
            sum(map(len, changes)) + len(controls),
            sort_key=sort_key,
            token=token,
            xid=xid,
            committed_at=committed_at,
            origin=origin,
        )
        return cls(facts, changes, controls, lineage)


def transaction_facts(
    sequence: bytes,
    rows: int,
    *,
    sort_key: bytes | None = None,
    token: str = "",
    xid: str | None = None,
    committed_at: Any = None,
    origin: str | None = None,
) -> pa.RecordBatch:
    """The one row of `TRANSACTIONS` of a single transaction; the position's sort key is the sequence unless given."""
    row = (sequence, rows, sequence if sort_key is None else sort_key, token, xid, committed_at, origin)
    arrays = [pa.array([value], kind) for value, kind in zip(row, TRANSACTIONS.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=TRANSACTIONS)


def not_given_bitmap(columns: Iterable[int], count: int) -> bytes:
    """The `not_given` cell that says that `columns` (by number) of `count` columns are not given."""
    bits = bytearray((count + 7) // 8)
    for column in columns:
        bits[column // 8] |= 1 << (column % 8)
    return bytes(bits)


def given_mask(not_given: pa.Array | None, column: int, rows: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each of `rows` rows whether `column` (by number) is given; whoever reads a cell asks here first."""
    mask = np.ones(rows, np.bool_)
    if not_given is None or not_given.null_count == rows:
        return mask
    present = np.flatnonzero(not_given.is_valid().to_numpy(zero_copy_only=False))
    offsets = np.frombuffer(not_given.buffers()[1], np.int32, rows + 1, not_given.offset * 4)
    data = np.frombuffer(not_given.buffers()[2], np.uint8)
    mask[present] = (data[offsets[present] + column // 8] >> (column % 8)) & 1 == 0
    return mask


def text_cells(as_text: pa.Array | None) -> dict[int, tuple[np.ndarray[Any, np.dtype[np.int64]], pa.Array]]:
    """The cells given as text by column number: the numbers of their rows, and their texts."""
    if as_text is None or len(as_text) == as_text.null_count:
        return {}
    rows = pc.list_parent_indices(as_text).to_numpy()
    entries = as_text.flatten()
    columns, texts = entries.field("column").to_numpy(), entries.field("text")
    found = {}
    for column in np.unique(columns):
        places = np.flatnonzero(columns == column)
        found[int(column)] = (rows[places], texts.take(pa.array(places)))
    return found
