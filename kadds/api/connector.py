"""What a connector is, and what it promises. The prose here is the contract; the conformance suites run it.

A connector is one object, found by an entry point of the group `kadds.connectors`:

    connector = Connector(name="duckdb", summary="…", sink=SinkSide(settings=…, abilities=…, open=…))

`open` imports the driver inside, so that listing and checking need none.

**A source** turns what happens in a system into transactions and hands them to a `Producer`. It promises:

1. *Order*: the transactions of one producer arrive in the order of their sequences, which is the order of commits.
2. *Whole*: a transaction is complete or not there; nothing is left out because it was not understood
   (UnknownInputError).
3. *Again*: after a restart it goes on from `Producer.resume()`. It may send again what the log has; the log drops what
   is not above the producer's last sequence. So the same transaction must get the same sequence each time.
4. *Acknowledgement*: it tells the system that something has been read only once the future of that append is done.
5. *Values*: every value exact; what Arrow cannot hold goes as text.
6. It raises only `KaddsError`s, and never decides about retries: the engine does, from the error's class.

**A sink** puts deliveries where somebody wants them. It promises what its `Promise` says:

1. `claim` makes this process the only writer of a subscription: it raises the epoch kept *in the sink*, commits that,
   and returns the cursors kept there. An older session's next `deliver` raises FencedError and changes nothing.
2. `deliver` applies all deliveries of one call and their cursors together, or nothing. With EXACTLY_ONCE both are in
   one transaction that starts by locking the epoch. With PLANNED a repeated call with the same plan has no further
   effect.
3. When the outcome is not known (a connection cut at COMMIT), it raises RetryableError; the engine claims again and
   reads the cursors back before it decides.
4. It never coerces silently: a value that it cannot hold is a DataError with table and column.
5. Unchanged cells (not given) stay as they are, where it declares that ability; otherwise it refuses such rows by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from kadds.api.change import ChangeBatch, Control, Transactions
from kadds.api.position import Position
from kadds.api.schema import Table
from kadds.api.settings import Settings

# ---------------------------------------------------------------------------------------------- the inlet of the log


@dataclass(frozen=True)
class Resume:
    """Where a producer stands: the last sequence in the log, and what it asked the log to keep with it."""

    sequence: bytes
    state: bytes


@dataclass(frozen=True)
class Appended:
    """What became of an append: the offsets [first_offset, end_offset) it took, how many transactions were repeats."""

    first_offset: int
    end_offset: int
    repeated: int = 0


class Producer(Protocol):
    """What appends to the log, under its own rising sequence. One thread at a time uses it.

    Its calls block while the log's queue is full (back-pressure) and raise FencedError once a newer holder has claimed
    the same producer. A future is done when the changes are on disk; its result is `Appended`.

    An append that was refused (a full disk) fails its future and those of all that this producer had queued behind it;
    every later call then raises the same error until `resume` is called, so that no sequence can pass a lost one.
    """

    @property
    def name(self) -> str:
        """Unique within the source: `stream`, `table:public.orders`, `snapshot:public.orders`, …"""
        ...

    def resume(self) -> Resume | None:
        """The last that the log has of this producer, None if it has nothing yet."""
        ...

    def append(self, transactions: Transactions, resume: bytes) -> Future[Appended]:
        """Add whole transactions; those whose sequence is not above the last one are dropped as repeats.

        `resume` is the state after the last of them.
        """
        ...

    def begin(self, xid: str) -> OpenTransaction:
        """Start a transaction that comes in pieces; no reader sees it before its commit. One at a time per producer."""
        ...


class OpenTransaction(Protocol):
    """A transaction on its way in, of any size."""

    def add(self, changes: Sequence[ChangeBatch], controls: Sequence[Control] = ()) -> None:
        """Add rows; the ordinals of each call count from 0 and continue where the last call ended."""
        ...

    def commit(
        self,
        sequence: bytes,
        resume: bytes,
        *,
        lineage: str = "",
        sort_key: bytes | None = None,
        token: str = "",
        committed_at: Any = None,
        origin: str | None = None,
    ) -> Future[Appended]:
        """End it: only now it takes offsets. The facts are those of `Transactions.one`."""
        ...

    def abort(self) -> None:
        """Forget it; what was added leaves no trace for any reader."""
        ...


class StopSignal(Protocol):
    """Says when to stop; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set or `timeout` seconds have passed; whether it is set."""
        ...


class Inlet(Protocol):
    """What the engine gives to a source that streams."""

    @property
    def stopping(self) -> StopSignal:
        """Set when the source is to return from `stream`."""
        ...

    def producer(self, name: str) -> Producer:
        """Claim the producer of that name; an older holder is fenced."""
        ...


# ----------------------------------------------------------------------------------------- words shared by both sides


class Level(StrEnum):
    """How much a finding matters: an error refuses to run."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """What a check found, where, and what to do about it."""

    level: Level
    where: str
    message: str
    hint: str | None = None


class Mode(StrEnum):
    """How a subscription is applied."""

    TRANSACTIONAL = "transactional"  # in source order, transaction by transaction
    MERGE = "merge"  # the net change per key
    APPEND = "append"  # every change, as history
    SNAPSHOT = "snapshot"  # the state at a cut, on a schedule


class Event(StrEnum):
    """What may happen to a row of a target; the rows of the abilities' matrix."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"
    READ = "read"
    TRUNCATE = "truncate"
    KEY_CHANGE = "key-change"
    NOT_GIVEN = "not-given"  # an update in which some cells are not given
    AS_TEXT = "as-text"  # a value that the column's type cannot hold


class KeyKind(StrEnum):
    """How rows of a table are identified; the columns of the abilities' matrix, beside the mode."""

    SINGLE = "single"
    COMPOSITE = "composite"
    NONE = "none"

    @classmethod
    def of(cls, table: Table) -> KeyKind:
        """The kind of the table's key."""
        return (cls.NONE, cls.SINGLE)[len(table.key)] if len(table.key) < 2 else cls.COMPOSITE


class SchemaChange(StrEnum):
    """What may happen to a table's columns."""

    ADD = "add"
    DROP = "drop"
    WIDEN = "widen"
    RETYPE = "retype"
    RENAME = "rename"


class Promise(StrEnum):
    """What a sink promises about repeats."""

    EXACTLY_ONCE = "exactly once: the cursor is written in the transaction of the data"
    PLANNED = "exactly once: each delivery is planned in the log before its first byte leaves, and finished as planned"
    AT_LEAST_ONCE = "at least once: keys are derived from the plan and stay the same when a delivery is repeated"


class Capture(StrEnum):
    """How a source is run by the engine."""

    POLL = "poll"  # the engine calls it per table, now and then or on a schedule
    STREAM = "stream"  # it reads a change log until it is told to stop
    PUSH = "push"  # somebody else calls us


# ---------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class SourceAbilities:
    """What a source can do; refused by `kadds validate` where a configuration needs more."""

    capture: Capture
    events: frozenset[Event]
    before_images: bool = False
    transactions: bool = False  # whether transactions of several tables arrive as the source committed them
    schema_changes: frozenset[SchemaChange] = frozenset()


@dataclass(frozen=True)
class Polled:
    """What one poll of one table found. `more` asks to be called again at once."""

    rows: int
    more: bool = False


class Source(Protocol):
    """An opened source. `close` may be called from another thread and makes calls under way fail soon."""

    def discover(self, wanted: Callable[[str], bool]) -> Sequence[Table]:
        """The tables for whose qualified name `wanted` is true, with their columns and keys, in few queries."""
        ...

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        """What would be lost, slow or refused with these tables; changes nothing."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


@runtime_checkable
class PollSource(Source, Protocol):
    """A source that is asked for what is new, a table at a time; tables may be polled by different threads."""

    def poll(self, table: Table, producer: Producer, stopping: StopSignal) -> Polled:
        """Read what is new in `table` and append it as one transaction (one run) that carries the new watermark.

        The producer belongs to the table. Returns after the append is on disk; a run that fails moves no watermark.
        """
        ...


@runtime_checkable
class StreamSource(Source, Protocol):
    """A source with a change log of its own.

    `discover`, `check` and `head` are called by other threads while `stream` runs and must not disturb it. `stream` is
    given all tables that `check` has no error for; where they change, it is told to stop and called anew. An error of
    `check` whose `where` is a table's qualified name leaves that table out; any other refuses the source.
    """

    def head(self) -> Position:
        """A position at or past every commit visible now.

        The engine waits for an append whose position reaches it, so a session under way (or the next) must append one
        soon after this was asked, also where nothing was committed: a `progress` record. It may be a repeat of what
        the log has, which the log drops.
        """
        ...

    def stream(self, tables: Sequence[Table], inlet: Inlet) -> None:
        """Capture until `inlet.stopping`; control records of kind `progress` say how far it is."""
        ...


@runtime_checkable
class RemovableSource(Source, Protocol):
    """A source that has things made for it on the server: a replication slot, a publication."""

    def remove(self, *, drop_slot: bool) -> Sequence[str]:
        """Take them back if `drop_slot`; sentences of what was done, and of what stays and how it is taken away."""
        ...


@dataclass(frozen=True)
class SourceSide:
    """The source half of a connector."""

    settings: type[Settings]
    abilities: SourceAbilities
    open: Callable[[Any, Callable[[str], Any]], Source]
    """`open(settings, settings_of)`: `settings_of(qualified name)` gives the `table_settings` of that table."""
    table_settings: type[Settings] | None = None


# ---------------------------------------------------------------------------------------------- sinks


@dataclass(frozen=True)
class SinkAbilities:
    """What a sink can do, cell by cell; what is not in `cells` is refused by name before anything moves."""

    promise: Promise
    cells: frozenset[tuple[Event, Mode, KeyKind]]
    schema_changes: frozenset[tuple[SchemaChange, Mode]] = frozenset()

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes in which it can do anything."""
        return frozenset(mode for _, mode, _ in self.cells)


def cells(events: Iterable[Event], mode: Mode, keys: Iterable[KeyKind]) -> frozenset[tuple[Event, Mode, KeyKind]]:
    """The cells of the matrix for each of `events` with each of `keys` in `mode`."""
    keys = tuple(keys)
    return frozenset((event, mode, key) for event in events for key in keys)


@dataclass(frozen=True)
class Target:
    """Where the changes of one stream go under one contract and one schema version.

    `table` has the columns after the contract: what the sink gets, without the history columns that `append` adds.
    `name` is the target's name as configured (`sales.orders`), or the source's qualified name.
    """

    stream: str
    name: str
    table: Table
    mode: Mode
    version: int = 0


_IN_WORDS = {
    KeyKind.SINGLE: "a table with a key of one column",
    KeyKind.COMPOSITE: "a table with a key of several columns",
    KeyKind.NONE: "a table without a key",
}


def missing_abilities(abilities: SinkAbilities, target: Target, events: Iterable[Event]) -> list[Finding]:
    """One error for each of `events` that the sink cannot do to `target`; one alone where it can do nothing at all.

    A sink calls it in `check` without events, since it does not know the source; the engine with the source's.
    """
    key, wanted = KeyKind.of(target.table), frozenset(events)
    where = f"{target.stream} -> {target.name}"
    possible = {event for event, mode, kind in abilities.cells if (mode, kind) == (target.mode, key)}
    if not possible:
        message = f"this sink has no mode {target.mode.value} for {_IN_WORDS[key]}"
        hint = "it has: " + (", ".join(mode.value for mode in Mode if mode in abilities.modes) or "nothing")
        if key is KeyKind.NONE and target.mode in abilities.modes:
            hint = "give the table a key, or use mode `append`"
        return [Finding(Level.ERROR, where, message, hint)]
    return [
        Finding(
            Level.ERROR,
            where,
            f"this sink has no {event.value} in mode {target.mode.value} for {_IN_WORDS[key]}",
            "leave the table out, or choose another sink or mode",
        )
        for event in Event
        if event in wanted and event not in possible
    ]


@dataclass(frozen=True, eq=False)
class Truncate:
    """Empty the target."""


@dataclass(frozen=True, eq=False)
class Delete:
    """Delete the rows with these keys (the key's columns, in the key's order); a key that is not there is no error."""

    keys: pa.RecordBatch


@dataclass(frozen=True, eq=False)
class Rekey:
    """Give the rows with the keys `old` the keys `new`, row by row of both, as if all at once; other cells stay."""

    old: pa.RecordBatch
    new: pa.RecordBatch


@dataclass(frozen=True, eq=False)
class Upsert:
    """Insert or overwrite rows; each key stands once.

    A row with cells not given updates the row that is there and leaves those cells alone; if it is not there, that is a
    DataError. `as_text` as in ChangeBatch.
    """

    rows: pa.RecordBatch
    not_given: pa.Array | None = None
    as_text: pa.Array | None = None


@dataclass(frozen=True, eq=False)
class Append:
    """Add rows of history: the target's columns, then those of `HISTORY`. `as_text` as in ChangeBatch."""

    rows: pa.RecordBatch
    as_text: pa.Array | None = None


Step = Truncate | Delete | Rekey | Upsert | Append


@dataclass(frozen=True, eq=False)
class Delivery:
    """Steps for one target, to be done in order."""

    target: Target
    steps: tuple[Step, ...]

    @property
    def rows(self) -> int:
        """How many rows the steps carry."""
        total = 0
        for step in self.steps:
            match step:
                case Delete(keys=rows) | Rekey(new=rows) | Upsert(rows=rows) | Append(rows=rows):
                    total += rows.num_rows
        return total


@dataclass(frozen=True)
class Plan:
    """A delivery that was decided: recorded in the log before its first byte leaves, finished so after a crash.

    `id` is unique and stable; `first` and `end` are the cursors between which the changes lie; `names` are what the
    sink said it would write (`Session.plan`).
    """

    id: str
    first: str
    end: str
    names: Mapping[str, str] = field(default_factory=dict)


class Session(Protocol):
    """A claimed subscription in a sink; used by one thread at a time."""

    @property
    def cursors(self) -> Mapping[str, str]:
        """The cursors kept in the sink when it was claimed: stream name (or "" for the subscription) → cursor."""
        ...

    def prepare(self, target: Target) -> None:
        """Make the target or match it with the one that exists; SchemaMismatchError names what differs."""
        ...

    def plan(self, target: Target, plan: Plan) -> Mapping[str, str]:
        """PLANNED sinks: the names that a delivery to `target` under `plan` will write. Others return {}."""
        ...

    def deliver(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str], plan: Plan | None = None) -> None:
        """Apply all deliveries and keep `cursors`, together or not at all.

        PLANNED sinks need `plan` where there are rows; cursors alone are kept without one too.
        """
        ...

    def release(self) -> None:
        """Let go of the claim's resources; the claim itself stays until somebody claims anew."""
        ...


class Sink(Protocol):
    """An opened sink; its methods may be called by several threads."""

    def check(self, targets: Sequence[Target]) -> Iterable[Finding]:
        """What would be refused with these targets; changes nothing."""
        ...

    def claim(self, subscription: str) -> Session:
        """Become the only writer of `subscription` (`tenant/name`)."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


@dataclass(frozen=True)
class SinkSide:
    """The sink half of a connector.

    A sink that works in memory has a setting `memory_limit_bytes: int | None = None`; where a person has not given it,
    the sink's share of `memory_limit` stands there when it is opened.
    """

    settings: type[Settings]
    abilities: SinkAbilities
    open: Callable[[Any], Sink]


@dataclass(frozen=True)
class Connector:
    """One system: how to read it, how to write it, or both. `extra` names what to install for its driver."""

    name: str
    summary: str
    source: SourceSide | None = None
    sink: SinkSide | None = None
    extra: str | None = None
