"""Producers: what appends to the log, each under its own rising sequence.

The log keeps each producer's last sequence and resume state in the entry of the changes themselves, so both are
durable or neither is. What is not above the last sequence is dropped before it gets offsets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import ChangeBatch, Control, Transactions
from kadds.api.connector import Appended, Resume
from kadds.api.errors import DataError, FencedError, KaddsError, UnknownInputError
from kadds.api.schema import TableSet
from kadds.log.dictionary import Dictionary
from kadds.log.frame import EntryKind
from kadds.log.shaping import ENTRY_BYTES_MAX, build_blocks, check_ordinals, pieces
from kadds.log.transaction import LogTransaction
from kadds.log.writer import Pending, Writer


@dataclass(frozen=True)
class ProducerState:
    """What the log durably knows of a producer."""

    epoch: int
    sequence: bytes
    resume: bytes

    def to_json(self) -> list[Any]:
        """For a checkpoint."""
        return [self.epoch, self.sequence.hex(), self.resume.hex()]

    @classmethod
    def from_json(cls, plain: Sequence[Any]) -> ProducerState:
        """What `to_json` wrote."""
        return cls(plain[0], bytes.fromhex(plain[1]), bytes.fromhex(plain[2]))


class Producers:
    """The producers of a log: their durable state, and who holds each now."""

    def __init__(self) -> None:
        self._claiming = threading.Lock()  # held until the old holder has nothing queued any more
        self._lock = threading.Lock()
        self._durable: dict[str, ProducerState] = {}
        self._holders: dict[str, LogProducer] = {}
        self._transactions = itertools.count(1)

    def claim(
        self, source: str, name: str, writer: Writer, dictionary: Dictionary, value_bytes_max: int
    ) -> LogProducer:
        """A new holder, under the next epoch; the old one is fenced and its open transaction dies."""
        with self._claiming:
            return self._claim(source, name, writer, dictionary, value_bytes_max)

    def _claim(
        self, source: str, name: str, writer: Writer, dictionary: Dictionary, value_bytes_max: int
    ) -> LogProducer:
        full_name = f"{source}/{name}"
        with self._lock:
            state, old = self._durable.get(full_name), self._holders.get(full_name)
            epoch = max(state.epoch if state else 0, old.epoch if old else 0) + 1
            new = LogProducer(self, source, name, epoch, writer, dictionary, value_bytes_max)
            self._holders[full_name] = new
        if old is not None:
            old.fence()  # and waits for what it has queued, which the new holder must not repeat
        new.resume()
        return new

    def durable(self, full_name: str) -> ProducerState | None:
        """What is on disk of a producer."""
        with self._lock:
            return self._durable.get(full_name)

    def next_transaction(self) -> int:
        """A number for a transaction that comes in pieces."""
        return next(self._transactions)

    def published(self, head: Mapping[str, Any], resume: bytes) -> None:
        """A commit of a producer is on disk."""
        if head.get("sequence") is not None:
            with self._lock:
                self._durable[head["producer"]] = ProducerState(
                    head["producer_epoch"], bytes.fromhex(head["sequence"]), resume
                )

    def checkpoint(self) -> dict[str, Any]:
        """All of it, as JSON."""
        with self._lock:
            return {name: state.to_json() for name, state in self._durable.items()}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Begin with what `checkpoint` gave."""
        with self._lock:
            self._durable = {name: ProducerState.from_json(plain) for name, plain in checkpoint.items()}


class LogProducer:
    """See `kadds.api.connector.Producer`. One thread at a time uses it; the writer's thread reports failures to it."""

    def __init__(
        self,
        producers: Producers,
        source: str,
        name: str,
        epoch: int,
        writer: Writer,
        dictionary: Dictionary,
        value_bytes_max: int,
    ) -> None:
        self._producers = producers
        self._source = source
        self._name = name
        self.epoch = epoch
        self._writer = writer
        self._dictionary = dictionary
        self._value_bytes_max = value_bytes_max
        self._refusal: KaddsError | None = None
        self._fenced = False
        self._open: LogTransaction | None = None
        self._last_future: Future[Appended] | None = None
        self._sequence: bytes | None = None

    @property
    def name(self) -> str:
        """Unique within the source."""
        return self._name

    @property
    def full_name(self) -> str:
        """`tenant/source/name`."""
        return f"{self._source}/{self._name}"

    def resume(self) -> Resume | None:
        """The last that is on disk; after a refused append this is where to begin again."""
        self._check_fence()
        self._drain()
        self._refusal = None
        if self._open is not None:
            self._open.abort()
        durable = self._producers.durable(self.full_name)
        self._sequence = durable.sequence if durable else None
        return Resume(durable.sequence, durable.resume) if durable else None

    def _drain(self) -> None:
        """Wait until what this producer has queued is on disk or refused."""
        if (last := self._last_future) is not None:  # a newer holder drains this one too, from another thread
            last.exception()
            self._last_future = None

    def fence(self) -> None:
        """A newer holder exists. Returns when what this one has queued is on disk or refused."""
        self._writer.exclusively(self._set_fenced)
        self._drain()
        if self._open is not None:
            self._open.kill()

    def _set_fenced(self) -> None:
        self._fenced = True

    def failed(self, error: KaddsError) -> None:
        """The writer refused everything that was queued."""
        self._refusal = error

    def check(self) -> None:
        """Raise if this holder is fenced, or if what it had queued was refused."""
        self._check_fence()
        if self._refusal is not None:
            raise self._refusal

    def _check_fence(self) -> None:
        if self._fenced:
            raise FencedError(
                f"producer {self.full_name} has been claimed anew",
                where=self.full_name,
                hint="this holder is out of date and must stop",
            )

    def append(self, transactions: Transactions, resume: bytes) -> Future[Appended]:
        """Add whole transactions; repeats are dropped. See the interface."""
        self.check()
        if self._open is not None:
            raise UnknownInputError(f"producer {self.full_name} has an open transaction; commit or abort it first")
        sequences = transactions.facts.column("sequence")
        _check_rising(sequences, self.full_name)
        repeated = self._count_repeats(sequences)
        cut = int(np.sum(transactions.facts.column("rows").to_numpy()[:repeated], dtype=np.int64)) if repeated else 0
        if repeated == len(sequences):
            return self._all_repeated(repeated)
        rows = transactions.rows - cut
        check_ordinals(transactions.changes, transactions.controls, transactions.rows)
        pending = self._commit_pending(
            sequences[-1].as_py(), resume, transactions.lineage, transactions.facts.slice(repeated), rows
        )
        pending.repeated = repeated
        changes = [_behind(batch, cut) for batch in transactions.changes] if cut else transactions.changes
        controls = [control for control in transactions.controls if control.ordinal >= cut]
        if transactions.nbytes() > ENTRY_BYTES_MAX:
            ends = np.cumsum(transactions.facts.column("rows").to_numpy(), dtype=np.int64)
            self._submit_pieces(pending, changes, controls, cut, ends)
        else:
            self._fill(pending, changes, controls, -cut)
            self._submit(pending)
        self._sequence = sequences[-1].as_py()
        return pending.future

    def _count_repeats(self, sequences: pa.Array) -> int:
        last = self._sequence
        if last is None or not len(sequences) or sequences[0].as_py() > last:
            return 0
        low, high = 0, len(sequences)
        while low < high:
            middle = (low + high) // 2
            if sequences[middle].as_py() <= last:
                low = middle + 1
            else:
                high = middle
        return low

    def _all_repeated(self, repeated: int) -> Future[Appended]:
        """A future that is done once the transactions that these repeat are on disk themselves."""
        future: Future[Appended] = Future()
        before = self._last_future

        def done(earlier: Future[Appended] | None) -> None:
            if earlier is not None and (error := earlier.exception()) is not None:
                future.set_exception(error)
            else:
                end = earlier.result().end_offset if earlier is not None else 0
                future.set_result(Appended(end, end, repeated))

        if before is None:
            done(None)
        else:
            before.add_done_callback(done)
        return future

    def _commit_pending(
        self, sequence: bytes, resume: bytes, lineage: str, facts: pa.RecordBatch, rows: int
    ) -> Pending:
        head = {
            "producer": self.full_name,
            "producer_epoch": self.epoch,
            "sequence": sequence.hex(),
            "lineage": lineage,
        }
        return Pending(EntryKind.COMMIT, head, rows, resume, facts, appender=self)

    def _fill(self, pending: Pending, changes: Sequence[ChangeBatch], controls: Sequence[Control], shift: int) -> None:
        """Give `pending` its rows; `shift` is added to every ordinal."""
        for batch in changes:
            self._check_values(batch)
        built = build_blocks(self._source, changes, self._dictionary, shift)
        pending.blocks, pending.layouts = built.blocks, built.layouts
        streams = list(built.streams)
        plain = []
        for control in controls:
            if control.table is None:
                stream, layout = self._dictionary.source_stream(self._source).id, None
            else:
                resolved = self._dictionary.resolve(self._source, TableSet.of(control.table))
                stream, layout = int(resolved.ids[0]), int(resolved.layout_numbers[0])
                pending.layouts |= {layout}
            streams.append(np.array([stream], np.int64))
            _check_facts(control, self.full_name)
            plain.append([control.ordinal + shift, stream, str(control.kind), layout, dict(control.facts)])
        if plain:
            pending.head["controls"] = plain
        pending.streams = streams
        pending.encode()

    def _submit(self, pending: Pending) -> None:
        def still() -> None:
            self.check()
            self._last_future = pending.future

        self._writer.submit(pending, still)

    def _submit_pieces(
        self,
        commit: Pending,
        changes: Sequence[ChangeBatch],
        controls: Sequence[Control],
        cut: int,
        ends: npt.NDArray[np.int64],
    ) -> None:
        """An append over the size of an entry: fragments of successive ordinals, then the commit."""
        commit.transaction = self._producers.next_transaction()
        try:
            for piece in pieces(changes, controls, cut, int(ends[-1]), ends):
                self.submit_fragment(commit.transaction, piece.changes, piece.controls, piece.rows, -cut)
            commit.encode()
            self._submit(commit)
        except KaddsError:
            self.submit_abort(commit.transaction)
            raise

    # ------------------------------------------------------------------ for a transaction in pieces

    def repeat_of(self, sequence: bytes) -> Future[Appended] | None:
        """The future of a transaction that the log has already; None if `sequence` is above the last."""
        return self._all_repeated(1) if self._sequence is not None and sequence <= self._sequence else None

    def submit_commit(
        self,
        transaction: int | None,
        changes: Sequence[ChangeBatch],
        controls: Sequence[Control],
        *,
        facts: pa.RecordBatch,
        resume: bytes,
        lineage: str,
    ) -> Future[Appended]:
        """Commit the fragments of `transaction`, or, where there are none, these rows themselves."""
        sequence, rows = facts.column("sequence")[0].as_py(), facts.column("rows")[0].as_py()
        pending = self._commit_pending(sequence, resume, lineage, facts, rows)
        pending.transaction = transaction
        if transaction is None:
            self._fill(pending, changes, controls, 0)
        else:
            pending.encode()
        self._submit(pending)
        self._sequence = sequence
        return pending.future

    def submit_abort(self, transaction: int) -> None:
        """Tell the journal that the fragments are dead; a log that has failed or is closing drops them anyway."""
        head = {"producer": self.full_name, "transaction": transaction}
        pending = Pending(EntryKind.ABORT, head, 0, transaction=transaction)
        pending.encode()
        with contextlib.suppress(KaddsError):
            self._writer.submit(pending)

    def transaction_ended(self) -> None:
        """The open transaction was committed or aborted."""
        self._open = None

    def submit_fragment(
        self, transaction: int, changes: Sequence[ChangeBatch], controls: Sequence[Control], rows: int, shift: int
    ) -> None:
        """Rows of an open transaction; `shift` is added to their ordinals."""
        head = {"producer": self.full_name, "producer_epoch": self.epoch, "transaction": transaction}
        pending = Pending(EntryKind.FRAGMENT, head, rows, transaction=transaction, appender=self)
        self._fill(pending, changes, controls, shift)
        self._submit(pending)

    def _check_values(self, batch: ChangeBatch) -> None:
        if batch.nbytes <= self._value_bytes_max:
            return
        for name, column in zip(batch.values.schema.names, batch.values.columns, strict=True):
            if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
                longest = pc.max(pc.binary_length(column)).as_py() or 0
                if longest > self._value_bytes_max:
                    where = batch.tables.tables[0].qualified_name
                    raise DataError(
                        f"a value of {longest} bytes in column {name} is over max_value_bytes, {self._value_bytes_max}",
                        where=f"{self._source}/{where}",
                        hint="raise log.max_value_bytes, or leave the column out",
                    )

    def begin(self, xid: str) -> LogTransaction:
        """Start a transaction that comes in pieces."""
        self.check()
        if self._open is not None:
            raise UnknownInputError(f"producer {self.full_name} already has an open transaction")
        self._open = LogTransaction(self, self._producers.next_transaction(), xid)
        return self._open


def _behind(batch: ChangeBatch, cut: int) -> ChangeBatch:
    return batch.slice(int(np.searchsorted(batch.ordinals.to_numpy(), cut)), len(batch))


def _check_facts(control: Control, where: str) -> None:
    """Here, in the caller's thread: an error in the writer's would stop the log for all."""
    try:
        json.dumps(dict(control.facts))
    except (TypeError, ValueError) as error:
        raise UnknownInputError(
            f"the facts of a control record {control.kind} are not JSON: {error}", where=where
        ) from None


def _check_rising(sequences: pa.Array, where: str) -> None:
    if sequences.null_count or (len(sequences) > 1 and not pc.all(pc.less(sequences[:-1], sequences[1:])).as_py()):
        raise UnknownInputError("the sequences of an append must be given and rise", where=where)
