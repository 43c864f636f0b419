"""docs/LOG_FORMAT.md is true: a log is read here by that page alone, with none of the log's own readers.

Whoever changes the format changes the page, this test and the format's number.
"""

from __future__ import annotations

import json
import re
import struct
import uuid
import zlib
from dataclasses import dataclass
from decimal import Decimal
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from kadds.api.change import Control, ControlKind, Transactions
from kadds.log.stream import SYSTEM
from tests.unit.log.making import LINES, ORDERS, SOURCE, WIDE, opened, put, rows, sequence
from tests.unit.log.reading import Found, found

PAGE = Path(__file__).parents[3] / "docs" / "LOG_FORMAT.md"
FACTS = pa.schema(
    [
        ("sequence", pa.binary()),
        ("rows", pa.uint32()),
        ("sort_key", pa.binary()),
        ("token", pa.string()),
        ("xid", pa.string()),
        ("committed_at", pa.timestamp("us", "UTC")),
        ("origin", pa.string()),
    ]
)
TYPES = {"int64": pa.int64(), "string": pa.string(), "float64": pa.float64(), "binary": pa.binary()}


def _sum(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)


@dataclass
class ParsedEntry:
    kind: int
    epoch: int
    number: int
    first_offset: int
    rows: int
    durable: int
    head: dict[str, Any]
    body: bytes


@dataclass
class ParsedFile:
    kind: int
    log: uuid.UUID
    epoch: int
    epoch_id: bytes
    number: int
    rest: bytes


def _file(path: Path) -> ParsedFile:
    data = path.read_bytes()
    magic, version, kind, reserved, log, epoch, epoch_id, number, made, stored = struct.unpack(
        "<8sHHI16sQ8sQQQ", data[:72]
    )
    assert (magic, version, reserved) == (b"KADDSLOG", 0, 0)
    assert stored == _sum(data[:64])
    assert made > 1_600_000_000_000_000
    return ParsedFile(kind, uuid.UUID(bytes=log), epoch, epoch_id, number, data[72:])


def _entries(path: Path) -> list[ParsedEntry]:
    file = _file(path)
    data, at, result = file.rest, 0, []
    while at < len(data):
        header = data[at : at + 88]
        fields = struct.unpack("<4sBBH16sQQQIIQQQQ", header)
        (
            magic,
            kind,
            flags,
            version,
            log,
            epoch,
            number,
            first,
            count,
            head_bytes,
            body_bytes,
            durable,
            body_sum,
            own,
        ) = fields
        assert (magic, flags, version, uuid.UUID(bytes=log)) == (b"KENT", 0, 0, file.log)
        assert own == _sum(header[:80])
        assert head_bytes % 8 == body_bytes % 8 == 0
        head_at, body_at = at + 88, at + 88 + head_bytes
        assert body_sum == _sum(data[head_at : body_at + body_bytes])
        assert durable <= at + 72
        head = json.loads(data[head_at:body_at])
        result.append(
            ParsedEntry(kind, epoch, number, first, count, durable, head, data[body_at : body_at + body_bytes])
        )
        at = body_at + body_bytes
    assert at == len(data)
    return result


def _padded(size: int) -> int:
    return size + -size % 8


def _unpacked(payload: bytes, schema: pa.Schema, rows: int) -> list[list[Any]]:
    """The columns of a packed payload, value by value."""
    (slots,) = struct.unpack_from("<I", payload)
    at = 4 + 16 * slots
    found: dict[tuple[int, int], tuple[int, int, bytes]] = {}
    for number in range(slots):
        column, part, form, width, codec, nothing, raw, stored = struct.unpack_from(
            "<HBBBBHII", payload, 4 + 16 * number
        )
        data = payload[at : at + stored]
        data = pa.Codec("zstd").decompress(data, raw, asbytes=True) if codec == 1 else data
        assert (nothing, len(data)) == (0, raw)
        found[column, part] = form, width, data
        at += stored
    assert at == len(payload)
    return [_values(field.type, rows, number, found) for number, field in enumerate(schema)]


def _values(
    kind: pa.DataType, rows: int, column: int, found: dict[tuple[int, int], tuple[int, int, bytes]]
) -> list[Any]:
    if kind == pa.null():
        return [None] * rows
    if pa.types.is_nested(kind):
        message = pa.ipc.read_message(found[column, 4][2])
        return list(pa.ipc.read_record_batch(message, pa.schema([("", kind)])).column(0).to_pylist())
    bits = found[column, 0][2] if (column, 0) in found else b"\xff" * (rows // 8 + 1)
    present = [bits[row // 8] >> row % 8 & 1 for row in range(rows)]
    values: list[Any]
    if kind in (pa.string(), pa.binary()):
        lengths = _integers(*found[column, 2], rows, 4)
        data = found[column, 3][2] if (column, 3) in found else b""
        ends = list(accumulate(lengths, initial=0))
        values = [data[start:end] for start, end in pairwise(ends)]
        values = [cell.decode() for cell in values] if kind == pa.string() else values
    elif kind == pa.bool_():
        values = [bool(found[column, 1][2][row // 8] >> row % 8 & 1) for row in range(rows)]
    elif pa.types.is_decimal128(kind) and kind.precision <= 18:
        numbers = _integers(*found[column, 1], rows, 8)
        values = [Decimal(number).scaleb(-kind.scale) for number in numbers]
    else:
        width = kind.bit_width // 8
        numbers = _integers(*found[column, 1], rows, width)
        octets = b"".join((number % (1 << 8 * width)).to_bytes(width, "little") for number in numbers)
        values = pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(octets)]).to_pylist()
    return [value if there else None for value, there in zip(values, present, strict=True)]


def _integers(form: int, planes: int, data: bytes, rows: int, width: int) -> list[int]:
    if form == 0:
        return [int.from_bytes(data[width * row : width * (row + 1)], "little", signed=True) for row in range(rows)]
    numbers = [sum(data[plane * rows + row] << 8 * plane for plane in range(planes)) for row in range(rows)]
    if form == 1:
        return numbers
    numbers = [number >> 1 ^ -(number & 1) for number in numbers]
    if form == 3:
        half = 1 << 8 * width - 1
        numbers = [(number + half) % (2 * half) - half for number in accumulate(numbers)]
    return numbers


class Parsed:
    """What a folder holds, as (offset, stream name, op or kind, values)."""

    def __init__(self) -> None:
        self.layouts: dict[int, Any] = {}
        self.streams: dict[int, str] = {}
        self.producers: dict[str, tuple[bytes, bytes]] = {}
        self.changes: list[tuple[int, str, str, Any]] = []
        self.facts: list[tuple[int, dict[str, Any]]] = []

    def _schema(self, number: int, present: int) -> pa.Schema:
        columns = [("place", pa.uint32()), ("op", pa.uint8())]
        for bit, name, kind in (
            (1, "before", pa.bool_()),
            (2, "not_given", pa.binary()),
            (4, "as_text", pa.list_(pa.struct([("column", pa.int16()), ("text", pa.string())]))),
        ):
            columns += [(name, kind)] if present & bit else []
        columns += [(column["name"], TYPES[column["type"]]) for column in self.layouts[number]["columns"]]
        return pa.schema(columns)

    def block(self, data: bytes, first_offset: int) -> int:
        """Takes the rows of the block that `data` begins with; its length."""
        cells, present, mac, nonce, key, layout, extents, count, size = struct.unpack_from("<BBBBIIIQQ", data)
        assert (mac, nonce, key) == (0, 0, 0)
        ids = struct.unpack_from(f"<{extents}q", data, 32)
        layouts = struct.unpack_from(f"<{extents}I", data, 32 + 8 * extents)
        counts = struct.unpack_from(f"<{extents}I", data, 32 + 12 * extents)
        assert sum(counts) == count
        payload = data[32 + 16 * extents : 32 + 16 * extents + size]
        schema = self._schema(layout, present)
        if cells == 0:
            plain = pa.ipc.read_record_batch(pa.ipc.read_message(payload), schema).to_pylist()
        else:
            assert cells == 1
            columns = _unpacked(payload, schema, count)
            plain = [dict(zip(schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
        own = {"place", "op", "before", "not_given", "as_text"}
        at, last = 0, (-1, -1)
        for stream, used, length in zip(ids, layouts, counts, strict=True):
            assert self._schema(used, present) == schema
            for row in plain[at : at + length]:
                assert last < (stream, row["place"])
                last = (stream, row["place"])
                values = tuple((name, value) for name, value in row.items() if name not in own)
                self.changes.append((first_offset + row["place"], self.streams[stream], chr(row["op"]), values))
            at += length
        return 32 + _padded(16 * extents) + _padded(size)

    def controls(self, plain: list[Any], base: int) -> None:
        for place, stream, kind, _layout, facts in plain:
            self.changes.append((base + place, self.streams[stream], kind, tuple(sorted(facts.items()))))

    def define(self, head: dict[str, Any], *, streams: bool = True) -> None:
        self.layouts.update((number, json.loads(text)) for number, text in head.get("layouts", ()))
        if streams:
            self.streams.update((number, name) for number, name, _, _ in head.get("streams", ()))

    def journal(self, entries: list[ParsedEntry]) -> None:
        """Takes the commits of a journal in order, each with its fragments."""
        by_number = {entry.number: entry for entry in entries}
        assert [entry.number for entry in entries] == list(range(entries[0].number, entries[-1].number + 1))
        for entry in entries:
            self.define(entry.head, streams=entry.kind == 2)
            if entry.kind == 5:
                assert entry.head == {}
                assert entry.body == b""
            if entry.kind == 2:
                self._commit(entry, by_number)

    def _commit(self, entry: ParsedEntry, by_number: dict[int, ParsedEntry]) -> None:
        resume_bytes, facts_bytes = entry.head["sections"]
        resume = entry.body[:resume_bytes]
        at = _padded(resume_bytes)
        facts = pa.ipc.read_record_batch(pa.ipc.read_message(entry.body[at : at + facts_bytes]), FACTS).to_pylist()
        at += _padded(facts_bytes)
        offset = entry.first_offset
        for fact in facts:
            self.facts.append((offset, fact))
            offset += fact["rows"]
        assert offset == entry.first_offset + entry.rows
        if entry.head["sequence"] is not None:
            self.producers[entry.head["producer"]] = (bytes.fromhex(entry.head["sequence"]), resume)
        fragments = entry.head.get("fragments", [])
        assert not (fragments and entry.body[at:])
        self._rows(entry.body[at:], entry.head, entry.first_offset)
        held = 0
        for number, count in fragments:
            fragment = by_number[number]
            assert (fragment.kind, fragment.rows, fragment.head["sections"]) == (1, count, [0, 0])
            self._rows(fragment.body, fragment.head, entry.first_offset)
            held += count
        assert not fragments or held == entry.rows

    def _rows(self, blocks: bytes, head: dict[str, Any], base: int) -> None:
        at = 0
        while at < len(blocks):
            at += self.block(blocks[at:], base)
        self.controls(head.get("controls", []), base)

    def segment(self, path: Path) -> dict[str, Any]:
        """Takes a segment's rows; its footer."""
        data = path.read_bytes()
        assert _file(path).kind == 3
        position, size, stored, magic = struct.unpack("<QQQ8s", data[-32:])
        footer_text = data[position : position + size]
        assert (magic, stored, position + size + 32) == (b"KADDSEND", _sum(footer_text), len(data))
        footer: dict[str, Any] = json.loads(footer_text)
        sections = {}
        for name, (start, length, checksum) in footer["sections"].items():
            sections[name] = data[start : start + length]
            assert checksum == _sum(sections[name])
        plain = {name: json.loads(zlib.decompress(sections[name])) for name in ("controls", "layouts", "checkpoint")}
        tables = {
            name: pa.ipc.open_stream(sections[name]).read_all().to_pylist()
            for name in ("extents", "transactions", "streams")
        }
        self.define({"layouts": plain["layouts"]})
        self.streams.update((stream["id"], stream["name"]) for stream in tables["streams"])
        for number, (start, length, checksum, count, low, high) in enumerate(footer["blocks"]):
            block = data[start : start + length]
            assert checksum == _sum(block)
            before = len(self.changes)
            assert self.block(block, footer["first_offset"]) == length
            taken = self.changes[before:]
            assert (len(taken), min(t[0] for t in taken), max(t[0] for t in taken) + 1) == (count, low, high)
            for extent in (extent for extent in tables["extents"] if extent["block"] == number):
                mine = taken[extent["start"] : extent["start"] + extent["rows"]]
                assert {name for _, name, _, _ in mine} == {self.streams[extent["stream"]]}
                assert (mine[0][0], mine[-1][0]) == (extent["first_offset"], extent["last_offset"])
        self.controls(plain["controls"], 0)
        for fact in tables["transactions"]:
            self.facts.append((fact["first_offset"], {name: fact[name] for name in FACTS.names}))
        for name, (_epoch, last, resume) in plain["checkpoint"]["producers"].items():
            self.producers[name] = (bytes.fromhex(last), bytes.fromhex(resume))
        assert plain["checkpoint"]["state"] == {"default": {"runs": {"a": {"x": 1}}}}
        return footer


def _fill(folder: Path, *, seal: bool) -> tuple[list[Found], list[dict[str, Any]]]:
    """One of everything that the format has; what the log itself reads out of it."""
    with opened(folder) as log:
        producer = log.producer(SOURCE, "stream")
        put(producer, 1).result()
        put(log.producer("other/crm", "stream"), 1, table=WIDE).result()
        both = [rows(LINES, [7, 8]), rows(ORDERS, [9], first_ordinal=2)]
        schema = Control(ControlKind.SCHEMA, 3, WIDE, {"a": None})
        producer.append(Transactions.one(sequence(2), both, [schema], origin="o", committed_at=7), b"two").result()
        dead = producer.begin("3")
        dead.add([rows(LINES, [1], size=5_000_000)])
        dead.abort()
        pieces = producer.begin("4")
        for start in range(0, 4, 2):
            pieces.add([rows(ORDERS, range(4000 + start, 4002 + start), size=2_500_000)])
        pieces.commit(sequence(4), b"four").result()
        log.state.put("default", "runs", "a", {"x": 1})
        if seal:
            log.seal()
        facts = [fact for piece in log.read(log.begin()) for fact in piece.transactions.to_pylist()]
        once = {fact["first_offset"]: fact for fact in facts}  # each piece of a large transaction has them
        return found(log), list(once.values())


@pytest.mark.parametrize("sealed", [False, True])
def test_a_log_can_be_read_by_the_page_alone(sealed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    expected, facts = _fill(folder, seal=sealed)
    records = [entry.head for entry in _entries(folder / "MANIFEST")]
    manifest = _file(folder / "MANIFEST")
    assert manifest.kind == 1
    assert records[0] == {"log": str(manifest.log)}
    parsed = Parsed()
    if sealed:
        (path,) = (folder / "segments").iterdir()
        footer = parsed.segment(path)
        record = records[-1]
        assert record == {
            "segment": 1,
            "journals": [1, 1],
            "first_offset": footer["first_offset"],
            "end_offset": footer["end_offset"],
            "next_number": footer["next_number"],
            "bytes": path.stat().st_size,
        }
        assert footer["rows"] == len([one for one in expected if len(one.what) == 1])
        assert not list((folder / "journal").iterdir())
    else:
        (path,) = (folder / "journal").iterdir()
        file, entries = _file(path), _entries(path)
        assert (file.kind, path.name) == (2, f"{file.number:016d}.journal")
        assert records[1] == {"opening": file.epoch, "id": file.epoch_id.hex(), "first_offset": 0}
        assert {entry.epoch for entry in entries} == {file.epoch}
        assert {entry.kind for entry in entries} == {1, 2, 3, 5}
        assert entries[-1].kind == 5
        parsed.journal(entries)
    assert sorted(parsed.changes) == sorted((one.offset, one.stream, one.what, one.values) for one in expected)
    assert parsed.facts == [(fact["first_offset"], {name: fact[name] for name in FACTS.names}) for fact in facts]
    assert parsed.producers == {
        "default/shop/stream": (sequence(4), b"four"),
        "other/crm/stream": (sequence(1), b"1"),
    }
    assert f"default/{SYSTEM}/runs" in parsed.streams.values()


def test_a_file_of_fragments_holds_the_entries_as_they_were(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with opened(folder) as log:
        producer = log.producer(SOURCE, "stream")
        put(producer, 1).result()
        pieces = producer.begin("2")
        pieces.add([rows(ORDERS, [1], size=5_000_000)])
        put(log.producer(SOURCE, "other"), 9).result()
        (journal,) = (folder / "journal").iterdir()
        (before,) = (entry for entry in _entries(journal) if entry.kind == 1)
        log.seal()
        (path,) = (folder / "journal").glob("*.fragments")
        assert _file(path).kind == 4
        assert path.stem == journal.stem
        fragments = path.read_bytes()[72:]
        assert struct.unpack_from("<Q", fragments, 32) == (before.number,)
        assert fragments.endswith(before.body)
        pieces.commit(sequence(2), b"").result()


def test_the_page_names_every_number_of_the_format() -> None:
    """Sizes and kinds in the code's own words stand in the page, too."""
    from kadds.log.frame import ENTRY_HEADER_BYTES, FILE_HEADER_BYTES, FORMAT, EntryKind, FileKind
    from kadds.log.packing import Form, Part
    from kadds.log.segment import EXTENTS, SEGMENT_ROWS_MAX

    page = PAGE.read_text(encoding="utf-8")
    assert f"version {FORMAT}" in page.splitlines()[0]
    assert f"File header, {FILE_HEADER_BYTES} bytes" in page
    assert f"a header of {ENTRY_HEADER_BYTES} bytes" in page
    assert f"at most {SEGMENT_ROWS_MAX:,} rows" in page
    for kind in EntryKind:
        assert re.search(rf"\b{kind.value} {kind.name}\b", page)
    for file_kind in FileKind:
        assert re.search(rf"\b{file_kind.value} {file_kind.name.lower()}\b", page)
    for number in (*Part, *Form):
        assert f"{number.value} {number.name.lower().replace('_', ' ')}" in page
    for field in EXTENTS:
        assert f"{field.name} {field.type}" in page
    assert len(page.splitlines()) <= 200
