"""Key changes: which row is meant where a key has had more than one owner.

Only the rows whose keys take part in a key change come here, one by one, in offset order; all others are grouped by
key alone. What moves is followed as an *owner*: the row that a key meant when the batch began (`origin`, the key under
which the sink knows it), or one made within the batch (`origin` none).

Applied in order, a key means one row, and that is the rule. The exception is a transaction in which two rows carry one
key for a while (deferred or statement-level constraints: `SET id = id + 1`, a swap without a third key). There a later
change of that key may mean the row that was there first. It is taken to, inside one transaction only, where its before
image gives cells beside the key and these differ from those of the row that moved in. A before image of the key alone
means the row that moved in: only a key whose uniqueness is checked row by row is logged so (PostgreSQL takes no
deferrable index as replica identity), and such a key never has two rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from kadds.engine.cells import Integers
from kadds.engine.rows import Rows

NONE = -1


@dataclass(slots=True, eq=False)
class Owner:
    """A row on its way through keys. `group` numbers it; `images` are the numbers of its after images so far."""

    group: int
    origin: int = NONE
    images: list[int] = field(default_factory=list)
    arrived_in: int = NONE  # the transaction in which it took its present key from another


@dataclass(frozen=True, slots=True)
class Moves:
    """Groups from `first_group` on: `origins[group - first_group]` is the key's number in the sink, NONE if new there.

    `deleted` are the keys that some row was deleted from.
    """

    first_group: int
    origins: Integers
    deleted: Integers


def key_change_rows(rows: Rows, codes: Integers) -> Integers:
    """The numbers of the after images of updates that change the key."""
    update = rows.ops == ord("u")
    pair = update[:-1] & rows.before[:-1] & update[1:] & ~rows.before[1:]
    changed = pair & (codes[:-1] >= 0) & (codes[:-1] != codes[1:])
    return np.flatnonzero(changed) + 1


def follow(rows: Rows, codes: Integers, changed: Integers, groups: Integers, first_group: int) -> Moves:
    """Give the rows that take part in key changes their owner's group (in `groups`)."""
    involved = np.unique(np.concatenate([codes[changed], codes[changed - 1]]))
    effective = ~((rows.ops == ord("u")) & rows.before)
    numbers = np.flatnonzero(effective & np.isin(codes, involved))
    walk = _Walk(rows, codes, first_group)
    walk.run(numbers.tolist(), frozenset(changed.tolist()), groups)
    origins = np.array([owner.origin for owner in walk.owners], np.int64)
    return Moves(first_group, origins, np.array(sorted(walk.deleted), np.int64))


class _Walk:
    def __init__(self, rows: Rows, codes: Integers, first_group: int) -> None:
        self._rows = rows
        self._codes = codes
        self._first_group = first_group
        self.owners: list[Owner] = []
        self.deleted: set[int] = set()
        self._owners_of: dict[int, list[Owner]] = {}
        self._known: set[int] = set()  # keys whose owner at the beginning of the batch has been met
        keys = set(rows.table.key_indexes)
        self._other_columns = [index for index in range(len(rows.table.columns)) if index not in keys]
        self._text_of: dict[tuple[int, int], str] | None = None

    def run(self, numbers: Iterable[int], changed: frozenset[int], groups: Integers) -> None:
        ops, before, codes, transactions = self._rows.ops, self._rows.before, self._codes, self._rows.transactions
        for row in numbers:
            code, op = int(codes[row]), int(ops[row])
            paired = op == ord("u") and row > 0 and ops[row - 1] == op and bool(before[row - 1])
            if row in changed:
                old = int(codes[row - 1])
                owner = self._pick(old, row, row - 1)
                self._owners_of[old].remove(owner)
                owner.arrived_in = int(transactions[row])
                self._owners_of.setdefault(code, []).append(owner)
            elif op == ord("d"):
                owner = self._pick(code, row, row)
                self._owners_of[code].remove(owner)
                self.deleted.add(code)
            elif op == ord("u"):
                owner = self._pick(code, row, row - 1 if paired else None)
            else:  # a create or a read says that the key has one owner: the last that took it
                there = self._owners_of.get(code)
                owner = there[-1] if there else self._first_owner(code)
            owner.images.append(row)
            groups[row] = owner.group
            if paired:
                groups[row - 1] = owner.group

    def _new(self, code: int, origin: int) -> Owner:
        owner = Owner(self._first_group + len(self.owners), origin)
        self.owners.append(owner)
        self._owners_of.setdefault(code, []).append(owner)
        return owner

    def _first_owner(self, code: int) -> Owner:
        """The owner of a key that nobody in the batch owns now."""
        met = code in self._known
        self._known.add(code)
        return self._new(code, NONE if met else code)

    def _pick(self, code: int, row: int, before_row: int | None) -> Owner:
        there = self._owners_of.get(code)
        if not there:
            return self._first_owner(code)
        if len(there) > 1:
            same = [owner for owner in there if before_row is not None and self._same(owner, before_row)]
            return (same or there)[0]
        newcomer = there[0]
        contested = newcomer.arrived_in == int(self._rows.transactions[row]) and code not in self._known
        if contested and before_row is not None and self._same(newcomer, before_row) is False:
            self._known.add(code)
            first = self._new(code, code)
            there.remove(first)
            there.insert(0, first)
            return first
        return newcomer

    def _same(self, owner: Owner, row: int) -> bool | None:
        """Whether the cells that `row` gives, the key's aside, are the owner's; None where there is none to compare."""
        compared = False
        for column in self._other_columns:
            if not self._given(row, column):
                continue
            image = next((number for number in reversed(owner.images) if self._given(number, column)), None)
            if image is None:
                continue
            compared = True
            if not self._equal(image, row, column):
                return False
        return True if compared else None

    def _given(self, row: int, column: int) -> bool:
        return self._rows.missing is None or not self._rows.missing[row, column]

    def _equal(self, one: int, other: int, column: int) -> bool:
        if self._text(one, column) != self._text(other, column):
            return False
        values = self._rows.values.column(column)
        first, second = values[one].as_py(), values[other].as_py()
        return bool(first == second or (first != first and second != second))

    def _text(self, row: int, column: int) -> str | None:
        texts = self._rows.texts
        if texts is None:
            return None
        if self._text_of is None:
            places = zip(texts.rows.tolist(), texts.columns.tolist(), strict=True)
            self._text_of = dict(zip(places, texts.texts.to_pylist(), strict=True))
        return self._text_of.get((row, column))
