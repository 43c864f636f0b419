"""From fake sources into a real log, and through to fake sinks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kadds.api.change import Op
from kadds.api.connector import Polled, Producer, StopSignal
from kadds.api.errors import ConfigurationError, DataError, NoSpaceError, RefusedError, RetryableError
from kadds.api.schema import Table
from kadds.engine.spec import SourceSpec
from kadds.engine.supervisor import Engine
from kadds.log.log import Log
from kadds.testing.fake_sink import FakeStorage
from kadds.testing.fake_source import FakeChange, FakeDatabase, fake_poll_connector, fake_stream_connector
from tests.support.waiting import wait_until
from tests.unit.engine.house import (
    COLUMNS,
    SOURCE,
    add_fake_sink,
    caught_up,
    engine_on,
    insert,
    log_in,
    rows_of,
    shop,
    source_spec,
    subscription,
)

CONNECTORS = [fake_poll_connector, fake_stream_connector]


def begin(engine: Engine, database: FakeDatabase, make: Any = fake_poll_connector, **more: Any) -> FakeStorage:
    """A source, a sink and a subscription between them, started."""
    storage = FakeStorage()
    engine.add_source(source_spec(make(database), **more))
    add_fake_sink(engine, storage)
    engine.add_subscription(subscription())
    engine.start()
    return storage


def table_state(engine: Engine, name: str = "public.orders") -> str:
    return str(engine.status()["sources"][SOURCE]["tables"].get(name, {}).get("state"))


def source_state(engine: Engine) -> str:
    return str(engine.status()["sources"][SOURCE]["state"])


@pytest.mark.parametrize("make", CONNECTORS)
def test_what_is_committed_arrives(tmp_path: Path, make: Any) -> None:
    database = shop("orders", "items")
    database.commit(*insert("public.orders", (1, "a")), *insert("public.items", (1, "x")))
    with log_in(tmp_path) as log, engine_on(log) as engine:
        storage = begin(engine, database, make)
        assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == [(1, "a")]
        database.commit(FakeChange("public.orders", Op.UPDATE, {"id": 1, "name": "a"}, {"id": 1, "name": "b"}))
        database.commit(*insert("public.items", *((n, "y") for n in range(2, 50))))
        caught_up(engine)
        assert rows_of(storage) == [(1, "b")]
        assert len(rows_of(storage, "public.items")) == 49
        shown = engine.status()["sources"][SOURCE]
        assert shown["tables"]["public.items"]["rows"] == 49


@pytest.mark.parametrize("make", CONNECTORS)
def test_a_restart_goes_on_where_the_log_is(tmp_path: Path, make: Any) -> None:
    database, seen = shop(), 0
    for number in range(3):
        database.commit(*insert("public.orders", (number, "a")))
        with log_in(tmp_path) as log, engine_on(log) as engine:
            storage = begin(engine, database, make)
            assert caught_up(engine).exit_code == 0
            seen += engine.status()["sources"][SOURCE]["tables"]["public.orders"]["rows"]
            assert len(rows_of(storage)) == number + 1
    assert seen == 3  # nothing was read twice


@pytest.mark.parametrize("make", CONNECTORS)
def test_a_source_that_does_not_answer_is_retried_and_goes_on_by_itself(tmp_path: Path, make: Any) -> None:
    database = shop()
    database.reachable = False
    with log_in(tmp_path) as log, engine_on(log) as engine:
        storage = begin(engine, database, make)
        wait_until(lambda: source_state(engine) == "retrying")
        problem = engine.status()["sources"][SOURCE]["problem"]
        assert problem["kind"] == "RetryableError"
        assert problem["next_attempt_at"]
        database.reachable = True
        database.commit(*insert("public.orders", (1, "a")))
        caught_up(engine)
        assert rows_of(storage) == [(1, "a")]


class ScriptedSource:
    """A polling source that does what a test says for each table."""

    def __init__(self, *tables: Table) -> None:
        self.tables = list(tables)
        self.script: dict[str, Any] = {}
        self.polled: dict[str, int] = {}
        self.discovering: Any = None
        self.closed = threading.Event()

    def discover(self, wanted: Any) -> Sequence[Table]:
        if self.discovering is not None:
            raise self.discovering
        return [table for table in self.tables if wanted(table.qualified_name)]

    def check(self, tables: Sequence[Table]) -> list[Any]:
        return []

    def poll(self, table: Table, producer: Producer, stopping: StopSignal) -> Polled:
        name = table.qualified_name
        self.polled[name] = self.polled.get(name, 0) + 1
        action = self.script.get(name)
        if isinstance(action, Exception):
            raise action
        return action(table, producer, stopping) if action is not None else Polled(0)

    def close(self) -> None:
        self.closed.set()

    def wait_for_polls(self, name: str, count: int) -> None:
        wait_until(lambda: self.polled.get(name, 0) >= count)


def scripted(engine: Engine, *tables: Table, **more: Any) -> ScriptedSource:
    connector = fake_poll_connector(FakeDatabase())
    assert connector.source is not None
    source = ScriptedSource(*tables)
    spec = SourceSpec(SOURCE, source, connector.source.abilities, **{"interval_seconds": 0.02, **more})
    engine.add_source(spec)
    return source


def orders(name: str = "orders") -> Table:
    return Table("public", name, COLUMNS, ("id",))


def test_a_table_that_fails_or_hangs_holds_up_no_other(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = scripted(engine, orders("bad"), orders("hangs"), orders("good"))
        release = threading.Event()

        def hang(_: Table, __: Producer, ___: StopSignal) -> Polled:
            release.wait(30)
            return Polled(0)

        source.script = {"public.bad": DataError("no such thing", hint="look"), "public.hangs": hang}
        engine.start()
        wait_until(lambda: source.polled.get("public.good", 0) > 5)
        assert table_state(engine, "public.bad") == "failed"
        assert table_state(engine, "public.hangs") == "polling"
        assert source.polled["public.hangs"] == 1
        release.set()
        wait_until(lambda: source.polled["public.hangs"] > 2)


def test_a_full_disk_stops_intake_by_name_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = scripted(engine, orders())
        source.script["public.orders"] = NoSpaceError("below the floor", retry_after_seconds=0.01)
        engine.start()
        wait_until(lambda: table_state(engine) == "no-space" and source_state(engine) == "no-space")
        source.script.clear()
        wait_until(lambda: table_state(engine) == "idle")


def test_a_table_that_changes_under_a_failing_poll_is_tried_as_it_is_now(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = scripted(engine, orders(), rediscover_seconds=3600)
        seen: list[int] = []

        def poll(table: Table, _: Producer, __: StopSignal) -> Polled:
            seen.append(len(table.columns))
            if len(table.columns) == 2:
                source.tables = [Table("public", "orders", COLUMNS[:1], ("id",))]
                raise DataError("the table has other columns")
            return Polled(0)

        source.script["public.orders"] = poll
        engine.start()
        wait_until(lambda: table_state(engine) == "idle")
        assert seen[:2] == [2, 1]


def test_a_poll_that_has_more_is_called_again_at_once(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = scripted(engine, orders(), interval_seconds=3600.0)
        source.script["public.orders"] = lambda *_: Polled(1, more=source.polled["public.orders"] < 5)
        engine.start()
        wait_until(lambda: source.polled.get("public.orders") == 5)
        wait_until(lambda: table_state(engine) == "idle")


def test_a_schedule_polls_only_when_asked_and_its_runs_are_kept(tmp_path: Path) -> None:
    database = shop()
    database.commit(*insert("public.orders", (1, "a")))
    with log_in(tmp_path) as log:
        with engine_on(log) as engine:
            storage = begin(engine, database, interval_seconds=None)
            wait_until(lambda: table_state(engine) != "None")
            assert log.streams() == []
            run = engine.run_source_now(SOURCE, trigger="schedule")
            assert run.ended.wait(20)
            assert (run.outcome, run.rows) == ("done", 1)
            wait_until(lambda: rows_of(storage) == [(1, "a")])
            database.reachable = False
            failing = engine.run_source_now(SOURCE)
            assert not failing.ended.wait(0.1)
        with engine_on(log) as engine:
            engine.add_source(source_spec(fake_poll_connector(database), interval_seconds=None))
            runs = engine.runs()[f"source:{SOURCE}"]
            assert [run["outcome"] for run in runs] == ["done", "stopped"]
            assert runs[0]["trigger"] == "schedule"


def test_a_scheduled_run_that_cannot_read_ends_as_failed_and_the_next_begins_anew(tmp_path: Path) -> None:
    database = shop()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        begin(engine, database, interval_seconds=None, give_up_seconds=0.0)
        wait_until(lambda: table_state(engine) != "None")
        database.reachable = False
        run = engine.run_source_now(SOURCE)
        assert run.ended.wait(20)
        assert run.outcome == "failed"
        database.reachable = True
        database.commit(*insert("public.orders", (1, "a")))
        wait_until(lambda: source_state(engine) == "idle")
        run = engine.run_source_now(SOURCE)
        assert run.ended.wait(20)
        assert (run.outcome, run.rows) == ("done", 1)


def test_until_caught_up_fires_what_is_scheduled_once(tmp_path: Path) -> None:
    database = shop()
    database.commit(*insert("public.orders", (1, "a")))
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        engine.add_source(source_spec(fake_poll_connector(database), interval_seconds=None))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription(scheduled=True))
        engine.start()
        assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == [(1, "a")]
        assert {job: [run["outcome"] for run in runs] for job, runs in engine.runs().items()} == {
            f"source:{SOURCE}": ["done"],
            "subscription:default/shop-to-warehouse": ["done"],
        }


def test_a_scheduled_subscription_delivers_only_up_to_what_the_log_held_then(tmp_path: Path) -> None:
    database = shop()
    database.commit(*insert("public.orders", (1, "a")))
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        engine.add_source(source_spec(fake_poll_connector(database)))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription(scheduled=True))
        engine.start()
        wait_until(lambda: log.end().offset() > 0)
        storage.faults.gate.clear()
        run = engine.run_subscription_now("default/shop-to-warehouse")
        wait_until(storage.faults.waiting.is_set)
        end = log.end().offset()
        database.commit(*insert("public.orders", (2, "b")))
        wait_until(lambda: log.end().offset() > end)
        storage.faults.gate.set()
        assert run.ended.wait(20)
        assert (run.outcome, run.rows) == ("done", 1)
        assert rows_of(storage) == [(1, "a")]
        again = engine.run_subscription_now("default/shop-to-warehouse")
        assert again.ended.wait(20)
        assert rows_of(storage) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("make", CONNECTORS)
def test_a_paused_source_takes_nothing_until_it_is_resumed(tmp_path: Path, make: Any) -> None:
    database = shop()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        storage = begin(engine, database, make)
        database.commit(*insert("public.orders", (1, "a")))
        caught_up(engine)
        engine.pause_source(SOURCE)
        database.commit(*insert("public.orders", (2, "b")))
        outcome = caught_up(engine)
        assert outcome.paused == (f"source:{SOURCE}",)
        assert rows_of(storage) == [(1, "a")]
        engine.resume_source(SOURCE)
        caught_up(engine)
        assert rows_of(storage) == [(1, "a"), (2, "b")]


def test_a_paused_table_stays_paused_over_a_restart_on_both_sides(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        for start in range(2):
            with engine_on(log) as engine:
                source = scripted(engine, orders(), orders("items"))
                engine.start()
                source.wait_for_polls("public.items", 3)
                if start == 0:
                    engine.pause_source(SOURCE, "public.orders")
                else:
                    assert table_state(engine) == "paused"
                    assert "public.orders" not in source.polled
                    engine.resume_source(SOURCE, "public.orders")
                    source.wait_for_polls("public.orders", 1)


def test_a_refused_source_fails_by_name_and_goes_on_when_resumed(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = scripted(engine, orders())
        source.discovering = RefusedError("wrong password", hint="look at the URL")
        engine.start()
        outcome = caught_up(engine)
        assert outcome.failed == (f"source:{SOURCE}",)
        assert outcome.exit_code == 1
        source.discovering = None
        engine.resume_source(SOURCE)
        assert caught_up(engine).exit_code == 0


def test_draining_closes_a_source_that_does_not_return(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        engine = Engine(log)
        source = scripted(engine, orders())

        def hang(_: Table, __: Producer, ___: StopSignal) -> Polled:
            source.closed.wait(60)
            raise RetryableError("closed")

        source.script["public.orders"] = hang
        engine.start()
        wait_until(lambda: bool(source.polled))
        outcome = engine.drain(timeout_seconds=3.0)
        assert source.closed.is_set()
        assert outcome.exit_code == 0


def test_new_tables_appear_while_it_runs(tmp_path: Path) -> None:
    database = shop()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        storage = begin(engine, database, rediscover_seconds=0.05)
        caught_up(engine)
        name = database.create("late", COLUMNS)
        database.commit(*insert(name, (1, "a")))
        wait_until(lambda: rows_of(storage, "public.late") == [(1, "a")])


def test_sources_sinks_and_subscriptions_come_and_go_while_it_runs(tmp_path: Path) -> None:
    database, storage = shop(), FakeStorage()
    database.commit(*insert("public.orders", (1, "a")))
    with log_in(tmp_path) as log, engine_on(log) as engine:
        engine.start()
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.add_source(source_spec(fake_poll_connector(database)))
        caught_up(engine)
        assert rows_of(storage) == [(1, "a")]
        with pytest.raises(ConfigurationError, match="already"):
            engine.add_subscription(subscription())
        with pytest.raises(ConfigurationError, match="is used by"):
            engine.remove_sink("default/warehouse")
        assert engine.remove_subscription("default/shop-to-warehouse")
        engine.remove_sink("default/warehouse")
        assert engine.remove_source(SOURCE)
        database.commit(*insert("public.orders", (2, "b")))
        assert engine.status()["sources"] == {}
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.add_source(source_spec(fake_poll_connector(database)))
        caught_up(engine)
        assert rows_of(storage) == [(1, "a"), (2, "b")]


def test_a_failed_log_stops_everything_with_exit_code_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kadds.api.errors import CorruptLogError

    with log_in(tmp_path) as log:
        engine = Engine(log)
        engine.start()
        monkeypatch.setattr(Log, "failure", CorruptLogError("fsync failed"))
        engine.wait()
        assert isinstance(engine.fatal, CorruptLogError)
        outcome = engine.drain(5)
        assert outcome.exit_code == 1
        assert "log" in outcome.failed
