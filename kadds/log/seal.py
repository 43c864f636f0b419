"""Sealing: closed journal files become one segment, in the background, and are removed once it is durable.

Fragments of transactions that are still open, or that a later file commits, are copied, at most once, into a file of
fragments, which lives until the last of them is sealed or dead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.errors import CorruptLogError, KaddsError
from kadds.log.block import concatenate
from kadds.log.checkpoint import Checkpoint
from kadds.log.dictionary import Dictionary
from kadds.log.disk import Disk, write_error
from kadds.log.entry import Entry, decode, decode_head
from kadds.log.frame import EntryHeader, EntryKind, FileKind, Identity
from kadds.log.journal import JournalFile
from kadds.log.manifest import Manifest, SegmentRecord
from kadds.log.reader import joined, logged_facts, pick
from kadds.log.segment import SEGMENT_ROWS_MAX, Segment, SegmentWriter, streams_batch
from kadds.log.slice import LOGGED_TRANSACTIONS, LoggedBlock
from kadds.log.tail import Tail

SORTED_BYTES_MAX = 256 << 20


@dataclass
class Gathered:
    """All that closed journal files hold."""

    first_offset: int = 0
    end_offset: int = 0
    next_number: int = 0
    blocks: dict[Any, list[LoggedBlock]] = field(default_factory=dict)  # by (tenant, shape)
    facts: list[pa.RecordBatch] = field(default_factory=list)
    controls: list[list[Any]] = field(default_factory=list)
    streams: set[int] = field(default_factory=set)
    layouts: set[int] = field(default_factory=set)
    fragments: dict[int, tuple[JournalFile, int, EntryHeader]] = field(default_factory=dict)
    done_fragments: list[int] = field(default_factory=list)


class Sealer:
    """Seals when enough closed journal has gathered or it is old enough; one thread, woken by the writer."""

    def __init__(
        self,
        *,
        segments_folder: Path,
        journal_folder: Path,
        disk: Disk,
        manifest: Manifest,
        manifest_lock: threading.Lock,
        tail: Tail,
        dictionary: Dictionary,
        checkpoint: Checkpoint,
        open_fragments: Callable[[], dict[int, list[list[int]]]],
        sealed: Callable[[Segment], None],
        narrate: Callable[[str], None],
        bytes_min: int,
        seconds_max: float,
    ) -> None:
        self._segments_folder = segments_folder
        self._journal_folder = journal_folder
        self._disk = disk
        self._manifest = manifest
        self._manifest_lock = manifest_lock
        self._tail = tail
        self._dictionary = dictionary
        self._checkpoint = checkpoint
        self._open_fragments = open_fragments
        self._sealed = sealed
        self._narrate = narrate
        self._bytes_min = bytes_min
        self._seconds_max = seconds_max
        self._wake = threading.Event()
        self._closing = False
        self._busy = threading.Lock()
        self.failure: KaddsError | None = None
        self._thread = threading.Thread(target=self._run, name="kadds-seal", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A journal file was closed."""
        self._wake.set()

    def close(self) -> None:
        """End the thread; a sealing under way is finished first."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(min(self._seconds_max, 60.0))
            self._wake.clear()
            try:
                while not self._closing and self.seal():
                    pass
            except (KaddsError, OSError) as error:
                # Shown in the log's status; the journal stays as it is and can be read, and the next time may succeed.
                self.failure = write_error(error) if isinstance(error, OSError) else error
                self._narrate(f"sealing stopped: {self.failure}")
            else:
                self.failure = None

    def _due(self) -> list[JournalFile]:
        files, size = [], 0
        for file in self._tail.closed_files():
            files.append(file)
            size += file.size
            if size >= self._bytes_min:
                return files
        old = files and time.time() - files[0].header.created_at / 1e6 >= self._seconds_max
        return files if old else []

    def seal(self, *, everything: bool = False) -> bool:
        """Turn the closed files that are due, or all of them, into a segment; whether there were any."""
        with self._busy:
            files = self._tail.closed_files() if everything else self._due()
            if not files:
                return False
            self._manifest.check_writable()
            gathered = self._gather(files)
            identity = files[-1].header.identity
            self._move_fragments(gathered, files[-1].number, identity)
            number = self._manifest.segments[-1].number + 1 if self._manifest.segments else 1
            path = self._segments_folder / segment_name(number)
            writer = SegmentWriter(path, self._disk, identity, number, gathered.first_offset)
            try:
                size = self._write(writer, gathered)
            except BaseException:
                writer.abandon()
                raise
            record = SegmentRecord(
                number,
                files[0].number,
                files[-1].number,
                gathered.first_offset,
                gathered.end_offset,
                gathered.next_number,
                size,
            )
            with self._manifest_lock:
                self._manifest.add_segment(record)
            segment = Segment.open(path, self._manifest.log.bytes)
            self._sealed(segment)
            self._remove(files, gathered)
            self._narrate(
                f"segment {number}: offsets {gathered.first_offset} to {gathered.end_offset} sealed, {size:,} bytes"
            )
            return True

    # ------------------------------------------------------------------ reading the journal

    def _gather(self, files: Sequence[JournalFile]) -> Gathered:
        gathered = Gathered(first_offset=-1)
        for file in files:
            scanned = file.scan()
            if scanned.end != file.size:
                raise CorruptLogError(
                    f"the journal file does not hold from byte {scanned.end} on: {scanned.damage or 'it is cut short'}",
                    where=str(file.path),
                    hint="nothing was removed; restore the file from a backup or another tier",
                )
            data = pa.py_buffer(file.mapped())
            for position, header in scanned.entries:
                self._take(gathered, file, data, position, header)
        if gathered.first_offset < 0:
            gathered.first_offset = gathered.end_offset
        return gathered

    def _take(self, gathered: Gathered, file: JournalFile, data: pa.Buffer, position: int, header: EntryHeader) -> None:
        if gathered.first_offset < 0:
            gathered.first_offset = header.first_offset
        gathered.next_number = header.number + 1
        gathered.end_offset = header.first_offset + (header.rows if header.kind == EntryKind.COMMIT else 0)
        if header.kind == EntryKind.FRAGMENT:
            gathered.fragments[header.number] = (file, position, header)
        elif header.kind == EntryKind.ABORT:
            head = decode_head(memoryview(data), position, header)
            self._done(gathered, [number for number, _ in head.get("fragments", ())])
        elif header.kind == EntryKind.COMMIT:
            commit = self._decode(file, data, position, header)
            self._checkpoint.take(commit)
            gathered.facts.append(logged_facts(commit))
            self._rows(gathered, commit, header.first_offset)
            fragments = commit.head.get("fragments", ())
            for number, _ in fragments:
                self._rows(gathered, self._fragment(gathered, number), header.first_offset)
            self._done(gathered, [number for number, _ in fragments])

    def _done(self, gathered: Gathered, numbers: Sequence[int]) -> None:
        for number in numbers:
            gathered.fragments.pop(number, None)
        gathered.done_fragments += numbers

    def _decode(self, file: JournalFile, data: pa.Buffer, position: int, header: EntryHeader) -> Entry:
        entry_bytes = data.slice(position, header.entry_bytes)
        return decode(entry_bytes, header, self._dictionary.layouts.get, str(file.path))

    def _fragment(self, gathered: Gathered, number: int) -> Entry:
        known = gathered.fragments.get(number)
        if known is not None:
            file, position, header = known
            return self._decode(file, pa.py_buffer(file.mapped()), position, header)
        place = self._tail.place(number)
        header, data = place.file.read(place.position, place.length)
        return decode(data, header, self._dictionary.layouts.get, str(place.file.path))

    def _rows(self, gathered: Gathered, entry: Entry, base: int) -> None:
        for block in entry.blocks:
            tenant = self._dictionary.stream(int(block.streams[0])).tenant
            offsets = block.places.to_numpy().astype(np.int64) + base
            gathered.blocks.setdefault((tenant, block.layout.shape), []).append(LoggedBlock(block, offsets))
            gathered.streams.update(block.streams.tolist())
            gathered.layouts.update(layout.number for layout in block.layouts_used)
        for ordinal, stream, kind, layout, facts in entry.head.get("controls", ()):
            gathered.controls.append([base + ordinal, stream, kind, layout, facts])
            gathered.streams.add(stream)
            if layout is not None:
                gathered.layouts.add(layout)

    # ------------------------------------------------------------------ writing the segment

    def _write(self, writer: SegmentWriter, gathered: Gathered) -> int:
        for key in list(gathered.blocks):
            group = gathered.blocks.pop(key)
            for logged in _pieces(group):
                places = pa.array((logged.offsets - gathered.first_offset).astype(np.uint32))
                block = logged.block
                writer.add(
                    type(block)(
                        block.layouts_used,
                        block.streams,
                        block.layouts,
                        block.counts,
                        places,
                        block.ops,
                        block.values,
                        block.before,
                        block.not_given,
                        block.as_text,
                    )
                )
        return writer.finish(
            end_offset=gathered.end_offset,
            next_number=gathered.next_number,
            next_stream=self._dictionary.next_id,
            transactions=pa.Table.from_batches(gathered.facts, schema=LOGGED_TRANSACTIONS),
            streams=streams_batch(self._dictionary.stream(number) for number in sorted(gathered.streams)),
            controls=sorted(gathered.controls, key=lambda control: control[0]),
            layouts=self._dictionary.layouts.all(),
            checkpoint=self._checkpoint.to_json(),
        )

    def _move_fragments(self, gathered: Gathered, file_number: int, identity: Identity) -> None:
        """Copy what later entries may still need; what is neither open nor committed is dead."""
        open_numbers = {number for numbers in self._open_fragments().values() for number, _ in numbers}
        alive = {
            number: place
            for number, place in gathered.fragments.items()
            if number in open_numbers or self._tail.commit_of(number) is not None
        }
        if not alive:
            return
        path = self._journal_folder / fragments_name(file_number)
        self._disk.remove(path)
        target = JournalFile.create(path, self._disk, FileKind.FRAGMENTS, identity, file_number)
        moved = {}
        for number, (file, position, header) in alive.items():
            data = file.mapped()[position : position + header.entry_bytes]
            moved[number] = (target.size, header.entry_bytes)
            target.size += self._disk.append(target.descriptor, [data])
        self._disk.sync(target.descriptor, path)
        for number, (position, length) in moved.items():  # only now: until here they are read from the journal
            self._tail.move(number, target, position, length)

    def _remove(self, files: Sequence[JournalFile], gathered: Gathered) -> None:
        self._tail.drop_through(files[-1].number)
        self._tail.forget_moved(gathered.done_fragments)
        for file in files:
            self._disk.remove(file.path)
        needed = {place.file.path for place in self._tail.moved().values()}
        for path in self._journal_folder.glob("*.fragments"):
            if path not in needed:
                self._disk.remove(path)
        self._disk.sync_folder(self._journal_folder)


def _pieces(group: list[LoggedBlock]) -> Iterator[LoggedBlock]:
    """The rows of a shape, sorted by stream and offset, in blocks of the segment's size."""
    first = group[0].block.streams[0]
    if all((logged.block.streams == first).all() for logged in group):
        yield from _pieces_of_one_stream(group)
        return
    some = list(_some_streams_at_a_time(group))
    if len(some) > 1:
        for ids in some:
            yield from _pieces([part for logged in group if (part := pick(logged, ids, None)) is not None])
        return
    whole = joined(group)
    group.clear()
    start = 0
    for piece in whole.block.pieces(SEGMENT_ROWS_MAX):
        yield LoggedBlock(piece, whole.offsets[start : start + piece.rows])
        start += piece.rows


def _some_streams_at_a_time(group: Sequence[LoggedBlock]) -> Iterator[npt.NDArray[np.int64]]:
    """The streams of a shape, in order, as many at a time as are sorted in memory together; a large one by itself.

    What is sorted is copied, and a column of more than 2 GiB of text would not fit one Arrow array.
    """
    size = sum(logged.block.values.nbytes for logged in group)
    per_row = max(1, size // max(1, sum(logged.block.rows for logged in group)))
    ids = np.concatenate([logged.block.streams for logged in group])
    counts = np.concatenate([logged.block.counts for logged in group]).astype(np.int64)
    streams, inverse = np.unique(ids, return_inverse=True)
    ends = np.cumsum(np.bincount(inverse, weights=counts).astype(np.int64) * per_row)
    start = 0
    while start < len(streams):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + SORTED_BYTES_MAX, "right")))
        yield streams[start:stop]
        start = stop


def _pieces_of_one_stream(group: list[LoggedBlock]) -> Iterator[LoggedBlock]:
    """Rows of one stream are in order already: no sort, and never more than a block in memory."""
    held: list[LoggedBlock] = []
    rows = 0
    for at, logged in enumerate(group):
        held.append(logged)
        rows += logged.block.rows
        last = at == len(group) - 1
        while rows >= SEGMENT_ROWS_MAX or (last and rows):
            block = concatenate([one.block for one in held]).merged_extents()
            offsets = np.concatenate([one.offsets for one in held])
            cut = min(rows, SEGMENT_ROWS_MAX)
            yield LoggedBlock(block.rows_between(0, cut), offsets[:cut])
            rows -= cut
            held = [LoggedBlock(block.rows_between(cut, block.rows), offsets[cut:])] if rows else []


def segment_name(number: int) -> str:
    """The name of a segment's file."""
    return f"{number:016d}.segment"


def fragments_name(number: int) -> str:
    """The name of the file of fragments that outlive journal file `number`."""
    return f"{number:016d}.fragments"
