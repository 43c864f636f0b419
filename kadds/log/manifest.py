"""The manifest: small, append-only, checksummed; the truth of which openings there were and which files are live.

Its entries (kind RECORD) have a JSON head and no body:

    {"log": uuid}                                        the first
    {"opening": epoch, "id": hex, "first_offset": n}     an opening that wrote something
    {"segment": n, "journals": [low, high], "first_offset": a, "end_offset": b, "next_number": k, "bytes": z}
                                                         a segment that replaces these journal files
"""

from __future__ import annotations

import bisect
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kadds.api.errors import CorruptLogError, GapError, KaddsError
from kadds.api.position import Cursor
from kadds.log.disk import Disk
from kadds.log.entry import decode_head, encode_head
from kadds.log.frame import EntryHeader, EntryKind, FileKind, Identity, checksum
from kadds.log.journal import JournalFile

MANIFEST_NAME = "MANIFEST"


@dataclass(frozen=True)
class Opening:
    """One opening for writing: what it wrote begins at `first_offset`."""

    epoch: int
    id: str
    first_offset: int


@dataclass(frozen=True)
class SegmentRecord:
    """A live segment: offsets [first_offset, end_offset), in place of journal files `low_journal` to `high_journal`."""

    number: int
    low_journal: int
    high_journal: int
    first_offset: int
    end_offset: int
    next_number: int
    bytes: int


class Manifest:
    """The manifest of one folder. One thread at a time adds records."""

    def __init__(self, file: JournalFile, disk: Disk, log: uuid.UUID, damage_cut: int) -> None:
        self._file = file
        self._disk = disk
        self._next = 0
        self.log = log
        self.openings: list[Opening] = []
        self.segments: list[SegmentRecord] = []
        self.cut_bytes = damage_cut
        self._failure: KaddsError | None = None

    @classmethod
    def create(cls, folder: Path, disk: Disk) -> Self:
        """The manifest of a new log."""
        log = uuid.uuid4()
        path = folder / MANIFEST_NAME
        temporary = path.with_suffix(".new")
        disk.remove(temporary)
        file = JournalFile.create(temporary, disk, FileKind.MANIFEST, Identity(log, 0, bytes(8)), 0)
        manifest = cls(file, disk, log, 0)
        manifest._add({"log": str(log)})
        disk.replace(temporary, path)
        disk.sync_folder(folder)
        file.path = path
        return manifest

    @classmethod
    def open(cls, folder: Path, disk: Disk, *, writable: bool) -> Self:
        """The manifest of an existing log, without a torn last record; see `cut_torn_record`."""
        path = folder / MANIFEST_NAME
        file = JournalFile.open(path)
        if writable:
            file.settle(disk)
        scanned = file.scan()
        if scanned.damage or not scanned.entries:
            raise CorruptLogError(
                f"the manifest is damaged: {scanned.damage or 'it holds no record'}",
                where=str(path),
                hint="restore the file from a backup of the folder; the other files are untouched",
            )
        data = file.mapped()
        torn, file.size = file.size - scanned.end, scanned.end
        manifest = cls(file, disk, file.header.identity.log, torn)
        for position, header in scanned.entries:
            manifest._take(decode_head(data, position, header))
            manifest._next = header.number + 1
        return manifest

    def check_writable(self) -> None:
        """Raise what the sync of a record failed with: it may stand there, so what it names must stay as it is."""
        if self._failure is not None:
            raise self._failure

    def cut_torn_record(self) -> None:
        """Open it for new records; a torn last one goes, now that nothing in the folder was found to need it."""
        self._file.size += self.cut_bytes
        self._file.reopen_for_append(self._file.size - self.cut_bytes, self._disk)

    def knows(self, identity: Identity) -> bool:
        """Whether this opening stands in the manifest."""
        return any((o.epoch, o.id) == (identity.epoch, identity.epoch_id.hex()) for o in self.openings)

    def _take(self, record: dict[str, Any]) -> None:
        if "opening" in record:
            self.openings.append(Opening(record["opening"], record["id"], record["first_offset"]))
        elif "segment" in record:
            low, high = record["journals"]
            self.segments.append(
                SegmentRecord(
                    record["segment"],
                    low,
                    high,
                    record["first_offset"],
                    record["end_offset"],
                    record["next_number"],
                    record["bytes"],
                )
            )
        elif "log" not in record:
            raise CorruptLogError(
                f"the manifest has a record that this version does not know: {sorted(record)}",
                where=str(self._file.path),
            )

    def _add(self, record: dict[str, Any]) -> None:
        self.check_writable()
        head = encode_head(record)
        header = EntryHeader(EntryKind.RECORD, 0, self._next, 0, 0, len(head), 0, self._file.size, checksum(head))
        parts = [header.pack(self.log), head]
        try:
            self._disk.append(self._file.descriptor, parts)
        except BaseException:
            self._disk.truncate(self._file.descriptor, self._file.size)
            raise
        try:
            self._disk.sync(self._file.descriptor, self._file.path)
        except KaddsError as error:
            self._failure = error
            raise
        self._file.size += header.entry_bytes
        self._next += 1
        self._take(record)

    def add_opening(self, first_offset: int) -> Identity:
        """A new epoch, durable before anything is written under it."""
        epoch = self.openings[-1].epoch + 1 if self.openings else 1
        epoch_id = secrets.token_bytes(8)
        self._add({"opening": epoch, "id": epoch_id.hex(), "first_offset": first_offset})
        return Identity(self.log, epoch, epoch_id)

    def add_segment(self, record: SegmentRecord) -> None:
        """From now on the segment is read in place of its journal files."""
        self._add(
            {
                "segment": record.number,
                "journals": [record.low_journal, record.high_journal],
                "first_offset": record.first_offset,
                "end_offset": record.end_offset,
                "next_number": record.next_number,
                "bytes": record.bytes,
            }
        )

    def cursor(self, offset: int) -> Cursor:
        """The cursor of `offset`: it names the opening that wrote the entry before it."""
        at = bisect.bisect_left(self.openings, offset, key=lambda opening: opening.first_offset) - 1
        opening = self.openings[at] if at >= 0 else Opening(0, "", 0)
        return Cursor(self.log, opening.epoch, opening.id, {0: offset})

    def check(self, cursor: Cursor, end: int) -> None:
        """GapError if this log, whose end is `end`, cannot have given `cursor`."""
        offset = cursor.offset()
        hint = "the cursor's owner has changes that this log does not know, or lacks some that it had: `kadds resync`"
        if cursor.log != self.log:
            raise GapError(
                f"the cursor belongs to log {cursor.log}, this is log {self.log}", where=str(cursor), hint=hint
            )
        if offset > end:
            raise GapError(
                f"the cursor is at offset {offset}, behind the end of this log at {end}: an older copy of the folder?",
                where=str(cursor),
                hint=hint,
            )
        expected = self.cursor(offset)
        if (cursor.epoch, cursor.epoch_id) != (expected.epoch, expected.epoch_id):
            raise GapError(
                f"offset {offset} was written by opening {expected.epoch}-{expected.epoch_id} here, and by "
                f"{cursor.epoch}-{cursor.epoch_id} where the cursor was given: the histories differ",
                where=str(cursor),
                hint=hint,
            )
