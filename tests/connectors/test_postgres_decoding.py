"""pgoutput → changes: against a decoder that takes row after row, and against a real server.

The reference here reads the same bytes one message at a time with nothing but `struct`, and types cells with Python.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st

from kadds.api.change import ControlKind, Op, Transactions, given_mask, text_cells
from kadds.api.errors import UnknownInputError
from kadds.api.schema import Column, Table
from kadds_postgres.connection import SESSION
from kadds_postgres.pgoutput import Decoder, Ended, Event, Opened, Piece, Relation, RelationMessage
from kadds_postgres.types import arrow_type
from tests.support import pgoutput_messages as wire
from tests.support import postgres_values
from tests.support.pgoutput_messages import UNCHANGED
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_until

GENERATION, LINEAGE = 3, "7/1"
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class AsText:
    """A cell given as text."""

    text: str


@dataclass
class Found:
    """One transaction as decoded, whichever way it came; `entries` are rows and control records in order."""

    sequence: bytes
    sort_key: bytes
    token: str
    xid: str
    committed_at: int
    origin: str | None
    entries: list[Any] = field(default_factory=list)


class Declared:
    """The captured tables: column types by the name of the column, `bigint 1` being a bigint."""

    def __init__(self, ignored: Sequence[int] = (), captured_from: Mapping[int, int] | None = None) -> None:
        self.ignored = ignored
        self.captured_from = captured_from or {}
        self.asked: list[RelationMessage] = []
        self.tables: dict[int, Table] = {}

    def described(self, message: RelationMessage, commit_lsn: int) -> tuple[Relation | None, Mapping[str, Any] | None]:
        """A control record for every version of a table but its first."""
        self.asked.append(message)
        if message.oid in self.ignored:
            return None, None
        table = table_of(message)
        captured_from = self.captured_from.get(message.oid, 0)
        if commit_lsn < captured_from:
            return Relation(message.oid, table, captured_from), None
        facts = {"version": len(self.asked)} if self.tables.get(message.oid, table) != table else None
        self.tables[message.oid] = table
        return Relation(message.oid, table, captured_from), facts


def table_of(message: RelationMessage) -> Table:
    """The table as a source would describe it."""
    declared = [column.name.rpartition(" ")[0] for column in message.columns]
    return Table(
        message.schema,
        message.name,
        tuple(Column(c.name, arrow_type(d), d) for c, d in zip(message.columns, declared, strict=True)),
        tuple(c.name for c in message.columns if c.in_key),
    )


def decoder(declared: Declared, **more: Any) -> Decoder:
    """One with this file's lineage and generation."""
    return Decoder(declared, lineage=LINEAGE, generation=GENERATION, **more)


# ------------------------------------------------------------------------------------------------- what was decoded


def flat(events: Sequence[Event]) -> list[Found]:
    """The transactions of events; asserts that ordinals are dense, and that pieces come as they must."""
    found: list[Found] = []
    xid, open_entries = "", None
    for event in events:
        match event:
            case Transactions():
                assert open_entries is None
                assert event.lineage == LINEAGE
                entries = entries_of(event.changes, event.controls)
                assert len(entries) == event.rows
                for row in event.facts.to_pylist():
                    count = row.pop("rows")
                    assert count > 0
                    row["committed_at"] = microseconds(row["committed_at"])
                    found.append(Found(**row, entries=entries[:count]))
                    entries = entries[count:]
                assert not entries
            case Opened():
                assert open_entries is None
                xid, open_entries = event.xid, []
            case Piece():
                assert open_entries is not None
                assert event.changes or event.controls
                open_entries += entries_of(event.changes, event.controls)
            case Ended():
                assert open_entries
                found.append(
                    Found(
                        event.sequence,
                        event.sort_key,
                        event.token,
                        xid,
                        event.committed_at,
                        event.origin,
                        open_entries,
                    )
                )
                open_entries = None
    assert open_entries is None
    return found


def microseconds(moment: datetime) -> int:
    """Since 1970 UTC, exactly."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def entries_of(changes: Sequence[Any], controls: Sequence[Any]) -> list[Any]:
    """Rows and control records of one append by ordinal, each ordinal once and without holes."""
    placed: dict[int, Any] = {}
    for control in controls:
        assert control.ordinal not in placed
        placed[control.ordinal] = (control.kind, control.table, dict(control.facts))
    for batch in changes:
        batch.values.validate(full=True)
        ordinals = batch.ordinals.to_pylist()
        assert ordinals == sorted(set(ordinals))
        assert len(batch)
        numbers = batch.table_numbers.to_pylist() if batch.table_numbers is not None else [0] * len(batch)
        before = batch.before.to_pylist() if batch.before is not None else [False] * len(batch)
        cells = cells_of(batch)
        for at, ordinal in enumerate(ordinals):
            assert ordinal not in placed
            table = batch.tables.tables[numbers[at]]
            placed[ordinal] = (Op(batch.ops[at].as_py()), before[at], table, cells[at])
    assert sorted(placed) == list(range(len(placed)))
    return [placed[ordinal] for ordinal in range(len(placed))]


def cells_of(batch: Any) -> list[list[Any]]:
    """The cells of each row: a value, NOT_GIVEN or AsText."""
    rows = len(batch)
    texts = text_cells(batch.as_text)
    columns = []
    for number, values in enumerate(batch.values.columns):
        cells = values.to_pylist()
        for row, text in zip(*texts.get(number, ((), pa.array([]))), strict=True):
            assert cells[row] is None
            cells[row] = AsText(text.as_py())
        for row in np.flatnonzero(~given_mask(batch.not_given, number, rows)):
            assert cells[row] is None
            cells[row] = NOT_GIVEN
        columns.append(cells)
    return [list(row) for row in zip(*columns, strict=True)]


# ------------------------------------------------------------------------------------------------- the reference


class Reference:
    """Message after message, row after row."""

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        self.raw: dict[int, bytes] = {}
        self.relations: dict[int, tuple[RelationMessage, Relation | None]] = {}
        self.found: list[Found] = []

    def decode(self, messages: Sequence[bytes]) -> list[Found]:
        """All transactions that have rows."""
        for payload in messages:
            self.message(payload[25:])
        return self.found

    def message(self, m: bytes) -> None:
        kind = m[:1]
        if kind == b"B":
            self.lsn, _, self.xid = struct.unpack(">QqI", m[1:])
            self.entries: list[Any] = []
            self.origin: str | None = None
        elif kind == b"C":
            _, _, end, time = struct.unpack(">BQQq", m[1:])
            if self.entries:
                key = end.to_bytes(8, "big")
                token = f"{end >> 32:X}/{end % 2**32:X}"
                committed_at = time + wire.EPOCH_MICROSECONDS
                sequence = GENERATION.to_bytes(4, "big") + key
                self.found.append(Found(sequence, key, token, str(self.xid), committed_at, self.origin, self.entries))
        elif kind == b"O":
            self.origin = m[9:-1].decode()
        elif kind == b"R":
            self.relation(m)
        elif kind == b"T":
            (count,) = struct.unpack_from(">I", m, 1)
            for oid in struct.unpack_from(f">{count}I", m, 6):
                relation = self.captured(oid)
                if relation is not None:
                    self.entries.append((Op.TRUNCATE, False, relation.table, [NOT_GIVEN] * len(relation.table.columns)))
        elif kind in (b"I", b"U", b"D"):
            self.row(kind, m)

    def relation(self, m: bytes) -> None:
        (oid,) = struct.unpack_from(">I", m, 1)
        if self.raw.get(oid) != m:
            message = RelationMessage.parse(m)
            relation, facts = self.declared.described(message, self.lsn)
            self.relations[oid] = message, relation
            self.raw[oid] = m if relation is None or self.captured(oid) is not None else b""
            if facts is not None:
                self.entries.append((ControlKind.SCHEMA, relation.table, facts))

    def captured(self, oid: int) -> Relation | None:
        relation = self.relations[oid][1]
        return relation if relation is not None and self.lsn >= relation.captured_from else None

    def row(self, kind: bytes, m: bytes) -> None:
        (oid,) = struct.unpack_from(">I", m, 1)
        relation = self.captured(oid)
        if relation is None:
            return
        tag, (cells, at) = m[5:6], self.tuple(m, 6)
        op = {b"I": Op.CREATE, b"U": Op.UPDATE, b"D": Op.DELETE}[kind]
        if tag == b"N":
            self.add(op, False, relation.table, cells)
            return
        if tag == b"K":
            in_key = [column.in_key for column in self.relations[oid][0].columns]
            cells = [cell if key else UNCHANGED for cell, key in zip(cells, in_key, strict=True)]
        self.add(op, True, relation.table, cells)
        if kind == b"U":
            assert m[at : at + 1] == b"N"
            new, at = self.tuple(m, at + 1)
            if tag == b"O":
                new = [old if cell is UNCHANGED else cell for old, cell in zip(cells, new, strict=True)]
            self.add(op, False, relation.table, new)
        assert at == len(m)

    @staticmethod
    def tuple(m: bytes, at: int) -> tuple[list[Any], int]:
        (count,) = struct.unpack_from(">H", m, at)
        at += 2
        cells: list[Any] = []
        for _ in range(count):
            kind = m[at : at + 1]
            at += 1
            if kind == b"t":
                (length,) = struct.unpack_from(">I", m, at)
                cells.append(m[at + 4 : at + 4 + length].decode())
                at += 4 + length
            else:
                cells.append({b"n": None, b"u": UNCHANGED}[kind])
        return cells, at

    def add(self, op: Op, before: bool, table: Table, cells: list[Any]) -> None:
        typed = [judged(column.declared, cell) for column, cell in zip(table.columns, cells, strict=True)]
        self.entries.append((op, before, table, typed))


def judged(declared: str, cell: Any) -> Any:
    """What one cell means."""
    if cell is UNCHANGED:
        return NOT_GIVEN
    if cell is None or declared == "text":
        return cell
    if declared == "bigint":
        return int(cell)
    if declared == "boolean":
        return cell == "t"
    if declared == "bytea":
        return bytes.fromhex(cell[2:])
    if declared == "numeric(6,2)":
        number = Decimal(cell)
        return number if number.is_finite() and abs(number) < 10_000 else AsText(cell)
    if declared == "date":
        return date.fromisoformat(cell) if len(cell) == 10 else AsText(cell)
    assert declared == "timestamp with time zone"
    return datetime.fromisoformat(cell) if cell[:4].isdigit() and cell.endswith("+00") else AsText(cell)


VALUES = {
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "text": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    "boolean": st.sampled_from("tf"),
    "bytea": st.binary(max_size=9).map(lambda value: "\\x" + value.hex()),
    "numeric(6,2)": st.sampled_from(["0.00", "-0.01", "9999.99", "-1234.50", "NaN"]),
    "date": st.sampled_from(["2026-11-22", "0001-01-01", "9999-12-31", "infinity", "0044-03-15 BC"]),
    "timestamp with time zone": st.sampled_from(
        ["2026-11-22 12:57:26+00", "1969-12-31 23:59:59.999999+00", "-infinity", "0044-03-15 00:00:00+00 BC"]
    ),
}
OIDS = (16385, 16390, 4294967295)


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Whole transactions of a random session."""
    messages: list[bytes] = []
    shapes: dict[int, list[tuple[str, bool]]] = {}

    def describe(oid: int) -> None:
        declared = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))
        columns = [(f"{name} {at}", draw(st.booleans())) for at, name in enumerate(declared)]
        if shapes and draw(st.booleans()):
            columns = shapes[draw(st.sampled_from(sorted(shapes)))]  # tables of one shape share a batch
        shapes[oid] = columns
        messages.append(wire.relation(oid, "public", f"table {oid}", columns))

    def cells(oid: int, *, missing: bool) -> list[Any]:
        values = [VALUES[name.rpartition(" ")[0]] | st.none() for name, _ in shapes[oid]]
        return [draw(value | st.just(UNCHANGED) if missing else value) for value in values]

    lsn = draw(st.integers(1, 2**63))
    for _ in range(draw(st.integers(1, 4))):
        committed_at = draw(st.integers(0, 2**51))
        messages.append(wire.begin(lsn, draw(st.integers(1, 2**32 - 1)), committed_at))
        if draw(st.booleans()):
            messages.append(wire.origin(draw(st.sampled_from(["elsewhere", "ä"]))))
        for _ in range(draw(st.integers(0, 6))):
            oid = draw(st.sampled_from(OIDS))
            if oid not in shapes or draw(st.integers(0, 9)) == 0:
                describe(oid)
            elif draw(st.integers(0, 9)) == 0:
                messages.append(wire.relation(oid, "public", f"table {oid}", shapes[oid]))
            match draw(st.sampled_from("iiiuuukoKOtmy")):
                case "i":
                    messages.append(wire.insert(oid, cells(oid, missing=False)))
                case "u":
                    messages.append(wire.update(oid, cells(oid, missing=True)))
                case "k":
                    messages.append(wire.update(oid, cells(oid, missing=True), cells(oid, missing=False), "K"))
                case "o":
                    messages.append(wire.update(oid, cells(oid, missing=True), cells(oid, missing=False), "O"))
                case "K" | "O" as tag:
                    messages.append(wire.delete(oid, cells(oid, missing=False), tag))
                case "t":
                    messages.append(wire.truncate(draw(st.lists(st.sampled_from(sorted(shapes)), min_size=1))))
                case "m":
                    messages.append(wire.logical_message("prefix", b"BCIUD"))
                case "y":
                    messages.append(wire.type_message(oid, "public", "mood"))
        messages.append(wire.commit(lsn, lsn + 8, committed_at))
        lsn += draw(st.integers(9, 1000))
        if draw(st.integers(0, 9)) == 0:
            messages.append(wire.logical_message("outside", b"", transactional=False))
    return messages


@settings(max_examples=150)
@given(
    streams(),
    st.lists(st.integers(0, 60)),
    st.sampled_from([1, 100, 300, 1 << 20]),
    st.sets(st.sampled_from(OIDS)),
    st.dictionaries(st.sampled_from(OIDS), st.integers(1, 2**63)),
)
def test_columns_at_a_time_give_what_row_after_row_gives(
    messages: list[bytes], cuts: list[int], piece_bytes: int, ignored: set[int], captured_from: dict[int, int]
) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(messages)), len(messages)]
    ours = decoder(Declared(sorted(ignored), captured_from), piece_bytes=piece_bytes)
    events: list[Event] = []
    for start, stop in itertools.pairwise(places):
        events += ours.decode(messages[start:stop])
    assert flat(events) == Reference(Declared(sorted(ignored), captured_from)).decode(messages)
    assert not ours.in_transaction
    commits = [message for message in messages if message[25:26] == b"C"]
    assert ours.position == struct.unpack_from(">Q", commits[-1], 35)[0]


@settings(max_examples=100)
@given(streams(), st.sets(st.sampled_from(OIDS)), st.dictionaries(st.sampled_from(OIDS), st.integers(1, 2**63)))
def test_transactions_one_by_one_give_what_row_after_row_gives(
    messages: list[bytes], ignored: set[int], captured_from: dict[int, int]
) -> None:
    """The second time without Relation messages, so that each transaction is plain, and few.

    Tables that have changed are left out of it: their older rows would be read as newer ones.
    """
    versions: dict[bytes, set[bytes]] = {}
    for message in messages:
        if message[25:26] == b"R":
            versions.setdefault(message[26:30], set()).add(message[25:])
    plain = [
        message
        for message in messages
        if message[25] in b"BC" or (message[25] in b"IUD" and len(versions[message[26:30]]) == 1)
    ]
    ours, reference = (kind(Declared(sorted(ignored), captured_from)) for kind in (decoder, Reference))
    found = flat([event for part in (messages, *by_transaction(plain)) for event in ours.decode(part)])
    assert found == reference.decode([*messages, *plain])


def by_transaction(messages: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The messages of each transaction."""
    ends = [at + 1 for at, message in enumerate(messages) if message[25:26] == b"C"]
    for start, end in itertools.pairwise([0, *ends]):
        yield list(messages[start:end])


# ------------------------------------------------------------------------------------------------- by hand

COLUMNS = [("bigint 0", True), ("text 1", False), ("numeric(6,2) 2", False)]


def session(*messages: bytes) -> list[bytes]:
    """One transaction with a table 7 of three columns."""
    return [wire.begin(100, 42, 1), wire.relation(7, "public", "seven", COLUMNS), *messages, wire.commit(100, 108, 1)]


def rows_of(messages: Sequence[bytes], declared: Declared | None = None) -> list[tuple[str, bool, list[Any]]]:
    """Letter, before and cells of every row."""
    transactions = flat(decoder(declared or Declared()).decode(messages))
    return [
        (entry[0].letter, entry[1], entry[3])
        for found in transactions
        for entry in found.entries
        if isinstance(entry[0], Op)
    ]


MIXED = session(
    wire.insert(7, ["1", "a", "1.50"]),
    wire.update(7, ["1", "ä", None]),
    wire.relation(7, "public", "seven", COLUMNS),
    wire.update(7, ["2", UNCHANGED, "3.00"], ["1", None, None], "K"),
    wire.relation(7, "public", "seven", [*COLUMNS, ("date 3", False)]),
    wire.insert(7, ["3", "x" * 200, "NaN", "infinity"]),
    wire.truncate([7]),
    wire.delete(7, ["3", None, None, None]),
)
MIXED += [wire.begin(200, 43), wire.commit(200, 208), wire.begin(300, 44), wire.truncate([7]), wire.commit(300, 308)]


@pytest.mark.parametrize("piece_bytes", [1, 250, 1 << 20])
def test_a_cut_at_any_place_changes_nothing(piece_bytes: int) -> None:
    expected = Reference(Declared()).decode(MIXED)
    for cut in range(len(MIXED) + 1):
        ours = decoder(Declared(), piece_bytes=piece_bytes)
        assert flat(ours.decode(MIXED[:cut]) + ours.decode(MIXED[cut:])) == expected, f"cut at {cut}"
    one_by_one = decoder(Declared(), piece_bytes=piece_bytes)
    assert flat([event for message in MIXED for event in one_by_one.decode([message])]) == expected


def test_the_position_moves_past_transactions_without_captured_rows() -> None:
    ours = decoder(Declared(ignored=[7]))
    assert ours.decode(MIXED[:-1]) == []
    assert (ours.position, ours.in_transaction) == (208, True)
    assert ours.decode(MIXED[-1:]) == []
    assert (ours.position, ours.in_transaction) == (308, False)


def test_a_large_transaction_without_captured_rows_is_never_opened() -> None:
    ours = decoder(Declared(ignored=[7]), piece_bytes=1)
    assert [event for message in MIXED for event in ours.decode([message])] == []
    assert ours.position == 308


def test_a_transaction_of_any_size_comes_in_pieces_and_none_is_larger_than_asked() -> None:
    ours = decoder(Declared(), piece_bytes=10_000)
    row = wire.insert(7, ["1", "x" * 400, None])
    events = ours.decode(session()[:2])
    for _ in range(100):
        events += ours.decode([row] * 5)
    events += ours.decode([wire.commit(100, 108)])
    assert isinstance(events[0], Opened)
    assert isinstance(events[-1], Ended)
    sizes = [sum(map(len, event.changes)) for event in events if isinstance(event, Piece)]
    assert sum(sizes) == 500
    assert len(sizes) > 10
    assert max(sizes) * 400 < 13_000


def test_an_identical_relation_is_asked_for_once() -> None:
    declared = Declared()
    ours = decoder(declared)
    ours.decode(MIXED)
    assert len(declared.asked) == 2
    repeated = [wire.relation(7, "public", "seven", [*COLUMNS, ("date 3", False)])] * 50
    ours.decode([wire.begin(400, 45), *repeated, wire.commit(400, 408)])
    assert len(declared.asked) == 2


def test_tables_of_one_shape_share_a_batch_and_its_set_of_tables_is_kept() -> None:
    ours = decoder(Declared())
    relations = [wire.relation(oid, "public", f"t{oid}", COLUMNS) for oid in range(50)]
    inserts = [wire.insert(oid, [str(oid), None, None]) for oid in range(50)]
    first = ours.decode([wire.begin(1, 1), *relations, *inserts, wire.commit(1, 9)])
    second = ours.decode([wire.begin(10, 2), *inserts, wire.commit(10, 19)])
    [one], [two] = first[0].changes, second[0].changes
    assert one.tables is two.tables
    assert [one.tables.tables[n].name for n in one.table_numbers.to_pylist()] == [f"t{oid}" for oid in range(50)]


@pytest.mark.parametrize("rows", [2, 100], ids=["few", "many"])
def test_row_36_unchanged_toast_is_not_given_also_between_given_cells(rows: int) -> None:
    changed = [wire.update(7, [str(n), UNCHANGED if n % 2 else "t", "1.00"]) for n in range(rows)]
    plain = decoder(Declared())
    plain.decode(session())
    messages = [wire.begin(200, 1), *changed, wire.commit(200, 208)]
    [found] = flat(plain.decode(messages))
    assert [entry[3] for entry in found.entries] == [
        [n, NOT_GIVEN if n % 2 else "t", Decimal("1.00")] for n in range(rows)
    ]


@pytest.mark.parametrize("rows", [1, 100], ids=["few", "many"])
@pytest.mark.parametrize(("tag", "after"), [("K", NOT_GIVEN), ("O", "long")])
def test_row_37_a_key_change_leaves_toast_out_unless_the_old_row_is_whole(rows: int, tag: str, after: str) -> None:
    ours = decoder(Declared())
    ours.decode(session())
    old = ["1", None, None] if tag == "K" else ["1", "long", "1.00"]
    messages = [wire.begin(200, 1), *[wire.update(7, ["2", UNCHANGED, None], old, tag)] * rows, wire.commit(200, 208)]
    [found] = flat(ours.decode(messages))
    before = [1, NOT_GIVEN, NOT_GIVEN] if tag == "K" else [1, "long", Decimal("1.00")]
    assert [entry[1:2] + entry[3:] for entry in found.entries] == [(True, before), (False, [2, after, None])] * rows


def test_row_44_ddl_in_mid_transaction_has_its_place_among_the_rows() -> None:
    [found] = flat(
        decoder(Declared()).decode(
            session(
                wire.insert(7, ["1", "a", "1.00"]),
                wire.relation(7, "public", "seven", [*COLUMNS, ("date 3", False)]),
                wire.insert(7, ["2", "b", "2.00", "2026-11-22"]),
                wire.relation(7, "public", "seven", [COLUMNS[0], ("date 3", False)]),
                wire.insert(7, ["3", "2026-11-23"]),
            )
        )
    )
    kinds = [entry[0] for entry in found.entries]
    assert kinds == [Op.CREATE, ControlKind.SCHEMA, Op.CREATE, ControlKind.SCHEMA, Op.CREATE]
    assert [len(entry[2].columns) for entry in found.entries if isinstance(entry[0], Op)] == [3, 4, 2]
    assert found.entries[-1][3] == [3, date(2026, 11, 23)]


def test_rows_that_are_in_the_snapshot_are_left_out_by_the_place_of_their_commit() -> None:
    declared = Declared(captured_from={7: 200})
    messages = session(wire.insert(7, ["1", None, None]))
    for lsn in (199, 200, 201):
        messages += [wire.begin(lsn, lsn), *[wire.insert(7, [str(lsn), None, None])] * 20, wire.commit(lsn, lsn)]
    messages += [wire.begin(150, 5), wire.truncate([7]), wire.commit(150, 151)]
    assert {cells[0] for _, _, cells in rows_of(messages, declared)} == {200, 201}
    few = decoder(declared)
    few.decode(session())
    assert flat(few.decode([wire.begin(199, 1), wire.insert(7, ["1", None, None]), wire.commit(199, 200)])) == []


def damaged() -> Iterator[Any]:
    row = wire.insert(7, ["1", "a", "1.00"])
    old = wire.update(7, ["1", "a", None], ["1", "b", None])
    yield pytest.param([wire.sent(b"S\0\0")], "message of kind 'S'", id="kind")
    yield pytest.param([row[:-1]], "end", id="short row")
    yield pytest.param([row + b"x"], "does not end where", id="long row")
    yield pytest.param([row[:40]], "end", id="cut in a length")
    yield pytest.param([row.replace(b"N\0\3", b"X\0\3")], "row of kind 'X'", id="tag")
    yield pytest.param([row.replace(b"\0\3t", b"\0\4t")], "columns", id="columns")
    yield pytest.param([row.replace(b"\0\3t", b"\0\3b")], "unknown kind", id="binary cell")
    yield pytest.param([wire.insert(8, ["1"])], "oid 8", id="unknown table")
    yield pytest.param([wire.truncate([8])], "oid 8", id="unknown truncated table")
    yield pytest.param([old[:-14] + b"Y" + old[-13:]], "no new row|columns|end", id="second tuple")
    yield pytest.param([wire.begin(1, 1)], "order", id="begin in a transaction")
    yield pytest.param([wire.commit(1, 1)], "order", id="two commits")
    yield pytest.param([wire.insert(7, ["x", "a", None])], "seven: column bigint 0 .* b'x'", id="no integer")
    yield pytest.param([wire.insert(7, ["1", b"\xff\xfe", None])], "seven: column text 1 .* not UTF-8", id="no UTF-8")
    yield pytest.param([wire.insert(7, ["1", "a", b"\xff"])], "seven: column numeric.* not UTF-8", id="no number")
    yield pytest.param([b"k" + row[1:]], "XLogData", id="a keepalive")
    yield pytest.param([row[:25]], "XLogData", id="empty")
    yield pytest.param([wire.sent(b"R\0\0\0\x09public")], "Relation", id="short relation")


@pytest.mark.parametrize("rows", [0, 100], ids=["few", "many"])
@pytest.mark.parametrize(("messages", "message"), list(damaged()))
def test_what_is_not_understood_is_named(messages: list[bytes], message: str, rows: int) -> None:
    ours = decoder(Declared())
    ours.decode(session())
    padding = [wire.insert(7, ["1", "a", "1.00"])] * rows
    with pytest.raises(UnknownInputError, match=f"(?s){message}"):
        ours.decode([wire.begin(200, 1), *padding, *messages, *padding, wire.commit(200, 208)])


def test_a_row_outside_a_transaction_is_an_error() -> None:
    ours = decoder(Declared())
    ours.decode(session())
    with pytest.raises(UnknownInputError, match="order"):
        ours.decode([wire.insert(7, ["1", "a", None])])


# ------------------------------------------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that decodes its log."""
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


class Captured:
    """A database with a slot and a publication of all tables."""

    def __init__(self, server: PostgresServer) -> None:
        url = sqlalchemy.make_url(server.create_database())
        self.options = " ".join(f"-c {name}={value}" for name, value in SESSION.items())
        self.conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self.connection = psycopg.connect(self.conninfo, autocommit=True, options=self.options)
        self.name = f"slot_{url.database}"
        self.connection.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        self.connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.name])

    def __enter__(self) -> Captured:
        return self

    def __exit__(self, *error: object) -> None:
        active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        wait_until(lambda: not self.connection.execute(active, [self.name]).fetchone()[0], 10, "the slot to be left")
        self.connection.execute("SELECT pg_drop_replication_slot(%s)", [self.name])
        self.connection.close()

    def messages(self) -> list[bytes]:
        """All that was committed until now, as the replication protocol sends it."""
        [(head,)] = self.connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
        target = lsn_of(head)
        found: list[bytes] = []
        stream = psycopg.connect(self.conninfo, autocommit=True, options=self.options, replication="database")
        with contextlib.closing(stream):
            asked = (
                f'START_REPLICATION SLOT "{self.name}" LOGICAL 0/0 '
                "(proto_version '1', publication_names 'everything')"
            )
            stream.pgconn.send_query(asked.encode())
            assert stream.pgconn.get_result().status == psycopg.pq.ExecStatus.COPY_BOTH
            while True:
                _, data = stream.pgconn.get_copy_data(0)
                data = bytes(data)
                if data[:1] == b"w":
                    found.append(data)
                elif struct.unpack_from(">Q", data, 1)[0] >= target:
                    return found

    def decoded(self) -> tuple[list[Found], Catalog]:
        """The transactions since the last call of a slot that is new."""
        with psycopg.connect(self.conninfo, autocommit=True, options=self.options) as connection:
            catalog = Catalog(connection)
            return flat(decoder(catalog).decode(self.messages())), catalog


class Catalog:
    """Describes tables by what the server itself says of a type's text."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.connection = connection
        self.messages: list[RelationMessage] = []

    def described(self, message: RelationMessage, commit_lsn: int) -> tuple[Relation | None, None]:
        """Domains are resolved to their base."""
        self.messages.append(message)
        columns = []
        for column in message.columns:
            [(declared,)] = self.connection.execute(
                "WITH RECURSIVE base(oid, modifier) AS (SELECT %s::oid, %s::int4 UNION ALL "
                "SELECT t.typbasetype, t.typtypmod FROM base JOIN pg_type t ON t.oid = base.oid AND t.typtype = 'd') "
                "SELECT format_type(b.oid, b.modifier) FROM base b JOIN pg_type t ON t.oid = b.oid "
                "WHERE t.typtype <> 'd'",
                [column.type_oid, column.type_modifier],
            )
            columns.append(Column(column.name, arrow_type(declared), declared))
        return Relation(message.oid, Table(message.schema, message.name, tuple(columns), ())), None


def lsn_of(text: str) -> int:
    """As a number."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


@pytest.mark.own_server("postgres")
class TestServer:
    """A real server."""

    def test_every_type_is_what_the_server_says_it_is(self, server: PostgresServer) -> None:
        """As the server writes it, and for numbers in binary its own bytes."""
        with Captured(server) as captured:
            connection = captured.connection
            postgres_values.extensions(connection)
            for statement in postgres_values.MAKE:
                connection.execute(statement)
            connection.execute("CREATE SCHEMA kinds")
            kinds = list(postgres_values.kinds(connection))
            for number, kind in enumerate(kinds):
                connection.execute(f"CREATE TABLE kinds.t{number} (id serial, v {kind.declared})")
                for text in (*kind.values, *kind.beyond, None):
                    connection.execute(f"INSERT INTO kinds.t{number} (v) VALUES ({postgres_values.literal(text)})")
            found, _ = captured.decoded()
            cells: dict[str, list[tuple[Column, Any]]] = {}
            for transaction in found:
                for _, _, table, (_, cell) in transaction.entries:
                    cells.setdefault(table.name, []).append((table.columns[1], cell))
            assert len(kinds) > 200
            for number, kind in enumerate(kinds):
                result = connection.pgconn.exec_(f"SELECT v FROM kinds.t{number} ORDER BY id".encode())
                expected = [result.get_value(row, 0) for row in range(result.ntuples)]
                got = cells[f"t{number}"]
                if got[0][0].type not in (pa.float32(), pa.float64()):
                    assert [as_written(cell) for _, cell in got] == [
                        None if text is None else text.decode() for text in expected
                    ], kind.declared
                else:
                    width = got[0][0].type.bit_width // 8
                    bits = connection.execute(f"SELECT float{width}send(v) FROM kinds.t{number} ORDER BY id").fetchall()
                    packed = [None if v is None else struct.pack(">d" if width == 8 else ">f", v) for _, v in got]
                    assert packed == [cell for (cell,) in bits]

    def test_row_36_unchanged_toast_is_not_given(self, server: PostgresServer) -> None:
        with Captured(server) as captured:
            captured.connection.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text, n int)")
            captured.connection.execute("ALTER TABLE public.t ALTER v SET STORAGE EXTERNAL")
            captured.connection.execute(
                "INSERT INTO public.t SELECT g, repeat('x', 4096), 0 FROM generate_series(1, 50) g"
            )
            captured.connection.execute(
                "UPDATE public.t SET n = 1, v = CASE WHEN id % 2 = 0 THEN repeat('y', 4096) ELSE v END"
            )
            found, _ = captured.decoded()
            assert [entry[3] for entry in found[-1].entries] == [
                [n, NOT_GIVEN if n % 2 else "y" * 4096, 1] for n in range(1, 51)
            ]

    def test_row_37_a_key_change_with_toast(self, server: PostgresServer) -> None:
        with Captured(server) as captured:
            captured.connection.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text)")
            captured.connection.execute("ALTER TABLE public.t ALTER v SET STORAGE EXTERNAL")
            captured.connection.execute("INSERT INTO public.t VALUES (1, repeat('x', 4096))")
            captured.connection.execute("UPDATE public.t SET id = 2")
            captured.connection.execute("ALTER TABLE public.t REPLICA IDENTITY FULL")
            captured.connection.execute("UPDATE public.t SET id = 3")
            captured.connection.execute("DELETE FROM public.t")
            found, catalog = captured.decoded()
            long = "x" * 4096
            assert [(entry[0].letter, entry[1], entry[3]) for t in found for entry in t.entries] == [
                ("c", False, [1, long]),
                ("u", True, [1, NOT_GIVEN]),
                ("u", False, [2, NOT_GIVEN]),
                ("u", True, [2, long]),
                ("u", False, [3, long]),
                ("d", True, [3, long]),
            ]
            assert [message.replica_identity for message in catalog.messages] == ["d", "f"]

    def test_row_41_generated_columns_are_not_in_the_stream(self, server: PostgresServer) -> None:
        with Captured(server) as captured:
            captured.connection.execute(
                "CREATE TABLE public.t (id int GENERATED ALWAYS AS IDENTITY, v int, "
                "d int GENERATED ALWAYS AS (v * 2) STORED)"
            )
            captured.connection.execute("INSERT INTO public.t (v) VALUES (5)")
            found, catalog = captured.decoded()
            assert [column.name for column in catalog.messages[0].columns] == ["id", "v"]
            assert found[0].entries[0][3] == [1, 5]

    def test_row_44_ddl_in_mid_transaction(self, server: PostgresServer) -> None:
        with Captured(server) as captured:
            with captured.connection.transaction():
                captured.connection.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
                captured.connection.execute("INSERT INTO public.t VALUES (1)")
                captured.connection.execute("ALTER TABLE public.t ADD COLUMN a text DEFAULT 'd'")
                captured.connection.execute("INSERT INTO public.t VALUES (2)")
                captured.connection.execute("ALTER TABLE public.t DROP COLUMN a")
                captured.connection.execute("INSERT INTO public.t VALUES (3)")
                [(xid,)] = captured.connection.execute("SELECT txid_current()::text")
            captured.connection.execute("TRUNCATE public.t")
            found, _ = captured.decoded()
            assert [entry[3] for t in found for entry in t.entries] == [[1], [2, "d"], [3], [NOT_GIVEN]]
            assert [t.xid for t in found][:1] == [xid]


def as_written(cell: Any) -> str | None:
    """The text that the server writes for the value."""
    match cell:
        case None | str():
            return cell
        case AsText():
            return cell.text
        case bool():
            return "t" if cell else "f"
        case bytes():
            return "\\x" + cell.hex()
        case datetime():
            text = cell.replace(tzinfo=None).isoformat(" ")
            return (text.rstrip("0") if "." in text else text) + ("+00" if cell.tzinfo else "")
        case time():
            text = cell.isoformat()
            return text.rstrip("0") if "." in text else text
    if isinstance(cell, Decimal):
        return f"{cell:f}"
    return str(cell)
