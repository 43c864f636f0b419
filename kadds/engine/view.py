"""Views: the columns that a subscription takes of a stream, where changes of the source's columns are ignored.

A view stands between the rows of the log and the contract. Usually it is whole and changes nothing. Otherwise it has
the columns as the target knows them, each with the source's column that fills it:

* a column that was added and ignored is left out;
* one that was dropped and ignored stays, and nothing fills it: in a history it is not given; else it is NULL in a row
  that was made or read, and not given in one that was changed, so that the target keeps what it has;
* one that was renamed and ignored stays under its old name;
* one that was retyped or widened and ignored keeps its type; a value that is not the same in it stops the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from kadds.api.change import Op
from kadds.api.connector import SchemaChange
from kadds.api.errors import DataError, SchemaMismatchError
from kadds.api.schema import Column, Table, type_text
from kadds.engine.cells import Texts
from kadds.engine.rows import Rows
from kadds.engine.schema_change import Change, Reaction

_Filled = tuple[Column, str | None]


@dataclass(frozen=True)
class View:
    """`filled`: each column with the name of the source's column that fills it; None: all of them, as they are."""

    filled: tuple[_Filled, ...] | None = None

    def to_json(self) -> list[list[Any]] | None:
        """JSON from which `from_json` makes the same view."""
        return None if self.filled is None else [[column.to_json(), source] for column, source in self.filled]

    @classmethod
    def from_json(cls, plain: Sequence[Sequence[Any]] | None) -> View:
        """What `to_json` wrote."""
        if plain is None:
            return cls()
        return cls(tuple((Column.from_json(column), source) for column, source in plain))

    def takes(self, column: str) -> bool:
        """Whether the source's column fills one of the view."""
        return self.filled is None or any(source == column for _, source in self.filled)

    def table(self, source: Table) -> Table:
        """The source's table as the contract sees it; SchemaMismatchError where a column of its key is left out."""
        if self.filled is None:
            return source
        names = {filler: column.name for column, filler in self.filled}
        if lost := [name for name in source.key if name not in names]:
            raise SchemaMismatchError(
                f"the key has column {lost[0]}, which was added and ignored",
                where=source.qualified_name,
                hint="give the table another target, or take it out of the subscription",
            )
        columns, key = tuple(column for column, _ in self.filled), tuple(names[name] for name in source.key)
        return replace(source, columns=columns, key=key)

    def after(self, old: Sequence[Column], new: Table, decided: Iterable[tuple[Change, Reaction]]) -> View:
        """The view of the next version; `old` are the source's columns before it, `decided` all that has changed."""
        decided = tuple(decided)
        filled = list(self.filled if self.filled is not None else ((column, column.name) for column in old))
        chosen = {
            kind: [(one, how is Reaction.IGNORE) for one, how in decided if one.kind is kind] for kind in SchemaChange
        }
        filled = _dropped(filled, dict(_by_old(chosen[SchemaChange.DROP])))
        filled = _renamed(filled, dict(_by_old(chosen[SchemaChange.RENAME])))
        retyped = [*chosen[SchemaChange.WIDEN], *chosen[SchemaChange.RETYPE]]
        types = {one.new.name: one.new for one, ignored in retyped if one.new is not None and not ignored}
        filled = [(replace(types[s], name=column.name), s) if s in types else (column, s) for column, s in filled]
        filled += [(one.new, one.new.name) for one, ignored in chosen[SchemaChange.ADD] if one.new and not ignored]
        return View(_in_order(_one_of_each_name(filled, new), new)).simple(new)

    def simple(self, table: Table) -> View:
        """The whole view, where that is what it is."""
        whole = tuple((column, column.name) for column in table.columns)
        return View() if self.filled == whole else self

    def apply(self, rows: Rows, *, history: bool) -> Rows:
        """The rows with the columns of the view; DataError for a value that an ignored type does not have."""
        if self.filled is None:
            return rows
        table, count = self.table(rows.table), len(rows)
        place = {column.name: number for number, column in enumerate(rows.table.columns)}
        made = (rows.ops == Op.CREATE) | (rows.ops == Op.READ)
        arrays, missing = [], np.zeros((count, len(table.columns)), np.bool_)
        moved = np.full(len(place), -1, np.int64)
        for number, (column, source) in enumerate(self.filled):
            if source is None:
                arrays.append(pa.nulls(count, column.type))
                missing[:, number] = True if history else ~made
                continue
            at = place[source]
            moved[at] = number
            arrays.append(_as(column, rows.values.column(at), rows.table))
            if rows.missing is not None:
                missing[:, number] = rows.missing[:, at]
        texts = rows.texts
        if texts is not None:
            numbers = moved[texts.columns]
            texts = Texts(texts.rows, numbers, texts.texts).keep(numbers >= 0)
        values = pa.RecordBatch.from_arrays(arrays, schema=table.arrow_schema)
        return replace(rows, table=table, values=values, missing=missing if missing.any() else None, texts=texts)


def _by_old(changes: Iterable[tuple[Change, bool]]) -> Iterator[tuple[str, tuple[Change, bool]]]:
    for one, ignored in changes:
        assert one.old is not None  # noqa: S101 - only an added column was not there before
        yield one.old.name, (one, ignored)


def _dropped(filled: Iterable[_Filled], dropped: Mapping[str, tuple[Change, bool]]) -> list[_Filled]:
    found: list[_Filled] = []
    for column, source in filled:
        if source is None or source not in dropped:
            found.append((column, source))
        elif dropped[source][1]:
            found.append((replace(column, nullable=True), None))
    return found


def _renamed(filled: Iterable[_Filled], renamed: Mapping[str, tuple[Change, bool]]) -> list[_Filled]:
    found: list[_Filled] = []
    for column, source in filled:
        change, ignored = renamed.get(source or "", (None, False))
        if change is None or change.new is None:
            found.append((column, source))
        else:
            found.append((column if ignored else replace(column, name=change.new.name), change.new.name))
    return found


def _one_of_each_name(filled: Sequence[_Filled], new: Table) -> list[_Filled]:
    """A column that nothing fills any more gives way to one of its name; two that are filled cannot stand together."""
    names = [column.name for column, source in filled if source is not None]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SchemaMismatchError(
            f"a column {twice[0]} has come, and another one is still delivered under that name",
            where=new.qualified_name,
            hint="decide `ignore`, or give the table another target",
        )
    return [(column, source) for column, source in filled if source is not None or column.name not in names]


def _in_order(filled: Iterable[_Filled], new: Table) -> tuple[_Filled, ...]:
    """The order of the source's columns, what nothing fills behind; what has not changed as the source has it now."""
    place = {column.name: number for number, column in enumerate(new.columns)}
    fresh: list[_Filled] = []
    for column, source in filled:
        now = None if source is None else new.columns[place[source]]
        same = now is not None and now.type == column.type and now.name == column.name
        fresh.append((now, source) if same and now is not None else (column, source))
    return tuple(sorted(fresh, key=lambda one: len(place) if one[1] is None else place[one[1]]))


def _as(column: Column, values: pa.Array, table: Table) -> pa.Array:
    """Values of a column whose new type is ignored, in the type that it had."""
    if values.type == column.type:
        return values
    try:
        cast = values.cast(column.type)
        same = cast.cast(values.type).equals(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        same = False
    if not same:
        raise DataError(
            f"column {column.name} is now {type_text(values.type)}, its change is ignored, and a value of it is not "
            f"the same as {type_text(column.type)}",
            where=table.qualified_name,
            hint="give the table another target, or take it out of the subscription",
        )
    return cast
