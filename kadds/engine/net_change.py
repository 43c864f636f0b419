"""Net change: many changes of one table to the few steps that leave a target in the same state.

For each key only what is left at the end is sent: its deletion, or one row into which the cells given by all its
changes are merged. Applying the steps once gives what applying every change in offset order would give. All of it is
columns; only the rows of keys that change (`rekeying`) are looked at one by one.

The order of steps is Truncate, Delete, Rekey, Upsert. A truncate in the middle makes everything before it void. A key
change becomes a Rekey, so that cells which no change gives stay with their row; where the sink cannot, it becomes a
delete and an insert, for which the whole row must be known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kadds.api.change import Op
from kadds.api.connector import Delete, Rekey, Step, Truncate, Upsert
from kadds.api.errors import DataError
from kadds.engine.cells import Bools, Integers, Texts, not_given_array, take_texts, text_array
from kadds.engine.keys import check_keys, key_codes, key_rows
from kadds.engine.rekeying import NONE, Moves, follow, key_change_rows
from kadds.engine.rows import Rows


def net_change(rows: Rows, *, rekeys: bool = True) -> tuple[Step, ...]:
    """The steps for changes of one table with a key; `rekeys` says whether the sink can change keys.

    Raises DataError for a key that is NULL or not given, and for a key change of a row that is not wholly known where
    the sink cannot change keys.
    """
    steps: list[Step] = []
    truncates = np.flatnonzero(rows.ops == Op.TRUNCATE)
    if len(truncates):
        steps.append(Truncate())
        rows = rows.take(np.arange(int(truncates[-1]) + 1, len(rows)))
    if len(rows):
        steps += _Net(rows, rekeys).steps()
    return tuple(steps)


@dataclass(frozen=True, eq=False)
class _Merged:
    """Rows that are left, one per group: the last image of each, and for each cell the image that it is taken from."""

    groups: Integers
    last: Integers
    missing: Bools | None  # rows × columns: no image gives that cell
    sources: Integers | None  # rows × columns; None: every cell is taken from `last`

    def partial(self) -> Bools:
        """Which rows have cells that nobody gives."""
        return np.zeros(len(self.last), np.bool_) if self.missing is None else np.any(self.missing, axis=1)

    def take(self, chosen: Bools) -> _Merged:
        """Some of them."""
        return _Merged(
            self.groups[chosen],
            self.last[chosen],
            None if self.missing is None else self.missing[chosen],
            None if self.sources is None else self.sources[chosen],
        )


class _Net:
    def __init__(self, rows: Rows, rekeys: bool) -> None:
        self._rows = rows
        self._rekeys = rekeys
        self._codes, self._code_count = key_codes(rows)
        halves = (rows.ops == Op.UPDATE) & rows.before
        self._effective = ~halves
        check_keys(rows, self._codes, self._effective)
        self._groups, self._group_count = self._codes.copy(), self._code_count
        self._groups[halves] = NONE
        paired = np.flatnonzero(halves[:-1] & (rows.ops[1:] == Op.UPDATE) & ~rows.before[1:])
        self._groups[paired] = self._groups[paired + 1]
        self._moves = self._follow_moves()

    def _follow_moves(self) -> Moves | None:
        changed = key_change_rows(self._rows, self._codes)
        if len(changed) == 0:
            return None
        moves = follow(self._rows, self._codes, changed, self._groups, self._code_count)
        self._group_count += len(moves.origins)
        return moves

    def steps(self) -> list[Step]:
        """Delete, Rekey and Upsert, those that are needed."""
        last = np.full(self._group_count, NONE, np.int64)
        numbers = np.flatnonzero(self._effective)
        last[self._groups[numbers]] = numbers  # the last assignment to a place stays
        deletes = self._deletes()
        present = last >= 0
        alive = present.copy()
        alive[present] = self._rows.ops[last[present]] != Op.DELETE
        living = np.flatnonzero(alive)
        living = living[np.argsort(last[living], kind="stable")]
        merged = self._merge(living, last[living], deletes)
        gone = self._codes[last[np.flatnonzero(present & ~alive)]]
        fresh = merged.partial() & (deletes[merged.groups] >= 0)  # made anew: nothing of the old row may shine through
        renewed = self._codes[merged.last[fresh]]
        if self._moves is None:
            nothing = np.empty(0, np.int64)
            return self._assembled(np.concatenate([gone, renewed]), nothing, nothing, merged)
        return self._with_moves(self._moves, gone, renewed, merged)

    def _deletes(self) -> Integers:
        """For each group the number of its last delete."""
        deletes = np.full(self._group_count, NONE, np.int64)
        numbers = np.flatnonzero(self._rows.ops == Op.DELETE)
        deletes[self._groups[numbers]] = numbers
        return deletes

    def _merge(self, groups: Integers, last: Integers, deletes: Integers) -> _Merged:
        missing = self._rows.missing
        if missing is None or not missing[last].any():
            return _Merged(groups, last, None, None)
        columns = missing.shape[1]
        numbers = np.flatnonzero((self._groups >= 0) & (self._rows.ops != Op.DELETE))
        numbers = numbers[numbers > deletes[self._groups[numbers]]]
        sources = np.repeat(last[:, None], columns, axis=1)
        unknown = np.zeros((len(last), columns), np.bool_)
        for column in np.flatnonzero(np.any(missing[last], axis=0)).tolist():
            giving = numbers[~missing[numbers, column]]
            found = np.full(self._group_count, NONE, np.int64)
            found[self._groups[giving]] = giving
            source = found[groups]
            unknown[:, column] = source < 0
            sources[:, column] = np.where(source < 0, last, source)
        return _Merged(groups, last, unknown if unknown.any() else None, sources)

    def _with_moves(self, moves: Moves, gone: Integers, renewed: Integers, merged: _Merged) -> list[Step]:
        origins = np.full(self._group_count, NONE, np.int64)
        origins[: moves.first_group] = np.arange(moves.first_group)  # a group of one key stays where it is
        origins[moves.first_group :] = moves.origins
        everywhere = moves.origins[moves.origins >= 0]
        merged = merged.take(self._one_per_key(merged))
        final = self._codes[merged.last]
        origin = origins[merged.groups]
        moved = (origin >= 0) & (origin != final)
        staying = final[origin == final]
        if self._rekeys:
            old, new = origin[moved], final[moved]
        else:
            self._check_whole(merged, moved)
            old = new = np.empty(0, np.int64)
        # Whatever the sink has under a key that was left, deleted or taken over goes first, except what moves or stays.
        gone = np.concatenate([gone, everywhere, moves.deleted, new])
        gone = gone[~np.isin(gone, np.concatenate([old, staying]))]
        return self._assembled(np.concatenate([gone, renewed]), old, new, merged)

    def _one_per_key(self, merged: _Merged) -> Bools:
        """Where two rows end under one key (which no source with a key commits), the later one stands."""
        final = self._codes[merged.last]
        chosen = np.full(self._code_count, NONE, np.int64)
        chosen[final] = np.arange(len(final))  # they are sorted by their last image
        kept: Bools = chosen[final] == np.arange(len(final))
        return kept

    def _check_whole(self, merged: _Merged, moved: Bools) -> None:
        torn = np.flatnonzero(merged.partial() & moved)
        if len(torn):
            raise DataError(
                f"the change at offset {int(self._rows.offsets[merged.last[torn[0]]])} changes a key without giving "
                "every cell, and the sink cannot change keys",
                where=self._rows.table.qualified_name,
                hint="let the source log whole rows (PostgreSQL: REPLICA IDENTITY FULL), or choose another sink",
            )

    def _assembled(self, gone: Integers, old: Integers, new: Integers, merged: _Merged) -> list[Step]:
        place = np.full(self._code_count, NONE, np.int64)
        known = np.flatnonzero(self._codes >= 0)
        place[self._codes[known]] = known  # any row that carries the key
        steps: list[Step] = []
        if len(gone):
            steps.append(Delete(key_rows(self._rows, place[np.unique(gone)])))
        if len(old):
            steps.append(Rekey(key_rows(self._rows, place[old]), key_rows(self._rows, place[new])))
        if len(merged.last):
            steps.append(self._upsert(merged))
        return steps

    def _upsert(self, merged: _Merged) -> Upsert:
        rows, count = self._rows, len(merged.last)
        if merged.sources is None:
            texts = text_array(take_texts(rows.texts, merged.last, len(rows)), count)
            kept_all = count == len(rows)  # each is the last of its key, and they are in order
            return Upsert(rows.values if kept_all else rows.values.take(pa.array(merged.last)), None, texts)
        arrays = [
            rows.values.column(column).take(pa.array(merged.sources[:, column]))
            for column in range(rows.values.num_columns)
        ]
        values = pa.RecordBatch.from_arrays(arrays, schema=rows.values.schema)
        return Upsert(values, not_given_array(merged.missing), text_array(self._merged_texts(merged), count))

    def _merged_texts(self, merged: _Merged) -> Texts | None:
        """The text of a cell follows the image that the cell is taken from."""
        texts = self._rows.texts
        if texts is None or merged.sources is None:
            return None
        place = np.full(self._group_count, NONE, np.int64)
        place[merged.groups] = np.arange(len(merged.groups))
        owner = self._groups[texts.rows]
        target = np.where(owner < 0, NONE, place[owner])
        used = target >= 0
        used[used] = merged.sources[target[used], texts.columns[used]] == texts.rows[used]
        kept = texts.keep(used)
        return None if kept is None else kept.at(target[used], kept.columns)
