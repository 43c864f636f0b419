"""The suite of sources proves itself on sources in memory, and fails on sources that break a promise."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest

from kadds.api.connector import Connector, Polled, Producer, Source, StopSignal
from kadds.api.schema import Table
from kadds.testing.fake_source import (
    FakeDatabase,
    FakePollSource,
    FakeStreamSource,
    _batches,
    fake_poll_connector,
    fake_stream_connector,
)
from kadds.testing.memory_log import MemoryLog
from tests.support.over_fake_database import OverFakeDatabase


class _OverFakeDatabase(OverFakeDatabase):
    @pytest.fixture(autouse=True)
    def _database(self) -> None:
        self.database = FakeDatabase()
        self.opened_at = 0


class TestAStreamingFakeKeepsTheContract(_OverFakeDatabase):
    connector: ClassVar[Connector] = fake_stream_connector(FakeDatabase())

    def make_source(self) -> Source:
        return FakeStreamSource(self.database)

    def test_it_acknowledges_once_the_log_has_it(self) -> None:
        table, log = self.create_table("orders"), MemoryLog()
        self.insert(table, [(1, "one")])
        self.capture_newly(log, table)
        assert self.database.acknowledged == 1


class TestAPollingFakeKeepsTheContract(_OverFakeDatabase):
    connector: ClassVar[Connector] = fake_poll_connector(FakeDatabase())

    def make_source(self) -> Source:
        return FakePollSource(self.database)


class _Forgetful(FakePollSource):
    """Moves on from where it was, not from where the log is."""

    def __init__(self, database: FakeDatabase, start: int) -> None:
        super().__init__(database)
        self._seen = start

    def poll(self, table: Table, producer: Producer, stopping: StopSignal) -> Polled:
        with self._reading() as database:
            rest = FakeDatabase(database.tables, database.commits[self._seen :])
            self._seen = len(database.commits)
        return FakePollSource(rest).poll(table, _Fresh(producer), stopping)


class _Fresh:
    """A producer that says that the log has nothing."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.name, self.append, self.begin = producer.name, producer.append, producer.begin

    def resume(self) -> None:
        return None


class _Repeating(FakePollSource):
    """Gives its transactions a new sequence each time, so that the log cannot tell repeats."""

    def poll(self, table: Table, producer: Producer, stopping: StopSignal) -> Polled:
        resume = producer.resume()
        with self._reading() as database:
            changes = [change for commit in database.commits for change in commit]
        run = 1 if resume is None else int.from_bytes(resume.sequence, "big") + 1
        transaction = producer.begin("x")
        if changes:
            transaction.add(_batches(changes, {table.qualified_name: table}))
        transaction.commit(run.to_bytes(8, "big"), b"").result()
        return Polled(len(changes))


class _Impatient(FakePollSource):
    """Returns before the append is on disk."""

    def poll(self, table: Table, producer: Producer, stopping: StopSignal) -> Polled:
        thread = threading.Thread(target=self._quietly, args=(table, producer, stopping), daemon=True)
        thread.start()
        return Polled(0)

    def _quietly(self, table: Table, producer: Producer, stopping: StopSignal) -> None:
        try:
            super().poll(table, producer, stopping)
        except Exception:  # noqa: BLE001 - whatever it is, this source would not have noticed
            return


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (_Forgetful, "test_killed_at_any_step_nothing_is_lost_and_nothing_comes_twice"),
        (_Repeating, "test_a_restart_repeats_nothing"),
        (_Repeating, "test_what_is_there_and_what_comes_is_captured_once"),
        (_Impatient, "test_nothing_is_acknowledged_before_it_is_on_disk"),
    ],
)
def test_a_source_that_breaks_a_promise_fails_the_suite(broken: type[FakePollSource], caught_by: str) -> None:
    class Suite(_OverFakeDatabase):
        connector: ClassVar[Connector] = fake_poll_connector(FakeDatabase())

        def make_source(self) -> Source:
            if broken is _Forgetful:
                source = _Forgetful(self.database, self.opened_at)
                self.opened_at = len(self.database.commits)
                return source
            return broken(self.database)

    suite = Suite()
    suite.database, suite.opened_at = FakeDatabase(), 0
    with pytest.raises(AssertionError):
        getattr(suite, caught_by)()
