"""The open tail: where each entry of the unsealed journal stands, and which streams it touches.

Plain growing arrays, no object per entry or stream: 40 bytes an entry and 16 an extent. A reader takes a snapshot; an
array that grows is never changed below its length.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
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

    def append(self, value: Any) -> None:
        """Add one value."""
        self._reserve(1)
        self._data[self._length] = value
        self._length += 1

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Add all of an array."""
        self._reserve(len(values))
        self._data[self._length : self._length + len(values)] = values
        self._length += len(values)

    def _reserve(self, count: int) -> None:
        needed = self._length + count
        if needed > len(self._data):
            grown = np.empty(max(needed, 2 * len(self._data)), self._data.dtype)
            grown[: self._length] = self._data[: self._length]
            self._data = grown

    def view(self) -> npt.NDArray[Any]:
        """What has been appended; stays as it is when more is."""
        return self._data[: self._length]

    def drop(self, count: int) -> None:
        """Forget the first `count` values."""
        kept = self._data[count : self._length].copy()
        self._data, self._length = np.empty(max(1024, len(kept)), kept.dtype), len(kept)
        self._data[: len(kept)] = kept


_FACTS = np.dtype([("file", np.int64), ("position", np.int64), ("length", np.int64), ("rows", np.int64)])


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
        self._writing = False  # whether the last file is still appended to
        self._first_number = first_number
        self._files: dict[int, JournalFile] = {}
        self._facts = GrowingArray(_FACTS)
        self._offset = GrowingArray(np.int64)
        self._extent_stream = GrowingArray(np.int64)
        self._extent_entry = GrowingArray(np.int64)
        self._moved: dict[int, Place] = {}
        self._used_by: dict[int, int] = {}  # fragment → the commit that names it

    @property
    def next_number(self) -> int:
        """The number that the next entry gets."""
        return self._first_number + len(self._facts.view())

    def files(self) -> list[JournalFile]:
        """The journal files, oldest first."""
        with self._lock:
            return [self._files[number] for number in sorted(self._files)]

    def closed_files(self) -> list[JournalFile]:
        """The journal files that nothing is appended to any more, oldest first."""
        with self._lock:
            files = [self._files[number] for number in sorted(self._files)]
            return files[:-1] if self._writing else files

    def add_file(self, file: JournalFile, *, writing: bool = False) -> None:
        """A file whose entries follow; `writing`: it is appended to until `file_closed`."""
        with self._lock:
            self._files[file.number] = file
            self._writing = writing

    def file_closed(self) -> None:
        """Nothing is appended to the last file any more."""
        with self._lock:
            self._writing = False

    def add(self, file: JournalFile, position: int, header: EntryHeader, streams: Sequence[Ids]) -> None:
        """The next entry; `streams` are the ids it makes readable (a commit's fragments included)."""
        with self._lock:
            if len(streams) == 1 and len(streams[0]) == 1:
                self._extent_stream.append(streams[0][0])
                self._extent_entry.append(header.number)
            elif streams:
                ids = np.unique(np.concatenate(streams))
                self._extent_stream.extend(ids)
                self._extent_entry.extend(np.full(len(ids), header.number, np.int64))
            rows = header.rows if header.kind == EntryKind.COMMIT else 0
            self._facts.append((file.number, position, header.entry_bytes, rows))
            self._offset.append(header.first_offset)

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
            if not 0 <= at < len(self._facts.view()):
                raise KeyError(number)
            return self._place(at)

    def fragments(self, fragments: Sequence[Sequence[int]]) -> list[Place] | None:
        """Where these fragments ([entry number, rows]) stand, with their rows; None if they have been sealed."""
        try:
            return [replace(self.place(number), rows=rows) for number, rows in fragments]
        except KeyError:
            return None

    def _place(self, at: int) -> Place:
        file, position, length, rows = self._facts.view()[at].tolist()
        return Place(self._first_number + at, self._files[file], position, length, int(self._offset.view()[at]), rows)

    def commits(self, first: int, end: int, streams: Collection[int] | None, limit: int) -> list[Place]:
        """Up to `limit` commits that hold offsets in [first, end), with any of `streams` (None: all), in order."""
        with self._lock:
            offsets, rows = self._offset.view(), self._facts.view()["rows"]
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

    def bytes_behind(self, offset: int) -> int:
        """The bytes of the entries that hold anything behind `offset`."""
        with self._lock:
            low = int(np.searchsorted(self._offset.view(), offset))
            return int(self._facts.view()["length"][low:].sum())

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
            count = int(np.searchsorted(self._facts.view()["file"], file_number, "right"))
            self._first_number += count
            extents = int(np.searchsorted(self._extent_entry.view(), self._first_number))
            self._facts.drop(count)
            self._offset.drop(count)
            self._extent_stream.drop(extents)
            self._extent_entry.drop(extents)
            return [self._files.pop(number) for number in sorted(self._files) if number <= file_number]
