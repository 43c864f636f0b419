"""Transactions that come in pieces: fragments in the journal, without offsets until the commit names them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kadds.api.change import ChangeBatch, Control, transaction_facts
from kadds.api.connector import Appended
from kadds.api.errors import UnknownInputError
from kadds.log.shaping import ENTRY_BYTES_MAX, check_ordinals, pieces

_ROWS_MAX = 2**32 - 1  # a row's place in its commit has 32 bits


class Carrier(Protocol):
    """What a transaction needs of the producer that began it."""

    def check(self) -> None:
        """Raise if the producer is fenced, or if what it had queued was refused."""
        ...

    def repeat_of(self, sequence: bytes) -> Future[Appended] | None:
        """The future of a transaction that the log has already; None if `sequence` is above the last."""
        ...

    def submit_fragment(
        self, transaction: int, changes: Sequence[ChangeBatch], controls: Sequence[Control], rows: int, shift: int
    ) -> None:
        """Rows of an open transaction; `shift` is added to their ordinals."""
        ...

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
        ...

    def submit_abort(self, transaction: int) -> None:
        """The fragments are dead."""
        ...

    def transaction_ended(self) -> None:
        """It was committed or aborted."""
        ...


class LogTransaction:
    """See `kadds.api.connector.OpenTransaction`."""

    def __init__(self, producer: Carrier, number: int, xid: str) -> None:
        self._producer = producer
        self._number = number
        self._xid = xid
        self._rows = 0
        self._held: list[ChangeBatch] = []
        self._held_controls: list[Control] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._fragments = 0
        self._ended = False

    def add(self, changes: Sequence[ChangeBatch], controls: Sequence[Control] = ()) -> None:
        """Add rows; small additions are gathered, so that a small transaction is one commit without fragments."""
        self._check()
        rows = sum(map(len, changes)) + len(controls)
        check_ordinals(changes, controls, rows)
        if self._rows + self._held_rows + rows > _ROWS_MAX:
            raise UnknownInputError(
                f"a transaction of more than {_ROWS_MAX:,} rows does not fit one commit of the log",
                hint="let the source commit in smaller transactions",
            )
        shift = self._held_rows
        self._held += [_shifted(batch, shift) if shift else batch for batch in changes]
        self._held_controls += [_shifted_control(control, shift) for control in controls]
        self._held_rows += rows
        self._held_bytes += sum(batch.nbytes for batch in changes)
        if self._held_bytes >= ENTRY_BYTES_MAX // 2:
            self._flush()

    def _flush(self) -> None:
        """Send what is held as fragments; no entry holds the journal for long."""
        for piece in pieces(self._held, self._held_controls, 0, self._held_rows):
            self._fragments += 1
            self._producer.submit_fragment(self._number, piece.changes, piece.controls, piece.rows, self._rows)
        self._rows += self._held_rows
        self._held, self._held_controls, self._held_rows, self._held_bytes = [], [], 0, 0

    def commit(
        self,
        sequence: bytes,
        resume: bytes,
        *,
        lineage: str = "",
        sort_key: bytes | None = None,
        token: str = "",
        committed_at: Any = None,
        origin: str | None = None,
    ) -> Future[Appended]:
        """End it: only now it takes offsets."""
        self._check()
        rows = self._rows + self._held_rows
        facts = transaction_facts(
            sequence,
            rows,
            sort_key=sort_key,
            token=token,
            xid=self._xid,
            committed_at=committed_at,
            origin=origin,
        )
        if (repeat := self._producer.repeat_of(sequence)) is not None:
            self.abort()
            return repeat
        if self._fragments:
            self._flush()
        future = self._producer.submit_commit(
            self._number if self._fragments else None,
            self._held,
            self._held_controls,
            facts=facts,
            resume=resume,
            lineage=lineage,
        )
        self._end()
        return future

    def abort(self) -> None:
        """Forget it."""
        if not self._ended:
            self._end()
            self.kill()

    def kill(self) -> None:
        """Tell the journal that the fragments are dead; a refused journal knows already."""
        self._ended = True
        if self._fragments:
            self._producer.submit_abort(self._number)

    def _end(self) -> None:
        self._ended = True
        self._producer.transaction_ended()
        self._held, self._held_controls = [], []

    def _check(self) -> None:
        self._producer.check()
        if self._ended:
            raise UnknownInputError("the transaction has ended")


def _shifted(batch: ChangeBatch, shift: int) -> ChangeBatch:
    ordinals = pa.array((batch.ordinals.to_numpy().astype(np.int64) + shift).astype(np.uint32))
    return ChangeBatch(
        batch.tables,
        ordinals,
        batch.ops,
        batch.values,
        batch.table_numbers,
        batch.before,
        batch.not_given,
        batch.as_text,
    )


def _shifted_control(control: Control, shift: int) -> Control:
    return Control(control.kind, control.ordinal + shift, control.table, control.facts)
