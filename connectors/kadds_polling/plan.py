"""What a table's settings mean for the database as it is now: what is read, by which columns, and what is wrong.

The same rules give the findings of `check` and the refusal of a poll, so that the two cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import Op
from kadds.api.connector import Finding, Level
from kadds.api.errors import ConfigurationError, DataError, UnknownInputError
from kadds.api.schema import Column, Table
from kadds_polling.settings import ChangeTable, PollingTableSettings
from kadds_polling.watermark import Axis

_OPS = {"c": Op.CREATE, "u": Op.UPDATE, "d": Op.DELETE}
_USUAL_OPS = {
    "i": Op.CREATE, "c": Op.CREATE, "insert": Op.CREATE, "create": Op.CREATE,
    "u": Op.UPDATE, "update": Op.UPDATE,
    "d": Op.DELETE, "delete": Op.DELETE,
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How one table is polled: `table` is what goes into the log, `relation` what is read."""

    table: Table
    relation: Table
    axes: tuple[Axis, ...]
    change: ChangeTable | None

    @property
    def columns(self) -> tuple[Column, ...]:
        """What is read, in order: the table's columns, then those of the change table that only say what happened."""
        extra = [] if self.change is None else [self.change.sequence, self.change.op]
        names = [*(column.name for column in self.table.columns), *extra]
        return tuple(self.relation.column(name) for name in names)

    def ops(self, codes: pa.Array | None, new: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> pa.Array:
        """The ops (uint8): by the change table's codes; by a time alone update, by a rising number alone create, late
        ones too; by both create where the number is `new`."""
        if self.change is not None:
            return ops_of(codes, self.change, self.table.qualified_name)
        if len(self.axes) == 1:
            new = np.full(len(new), not self.axes[0].time)
        return pa.array(np.where(new, int(Op.CREATE), int(Op.UPDATE)).astype(np.uint8))


def ops_of(codes: pa.Array, change: ChangeTable, where: str) -> pa.Array:
    """The ops (uint8) of a change table's codes; UnknownInputError names a code that has no meaning."""
    encoded = pc.utf8_rtrim_whitespace(codes.cast(pa.string())).dictionary_encode()
    if encoded.null_count:
        raise UnknownInputError(f"{change.table} has a change without an operation ({change.op} is NULL)", where=where)
    meanings = [_op_of(code, change, where) for code in encoded.dictionary.to_pylist()]
    return pa.array(meanings, pa.uint8()).take(encoded.indices)


def _op_of(code: str, change: ChangeTable, where: str) -> int:
    if change.ops is not None:
        letter = change.ops.get(code)
        op = None if letter is None else _OPS[letter]
    else:
        op = _USUAL_OPS.get(code.lower())
    if op is None:
        raise UnknownInputError(
            f"{change.table} has an operation {code!r} in column {change.op}, whose meaning is not known",
            where=where,
            hint="say in `change_table.ops` which of c, u, d it is",
        )
    return int(op)


def change_table_place(table: Table, change: ChangeTable) -> tuple[str | None, str]:
    """Schema and name of a change table; without a schema it is that of the table it serves."""
    schema, dot, name = change.table.rpartition(".")
    return (schema, name) if dot and table.schema is not None else (table.schema, change.table)


def captured_table(base: Table, settings: PollingTableSettings, relation: Table | None) -> Table:
    """What goes into the log for `base`, read from `relation` (itself, or its change table if that is there).

    With a change table: the columns of `base` that the change table has, typed as there; its others where it has none.
    """
    columns = base.columns
    change = settings.change_table
    if change is not None and relation is not None:
        theirs = {c.name: c for c in relation.columns if c.name not in (change.sequence, change.op)}
        ours = {c.name: c.attribute for c in base.columns}
        common = [name for name in ours if name in theirs] or list(theirs)
        columns = tuple(replace(theirs[name], attribute=ours.get(name), generated=False) for name in common)
    names = {column.name for column in columns}
    key = settings.key or base.key
    return replace(base, columns=columns, key=key if names.issuperset(key) else ())


def problems(
    base: Table, settings: PollingTableSettings, relation: Table | None, *, text_times: bool
) -> Iterator[Finding]:
    """What forbids polling, as findings of level error."""
    where = base.qualified_name
    if relation is None:
        change = settings.change_table
        name = change.table if change else where
        yield _error(where, f"there is no table {name}, or this user may not see it", "check name and privileges")
        return
    if settings.key and (missing := [n for n in settings.key if n not in _names(relation)]):
        yield _error(
            where,
            f"key names columns that {relation.qualified_name} does not have: {', '.join(missing)}",
            "correct `key`",
        )
    elif missing := [n for n in base.key if n not in _names(relation)]:
        yield _error(
            where,
            f"{relation.qualified_name} lacks key columns of the table: {', '.join(missing)}",
            "add them to the change table, or set `key`",
        )
    change = settings.change_table
    if change is not None:
        yield from _column_problems(where, relation, change.op, "change_table.op")
        yield from _axis_problems(where, relation, change.sequence, "change_table.sequence", False, text_times)
    if settings.incrementing is not None:
        yield from _axis_problems(where, relation, settings.incrementing, "incrementing", False, text_times)
    if settings.timestamp is not None:
        yield from _axis_problems(where, relation, settings.timestamp, "timestamp", True, text_times)


def _names(table: Table) -> set[str]:
    return {column.name for column in table.columns}


def _error(where: str, message: str, hint: str) -> Finding:
    return Finding(Level.ERROR, where, message, hint)


def _column_problems(where: str, relation: Table, name: str, setting: str) -> Iterator[Finding]:
    if name not in _names(relation):
        yield _error(
            where,
            f"{relation.qualified_name} has no column {name}",
            f"correct `{setting}`; it has {', '.join(column.name for column in relation.columns)}",
        )


def _axis_problems(
    where: str, relation: Table, name: str, setting: str, time: bool, text_times: bool
) -> Iterator[Finding]:
    if name not in _names(relation):
        yield from _column_problems(where, relation, name, setting)
        return
    column = relation.column(name)
    declared = column.declared or str(column.type)
    if pa.types.is_floating(column.type):
        yield _error(
            where,
            f"column {name} is {declared}: floats round, so ties and gaps cannot be told",
            f"use an exact column for `{setting}`",
        )
    elif time and not _is_time(column, text_times):
        yield _error(where, f"column {name} is {declared}, which is no time", "use `incrementing` for numbers")
    elif not time and not _is_number(column):
        yield _error(where, f"column {name} is {declared}, which is no whole number", "use `timestamp` for times")


def _is_time(column: Column, text_times: bool) -> bool:
    return (
        pa.types.is_timestamp(column.type)
        or pa.types.is_date(column.type)
        or (text_times and column.type == pa.string())
    )


def _is_number(column: Column) -> bool:
    if pa.types.is_decimal(column.type):
        return int(column.type.scale) == 0
    return pa.types.is_integer(column.type) or (column.type == pa.string() and column.declared.lower() == "numeric")


def make_plan(base: Table, settings: PollingTableSettings, relation: Table | None, *, text_times: bool) -> Plan:
    """How `base` is polled; ConfigurationError with the first problem."""
    for problem in problems(base, settings, relation, text_times=text_times):
        raise ConfigurationError(problem.message, where=problem.where, hint=problem.hint)
    assert relation is not None  # noqa: S101 - the first problem named it
    axes = []
    number = settings.change_table.sequence if settings.change_table else settings.incrementing
    if number is not None:
        axes.append(Axis(relation.column(number), False, settings.overlap))
    if settings.timestamp is not None:
        overlap = round(settings.overlap_seconds * 1_000_000)
        column = relation.column(settings.timestamp)
        if pa.types.is_date(column.type):
            overlap = -(-overlap // 86_400_000_000) * 86_400_000_000  # whole days, never fewer
        axes.append(Axis(column, True, overlap, optional=number is not None))
    return Plan(captured_table(base, settings, relation), relation, tuple(axes), settings.change_table)


def refuse_other_shape(now: Table, table: Table) -> None:
    """DataError where the table is no longer as it was discovered: a column left out would be a silent loss."""
    differences = [*_differences(now, table)]
    if differences:
        raise DataError(
            f"the table is no longer as it was discovered: {'; '.join(differences)}",
            where=table.qualified_name,
            hint="restart the source, so that its tables are discovered anew",
        )


def _differences(now: Table, table: Table) -> Iterator[str]:
    if now.incarnation != table.incarnation:
        yield "it was dropped and made again"
    ours: Mapping[str, Column] = {c.name: c for c in table.columns}
    theirs: Mapping[str, Column] = {c.name: c for c in now.columns}
    yield from (f"column {name} is new" for name in theirs if name not in ours)
    yield from (f"column {name} is gone" for name in ours if name not in theirs)
    for name in ours:
        if name in theirs and _type(ours[name]) != _type(theirs[name]):
            yield f"column {name} is {_type(theirs[name])}, it was {_type(ours[name])}"
    if now.key != table.key:
        yield f"its key is ({', '.join(now.key)}), it was ({', '.join(table.key)})"


def _type(column: Column) -> str:
    return f"{column.declared} ({column.type})"
