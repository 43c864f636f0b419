"""The fake sink keeps the contract with either promise, and breaks as it is told."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from kadds.api.connector import Delivery, Mode, Plan, Promise, Sink, Target, Upsert
from kadds.api.errors import DataError, RetryableError
from kadds.testing.fake_sink import FakeSettings, FakeStorage, abilities, fake_sink
from kadds.testing.faults import When
from kadds.testing.sink_contract import SinkContract
from kadds.testing.sink_values import orders, rows_of


class TestFakeSink(SinkContract):
    abilities = abilities()
    promise = Promise.EXACTLY_ONCE

    def fresh_storage(self, folder: Path) -> None:
        self.storage = FakeStorage()

    def make_sink(self) -> Sink:
        side = fake_sink(self.storage, self.promise).sink
        assert side is not None
        return side.open(FakeSettings())

    def read_target(self, target: Target) -> pa.Table:
        return self.storage.read(target)


class TestFakeSinkByPlan(TestFakeSink):
    abilities = abilities(Promise.PLANNED)
    promise = Promise.PLANNED


class TestFakeSinkOfFewAbilities(TestFakeSink):
    """The suite runs over a sink that declares little, as well as over one that declares all."""

    abilities = replace(abilities(), cells=frozenset(cell for cell in abilities().cells if cell[1] is Mode.APPEND))

    def make_sink(self) -> Sink:
        from kadds.testing.fake_sink import FakeSink

        return FakeSink(self.storage, self.abilities)


@pytest.mark.parametrize(
    ("when", "kept"), [(When.BEFORE_COMMIT, False), (When.AFTER_COMMIT, True), (When.NEVER_KNOWN, True)]
)
def test_a_cut_connection_keeps_all_or_nothing_and_the_cursor_says_which(when: When, kept: bool) -> None:
    storage, target = FakeStorage(), orders(Mode.MERGE)
    side = fake_sink(storage).sink
    assert side is not None
    sink = side.open(FakeSettings())
    session = sink.claim("default/s")
    session.prepare(target)
    storage.faults.next_deliveries.append(when)
    delivery = Delivery(target, (Upsert(rows_of(target, [(1, "a", 1, "one")])),))
    with pytest.raises(RetryableError):
        session.deliver([delivery], {"x": "1"})
    assert storage.read(target).num_rows == kept
    assert dict(sink.claim("default/s").cursors) == ({"x": "1"} if kept else {})


def test_a_bad_key_is_refused_until_it_is_taken_away() -> None:
    storage, target = FakeStorage(), orders(Mode.MERGE)
    side = fake_sink(storage, Promise.PLANNED).sink
    assert side is not None
    session = side.open(FakeSettings()).claim("default/s")
    session.prepare(target)
    storage.faults.bad_keys.add((2,))
    delivery = Delivery(target, (Upsert(rows_of(target, [(1, "a", 1, "one"), (2, "b", 2, "two")])),))
    with pytest.raises(DataError):
        session.deliver([delivery], {}, Plan("p", "", ""))
    storage.faults.bad_keys.clear()
    session.deliver([delivery], {}, Plan("p", "", ""))
    assert storage.read(target).num_rows == 2
