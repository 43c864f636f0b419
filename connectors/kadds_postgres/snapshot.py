"""The rows that are there already, copied into the log as the stream continues them.

All tables are read in one transaction that sees what a slot's exported snapshot sees: every transaction whose commit
record lies before the slot's consistent point, and no other. Rows come as COPY's CSV, where a NULL and an empty text
differ, and are typed by the decoder of the stream.

A copy that was broken off is begun again in a higher generation, whose first row is a truncate: applying the log in its
order is right whatever it held before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, wait

import pyarrow as pa
from pyarrow import csv

from kadds.api.change import NOT_GIVEN_TYPE, ChangeBatch, Control, ControlKind, Op, Transactions, not_given_bitmap
from kadds.api.connector import Appended, Inlet, Producer, StopSignal
from kadds.api.errors import RetryableError, SchemaMismatchError, Stopping
from kadds.api.schema import Table
from kadds_postgres.catalog import Catalog, CatalogTable
from kadds_postgres.cells import typed_batch
from kadds_postgres.channel import Channel
from kadds_postgres.names import quoted
from kadds_postgres.position import NOWHERE, lsn_text, sequence, split_sequence
from kadds_postgres.publication import literal

CHUNK_ROWS = 50_000
CHUNK_BYTES = 8 << 20
_LOOK_SECONDS = 0.1

#: Files that are not those of the snapshot any more: rewritten or truncated since, and empty to this transaction.
_REWRITTEN = """
SELECT 1 FROM pg_catalog.pg_class c
WHERE (c.oid = $1::oid OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree($1::oid)))
  AND c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)
LIMIT 1
"""


class Snapshot:
    """One transaction in which tables are copied; `lsn` is where the stream continues it.

    `channel` has to be in no transaction; `now` reads the catalog outside of this one.
    """

    def __init__(
        self,
        channel: Channel,
        exported: str | None,
        now: Catalog,
        *,
        via_root: bool,
        lineage: str,
        lsn: int,
        inlet: Inlet,
    ) -> None:
        self._channel = channel
        self._now = now
        self._lineage = lineage
        self._token = lsn_text(lsn)
        self._inlet = inlet
        channel.rows("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if exported is not None:
            channel.rows(f"SET TRANSACTION SNAPSHOT {literal(channel, exported)}")
        channel.rows("SET LOCAL row_security = off")  # an error, where policies would hide rows
        self._catalog = Catalog(channel, via_root=via_root)

    def tables(self, wanted: Sequence[Table]) -> list[CatalogTable]:
        """`wanted` as this transaction sees them; RetryableError where one has changed, to be discovered anew."""
        found = self._catalog.of(int(table.incarnation) for table in wanted)
        for table in wanted:
            there = found.get(int(table.incarnation))
            if there is None or there.table.qualified_name != table.qualified_name:
                raise _changed(table)
        return [found[int(table.incarnation)] for table in wanted]

    def copy(self, found: CatalogTable, *, emptied: bool) -> None:
        """Copy one table into the log; `emptied`: the log may have rows of it, whatever this producer did.

        Returns when the copy is on disk. Its locks are given back.
        """
        table = found.table
        producer = self._inlet.producer(f"snapshot:{table.qualified_name}")
        before = producer.resume()
        generation = 1 if before is None else split_sequence(before.sequence)[0] + 1
        chunks = _Chunks(producer, generation, self._lineage, self._token, self._inlet.stopping)
        facts = {"generation": generation}
        begin = Control(ControlKind.SNAPSHOT_BEGIN, 0, table, facts)
        chunks.append([_truncate(table)] if emptied or generation > 1 else [], [begin])
        self._channel.rows("SAVEPOINT kadds")
        try:
            self._lock(found)
            name = ("" if found.partitioned else "ONLY ") + quoted(table.schema or "", table.name)
            columns = ", ".join(quoted(column.name) for column in table.columns)
            query = f"COPY (SELECT {columns} FROM {name}) TO STDOUT (FORMAT csv, FORCE_QUOTE *, NULL '')"
            rows = 0
            for messages in self._channel.copy_out(query, rows_max=CHUNK_ROWS, bytes_max=CHUNK_BYTES):
                batch = _batch(table, messages)
                rows += len(batch)
                chunks.append([batch], [])
        except SchemaMismatchError as error:
            raise _changed(table) from error
        self._channel.rows("ROLLBACK TO SAVEPOINT kadds; RELEASE SAVEPOINT kadds")
        chunks.append([], [Control(ControlKind.SNAPSHOT_END, 0, table, {**facts, "rows": rows})])
        chunks.wait()

    def _lock(self, found: CatalogTable) -> None:
        """Hold the table as it is, and make sure that this is how the transaction sees it."""
        table = found.table
        only = "" if found.partitioned else "ONLY "
        self._channel.rows(f"LOCK TABLE {only}{quoted(table.schema or '', table.name)} IN ACCESS SHARE MODE")
        now = self._now.of([found.oid]).get(found.oid)
        if now is None or now.described != found.described or now.table.columns != table.columns:
            raise _changed(table)
        if self._channel.row(_REWRITTEN, str(found.oid)) is not None:
            raise _changed(table)


def _changed(table: Table) -> RetryableError:
    return RetryableError(
        "the table was changed (altered, renamed, truncated or dropped) while its copy began; it is begun again",
        where=table.qualified_name,
    )


class _Chunks:
    """The transactions of one copy on their way to disk."""

    def __init__(self, producer: Producer, generation: int, lineage: str, token: str, stopping: StopSignal) -> None:
        self._producer = producer
        self._generation = generation
        self._lineage = lineage
        self._token = token
        self._stopping = stopping
        self._number = 0
        self._waiting: deque[Future[Appended]] = deque()

    def append(self, changes: Sequence[ChangeBatch], controls: Sequence[Control]) -> None:
        if self._stopping.is_set():
            raise Stopping
        transaction = Transactions.one(
            sequence(self._generation, self._number),
            changes,
            controls,
            lineage=self._lineage,
            sort_key=NOWHERE,
            token=self._token,
        )
        self._number += 1
        self._waiting.append(self._producer.append(transaction, b""))
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def wait(self) -> None:
        while self._waiting:
            settle(self._waiting.popleft(), self._stopping)


def settle(future: Future[Appended], stopping: StopSignal) -> None:
    """Wait until it is on disk; `Stopping` when asked to stop before that."""
    while not wait([future], _LOOK_SECONDS).done:
        if stopping.is_set():
            raise Stopping
    future.result()


def _truncate(table: Table) -> ChangeBatch:
    """A row behind the SNAPSHOT_BEGIN record: forget what there was."""
    count = len(table.columns)
    nothing = pa.RecordBatch.from_arrays(
        [pa.nulls(1, column.type) for column in table.columns], schema=table.arrow_schema
    )
    not_given = pa.array([not_given_bitmap(range(count), count)], NOT_GIVEN_TYPE)
    return ChangeBatch.of(table, Op.TRUNCATE, nothing, first_ordinal=1, not_given=not_given)


def _batch(table: Table, messages: Sequence[bytes]) -> ChangeBatch:
    values, as_text = typed_batch(table, parsed(b"".join(messages), len(table.columns)))
    return ChangeBatch.of(table, Op.READ, values, as_text=as_text)


def parsed(data: bytes, columns: int) -> list[pa.Array]:
    """COPY's CSV, every value quoted and NULL not, as texts of each column."""
    names = [str(number) for number in range(columns)]
    read = csv.read_csv(
        pa.BufferReader(data),
        csv.ReadOptions(column_names=names, block_size=len(data) + 1, use_threads=False),
        csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return [column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in read.columns]
