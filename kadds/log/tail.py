"""The open tail: where each entry of the unsealed journal stands, and which streams it touches.

Plain growing arrays, no object per entry or stream: 45 bytes an entry and 16 an extent. A reader takes a snapshot; an
array that grows is never changed below its length.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kadds.log.frame import EntryHeader, EntryKind
from kadds.log.journal import JournalFile

Ids = npt.NDArray[np.int64]


class GrowingArray:
    """A NumPy array with room to append; doubled when full."""

    def __init__(self, dtype: Any) -> None:
        self._data = np.empty(1024, dtype)
        self._length = 0

    def append(self, values: Any) -> None:
        """Add one value, or all of an array."""
        added = np.atleast_1d(values)
        needed = self._length + len(added)
        if needed > len(self._data):
            grown = np.empty(max(needed, 2 * len(self._data)), self._data.dtype)
            grown[: self._length] = self._data[: self._length]
            self._data = grown
        self._data[self._length : needed] = added
        self._length = needed

    def view(self) -> npt.NDArray[Any]:
        """What has been appended; stays as it is when more is."""
        return self._data[: self._length]

    def drop(self, count: int) -> None:
        """Forget the first `count` values."""
        self._data = self._data[count : self._length].copy() if self._length > count else self._data[:0].copy()
        self._length = len(self._data)


@dataclass(frozen=True)
class Place:
    """Where an entry stands."""

    number: int
    file: JournalFile
    position: int
    length: int
    first_offset: int
    rows: int


class Tail:
    """The entries of the open journal files, by number and by offset."""

    def __init__(self, first_number: int) -> None:
        self._lock = threading.Lock()
        self.writing = False  # whether the last file is still appended to; the writer says so
        self._first_number = first_number
        self._files: dict[int, JournalFile] = {}
        self._file = GrowingArray(np.int64)
        self._kind = GrowingArray(np.uint8)
        self._position = GrowingArray(np.int64)
        self._length = GrowingArray(np.int64)
        self._offset = GrowingArray(np.int64)
        self._rows = GrowingArray(np.int64)
        self._extent_stream = GrowingArray(np.int64)
        self._extent_entry = GrowingArray(np.int64)
        self._moved: dict[int, Place] = {}
        self._used_by: dict[int, int] = {}  # fragment → the commit that names it

    @property
    def next_number(self) -> int:
        """The number that the next entry gets."""
        return self._first_number + len(self._file.view())

    def files(self) -> list[JournalFile]:
        """The journal files, oldest first."""
        with self._lock:
            return [self._files[number] for number in sorted(self._files)]

    def add_file(self, file: JournalFile) -> None:
        """A file whose entries follow."""
        with self._lock:
            self._files[file.number] = file

    def add(self, file: JournalFile, position: int, header: EntryHeader, streams: Sequence[Ids]) -> None:
        """The next entry; `streams` are the ids it makes readable (a commit's fragments included)."""
        with self._lock:
            ids = np.unique(np.concatenate(streams)) if streams else np.zeros(0, np.int64)
            self._extent_stream.append(ids)
            self._extent_entry.append(np.full(len(ids), header.number, np.int64))
            self._kind.append(int(header.kind))
            self._position.append(position)
            self._length.append(header.entry_bytes)
            self._offset.append(header.first_offset)
            self._rows.append(header.rows if header.kind == EntryKind.COMMIT else 0)
            self._file.append(file.number)

    def use_fragments(self, commit: int, fragments: Sequence[Sequence[int]]) -> None:
        """Entry `commit` names these fragments ([entry number, rows])."""
        self._used_by.update((number, commit) for number, _ in fragments)

    def commit_of(self, fragment: int) -> int | None:
        """The commit that names a fragment, None if none does yet."""
        return self._used_by.get(fragment)

    def move(self, number: int, file: JournalFile, position: int, length: int) -> None:
        """A fragment has been copied to a file of fragments, since its journal file is sealed."""
        self._moved[number] = Place(number, file, position, length, 0, 0)

    def moved(self) -> dict[int, Place]:
        """The fragments that were moved, by entry number."""
        return dict(self._moved)

    def forget_moved(self, numbers: Collection[int]) -> None:
        """Fragments whose transaction is sealed or dead."""
        for number in numbers:
            self._moved.pop(number, None)
            self._used_by.pop(number, None)

    def place(self, number: int) -> Place:
        """Where entry `number` stands; KeyError if it is not in the tail."""
        if number in self._moved:
            return self._moved[number]
        with self._lock:
            at = number - self._first_number
            if not 0 <= at < len(self._file.view()):
                raise KeyError(number)
            return self._place(at)

    def _place(self, at: int) -> Place:
        return Place(
            self._first_number + at,
            self._files[int(self._file.view()[at])],
            int(self._position.view()[at]),
            int(self._length.view()[at]),
            int(self._offset.view()[at]),
            int(self._rows.view()[at]),
        )

    def commits(self, first: int, end: int, streams: Collection[int] | None, limit: int) -> list[Place]:
        """Up to `limit` commits that hold offsets in [first, end), with any of `streams` (None: all), in order."""
        with self._lock:
            offsets, rows = self._offset.view(), self._rows.view()
            low = int(np.searchsorted(offsets, first, "right"))
            while low > 0 and offsets[low - 1] + rows[low - 1] > first:
                low -= 1
            high = int(np.searchsorted(offsets, end, "left"))
            if streams is None:
                wanted = np.arange(low, high)
            else:
                ids, entries = self._extent_stream.view(), self._extent_entry.view()
                from_extent = int(np.searchsorted(entries, self._first_number + low))
                ids, entries = ids[from_extent:], entries[from_extent:]
                mask = ids == next(iter(streams)) if len(streams) == 1 else np.isin(ids, np.fromiter(streams, np.int64))
                wanted = np.unique(entries[mask]) - self._first_number
                wanted = wanted[(wanted >= low) & (wanted < high)]
            wanted = wanted[rows[wanted] > 0][:limit]
            return [self._place(int(at)) for at in wanted]

    def touched(self, first: int, end: int) -> frozenset[int]:
        """The streams that have anything in [first, end), for `first` inside the tail."""
        with self._lock:
            offsets = self._offset.view()
            low = max(0, int(np.searchsorted(offsets, first, "right")) - 1)
            high = int(np.searchsorted(offsets, end, "left"))
            entries = self._extent_entry.view()
            start = int(np.searchsorted(entries, self._first_number + low))
            stop = int(np.searchsorted(entries, self._first_number + high))
            return frozenset(np.unique(self._extent_stream.view()[start:stop]).tolist())

    def drop_through(self, file_number: int) -> list[JournalFile]:
        """Forget the entries of all files up to `file_number`, which are sealed; these files."""
        with self._lock:
            count = int(np.searchsorted(self._file.view(), file_number, "right"))
            self._first_number += count
            extents = int(np.searchsorted(self._extent_entry.view(), self._first_number))
            for array in (self._file, self._kind, self._position, self._length, self._offset, self._rows):
                array.drop(count)
            self._extent_stream.drop(extents)
            self._extent_entry.drop(extents)
            return [self._files.pop(number) for number in sorted(self._files) if number <= file_number]
