"""The small parts: states, retry, budget, alarms, workers, sparse cells."""

from __future__ import annotations

import threading
import time
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from kadds.api.change import AS_TEXT_TYPE, not_given_bitmap
from kadds.api.errors import (
    ConfigurationError,
    CorruptLogError,
    DataError,
    FencedError,
    GapError,
    KaddsError,
    LockedError,
    NoSpaceError,
    RefusedError,
    RetryableError,
    Stopping,
    UnknownInputError,
)
from kadds.engine.alarms import Alarms
from kadds.engine.budget import LEAST_BYTES, Budget, MemorySplit, default_memory_limit_bytes
from kadds.engine.cells import Texts, missing_cells, not_given_array, text_array
from kadds.engine.retry import LONGEST_SECONDS, LONGEST_WAIT_SECONDS, Attempts, verdict
from kadds.engine.states import State, StateBox
from kadds.engine.workers import Workers
from tests.support.waiting import wait_until

# ------------------------------------------------------------------------------------------------- retry


@pytest.mark.parametrize(
    "error",
    [
        kind("x")
        for kind in (
            KaddsError,
            ConfigurationError,
            RefusedError,
            LockedError,
            DataError,
            UnknownInputError,
            GapError,
            FencedError,
            CorruptLogError,
        )
    ]
    + [ValueError("a defect")],
)
def test_what_repeating_does_not_cure_fails_at_once(error: Exception) -> None:
    decided = verdict(error, 1)
    assert (decided.state, decided.again_in_seconds) == (State.FAILED, None)


def test_retries_back_off_to_a_minute_and_go_on_for_ever() -> None:
    waits = [verdict(RetryableError("x"), attempts).again_in_seconds or 0 for attempts in range(1, 200)]
    assert waits[0] < 1
    assert max(waits) <= LONGEST_SECONDS
    assert min(waits[20:]) == LONGEST_SECONDS


def test_what_is_near_is_asked_for_often() -> None:
    held = verdict(RetryableError("x", waiting_for="FILE"), 100)
    full = verdict(NoSpaceError("x"), 100)
    assert (held.state, full.state) == (State.WAITING, State.NO_SPACE)
    assert held.again_in_seconds == full.again_in_seconds == LONGEST_WAIT_SECONDS


def test_a_server_that_says_when_to_come_back_is_believed() -> None:
    assert verdict(RetryableError("x", retry_after_seconds=123.0), 1).again_in_seconds == 123.0


def test_problems_count_attempts_since_the_first_and_hide_the_text_of_defects() -> None:
    attempts = Attempts()
    _, first = attempts.failed(RetryableError("x"))
    _, second = attempts.failed(RetryableError("x"))
    assert (first.attempts, second.attempts) == (1, 2)
    assert first.since == second.since
    attempts.succeeded()
    _, third = attempts.failed(ValueError("row 1 is secret"))
    assert third.attempts == 1
    assert "secret" not in str(third.to_json())


# ------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("held", [State.PAUSED, State.FAILED, State.QUARANTINED])
def test_what_a_person_must_look_at_is_not_left_by_the_engine(held: State) -> None:
    box = StateBox()
    if held is State.PAUSED:
        box.command(held)
    else:
        box.become(held)
    assert not box.become(State.RUNNING)
    assert box.state is held
    assert box.command(State.STARTING)
    assert box.become(State.RUNNING)


def test_what_has_stopped_stays_stopped() -> None:
    box = StateBox()
    box.become(State.STOPPED)
    assert not box.become(State.RUNNING)
    assert not box.command(State.STARTING)
    assert box.state is State.STOPPED


# ------------------------------------------------------------------------------------------------- budget


def test_the_default_memory_limit_is_a_quarter_of_the_machine_but_at_least_512_mb() -> None:
    assert default_memory_limit_bytes() >= LEAST_BYTES
    split = MemorySplit.of(1 << 30)
    assert split.log_bytes + split.delivery_bytes + split.sinks_bytes == 1 << 30
    assert split.per_sink_bytes(3) == split.sinks_bytes // 3
    assert split.per_sink_bytes(100) == 128 << 20


def _asked(budget: Budget, times: int) -> bool:
    return budget._next == times


def test_a_budget_makes_wait_serves_in_order_and_lets_the_too_large_through_alone() -> None:
    budget, never = Budget(100), threading.Event()
    held = budget.acquire(1000, never)
    assert held == 100
    order: list[int] = []

    def take(number: int, wanted: int) -> None:
        with budget.held(wanted, never):
            order.append(number)

    threads = []
    for number, wanted in enumerate((100, 1)):
        threads.append(threading.Thread(target=take, args=(number, wanted)))
        threads[-1].start()
        wait_until(partial(_asked, budget, number + 2))
    assert order == []
    budget.release(held)
    for thread in threads:
        thread.join(10)
    assert order == [0, 1]
    assert budget.free_bytes == 100


def test_whoever_waits_for_memory_can_be_stopped_and_is_in_nobodys_way() -> None:
    budget, stop, never = Budget(10), threading.Event(), threading.Event()
    held = budget.acquire(10, never)
    stop.set()
    with pytest.raises(Stopping):
        budget.acquire(5, stop)
    budget.release(held)
    budget.release(budget.acquire(10, never))
    assert budget.free_bytes == 10


# ------------------------------------------------------------------------------------------------- alarms, workers


def _defect() -> None:
    raise ZeroDivisionError


def test_alarms_ring_in_the_order_of_their_times_and_survive_a_defect() -> None:
    alarms, done = Alarms(), threading.Event()
    rung: list[int] = []
    alarms.after(0.06, lambda: rung.append(3))
    alarms.after(0.07, done.set)
    alarms.after(0.03, lambda: rung.append(2))
    alarms.after(0.0, lambda: rung.append(1))
    alarms.after(0.01, _defect)
    assert done.wait(10)
    assert rung == [1, 2, 3]
    alarms.after(0.0, lambda: rung.append(4))
    alarms.stop()
    alarms.after(0.0, lambda: rung.append(5))
    assert 5 not in rung


def test_workers_serve_groups_in_turn_and_a_group_only_its_share() -> None:
    workers = Workers("test", 3, per_group=2)
    release, lock = threading.Event(), threading.Lock()
    running: list[str] = []

    def hang() -> None:
        with lock:
            running.append("slow")
        release.wait(30)

    for _ in range(10):
        workers.submit("slow", hang)
    wait_until(lambda: len(running) == 2)
    done = threading.Event()
    workers.submit("quick", done.set)
    assert done.wait(10)
    assert running == ["slow", "slow"]
    release.set()
    wait_until(lambda: len(running) == 10)
    workers.stop()
    assert workers.join(10)


def test_a_task_that_wants_to_go_on_is_queued_behind_the_others_of_its_group() -> None:
    workers, done = Workers("test", 1), threading.Event()
    began: list[str] = []

    def step(name: str) -> bool:
        began.append(name)
        if len(began) == 1:
            workers.submit("group", lambda: step("second"))
        if len(began) == 6:
            done.set()
        return len(began) < 5

    workers.submit("group", lambda: step("first"))
    assert done.wait(10)
    assert began == ["first", "second"] * 3
    workers.stop()
    assert workers.join(10)


def test_workers_outlive_a_task_with_a_defect() -> None:
    workers, done = Workers("test", 1), threading.Event()
    workers.submit("one", _defect)
    workers.submit("one", done.set)
    assert done.wait(10)
    workers.stop()
    assert workers.join(10)


# ------------------------------------------------------------------------------------------------- sparse cells


@given(st.integers(1, 20), st.data())
def test_bitmaps_and_matrices_say_the_same(columns: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.sets(st.integers(0, columns - 1)), min_size=1, max_size=12))
    array = pa.array([not_given_bitmap(row, columns) if row else None for row in rows], pa.binary())
    start = data.draw(st.integers(0, len(rows) - 1))
    matrix = missing_cells(array.slice(start), columns)
    expected = [[column in row for column in range(columns)] for row in rows[start:]]
    if matrix is None:
        assert not np.any(expected)
        return
    assert matrix.tolist() == expected
    back = not_given_array(matrix)
    assert back is not None
    assert back.to_pylist() == array.slice(start).to_pylist()


def test_a_bitmap_of_another_length_is_refused() -> None:
    with pytest.raises(UnknownInputError, match="2 bytes where 3 columns need 1"):
        missing_cells(pa.array([b"\x01\x00"]), 3)


@given(st.lists(st.one_of(st.none(), st.dictionaries(st.integers(0, 5), st.text(max_size=3), min_size=1)), min_size=1))
def test_texts_come_out_as_they_went_in(rows: list[dict[int, str] | None]) -> None:
    plain = [
        None if row is None else [{"column": column, "text": text} for column, text in row.items()] for row in rows
    ]
    array = pa.array(plain, AS_TEXT_TYPE)
    back = text_array(Texts.of(array), len(rows))
    assert (back.to_pylist() if back is not None else [None] * len(rows)) == plain


def test_an_alarm_never_rings_before_the_time_that_it_gave() -> None:
    alarms, done = Alarms(), threading.Event()
    rung: list[float] = []
    dues = [alarms.after(number / 1000, lambda: rung.append(time.monotonic())) for number in range(50)]
    alarms.after(0.06, done.set)
    assert done.wait(10)
    assert all(at >= due for at, due in zip(rung, dues, strict=True))
    alarms.stop()
