"""The conformance suite of pushers: what is called by others and appends to the log on their behalf.

Subclass `PusherContract`. It runs over the log in memory; override the hooks of the log to run it over another.
What it proves: an answer 2xx means that the rows are on disk, once; a repeat has no further effect; a full log answers
429 at once and takes nothing; pushers do not disturb each other; a newer holder of a producer fences the older.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from kadds.api.connector import Producer
from kadds.testing.memory_log import MemoryLog

SOURCE = "default/pushed"
TIMEOUT_SECONDS = 30.0
Rows = Sequence[tuple[object, object]]


@dataclass(frozen=True)
class PushAnswer:
    """What the caller is told, in the codes of HTTP."""

    status: int
    message: str = ""
    retry_after_seconds: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the rows are in the log for good."""
        return 200 <= self.status < 300


class Pusher(Protocol):
    """One caller's way in: pushes are numbered 1, 2, 3, … and repeated under their number until answered 2xx."""

    def push(self, number: int, rows: Rows) -> PushAnswer:
        """Take rows (id, label); returns when their fate is known."""
        ...


class PusherContract:
    """What every pusher must hold."""

    most_waiting = 4

    # ------------------------------------------------------------------------------------------ hooks

    def make_pusher(self, producer: Producer) -> Pusher:
        """A pusher of which at most `most_waiting` calls wait for the log at a time."""
        raise NotImplementedError

    def make_log(self) -> Any:
        """A log that takes what it is given at once."""
        return MemoryLog()

    def make_held_log(self) -> Any:
        """A log that brings nothing to disk until `release`."""
        return MemoryLog(automatic=False)

    def release(self, log: Any) -> None:
        """From here on the log brings to disk what it has and what comes."""
        log.automatic = True
        log.flush()

    def crash(self, log: Any) -> Any:
        """End the process that holds the log and open it again; only what was on disk is left."""
        log.crash()
        log.automatic = True
        return log

    def wait_until_held(self, log: Any, pushes: int) -> None:
        """Wait until the log holds `pushes` pushes that are not on disk."""
        log.wait(lambda: log.queued >= pushes, TIMEOUT_SECONDS)

    def producer(self, log: Any, name: str) -> Producer:
        """Claim a producer."""
        found: Producer = log.producer(SOURCE, name)
        return found

    def logged(self, log: Any, name: str) -> list[int]:
        """The ids that a producer has in the log, in order."""
        return [row.values["id"] for t in log.transactions(SOURCE, name) for row in t.rows()]

    # ------------------------------------------------------------------------------------------ what must hold

    def test_what_is_answered_2xx_is_in_the_log_and_survives_a_crash(self) -> None:
        log = self.make_log()
        pusher = self.make_pusher(self.producer(log, "push:one"))
        assert pusher.push(1, [(1, "a"), (2, "b")]).ok
        assert pusher.push(2, [(3, None)]).ok
        log = self.crash(log)
        assert self.logged(log, "push:one") == [1, 2, 3]

    def test_no_answer_comes_before_the_rows_are_on_disk(self) -> None:
        log = self.make_held_log()
        pusher = self.make_pusher(self.producer(log, "push:one"))
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(pusher.push, 1, [(1, "a")])
            self.wait_until_held(log, 1)
            assert not answer.done()
            assert self.logged(log, "push:one") == []
            self.release(log)
            assert answer.result(TIMEOUT_SECONDS).ok
        assert self.logged(log, "push:one") == [1]

    def test_a_repeat_is_answered_2xx_and_has_no_further_effect(self) -> None:
        log = self.make_log()
        pusher = self.make_pusher(self.producer(log, "push:one"))
        for number in (1, 1, 2, 1, 2):
            assert pusher.push(number, [(number, "a")]).ok
        assert self.logged(log, "push:one") == [1, 2]

    def test_a_repeat_is_known_after_a_restart(self) -> None:
        log = self.make_log()
        assert self.make_pusher(self.producer(log, "push:one")).push(1, [(1, "a")]).ok
        log = self.crash(log)
        again = self.make_pusher(self.producer(log, "push:one"))
        assert again.push(1, [(1, "a")]).ok
        assert again.push(2, [(2, "b")]).ok
        assert self.logged(log, "push:one") == [1, 2]

    def test_what_a_crash_left_unanswered_can_be_pushed_again(self) -> None:
        log = self.make_held_log()
        pusher = self.make_pusher(self.producer(log, "push:one"))
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(pusher.push, 1, [(1, "a")])
            self.wait_until_held(log, 1)
            log = self.crash(log)
            assert not answer.result(TIMEOUT_SECONDS).ok
        again = self.make_pusher(self.producer(log, "push:one"))
        assert again.push(1, [(1, "a")]).ok
        assert self.logged(log, "push:one") == [1]

    def test_a_full_log_answers_429_at_once_and_takes_nothing(self) -> None:
        log = self.make_held_log()
        pusher = self.make_pusher(self.producer(log, "push:one"))
        with ThreadPoolExecutor() as threads:
            waiting: list[Future[PushAnswer]] = []
            for number in range(1, self.most_waiting + 1):
                waiting.append(threads.submit(pusher.push, number, [(number, "a")]))
                self.wait_until_held(log, number)
            refused = pusher.push(self.most_waiting + 1, [(self.most_waiting + 1, "a")])
            assert refused.status == 429
            assert refused.retry_after_seconds
            self.release(log)
            assert all(answer.result(TIMEOUT_SECONDS).ok for answer in waiting)
        assert self.logged(log, "push:one") == list(range(1, self.most_waiting + 1))
        assert pusher.push(self.most_waiting + 1, [(self.most_waiting + 1, "a")]).ok
        assert self.logged(log, "push:one") == list(range(1, self.most_waiting + 2))

    def test_a_push_that_leaves_one_out_is_refused_and_may_come_in_its_turn(self) -> None:
        log = self.make_log()
        pusher = self.make_pusher(self.producer(log, "push:one"))
        assert pusher.push(2, [(2, "b")]).status == 409
        assert self.logged(log, "push:one") == []
        assert pusher.push(1, [(1, "a")]).ok
        assert pusher.push(2, [(2, "b")]).ok
        assert self.logged(log, "push:one") == [1, 2]

    def test_rows_that_cannot_be_understood_are_refused_and_spoil_nothing(self) -> None:
        log = self.make_log()
        pusher = self.make_pusher(self.producer(log, "push:one"))
        refused = pusher.push(1, [("no number", "a")])
        assert 400 <= refused.status < 500
        assert refused.message
        assert self.logged(log, "push:one") == []
        assert pusher.push(1, [(1, "a")]).ok
        assert self.logged(log, "push:one") == [1]

    def test_many_pushers_at_once_each_keep_their_order_and_lose_nothing(self) -> None:
        log, pushers, pushes = self.make_log(), 8, 25

        def push_all(pusher: Pusher) -> bool:
            return all(self._taken(pusher, number).ok for number in range(1, pushes + 1))

        made = [self.make_pusher(self.producer(log, f"push:{number}")) for number in range(pushers)]
        with ThreadPoolExecutor(pushers) as threads:
            assert all(threads.map(push_all, made))
        for number in range(pushers):
            assert self.logged(log, f"push:{number}") == list(range(1, pushes + 1))

    def test_one_pusher_called_by_many_threads_takes_each_push_once(self) -> None:
        log, pushes = self.make_log(), 50
        pusher = self.make_pusher(self.producer(log, "push:one"))
        turn = threading.Condition()
        done: set[int] = set()

        def push(number: int) -> None:
            with turn:
                turn.wait_for(lambda: number == 1 or number - 1 in done, TIMEOUT_SECONDS)
            for _ in range(2):
                assert self._taken(pusher, number).ok
                with turn:
                    done.add(number)
                    turn.notify_all()

        with ThreadPoolExecutor(8) as threads:
            for future in [threads.submit(push, number) for number in range(1, pushes + 1)]:
                future.result(TIMEOUT_SECONDS)
        assert self.logged(log, "push:one") == list(range(1, pushes + 1))

    def test_a_newer_holder_of_a_producer_fences_the_older_pusher(self) -> None:
        log = self.make_log()
        older = self.make_pusher(self.producer(log, "push:one"))
        assert older.push(1, [(1, "a")]).ok
        newer = self.make_pusher(self.producer(log, "push:one"))
        assert older.push(2, [(2, "older")]).status == 409
        assert newer.push(2, [(2, "newer")]).ok
        assert self.logged(log, "push:one") == [1, 2]

    def _taken(self, pusher: Pusher, number: int) -> PushAnswer:
        """Push as a caller does: again while the answer is 429."""
        while (answer := pusher.push(number, [(number, "a")])).status == 429:
            pass
        return answer
