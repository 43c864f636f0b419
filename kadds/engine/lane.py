"""Lanes: one stream of one subscription, or, in transactional mode, all of its streams together.

A lane has a cursor of its own and stops alone. It knows how to read what lies behind its cursor and to turn it into
deliveries; it never talks to a sink except to prepare a target. A lane is used by one thread at a time.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import structlog

from kadds.api.change import ControlKind
from kadds.api.connector import Delivery, Event, Mode, SinkAbilities, SourceAbilities, Step, Target
from kadds.api.errors import GapError, SchemaMismatchError, UnknownInputError
from kadds.api.position import Cursor
from kadds.api.schema import Table
from kadds.engine.abilities import can, check_steps, check_target
from kadds.engine.contract import BoundContract, TableContract
from kadds.engine.following import Following
from kadds.engine.history import history
from kadds.engine.meter import Meter
from kadds.engine.net_change import net_change
from kadds.engine.retry import Attempts
from kadds.engine.rows import Rows, adds_columns_only, concat, widened
from kadds.engine.schema_change import HeldError
from kadds.engine.spec import SubscriptionSpec
from kadds.engine.states import State, StateBox, utc_now
from kadds.engine.view import View
from kadds.log.log import Log
from kadds.log.slice import LoggedControl, Slice
from kadds.log.stream import Stream, qualified_name

_logger = structlog.get_logger(__name__)

WHOLE_SUBSCRIPTION = ""  # the cursor's name in transactional mode
_JUST_MOVE = frozenset(
    (
        ControlKind.PROGRESS,
        ControlKind.HEARTBEAT,
        ControlKind.PLAN,
        ControlKind.SCHEMA,
        ControlKind.STOPPED,
        ControlKind.RESUMED,
    )
)


@dataclass(frozen=True, eq=False)
class Part:
    """What one target gets in a step, and from which columns of the source it was made."""

    delivery: Delivery
    source_table: Table
    view: View
    stream_id: int
    contract: TableContract


@dataclass(frozen=True, eq=False)
class Batch:
    """What lies between two cursors of a lane; without parts where nothing is to be delivered."""

    first: Cursor
    end: Cursor
    parts: tuple[Part, ...] = ()
    targets: tuple[Target, ...] = ()  # to prepare before the parts, in this order
    rows: int = 0
    nbytes: int = 0
    committed_at: dt.datetime | None = None
    resyncing: bool | None = None


@dataclass(frozen=True)
class LaneContext:
    """What all lanes of a subscription share."""

    spec: SubscriptionSpec
    log: Log
    sink: SinkAbilities
    source: Callable[[], SourceAbilities | None]
    following: Following


@dataclass(eq=False)
class _Gathered:
    """Slices on their way into a batch: rows of each stream, one element a schema version."""

    rows: dict[int, list[list[Rows]]] = field(default_factory=dict)
    tables: dict[int, tuple[Table, int]] = field(default_factory=dict)  # the last that control records named, where
    count: int = 0
    nbytes: int = 0
    end: Cursor | None = None
    whole: bool = True
    committed_at: dt.datetime | None = None
    resyncing: bool | None = None

    def add(self, found: Slice, *, facts: bool) -> None:
        """One slice more."""
        for changes in found.changes:
            rows = Rows.of(changes, found.transactions, facts=facts)
            versions = self.rows.setdefault(changes.stream.id, [])
            if versions and versions[-1][0].table == changes.table:
                versions[-1].append(rows)
            else:
                versions.append([rows])
            self.count += len(rows)
            self.nbytes += rows.nbytes
        for control in found.controls:
            if control.table is not None:
                self.tables[control.stream.id] = (control.table, control.offset)
            if control.kind in (ControlKind.SNAPSHOT_BEGIN, ControlKind.SNAPSHOT_END):
                self.resyncing = control.kind == ControlKind.SNAPSHOT_BEGIN
        if found.changes:
            last = found.changes[-1].transactions[-1].as_py()
            self.committed_at = found.transactions.column("committed_at")[last].as_py() or self.committed_at
        self.end, self.whole = found.cursor, found.whole

    def may_end(self, *, transactional: bool) -> bool:
        """Whether a batch may end here: not between the images of an update, nor inside a transaction."""
        if transactional and not self.whole:
            return False
        return not any(versions[-1][-1].ends_in_half_an_update for versions in self.rows.values())


class Lane:
    """See the module. `reached` and `marked` are offsets: what was read, and up to where something is known to be."""

    def __init__(self, context: LaneContext, label: str, cursor: Cursor, changed: Callable[[], None]) -> None:
        self._context = context
        self.label = label
        self.cursor = cursor
        self.marked = cursor.offset()
        self.box = StateBox(changed)
        self.attempts = Attempts()
        self.meter = Meter()
        self.alone = False  # to be tried by itself, because a delivery that it was part of has failed
        self.retry_at: float | None = None  # monotonic
        self.unwritten = False  # the cursor has moved without a delivery
        self.resyncing = False
        self.closing = False  # the subscription no longer has the stream: nothing new is read
        self.committed_at: dt.datetime | None = None
        self.behind_since: dt.datetime | None = None
        self.streams: dict[int, Stream] = {}
        self._contracts: dict[int, BoundContract] = {}
        self._prepared: set[tuple[str, int]] = set()
        self._trusting = False  # a person has said that the targets are as they should be

    # ------------------------------------------------------------------------------------------- where it is

    @property
    def reached(self) -> int:
        """Everything below this offset has been delivered."""
        return self.cursor.offset()

    def mark(self, end_offset: int) -> None:
        """Something lies below `end_offset`."""
        if self.reached >= self.marked:
            self.behind_since = utc_now()
        self.marked = max(self.marked, end_offset)

    def pending(self, until: int | None = None) -> bool:
        """Whether there is something to read (below `until`)."""
        return not self.closing and self.reached < (self.marked if until is None else min(self.marked, until))

    def moved(self, batch: Batch) -> None:
        """The batch has been delivered, or was empty."""
        self.cursor = batch.end
        self._trusting = False
        self.unwritten = not batch.parts
        self.meter.add(batch.rows)
        self.committed_at = batch.committed_at or self.committed_at
        if batch.resyncing is not None:
            self.resyncing = batch.resyncing
        self.behind_since = (self.committed_at or self.behind_since) if self.pending() else None
        self.attempts.succeeded()
        self.alone = False
        self.retry_at = None

    def reset(self, cursor: Cursor) -> None:
        """Go on from what the sink has, under a new session."""
        self.cursor = cursor
        self.unwritten = False
        self._prepared.clear()

    def lag_seconds(self) -> float:
        """How long the oldest change that is not delivered has been committed (or known, where that is later)."""
        since = self.behind_since
        return 0.0 if since is None or not self.pending() else max(0.0, (utc_now() - since).total_seconds())

    # ------------------------------------------------------------------------------------------- reading

    def collect(self, *, until: Cursor | None, rows_max: int, bytes_max: int) -> Batch:
        """The next batch behind the cursor, of about `rows_max` rows; DataError, GapError, … as the module docs say."""
        gathered = self._gather(until, rows_max, bytes_max)
        if gathered.end is None:
            return Batch(self.cursor, self.cursor)
        return self._batch(gathered, gathered.end)

    def between(self, first: Cursor, end: Cursor, mode: Mode) -> list[tuple[Stream, Rows]]:
        """All rows of a range, one element a stream and schema version, in the order in which `collect` takes them."""
        gathered = _Gathered()
        for found in self._context.log.read(first, streams=tuple(self.streams), until=end):
            gathered.add(found, facts=mode is Mode.APPEND)
        return [
            (self.streams[stream_id], rows)
            for stream_id, versions in gathered.rows.items()
            for rows in _joined(versions)
        ]

    def _gather(self, until: Cursor | None, rows_max: int, bytes_max: int) -> _Gathered:
        mode, gathered = self._context.spec.mode, _Gathered()
        found = self._context.log.read(
            self.cursor, streams=tuple(self.streams), until=until, max_rows=rows_max, max_bytes=bytes_max
        )
        for one in found:
            try:
                _check_controls(one.controls)
            except (GapError, UnknownInputError):
                if gathered.end is None or not gathered.may_end(transactional=mode is Mode.TRANSACTIONAL):
                    raise
                break  # deliver what stands before it; the next batch begins with it
            stop = self._met(one)
            if stop is not None:  # read again, up to there
                return self._gather(stop, rows_max, bytes_max)
            gathered.add(one, facts=mode is Mode.APPEND)
            full = gathered.count >= rows_max or gathered.nbytes >= bytes_max
            if full and gathered.may_end(transactional=mode is Mode.TRANSACTIONAL):
                break
        return gathered

    def _met(self, found: Slice) -> Cursor | None:
        """Meet the versions of tables in a slice; where one stops the lane: up to where there is something before it.

        Raises what stops it (HeldError, SchemaMismatchError) where it stands right behind the cursor. A transaction
        that is delivered whole is stopped before its beginning.
        """
        following, contract_of = self._context.following, self._context.spec.contract_of
        for offset, stream, table, facts in _versions(found):
            contract = contract_of(qualified_name(stream.name))
            try:
                following.meet(stream, table, offset, facts, contract.selects, trusting=self._trusting)
            except (HeldError, SchemaMismatchError):
                if self._context.spec.mode is Mode.TRANSACTIONAL:
                    firsts = found.transactions.column("first_offset").to_numpy()
                    offset = int(firsts[np.searchsorted(firsts, offset, "right") - 1])
                if offset <= self.reached:
                    raise
                return replace(found.cursor, offsets={0: offset})
        for control in found.controls:
            if control.kind == ControlKind.SNAPSHOT_BEGIN:
                following.snapshot_began(control.stream, control.offset)
            elif control.kind == ControlKind.SNAPSHOT_END:
                following.snapshot_ended(control.stream)
        return None

    def _batch(self, gathered: _Gathered, end: Cursor) -> Batch:
        parts: list[Part] = []
        targets: list[Target] = []
        for stream_id, versions in gathered.rows.items():
            for rows in _joined(versions):
                view = self._view(stream_id, int(rows.offsets[-1]))
                bound = self._bind(stream_id, view.table(rows.table), targets)
                steps = self.steps(bound, view.apply(rows, history=bound.mode is Mode.APPEND))
                if steps:
                    parts.append(Part(Delivery(bound.target, steps), rows.table, view, stream_id, bound.contract))
        for stream_id, (table, offset) in gathered.tables.items():
            self._bind(stream_id, self._view(stream_id, offset).table(table), targets)
        fresh = tuple(target for target in targets if (target.name, target.version) not in self._prepared)
        return Batch(
            self.cursor,
            end,
            tuple(parts),
            fresh,
            sum(part.delivery.rows for part in parts),
            gathered.nbytes,
            gathered.committed_at,
            gathered.resyncing,
        )

    def _view(self, stream_id: int, offset: int) -> View:
        return self._context.following.view_at(self.streams[stream_id].label, offset)

    def prepared(self, target: Target) -> None:
        """The session has this target."""
        self._prepared.add((target.name, target.version))

    def _bind(self, stream_id: int, table: Table, targets: list[Target]) -> BoundContract:
        bound = self._contracts.get(stream_id)
        if bound is None or bound.source_table != table:
            stream = self.streams[stream_id]
            contract = self._context.spec.contract_of(qualified_name(stream.name))
            new = self.bound_to(stream, table, contract, self._context.spec.mode)
            check_target(self._context.source(), self._context.sink, new.target)
            bound = self._contracts[stream_id] = new
        if bound.target not in targets:
            targets.append(bound.target)
        return bound

    def bound_to(self, stream: Stream, table: Table, contract: TableContract, mode: Mode) -> BoundContract:
        """A contract for one version of one of the lane's streams."""
        source = self._context.source()
        return BoundContract(
            contract,
            stream,
            table,
            mode,
            mask_key=self._context.spec.mask_key,
            before_images=source is not None and source.before_images,
        )

    def steps(self, bound: BoundContract, rows: Rows) -> tuple[Step, ...]:
        """What the target gets for rows of the log; empty where the contract lets nothing through."""
        allowed = bound.apply(rows)
        if len(allowed) == 0:
            return ()
        ops = np.unique(allowed.ops).tolist()
        steps: tuple[Step, ...]
        if bound.mode is Mode.APPEND:
            steps = (history(allowed),)
        else:
            steps = net_change(allowed, rekeys=can(self._context.sink, Event.KEY_CHANGE, bound.target))
        check_steps(self._context.sink, bound.target, steps, ops)
        return steps

    def forget_contracts(self) -> None:
        """Bind anew: what stood in the way has been changed, or a person has looked at it."""
        self._contracts.clear()
        self._trusting = True

    # ------------------------------------------------------------------------------------------- status

    def settle(self) -> None:
        """Show what it is doing now, where nothing else says so."""
        if self.retry_at is not None:
            return
        if self.resyncing:
            self.box.become(State.RESYNCING)
        else:
            self.box.become(State.RUNNING if self.pending() else State.IDLE)

    def to_json(self) -> dict[str, Any]:
        """For status."""
        targets = sorted({bound.target.name for bound in self._contracts.values()})
        return {
            **self.box.to_json(),
            "targets": targets,
            "cursor": str(self.cursor),
            "offset": self.reached,
            "caught_up": not self.pending(),
            "rows": self.meter.total,
            "rows_per_second": self.meter.per_second(),
            "lag_seconds": round(self.lag_seconds(), 3),
            "lag_bytes": self._context.log.bytes_behind(self.reached) if self.pending() else 0,
            "committed_at": self.committed_at and self.committed_at.isoformat(),
        }


def _joined(versions: Sequence[Sequence[Rows]]) -> list[Rows]:
    """One element a schema version; where only columns were added, earlier rows take the later version."""
    found: list[list[Rows]] = []
    for version in versions:
        if found and adds_columns_only(found[-1][0].table, version[0].table):
            found[-1] = [*(widened(rows, version[0].table) for rows in found[-1]), *version]
        else:
            found.append(list(version))
    return [concat(rows) for rows in found]


def _versions(found: Slice) -> list[tuple[int, Stream, Table, Mapping[str, Any]]]:
    """Where each version of a table is first seen, what it is, and what its control record says; by offset."""
    seen: list[tuple[int, Stream, Table, Mapping[str, Any]]] = [
        (control.offset, control.stream, control.table, control.facts)
        for control in found.controls
        if control.table is not None
    ]
    seen += [(changes.offsets[0].as_py(), changes.stream, changes.table, {}) for changes in found.changes]
    return sorted(seen, key=lambda one: one[0])


def _check_controls(controls: Iterable[LoggedControl]) -> None:
    """GapError for a gap; UnknownInputError for a kind that this version does not know.

    A gap behind which the source copies the table anew is said, and passed: what follows it is right again.
    """
    for control in controls:
        if control.kind == ControlKind.GAP:
            reason = control.facts.get("reason", "no reason is given")
            if control.facts.get("copied"):
                _logger.warning("gap_before_a_copy", stream=control.stream.label, offset=control.offset, reason=reason)
                continue
            raise GapError(
                f"changes are missing before offset {control.offset}: {reason}",
                where=control.stream.label,
                hint="the target no longer follows the source; take a new snapshot with `kadds resync`",
            )
        known = control.kind in _JUST_MOVE or control.kind in (ControlKind.SNAPSHOT_BEGIN, ControlKind.SNAPSHOT_END)
        if not known:
            raise UnknownInputError(
                f"the log has a control record of kind {str(control.kind)!r} at offset {control.offset}, which this "
                "version does not understand",
                where=control.stream.label,
                hint="a newer Kadds wrote it: deliver with that version",
            )
