"""The suite of pushers proves itself on a pusher in memory, and fails on one that breaks a promise."""

from __future__ import annotations

import pytest

from kadds.api.change import Transactions
from kadds.api.connector import Producer
from kadds.testing.fake_pusher import FakePusher, _batch
from kadds.testing.pusher_contract import PushAnswer, Pusher, PusherContract, Rows


class TestAFakePusherKeepsTheContract(PusherContract):
    def make_pusher(self, producer: Producer) -> Pusher:
        return FakePusher(producer, most_waiting=self.most_waiting)


class _Careless:
    """Gives each push a sequence of its own making and answers before the disk has it."""

    def __init__(self, producer: Producer) -> None:
        self._producer, self._count = producer, 0

    def push(self, number: int, rows: Rows) -> PushAnswer:
        self._count += 1
        self._producer.append(Transactions.one(self._count.to_bytes(8, "big"), [_batch(rows)]), b"")
        return PushAnswer(200)


@pytest.mark.parametrize(
    "caught_by",
    [
        "test_a_repeat_is_answered_2xx_and_has_no_further_effect",
        "test_a_push_that_leaves_one_out_is_refused_and_may_come_in_its_turn",
    ],
)
def test_a_pusher_that_breaks_a_promise_fails_the_suite(caught_by: str) -> None:
    class Suite(PusherContract):
        def make_pusher(self, producer: Producer) -> Pusher:
            return _Careless(producer)

    with pytest.raises(AssertionError):
        getattr(Suite(), caught_by)()
