"""Reading: slices in offset order, out of segments and the open tail alike.

Two ways to take rows out of a block: for one stream its extents are cut, for many the rows of a window of offsets are
picked by a mask. Both keep the order (stream, offset) inside a block, so nothing is sorted twice.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.arrays import fixed, repeated
from kadds.api.change import ControlKind
from kadds.api.errors import CorruptLogError
from kadds.api.position import Cursor
from kadds.log.block import Block, concatenate
from kadds.log.dictionary import Dictionary
from kadds.log.entry import Entry, decode
from kadds.log.frame import EntryKind
from kadds.log.index import Index
from kadds.log.segment import Segment
from kadds.log.slice import LOGGED_TRANSACTIONS, LoggedBlock, LoggedControl, Slice
from kadds.log.tail import Place, Tail
from kadds.log.windows import split, window_ends

Ids = npt.NDArray[np.int64]
_COMMITS_AT_ONCE = 512


class EntryCache:
    """Decoded entries of the open tail, the least recently used dropped first; bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, Entry] = OrderedDict()

    def put(self, entry: Entry) -> None:
        """Keep an entry."""
        if entry.nbytes > self._bytes_max // 2:
            return
        with self._lock:
            if entry.header.number in self._entries:
                return
            self._entries[entry.header.number] = entry
            self._bytes += entry.nbytes
            while self._bytes > self._bytes_max:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes

    def get(self, number: int) -> Entry | None:
        """The entry, None if it was dropped."""
        with self._lock:
            entry = self._entries.get(number)
            if entry is not None:
                self._entries.move_to_end(number)
            return entry


class Reader:
    """Reads a log whose parts it is given; thread-safe, holds no state of a read."""

    def __init__(
        self,
        *,
        tail: Tail,
        cache: EntryCache,
        dictionary: Dictionary,
        index: Index,
        segments: Callable[[], Sequence[Segment]],
        cursor: Callable[[int], Cursor],
    ) -> None:
        self._tail = tail
        self._cache = cache
        self._dictionary = dictionary
        self._index = index
        self._segments = segments
        self._cursor = cursor

    def read(
        self, first: int, end: int, streams: Collection[int] | None, *, rows_max: int, bytes_max: int
    ) -> Iterator[Slice]:
        """Slices of [first, end) with the rows and controls of `streams` (None: of all)."""
        wanted = None if streams is None else np.unique(np.fromiter(streams, np.int64))
        at = told = first
        while at < end:
            segment = self._sealed_at(at)
            if segment is not None:
                at = max(at, segment.first_offset)  # offsets need not be dense: nothing stands before it
                if at >= end:
                    break
                slices = self._from_segment(segment, at, min(end, segment.end_offset), wanted, rows_max)
            else:
                slices = self._from_tail(at, end, wanted, rows_max, bytes_max)
            for found in slices:
                at = found.end_offset
                if found.rows or found.controls:
                    yield found
                    told = at
        if told < end:
            yield self._slice(told, end, [], [], [], True)

    def _sealed_at(self, offset: int) -> Segment | None:
        """The segment in which `offset`, or what follows it, stands; None if that is the open tail."""
        return next((segment for segment in self._segments() if segment.end_offset > offset), None)

    # ------------------------------------------------------------------ the open tail

    def _from_tail(self, first: int, end: int, wanted: Ids | None, rows_max: int, bytes_max: int) -> Iterator[Slice]:
        at = first
        ids = None if wanted is None else wanted.tolist()
        while at < end:
            places = self._tail.commits(at, end, ids, _COMMITS_AT_ONCE)
            if self._sealed_at(at) is not None:
                return  # sealed meanwhile: commits before the first of `places` may be gone from the tail
            if not places:
                yield self._slice(at, end, [], [], [], True)
                return
            gathered = _Gathered()
            for place in places:
                if gathered.rows and (
                    gathered.rows + place.rows > rows_max or gathered.bytes + place.length > bytes_max
                ):
                    break
                entry = self._entry(place)
                if entry.head.get("fragments"):
                    if not gathered.rows:
                        pieces = self._tail.fragments(entry.head["fragments"])
                        if pieces is None:
                            return  # sealed meanwhile
                        yield from self._from_fragments(entry, pieces, at, end, wanted)
                        at = min(end, place.first_offset + place.rows)
                    break
                self._gather(gathered, entry, entry.header.first_offset, at, end, wanted)
                gathered.end = min(end, place.first_offset + place.rows)
            if gathered.end > at:
                yield self._gathered_slice(gathered, at)
                at = gathered.end

    def _entry(self, place: Place) -> Entry:
        cached = self._cache.get(place.number)
        if cached is not None:
            return cached
        header, data = place.file.read(place.position, place.length)
        entry = decode(data, header, self._dictionary.layouts.get, str(place.file.path))
        self._cache.put(entry)
        return entry

    def _from_fragments(
        self, commit: Entry, pieces: Sequence[Place], first: int, end: int, wanted: Ids | None
    ) -> Iterator[Slice]:
        """Transactions that came in pieces: a slice a piece. `pieces` stay readable though they be sealed meanwhile."""
        base = commit.header.first_offset
        start = base
        facts = logged_facts(commit)
        boundaries = {*facts.column("first_offset").to_pylist(), base + commit.header.rows}
        for piece in pieces:
            stop = start + piece.rows
            if stop > first and start < end:
                gathered = _Gathered()
                entry = self._entry(piece)
                self._gather(gathered, entry, base, max(first, start), min(end, stop), wanted)
                gathered.facts = [facts]
                gathered.end = min(end, stop)
                gathered.whole = gathered.end in boundaries
                yield self._gathered_slice(gathered, max(first, start))
            start = stop

    def _gather(self, gathered: _Gathered, entry: Entry, base: int, first: int, end: int, wanted: Ids | None) -> None:
        inside = base >= first and entry.header.kind == EntryKind.COMMIT and base + entry.header.rows <= end
        for block in entry.blocks:
            offsets = block.places.to_numpy().astype(np.int64) + base
            picked = pick(LoggedBlock(block, offsets), wanted, None if inside else (first, end))
            if picked is not None:
                gathered.blocks.append(picked)
        for ordinal, stream, kind, layout, facts in entry.head.get("controls", ()):
            if first <= base + ordinal < end and (wanted is None or _contains(wanted, stream)):
                gathered.controls.append(self._control(base + ordinal, stream, kind, layout, facts))
        if entry.facts is not None:
            gathered.facts.append(logged_facts(entry))
        gathered.rows += entry.header.rows
        gathered.bytes += entry.nbytes

    def _control(self, offset: int, stream: int, kind: str, layout: int | None, facts: Any) -> LoggedControl:
        found = self._dictionary.stream(stream)
        table = None if layout is None else self._dictionary.layouts.get(layout).table_of(found)
        known = ControlKind(kind) if kind in set(ControlKind) else kind
        return LoggedControl(offset, found, known, table, facts)

    def _gathered_slice(self, gathered: _Gathered, first: int) -> Slice:
        by_shape: dict[Any, list[LoggedBlock]] = {}
        for logged in gathered.blocks:
            by_shape.setdefault(logged.block.layout.shape, []).append(logged)
        blocks = [joined(group) for group in by_shape.values()]
        return self._slice(first, gathered.end, gathered.facts, blocks, gathered.controls, gathered.whole)

    def _slice(
        self,
        first: int,
        end: int,
        facts: Sequence[pa.RecordBatch],
        blocks: Sequence[LoggedBlock],
        controls: Sequence[LoggedControl],
        whole: bool,
    ) -> Slice:
        if len(facts) == 1:
            transactions = facts[0]
        elif facts:
            transactions = pa.concat_batches(facts)
        else:
            transactions = pa.RecordBatch.from_pylist([], schema=LOGGED_TRANSACTIONS)
        ordered = tuple(sorted(controls, key=lambda control: control.offset))
        return Slice(
            first, end, self._cursor(end), transactions, self._dictionary.stream, tuple(blocks), ordered, whole
        )

    # ------------------------------------------------------------------ segments

    def _from_segment(
        self, segment: Segment, first: int, end: int, wanted: Ids | None, rows_max: int
    ) -> Iterator[Slice]:
        if wanted is not None and len(wanted) == 1:
            blocks = self._one_stream(segment, first, end, int(wanted[0]))
        else:
            blocks = self._many_streams(segment, first, end, wanted)
        if first > segment.first_offset or end < segment.end_offset:
            blocks = [picked for logged in blocks if (picked := pick(logged, None, (first, end))) is not None]
        controls = [
            self._control(*plain)
            for plain in segment.controls
            if first <= plain[0] < end and (wanted is None or _contains(wanted, plain[1]))
        ]
        starts = segment.transactions.column("first_offset").to_numpy()
        ends = window_ends(blocks, starts, first, end, rows_max)
        windows: list[dict[Any, list[LoggedBlock]]] = [{} for _ in ends]
        for logged in blocks:
            for number, piece in split(logged, np.array(ends)):
                windows[number].setdefault(piece.block.layout.shape, []).append(piece)
        del blocks
        at = first
        for stop, by_shape in zip(ends, windows, strict=True):
            inside = [control for control in controls if at <= control.offset < stop]
            low = max(0, int(np.searchsorted(starts, at, "right")) - 1)
            high = int(np.searchsorted(starts, stop, "left"))
            facts = [segment.transactions.slice(low, high - low)]
            whole = stop >= segment.end_offset or bool(high < len(starts) and starts[high] == stop)
            yield self._slice(at, stop, facts, [joined(group) for group in by_shape.values()], inside, whole)
            by_shape.clear()  # what has been read need not stay in memory
            at = stop

    def _one_stream(self, segment: Segment, first: int, end: int, stream: int) -> list[LoggedBlock]:
        found = []
        for number, block_number, start, rows in self._index.extents(stream, first, end):
            if number == segment.number:
                block = segment.block(block_number, self._dictionary.layouts.get).rows_between(start, start + rows)
                found.append(_logged(segment, block))
        return found

    def _many_streams(self, segment: Segment, first: int, end: int, wanted: Ids | None) -> list[LoggedBlock]:
        numbers: Collection[int] = list(segment.blocks_between(first, end))
        if wanted is not None:
            used = set(np.unique(segment.extents_of(wanted).column("block").to_numpy()).tolist())
            numbers = [number for number in numbers if number in used]
        blocks = (_logged(segment, segment.block(number, self._dictionary.layouts.get)) for number in numbers)
        return [picked for logged in blocks if (picked := pick(logged, wanted, None)) is not None]


class _Gathered:
    """What goes into the next slice of the tail."""

    def __init__(self) -> None:
        self.blocks: list[LoggedBlock] = []
        self.controls: list[LoggedControl] = []
        self.facts: list[pa.RecordBatch] = []
        self.rows = 0
        self.bytes = 0
        self.end = 0
        self.whole = True


def logged_facts(commit: Entry) -> pa.RecordBatch:
    """The facts of a commit's transactions, with where in the log each begins and who appended it."""
    facts = commit.facts
    if facts is None:
        raise CorruptLogError(f"commit {commit.header.number} has no facts")
    rows = facts.column("rows").to_numpy().astype(np.int64)
    first = commit.header.first_offset + np.cumsum(rows) - rows
    producer = repeated(commit.head["producer"], facts.num_rows)
    lineage = repeated(commit.head["lineage"], facts.num_rows)
    columns = [fixed(pa.int64(), first), producer, lineage, *facts.columns]
    return pa.RecordBatch.from_arrays(columns, schema=LOGGED_TRANSACTIONS)


def _logged(segment: Segment, block: Block) -> LoggedBlock:
    return LoggedBlock(block, block.places.to_numpy().astype(np.int64) + segment.first_offset)


def _contains(sorted_ids: Ids, one: int) -> bool:
    at = int(np.searchsorted(sorted_ids, one))
    return at < len(sorted_ids) and int(sorted_ids[at]) == one


def pick(logged: LoggedBlock, wanted: Ids | None, window: tuple[int, int] | None) -> LoggedBlock | None:
    """The rows of `wanted` streams (None: all) with offsets in `window` (None: all); None if there are none."""
    block = logged.block
    mask = None
    if wanted is not None:
        if len(wanted) == 1 and len(block.streams) == 1:
            extents = block.streams == wanted[0]
        else:
            extents = np.isin(block.streams, wanted)
        if not extents.any():
            return None
        if not extents.all():
            mask = np.repeat(extents, block.counts)
    if window is not None:
        inside = (logged.offsets >= window[0]) & (logged.offsets < window[1])
        mask = inside if mask is None else mask & inside
    if mask is None or mask.all():
        return logged
    order = np.flatnonzero(mask)
    if not len(order):
        return None
    first, last = int(order[0]), int(order[-1]) + 1
    if last - first == len(order):
        piece = block.rows_between(first, last)
        return LoggedBlock(piece, logged.offsets[first:last])
    return LoggedBlock(block.take(order), logged.offsets[order])


def joined(group: Sequence[LoggedBlock]) -> LoggedBlock:
    """Blocks of one shape as one, sorted by stream and offset."""
    if len(group) == 1:
        return group[0]
    block = concatenate([logged.block for logged in group])
    offsets = np.concatenate([logged.offsets for logged in group])
    if (block.streams == block.streams[0]).all():
        ids = None
        falls = bool((offsets[1:] < offsets[:-1]).any())
    else:
        ids = np.repeat(block.streams, block.counts)
        falls = bool(((ids[1:] < ids[:-1]) | ((ids[1:] == ids[:-1]) & (offsets[1:] < offsets[:-1]))).any())
    if falls:
        order = np.argsort(offsets, kind="stable") if ids is None else np.lexsort((offsets, ids))
        return LoggedBlock(block.take(order), offsets[order])
    return LoggedBlock(block.merged_extents(), offsets)
