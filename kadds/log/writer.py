"""The writer: one thread through which everything enters the journal, in groups that share one fdatasync.

Order of things, which every promise rests on: frame and checksum, write, fdatasync, *then* make it visible to readers
and acknowledge. A group that fails leaves no trace: the file is cut back, every append that waits is refused with the
same error, and its producers have to begin again from what is durable (otherwise a later sequence would hide the lost
one)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.connector import Appended
from kadds.api.errors import CorruptLogError, KaddsError, NoSpaceError
from kadds.log.block import Block
from kadds.log.dictionary import Dictionary
from kadds.log.disk import Disk
from kadds.log.entry import Entry, encode_body, encode_head
from kadds.log.frame import EntryHeader, EntryKind, FileKind, Identity, checksum
from kadds.log.journal import JournalFile
from kadds.log.tail import Tail

GROUP_BYTES_MAX = 32 << 20


class Appender(Protocol):
    """Who submitted something, and has to know what became of it. Called by the writer's thread."""

    def failed(self, error: KaddsError) -> None:
        """Everything queued was refused."""
        ...


@dataclass(eq=False)
class Pending:
    """Something on its way into the journal."""

    kind: EntryKind
    head: dict[str, Any]
    rows: int  # ordinals: offsets that a commit takes
    resume: bytes = b""
    facts: pa.RecordBatch | None = None
    blocks: Sequence[Block] = ()
    streams: Sequence[npt.NDArray[np.int64]] = ()
    layouts: frozenset[int] = frozenset()
    transaction: int | None = None  # fragments: theirs; a commit or abort of fragments: whose
    appender: Appender | None = None
    repeated: int = 0
    future: Future[Appended] = field(default_factory=Future)
    body: list[Any] = field(default_factory=list)
    body_bytes: int = 0

    def encode(self) -> None:
        """Make the bytes of the body, in the thread that appends."""
        self.head["sections"], self.body = encode_body(self.resume, self.facts, self.blocks)
        self.body_bytes = sum(len(part) for part in self.body)


@dataclass
class OpenFragments:
    """The fragments of a transaction that is neither committed nor aborted."""

    numbers: list[list[int]] = field(default_factory=list)  # [entry number, rows]
    streams: list[npt.NDArray[np.int64]] = field(default_factory=list)


class Writer:
    """Owns the journal file that is being written, the numbers and the offsets."""

    def __init__(
        self,
        *,
        folder: Path,
        disk: Disk,
        tail: Tail,
        dictionary: Dictionary,
        open_epoch: Callable[[int], Identity],
        published: Callable[[Sequence[Entry], int], None],
        closed_file: Callable[[], None],
        next_offset: int,
        next_file: int,
        queue_bytes_max: int,
        file_bytes_max: int,
        file_seconds_max: float,
        free_space_floor_bytes: int,
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._tail = tail
        self._dictionary = dictionary
        self._open_epoch = open_epoch
        self._published = published
        self._closed_file = closed_file
        self._next_offset = next_offset
        self._next_file = next_file
        self._queue_bytes_max = queue_bytes_max
        self._file_bytes_max = file_bytes_max
        self._file_seconds_max = file_seconds_max
        self._floor = free_space_floor_bytes
        self._identity: Identity | None = None
        self._file: JournalFile | None = None
        self._file_opened = 0.0
        self._open: dict[int, OpenFragments] = {}
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._rotate = False
        self.failure: KaddsError | None = None
        self._thread = threading.Thread(target=self._run, name="kadds-journal", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ callers

    def submit(self, pending: Pending, still: Callable[[], None] | None = None) -> None:
        """Queue it; waits while the queue is full. `still` runs under the queue's lock and may refuse by raising."""
        with self._changed:
            while self._queued_bytes >= self._queue_bytes_max and self.failure is None and not self._closing:
                self._changed.wait()
            if self.failure is not None:
                raise self.failure
            if self._closing:
                raise CorruptLogError("the log is closed")
            if still is not None:
                still()
            pending.future.set_running_or_notify_cancel()  # a caller's cancel must not meet the writer's result
            self._queue.append(pending)
            self._queued_bytes += pending.body_bytes
            self._changed.notify_all()

    def exclusively(self, change: Callable[[], None]) -> None:
        """Call `change` while nothing is being queued."""
        with self._changed:
            change()

    def rotate(self) -> None:
        """Close the journal file, so that it can be sealed; returns when it is closed, or has no room to be."""
        with self._changed:
            if self._closing:
                raise CorruptLogError("the log is closed")
            self._rotate = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._rotate or self.failure is not None)
            if self.failure is not None:
                raise self.failure

    def close(self) -> None:
        """Write what is queued, close the file in order, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def open_fragments(self) -> dict[int, list[list[int]]]:
        """Transaction → [entry number, rows] of those that are still open, for sealing."""
        return {number: list(fragments.numbers) for number, fragments in list(self._open.items())}

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._closing or self._rotate):
                    self._changed.wait(self._until_old())
                    if self._until_old() == 0.0:
                        self._rotate = True
                group = self._take_group()
                rotate = self._rotate
                closing = self._closing and not group
            try:
                if group:
                    self._write(group)
                if self._file is not None and (rotate or closing or self._full()):
                    self._close_file()
                if rotate:
                    with self._changed:
                        self._rotate = False
                        self._changed.notify_all()
            except KaddsError as error:
                self._refuse(group, error)
            except BaseException as error:  # a bug of ours must not leave callers waiting for ever
                self._refuse(group, CorruptLogError(f"the journal's writer failed: {error!r}"))
                raise
            if closing or self.failure is not None:
                return

    def _until_old(self) -> float | None:
        if self._file is None:
            return None
        return max(0.0, self._file_opened + self._file_seconds_max - time.monotonic())

    def _full(self) -> bool:
        return self._file is not None and (self._file.size >= self._file_bytes_max or self._until_old() == 0.0)

    def _take_group(self) -> list[Pending]:
        group, size = [], 0
        while self._queue and size < GROUP_BYTES_MAX:
            pending = self._queue.popleft()
            size += pending.body_bytes
            group.append(pending)
        return group

    def _write(self, group: list[Pending]) -> None:
        room = sum(pending.body_bytes for pending in group)
        free = self._disk.free_bytes(self._folder)
        if free - room < self._floor:
            raise NoSpaceError(
                f"{free >> 20} MiB are free on the log's disk, the floor is {self._floor >> 20} MiB",
                where=str(self._folder),
                hint="make room, or lower log.free_space_floor_bytes; intake goes on by itself",
            )
        if self._identity is None:
            self._identity = self._open_epoch(self._next_offset)
        if self._file is None:
            self._file = self._new_file(self._identity)
        file, identity = self._file, self._identity
        offset, number, position = self._next_offset, self._tail.next_number, file.size
        parts: list[Any] = []
        framed: list[tuple[Pending, int, EntryHeader]] = []
        fragments: dict[int, OpenFragments] = {}
        for pending in group:
            head = self._head(pending, number, fragments)
            head_bytes = encode_head(head)
            header = EntryHeader(
                pending.kind,
                identity.epoch,
                number,
                offset,
                pending.rows,
                len(head_bytes),
                pending.body_bytes,
                file.size,
                checksum(head_bytes, *pending.body),
            )
            parts += [header.pack(identity.log), head_bytes, *pending.body]
            pending.head = head
            framed.append((pending, position, header))
            position += header.entry_bytes
            number += 1
            if pending.kind == EntryKind.COMMIT:
                offset += pending.rows
        try:
            self._disk.append(file.descriptor, parts)
        except KaddsError:
            self._disk.truncate(file.descriptor, file.size)
            raise
        self._disk.sync(file.descriptor, file.path)
        file.size = position
        self._next_offset = offset
        self._publish(file, framed)

    def _head(self, pending: Pending, number: int, fragments: dict[int, OpenFragments]) -> dict[str, Any]:
        """The head with all that only the writer knows; `fragments` are those of this group, not yet durable.

        A commit defines the streams of its fragments too: theirs count for nothing, since they may be sealed or die.
        """
        head = dict(pending.head)
        transaction = pending.transaction
        streams = list(pending.streams)
        if transaction is not None and pending.kind == EntryKind.FRAGMENT:
            mine = fragments.setdefault(transaction, OpenFragments())
            mine.numbers.append([number, pending.rows])
            mine.streams += streams
        elif transaction is not None:
            parts = [part for part in (self._open.get(transaction), fragments.get(transaction)) if part is not None]
            head["fragments"] = [one for part in parts for one in part.numbers]
            if pending.kind == EntryKind.COMMIT:
                streams += [ids for part in parts for ids in part.streams]
        head.update(self._dictionary.definitions(streams, pending.layouts))
        return head

    def _publish(self, file: JournalFile, framed: Sequence[tuple[Pending, int, EntryHeader]]) -> None:
        entries = []
        for pending, position, header in framed:
            streams = list(pending.streams)
            if pending.kind == EntryKind.COMMIT and pending.head.get("fragments"):
                # Before they stop being open: the sealer drops what is neither open nor committed.
                self._tail.use_fragments(header.number, pending.head["fragments"])
            if pending.transaction is not None:
                if pending.kind == EntryKind.FRAGMENT:
                    opened = self._open.setdefault(pending.transaction, OpenFragments())
                    opened.numbers.append([header.number, pending.rows])
                    opened.streams += streams
                    streams = []
                else:
                    closed = self._open.pop(pending.transaction, None)
                    if closed is not None and pending.kind == EntryKind.COMMIT:
                        streams += closed.streams
            self._tail.add(file, position, header, streams if pending.kind == EntryKind.COMMIT else ())
            self._dictionary.defined(pending.head, streams=pending.kind == EntryKind.COMMIT)
            entries.append(Entry(header, pending.head, pending.resume, pending.facts, pending.blocks))
        self._published(entries, self._next_offset)
        with self._changed:
            self._queued_bytes -= sum(pending.body_bytes for pending, _, _ in framed)
            self._changed.notify_all()
        for pending, _, header in framed:
            taken = pending.rows if pending.kind == EntryKind.COMMIT else 0
            pending.future.set_result(Appended(header.first_offset, header.first_offset + taken, pending.repeated))

    def _refuse(self, group: Sequence[Pending], error: KaddsError) -> None:
        with self._changed:
            refused = [*(p for p in group if not p.future.done()), *self._queue]
            self._queue.clear()
            self._queued_bytes = 0
            if not isinstance(error, NoSpaceError):
                self.failure = error
            for pending in refused:
                if pending.appender is not None:
                    pending.appender.failed(error)
                if pending.transaction is not None:
                    self._open.pop(pending.transaction, None)
            self._changed.notify_all()
        self._published((), self._next_offset)
        for pending in refused:
            pending.future.set_exception(error)

    # ------------------------------------------------------------------ files

    def _new_file(self, identity: Identity) -> JournalFile:
        path = self._folder / journal_name(self._next_file)
        file = JournalFile.create(path, self._disk, FileKind.JOURNAL, identity, self._next_file)
        self._next_file += 1
        self._file_opened = time.monotonic()
        self._tail.add_file(file, writing=True)
        return file

    def _close_file(self) -> None:
        """Write the entry that says that all before it is durable: damage is then told from a torn tail."""
        file, identity = self._file, self._identity
        if file is None or identity is None:
            return
        head = encode_head({})
        header = EntryHeader(
            EntryKind.CLOSED,
            identity.epoch,
            self._tail.next_number,
            self._next_offset,
            0,
            len(head),
            0,
            file.size,
            checksum(head),
        )
        try:
            self._disk.append(file.descriptor, [header.pack(identity.log), head])
        except NoSpaceError:
            self._disk.truncate(file.descriptor, file.size)
            self._file_opened = time.monotonic()
            return  # the file stays open; the next group tries again
        self._disk.sync(file.descriptor, file.path)
        position, file.size = file.size, file.size + header.entry_bytes
        self._tail.add(file, position, header, ())
        self._file = None
        self._tail.file_closed()
        self._closed_file()


def journal_name(number: int) -> str:
    """The name of a journal file."""
    return f"{number:016d}.journal"
