"""The conformance suite of sources that poll or stream: subclass `SourceContract` in a test module.

It runs the promises of `kadds.api.connector`: order, wholeness, repeats, acknowledgement, values, errors; and what the
log asks of every caller: that it can be killed at any step, that a newer holder fences an older one, that a full log
makes it wait. Which events must arrive is taken from the declared abilities; one that is not declared must not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import pytest

from kadds.api.connector import Capture, Connector, Event, PollSource, Source, SourceAbilities, StreamSource
from kadds.api.errors import FencedError, KaddsError
from kadds.api.position import Position
from kadds.api.schema import Table
from kadds.testing.memory_log import Killed, MemoryInlet, MemoryLog

SOURCE = "default/contract"
TIMEOUT_SECONDS = 30.0
Row = tuple[int, str]  # id, label


@dataclass(frozen=True)
class GivenAsText:
    """An expected cell that the column's type cannot hold."""

    text: str


@dataclass(frozen=True)
class ExactValues:
    """A table that the system holds: `columns` are the values expected of each column, in the order of the key."""

    table: str
    key: str
    columns: Mapping[str, Sequence[object]]


class SourceContract:
    """What every source must hold. The methods that raise NotImplementedError are the subclass' to write.

    Each test gets a fresh system; a subclass sets it up in a fixture of its own (`autouse=True`) and keeps it on self.
    """

    connector: ClassVar[Connector]
    #: The events that this configuration of the connector captures; None means all that the connector declares.
    configured_events: ClassVar[frozenset[Event] | None] = None

    # ------------------------------------------------------------------------------------------ hooks

    def make_source(self) -> Source:
        """Open the source over the system, reading in small pieces; called again after each simulated crash."""
        raise NotImplementedError

    def make_unusable_source(self) -> Source:
        """Open a source over a system that is not there, or that refuses."""
        raise NotImplementedError

    def create_table(self, name: str) -> str:
        """Make a table with the columns id (integer, the key) and label (text); its qualified name."""
        raise NotImplementedError

    def insert(self, table: str, rows: Sequence[Row]) -> None:
        """Insert rows in one transaction."""
        raise NotImplementedError

    def update(self, table: str, rows: Sequence[Row]) -> None:
        """Give rows that exist a new label, in one transaction."""
        raise NotImplementedError

    def delete(self, table: str, ids: Sequence[int]) -> None:
        """Delete rows in one transaction."""
        raise NotImplementedError

    def truncate(self, table: str) -> None:
        """Empty the table at once; needed where truncates are declared."""
        raise NotImplementedError

    def change_key(self, table: str, old: int, new: int) -> None:
        """Change a row's id; needed where key changes are declared."""
        raise NotImplementedError

    def late_commit(self, table: str, rows: Sequence[Row]) -> Callable[[], None]:
        """Take up rows now (their number, their time), and return what commits them later."""
        raise NotImplementedError

    def insert_together(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Insert rows into several tables in one transaction; needed where transactions are declared."""
        raise NotImplementedError

    def store_exact_values(self) -> ExactValues:
        """Make a table with the edges of every type that the system has."""
        raise NotImplementedError

    def acknowledged(self) -> Position | None:
        """Up to where the system was told that its changes have been read; needed of a source that streams."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------ running a source

    @property
    def abilities(self) -> SourceAbilities:
        """What the connector declares."""
        assert self.connector.source is not None
        return self.connector.source.abilities

    @property
    def events(self) -> frozenset[Event]:
        """What has to arrive."""
        return self.abilities.events if self.configured_events is None else self.configured_events

    @contextmanager
    def opened(self) -> Iterator[Source]:
        """A source that is closed at the end."""
        source = self.make_source()
        try:
            yield source
        finally:
            source.close()

    def discovered(self, source: Source, *names: str) -> list[Table]:
        """The tables of these qualified names."""
        tables = {table.qualified_name: table for table in source.discover(lambda name: name in names)}
        return [tables[name] for name in names]

    def capture(self, source: Source, log: MemoryLog, *names: str) -> None:
        """Bring all that is committed now into the log."""
        tables = self.discovered(source, *names)
        if self.abilities.capture is Capture.POLL:
            assert isinstance(source, PollSource)
            for table in tables:
                self.poll(source, log, table)
        else:
            assert isinstance(source, StreamSource)
            self._stream(source, log, tables)

    def poll(self, source: PollSource, log: MemoryLog, table: Table) -> None:
        """Poll one table until nothing is left, as the engine does."""
        producer = log.producer(SOURCE, f"table:{table.qualified_name}")
        while source.poll(table, producer, threading.Event()).more:
            pass

    def _stream(self, source: StreamSource, log: MemoryLog, tables: Sequence[Table]) -> None:
        inlet = MemoryInlet(log, SOURCE)
        head = source.head()
        running = _Running(source, inlet, tables, log)
        log.wait(lambda: running.ended or inlet.reaches(head), TIMEOUT_SECONDS)
        running.stop()

    def capture_newly(self, log: MemoryLog, *names: str) -> None:
        """Bring all that is committed now into the log, by a source opened for it."""
        with self.opened() as source:
            self.capture(source, log, *names)

    def labels(self, log: MemoryLog, table: str) -> dict[Any, Any]:
        """id → label, after every change in the log has been applied in its order."""
        return {key: values["label"] for key, values in log.image(table).items()}

    # ------------------------------------------------------------------------------------------ order and wholeness

    def test_what_is_there_and_what_comes_is_captured_once(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(1, "one"), (2, "two")])
        with self.opened() as source:
            self.capture(source, log, table)
            self.insert(table, [(3, "three")])
            self.capture(source, log, table)
            self.capture(source, log, table)
        assert [row.values["id"] for row in log.rows(table)] == [1, 2, 3]
        assert self.labels(log, table) == {1: "one", 2: "two", 3: "three"}

    def test_rows_of_many_pieces_arrive_whole_and_in_order(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(number, f"label {number}") for number in range(1, 1001)])
        self.capture_newly(log, table)
        assert [row.values["id"] for row in log.rows(table)] == list(range(1, 1001))
        offsets = [row.offset for row in log.rows(table)]
        assert offsets == sorted(set(offsets))

    def test_sequences_of_a_producer_rise(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        for number in range(1, 6):
            self.insert(table, [(number, "x")])
            self.capture_newly(log, table)
        by_producer: dict[str, list[bytes]] = {}
        for transaction in log.transactions():
            by_producer.setdefault(transaction.producer, []).append(transaction.facts["sequence"])
        assert by_producer
        assert all(sequences == sorted(set(sequences)) for sequences in by_producer.values())

    def test_only_wanted_tables_are_discovered(self) -> None:
        wanted, other = self.create_table("wanted"), self.create_table("other")
        with self.opened() as source:
            found = [table.qualified_name for table in source.discover(lambda name: name == wanted)]
            assert found == [wanted]
            assert other not in found
            (table,) = source.discover(lambda name: name == wanted)
            assert table.key == ("id",)
            assert not [finding for finding in source.check([table]) if finding.level == "error"]

    def test_a_row_that_commits_late_is_not_lost_and_no_row_comes_twice(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(1, "one")])
        commit = self.late_commit(table, [(2, "late")])
        self.insert(table, [(3, "three")])
        self.capture_newly(log, table)
        commit()
        self.capture_newly(log, table)
        self.capture_newly(log, table)
        assert self.labels(log, table) == {1: "one", 2: "late", 3: "three"}
        assert len(log.rows(table)) == 3

    def test_changes_of_one_transaction_arrive_in_one_transaction(self) -> None:
        one, two, log = self.create_table("one"), self.create_table("two"), MemoryLog()
        if not self.abilities.transactions:
            self.insert(one, [(1, "a")])
            self.insert(two, [(1, "b")])
        else:
            self.insert_together({one: [(1, "a")], two: [(1, "b")]})
        self.capture_newly(log, one, two)
        holding = [t for t in log.transactions() if t.changes]
        assert len(holding) == (1 if self.abilities.transactions else 2)
        assert self.labels(log, one) == {1: "a"}
        assert self.labels(log, two) == {1: "b"}

    # ------------------------------------------------------------------------------------------ events and values

    @pytest.mark.parametrize(
        "event", [Event.CREATE, Event.UPDATE, Event.DELETE, Event.TRUNCATE, Event.KEY_CHANGE], ids=str
    )
    def test_a_declared_event_arrives_and_another_does_not(self, event: Event) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(1, "one"), (2, "two")])
        with self.opened() as source:
            self.capture(source, log, table)
            before = self.labels(log, table)
            expected = self._cause(event, table)
            self.capture(source, log, table)
        if event not in self.events:
            letters = {row.op for row in log.rows(table)}
            assert letters.isdisjoint({Event.DELETE: "d", Event.TRUNCATE: "t"}.get(event, ""))
        else:
            assert before == {1: "one", 2: "two"}
            assert self.labels(log, table) == expected
            self._check_images(event, log, table)

    def _cause(self, event: Event, table: str) -> dict[int, str]:
        """Make it happen, if the system can be expected to; what is to be seen then."""
        if event is Event.CREATE:
            self.insert(table, [(3, "three")])
            return {1: "one", 2: "two", 3: "three"}
        if event is Event.UPDATE:
            self.update(table, [(1, "uno")])
            return {1: "uno", 2: "two"}
        if event is Event.DELETE:
            self.delete(table, [1])
            return {2: "two"}
        if event is Event.TRUNCATE and event in self.events:
            self.truncate(table)
            return {}
        if event is Event.KEY_CHANGE and event in self.events:
            self.change_key(table, 1, 9)
            return {2: "two", 9: "one"}
        return {}

    def _check_images(self, event: Event, log: MemoryLog, table: str) -> None:
        last = [row for row in log.rows(table) if row.op in "ud"]
        if event is Event.DELETE:
            assert [row.before for row in last] == [True]
        if event is Event.UPDATE and self.abilities.before_images:
            assert [(row.before, row.values["label"]) for row in last] == [(True, "one"), (False, "uno")]

    def test_values_are_exact(self) -> None:
        expected, log = self.store_exact_values(), MemoryLog()
        self.capture_newly(log, expected.table)
        rows = sorted(log.rows(expected.table), key=lambda row: row.values[expected.key])
        for column, values in expected.columns.items():
            found = [GivenAsText(row.as_text[column]) if column in row.as_text else row.values[column] for row in rows]
            assert _plain(found) == _plain(values), f"column {column}"
            assert all(row.values[column] is None for row in rows if column in row.as_text), f"column {column}"

    # ------------------------------------------------------------------------------------------ restarts

    def test_captured_again_from_nothing_the_same_transactions_get_the_same_sequences(self) -> None:
        table, first, second = self.create_table("orders"), MemoryLog(), MemoryLog()
        self.insert(table, [(1, "one")])
        self.insert(table, [(2, "two")])
        self.capture_newly(first, table)
        self.capture_newly(second, table)
        sequences = [[t.facts["sequence"] for t in log.transactions() if t.changes] for log in (first, second)]
        assert sequences[0]
        assert sequences[0] == sequences[1]
        assert self.labels(first, table) == self.labels(second, table)

    def test_a_restart_repeats_nothing(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(1, "one"), (2, "two")])
        self.capture_newly(log, table)
        log.crash()
        self.capture_newly(log, table)
        assert [row.values["id"] for row in log.rows(table)] == [1, 2]

    def test_killed_at_any_step_nothing_is_lost_and_nothing_comes_twice(self) -> None:
        """A copy that was broken off may begin again behind a truncate; what counts is what stands behind the last."""
        step, was_killed, log = 1, True, MemoryLog()
        while was_killed:
            table = self.create_table(f"killed_{step}")
            self.insert(table, [(number, "x") for number in range(1, 301)])
            log.kill_at = log.steps + step
            was_killed = self._capture_until_killed(log, table)
            log.crash()
            self.insert(table, [(301, "x")])
            self.capture_newly(log, table)
            rows = log.rows(table)
            begin = max((number + 1 for number, row in enumerate(rows) if row.op == "t"), default=0)
            assert [row.values["id"] for row in rows[begin:]] == list(range(1, 302)), f"killed at step {step}"
            step += 1
        assert step > 3, "a capture has at least a beginning and an end to be killed at"

    def _capture_until_killed(self, log: MemoryLog, table: str) -> bool:
        try:
            self.capture_newly(log, table)
        except Killed:
            return True
        return False

    # ------------------------------------------------------------------------------------------ against the log

    def test_nothing_is_acknowledged_before_it_is_on_disk(self) -> None:
        table, log = self.create_table("orders"), MemoryLog(automatic=False)
        self.insert(table, [(1, "one")])
        source = self.make_source()
        running = self._start(source, log, table)
        log.wait(lambda: bool(log.queued), TIMEOUT_SECONDS)
        assert not running.ended
        if self.abilities.capture is Capture.STREAM:
            assert not self._has_acknowledged(log, source)
        log.crash()
        running.stop(expect=KaddsError, ask=self.abilities.capture is Capture.STREAM)
        source.close()
        log.automatic = True
        self.capture_newly(log, table)
        assert self.labels(log, table) == {1: "one"}
        assert len(log.rows(table)) == 1

    def _has_acknowledged(self, log: MemoryLog, source: Source) -> bool:
        """Whether the system was told of anything that the log does not have."""
        told = self.acknowledged()
        assert isinstance(source, StreamSource)
        return told is not None and told.reaches(source.head()) and not log.transactions()

    def test_the_older_of_two_holders_is_fenced(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(1, "one")])
        if self.abilities.capture is Capture.POLL:
            self._two_pollers(table, log)
        else:
            self._two_streamers(table, log)
        assert self.labels(log, table) == {1: "one", 2: "two"}
        assert len(log.rows(table)) == 2

    def _two_pollers(self, name: str, log: MemoryLog) -> None:
        with self.opened() as older, self.opened() as newer:
            assert isinstance(older, PollSource)
            (table,) = self.discovered(older, name)
            producer = log.producer(SOURCE, f"table:{name}")
            older.poll(table, producer, threading.Event())
            self.insert(name, [(2, "two")])
            self.capture(newer, log, name)
            with pytest.raises(FencedError):
                older.poll(table, producer, threading.Event())

    def _two_streamers(self, name: str, log: MemoryLog) -> None:
        with self.opened() as older, self.opened() as newer:
            assert isinstance(older, StreamSource)
            running = self._start(older, log, name)
            log.wait(lambda: bool(log.rows(name)), TIMEOUT_SECONDS)
            self.capture(newer, log, name)
            self.insert(name, [(2, "two")])
            running.stop(expect=FencedError, ask=False)
            self.capture(newer, log, name)

    def test_a_full_log_makes_the_source_wait_and_loses_nothing(self) -> None:
        table, log = self.create_table("orders"), MemoryLog(automatic=False, queue_bytes=1)
        for start in (1, 301, 601):
            self.insert(table, [(number, "x") for number in range(start, start + 300)])
        with self.opened() as source:
            running = self._start(source, log, table)
            log.wait(lambda: log.waiting > 0, TIMEOUT_SECONDS)
            assert log.queued == 1
            assert not log.rows(table)
            while not running.ended and len(log.rows(table)) < 900:
                log.wait(lambda: running.ended or log.queued > 0, TIMEOUT_SECONDS)
                log.flush()
            log.automatic = True
            log.flush()
            running.stop()
        assert [row.values["id"] for row in log.rows(table)] == list(range(1, 901))

    def _start(self, source: Source, log: MemoryLog, name: str) -> _Running:
        tables = self.discovered(source, name)
        if isinstance(source, PollSource):
            return _Running(_Polling(self, source, log), MemoryInlet(log, SOURCE), tables, log)
        assert isinstance(source, StreamSource)
        return _Running(source, MemoryInlet(log, SOURCE), tables, log)

    # ------------------------------------------------------------------------------------------ stopping and errors

    def test_asked_to_stop_it_leaves_nothing_half_done(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(number, "x") for number in range(1, 1001)])
        with self.opened() as source:
            stopping = threading.Event()
            stopping.set()
            if isinstance(source, PollSource):
                (found,) = self.discovered(source, table)
                polled = source.poll(found, log.producer(SOURCE, f"table:{table}"), stopping)
                assert polled.more or polled.rows == 1000
            self.capture(source, log, table)
        assert [row.values["id"] for row in log.rows(table)] == list(range(1, 1001))

    def test_a_closed_source_refuses_by_one_of_our_errors(self) -> None:
        table = self.create_table("orders")
        source = self.make_source()
        source.close()
        with pytest.raises(KaddsError):
            source.discover(lambda name: name == table)

    def test_a_system_that_is_not_there_is_named_by_one_of_our_errors(self) -> None:
        with pytest.raises(KaddsError) as caught:
            self.make_unusable_source().discover(lambda name: True)
        assert caught.value.message
        assert caught.value.hint or caught.value.where


def _plain(values: Sequence[object]) -> list[str]:
    """What tells 1 from True, 0.0 from -0.0, 1.50 from 1.5; a NaN equals itself, and UTC is UTC whoever made it."""
    return [f"{type(v).__name__} {v.isoformat() if isinstance(v, datetime) else repr(v)}" for v in values]


class _Polling:
    """A poll seen as something that runs until it is done."""

    def __init__(self, contract: SourceContract, source: PollSource, log: MemoryLog) -> None:
        self._contract, self._source, self._log = contract, source, log

    def stream(self, tables: Sequence[Table], inlet: MemoryInlet) -> None:
        for table in tables:
            self._contract.poll(self._source, self._log, table)


class _Running:
    """A source that runs in a thread of its own."""

    def __init__(
        self, source: StreamSource | _Polling, inlet: MemoryInlet, tables: Sequence[Table], log: MemoryLog
    ) -> None:
        self._inlet, self._log = inlet, log
        self._error: BaseException | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._run, args=(source, tables), daemon=True)
        self._thread.start()

    def _run(self, source: StreamSource | _Polling, tables: Sequence[Table]) -> None:
        try:
            source.stream(tables, self._inlet)
        except BaseException as error:  # noqa: BLE001 - it is raised again by `stop`, in the thread of the test
            self._error = error
        with self._log.changing():
            self.ended = True

    def stop(self, expect: type[KaddsError] | None = None, *, ask: bool = True) -> None:
        """Ask it to end and wait; raises what it raised, unless that was expected."""
        if ask:
            self._inlet.stopping.set()
        self._thread.join(TIMEOUT_SECONDS)
        assert not self._thread.is_alive(), "the source does not stop"
        if expect is not None and ask and self._error is None:
            return
        if expect is not None:
            assert isinstance(self._error, expect), f"expected {expect.__name__}, found {self._error!r}"
        elif self._error is not None:
            raise self._error
