"""A log in memory with the meaning of the real one, for suites of sources and pushers.

It keeps what the real one promises: repeats are dropped by sequence, a newer claim fences the older holder, an open
transaction is seen by nobody before its commit, a full queue makes callers wait, and what was not yet on "disk" at a
crash is gone. All that a producer is given goes through bytes and back, as it would between two processes.

With `automatic=False` nothing becomes durable until `flush`. `kill_at` breaks off at the n-th step of any producer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from kadds.api.change import ChangeBatch, Control, Op, Transactions, given_mask
from kadds.api.connector import Appended, Resume
from kadds.api.encoding import Decoder, Encoder
from kadds.api.errors import FencedError, RetryableError, UnknownInputError
from kadds.api.position import Position


class Killed(BaseException):
    """The process ends here, as far as the code under test can tell."""


@dataclass(frozen=True)
class LoggedRow:
    """One change as a reader sees it. `values` leaves out cells that are not given."""

    offset: int
    op: str
    values: Mapping[str, Any]
    before: bool = False
    as_text: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LoggedTransaction:
    """One transaction: its facts (a row of `TRANSACTIONS`), where it begins, and what it holds."""

    first_offset: int
    source: str
    producer: str
    lineage: str
    facts: Mapping[str, Any]
    resume: bytes
    changes: tuple[ChangeBatch, ...]
    controls: tuple[Control, ...]

    @property
    def position(self) -> Position:
        """Its place in the source's own log."""
        return Position(self.lineage, self.facts["sort_key"], self.facts["token"] or "")

    def rows(self, table: str | None = None) -> list[LoggedRow]:
        """Its changes, of one table by its qualified name or of all, in their order."""
        found = [row for batch in self.changes for row in _rows(batch, self.first_offset, table)]
        return sorted(found, key=lambda row: row.offset)


def _rows(batch: ChangeBatch, first_offset: int, table: str | None) -> list[LoggedRow]:
    names = batch.values.schema.names
    values = [column.to_pylist() for column in batch.values.columns]
    given = [given_mask(batch.not_given, number, len(batch)) for number in range(len(names))]
    ordinals, ops = batch.ordinals.to_pylist(), batch.ops.to_pylist()
    before = batch.before.to_pylist() if batch.before is not None else [False] * len(batch)
    texts = batch.as_text.to_pylist() if batch.as_text is not None else [None] * len(batch)
    numbers = batch.table_numbers.to_pylist() if batch.table_numbers is not None else [0] * len(batch)
    return [
        LoggedRow(
            first_offset + ordinals[row],
            Op(ops[row]).letter,
            {name: column[row] for name, column, mask in zip(names, values, given, strict=True) if mask[row]},
            bool(before[row]),
            {names[cell["column"]]: cell["text"] for cell in texts[row] or ()},
        )
        for row in range(len(batch))
        if table is None or batch.tables.tables[numbers[row]].qualified_name == table
    ]


@dataclass
class _Claim:
    """What is known of one producer; `accepted` counts what is queued as well, `durable` what is on disk."""

    epoch: int = 0
    accepted: bytes | None = None
    durable: Resume | None = None


@dataclass
class _Queued:
    """Something on its way to disk."""

    nbytes: int
    settle: Callable[[], None]
    future: Future[Appended] | None = None


class MemoryLog:
    """The log; thread-safe."""

    def __init__(self, *, automatic: bool = True, queue_bytes: int = 1 << 20) -> None:
        self.automatic = automatic
        self.queue_bytes = queue_bytes
        self.kill_at: int | None = None
        self.steps = 0
        self._changed = threading.Condition(threading.RLock())
        self._claims: dict[tuple[str, str], _Claim] = {}
        self._queue: deque[_Queued] = deque()
        self._transactions: list[LoggedTransaction] = []
        self._end = 0
        self._waiting = 0

    # ------------------------------------------------------------------------------------------ reading

    def transactions(self, source: str | None = None, producer: str | None = None) -> list[LoggedTransaction]:
        """What is durable, in offset order."""
        with self._changed:
            return [
                t
                for t in self._transactions
                if (source is None or t.source == source) and (producer is None or t.producer == producer)
            ]

    def rows(self, table: str | None = None) -> list[LoggedRow]:
        """The durable changes, of one table by its qualified name or of all, in offset order."""
        return [row for transaction in self.transactions() for row in transaction.rows(table)]

    def image(self, table: str, key: str = "id") -> dict[Any, Mapping[str, Any]]:
        """The rows of a table by key, after every durable change has been applied in offset order."""
        found: dict[Any, Mapping[str, Any]] = {}
        for row in self.rows(table):
            if row.op == "t":
                found.clear()
            elif row.before:
                found.pop(row.values[key], None)
            else:
                found[row.values[key]] = {**found.get(row.values[key], {}), **row.values}
        return found

    def wait(self, predicate: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
        """Wait until `predicate` holds, which is asked whenever the log changes; AssertionError when time is up."""
        with self._changed:
            assert self._changed.wait_for(predicate, timeout_seconds), "the log did not get there in time"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around what a waiting test should look at again."""
        with self._changed:
            yield
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many callers wait because the queue is full."""
        with self._changed:
            return self._waiting

    @property
    def queued(self) -> int:
        """How many pieces are not on disk yet."""
        return len(self._queue)

    # ------------------------------------------------------------------------------------------ what happens to it

    def flush(self) -> None:
        """Bring what is queued to disk and complete its futures, in order."""
        with self._changed:
            while self._queue:
                self._queue.popleft().settle()
            self._changed.notify_all()

    def crash(self) -> None:
        """End the process that holds the log and open it again: only what was on disk is left, all claims are gone."""
        with self._changed:
            for queued in self._queue:
                if queued.future is not None:
                    queued.future.set_exception(RetryableError("the log ended before this was on disk"))
            self._queue.clear()
            self.kill_at = None
            for claim in self._claims.values():
                claim.epoch += 1
                claim.accepted = None if claim.durable is None else claim.durable.sequence
            self._changed.notify_all()

    def producer(self, source: str, name: str) -> MemoryProducer:
        """Claim producer `name` of `source`; an older holder is fenced from here on."""
        with self._changed:
            claim = self._claims.setdefault((source, name), _Claim())
            claim.epoch += 1
            self._changed.notify_all()
            return MemoryProducer(self, source, name, claim)

    # ------------------------------------------------------------------------------------------ used by producers

    def _step(self) -> None:
        """A place at which the process may end."""
        with self._changed:
            self.steps += 1
            if self.kill_at is not None and self.steps >= self.kill_at:
                raise Killed(f"step {self.steps}")

    def _enqueue(self, queued: _Queued, check: Callable[[], None], accept: Callable[[], None] = lambda: None) -> None:
        """Add to the queue once it has room; a piece larger than the whole queue goes in alone.

        `check` is asked before and after each wait, `accept` told at the moment of entering.
        """
        with self._changed:
            check()
            while self._queue and sum(q.nbytes for q in self._queue) + queued.nbytes > self.queue_bytes:
                self._waiting += 1
                self._changed.notify_all()
                self._changed.wait()
                self._waiting -= 1
                check()
            accept()
            self._queue.append(queued)
            if self.automatic:
                self.flush()
            self._changed.notify_all()

    def _commit(self, transactions: Sequence[LoggedTransaction]) -> tuple[int, int]:
        """Give offsets; called while settling."""
        first = self._end
        for transaction in transactions:
            self._transactions.append(replace(transaction, first_offset=self._end))
            self._end += int(transaction.facts["rows"])
        return first, self._end


class MemoryProducer:
    """A claimed producer of a MemoryLog."""

    def __init__(self, log: MemoryLog, source: str, name: str, claim: _Claim) -> None:
        self._log = log
        self._source = source
        self._name = name
        self._claim = claim
        self._epoch = claim.epoch
        self._open: MemoryOpenTransaction | None = None
        self.position: Position | None = None  # of the last transaction that was appended, a repeat too

    @property
    def name(self) -> str:
        """As claimed."""
        return self._name

    def _check(self) -> None:
        if self._claim.epoch != self._epoch:
            raise FencedError(
                f"producer {self._name} of {self._source} has been claimed by a newer holder",
                hint="two processes capture the same source; stop one",
            )

    def resume(self) -> Resume | None:
        """The last durable sequence and state."""
        with self._log._changed:
            self._check()
            return self._claim.durable

    def append(self, transactions: Transactions, resume: bytes) -> Future[Appended]:
        """Add whole transactions; repeats are dropped."""
        self._check_open(None)
        self._log._step()
        copied, nbytes = _through_bytes(transactions)
        future = self._accept(_split(copied, self._source, self._name, bytes(resume)), nbytes)
        self._log._step()
        return future

    def _accept(self, transactions: Sequence[LoggedTransaction], nbytes: int) -> Future[Appended]:
        future: Future[Appended] = Future()
        fresh: list[LoggedTransaction] = []

        def accept() -> None:
            last = self._claim.accepted
            fresh[:] = [t for t in transactions if last is None or t.facts["sequence"] > last]
            if fresh:
                self._claim.accepted = fresh[-1].facts["sequence"]

        def settle() -> None:
            first, end = self._log._commit(fresh)
            if fresh:
                self._claim.durable = Resume(fresh[-1].facts["sequence"], fresh[-1].resume)
            if transactions:
                self.position = transactions[-1].position
            future.set_result(Appended(first, end, len(transactions) - len(fresh)))

        self._log._enqueue(_Queued(nbytes, settle, future), self._check, accept)
        return future

    def begin(self, xid: str) -> MemoryOpenTransaction:
        """Start a transaction that comes in pieces."""
        with self._log._changed:
            self._check()
        self._check_open(None)
        self._log._step()
        self._open = MemoryOpenTransaction(self, xid)
        return self._open

    def _check_open(self, wanted: MemoryOpenTransaction | None) -> None:
        if self._open is not wanted:
            what = "another transaction is open" if wanted is None else "this transaction has ended"
            raise UnknownInputError(f"{what} in producer {self._name}", hint="commit or abort it first")


class MemoryOpenTransaction:
    """A transaction on its way in."""

    def __init__(self, producer: MemoryProducer, xid: str) -> None:
        self._producer = producer
        self._xid = xid
        self._rows = 0
        self._changes: list[ChangeBatch] = []
        self._controls: list[Control] = []

    def add(self, changes: Sequence[ChangeBatch], controls: Sequence[Control] = ()) -> None:
        """Add rows; nobody sees them yet."""
        producer = self._producer
        producer._check_open(self)
        producer._log._step()
        piece, nbytes = _through_bytes(Transactions.one(b"", changes, controls))
        _check_ordinals(piece)
        self._changes += [_rebased(batch, self._rows) for batch in piece.changes]
        self._controls += [replace(c, ordinal=c.ordinal + self._rows) for c in piece.controls]
        self._rows += piece.rows
        producer._log._enqueue(_Queued(nbytes, lambda: None), producer._check)

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
        """End it; only now it takes offsets."""
        producer = self._producer
        producer._check_open(self)
        producer._log._step()
        whole = Transactions.one(
            sequence,
            self._changes,
            self._controls,
            lineage=lineage,
            sort_key=sort_key,
            token=token,
            xid=self._xid,
            committed_at=committed_at,
            origin=origin,
        )
        producer._open = None
        future = producer._accept(_split(whole, producer._source, producer._name, bytes(resume)), 256)
        producer._log._step()
        return future

    def abort(self) -> None:
        """Forget it."""
        if self._producer._open is self:
            self._producer._open = None


def _through_bytes(transactions: Transactions) -> tuple[Transactions, int]:
    """As the engine gets it from another process, and how many bytes that takes."""
    data = b"".join(Encoder().encode(transactions))
    return Decoder().decode(data), len(data)


def _check_ordinals(transactions: Transactions) -> None:
    """Every ordinal from 0 on stands exactly once."""
    taken = [batch.ordinals.to_numpy() for batch in transactions.changes]
    taken.append(np.array([control.ordinal for control in transactions.controls], np.uint32))
    if not np.array_equal(np.sort(np.concatenate(taken)), np.arange(transactions.rows)):
        raise UnknownInputError("the ordinals of an append have a hole or a double")


def _rebased(batch: ChangeBatch, base: int) -> ChangeBatch:
    return replace(batch, ordinals=pa.array(batch.ordinals.to_numpy() + np.uint32(base)))


def _split(transactions: Transactions, source: str, producer: str, resume: bytes) -> list[LoggedTransaction]:
    """Each transaction by itself, its ordinals from 0; UnknownInputError if sequences do not rise."""
    _check_ordinals(transactions)
    found: list[LoggedTransaction] = []
    first = 0
    for facts in transactions.facts.to_pylist():
        if found and facts["sequence"] <= found[-1].facts["sequence"]:
            raise UnknownInputError(f"sequence {facts['sequence']!r} does not rise within an append of {producer}")
        end = first + facts["rows"]
        changes = [_cut(batch, first, end) for batch in transactions.changes]
        controls = [replace(c, ordinal=c.ordinal - first) for c in transactions.controls if first <= c.ordinal < end]
        found.append(
            LoggedTransaction(
                0,
                source,
                producer,
                transactions.lineage,
                facts,
                resume,
                tuple(batch for batch in changes if len(batch)),
                tuple(controls),
            )
        )
        first = end
    return found


def _cut(batch: ChangeBatch, first: int, end: int) -> ChangeBatch:
    ordinals = batch.ordinals.to_numpy()
    start, stop = np.searchsorted(ordinals, (first, end))
    return replace(batch.slice(int(start), int(stop)), ordinals=pa.array(ordinals[start:stop] - np.uint32(first)))


class MemoryInlet:
    """What a streaming source is given."""

    def __init__(self, log: MemoryLog, source: str) -> None:
        self._log = log
        self._source = source
        self._stopping = threading.Event()
        self._producers: list[MemoryProducer] = []

    @property
    def stopping(self) -> threading.Event:
        """Set when the source is to return."""
        return self._stopping

    def producer(self, name: str) -> MemoryProducer:
        """Claim the producer of that name."""
        self._producers.append(self._log.producer(self._source, name))
        return self._producers[-1]

    def reaches(self, head: Position) -> bool:
        """Whether something that was appended through this inlet is at or past `head`."""
        return any(one.position is not None and one.position.reaches(head) for one in self._producers)
