"""Producers as sources get them: those of the log, watched.

What passes is counted by table, and the source's position is known as soon as the append that carries it is on disk:
that is what "caught up" is decided by. Nothing is changed, delayed or kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from kadds.api.change import ChangeBatch, Control, Transactions
from kadds.api.connector import Appended, OpenTransaction, Producer, Resume
from kadds.api.position import Position


class Progress:
    """How far a source has come: the highest position on disk, in the lineage that it had last."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._position: Position | None = None
        self._changed = changed

    @property
    def position(self) -> Position | None:
        """None until something has been appended since the start."""
        return self._position

    def reached(self, position: Position) -> None:
        """Everything up to `position` is on disk."""
        with self._lock:
            known = self._position
            if known is not None and known.lineage == position.lineage and known.reaches(position):
                return
            self._position = position
        self._changed()


Count = Callable[[str, int], None]


class WatchedProducer:
    """A `Producer`. `count(table, rows)` is told what was handed over."""

    def __init__(self, inner: Producer, progress: Progress, count: Count) -> None:
        self._inner = inner
        self._progress = progress
        self._count = count

    @property
    def name(self) -> str:
        """That of the log's producer."""
        return self._inner.name

    def resume(self) -> Resume | None:
        """See `Producer`."""
        return self._inner.resume()

    def append(self, transactions: Transactions, resume: bytes) -> Future[Appended]:
        """See `Producer`."""
        future = self._inner.append(transactions, resume)
        if transactions.facts.num_rows:
            last = transactions.facts.slice(transactions.facts.num_rows - 1)
            key, token = last.column("sort_key")[0].as_py(), last.column("token")[0].as_py()
            if key is not None:
                self._when_durable(future, Position(transactions.lineage, key, token or ""))
        self._counted(transactions.changes)
        return future

    def begin(self, xid: str) -> OpenTransaction:
        """See `Producer`."""
        return _WatchedTransaction(self._inner.begin(xid), self)

    def _when_durable(self, future: Future[Appended], position: Position) -> None:
        def done(ended: Future[Appended]) -> None:
            if not ended.cancelled() and ended.exception() is None:
                self._progress.reached(position)

        future.add_done_callback(done)

    def _counted(self, changes: Iterable[ChangeBatch]) -> None:
        for batch in changes:
            tables = batch.tables.tables
            self._count(tables[0].qualified_name if len(tables) == 1 else "", len(batch))


class _WatchedTransaction:
    def __init__(self, inner: OpenTransaction, producer: WatchedProducer) -> None:
        self._inner = inner
        self._producer = producer

    def add(self, changes: Sequence[ChangeBatch], controls: Sequence[Control] = ()) -> None:
        """See `OpenTransaction`."""
        self._inner.add(changes, controls)
        self._producer._counted(changes)

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
        """See `OpenTransaction`."""
        future = self._inner.commit(
            sequence,
            resume,
            lineage=lineage,
            sort_key=sort_key,
            token=token,
            committed_at=committed_at,
            origin=origin,
        )
        position = Position(lineage, sequence if sort_key is None else sort_key, token)
        self._producer._when_durable(future, position)
        return future

    def abort(self) -> None:
        """See `OpenTransaction`."""
        self._inner.abort()
