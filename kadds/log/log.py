"""The log: open it, append to it through producers, read it, follow it.

Lock order, outermost first: a producer's claim, the writer's queue, the tail, the dictionary; `_changed` stands alone.
No lock is held while a future is completed or a reader's slice is handed out.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import numpy as np

from kadds.api.change import ChangeBatch, transaction_facts
from kadds.api.connector import Appended
from kadds.api.errors import ConfigurationError, KaddsError
from kadds.api.position import Cursor
from kadds.log.checkpoint import Checkpoint, apply_commit
from kadds.log.dictionary import Dictionary
from kadds.log.disk import Disk
from kadds.log.entry import Entry
from kadds.log.frame import EntryKind, Identity
from kadds.log.lock import FolderLock
from kadds.log.producer import LogProducer, Producers
from kadds.log.reader import EntryCache, Reader
from kadds.log.recovery import JOURNAL_FOLDER, SEGMENTS_FOLDER, Recovery
from kadds.log.seal import Sealer
from kadds.log.segment import Segment
from kadds.log.shaping import build_blocks
from kadds.log.slice import Slice
from kadds.log.state import ControlState
from kadds.log.stream import Stream
from kadds.log.writer import Pending, Writer


class Log:
    """An opened log folder; thread-safe; one process at a time (LockedError)."""

    def __init__(
        self,
        path: Path,
        *,
        memory_bytes: int = 256 << 20,
        free_space_floor_bytes: int = 64 << 20,
        seal_after_seconds: float = 3600.0,
        journal_file_bytes: int = 256 << 20,
        max_value_bytes: int = 256 << 20,
        writable: bool = True,
        disk: Disk | None = None,
        narrate: Callable[[str], None] | None = None,
    ) -> None:
        self.path = path
        self._disk = disk or Disk()
        self._narrate = narrate or (lambda _: None)
        self._max_value_bytes = max_value_bytes
        self._changed = threading.Condition()
        self._closed = False
        if not writable and not path.exists():
            raise ConfigurationError("there is no log in this folder", where=str(path))
        if writable:
            self._make_folder()
        self.lock = FolderLock(path, writable=writable)
        try:
            self._open(memory_bytes, writable)
            if writable:
                self._start(memory_bytes, free_space_floor_bytes, seal_after_seconds, journal_file_bytes)
        except BaseException:
            self.lock.release()
            raise

    @classmethod
    def open(cls, path: Path, **settings: Any) -> Self:
        """Open for reading and writing, make the folder if there is none, recover in narrated passes.

        `writable=False` changes nothing on disk, and takes no epoch. Sizes in bytes: `memory_bytes` for queue and
        cache, `free_space_floor_bytes`, `journal_file_bytes` (a file is closed at this size, or after
        `seal_after_seconds`), `max_value_bytes` (a larger value stops its table by name). `narrate` is told what
        recovery does."""
        return cls(path, **settings)

    def _make_folder(self) -> None:
        """The folder, its name as durable as what will stand in it."""
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for folder in missing:
            self._disk.sync_folder(folder.parent)

    def _open(self, memory_bytes: int, writable: bool) -> None:
        self._dictionary = Dictionary()
        self._producers = Producers()
        self.state = ControlState(self._append_state)
        found = Recovery(
            self.path,
            self._disk,
            self._dictionary,
            self._producers,
            self.state,
            writable=writable,
            index_memory_bytes=memory_bytes // 4,
            narrate=self._narrate,
        ).run()
        self._manifest = found.manifest
        self._manifest_lock = threading.Lock()
        self._index = found.index
        self._tail = found.tail
        self._end_offset = found.next_offset
        self._next_file = found.next_file
        self._segments: tuple[Segment, ...] = tuple(found.segments)
        self._cache = EntryCache(memory_bytes // 2)
        self._reader = Reader(
            tail=self._tail,
            cache=self._cache,
            dictionary=self._dictionary,
            index=self._index,
            segments=lambda: self._segments,
            cursor=self._manifest.cursor,
        )
        self._writer: Writer | None = None
        self._sealer: Sealer | None = None

    def _start(self, memory_bytes: int, floor: int, seal_after_seconds: float, journal_file_bytes: int) -> None:
        self._sealer = Sealer(
            segments_folder=self.path / SEGMENTS_FOLDER,
            journal_folder=self.path / JOURNAL_FOLDER,
            disk=self._disk,
            manifest=self._manifest,
            manifest_lock=self._manifest_lock,
            tail=self._tail,
            dictionary=self._dictionary,
            checkpoint=Checkpoint(self._segments[-1] if self._segments else None, self._dictionary),
            open_fragments=lambda: self._open_writer().open_fragments(),
            sealed=self._sealed,
            narrate=self._narrate,
            bytes_min=journal_file_bytes,
            seconds_max=seal_after_seconds,
        )
        self._writer = Writer(
            folder=self.path / JOURNAL_FOLDER,
            disk=self._disk,
            tail=self._tail,
            dictionary=self._dictionary,
            open_epoch=self._open_epoch,
            published=self._published,
            closed_file=self._sealer.wake,
            next_offset=self._end_offset,
            next_file=self._next_file,
            queue_bytes_max=max(memory_bytes // 4, 16 << 20),
            file_bytes_max=journal_file_bytes,
            file_seconds_max=seal_after_seconds,
            free_space_floor_bytes=floor,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is queued, fsync, stop the threads, give the lock back. Waiting readers return."""
        if self._closed:
            return
        if self._writer is not None:
            self._writer.close()
        if self._sealer is not None:
            self._sealer.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._index.close()
        self.lock.release()

    # ------------------------------------------------------------------ identity

    @property
    def uuid(self) -> uuid.UUID:
        """Which log this is."""
        return self._manifest.log

    @property
    def epoch(self) -> int:
        """The number of the last opening that wrote something; 0 if none has."""
        return self._manifest.openings[-1].epoch if self._manifest.openings else 0

    @property
    def failure(self) -> KaddsError | None:
        """Why nothing can be appended any more; None while all is well."""
        return self._writer.failure if self._writer else None

    def begin(self) -> Cursor:
        """The cursor before the first change."""
        return self._manifest.cursor(0)

    def end(self) -> Cursor:
        """The cursor behind the last durable change."""
        return self._manifest.cursor(self._end_offset)

    def check(self, cursor: Cursor) -> None:
        """GapError if `cursor` was not given by this log, or by a history of it that this one does not have."""
        self._manifest.check(cursor, self._end_offset)

    # ------------------------------------------------------------------ appending

    def producer(self, source: str, name: str) -> LogProducer:
        """Claim producer `name` of `source` (`tenant/name`); an older holder gets FencedError from then on."""
        return self._producers.claim(source, name, self._open_writer(), self._dictionary, self._max_value_bytes)

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise ConfigurationError("the log was opened for reading only", where=str(self.path))
        return self._writer

    def _append_state(self, source: str, batch: ChangeBatch) -> Future[Appended]:
        built = build_blocks(source, [batch], self._dictionary, 0)
        head = {"producer": f"{source}/state", "producer_epoch": 0, "sequence": None, "lineage": "", "state": True}
        pending = Pending(
            EntryKind.COMMIT,
            head,
            len(batch),
            facts=transaction_facts(b"", len(batch)),
            blocks=built.blocks,
            streams=built.streams,
            layouts=built.layouts,
        )
        pending.encode()
        self._open_writer().submit(pending)
        return pending.future

    def _open_epoch(self, first_offset: int) -> Identity:
        with self._manifest_lock:
            return self._manifest.add_opening(first_offset)

    def _published(self, entries: Sequence[Entry], end_offset: int) -> None:
        """Called by the writer: these entries are on disk."""
        for entry in entries:
            self._cache.put(entry)
            if entry.header.kind == EntryKind.COMMIT:
                apply_commit(entry, self._producers, self.state, self._dictionary)
        with self._changed:
            self._end_offset = end_offset
            self._changed.notify_all()

    # ------------------------------------------------------------------ reading

    def streams(self, source: str | None = None) -> Sequence[Stream]:
        """The streams, of one source (`tenant/name`) or all, by id; system streams only where asked for by source."""
        return sorted(self._dictionary.of_source(source), key=lambda stream: stream.id)

    def stream(self, stream_id: int) -> Stream:
        """The stream of that id, which a slice or `touched` has named."""
        return self._dictionary.stream(stream_id)

    def named(self, name: str) -> Sequence[Stream]:
        """The incarnations of a stream's name, the latest last; empty if there is none."""
        return self._dictionary.named(name)

    def read(
        self,
        after: Cursor,
        *,
        streams: Collection[int] | None = None,
        source: str | None = None,
        until: Cursor | None = None,
        max_rows: int = 65_536,
        max_bytes: int = 64 << 20,
    ) -> Iterator[Slice]:
        """Slices of what lies behind `after`, in offset order, up to `until` or the end as of now.

        `streams` are ids; `source` means all streams of a source; neither means everything. Empty slices are left out,
        but the last slice's cursor always stands at the end that was read up to, so that a reader of quiet streams
        moves on. A slice has about `max_rows` rows and ends with a transaction; see Slice.whole.
        """
        self.check(after)
        end = min(self._end_offset, until.offset()) if until is not None else self._end_offset
        if source is not None:
            streams = [stream.id for stream in self.streams(source)]
        return self._reader.read(after.offset(), end, streams, rows_max=max_rows, bytes_max=max_bytes)

    def touched(self, after: int) -> tuple[int, frozenset[int]]:
        """(end offset, ids of the streams that have anything in [after, end)); for the dispatcher."""
        end = self._end_offset
        found = self._tail.touched(after, end)
        for segment in self._segments:
            if segment.end_offset > after:
                extents = segment.extents
                behind = extents.column("last_offset").to_numpy() >= after
                found |= frozenset(np.unique(extents.column("stream").to_numpy()[behind]).tolist())
                found |= {plain[1] for plain in segment.controls if plain[0] >= after}
        return end, found

    def bytes_behind(self, offset: int) -> int:
        """How many bytes of the log, of all streams, hold something behind `offset`: what a reader has before it."""
        sealed = sum(s.bytes_behind(offset) for s in self._segments if s.end_offset > offset)
        return sealed + self._tail.bytes_behind(offset)

    def wait(self, after: int, timeout_seconds: float | None = None) -> int:
        """Wait until the end offset is above `after`, the time is up, or the log closes or fails; the end offset."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._end_offset > after or self._closed or self.failure is not None, timeout_seconds
            )
            return self._end_offset

    # ------------------------------------------------------------------ sealing

    def seal(self) -> None:
        """Close the open journal file and seal all that is closed; returns when it is done."""
        self._open_writer().rotate()
        if self._sealer is not None:
            self._sealer.seal(everything=True)

    def _sealed(self, segment: Segment) -> None:
        try:
            self._index.add(segment)
        except KaddsError as error:  # a full disk, say: the segment is live already and must be found
            self._narrate(f"the index goes on in memory until the log is opened again: {error}")
            self._index.move_to_memory([*self._segments, segment])
        self._segments = (*self._segments, segment)

    def status(self) -> Mapping[str, Any]:
        """Facts about the log, JSON-able."""
        return {
            "path": str(self.path),
            "log": str(self.uuid),
            "epoch": self.epoch,
            "end": str(self.end()),
            "end_offset": self._end_offset,
            "segments": len(self._segments),
            "segment_bytes": sum(record.bytes for record in self._manifest.segments),
            "journal_files": len(self._tail.files()),
            "journal_bytes": sum(file.size for file in self._tail.files()),
            "free_bytes": self._disk.free_bytes(self.path),
            "failure": str(self.failure) if self.failure else None,
            "sealing_failure": str(self._sealer.failure) if self._sealer and self._sealer.failure else None,
        }
