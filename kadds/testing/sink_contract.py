"""The conformance suite of sinks: what `kadds.api.connector` promises, as tests.

    class TestMySink(SinkContract):
        abilities = ABILITIES

        def fresh_storage(self, folder): self.path = folder / "target.db"
        def make_sink(self): return MySink(MySettings(path=self.path))
        def read_target(self, target): return …   # a pyarrow.Table

Every cell of Event × Mode × KeyKind is run: declared ones must work, the others must be refused before anything moves.
The rest holds for every sink: claims and fences, all or nothing, cursors, plans, names, exact values, shapes of
targets.
Needs pytest and hypothesis (`pip install kadds[test]`).
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kadds.api.change import NOT_GIVEN_TYPE, not_given_bitmap
from kadds.api.connector import (
    Append,
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
    Sink,
    SinkAbilities,
    Step,
    Target,
    Truncate,
    Upsert,
    missing_abilities,
)
from kadds.api.errors import DataError, FencedError, KaddsError, SchemaMismatchError
from kadds.api.position import Cursor
from kadds.api.schema import Column, Table
from kadds.testing.sink_steps import random_steps
from kadds.testing.sink_values import (
    COLUMNS,
    EDGE_VALUES,
    HOSTILE_NAMES,
    NOTE,
    STREAM,
    Row,
    exact_rows,
    history_of,
    keys_of,
    orders,
    rows_of,
    text_cell,
)

SUBSCRIPTION = "default/shop-to-there"
ALL_CELLS = list(itertools.product(Event, Mode, KeyKind))


class SinkContract:
    """Subclass it, say what the sink can do, and give it storage."""

    abilities: SinkAbilities
    """What the connector declares."""

    def fresh_storage(self, folder: Path) -> None:
        """Point `make_sink` and `read_target` at storage with nothing in it; `folder` is empty and the caller's own."""
        raise NotImplementedError

    def make_sink(self) -> Sink:
        """Open a sink over that storage; called several times, like processes that come one after the other."""
        raise NotImplementedError

    def read_target(self, target: Target) -> pa.Table:
        """All that the target holds: its columns in their own types and, in `append`, those of HISTORY behind them.

        Read it as somebody else would, not through the sink. Null stands for a cell that was not given, and for a text
        that its column's type cannot hold.
        """
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------------- machinery

    @pytest.fixture(autouse=True)
    def _storage_of_the_test(self, tmp_path: Path) -> Iterator[None]:
        self._begin(tmp_path)
        yield
        self._end()

    def _begin(self, folder: Path) -> None:
        self._sinks: list[Sink] = []
        self._offset = 0
        self._log = uuid.uuid4()
        (storage := folder / "storage").mkdir()
        self.fresh_storage(storage)

    def _end(self) -> None:
        for sink in self._sinks:
            sink.close()
        self._sinks.clear()

    def open_sink(self) -> Sink:
        """A sink that is closed at the end of the test."""
        sink = self.make_sink()
        self._sinks.append(sink)
        return sink

    def reopen(self) -> Sink:
        """Close every sink and open one, as after a restart."""
        self._end()
        return self.open_sink()

    def a_cursor(self) -> str:
        """The next cursor of the log."""
        self._offset += 100
        return str(Cursor(self._log, 1, "a1b2c3", {0: self._offset}))

    def a_plan(self, session: Session, targets: Sequence[Target]) -> Plan:
        """A plan with the names that the sink gives."""
        first = str(Cursor(self._log, 1, "a1b2c3", {0: self._offset}))
        plan = Plan(id=f"plan-{uuid.uuid4()}", first=first, end=self.a_cursor())
        names: dict[str, str] = {}
        for target in targets:
            names.update(session.plan(target, plan))
        return replace(plan, names=names)

    def deliver(
        self,
        session: Session,
        target: Target,
        *steps: Step,
        cursors: Mapping[str, str] | None = None,
        plan: Plan | None = None,
    ) -> None:
        """Deliver steps to one target, by plan where the sink wants one."""
        self.deliver_all(session, [Delivery(target, steps)], cursors, plan)

    def deliver_all(
        self,
        session: Session,
        deliveries: Sequence[Delivery],
        cursors: Mapping[str, str] | None = None,
        plan: Plan | None = None,
    ) -> None:
        """Deliver; a plan is made where the sink wants one and none is given."""
        if plan is None and self.abilities.promise is not Promise.EXACTLY_ONCE:
            plan = self.a_plan(session, [delivery.target for delivery in deliveries])
        session.deliver(deliveries, {STREAM: self.a_cursor()} if cursors is None else cursors, plan)

    def put(self, target: Target, rows: pa.RecordBatch, as_text: pa.Array | None = None) -> Step:
        """The step that adds new rows in the target's mode."""
        if target.mode is Mode.APPEND:
            return Append(history_of(target, rows, "c" * rows.num_rows), as_text)
        return Upsert(rows, as_text=as_text)

    def own_columns(self, target: Target) -> list[tuple[Any, ...]]:
        """What the target holds, without history, as exact rows."""
        return exact_rows(self.read_target(target).select(target.table.arrow_schema.names))

    def expect(self, target: Target, *rows: Row) -> None:
        """The target holds exactly these rows."""
        assert self.own_columns(target) == exact_rows(pa.Table.from_batches([rows_of(target, rows)]))

    def refusal(self, action: Callable[[], Any], kind: type[KaddsError] = KaddsError) -> KaddsError | None:
        """The error of `kind` that `action` raises, which must say what to do; None where it does it."""
        try:
            action()
        except kind as error:
            return error
        return None

    def errors(self, *targets: Target) -> list[Finding]:
        """What `check` refuses."""
        return [finding for finding in self._sinks[-1].check(targets) if finding.level is Level.ERROR]

    @property
    def a_mode(self) -> Mode:
        """A mode for tests that are not about modes."""
        preferred: tuple[Mode, ...] = (Mode.MERGE, Mode.APPEND, *Mode)
        return next(mode for mode in preferred if {Event.CREATE, Event.READ} & self._events(mode, KeyKind.SINGLE))

    def _write(self, session: Session, target: Target, rows: pa.RecordBatch) -> None:
        session.prepare(target)
        self.deliver(session, target, self.put(target, rows))

    def _events(self, mode: Mode, key: KeyKind) -> set[Event]:
        return {event for event, of_mode, of_key in self.abilities.cells if (of_mode, of_key) == (mode, key)}

    def _start(self, target: Target, subscription: str = SUBSCRIPTION) -> Session:
        session = self.open_sink().claim(subscription)
        session.prepare(target)
        return session

    # ----------------------------------------------------------------------------------------- the abilities' matrix

    @pytest.mark.parametrize(("event", "mode", "key"), ALL_CELLS, ids=lambda part: part.value)
    def test_a_cell_works_if_declared_and_is_refused_if_not(self, event: Event, mode: Mode, key: KeyKind) -> None:
        target = orders(mode, key)
        if (event, mode, key) not in self.abilities.cells:
            self._refuses(event, target)
        elif mode is Mode.APPEND:
            self._keeps_as_history(event, target)
        else:
            self._applies(event, target)

    def _refuses(self, event: Event, target: Target) -> None:
        findings = missing_abilities(self.abilities, target, [event])
        assert [finding.level for finding in findings] == [Level.ERROR]
        assert target.mode.value in findings[0].message
        if self._events(target.mode, KeyKind.of(target.table)):
            assert event.value in findings[0].message
            return
        sink = self.open_sink()
        errors = self.errors(target)
        assert any(target.mode.value in finding.message for finding in errors), errors
        session = sink.claim(SUBSCRIPTION)
        step = self.put(target, rows_of(target, [(1, "a", 1, "one")]))
        assert self.refusal(lambda: session.prepare(target)) or self.refusal(
            lambda: self.deliver(session, target, step)
        )
        assert not self.reopen().claim(SUBSCRIPTION).cursors

    def _applies(self, event: Event, target: Target) -> None:
        one, two, three = (1, "a", 10, "one"), (2, "a", 20, "two"), (3, "b", None, None)
        session = self._start(target)
        assert not self.errors(target)
        self.deliver(session, target, Upsert(rows_of(target, [one, two, three])))
        self.expect(target, one, two, three)
        match event:
            case Event.CREATE | Event.READ:
                self.deliver(session, target, Upsert(rows_of(target, [(4, "c", 40, "four")])))
                self.expect(target, one, two, three, (4, "c", 40, "four"))
            case Event.UPDATE:
                self.deliver(session, target, Upsert(rows_of(target, [(2, "a", None, "zwei"), (3, "b", 3, "")])))
                self.expect(target, one, (2, "a", None, "zwei"), (3, "b", 3, ""))
            case Event.DELETE:
                self.deliver(session, target, Delete(keys_of(target, two, (99, "absent", None, None))))
                self.expect(target, one, three)
            case Event.TRUNCATE:
                self.deliver(session, target, Truncate(), Upsert(rows_of(target, [two])))
                self.expect(target, two)
            case Event.KEY_CHANGE:
                moved = (1, "a", None, None), (2, "a", None, None), (9, "z", None, None)
                old = keys_of(target, *moved)
                self.deliver(session, target, Rekey(old, keys_of(target, moved[1], moved[0], moved[2])))
                self.expect(target, (2, "a", 10, "one"), (1, "a", 20, "two"), three)
            case Event.NOT_GIVEN:
                self._leaves_cells_not_given_alone(session, target)
            case Event.AS_TEXT:
                self._keeps_or_refuses_text(session, target, [one, two, three])

    def _leaves_cells_not_given_alone(self, session: Session, target: Target) -> None:
        rows = rows_of(target, [(1, "a", None, "eins"), (2, "a", 21, None), (3, "b", None, None), (4, "c", 4, "four")])
        missing = [not_given_bitmap([2], 4), not_given_bitmap([3], 4), not_given_bitmap([2, 3], 4), None]
        self.deliver(session, target, Upsert(rows, pa.array(missing, NOT_GIVEN_TYPE)))
        after = (1, "a", 10, "eins"), (2, "a", 21, "two"), (3, "b", None, None), (4, "c", 4, "four")
        self.expect(target, *after)
        absent = Upsert(rows_of(target, [(77, "q", 1, None)]), pa.array([not_given_bitmap([3], 4)], NOT_GIVEN_TYPE))
        with pytest.raises(DataError):
            self.deliver(session, target, absent)
        self.expect(target, *after)

    def _keeps_or_refuses_text(self, session: Session, target: Target, before: Sequence[Row]) -> None:
        """Text in a column of text is kept; in any other it is kept or refused by name, and never bent."""
        rows = rows_of(target, [(5, "e", 5, None), (6, "f", 6, "six")])
        self.deliver(session, target, self.put(target, rows, text_cell(2, 0, NOTE, "as it was")))
        after = [*before, (5, "e", 5, "as it was"), (6, "f", 6, "six")]
        self.expect(target, *after)
        number = self.put(target, rows_of(target, [(7, "g", None, None)]), text_cell(1, 0, 2, "NaN"))
        if error := self.refusal(lambda: self.deliver(session, target, number), DataError):
            assert "amount" in str(error)
            self.expect(target, *after)
        else:
            assert len(self.own_columns(target)) == len(after) + 1

    def _keeps_as_history(self, event: Event, target: Target) -> None:
        session = self._start(target)
        assert not self.errors(target)
        one, two = (1, "a", 10, "one"), (2, "b", None, None)
        if event is Event.AS_TEXT:
            self._keeps_or_refuses_text(session, target, [])
            return
        empty = rows_of(target, [(None, None, None, None)])
        match event:
            case Event.CREATE:
                batch = history_of(target, rows_of(target, [one, two]), "cc")
            case Event.READ:
                batch = history_of(target, rows_of(target, [one, two]), "rr", xid=[None, None])
            case Event.UPDATE:
                batch = history_of(target, rows_of(target, [one, (1, "a", 11, "")]), "uu", image=["before", "after"])
            case Event.DELETE:
                batch = history_of(target, rows_of(target, [one]), "d")
            case Event.TRUNCATE:
                batch = history_of(target, empty, "t", not_given=[["id", "part", "amount", "note"]])
            case Event.KEY_CHANGE:
                batch = history_of(target, rows_of(target, [one, (9, "a", 10, "one")]), "uu", image=["before", "after"])
            case _:
                batch = history_of(target, rows_of(target, [(1, "a", None, "x")]), "u", not_given=[["amount"]])
        self.deliver(session, target, Append(batch))
        again = history_of(target, rows_of(target, [(5, "e", 5, "five")]), "c")
        self.deliver(session, target, Append(again))
        assert exact_rows(self.read_target(target)) == exact_rows(pa.Table.from_batches([batch, again]))

    # ------------------------------------------------------------------------------------------- claims and cursors

    def test_a_new_claim_reads_the_cursors_and_fences_the_older_session(self) -> None:
        target = orders(self.a_mode)
        older = self._start(target)
        assert not older.cursors
        first = self.a_cursor()
        self.deliver(older, target, self.put(target, rows_of(target, [(1, "a", 1, "one")])), cursors={STREAM: first})
        newer = self._sinks[0].claim(SUBSCRIPTION)
        assert dict(newer.cursors) == {STREAM: first}
        with pytest.raises(FencedError):
            self.deliver(older, target, self.put(target, rows_of(target, [(2, "b", 2, "two")])))
        self.expect(target, (1, "a", 1, "one"))
        newer.prepare(target)
        second = self.a_cursor()
        self.deliver(newer, target, self.put(target, rows_of(target, [(3, "c", 3, "three")])), cursors={STREAM: second})
        self.expect(target, (1, "a", 1, "one"), (3, "c", 3, "three"))
        assert dict(self._sinks[0].claim(SUBSCRIPTION).cursors) == {STREAM: second}

    def test_a_claim_through_another_opened_sink_fences_too(self) -> None:
        target = orders(self.a_mode)
        older = self._start(target)
        self.open_sink().claim(SUBSCRIPTION)
        with pytest.raises(FencedError):
            self.deliver(older, target, self.put(target, rows_of(target, [(1, "a", 1, "one")])))
        assert self.own_columns(target) == []

    def test_claims_of_different_subscriptions_leave_each_other_alone(self) -> None:
        target = orders(self.a_mode)
        one = self._start(target)
        sink = self._sinks[0]
        two = sink.claim("tenant/other ' \" ; name")
        two.prepare(target)
        self.deliver(one, target, self.put(target, rows_of(target, [(1, "a", 1, "one")])), cursors={STREAM: "x1"})
        self.deliver(two, target, self.put(target, rows_of(target, [(2, "b", 2, "two")])), cursors={STREAM: "x2"})
        assert dict(sink.claim(SUBSCRIPTION).cursors) == {STREAM: "x1"}
        assert dict(sink.claim("tenant/other ' \" ; name").cursors) == {STREAM: "x2"}
        self.expect(target, (1, "a", 1, "one"), (2, "b", 2, "two"))

    def test_opening_again_finds_rows_and_cursors(self) -> None:
        target = orders(self.a_mode)
        session = self._start(target)
        cursors = {STREAM: self.a_cursor(), "": self.a_cursor(), "default/shop/odd ' \" %2F@2": self.a_cursor()}
        self.deliver(session, target, self.put(target, rows_of(target, [(1, "a", 1, "one")])), cursors=cursors)
        moved = {STREAM: self.a_cursor()}
        self.deliver(session, target, cursors=moved)
        session.release()
        assert dict(self.reopen().claim(SUBSCRIPTION).cursors) == {**cursors, **moved}
        self.expect(target, (1, "a", 1, "one"))

    def test_an_empty_delivery_moves_only_the_cursors(self) -> None:
        target = orders(self.a_mode)
        session = self._start(target)
        self.deliver(session, target, self.put(target, rows_of(target, [(1, "a", 1, "one")])))
        self.deliver_all(session, [], {STREAM: self.a_cursor()})
        cursor = self.a_cursor()
        session.deliver([], {STREAM: cursor})
        self.expect(target, (1, "a", 1, "one"))
        assert dict(self.reopen().claim(SUBSCRIPTION).cursors) == {STREAM: cursor}

    def test_two_subscriptions_deliver_at_the_same_time(self) -> None:
        sink = self.open_sink()
        targets = [orders(self.a_mode, name=f"orders_{number}") for number in range(2)]
        failures: list[BaseException] = []

        def run(number: int) -> None:
            try:
                session = sink.claim(f"default/s{number}")
                session.prepare(targets[number])
                for row in range(10):
                    step = self.put(targets[number], rows_of(targets[number], [(row, "a", row, "x")]))
                    self.deliver(session, targets[number], step)
            except BaseException as error:  # noqa: BLE001 - raised again below, in the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        for target in targets:
            self.expect(target, *((row, "a", row, "x") for row in range(10)))

    # ------------------------------------------------------------------------------------------------ all or nothing

    def test_when_the_second_delivery_fails_the_first_leaves_no_trace(self) -> None:
        good, bad = orders(self.a_mode), orders(self.a_mode, name="items")
        session = self._start(good)
        session.prepare(bad)
        kept = self.a_cursor()
        self.deliver(session, good, self.put(good, rows_of(good, [(1, "a", 1, "one")])), cursors={STREAM: kept})
        of_another_shape = pa.RecordBatch.from_pylist([{"id": 1, "unheard_of": 1.5}])
        wrong = Append(of_another_shape) if bad.mode is Mode.APPEND else Upsert(of_another_shape)
        first = Delivery(good, (self.put(good, rows_of(good, [(2, "b", 2, "two")])),))
        with pytest.raises(KaddsError):
            self.deliver_all(session, [first, Delivery(bad, (wrong,))])
        self.expect(good, (1, "a", 1, "one"))
        assert self.own_columns(bad) == []
        assert dict(self.reopen().claim(SUBSCRIPTION).cursors) == {STREAM: kept}

    def test_the_same_plan_twice_is_once(self) -> None:
        if self.abilities.promise is not Promise.PLANNED:
            return
        target = orders(self.a_mode)
        session = self._start(target)
        plan = self.a_plan(session, [target])
        assert dict(session.plan(target, plan)) == dict(plan.names), "a plan always gives the same names"
        step, cursors = self.put(target, rows_of(target, [(1, "a", 1, "one")])), {STREAM: plan.end}
        self.deliver(session, target, step, cursors=cursors, plan=plan)
        self.deliver(session, target, step, cursors=cursors, plan=plan)
        self.expect(target, (1, "a", 1, "one"))
        session = self.reopen().claim(SUBSCRIPTION)
        session.prepare(target)
        self.deliver(session, target, step, cursors=cursors, plan=plan)
        self.expect(target, (1, "a", 1, "one"))
        later = self.a_plan(session, [target])
        after = self.put(target, rows_of(target, [(2, "b", 2, "two")]))
        self.deliver(session, target, after, cursors={STREAM: later.end}, plan=later)
        self.deliver(session, target, step, cursors=cursors, plan=plan)
        self.expect(target, (1, "a", 1, "one"), (2, "b", 2, "two"))
        assert dict(self.reopen().claim(SUBSCRIPTION).cursors) == {STREAM: later.end}, (
            "an old plan moved the cursor back"
        )

    # ----------------------------------------------------------------------------------------------- names and values

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_a_hostile_name_is_kept_as_it_is_or_refused(self, name: str) -> None:
        sentinel = orders(self.a_mode, name="sentinel")
        session = self._start(sentinel)
        self.deliver(session, sentinel, self.put(sentinel, rows_of(sentinel, [(1, "a", 1, "here")])))
        columns = (Column("id", pa.int64(), nullable=False), Column(name, pa.string()))
        table = Table("public", name, columns, ("id",))
        for target in (
            Target(f"default/shop/{name}", table.qualified_name, table, self.a_mode),
            Target(f"default/shop/{name}", name, replace(table, schema=None), self.a_mode),
        ):
            rows = rows_of(target, [(1, name), (2, None)])
            session = self._sinks[0].claim(SUBSCRIPTION)
            if error := self.refusal(partial(self._write, session, target, rows)):
                assert error.hint, "who refuses a name says what to do"
            else:
                assert self.own_columns(target) == exact_rows(pa.Table.from_batches([rows]))
        self.expect(sentinel, (1, "a", 1, "here"))

    def test_names_that_differ_in_case_alone_are_kept_apart_or_refused(self) -> None:
        lower, upper = orders(self.a_mode, name="orders"), orders(self.a_mode, name="ORDERS")
        session = self._start(lower)
        self.deliver(session, lower, self.put(lower, rows_of(lower, [(1, "a", 1, "lower")])))
        rows = rows_of(upper, [(2, "b", 2, "upper")])
        if error := self.refusal(lambda: self._write(session, upper, rows)):
            assert "ORDERS" in str(error)
            assert self.errors(lower, upper)
        else:
            self.expect(upper, (2, "b", 2, "upper"))
        self.expect(lower, (1, "a", 1, "lower"))

    def test_columns_that_differ_in_case_alone_are_kept_apart_or_refused(self) -> None:
        columns = (Column("id", pa.int64(), nullable=False), Column("name", pa.string()), Column("Name", pa.string()))
        table = Table("public", "twins", columns, ("id",))
        target = Target("default/shop/public.twins", table.qualified_name, table, self.a_mode)
        session = self.open_sink().claim(SUBSCRIPTION)
        rows = rows_of(target, [(1, "lower", "upper")])
        if error := self.refusal(lambda: self._write(session, target, rows)):
            assert "Name" in str(error)
            assert self.errors(target)
        else:
            assert self.own_columns(target) == exact_rows(pa.Table.from_batches([rows]))

    @pytest.mark.parametrize("arrow", EDGE_VALUES, ids=str)
    def test_edge_values_are_exact_or_refused_by_name(self, arrow: pa.DataType) -> None:
        values = pa.concat_arrays([EDGE_VALUES[arrow], pa.nulls(1, arrow)])
        table = Table("public", "edges", (Column("id", pa.int64(), nullable=False), Column("edge", arrow)), ("id",))
        target = Target("default/shop/public.edges", table.qualified_name, table, self.a_mode)
        session = self.open_sink().claim(SUBSCRIPTION)
        rows = pa.RecordBatch.from_arrays([pa.array(range(len(values))), values], schema=table.arrow_schema)
        if error := self.refusal(lambda: session.prepare(target)):
            assert "edge" in str(error), "who refuses a type names the column"
            assert self.errors(target)
            return
        kept = []
        for number in range(len(values)):
            row = rows.slice(number, 1)
            if error := self.refusal(partial(self._write, session, target, row), DataError):
                assert "edge" in str(error), "who refuses a value names the column"
            else:
                kept.append(row)
        assert kept, "not even NULL is taken"
        expected = exact_rows(pa.Table.from_batches(kept, schema=table.arrow_schema))
        assert self.own_columns(target) == expected
        whole = replace(
            target, name="public.whole", table=replace(table, name="whole"), stream="default/shop/public.whole"
        )
        session.prepare(whole)
        self.deliver(session, whole, self.put(whole, pa.concat_batches(kept)))
        assert self.own_columns(whole) == expected

    # ------------------------------------------------------------------------------------------- shapes of the target

    def test_a_target_that_is_there_and_fits_is_used_and_keeps_its_rows(self) -> None:
        target = orders(self.a_mode)
        session = self._start(target, "default/before")
        self.deliver(session, target, self.put(target, rows_of(target, [(1, "a", 1, "there before")])))
        sink = self.reopen()
        assert not self.errors(target)
        session = sink.claim(SUBSCRIPTION)
        session.prepare(target)
        self.deliver(session, target, self.put(target, rows_of(target, [(2, "b", 2, "new")])))
        self.expect(target, (1, "a", 1, "there before"), (2, "b", 2, "new"))

    def test_a_target_of_another_shape_is_refused_by_column_and_untouched(self) -> None:
        there = orders(self.a_mode)
        columns = tuple(replace(c, type=pa.bool_()) if c.name == "amount" else c for c in COLUMNS)
        there = replace(there, table=replace(there.table, columns=columns))
        session = self._start(there, "default/before")
        self.deliver(session, there, self.put(there, rows_of(there, [(1, "a", True, "there before")])))
        sink = self.reopen()
        target = orders(self.a_mode)
        errors = self.errors(target)
        assert any("amount" in finding.message for finding in errors), errors
        session = sink.claim(SUBSCRIPTION)
        with pytest.raises(SchemaMismatchError, match="amount"):
            session.prepare(target)
        self.expect(there, (1, "a", True, "there before"))

    def test_a_new_nullable_column_is_added_if_declared_and_refused_if_not(self) -> None:
        target = orders(self.a_mode)
        session = self._start(target)
        self.deliver(session, target, self.put(target, rows_of(target, [(1, "a", 1, "one")])))
        table = replace(target.table, columns=(Column("added", pa.int32()), *COLUMNS))
        wider = replace(target, table=table, version=1)
        if (SchemaChange.ADD, target.mode) not in self.abilities.schema_changes:
            with pytest.raises(SchemaMismatchError, match="added"):
                session.prepare(wider)
            return
        session.prepare(wider)
        self.deliver(session, wider, self.put(wider, rows_of(wider, [(7, 2, "b", 2, "two")])))
        self.expect(wider, (None, 1, "a", 1, "one"), (7, 2, "b", 2, "two"))  # type: ignore[arg-type]

    # -------------------------------------------------------------------------------------- against a simple model

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_steps_in_any_order_leave_what_a_simple_model_has(self, data: st.DataObject) -> None:
        events = self._events(Mode.MERGE, KeyKind.SINGLE)
        if not {Event.CREATE, Event.UPDATE, Event.DELETE} <= events:
            return
        target = orders(Mode.MERGE)
        model: dict[int, Row] = {}
        steps = data.draw(random_steps(target, model, events))
        with tempfile.TemporaryDirectory() as folder:
            self._end()
            self._begin(Path(folder))
            session = self._start(target)
            for number, group in enumerate(steps):
                self.deliver(session, target, *group, cursors={STREAM: str(number)})
            self.expect(target, *model.values())
            assert dict(self.reopen().claim(SUBSCRIPTION).cursors) == ({STREAM: str(len(steps) - 1)} if steps else {})
            self._end()
