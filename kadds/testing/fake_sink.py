"""An in-memory sink that keeps every promise, and breaks where a test tells it to.

`FakeStorage` outlives the sinks opened over it, as a database outlives its clients. It passes the conformance suite
with either promise. Rows are Python dicts that are replaced and never changed, so that a copy of a table is cheap.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kadds.api.change import HISTORY, given_mask, text_cells
from kadds.api.connector import (
    Append,
    Connector,
    Delete,
    Delivery,
    Event,
    Finding,
    KeyKind,
    Level,
    Mode,
    Plan,
    Promise,
    Rekey,
    SchemaChange,
    Session,
    SinkAbilities,
    SinkSide,
    Step,
    Target,
    Truncate,
    Upsert,
    cells,
    missing_abilities,
)
from kadds.api.errors import ConfigurationError, DataError, FencedError, RetryableError, SchemaMismatchError
from kadds.api.schema import Column
from kadds.api.settings import Settings
from kadds.testing.faults import SinkFaults, When

WITH_KEY = (KeyKind.SINGLE, KeyKind.COMPOSITE)


def abilities(promise: Promise = Promise.EXACTLY_ONCE) -> SinkAbilities:
    """All that a sink can do, with `promise`."""
    return SinkAbilities(
        promise,
        cells(Event, Mode.MERGE, WITH_KEY)
        | cells(Event, Mode.TRANSACTIONAL, WITH_KEY)
        | cells(Event, Mode.SNAPSHOT, WITH_KEY)
        | cells(Event, Mode.APPEND, KeyKind),
        frozenset((SchemaChange.ADD, mode) for mode in Mode),
    )


Row = dict[str, Any]


@dataclass
class FakeTable:
    """A target: its columns, and its rows by key (in `append` by number). Times are kept as their integers."""

    columns: tuple[Column, ...]
    rows: dict[tuple[Any, ...], Row] = field(default_factory=dict)


@dataclass
class FakeState:
    """What a commit replaces as a whole."""

    tables: dict[str, FakeTable] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    cursors: dict[str, dict[str, str]] = field(default_factory=dict)
    plans: set[tuple[str, str]] = field(default_factory=set)


@dataclass
class FakeStorage:
    """What outlives a sink. `deliveries` counts the commits, so that a test sees what was repeated."""

    state: FakeState = field(default_factory=FakeState)
    faults: SinkFaults = field(default_factory=SinkFaults)
    deliveries: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def read(self, target: Target) -> pa.Table:
        """All rows of a target, as the conformance suite wants them."""
        fields = list(target.table.arrow_schema) + (list(HISTORY) if target.mode is Mode.APPEND else [])
        with self.changed:
            return pa.Table.from_pylist([*self.state.tables[target.name].rows.values()], schema=pa.schema(fields))

    def wait_for_rows(self, name: str, count: int, timeout_seconds: float = 30.0) -> None:
        """Wait until target `name` has at least `count` rows; AssertionError when the time is up."""

        def enough() -> bool:
            return name in self.state.tables and len(self.state.tables[name].rows) >= count

        with self.changed:
            assert self.changed.wait_for(enough, timeout_seconds), f"{name} has fewer than {count} rows"


class FakeSettings(Settings):
    """None are needed."""


def fake_sink(storage: FakeStorage, promise: Promise = Promise.EXACTLY_ONCE, *, name: str = "fake") -> Connector:
    """A connector whose sinks keep everything in `storage`."""
    can = abilities(promise)
    side = SinkSide(settings=FakeSettings, abilities=can, open=lambda settings: FakeSink(storage, can))
    return Connector(name=name, summary="keeps everything in memory, for tests", sink=side)


class FakeSink:
    """An opened fake sink."""

    def __init__(self, storage: FakeStorage, can: SinkAbilities) -> None:
        self.storage = storage
        self.abilities = can

    def check(self, targets: Sequence[Target]) -> Iterable[Finding]:
        """Missing abilities, and tables of another shape."""
        found = [finding for target in targets for finding in missing_abilities(self.abilities, target, ())]
        for target in targets:
            table = self.storage.state.tables.get(target.name)
            if table is not None and (problems := _differences(table, target)):
                found.append(Finding(Level.ERROR, target.name, "; ".join(problems)))
        return found

    def claim(self, subscription: str) -> Session:
        """Raise the epoch."""
        if self.storage.faults.next_claims:
            raise self.storage.faults.next_claims.pop(0)
        with self.storage.changed:
            epoch = self.storage.state.epochs.get(subscription, 0) + 1
            self.storage.state.epochs[subscription] = epoch
            cursors = dict(self.storage.state.cursors.get(subscription, {}))
        return FakeSession(self, subscription, epoch, cursors)

    def close(self) -> None:
        """Nothing is held."""


class FakeSession:
    """A claimed subscription of a fake sink."""

    def __init__(self, sink: FakeSink, subscription: str, epoch: int, cursors: Mapping[str, str]) -> None:
        self._sink = sink
        self._storage = sink.storage
        self._subscription = subscription
        self._epoch = epoch
        self._cursors = cursors
        self._lost = False

    @property
    def cursors(self) -> Mapping[str, str]:
        """The cursors found at the claim."""
        return self._cursors

    def prepare(self, target: Target) -> None:
        """Make the table, match it, or add nullable columns."""
        for finding in missing_abilities(self._sink.abilities, target, ()):
            raise ConfigurationError(finding.message, where=finding.where, hint=finding.hint)
        with self._storage.changed:
            self._hold()
            table = self._storage.state.tables.setdefault(target.name, FakeTable(target.table.columns))
            if problems := _differences(table, target):
                raise SchemaMismatchError("; ".join(problems), where=target.name, hint="give the target another name")
            have = {column.name for column in table.columns}
            table.columns += tuple(column for column in target.table.columns if column.name not in have)

    def plan(self, target: Target, plan: Plan) -> Mapping[str, str]:
        """A name per target where the promise is PLANNED."""
        if self._sink.abilities.promise is Promise.EXACTLY_ONCE:
            return {}
        return {target.name: f"{target.name}/{plan.id}"}

    def deliver(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str], plan: Plan | None = None) -> None:
        """Apply to a copy, then put the copy in place; faults strike on either side of that."""
        faults = self._storage.faults
        faults.pass_gate()
        fault = faults.next_deliveries.pop(0) if faults.next_deliveries else None
        with self._storage.changed:
            self._hold()
            if self._lost:
                raise RetryableError("this session does not know what it has written", hint="claim again")
            state = self._applied(deliveries, cursors, plan)
            if fault is When.BEFORE_COMMIT:
                raise RetryableError("the connection was cut before the commit")
            if isinstance(fault, Exception):
                raise fault
            self._storage.state = state
            self._storage.deliveries += 1
            self._storage.changed.notify_all()
        if fault is not None:
            self._lost = fault is When.NEVER_KNOWN
            raise RetryableError("the connection was cut at the commit, its outcome is not known")

    def release(self) -> None:
        """Nothing is held."""

    def _hold(self) -> None:
        if self._storage.state.epochs.get(self._subscription) != self._epoch:
            raise FencedError(f"{self._subscription} was claimed again", hint="another process delivers it now")

    def _applied(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str], plan: Plan | None) -> FakeState:
        state = copy.copy(self._storage.state)
        if self._sink.abilities.promise is not Promise.EXACTLY_ONCE and (deliveries or plan is not None):
            if plan is None:
                raise ConfigurationError("this sink delivers by plan only")
            if (self._subscription, plan.id) in state.plans:
                return state
            state.plans = state.plans | {(self._subscription, plan.id)}
        state.tables = dict(state.tables)
        for delivery in deliveries:
            old = state.tables.get(delivery.target.name)
            if old is None:
                raise SchemaMismatchError(f"{delivery.target.name} was not prepared")
            table = FakeTable(old.columns, dict(old.rows))
            state.tables[delivery.target.name] = table
            for step in delivery.steps:
                _apply(table, delivery.target, step, self._storage.faults.bad_keys)
        kept = {**state.cursors.get(self._subscription, {}), **cursors}
        state.cursors = {**state.cursors, self._subscription: kept}
        return state


def _differences(table: FakeTable, target: Target) -> list[str]:
    types = {column.name: column.type for column in table.columns}
    problems = []
    for column in target.table.columns:
        if types.get(column.name, column.type) != column.type:
            problems.append(f"column {column.name} is {types[column.name]}, not {column.type}")
        elif column.name not in types and not column.nullable:
            problems.append(f"column {column.name} is missing and not nullable")
    return problems


def _apply(table: FakeTable, target: Target, step: Step, bad_keys: set[tuple[Any, ...]]) -> None:
    match step:
        case Truncate():
            table.rows.clear()
        case Delete(keys=keys):
            for key in _keys(keys, target):
                table.rows.pop(key, None)
        case Rekey(old=old, new=new):
            moved = [
                (table.rows.pop(key, None), after)
                for key, after in zip(_keys(old, target), _keys(new, target), strict=True)
            ]
            for row, after in moved:
                if row is not None:
                    table.rows[after] = row | dict(zip(target.table.key, after, strict=True))
        case Upsert():
            _upsert(table, target, step, bad_keys)
        case Append():
            rows = _rows(step.rows, [*target.table.arrow_schema.names, *HISTORY.names], target)
            _set_texts(rows, target, step.as_text)
            _refuse_bad(rows, target, bad_keys)
            first = len(table.rows)
            table.rows.update({(first + number,): row for number, row in enumerate(rows)})


def _upsert(table: FakeTable, target: Target, step: Upsert, bad_keys: set[tuple[Any, ...]]) -> None:
    names = target.table.arrow_schema.names
    rows = _rows(step.rows, names, target)
    _set_texts(rows, target, step.as_text)
    _refuse_bad(rows, target, bad_keys)
    for number, name in enumerate(names):
        for row, given in zip(rows, given_mask(step.not_given, number, len(rows)), strict=True):
            if not given:
                del row[name]
    for row in rows:
        key = tuple(row[name] for name in target.table.key)
        if key not in table.rows and len(row) < len(names):
            raise DataError(f"a row with cells not given is not in {target.name}: {key}")
        table.rows[key] = table.rows.get(key, {}) | row


def _keys(keys: pa.RecordBatch, target: Target) -> list[tuple[Any, ...]]:
    if keys.num_columns != len(target.table.key):
        raise DataError(f"a key of {keys.num_columns} columns for {target.name}, whose key is {target.table.key}")
    return list(zip(*map(_plain, keys.columns), strict=True))


def _rows(rows: pa.RecordBatch, names: Sequence[str], target: Target) -> list[Row]:
    if rows.schema.names != list(names):
        raise DataError(f"rows have the columns {rows.schema.names}, {target.name} has {list(names)}")
    return [dict(zip(names, row, strict=True)) for row in zip(*map(_plain, rows.columns), strict=True)]


def _plain(values: pa.Array) -> list[Any]:
    """Python values; times as integers, since Python's own end at the year 9999 and at microseconds."""
    if pa.types.is_temporal(values.type):
        values = values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())
    plain: list[Any] = values.to_pylist()
    return plain


def _set_texts(rows: list[Row], target: Target, as_text: pa.Array | None) -> None:
    for number, (places, texts) in text_cells(as_text).items():
        column = target.table.columns[number]
        if column.type != pa.string():
            raise DataError(f"column {column.name} of {target.name} is {column.type} and cannot hold {texts[0]}")
        for place, text in zip(places, texts.to_pylist(), strict=True):
            rows[place][column.name] = text


def _refuse_bad(rows: list[Row], target: Target, bad_keys: set[tuple[Any, ...]]) -> None:
    for row in rows:
        if (key := tuple(row[name] for name in target.table.key)) in bad_keys:
            raise DataError(f"row {key} of {target.name} does not fit", where=target.name)
