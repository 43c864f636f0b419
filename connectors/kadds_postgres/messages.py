"""The messages of a block as changes: rows of one shape together, each with the ordinal of its place in the stream.

Formats: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.change import ChangeBatch, Control, ControlKind, Op
from kadds.api.errors import UnknownInputError
from kadds_postgres.cells import typed_columns
from kadds_postgres.facts import commit_lsns
from kadds_postgres.few import Few, decode_few
from kadds_postgres.relation import Relations
from kadds_postgres.tuples import NOT_GIVEN, Cells, walk
from kadds_postgres.versions import NOT_CAPTURED, Change, Versions
from kadds_postgres.wire import Block, Integers

BEGIN, COMMIT = b"BC"
_INSERT, _UPDATE, _DELETE, _RELATION, _TRUNCATE = b"IUDRT"
_NEW, _KEY, _OLD = b"NKO"  # what stands before TupleData: the new row, the old one's key, the old one

_UNKNOWN, _OUTSIDE, _ORIGIN_CLASS, _SPECIAL, _ROW = range(5)  # from _SPECIAL on: only inside a transaction
_CLASSES = np.full(256, _UNKNOWN, np.uint8)
_CLASSES[list(b"BCMY")] = _OUTSIDE
_CLASSES[list(b"O")] = _ORIGIN_CLASS
_CLASSES[list(b"RT")] = _SPECIAL
_CLASSES[list(b"IUD")] = _ROW
_OPS = np.zeros(256, np.uint8)
_OPS[[_INSERT, _UPDATE, _DELETE, _TRUNCATE]] = [Op.CREATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE]


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the messages of a block say; ordinals count from 0."""

    changes: tuple[ChangeBatch, ...]
    controls: tuple[Control, ...]
    totals: Integers  # for each message: how many ordinals are taken by it and those before
    origins: dict[int, str]  # by the number of the transaction in the block, that in which it begins included


@dataclass
class _Specials:
    """What messages other than rows say; places are numbers of messages in the block."""

    changes: list[Change] = field(default_factory=list)
    controls: list[tuple[int, Control]] = field(default_factory=list)
    truncated: list[tuple[int, int]] = field(default_factory=list)  # place, version
    origins: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Messages that are rows of captured tables: their places in the block, versions, shapes, and what they are.

    `tags` are the bytes before the first TupleData, 0 for a truncate, which has none. `pairs`: an update with an old
    tuple, which makes two rows."""

    at: Integers
    versions: Integers
    shapes: Integers
    kinds: npt.NDArray[np.uint8]
    tags: npt.NDArray[np.uint8]
    pairs: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.at)

    def take(self, which: npt.NDArray[np.bool_] | Integers) -> _Rows:
        """Those rows."""
        return _Rows(
            self.at[which],
            self.versions[which],
            self.shapes[which],
            self.kinds[which],
            self.tags[which],
            self.pairs[which],
        )

    def by_shape(self) -> list[Integers]:
        """The rows of each shape, in the order of the stream."""
        if len(self) == 0:
            return []
        if (self.shapes == self.shapes[0]).all():
            return [np.arange(len(self))]
        order = np.argsort(self.shapes, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.shapes[order])) + 1)


class MessageDecoder:
    """Decodes block after block of one session."""

    def __init__(self, relations: Relations) -> None:
        self._versions = Versions(relations)

    def few(self, messages: Sequence[bytes]) -> Few | None:
        """The changes of few plain messages, whole transactions; None where they are not such."""
        return decode_few(messages, self._versions)

    def decode(self, block: Block, open_lsn: int | None) -> Decoded:
        """The changes of all messages; `open_lsn` is the commit's LSN of the transaction in which the block begins."""
        classes = _CLASSES[block.kinds]
        begins = block.kinds == BEGIN
        number = begins.cumsum()  # of the transaction, counted from 1, or from 0 where the block begins inside one
        _check_order(block, classes, number, open_lsn is not None)
        lsns = np.concatenate([np.array([open_lsn or 0], np.uint64), commit_lsns(block, np.flatnonzero(begins))])
        specials = self._specials(block, classes, number, lsns)
        rows = self._rows(block, classes, specials)
        rows = self._captured(rows, lsns, number)

        counts = np.zeros(len(block), np.int64)
        if specials.truncated:
            np.add.at(counts, rows.at, 1)
        else:
            counts[rows.at] = 1
        counts[rows.at[rows.pairs]] = 2
        for at, _ in specials.controls:
            counts[at] = 1
        totals = counts.cumsum()
        first = totals - counts
        controls = tuple(replace(control, ordinal=int(first[at])) for at, control in specials.controls)
        ordinals = first[rows.at]
        if specials.truncated:  # the tables of one message, one behind the other
            ordinals += np.arange(len(rows)) - np.searchsorted(rows.at, rows.at)
        changes = tuple(self._batch(block, rows.take(part), ordinals[part]) for part in rows.by_shape())
        return Decoded(changes, controls, totals, specials.origins)

    def _specials(
        self, block: Block, classes: npt.NDArray[np.uint8], number: Integers, lsns: npt.NDArray[np.uint64]
    ) -> _Specials:
        found = _Specials()
        for at in np.flatnonzero((classes == _SPECIAL) | (classes == _ORIGIN_CLASS)).tolist():
            message = block.message(at)
            if message[0] == _RELATION:
                described = self._versions.describe(at, message, int(lsns[number[at]]))
                if described is None:
                    continue
                change, facts = described
                found.changes.append(change)
                relation = self._versions.all[change.version].relation
                if relation is not None and facts is not None:
                    found.controls.append((at, Control(ControlKind.SCHEMA, 0, relation.table, facts)))
            elif message[0] == _TRUNCATE:
                (count,) = struct.unpack_from(">I", message, 1)
                for oid in struct.unpack_from(f">{count}I", message, 6):
                    found.truncated.append((at, self._versions.latest_of(oid)))
            else:
                found.origins[int(number[at])] = message[9:-1].decode()
        return found

    def _rows(self, block: Block, classes: npt.NDArray[np.uint8], specials: _Specials) -> _Rows:
        at = np.flatnonzero(classes == _ROW)
        starts = block.starts[at]
        kinds, tags = block.kinds[at], block.octets[starts + 5]
        new, old = tags == _NEW, (tags == _KEY) | (tags == _OLD)
        fits = np.where(kinds == _INSERT, new, np.where(kinds == _DELETE, old, new | old))
        if not fits.all():
            wrong = block.message(int(at[np.argmin(fits)]))
            raise UnknownInputError(
                f"a message {chr(wrong[0])!r} has a row of kind {chr(wrong[5])!r}", where="pgoutput"
            )
        versions = self._versions.of_rows(block.unsigned32[starts + 1], at, specials.changes)
        if specials.truncated:
            places, truncated = np.array(specials.truncated, np.int64).T
            order = np.argsort(np.concatenate([at, places]), kind="stable")
            at, versions = np.concatenate([at, places])[order], np.concatenate([versions, truncated])[order]
            kinds = block.kinds[at]
            tags = np.where(kinds == _TRUNCATE, 0, block.octets[block.starts[at] + 5]).astype(np.uint8)
        pairs = (kinds == _UPDATE) & (tags != _NEW)
        return _Rows(at, versions, self._versions.shapes[versions], kinds, tags, pairs)

    def _captured(self, rows: _Rows, lsns: npt.NDArray[np.uint64], number: Integers) -> _Rows:
        """The rows of captured tables, but for those that are in their table's snapshot already."""
        captured = rows.shapes != NOT_CAPTURED
        captured_from = self._versions.captured_from[rows.versions]
        if captured_from.any():
            captured &= lsns[number[rows.at]] >= captured_from
        return rows if captured.all() else rows.take(captured)

    def _batch(self, block: Block, rows: _Rows, ordinals: Integers) -> ChangeBatch:
        """Rows of one shape; `ordinals` are those of the first row of each."""
        with_tuple, pairs = np.flatnonzero(rows.tags), np.flatnonzero(rows.pairs)
        cells, ends = self._cells(block, rows, with_tuple)
        owners, before = with_tuple, (rows.pairs | (rows.kinds == _DELETE))[with_tuple]
        if len(pairs) or len(with_tuple) < len(rows):
            places = np.searchsorted(with_tuple, pairs)
            new, ends[places] = self._new_cells(block, rows.tags[pairs], ends[places], cells, places)
            truncates = np.flatnonzero(rows.tags == 0)
            owners = np.concatenate([with_tuple, pairs, truncates])
            ordinals = np.concatenate([ordinals[with_tuple], ordinals[pairs] + 1, ordinals[truncates]])
            before = np.concatenate([before, np.zeros(len(pairs) + len(truncates), np.bool_)])
            order = np.argsort(ordinals)
            cells = Cells.joined([cells, new, Cells.not_given(len(cells.kinds), len(truncates))], order)
            owners, ordinals, before = owners[order], ordinals[order], before[order]
        if (ends != block.ends[rows.at[with_tuple]]).any():
            raise UnknownInputError("a row does not end where its message ends", where="pgoutput")

        versions = rows.versions[owners]
        tables, table_numbers = self._versions.tables_of(versions)
        values, as_text = typed_columns(
            tables.tables[0].columns, cells.texts(block.data), lambda row: self._versions.name(int(versions[row]))
        )
        return ChangeBatch(
            tables,
            pa.array(ordinals.astype(np.uint32)),
            pa.array(_OPS[rows.kinds[owners]]),
            pa.RecordBatch.from_arrays(values, schema=tables.tables[0].arrow_schema),
            table_numbers,
            pa.array(before) if before.any() else None,
            cells.not_given_array(),
            as_text,
        )

    def _cells(self, block: Block, rows: _Rows, with_tuple: Integers) -> tuple[Cells, Integers]:
        """The first TupleData of each row that has one, and where it ends; of a key (`K`) the other columns are not
        given, though they come as NULL."""
        in_key = self._versions.all[rows.versions[0]].in_key
        cells, ends = walk(block, block.starts[rows.at[with_tuple]] + 6, len(in_key))
        keyed = np.flatnonzero(rows.tags[with_tuple] == _KEY)
        if len(keyed):
            keys = np.stack(
                [self._versions.all[version].in_key for version in rows.versions[with_tuple[keyed]].tolist()]
            )
            cells.kinds[:, keyed] = np.where(keys.T, cells.kinds[:, keyed], NOT_GIVEN)
        return cells, ends

    def _new_cells(
        self, block: Block, tags: npt.NDArray[np.uint8], ends: Integers, old: Cells, places: Integers
    ) -> tuple[Cells, Integers]:
        """The second TupleData of updates, behind the `ends` of the first, which are `old[places]`, and their ends.

        A cell that has not changed is filled from the old row, where that is whole.
        """
        if (block.octets[ends] != _NEW).any():
            raise UnknownInputError("an update has no new row behind the old one", where="pgoutput")
        new, ends = walk(block, ends + 1, len(old.kinds))
        whole = np.flatnonzero(tags == _OLD)
        new.fill_from(whole, old, places[whole])
        return new, ends


def _check_order(block: Block, classes: npt.NDArray[np.uint8], number: Integers, begins_inside: bool) -> None:
    """UnknownInputError unless every kind is known, Begin and Commit take turns, and rows stand between them."""
    if not classes.all():
        unknown = chr(block.kinds[np.argmin(classes)])
        raise UnknownInputError(
            f"pgoutput sent a message of kind {unknown!r}, which this version does not understand",
            where="pgoutput",
            hint="an option of the publication or the slot asks for what Kadds did not: streaming, two-phase, binary",
        )
    depth = number - (block.kinds == COMMIT).cumsum() + begins_inside
    if ((depth < 0) | (depth > 1) | ((depth == 0) & (classes >= _SPECIAL))).any():
        raise UnknownInputError("Begin, Commit and rows of pgoutput do not come in their order", where="pgoutput")
