"""`Rows`: changes of one stream, in offset order, one row per image, with the sparse facts of cells as whole arrays.

They come out of the log, pass the contract (which chooses rows and columns) and end in net change or history. All
arrays have one length; rows keep their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.arrays import byte_count
from kadds.api.change import HISTORY
from kadds.api.schema import Table
from kadds.engine.cells import Bools, Integers, Texts, bools, concat_texts, missing_cells, take_texts
from kadds.log.slice import StreamChanges

#: What history says of a row's transaction.
FACTS = pa.schema([HISTORY.field(name) for name in ("_kadds_xid", "_kadds_committed_at", "_kadds_position")])


@dataclass(frozen=True, eq=False)
class Rows:
    """`table` has the columns of `values`; `missing` is true where a cell is not given.

    `transactions` holds for each row the log's number of its transaction (its first offset): equal numbers mean one
    transaction. `facts` has the columns that history needs and is None in merge.
    """

    table: Table
    values: pa.RecordBatch
    offsets: Integers
    ops: npt.NDArray[np.uint8]
    before: Bools
    transactions: Integers
    missing: Bools | None = None
    texts: Texts | None = None
    facts: pa.RecordBatch | None = None

    def __len__(self) -> int:
        return int(self.values.num_rows)

    @classmethod
    def of(cls, changes: StreamChanges, transactions: pa.RecordBatch, *, facts: bool = False) -> Rows:
        """Changes as the log gives them; `transactions` are those of the slice."""
        count = len(changes)
        numbers = changes.transactions
        return cls(
            table=changes.table,
            values=changes.values,
            offsets=changes.offsets.to_numpy(zero_copy_only=False),
            ops=changes.ops.to_numpy(zero_copy_only=False),
            before=bools(changes.before, count),
            transactions=transactions.column("first_offset").to_numpy()[numbers.to_numpy()],
            missing=missing_cells(changes.not_given, len(changes.table.columns)),
            texts=Texts.of(changes.as_text),
            facts=_facts(transactions, numbers) if facts else None,
        )

    def take(self, indices: Integers) -> Rows:
        """The rows `indices`, which rise."""
        if len(indices) == len(self):
            return self
        arrow = pa.array(indices)
        return replace(
            self,
            values=self.values.take(arrow),
            offsets=self.offsets[indices],
            ops=self.ops[indices],
            before=self.before[indices],
            transactions=self.transactions[indices],
            missing=None if self.missing is None else self.missing[indices],
            texts=take_texts(self.texts, indices, len(self)),
            facts=None if self.facts is None else self.facts.take(arrow),
        )

    @property
    def nbytes(self) -> int:
        """The bytes that the values take in memory."""
        return byte_count(self.values)

    @property
    def ends_in_half_an_update(self) -> bool:
        """Whether the last row is the before image of an update whose after image is yet to come."""
        return len(self) > 0 and bool(self.before[-1]) and self.ops[-1] == ord("u")


def _facts(transactions: pa.RecordBatch, numbers: pa.Array) -> pa.RecordBatch:
    columns = [transactions.column(name).take(numbers) for name in ("xid", "committed_at", "token")]
    return pa.RecordBatch.from_arrays(columns, schema=FACTS)


def adds_columns_only(old: Table, new: Table) -> bool:
    """Whether `new` has every column of `old` as it was, and more."""
    there = {column.name: column.type for column in new.columns}
    return old.key == new.key and all(there.get(column.name) == column.type for column in old.columns)


def widened(rows: Rows, table: Table) -> Rows:
    """Rows from before columns were added, with the columns of `table`, for which `adds_columns_only` holds.

    What a later column was in an earlier row nobody said: it is NULL in a row that was made or read, and not given in
    one that was changed.
    """
    if rows.table == table:
        return rows
    place = {column.name: number for number, column in enumerate(rows.table.columns)}
    count = len(rows)
    arrays, fresh = [], np.zeros(len(table.columns), np.bool_)
    for number, column in enumerate(table.columns):
        fresh[number] = column.name not in place
        arrays.append(pa.nulls(count, column.type) if fresh[number] else rows.values.column(place[column.name]))
    old = [place[column.name] for column in table.columns if column.name in place]
    missing = np.zeros((count, len(table.columns)), np.bool_)
    if rows.missing is not None:
        missing[:, ~fresh] = rows.missing[:, old]
    made = (rows.ops == ord("c")) | (rows.ops == ord("r"))
    missing[:, fresh] = ~made[:, None]
    texts = rows.texts
    if texts is not None:
        new_number = np.array([0] * len(place), np.int64)
        new_number[old] = np.flatnonzero(~fresh)
        texts = replace(texts, columns=new_number[texts.columns])
    values = pa.RecordBatch.from_arrays(arrays, schema=table.arrow_schema)
    return replace(rows, table=table, values=values, missing=missing, texts=texts)


def concat(parts: Sequence[Rows]) -> Rows:
    """Parts of one stream under one table, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    columns = len(parts[0].table.columns)
    missing = None
    if any(part.missing is not None for part in parts):
        missing = np.concatenate(
            [np.zeros((len(part), columns), np.bool_) if part.missing is None else part.missing for part in parts]
        )
    return Rows(
        table=parts[0].table,
        values=pa.concat_batches([part.values for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        ops=np.concatenate([part.ops for part in parts]),
        before=np.concatenate([part.before for part in parts]),
        transactions=np.concatenate([part.transactions for part in parts]),
        missing=missing,
        texts=concat_texts([(part.texts, len(part)) for part in parts]),
        facts=None if parts[0].facts is None else pa.concat_batches([part.facts for part in parts]),
    )
