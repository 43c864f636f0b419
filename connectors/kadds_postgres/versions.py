"""The tables of one session of the stream: which version of a table the rows of a message belong to.

A Relation message holds from its place on. The server repeats it after any invalidation of its caches, mostly without
a change; such a repetition is recognised by its bytes. Versions have numbers, so that a row's is an entry in an array.

Tables of one shape are decoded together and share a ChangeBatch; a version that has been replaced shares with none, so
that no batch carries two versions of one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.errors import UnknownInputError
from kadds.api.schema import TableSet
from kadds_postgres.relation import Relation, RelationMessage, Relations
from kadds_postgres.wire import Integers

NOT_CAPTURED = -1
_SETS_MAX = 1024


@dataclass(frozen=True, eq=False)
class Version:
    """One Relation message: what its rows become, None where the table is not captured."""

    relation: Relation | None
    in_key: npt.NDArray[np.bool_]  # a column each
    tables: tuple[TableSet, ...]  # the one table


@dataclass(frozen=True)
class Change:
    """From message `at` of a block on, rows of the table `oid` have this version."""

    at: int
    oid: int
    version: int


class Versions:
    """All versions seen in this session, by number, and which is each table's last."""

    def __init__(self, relations: Relations) -> None:
        self._relations = relations
        self._messages: dict[int, bytes] = {}
        self._shape_numbers: dict[Any, int] = {}
        self._next_shape = 0
        self._sets: dict[bytes, TableSet] = {}
        self._latest: dict[int, int] = {}
        self._replaced: dict[int, int] = {}  # by number: the version of the same table before it
        self.all: list[Version] = []
        self.shapes: Integers = np.zeros(0, np.int64)  # of each version; NOT_CAPTURED
        self.captured_from: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)  # of each version

    def describe(self, at: int, raw: bytes, commit_lsn: int) -> tuple[Change, Mapping[str, Any] | None] | None:
        """What the Relation message `raw` at place `at` changes, with the facts of a control record; None: nothing."""
        oid = int.from_bytes(raw[1:5], "big")
        if self._messages.get(oid) == raw:
            return None
        message = RelationMessage.parse(raw)
        relation, facts = self._relations.described(message, commit_lsn)
        if relation is not None:
            if not message.columns:
                raise UnknownInputError(
                    "a table without columns has no rows that could be kept",
                    where=relation.table.qualified_name,
                    hint="leave the table out",
                )
            names = [column.name for column in message.columns]
            if [column.name for column in relation.table.columns] != names:
                raise UnknownInputError(
                    f"the stream has the columns {', '.join(names)}, the table as captured "
                    f"{', '.join(column.name for column in relation.table.columns)}",
                    where=relation.table.qualified_name,
                )
        number = self._add(oid, relation, np.array([column.in_key for column in message.columns], np.bool_))
        if relation is not None and commit_lsn < relation.captured_from:
            self._messages.pop(oid, None)  # the same message counts once rows do
        else:
            self._messages[oid] = raw
        return Change(at, oid, number), facts

    def _add(self, oid: int, relation: Relation | None, in_key: npt.NDArray[np.bool_]) -> int:
        number = len(self.all)
        replaced = self._latest.get(oid)
        if replaced is not None:
            self._replaced[number] = replaced
            if self.shapes[replaced] != NOT_CAPTURED:
                self.shapes[replaced] = self._new_shape()
        shape, captured_from = NOT_CAPTURED, 0
        if relation is not None:
            known = self._shape_numbers.get(relation.table.shape)
            if known is None:
                known = self._shape_numbers[relation.table.shape] = self._new_shape()
            shape, captured_from = known, relation.captured_from
        self.all.append(Version(relation, in_key, (TableSet.of(relation.table),) if relation is not None else ()))
        self._latest[oid] = number
        if number >= len(self.shapes):
            more = max(64, number)
            self.shapes = np.concatenate([self.shapes, np.full(more, NOT_CAPTURED)])
            self.captured_from = np.concatenate([self.captured_from, np.zeros(more, np.uint64)])
        self.shapes[number] = shape
        self.captured_from[number] = captured_from
        return number

    def _new_shape(self) -> int:
        self._next_shape += 1
        return self._next_shape - 1

    def of_rows(self, oids: npt.NDArray[np.int64], at: Integers, changes: Sequence[Change]) -> Integers:
        """The version of each row, given its table and its place; `changes` are those of the same block, in order."""
        if len(oids) == 0:
            return np.zeros(0, np.int64)
        if not changes and oids[0] == oids[-1] and (oids == oids[0]).all():
            return np.full(len(oids), self.latest_of(int(oids[0])), np.int64)
        found, first, inverse = np.unique(oids, return_index=True, return_inverse=True)
        by_oid: dict[int, list[Change]] = {}
        for change in changes:
            by_oid.setdefault(change.oid, []).append(change)
        numbers = np.empty(len(found), np.int64)
        late: list[tuple[int, Change]] = []
        for index, oid in enumerate(found.tolist()):
            changed = by_oid.get(oid)
            if changed is None:
                numbers[index] = self.latest_of(oid)
            elif changed[0].at < at[first[index]]:
                numbers[index] = changed[0].version
                late += [(index, change) for change in changed[1:]]
            else:
                numbers[index] = self._before(changed[0])
                late += [(index, change) for change in changed]
        versions = numbers[inverse]
        for index, change in late:
            begin = int(np.searchsorted(at, change.at))
            versions[begin:][inverse[begin:] == index] = change.version
        return versions

    def latest_of(self, oid: int) -> int:
        """The version of the table as of the last Relation message; UnknownInputError where none has come."""
        number = self._latest.get(oid)
        if number is None:
            raise UnknownInputError(
                f"a row of the table with oid {oid} came before its Relation message", where="pgoutput"
            )
        return number

    def _before(self, change: Change) -> int:
        """The version that `change` replaced."""
        number = self._replaced.get(change.version)
        if number is None:
            raise UnknownInputError(
                f"a row of the table with oid {change.oid} came before its Relation message", where="pgoutput"
            )
        return number

    def name(self, version: int) -> str:
        """The table's qualified name."""
        relation = self.all[version].relation
        return relation.table.qualified_name if relation is not None else ""

    def tables_of(self, versions: Integers) -> tuple[TableSet, pa.Array | None]:
        """The tables of rows of these versions, all of one shape, and each row's number in it; None for one table.

        The same object for the same tables.
        """
        if (versions == versions[0]).all():
            return self.all[versions[0]].tables[0], None
        found, numbers = np.unique(versions, return_inverse=True)
        key = found.tobytes()
        known = self._sets.get(key)
        if known is None:
            if len(self._sets) >= _SETS_MAX:
                self._sets.clear()
            tables = [table for version in found.tolist() for table in self.all[version].tables[0].tables]
            known = self._sets[key] = TableSet.of(tables)
        return known, pa.array(numbers.astype(np.int32))
