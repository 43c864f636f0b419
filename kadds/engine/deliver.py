"""Delivery: one subscription, step by step.

A step is done by one worker at a time: claim if need be, read what lies behind the cursors of the lanes that have
something, deliver it together with the new cursors. The cursors that count are those kept in the sink; what is held
here is thrown away with the session, and whenever the outcome of a delivery is not known the session is thrown away.

* Sinks that deliver exactly once in one transaction get the batches of several lanes in one call. If that fails, each
  lane is tried alone, so that only the one that is to blame stops.
* All others get one lane a call, by a plan that is in the log before the first byte leaves (`plans`).
* A cursor that moved without a delivery (progress records, changes that the contract holds back) is written with the
  next delivery, otherwise at most once a second, and when the engine drains; sinks that need a plan get it only with
  the next delivery and at the drain. Nothing is lost by that: what is read again is read to the same end.
* A failing lane waits for its time and stops nobody; an error at the claim holds the whole subscription.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog

from kadds.api.connector import Mode, Promise, Session, SourceAbilities
from kadds.api.errors import DataError, FencedError, GapError, KaddsError, RetryableError, Stopping
from kadds.api.position import Cursor
from kadds.engine.alarms import Alarms
from kadds.engine.budget import Budget
from kadds.engine.following import Following, shown
from kadds.engine.lane import WHOLE_SUBSCRIPTION, Batch, Lane, LaneContext
from kadds.engine.planned import PlannedDeliveries
from kadds.engine.retry import Attempts
from kadds.engine.runs import Run
from kadds.engine.schema_change import HeldError, Reaction
from kadds.engine.spec import SinkSpec, SubscriptionSpec
from kadds.engine.states import STUCK, Problem, State, StateBox
from kadds.engine.workers import Workers
from kadds.log.log import Log
from kadds.log.stream import Stream, qualified_name

CURSOR_SECONDS = 1.0  # how often, at most, cursors are written that moved without a delivery
LANES_AT_ONCE = 256  # how many tables one call of a sink carries at most

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Machinery:
    """What every subscription of an engine uses."""

    log: Log
    workers: Workers
    alarms: Alarms
    budget: Budget
    batch_bytes: int
    stopping: threading.Event
    changed: Callable[[], None]  # something that status shows has changed
    run_ended: Callable[[Run, str], None]


class SubscriptionRunner:
    """One subscription. `mark`, `pause` and the like may be called by any thread; `_step` is done by workers."""

    def __init__(
        self,
        spec: SubscriptionSpec,
        sink: SinkSpec,
        source: Callable[[], SourceAbilities | None],
        machinery: Machinery,
    ) -> None:
        self.spec = spec
        self.sink = sink
        self._machinery = machinery
        self.following = Following(machinery.log, spec.name, spec.mode, sink.abilities, spec.policy_of)
        self._context = LaneContext(spec, machinery.log, sink.abilities, source, self.following)
        self._plans = PlannedDeliveries(spec, machinery.log, self._wrote)
        self._planned = sink.abilities.promise is not Promise.EXACTLY_ONCE
        self._lock = threading.RLock()
        self._stepping = threading.Lock()  # one step at a time; a session is used by one thread at a time
        self._queued = False
        self._ended = False
        self.box = StateBox(machinery.changed)
        self._attempts = Attempts()
        self._retry_at: float | None = None
        self._session: Session | None = None
        self._sink_cursors: dict[str, str] = {}
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._lane_of: dict[int, Lane] = {}
        self._dirty: OrderedDict[str, Lane] = OrderedDict()  # lanes that may have something to do, in turn
        self.paused_tables: frozenset[str] = frozenset()  # as the log remembers them; set before any stream is added
        self._lost: dict[str, Problem] = {}  # cursors in the sink that this log cannot continue and has no stream for
        self._wrote_cursors_at = 0.0
        self._cursor_alarm = False
        self._run: tuple[Run, Cursor, int] | None = None  # the run under way, up to where, rows before it

    # ------------------------------------------------------------------------------------------- streams

    def wants(self, stream: Stream, name: str) -> bool:
        """Whether the stream, called `name` at its source, belongs here."""
        return stream.source == self.spec.source and self.spec.wanted(name)

    def add_stream(self, stream: Stream) -> None:
        """A stream that belongs here; `mark` says up to where it is to be delivered."""
        with self._lock:
            if stream.id in self._lane_of:
                return
            label = WHOLE_SUBSCRIPTION if self.spec.mode is Mode.TRANSACTIONAL else stream.label
            lane = self._lanes.get(label)
            if lane is None:
                lane = Lane(self._context, label, self._machinery.log.begin(), self._machinery.changed)
                self._lanes[label] = lane
                if self.paused_tables & {label, qualified_name(stream.name)}:
                    lane.box.command(State.PAUSED)
            lane.streams[stream.id] = stream
            self._lane_of[stream.id] = lane
            if self._session is not None and len(lane.streams) == 1:
                self._lost.pop(label, None)
                self._place(lane)
            self._dirty.setdefault(label, lane)
        self._ask()

    def mark(self, stream_id: int, end_offset: int) -> None:
        """Something of the stream lies below `end_offset`."""
        with self._lock:
            lane = self._lane_of.get(stream_id)
            if lane is not None:
                lane.mark(end_offset)
                self._dirty.setdefault(lane.label, lane)

    def wake(self) -> None:
        """Look whether there is something to do."""
        self._ask()

    # ------------------------------------------------------------------------------------------- asking for steps

    def _ask(self) -> None:
        """Queue a step where one would find something to do."""
        with self._lock:
            if self._queued or not self._something_to_do():
                return
            self._queued = True
        self._machinery.workers.submit(self.sink.name, self._step)

    def _something_to_do(self) -> bool:
        if self._ended or self._machinery.stopping.is_set() or self.box.at_rest or _is_later(self._retry_at):
            return False
        if self._session is None:
            return not self.spec.scheduled or self._run is not None
        return bool(self._due()) or self._cursors_due()

    def _due(self) -> list[Lane]:
        """The lanes that have something to do now, the one that has waited longest first."""
        until = self._window()
        if self.spec.scheduled and until is None:
            return []
        offset = None if until is None else until.offset()
        return [lane for lane in self._dirty.values() if _may_run(lane) and self._behind(lane, offset)]

    def _behind(self, lane: Lane, offset: int | None = None) -> bool:
        return lane.pending(offset) or lane.label in self._plans.unfinished

    def _window(self) -> Cursor | None:
        """Up to where a scheduled subscription delivers; None: no run is under way, or it is not scheduled."""
        return self._run[1] if self.spec.scheduled and self._run is not None else None

    def _bound(self, lane: Lane, until: Cursor | None) -> Cursor | None:
        """A lane of many streams reads no further than it is marked: beyond, not all of its streams are known."""
        if self.spec.mode is not Mode.TRANSACTIONAL or (until is not None and until.offset() <= lane.marked):
            return until
        return replace(self._machinery.log.end(), offsets={0: lane.marked})

    def _cursors_due(self) -> bool:
        if self._planned or time.monotonic() - self._wrote_cursors_at < CURSOR_SECONDS:
            return False
        return any(lane.unwritten and not lane.box.at_rest for lane in self._dirty.values())

    # ------------------------------------------------------------------------------------------- a step

    def _step(self) -> bool:
        """Work; whether there is more to do. What is asked for meanwhile is seen at the end, so that no other thread
        comes to wait for this one."""
        with self._stepping:
            if self._more():
                try:
                    self._work()
                except Stopping:
                    pass
                except Exception as error:  # noqa: BLE001 - whatever it is, `retry` decides
                    self._failed(error)
        return self._more()

    def _more(self) -> bool:
        with self._lock:
            self._queued = self._something_to_do()
            return self._queued

    def _work(self) -> None:
        session = self._claimed()
        with self._machinery.budget.held(self._machinery.batch_bytes, self._machinery.stopping):
            batches = self._collect(session)
            if batches:
                self._deliver(session, batches)
        if self._session is session and self._cursors_due():
            self._write_cursors(session)
        if self._session is session:
            self._attempts.succeeded()
            self._retry_at = None
        self._settle()

    def _failed(self, error: Exception) -> None:
        """Something that holds the whole subscription."""
        self._drop_session()
        decided, problem = self._attempts.failed(error, subscription=self.spec.name, sink=self.sink.name)
        self.box.become(decided.state, problem)
        with self._lock:
            self._retry_at = self._alarm(decided.again_in_seconds)
        self._end_run_if_done()

    def _lane_failed(self, lane: Lane, error: Exception) -> None:
        """Something that holds one lane; FencedError holds all."""
        if isinstance(error, FencedError):
            raise error
        decided, problem = lane.attempts.failed(error, subscription=self.spec.name, stream=lane.label)
        lane.retry_at = self._alarm(decided.again_in_seconds)
        lane.box.become(decided.state, problem)

    def _alarm(self, seconds: float | None) -> float | None:
        return None if seconds is None else self._machinery.alarms.after(seconds, self._ask)

    def _survives(self, error: Exception) -> bool:
        """Whether the session can be used after the error; if not, it is thrown away."""
        if isinstance(error, KaddsError) and not isinstance(error, RetryableError):
            return True
        self._drop_session()
        return False

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(Exception):  # it is given up because it does not work
                session.release()

    # ------------------------------------------------------------------------------------------- claiming

    def _claimed(self) -> Session:
        if self._session is not None:
            return self._session
        session = self.sink.sink.claim(self.spec.name)
        with self._lock:
            self._session = session
            self._sink_cursors = dict(session.cursors)
            self._plans.load()
            self._add_orphans()
            for lane in self._lanes.values():
                self._place(lane)
            self._dirty = OrderedDict(self._lanes)
            self._find_lost_cursors()
        _logger.info("claimed", subscription=self.spec.name, sink=self.sink.name, cursors=len(self._sink_cursors))
        return session

    def _add_orphans(self) -> None:
        """Lanes for plans of streams that the subscription no longer has: they are finished, and nothing else."""
        for label, plain in self._plans.unfinished.items():
            if label in self._lanes:
                continue
            ids = {part["stream_id"] for part in plain["parts"]}
            lane = Lane(self._context, label, self._machinery.log.begin(), self._machinery.changed)
            lane.streams = {one.id: one for one in self._machinery.log.streams(self.spec.source) if one.id in ids}
            lane.closing = True
            self._lanes[label] = lane

    def _place(self, lane: Lane) -> None:
        """Set a lane to where the sink says it is; a cursor that this log cannot continue stops the lane by name."""
        if lane.box.state in STUCK:
            return
        text = self._sink_cursors.get(lane.label)
        try:
            self._refuse_made_again(lane, text)
            lane.reset(self._machinery.log.begin() if text is None else self._checked(text, lane.label))
        except Exception as error:  # noqa: BLE001 - `retry` decides
            self._lane_failed(lane, error)

    def _checked(self, text: str, label: str) -> Cursor:
        cursor = Cursor.parse(text)
        try:
            self._machinery.log.check(cursor)
        except GapError as error:
            raise GapError(
                f"the sink stands at a place that this log cannot continue: {error.message}",
                where=f"{self.spec.name} {label}".strip(),
                hint=error.hint or "bring back the log folder that the sink was filled from, or resync the table",
            ) from error
        return cursor

    def _refuse_made_again(self, lane: Lane, text: str | None) -> None:
        """A table dropped and made again must not flow into the rows that its predecessor left in the target."""
        stream = next(iter(lane.streams.values()))
        if text is not None or stream.incarnation == 1 or self.spec.mode is not Mode.MERGE:
            return
        if any(label.split("@", 1)[0] == stream.name for label in self._sink_cursors):
            raise DataError(
                "the table was dropped and made again; the target still has the rows of the old one",
                where=f"{self.spec.name} {lane.label}",
                hint="give the table another target, or take it out of the subscription",
            )

    def _find_lost_cursors(self) -> None:
        self._lost = {}
        for label, text in self._sink_cursors.items():
            if label in self._lanes or (label and not label.startswith(f"{self.spec.source}/")):
                continue
            try:
                self._checked(text, label)
            except KaddsError as error:
                _, self._lost[label] = Attempts().failed(error, subscription=self.spec.name, stream=label)

    # ------------------------------------------------------------------------------------------- reading

    def _collect(self, session: Session) -> list[_Found]:
        """Batches of the lanes that are due, in turn, within the bounds of one step."""
        chosen = self._chosen()
        until = self._window()
        found: list[_Found] = []
        rows_left, bytes_left = self.spec.batch_rows, self._machinery.batch_bytes
        for lane in chosen:
            if self._machinery.stopping.is_set() or rows_left <= 0 or bytes_left <= 0 or self._session is not session:
                break
            try:
                if lane.label in self._plans.unfinished:
                    self._plans.finish(session, lane)
                batch = lane.collect(until=self._bound(lane, until), rows_max=rows_left, bytes_max=bytes_left)
                for target in batch.targets:
                    session.prepare(target)
                    lane.prepared(target)
            except Exception as error:  # noqa: BLE001 - `retry` decides
                self._lane_failed(lane, error)
                if isinstance(error, HeldError):
                    self.following.settle()  # so that a command can decide where nothing runs
                if not self._survives(error):
                    return []
                continue
            if batch.parts:
                found.append((lane, batch))
                rows_left, bytes_left = rows_left - batch.rows, bytes_left - batch.nbytes
            else:
                lane.moved(batch)
        return found

    def _chosen(self) -> list[Lane]:
        with self._lock:
            due = self._due()
            alone = next((lane for lane in due if lane.alone), None)
            chosen = [alone] if alone is not None else due[: 1 if self._planned else LANES_AT_ONCE]
            for lane in chosen:  # the next step begins with the others
                self._dirty.move_to_end(lane.label)
            return chosen

    # ------------------------------------------------------------------------------------------- delivering

    def _deliver(self, session: Session, found: Sequence[_Found]) -> None:
        deliver = self._deliver_planned if self._planned else self._deliver_together
        try:
            deliver(session, found)
        except FencedError:
            raise
        except Exception as error:  # noqa: BLE001 - `retry` decides
            survives = self._survives(error)
            if len(found) == 1:
                self._lane_failed(found[0][0], error)
            elif survives:
                self._deliver_one_by_one(session, found)
            else:
                for lane, _ in found:
                    lane.alone = True

    def _deliver_one_by_one(self, session: Session, found: Sequence[_Found]) -> None:
        """Nothing of the whole was applied: find the one that is to blame, deliver the others."""
        for lane, batch in found:
            try:
                self._deliver_together(session, [(lane, batch)])
            except Exception as error:  # noqa: BLE001 - `retry` decides
                self._lane_failed(lane, error)
                if not self._survives(error):
                    return

    def _deliver_together(self, session: Session, found: Sequence[_Found]) -> None:
        cursors = {lane.label: str(batch.end) for lane, batch in found}
        others = [lane for lane in self._unwritten() if lane.label not in cursors]
        cursors.update({lane.label: str(lane.cursor) for lane in others})
        self.following.settle()
        session.deliver([part.delivery for _, batch in found for part in batch.parts], cursors)
        self._wrote(cursors)
        for lane, batch in found:
            lane.moved(batch)

    def _unwritten(self) -> list[Lane]:
        with self._lock:
            return [
                lane
                for lane in self._dirty.values()
                if lane.unwritten and lane.box.state is not State.FAILED and lane.label not in self._plans.unfinished
            ]

    def _wrote(self, cursors: dict[str, str]) -> None:
        with self._lock:
            self._sink_cursors.update(cursors)
            for label in cursors:
                self._lanes[label].unwritten = False
        self._wrote_cursors_at = time.monotonic()

    def _write_cursors(self, session: Session) -> None:
        cursors = {lane.label: str(lane.cursor) for lane in self._unwritten()}
        if cursors:
            self.following.settle()
            session.deliver([], cursors)
            self._wrote(cursors)

    def _deliver_planned(self, session: Session, found: Sequence[_Found]) -> None:
        [(lane, batch)] = found
        self.following.settle()
        self._plans.deliver(session, lane, batch)
        lane.moved(batch)

    # ------------------------------------------------------------------------------------------- states

    def _settle(self) -> None:
        with self._lock:
            until = self._window()
            for lane in list(self._dirty.values()):
                lane.settle()
                if not (self._behind(lane) or lane.unwritten):
                    del self._dirty[lane.label]
            unwritten = not self._planned and any(lane.unwritten for lane in self._dirty.values())
            working = bool(self._due()) or until is not None
            if unwritten and not self._cursor_alarm:
                self._cursor_alarm = True
                self._machinery.alarms.after(CURSOR_SECONDS, self._cursors_are_due)
        if self._session is not None:
            self.box.become(State.RUNNING if working else State.IDLE)
        self._end_run_if_done()
        self._machinery.changed()

    def _cursors_are_due(self) -> None:
        self._cursor_alarm = False
        self._ask()

    def pause(self, table: str | None = None) -> bool:
        """Stop after the step under way: the subscription, or one of its tables. False for a table it has not."""
        if table is None:
            return self.box.command(State.PAUSED)
        with self._lock:
            lanes = self._named(table)
            for lane in lanes:
                lane.box.command(State.PAUSED)
            return bool(lanes)

    def resume(self, table: str | None = None) -> bool:
        """Go on: the subscription and its failed tables, or one paused or failed table."""
        with self._lock:
            lanes = [lane for lane in self._lanes.values() if lane.box.state in STUCK]
            if table is None:
                self._attempts.succeeded()
                self._retry_at = None
                self.box.command(State.STARTING)
            else:
                lanes = self._named(table)
            for lane in lanes:
                lane.forget_contracts()
                self._restart(lane)
        self._settle()
        self._ask()
        return table is None or bool(lanes)

    def _restart(self, lane: Lane) -> None:
        lane.attempts.succeeded()
        lane.retry_at = None
        lane.box.command(State.STARTING)
        self._dirty.setdefault(lane.label, lane)
        if self._session is not None:
            self._place(lane)

    def decide_schema(self, table: str, reaction: Reaction | None, *, clear_mark: bool = False) -> bool:
        """Decide on a change of columns that is held, or take a table's mark away. False for a table it has not."""
        with self._lock:
            lanes = self._named(table)
            labels = [
                stream.label
                for lane in lanes
                for stream in lane.streams.values()
                if table in (stream.label, qualified_name(stream.name))
            ]
        for label in labels[-1:]:  # the last incarnation is the one that lives
            if clear_mark:
                self.following.clear_marks(label)
            if reaction is not None:
                self.following.decide(label, reaction)
        if reaction is not None:
            with self._lock:
                for lane in lanes:
                    if lane.box.state in STUCK:
                        self._restart(lane)
            self._settle()
            self._ask()
        return bool(labels)

    def _named(self, table: str) -> list[Lane]:
        return [
            lane
            for lane in self._lanes.values()
            if table == lane.label or any(table == qualified_name(stream.name) for stream in lane.streams.values())
        ]

    def stop(self, deadline: float) -> bool:
        """End after the step under way, write the cursors that moved, let go of the sink; whether all that was done.

        `deadline` is a monotonic time. Where the step does not end in time nothing is written: the sink's own
        transaction decides, and the next claim reads what it decided.
        """
        self._ended = True
        if not self._stepping.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        try:
            clean = True
            session = self._session
            if session is not None and not self.box.at_rest:
                try:
                    self._write_cursors(session)
                except Exception as error:  # noqa: BLE001 - `retry` decides
                    clean = isinstance(error, RetryableError)  # nothing is lost: they are found again by reading
                    self._attempts.failed(error, subscription=self.spec.name, sink=self.sink.name)
            self._drop_session()
        finally:
            self._stepping.release()
        self._end_run("stopped")
        for box in (self.box, *(lane.box for lane in self._lanes.values())):
            if not box.at_rest:
                box.become(State.STOPPED)
        return clean

    # ------------------------------------------------------------------------------------------- runs and catching up

    def start_run(self, run: Run) -> None:
        """Deliver everything up to the log's end as of now; a run under way is taken further instead."""
        with self._lock:
            end = self._machinery.log.end()
            if self.spec.mode is not Mode.TRANSACTIONAL:  # see `_bound`: such a lane's mark is the dispatcher's alone
                for lane in self._lanes.values():
                    lane.mark(end.offset())
            self._dirty = OrderedDict(self._lanes)
            before = self._run
            rows = sum(lane.meter.total for lane in self._lanes.values())
            self._run = (run, end, rows) if before is None else (before[0], end, before[2])
        if before is not None:
            self._machinery.run_ended(run, "joined")
        self._ask()
        self._end_run_if_done()

    def _end_run_if_done(self) -> None:
        with self._lock:
            if self._run is None:
                return
            _, cut, _ = self._run
            if self.box.state is not State.FAILED and not self.caught_up(cut.offset()):
                return
        self._end_run("failed" if self.failures() else "done")

    def _end_run(self, outcome: str) -> None:
        with self._lock:
            if self._run is None:
                return
            (run, _, rows), self._run = self._run, None
            run.rows = sum(lane.meter.total for lane in self._lanes.values()) - rows
            run.problems.update(self.failures())
        self._machinery.run_ended(run, outcome)

    def caught_up(self, cut: int) -> bool:
        """Whether everything below the offset `cut` is in the sink, apart from what is paused or has failed."""
        with self._lock:
            if self.box.at_rest:
                return True
            if self._session is None:
                return False
            return all(lane.box.at_rest or not self._behind(lane, cut) for lane in self._dirty.values())

    def failures(self) -> dict[str, Problem]:
        """What has failed, by the name of the subscription or its stream."""
        with self._lock:
            found = dict(self._lost)
            boxes = {self.spec.name: self.box, **{lane.label: lane.box for lane in self._lanes.values()}}
        found.update({name: b.problem for name, b in boxes.items() if b.state in STUCK and b.problem})
        return found

    def lost(self) -> dict[str, Problem]:
        """Cursors in the sink that this log cannot continue, of streams that it does not have."""
        with self._lock:
            return dict(self._lost)

    def boxes(self) -> dict[str, StateBox]:
        """The states of the subscription (by its name) and of its lanes (by the stream's label)."""
        with self._lock:
            return {self.spec.name: self.box, **{lane.label: lane.box for lane in self._lanes.values()}}

    def _schema_changes(self) -> list[dict[str, Any]]:
        with self._lock:
            labels = sorted(stream.label for lane in self._lanes.values() for stream in lane.streams.values())
        found = (shown(label, self.following.of(label)) for label in labels)
        return [one for one in found if one is not None]

    def to_json(self) -> dict[str, Any]:
        """For status."""
        with self._lock:
            lanes = {lane.label: lane.to_json() for lane in self._lanes.values()}
            lost = {label: problem.to_json() for label, problem in self._lost.items()}
        return {
            **self.box.to_json(),
            "source": self.spec.source,
            "sink": self.sink.name,
            "mode": str(self.spec.mode),
            "promise": self.sink.abilities.promise.name.lower(),
            "scheduled": self.spec.scheduled,
            "rows": sum(lane["rows"] for lane in lanes.values()),
            "rows_per_second": round(sum(lane["rows_per_second"] for lane in lanes.values()), 1),
            "lag_seconds": max((lane["lag_seconds"] for lane in lanes.values()), default=0.0),
            "failed_tables": sorted([label for label, lane in lanes.items() if lane["state"] in STUCK] + [*lost]),
            "lost_cursors": lost,
            "schema_changes": self._schema_changes(),
            "tables": dict(sorted(lanes.items())),
        }


_Found = tuple[Lane, Batch]


def _is_later(monotonic: float | None) -> bool:
    return monotonic is not None and time.monotonic() < monotonic


def _may_run(lane: Lane) -> bool:
    return not lane.box.at_rest and not _is_later(lane.retry_at)
