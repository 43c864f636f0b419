"""Who is woken, who is not, and that nobody waits for anybody else's sink."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tenacity

from kadds.api.change import Op
from kadds.api.connector import Mode, Promise
from kadds.api.errors import DataError, RetryableError
from kadds.engine import retry
from kadds.engine.deliver import SubscriptionRunner
from kadds.testing.fake_sink import FakeStorage
from kadds.testing.faults import When
from tests.support.waiting import wait_until
from tests.unit.engine.house import (
    Feed,
    add_fake_sink,
    caught_up,
    engine_on,
    log_in,
    rows_of,
    subscription,
    table,
)

C, U = Op.CREATE, Op.UPDATE


def test_of_a_hundred_subscriptions_only_those_concerned_do_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    original = SubscriptionRunner._work

    def counted(self: SubscriptionRunner) -> None:
        steps.append(self.spec.name)
        original(self)

    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage)
        for number in range(100):
            name = f"public.t{number}"
            engine.add_subscription(subscription(f"default/s{number}", wanted=lambda one, name=name: one == name))
        engine.start()
        feed(*((table(f"t{number}"), C, [(1, "a")]) for number in range(100)))
        caught_up(engine)
        monkeypatch.setattr(SubscriptionRunner, "_work", counted)
        for number in range(10):
            feed((table("t7"), U, [(1, f"{number}")]), (table("t42"), U, [(1, f"{number}")]))
        caught_up(engine)
        assert set(steps) == {"default/s7", "default/s42"}
        assert rows_of(storage, "public.t7") == rows_of(storage, "public.t42") == [(1, "9")]
        assert rows_of(storage, "public.t8") == [(1, "a")]


def test_a_blocked_sink_with_many_subscriptions_does_not_slow_another(tmp_path: Path) -> None:
    blocked, quick = FakeStorage(), FakeStorage()
    blocked.faults.gate.clear()
    with log_in(tmp_path) as log, engine_on(log, workers=4) as engine:
        feed = Feed(log)
        add_fake_sink(engine, blocked, name="default/blocked")
        add_fake_sink(engine, quick, name="default/quick")
        for number in range(20):
            engine.add_subscription(subscription(f"default/b{number}", sink="default/blocked"))
        engine.add_subscription(subscription("default/q", sink="default/quick"))
        engine.start()
        feed((table(), C, [(0, "a")]))
        wait_until(blocked.faults.waiting.is_set)
        for number in range(1, 6):
            feed((table(), C, [(number, "a")]))
            quick.wait_for_rows("public.orders", number + 1, 10)
        assert rows_of(blocked) == []
        blocked.faults.gate.set()
        caught_up(engine)
        assert len(rows_of(blocked)) == 6


def test_a_busy_subscription_does_not_starve_another_of_the_same_sink(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log, workers=1) as engine:
        feed = Feed(log)
        for start in range(0, 2000, 10):
            feed((table("busy"), C, [(number, "a") for number in range(start, start + 10)]))
        feed((table("small"), C, [(1, "a")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription("default/one", wanted=lambda one: one == "public.busy", batch_rows=10))
        engine.add_subscription(subscription("default/two", wanted=lambda one: one == "public.small"))
        engine.start()
        storage.wait_for_rows("public.small", 1)
        assert len(rows_of(storage, "public.busy")) < 2000
        caught_up(engine)
        assert len(rows_of(storage, "public.busy")) == 2000


def test_a_stream_that_appears_later_is_taken_up_by_whoever_wants_it(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription(wanted=lambda name: name.startswith("public.o")))
        engine.start()
        feed((table("orders"), C, [(1, "a")]), (table("items"), C, [(1, "a")]))
        caught_up(engine)
        feed((table("others"), C, [(1, "a")]))
        caught_up(engine)
        assert set(storage.state.tables) == {"public.orders", "public.others"}


def test_another_sources_streams_are_left_alone(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        Feed(log, "default/other")((table("orders"), C, [(1, "a")]))
        Feed(log, "other/shop")((table("orders"), C, [(1, "a")]))
        caught_up(engine)
        assert storage.state.tables == {}


@pytest.mark.parametrize("promise", [Promise.EXACTLY_ONCE, Promise.PLANNED])
@pytest.mark.parametrize("seed", range(4))
def test_order_and_exactness_hold_under_random_faults(
    tmp_path: Path, promise: Promise, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_back_off", tenacity.wait_random(0, 0.02))
    chance = random.Random(seed)
    merged, history = FakeStorage(), FakeStorage()
    tables = [table(f"t{number}") for number in range(5)]
    with log_in(tmp_path) as log, engine_on(log, workers=3) as engine:
        add_fake_sink(engine, merged, promise, "default/merged")
        add_fake_sink(engine, history, promise, "default/history")
        engine.add_subscription(subscription("default/m", sink="default/merged", batch_rows=16))
        engine.add_subscription(subscription("default/h", Mode.APPEND, sink="default/history", batch_rows=16))
        for storage in (merged, history):
            storage.faults.next_deliveries += chance.choices([*When, RetryableError("a deadlock")], k=25)
        engine.start()
        feed = Feed(log)
        for count in range(60):
            feed(*((one, U, [(count % 7, f"{count}")]) for one in chance.sample(tables, 3)))
        assert caught_up(engine, 60).exit_code == 0
        for one in tables:
            name = one.qualified_name
            arrived = rows_of(history, name)
            counts = [int(text) for _, text in arrived]
            assert counts == sorted(set(counts)), "out of order, lost or repeated"
            assert rows_of(merged, name) == sorted(dict(arrived).items(), key=repr)
        assert not merged.faults.next_deliveries or not history.faults.next_deliveries


def test_a_table_that_keeps_failing_for_a_while_does_not_hold_up_its_neighbours(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage)
        # the batch of both fails, then each is tried alone: the first alone fails again and waits
        broken = RetryableError("a lock on one table", retry_after_seconds=3600)
        storage.faults.next_deliveries += [RetryableError("the batch", retry_after_seconds=0), broken]
        feed((table("orders"), C, [(1, "a")]), (table("items"), C, [(1, "a")]))
        engine.add_subscription(subscription())
        engine.start()
        wait_until(lambda: len(storage.state.tables) == 2 and storage.deliveries > 0)
        states = {
            label.rsplit(".", 1)[1]: shown["state"]
            for label, shown in engine.status()["subscriptions"]["default/shop-to-warehouse"]["tables"].items()
        }
        assert sorted(states.values()) == ["idle", "retrying"]


def test_when_a_batch_of_tables_is_refused_only_the_one_to_blame_stops(tmp_path: Path) -> None:
    storage = FakeStorage()
    storage.faults.next_deliveries += [DataError("of the whole")]
    with log_in(tmp_path) as log, engine_on(log) as engine:
        Feed(log)(*((table(f"t{number}"), C, [(number, "a")]) for number in range(10)))
        storage.faults.bad_keys.add((3,))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        outcome = caught_up(engine)
        assert [name.rsplit(".", 1)[1] for name in outcome.failed] == ["t3"]
        assert sum(len(rows_of(storage, f"public.t{number}")) for number in range(10)) == 9
