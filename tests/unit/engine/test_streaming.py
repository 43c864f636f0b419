"""A source that reads a change log: tables that it refuses, that come and go, errors, and when it has caught up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from kadds.api.connector import Finding, Inlet, Level
from kadds.api.errors import GapError, RetryableError
from kadds.api.schema import Column, Table
from kadds.engine.spec import SourceSpec
from kadds.engine.supervisor import Engine
from kadds.testing.fake_sink import FakeStorage
from kadds.testing.fake_source import FakeDatabase, FakeStreamSource, fake_stream_connector
from tests.support.waiting import wait_until
from tests.unit.engine.house import (
    SOURCE,
    Deadline,
    add_fake_sink,
    caught_up,
    engine_on,
    insert,
    log_in,
    rows_of,
    shop,
    subscription,
)

REFUSED = Finding(Level.ERROR, "public.items", "it has no identity", "give it one")


class Scripted(FakeStreamSource):
    """A fake whose findings and errors a test sets; it keeps which tables each session had."""

    def __init__(self, database: FakeDatabase) -> None:
        super().__init__(database)
        self.findings: list[Finding] = []
        self.discovering: Exception | None = None
        self.streaming: Exception | None = None
        self.looks = 0
        self.sessions: list[list[str]] = []

    def discover(self, wanted: Callable[[str], bool]) -> Sequence[Table]:
        self.looks += 1
        if self.discovering is not None:
            raise self.discovering
        return super().discover(wanted)

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        return [*super().check(tables), *self.findings]

    def stream(self, tables: Sequence[Table], inlet: Inlet) -> None:
        self.sessions.append([table.qualified_name for table in tables])
        if self.streaming is not None:
            raise self.streaming
        super().stream(tables, inlet)


def begin(engine: Engine, database: FakeDatabase, source: Scripted | None = None, **more: Any) -> Scripted:
    """The source, a sink and a subscription; not started."""
    source = source or Scripted(database)
    side = fake_stream_connector(database).source
    assert side is not None
    engine.add_source(SourceSpec(SOURCE, source, side.abilities, **{"rediscover_seconds": 0.02, **more}))
    return source


def deliver(engine: Engine) -> FakeStorage:
    storage = FakeStorage()
    add_fake_sink(engine, storage)
    engine.add_subscription(subscription())
    return storage


def shown(engine: Engine, name: str | None = None) -> dict[str, Any]:
    plain = engine.status()["sources"][SOURCE]
    found: dict[str, Any] = plain if name is None else plain["tables"].get(name, {"state": None})
    return found


def test_a_table_that_the_check_refuses_fails_by_name_and_the_others_stream(tmp_path: Path) -> None:
    database = shop("orders", "items")
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source, storage = begin(engine, database), deliver(engine)
        source.findings = [REFUSED]
        engine.start()
        wait_until(lambda: bool(source.sessions))
        database.commit(*insert("public.orders", (1, "a")), *insert("public.items", (1, "x")))
        outcome = caught_up(engine)
        assert outcome.failed == (f"source:{SOURCE} {SOURCE}/public.items",)
        assert rows_of(storage) == [(1, "a")]
        problem = shown(engine, "public.items")["problem"]
        assert (problem["message"], problem["hint"]) == ("it has no identity", "give it one")
        assert shown(engine)["state"] == "running"
        looks = source.looks
        wait_until(lambda: source.looks > looks + 3)
        assert source.sessions == [["public.orders"]]  # looking again ends no session


def test_a_refused_table_is_tried_again_when_a_person_resumes_it(tmp_path: Path) -> None:
    database = shop("orders", "items")
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database)
        source.findings = [REFUSED]
        engine.start()
        wait_until(lambda: shown(engine, "public.items")["state"] == "failed")
        source.findings = []
        looks = source.looks
        wait_until(lambda: source.looks > looks + 3)
        assert shown(engine, "public.items")["state"] == "failed"
        engine.resume_source(SOURCE, "public.items")
        wait_until(lambda: source.sessions[-1] == ["public.orders", "public.items"])
        wait_until(lambda: shown(engine, "public.items")["state"] == "running")


def test_a_refused_table_is_tried_again_when_it_has_changed(tmp_path: Path) -> None:
    database = shop("orders", "items")
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database)
        source.findings = [REFUSED]
        engine.start()
        wait_until(lambda: shown(engine, "public.items")["state"] == "failed")
        source.findings = []
        database.tables["public.items"] = replace(database.tables["public.items"], key=())
        wait_until(lambda: source.sessions[-1] == ["public.orders", "public.items"])


def test_a_table_that_the_check_refuses_only_later_leaves_the_stream(tmp_path: Path) -> None:
    database = shop("orders", "items")
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database)
        engine.start()
        wait_until(lambda: source.sessions == [["public.orders", "public.items"]])
        source.findings = [REFUSED]
        wait_until(lambda: source.sessions[-1] == ["public.orders"])
        wait_until(lambda: shown(engine, "public.items")["state"] == "failed")


def test_what_the_check_refuses_of_the_source_fails_it_until_it_is_resumed(tmp_path: Path) -> None:
    database = shop()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database)
        source.findings = [Finding(Level.ERROR, "wal_level", "it is not logical", "set it")]
        engine.start()
        assert caught_up(engine).failed == (f"source:{SOURCE}",)
        problem = shown(engine)["problem"]
        assert (problem["where"], problem["message"]) == ("wal_level", "it is not logical")
        assert source.sessions == []
        source.findings = []
        engine.resume_source(SOURCE)
        assert caught_up(engine).exit_code == 0


def test_a_warning_is_logged_once(tmp_path: Path) -> None:
    database = shop()
    with capture_logs() as told, log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database)
        source.findings = [Finding(Level.WARNING, "public.orders", "it is wide", None)]
        engine.start()
        wait_until(lambda: bool(source.sessions))
        for name in ("late", "later"):
            database.create(name, database.tables["public.orders"].columns)
            wait_until(lambda name=name: f"public.{name}" in source.sessions[-1])  # type: ignore[misc]
        assert [one["message"] for one in told if one["event"] == "finding"] == ["it is wide"]


def test_tables_that_come_change_and_go_begin_a_new_session(tmp_path: Path) -> None:
    database = shop()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source, storage = begin(engine, database), deliver(engine)
        engine.start()
        wait_until(lambda: source.sessions == [["public.orders"]])
        late = database.create("late", database.tables["public.orders"].columns)
        wait_until(lambda: source.sessions[-1] == ["public.orders", "public.late"])
        database.commit(*insert(late, (1, "a")))
        wait_until(lambda: rows_of(storage, late) == [(1, "a")])
        wider = (*database.tables[late].columns, Column("note", pa.string()))
        database.tables[late] = replace(database.tables[late], columns=wider)
        wait_until(lambda: len(source.sessions) == 3)
        wait_until(lambda: shown(engine, late).get("columns") == 3)
        del database.tables["public.orders"]
        wait_until(lambda: source.sessions[-1] == ["public.late"])
        wait_until(lambda: set(shown(engine)["tables"]) == {"public.late"})


def test_a_look_that_fails_is_told_once_and_the_stream_goes_on(tmp_path: Path) -> None:
    database = shop()
    with capture_logs() as told, log_in(tmp_path) as log, engine_on(log) as engine:
        source, storage = begin(engine, database), deliver(engine)
        engine.start()
        wait_until(lambda: source.sessions == [["public.orders"]])
        source.discovering = RetryableError("it does not answer")
        looks = source.looks
        wait_until(lambda: source.looks > looks + 3)
        database.commit(*insert("public.orders", (1, "a")))
        wait_until(lambda: rows_of(storage) == [(1, "a")])
        assert shown(engine)["state"] == "running"
        assert len(source.sessions) == 1
        assert len([one for one in told if one["event"] == "tables_not_looked_for"]) == 1


def test_a_gap_fails_the_source_by_name_and_it_is_tried_again_when_resumed(tmp_path: Path) -> None:
    database = shop()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database)
        source.streaming = GapError("the slot is lost", where="shop", hint="resync")
        engine.start()
        outcome = caught_up(engine)
        assert outcome.failed == (f"source:{SOURCE}",)
        problem = shown(engine)["problem"]
        assert (problem["kind"], problem["message"]) == ("GapError", "the slot is lost")
        assert len(source.sessions) == 1
        source.streaming = None
        engine.resume_source(SOURCE)
        assert caught_up(engine).exit_code == 0


def test_a_stream_that_went_on_in_between_does_not_fail_in_a_row(tmp_path: Path) -> None:
    database = shop()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database)
        source.streaming = RetryableError("cut off", retry_after_seconds=0.01)
        engine.start()
        wait_until(lambda: (shown(engine)["problem"] or {"attempts": 0})["attempts"] >= 3)
        source.streaming = None
        database.commit(*insert("public.orders", (1, "a")))
        caught_up(engine)
        database.reachable = False
        wait_until(lambda: shown(engine)["state"] == "retrying")
        assert shown(engine)["problem"]["attempts"] == 1


class Silent(Scripted):
    """Never says how far it is."""

    def stream(self, tables: Sequence[Table], inlet: Inlet) -> None:
        self.sessions.append([table.qualified_name for table in tables])
        inlet.stopping.wait()


@pytest.mark.parametrize(("make", "unfinished"), [(Scripted, ()), (Silent, (f"source:{SOURCE}",))])
def test_after_a_restart_it_has_caught_up_once_it_has_said_so(
    tmp_path: Path, make: type[Scripted], unfinished: tuple[str, ...]
) -> None:
    database = shop()
    database.commit(*insert("public.orders", (1, "a")))
    with log_in(tmp_path) as log, engine_on(log) as engine:
        begin(engine, database)
        engine.start()
        caught_up(engine)
        end = log.end().offset()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        source = begin(engine, database, make(database))
        engine.start()
        wait_until(lambda: bool(source.sessions))
        outcome = engine.wait_until_caught_up(Deadline(0.5 if unfinished else 20.0))
        assert outcome.unfinished == unfinished
        assert log.end().offset() == end  # what it said was a repeat
