"""Heartbeats go the whole way, and show a stage that stands still (row 91)."""

from __future__ import annotations

from pathlib import Path

from kadds.api.change import ControlKind, Op
from kadds.api.connector import Promise
from kadds.engine.supervisor import Engine
from kadds.testing.fake_sink import FakeStorage
from kadds.testing.fake_source import fake_poll_connector
from tests.support.waiting import wait_until
from tests.unit.engine.house import (
    SOURCE,
    SUBSCRIPTION,
    Feed,
    add_fake_sink,
    engine_on,
    log_in,
    shop,
    source_spec,
    subscription,
    table,
)


def _lag_seconds(engine: Engine) -> float:
    lag = engine.status()["subscriptions"][SUBSCRIPTION]["heartbeat_lag_seconds"]
    assert isinstance(lag, float)
    return lag


def test_heartbeats_stand_in_the_sources_own_stream_and_go_on_after_a_restart(tmp_path: Path) -> None:
    for beats in (3, 6):
        with log_in(tmp_path) as log, engine_on(log) as engine:
            engine.add_source(source_spec(fake_poll_connector(shop()), heartbeat_seconds=0.02))
            engine.start()

            def kinds() -> list[str]:
                [own] = log.named(f"{SOURCE}/")
                found = log.read(log.begin(), streams=[own.id])
                return [str(control.kind) for one in found for control in one.controls]

            wait_until(lambda: bool(log.named(f"{SOURCE}/")))
            wait_until(lambda: len(kinds()) >= beats)  # noqa: B023
            assert set(kinds()) == {ControlKind.HEARTBEAT}


def test_row_91_a_stage_that_stands_still_is_seen_by_the_heartbeat(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage, Promise.EXACTLY_ONCE)
        engine.add_source(source_spec(fake_poll_connector(shop("other")), heartbeat_seconds=0.02))
        engine.add_subscription(subscription(wanted=lambda name: name == "public.orders"))
        engine.start()
        feed((table(), Op.CREATE, [(1, "a")]))
        storage.wait_for_rows("public.orders", 1, 10)
        wait_until(lambda: _lag_seconds(engine) == 0.0)
        storage.faults.gate.clear()
        feed((table(), Op.CREATE, [(2, "b")]))
        wait_until(storage.faults.waiting.is_set)
        wait_until(lambda: _lag_seconds(engine) > 0.3)
        storage.faults.gate.set()
        wait_until(lambda: _lag_seconds(engine) < 0.3)


def test_a_source_without_heartbeats_has_no_such_lag_and_writes_nothing(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        add_fake_sink(engine, FakeStorage())
        engine.add_source(source_spec(fake_poll_connector(shop())))
        engine.add_subscription(subscription())
        engine.start()
        wait_until(lambda: engine.status()["subscriptions"][SUBSCRIPTION]["state"] == "idle")
        assert engine.status()["subscriptions"][SUBSCRIPTION]["heartbeat_lag_seconds"] is None
        assert log.named(f"{SOURCE}/") == []
