"""A whole engine over a real log, fake sources and fake sinks."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from kadds.api.change import ChangeBatch, Control, Op, Transactions
from kadds.api.connector import Connector, Mode, Producer, Promise
from kadds.api.schema import Column, Table
from kadds.engine.spec import SourceSpec, SubscriptionSpec
from kadds.engine.supervisor import Engine, Outcome
from kadds.log.log import Log
from kadds.testing.fake_sink import FakeSink, FakeStorage, abilities
from kadds.testing.fake_source import FakeChange, FakeDatabase
from tests.support.waiting import wait_until

SOURCE, SINK, SUBSCRIPTION = "default/shop", "default/warehouse", "default/shop-to-warehouse"
COLUMNS = (Column("id", pa.int64(), nullable=False), Column("name", pa.string()))


def table(name: str = "orders", columns: Sequence[Column] = COLUMNS, key: Sequence[str] = ("id",)) -> Table:
    """A table of the shop."""
    return Table("public", name, tuple(columns), tuple(key))


class Feed:
    """Puts changes into the log without a source: one producer, one transaction a call."""

    def __init__(self, log: Log, source: str = SOURCE) -> None:
        self._producer: Producer = log.producer(source, "test")
        resume = self._producer.resume()
        self._sequence = 0 if resume is None else int.from_bytes(resume.sequence, "big")

    def __call__(self, *batches: tuple[Table, Op, list[tuple[Any, ...]]], controls: Sequence[Control] = ()) -> int:
        """One transaction; each batch is (table, op, rows). The offset behind it."""
        self._sequence += 1
        ordinal, changes = 0, []
        for of, op, rows in batches:
            columns = [pa.array(column, of.columns[n].type) for n, column in enumerate(zip(*rows, strict=True))]
            values = pa.RecordBatch.from_arrays(columns, schema=of.arrow_schema)
            before = pa.array([True] * len(rows)) if op is Op.DELETE else None
            changes.append(ChangeBatch.of(of, op, values, first_ordinal=ordinal, before=before))
            ordinal += len(rows)
        placed = [replace(control, ordinal=ordinal + n) for n, control in enumerate(controls)]
        one = Transactions.one(struct.pack(">Q", self._sequence), changes, placed, lineage="test", token="t")
        return self._producer.append(one, b"").result().end_offset


def subscription(name: str = SUBSCRIPTION, mode: Mode = Mode.MERGE, **more: Any) -> SubscriptionSpec:
    """The usual subscription."""
    return SubscriptionSpec(name, more.pop("source", SOURCE), more.pop("sink", SINK), mode, **more)


def add_fake_sink(
    engine: Engine, storage: FakeStorage, promise: Promise = Promise.EXACTLY_ONCE, name: str = SINK
) -> None:
    """A fake sink over `storage`."""
    engine.add_sink(name, FakeSink(storage, abilities(promise)), abilities(promise))


def source_spec(connector: Connector, name: str = SOURCE, **more: Any) -> SourceSpec:
    """A fake source."""
    assert connector.source is not None
    opened = connector.source.open(None, lambda _: None)
    return SourceSpec(name, opened, connector.source.abilities, **{"interval_seconds": 0.02, **more})


@contextmanager
def engine_on(log: Log, **more: Any) -> Iterator[Engine]:
    """An engine that is drained at the end, whatever happened."""
    engine = Engine(log, memory_limit_bytes=64 << 20, **more)
    try:
        yield engine
    finally:
        engine.drain(timeout_seconds=20)


@contextmanager
def log_in(path: Path) -> Iterator[Log]:
    """An open log."""
    with Log.open(path / "log", memory_bytes=32 << 20) as log:
        yield log


def rows_of(storage: FakeStorage, name: str = "public.orders") -> list[tuple[Any, ...]]:
    """The rows of a target, sorted; of a history only the table's own columns, in order of arrival."""
    with storage.changed:
        made = storage.state.tables.get(name)
        if made is None:
            return []
        names = [column.name for column in made.columns]
        history = any("_kadds_offset" in row for row in made.rows.values())
        rows = [tuple(row.get(column) for column in names) for row in made.rows.values()]
    return rows if history else sorted(rows, key=repr)


def caught_up(engine: Engine, timeout_seconds: float = 20.0) -> Outcome:
    """Wait until the engine has caught up; AssertionError when it does not."""
    found: list[Outcome] = []
    deadline = Deadline(timeout_seconds)
    found.append(engine.wait_until_caught_up(deadline))
    assert not deadline.is_set(), engine.status()
    return found[0]


class Deadline:
    """A stop signal that is set when its time is up."""

    def __init__(self, seconds: float) -> None:
        import time

        self._monotonic = time.monotonic
        self._end = time.monotonic() + seconds

    def is_set(self) -> bool:
        """Whether the time is up."""
        return self._monotonic() > self._end

    def wait(self, timeout: float | None = None) -> bool:
        """Not used."""
        return self.is_set()


def state_of(engine: Engine, label: str | None = None, name: str = SUBSCRIPTION) -> str:
    """The state of a subscription, or of one of its streams."""
    shown = engine.status()["subscriptions"][name]
    return str(shown["state"] if label is None else shown["tables"].get(label, {}).get("state"))


def wait_for_state(engine: Engine, state: str, label: str | None = None, name: str = SUBSCRIPTION) -> None:
    """Wait until a subscription or one of its streams is in a state."""
    wait_until(lambda: state_of(engine, label, name) == state, 20, f"{name} {label} to be {state}")


def insert(name: str, *rows: tuple[int, str]) -> list[FakeChange]:
    """Creates for a fake database."""
    return [FakeChange(name, Op.CREATE, after={"id": number, "name": text}) for number, text in rows]


def shop(*tables: str) -> FakeDatabase:
    """A fake database."""
    database = FakeDatabase()
    for name in tables or ("orders",):
        database.create(name, COLUMNS)
    return database


Predicate = Callable[[], bool]
