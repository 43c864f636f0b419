"""From a real log into fake sinks: what arrives, what stops, and that nothing is lost or repeated by a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kadds.api.change import Control, ControlKind, Op
from kadds.api.connector import Mode, Promise
from kadds.api.errors import ConfigurationError, DataError, RefusedError, RetryableError
from kadds.api.position import Cursor
from kadds.api.schema import Column
from kadds.engine.contract import TableContract
from kadds.engine.mask import Mask
from kadds.testing.fake_sink import FakeStorage
from kadds.testing.faults import When
from tests.support.waiting import wait_until
from tests.unit.engine.house import (
    COLUMNS,
    SUBSCRIPTION,
    Feed,
    add_fake_sink,
    caught_up,
    engine_on,
    log_in,
    rows_of,
    state_of,
    subscription,
    table,
    wait_for_state,
)

ORDERS = table("orders")
ITEMS = table("items")
LABEL = "default/shop/public.orders"
PROMISES = [Promise.EXACTLY_ONCE, Promise.PLANNED]
C, U, D, T = Op.CREATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE


@pytest.mark.parametrize("promise", PROMISES)
def test_changes_of_many_tables_arrive_as_net_change(tmp_path: Path, promise: Promise) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        feed((ORDERS, C, [(1, "a"), (2, "b")]), (ITEMS, C, [(7, "x")]))
        add_fake_sink(engine, storage, promise)
        engine.add_subscription(subscription())
        engine.start()
        feed((ORDERS, U, [(1, "A")]), (ORDERS, D, [(2, None)]))
        feed((ITEMS, C, [(8, "y")]))
        assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == [(1, "A")]
        assert rows_of(storage, "public.items") == [(7, "x"), (8, "y")]
        assert state_of(engine) == "idle"


@pytest.mark.parametrize("promise", PROMISES)
def test_history_keeps_every_change_in_order(tmp_path: Path, promise: Promise) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage, promise)
        engine.add_subscription(subscription(mode=Mode.APPEND))
        engine.start()
        for number in range(20):
            feed((ORDERS, C, [(number, "a")]), (ORDERS, U, [(number, "b")]))
        caught_up(engine)
        assert rows_of(storage) == [(number, name) for number in range(20) for name in "ab"]


def test_a_transaction_arrives_whole_in_transactional_mode(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription(mode=Mode.TRANSACTIONAL, batch_rows=1))
        engine.start()
        for number in range(10):
            feed((ORDERS, C, [(number, "o")]), (ITEMS, C, [(number, "i")]))
        caught_up(engine)
        assert rows_of(storage) == [(n, "o") for n in range(10)]
        assert len(rows_of(storage, "public.items")) == 10
        assert list(storage.state.cursors[SUBSCRIPTION]) == [""]


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("mode", [Mode.MERGE, Mode.APPEND])
@pytest.mark.parametrize("fault", [*When, RetryableError("deadlock"), "claim"])
def test_a_delivery_that_breaks_anywhere_is_neither_lost_nor_repeated(
    tmp_path: Path, promise: Promise, mode: Mode, fault: Any
) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        feed((ORDERS, C, [(1, "a")]))
        add_fake_sink(engine, storage, promise)
        if fault == "claim":
            storage.faults.next_claims.append(RetryableError("starting"))
        else:
            storage.faults.next_deliveries.append(fault)
        engine.add_subscription(subscription(mode=mode))
        engine.start()
        caught_up(engine)
        feed((ORDERS, C, [(2, "b")]))
        caught_up(engine)
        assert rows_of(storage) == [(1, "a"), (2, "b")]
        assert state_of(engine) == "idle"


class ProcessEndsError(BaseException):
    """As far as the code under test can tell, the process ends here."""


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("mode", [Mode.MERGE, Mode.APPEND])
@pytest.mark.parametrize("point", ["before plan", "after plan", "before commit", "after commit", "after strike"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_that_ends_anywhere_goes_on_exactly_where_the_sink_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promise: Promise, mode: Mode, point: str
) -> None:
    from kadds.engine.plans import Plans
    from kadds.testing.fake_sink import FakeSession

    storage = FakeStorage()
    ended: list[str] = []

    def ends(where: str) -> None:
        if where == point and not ended:
            ended.append(where)
            raise ProcessEndsError

    def around(owner: Any, name: str, before: str, after: str) -> None:
        original = getattr(owner, name)

        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            ends(before)
            result = original(self, *args, **kwargs)
            ends(after)
            return result

        monkeypatch.setattr(owner, name, wrapped)

    around(Plans, "record", "before plan", "after plan")
    around(FakeSession, "deliver", "before commit", "after commit")
    around(Plans, "finished", "before strike", "after strike")
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((ORDERS, C, [(1, "a"), (2, "b")]))
        with engine_on(log) as engine:
            add_fake_sink(engine, storage, promise)
            engine.add_subscription(subscription(mode=mode))
            engine.start()
            if promise is Promise.PLANNED or "commit" in point:
                wait_until(lambda: bool(ended), 20)
            else:
                caught_up(engine)
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((ORDERS, U, [(1, "A")]), (ORDERS, C, [(3, "c")]))
        with engine_on(log) as engine:
            add_fake_sink(engine, storage, promise)
            engine.add_subscription(subscription(mode=mode))
            engine.start()
            assert caught_up(engine).exit_code == 0
            assert log.state.items("default", "plans") == {}
    if mode is Mode.MERGE:
        assert rows_of(storage) == [(1, "A"), (2, "b"), (3, "c")]
    else:
        assert rows_of(storage) == [(1, "a"), (2, "b"), (1, "A"), (3, "c")]


def test_an_unfinished_plan_is_finished_under_the_contract_it_was_made_with(tmp_path: Path) -> None:
    storage = FakeStorage()
    key = b"k" * 32
    with log_in(tmp_path) as log:
        Feed(log)((ORDERS, C, [(1, "secret")]))
        with engine_on(log) as engine:
            add_fake_sink(engine, storage, Promise.PLANNED)
            storage.faults.gate.clear()
            engine.add_subscription(
                subscription(contract_of=lambda _: TableContract(masks={"name": Mask.HASH}), mask_key=key)
            )
            engine.start()
            wait_until(storage.faults.waiting.is_set)
            plans = log.state.items("default", "plans")
            storage.faults.next_deliveries.append(When.BEFORE_COMMIT)
            storage.faults.next_claims += [RetryableError("gone")] * 1000
            storage.faults.gate.set()
            wait_for_state(engine, "retrying")
        assert len(plans) == 1
        assert "secret" not in str(plans)
        assert key.hex() not in str(plans)
        storage.faults.next_claims.clear()
        with engine_on(log) as engine:
            add_fake_sink(engine, storage, Promise.PLANNED)
            engine.add_subscription(
                subscription(contract_of=lambda _: TableContract(target="elsewhere"), mask_key=b"other")
            )
            engine.start()
            outcome = caught_up(engine)
            assert outcome.exit_code == 1
            assert "another mask_key" in outcome.problems[0][1].message
        with engine_on(log) as engine:
            add_fake_sink(engine, storage, Promise.PLANNED)
            engine.add_subscription(subscription(contract_of=lambda _: TableContract(target="elsewhere"), mask_key=key))
            engine.start()
            assert caught_up(engine).exit_code == 0
        [(_, name)] = rows_of(storage)
        assert len(name) == 64
        assert rows_of(storage, "elsewhere") == []


def test_one_bad_table_stops_only_itself_and_goes_on_when_resumed(tmp_path: Path) -> None:
    storage = FakeStorage()
    storage.faults.bad_keys.add((13,))
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        feed((ORDERS, C, [(1, "a"), (13, "bad")]), (ITEMS, C, [(1, "x")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        outcome = caught_up(engine)
        assert outcome.exit_code == 1
        assert outcome.failed == (f"subscription:{SUBSCRIPTION} {LABEL}",)
        feed((ITEMS, C, [(2, "y")]))
        caught_up(engine)
        assert rows_of(storage, "public.items") == [(1, "x"), (2, "y")]
        assert rows_of(storage) == []
        problem = engine.status()["subscriptions"][SUBSCRIPTION]["tables"][LABEL]["problem"]
        assert problem["kind"] == "DataError"
        storage.faults.bad_keys.clear()
        engine.resume_subscription(SUBSCRIPTION, "public.orders")
        assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == [(1, "a"), (13, "bad")]


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (TableContract(exclude=("nope",)), "nope"),
        (
            TableContract(
                where="name = name || 1 || 2 =",
            ),
            "cannot be read",
        ),
        (TableContract(masks={"name": Mask.HASH}), "mask_key"),
    ],
)
def test_a_contract_that_cannot_be_stops_its_table_by_name(
    tmp_path: Path, contract: TableContract, message: str
) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        Feed(log)((ORDERS, C, [(1, "a")]), (ITEMS, C, [(1, "x")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(
            subscription(contract_of=lambda name: contract if name == "public.orders" else TableContract())
        )
        engine.start()
        outcome = caught_up(engine)
        [(name, problem)] = outcome.problems
        assert LABEL in name
        assert message in problem.message
        assert rows_of(storage, "public.items") == [(1, "x")]


def test_a_table_without_a_key_is_refused_in_merge(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        Feed(log)((table(key=()), C, [(1, "a")]))
        add_fake_sink(engine, FakeStorage())
        engine.add_subscription(subscription())
        engine.start()
        [(_, problem)] = caught_up(engine).problems
        assert "no key" in problem.message
        assert "append" in (problem.hint or "")


def test_rows_that_no_contract_lets_through_move_the_cursor_without_a_delivery_each(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription(contract_of=lambda _: TableContract(where="id < 0")))
        engine.start()
        for number in range(50):
            feed((ORDERS, C, [(number, "a")]))
        caught_up(engine)
        end = log.end().offset()
        wait_until(
            lambda: (
                Cursor.parse(storage.state.cursors.get(SUBSCRIPTION, {}).get(LABEL, str(log.begin()))).offset() >= end
            ),
            20,
        )
        assert storage.deliveries < 10
        assert rows_of(storage) == []


def test_a_cursor_that_moved_without_a_delivery_is_written_at_the_drain(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        with engine_on(log) as engine:
            add_fake_sink(engine, storage)
            engine.add_subscription(subscription(contract_of=lambda _: TableContract(where="id < 0")))
            engine.start()
            feed((ORDERS, C, [(1, "a")]))
            caught_up(engine)
            feed((ORDERS, C, [(2, "a")]))
            caught_up(engine)
            end = log.end().offset()
        assert Cursor.parse(storage.state.cursors[SUBSCRIPTION][LABEL]).offset() == end


def test_a_gap_stops_its_table_by_name_behind_what_stands_before_it(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        feed((ORDERS, C, [(1, "a")]), (ITEMS, C, [(1, "x")]))
        caught_up(engine)
        feed(controls=[Control(ControlKind.GAP, 0, ORDERS, {"reason": "the slot was lost"})])
        feed((ORDERS, C, [(2, "b")]), (ITEMS, C, [(2, "y")]))
        [(name, problem)] = caught_up(engine).problems
        assert LABEL in name
        assert problem.kind == "GapError"
        assert "the slot was lost" in problem.message
        assert rows_of(storage) == [(1, "a")]
        assert rows_of(storage, "public.items") == [(1, "x"), (2, "y")]


def test_a_gap_that_a_copy_of_the_table_follows_is_passed(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        feed((ORDERS, C, [(1, "a")]))
        feed(controls=[Control(ControlKind.GAP, 0, ORDERS, {"reason": "the slot was lost", "copied": True})])
        feed((ORDERS, C, [(2, "b")]))
        assert not caught_up(engine).problems
        assert rows_of(storage) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("again", [True, False])
def test_a_log_that_cannot_continue_a_sinks_cursor_is_a_named_gap(tmp_path: Path, again: bool) -> None:
    storage = FakeStorage()
    for folder in ("one", "two"):
        with log_in(tmp_path / folder) as log, engine_on(log) as engine:
            if folder == "one" or again:
                Feed(log)((ORDERS, C, [(1, "a")]))
            Feed(log, "default/shop")((ITEMS, C, [(1, "x")]))
            if folder == "two":
                storage.state.cursors[SUBSCRIPTION].pop("default/shop/public.items")
            add_fake_sink(engine, storage)
            engine.add_subscription(subscription())
            engine.start()
            outcome = caught_up(engine)
    [(name, problem)] = outcome.problems
    assert LABEL in name
    assert problem.kind == "GapError"
    assert "cannot continue" in problem.message
    assert outcome.exit_code == 1


def test_a_newer_claim_fences_this_one_which_then_touches_nothing(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        feed((ORDERS, C, [(1, "a")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        caught_up(engine)
        engine._sinks["default/warehouse"].sink.claim(SUBSCRIPTION)
        feed((ORDERS, C, [(2, "b")]))
        wait_for_state(engine, "failed")
        assert engine.status()["subscriptions"][SUBSCRIPTION]["problem"]["kind"] == "FencedError"
        assert rows_of(storage) == [(1, "a")]
        engine.resume_subscription(SUBSCRIPTION)
        assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == [(1, "a"), (2, "b")]


def test_added_columns_are_followed_and_other_changes_stop_by_name(tmp_path: Path) -> None:
    storage = FakeStorage()
    wider = table(columns=(*COLUMNS, Column("note", pa.string())))
    narrower = table(columns=(COLUMNS[0],))
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        feed((ORDERS, C, [(1, "a"), (2, "b")]))
        feed((wider, C, [(3, "c", "n")]), (wider, U, [(2, "B", "m")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == [(1, "a", None), (2, "B", "m"), (3, "c", "n")]
        feed((narrower, C, [(4,)]))
        [(_, problem)] = caught_up(engine).problems
        assert problem.kind == "SchemaMismatchError"
        assert "drop" in problem.message


def test_a_paused_subscription_stays_paused_over_a_restart_and_is_listed(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        for _ in range(2):
            with engine_on(log) as engine:
                add_fake_sink(engine, storage)
                engine.add_subscription(subscription())
                engine.start()
                if not rows_of(storage):
                    feed((ORDERS, C, [(1, "a")]))
                    caught_up(engine)
                    engine.pause_subscription(SUBSCRIPTION)
                feed((ORDERS, C, [(2, "b")]))
                outcome = caught_up(engine)
                assert outcome.paused == (f"subscription:{SUBSCRIPTION}",)
                assert outcome.exit_code == 0
                assert rows_of(storage) == [(1, "a")]
        with engine_on(log) as engine:
            add_fake_sink(engine, storage)
            engine.add_subscription(subscription())
            engine.start()
            engine.resume_subscription(SUBSCRIPTION)
            assert caught_up(engine).paused == ()
            assert rows_of(storage) == [(1, "a"), (2, "b")]


def test_one_table_can_be_paused_while_the_others_go_on(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        feed((ORDERS, C, [(1, "a")]), (ITEMS, C, [(1, "x")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        caught_up(engine)
        engine.pause_subscription(SUBSCRIPTION, "public.orders")
        feed((ORDERS, C, [(2, "b")]), (ITEMS, C, [(2, "y")]))
        assert caught_up(engine).paused == (f"subscription:{SUBSCRIPTION} {LABEL}",)
        assert rows_of(storage) == [(1, "a")]
        assert len(rows_of(storage, "public.items")) == 2
        engine.resume_subscription(SUBSCRIPTION, "public.orders")
        caught_up(engine)
        assert rows_of(storage) == [(1, "a"), (2, "b")]
        with pytest.raises(ConfigurationError, match=r"no table public\.nope"):
            engine.pause_subscription(SUBSCRIPTION, "public.nope")


def test_a_paused_table_of_a_subscription_stays_paused_over_a_restart(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        for start in range(2):
            with engine_on(log) as engine:
                add_fake_sink(engine, storage)
                engine.add_subscription(subscription())
                engine.start()
                feed((ORDERS, C, [(start, "a")]), (ITEMS, C, [(start, "x")]))
                caught_up(engine)
                if start == 0:
                    engine.pause_subscription(SUBSCRIPTION, "public.orders")
        assert rows_of(storage) == [(0, "a")]
        assert len(rows_of(storage, "public.items")) == 2


def test_a_sink_that_waits_for_somebody_is_shown_as_waiting_and_never_fails(tmp_path: Path) -> None:
    storage = FakeStorage()
    held = [RetryableError("held", waiting_for="FILE, held by 1234", retry_after_seconds=0.01) for _ in range(40)]
    storage.faults.next_claims += held
    with log_in(tmp_path) as log, engine_on(log, give_up_seconds=0.05) as engine:
        Feed(log)((ORDERS, C, [(1, "a")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        wait_for_state(engine, "waiting")
        shown = engine.status()["subscriptions"][SUBSCRIPTION]
        assert shown["problem"]["waiting_for"] == "FILE, held by 1234"
        assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == [(1, "a")]


def test_what_only_retries_is_given_up_by_until_caught_up_and_by_nothing_else(tmp_path: Path) -> None:
    storage = FakeStorage()
    storage.faults.next_claims += [RetryableError("down", retry_after_seconds=0.01)] * 100_000
    with log_in(tmp_path) as log, engine_on(log, give_up_seconds=0.3) as engine:
        Feed(log)((ORDERS, C, [(1, "a")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        outcome = caught_up(engine)
        assert outcome.exit_code == 1
        assert outcome.failed == (f"subscription:{SUBSCRIPTION}",)
        assert state_of(engine) == "retrying"
        storage.faults.next_claims.clear()
        wait_for_state(engine, "idle")
        assert caught_up(engine).exit_code == 0


def test_a_refusal_at_the_claim_fails_with_its_hint_until_resumed(tmp_path: Path) -> None:
    storage = FakeStorage()
    storage.faults.next_claims.append(RefusedError("no privilege", hint="grant it"))
    with log_in(tmp_path) as log, engine_on(log) as engine:
        Feed(log)((ORDERS, C, [(1, "a")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        [(_, problem)] = caught_up(engine).problems
        assert problem.hint == "grant it"
        engine.resume_subscription(SUBSCRIPTION)
        assert caught_up(engine).exit_code == 0


def test_a_defect_of_a_sink_fails_its_table_and_says_nothing_of_values(tmp_path: Path) -> None:
    storage = FakeStorage()
    storage.faults.next_deliveries += [ValueError("row (1, 'secret')")]
    with log_in(tmp_path) as log, engine_on(log) as engine:
        Feed(log)((ORDERS, C, [(1, "secret")]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription())
        engine.start()
        [(_, problem)] = caught_up(engine).problems
        assert problem.kind == "ValueError"
        assert "secret" not in str(engine.status())


def test_a_refused_plan_that_never_left_does_not_bind_the_next_contract(tmp_path: Path) -> None:
    storage = FakeStorage()
    storage.faults.next_deliveries.append(DataError("a value does not fit"))
    with log_in(tmp_path) as log, engine_on(log) as engine:
        Feed(log)((ORDERS, C, [(1, "a")]))
        add_fake_sink(engine, storage, Promise.PLANNED)
        engine.add_subscription(subscription())
        engine.start()
        assert caught_up(engine).exit_code == 1
        assert log.state.items("default", "plans") == {}
        engine.resume_subscription(SUBSCRIPTION)
        assert caught_up(engine).exit_code == 0


def test_large_batches_are_cut_and_small_ones_joined(tmp_path: Path) -> None:
    storage = FakeStorage()
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        for start in range(0, 1000, 100):
            feed((ORDERS, C, [(n, "a") for n in range(start, start + 100)]))
        add_fake_sink(engine, storage)
        engine.add_subscription(subscription(batch_rows=250))
        engine.start()
        caught_up(engine)
        assert len(rows_of(storage)) == 1000
        assert 3 <= storage.deliveries <= 5
