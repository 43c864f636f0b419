"""Opening a log, in four passes, each told in words:

1. the manifest says which log this is, which openings there were, which segments are live;
2. the segments' footers are verified, the last one's checkpoint gives producers, control state and layouts;
3. the index is compared with the segments and completed, or made again;
4. the open journal is walked entry by entry; a torn tail is cut back to the last whole entry, any other damage is
   named.

What a crash may leave behind (half-written segments, journal files that a segment replaces, a journal file without its
header) is removed on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.errors import ConfigurationError, CorruptLogError
from kadds.log.checkpoint import apply_commit, restore
from kadds.log.dictionary import Dictionary
from kadds.log.disk import Disk
from kadds.log.entry import Entry, decode, decode_head
from kadds.log.frame import FILE_HEADER_BYTES, EntryHeader, EntryKind
from kadds.log.index import Index
from kadds.log.journal import JournalFile
from kadds.log.manifest import MANIFEST_NAME, Manifest, SegmentRecord
from kadds.log.producer import Producers
from kadds.log.seal import segment_name
from kadds.log.segment import Segment
from kadds.log.state import ControlState
from kadds.log.tail import Tail

JOURNAL_FOLDER = "journal"
SEGMENTS_FOLDER = "segments"


@dataclass
class Recovered:
    """What recovery found."""

    manifest: Manifest
    segments: list[Segment]
    index: Index
    tail: Tail
    next_offset: int
    next_file: int


class Recovery:
    """One recovery of one folder."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        dictionary: Dictionary,
        producers: Producers,
        state: ControlState,
        *,
        writable: bool,
        index_memory_bytes: int,
        narrate: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._dictionary = dictionary
        self._producers = producers
        self._state = state
        self._writable = writable
        self._index_memory_bytes = index_memory_bytes
        self._narrate = narrate
        self._journal = folder / JOURNAL_FOLDER
        self._segments = folder / SEGMENTS_FOLDER
        self._fragment_streams: dict[int, list[npt.NDArray[np.int64]]] = {}

    def run(self) -> Recovered:
        """All four passes."""
        manifest = self._first_pass()
        segments = self._second_pass(manifest)
        index = self._third_pass(manifest, segments)
        try:
            self._dictionary.sealed = index
            tail, next_offset, next_file = self._fourth_pass(manifest)
            self._leftovers(manifest, tail)
            if self._writable:
                manifest.cut_torn_record()
        except BaseException:
            index.close()
            raise
        return Recovered(manifest, segments, index, tail, next_offset, next_file)

    def _first_pass(self) -> Manifest:
        if not self._writable and not (self._folder / MANIFEST_NAME).exists():
            raise ConfigurationError("there is no log in this folder", where=str(self._folder))
        if (self._folder / MANIFEST_NAME).exists():
            manifest = Manifest.open(self._folder, self._disk, writable=self._writable)
            cut = f", a torn record of {manifest.cut_bytes} bytes was cut off" if manifest.cut_bytes else ""
            self._narrate(f"first pass: log {manifest.log}, {len(manifest.openings)} openings{cut}")
            return manifest
        leftovers = [*self._journal.glob("*.journal"), *self._segments.glob("*.segment")]
        if leftovers:
            raise CorruptLogError(
                f"the folder has {len(leftovers)} files of a log and no manifest",
                where=str(self._folder),
                hint=f"restore {MANIFEST_NAME} from a backup of this folder, or choose an empty folder",
            )
        for folder in (self._journal, self._segments):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._disk.sync_folder(self._folder)
        manifest = Manifest.create(self._folder, self._disk)
        self._narrate(f"first pass: a new log, {manifest.log}")
        return manifest

    def _second_pass(self, manifest: Manifest) -> list[Segment]:
        segments = []
        for record in manifest.segments:
            path = self._segments / segment_name(record.number)
            if not path.exists():
                raise CorruptLogError(
                    f"segment {record.number} is gone, offsets {record.first_offset} to {record.end_offset} with it",
                    where=str(path),
                    hint="restore the file from a backup or another tier",
                )
            segment = Segment.open(path, manifest.log.bytes)
            _check_record(segment, record)
            segments.append(segment)
        if segments:
            last = segments[-1]
            self._dictionary.define({"layouts": last.layouts()})
            self._dictionary.next_id = int(last.footer["next_stream"])
            restore(last, self._producers, self._state)
        if self._writable:
            for leftover in self._segments.glob("*.new"):
                self._disk.remove(leftover)
        self._narrate(f"second pass: {len(segments)} segments")
        return segments

    def _third_pass(self, manifest: Manifest, segments: list[Segment]) -> Index:
        index = Index(
            self._folder,
            str(manifest.log),
            memory_bytes=self._index_memory_bytes,
            narrate=self._narrate,
            writable=self._writable,
        )
        missing = index.complete(segments)
        self._narrate(
            f"third pass: the index took {missing} segments" if missing else "third pass: the index is complete"
        )
        return index

    def _fourth_pass(self, manifest: Manifest) -> tuple[Tail, int, int]:
        sealed = manifest.segments[-1] if manifest.segments else None
        tail = Tail(sealed.next_number if sealed else 0)
        next_offset = sealed.end_offset if sealed else 0
        last_sealed = sealed.high_journal if sealed else 0
        for path in sorted(self._journal.glob("*.fragments")):
            if int(path.stem) <= last_sealed:  # otherwise they stand in the journal still
                self._take_fragments(tail, path, manifest)
        paths = sorted(self._journal.glob("*.journal"))
        live = [path for path in paths if int(path.stem) > last_sealed]
        if self._writable:
            for path in paths[: len(paths) - len(live)]:
                self._disk.remove(path)
        entries = 0
        next_file = int(live[-1].stem) + 1 if live else last_sealed + 1
        if live and self._is_unborn(live[-1]):
            unborn = live.pop()
            if self._writable:
                self._disk.remove(unborn)
        for at, path in enumerate(live):
            found, end_offset = self._walk(tail, path, manifest, last=at == len(live) - 1)
            entries += found
            next_offset = max(next_offset, end_offset)
        self._narrate(
            f"fourth pass: {entries} entries in {len(tail.files())} journal files, the log ends at {next_offset}"
        )
        return tail, next_offset, next_file

    def _leftovers(self, manifest: Manifest, tail: Tail) -> None:
        """Segments that the manifest does not have and fragments that nobody committed.

        A crash between a segment's own name and its record leaves both it and the journal that it was made of. Without
        that journal the record itself is lost, and with it the only place of these changes.
        """
        live = {record.number for record in manifest.segments}
        for path in self._segments.glob("*.segment"):
            if int(path.stem) in live:
                continue
            try:
                needed = int(Segment.open(path, manifest.log.bytes).footer["next_number"])
            except CorruptLogError:
                needed = 0
            if needed > tail.next_number:
                raise CorruptLogError(
                    "the manifest does not know this segment, and the journal that it was made of is gone",
                    where=str(path),
                    hint=f"restore {MANIFEST_NAME} from a backup; nothing was changed or removed",
                )
            if self._writable:
                self._disk.remove(path)
        if self._writable:
            tail.forget_moved([number for number in tail.moved() if tail.commit_of(number) is None])
            needed_paths = {place.file.path for place in tail.moved().values()}
            for path in self._journal.glob("*.fragments"):
                if path not in needed_paths:
                    self._disk.remove(path)

    def _take_fragments(self, tail: Tail, path: Path, manifest: Manifest) -> None:
        """Fragments whose journal file is sealed; the commits that name them follow in the open journal.

        A file that a crash left half-written is harmless: the journal files that it was copied from are still there.
        Of a damaged one nothing is taken; the commit that needs it will miss it by name.
        """
        try:
            file = JournalFile.open(path, manifest.log.bytes)
        except CorruptLogError:
            return
        data = pa.py_buffer(file.mapped())
        for position, header in file.scan().entries:
            tail.move(header.number, file, position, header.entry_bytes)
            entry = self._decode(data, position, header, path)
            self._fragment_streams[header.number] = _streams(entry)

    def _decode(self, data: pa.Buffer, position: int, header: EntryHeader, path: Path) -> Entry:
        entry_bytes = data.slice(position, header.entry_bytes)
        head = decode_head(memoryview(entry_bytes), 0, header)
        if header.kind == EntryKind.FRAGMENT:  # its streams are true once a commit defines them
            head.pop("streams", None)
        self._dictionary.define(head)
        return decode(entry_bytes, header, self._dictionary.layouts.get, str(path))

    def _is_unborn(self, path: Path) -> bool:
        """Whether the crash came before the file's header was durable: then nothing was ever written behind it."""
        return path.stat().st_size <= FILE_HEADER_BYTES

    def _walk(self, tail: Tail, path: Path, manifest: Manifest, *, last: bool) -> tuple[int, int]:
        file = JournalFile.open(path, manifest.log.bytes)
        if not manifest.knows(file.header.identity):
            raise CorruptLogError(
                f"opening {file.header.identity.epoch} of the log wrote this file, and the manifest does not know it",
                where=str(path),
                hint=f"restore {MANIFEST_NAME} from a backup of this folder that is no older than the file",
            )
        if self._writable and last:
            file.settle(self._disk)
        scanned = file.scan()
        if scanned.damage or (scanned.end < file.size and not last):
            raise CorruptLogError(
                f"the journal is damaged at byte {scanned.end}: {scanned.damage or 'a later file follows'}",
                where=str(path),
                hint="acknowledged changes stood here. Restore the file from a backup or another tier; "
                "nothing was changed or removed",
            )
        if scanned.end < file.size:
            self._narrate(f"fourth pass: a torn tail of {file.size - scanned.end} bytes is cut off {path.name}")
            if self._writable:
                file.reopen_for_append(scanned.end, self._disk)
            file.size = scanned.end
        tail.add_file(file)
        end_offset = 0
        data = pa.py_buffer(file.mapped())
        for position, header in scanned.entries:
            if header.number != tail.next_number:
                raise CorruptLogError(
                    f"entry {header.number} stands where entry {tail.next_number} should",
                    where=str(path),
                    hint="a journal file before this one is missing; restore it from a backup",
                )
            self._take(tail, file, position, self._decode(data, position, header, path))
            if header.kind == EntryKind.COMMIT:
                end_offset = header.first_offset + header.rows
        return len(scanned.entries), end_offset

    def _take(self, tail: Tail, file: JournalFile, position: int, entry: Entry) -> None:
        streams = _streams(entry)
        header = entry.header
        if header.kind == EntryKind.FRAGMENT:
            self._fragment_streams[header.number] = streams
            streams = []
        elif header.kind == EntryKind.COMMIT:
            fragments = entry.head.get("fragments", ())
            for number, _ in fragments:
                if number not in self._fragment_streams:
                    raise CorruptLogError(
                        f"entry {header.number} commits fragment {number}, which is nowhere",
                        where=str(file.path),
                        hint="a file of fragments is damaged or missing; restore it from a backup or another tier",
                    )
                streams += self._fragment_streams.pop(number)
            if fragments:
                tail.use_fragments(header.number, fragments)
            apply_commit(entry, self._producers, self._state, self._dictionary)
        tail.add(file, position, header, streams if header.kind == EntryKind.COMMIT else ())


def _check_record(segment: Segment, record: SegmentRecord) -> None:
    footer = segment.footer
    found = (segment.number, segment.first_offset, segment.end_offset, footer["next_number"], segment.file.size)
    if found != (record.number, record.first_offset, record.end_offset, record.next_number, record.bytes):
        raise CorruptLogError(
            f"the segment is another one than the manifest says: (number, first and end offset, next entry, bytes) "
            f"{found} instead of {record}",
            where=str(segment.file.path),
            hint="files of different copies of the log are mixed: restore the whole folder from one backup",
        )


def _streams(entry: Entry) -> list[npt.NDArray[np.int64]]:
    """The ids of the streams that an entry touches."""
    controls = entry.head.get("controls", ())
    return [*(block.streams for block in entry.blocks), *(np.array([control[1]], np.int64) for control in controls)]
