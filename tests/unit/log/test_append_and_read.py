"""Appends and reads: the same answers before sealing, half sealed, sealed, and after opening again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from kadds.api.change import ChangeBatch, Control, ControlKind, Op, Transactions
from kadds.api.errors import UnknownInputError
from kadds.api.position import Cursor
from kadds.api.schema import TableSet
from kadds.log.log import Log
from tests.unit.log.making import LINES, ORDERS, SOURCE, TABLES, WIDE, opened, put, rows, sequence, several, transaction
from tests.unit.log.reading import Found, contents, found, slices


def _as_written(folder: Path) -> Log:
    return _filled(folder, seal_at=())


def _half_sealed(folder: Path) -> Log:
    return _filled(folder, seal_at=(6,))


def _sealed_twice(folder: Path) -> Log:
    return _filled(folder, seal_at=(4, 9))


def _reopened(folder: Path) -> Log:
    _filled(folder, seal_at=()).close()
    return opened(folder)


def _half_sealed_and_reopened(folder: Path) -> Log:
    _filled(folder, seal_at=(3,)).close()
    return opened(folder)


def _sealed_and_reopened(folder: Path) -> Log:
    log = _filled(folder, seal_at=(2, 9))
    log.seal()
    log.close()
    return opened(folder)


def _read_only(folder: Path) -> Log:
    _filled(folder, seal_at=(5,)).close()
    return opened(folder, writable=False)


STATES = [
    _as_written,
    _half_sealed,
    _sealed_twice,
    _reopened,
    _half_sealed_and_reopened,
    _sealed_and_reopened,
    _read_only,
]


def _filled(folder: Path, seal_at: tuple[int, ...]) -> Log:
    """Ten appends by two producers over three tables; the largest transaction has 12 rows."""
    log = opened(folder)
    first, second = log.producer(SOURCE, "stream"), log.producer("other/crm", "stream")
    for number in range(1, 11):
        table = TABLES[number % 3]
        if number % 4 == 0:
            pieces = first.begin(f"x{number}")
            pieces.add([rows(table, range(1000 * number, 1000 * number + 7))])
            pieces.add([rows(ORDERS, range(1000 * number + 7, 1000 * number + 10))])
            schema = Control(ControlKind.SCHEMA, 0, WIDE, {"why": "added"})
            pieces.add([rows(LINES, [1000 * number + 10], first_ordinal=1)], [schema])
            pieces.commit(sequence(number), str(number).encode()).result()
        elif number % 4 == 1:
            first.append(several([100 * number, 100 * number + 1], table=table), b"")
        else:
            put(second, number, table=table).result()
        if number in seal_at:
            log.seal()
    first.resume()
    return log


@pytest.fixture(scope="module", params=STATES, ids=lambda make: make.__name__.strip("_"))
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    """The same log in every state; the tests that share it only read."""
    with request.param(tmp_path_factory.mktemp("state") / "log") as log:
        yield log


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """All that the log holds, written down in one go from a log of which nothing was sealed."""
    with _as_written(tmp_path_factory.mktemp("expected") / "log") as log:
        everything = found(log)
    assert [one.offset for one in everything] == list(range(len(everything)))
    return everything


@pytest.mark.parametrize("max_rows", [1, 2, 5, 11, 12, 65_536])
def test_a_read_gives_everything_in_order_in_slices_of_any_size(log: Log, max_rows: int, expected: list[Found]) -> None:
    assert found(log, max_rows=max_rows) == expected
    assert log.end().offset() == len(expected)


@pytest.mark.parametrize("max_rows", [1, 4, 65_536])
def test_a_cursor_goes_on_at_every_slice_boundary(log: Log, max_rows: int, expected: list[Found]) -> None:
    for piece in slices(log, max_rows=max_rows):
        printed = str(piece.cursor)
        assert found(log, Cursor.parse(printed), max_rows=max_rows) == expected[piece.end_offset :]


@pytest.mark.parametrize("max_rows", [1, 65_536])
def test_a_transaction_is_cut_only_where_it_alone_is_larger_than_the_limit(log: Log, max_rows: int) -> None:
    ends = {0}
    for piece in slices(log):
        for fact in piece.transactions.to_pylist():
            ends.add(fact["first_offset"] + fact["rows"])
    for piece in slices(log, max_rows=max_rows):
        assert piece.whole == (piece.end_offset in ends)
        if max_rows > 12:
            assert piece.whole


@pytest.mark.parametrize("max_rows", [1, 3, 65_536])
def test_reading_streams_gives_what_reading_all_gives_for_them(log: Log, max_rows: int, expected: list[Found]) -> None:
    ids = {stream.label: stream.id for stream in log.streams()}
    assert set(ids) == {one.stream for one in expected}
    for label, number in ids.items():
        wanted = [one for one in expected if one.stream == label]
        assert found(log, streams=[number], max_rows=max_rows) == wanted
    pair = list(ids)[:2]
    wanted = [one for one in expected if one.stream in pair]
    assert found(log, streams=[ids[label] for label in pair], max_rows=max_rows) == wanted
    for source in ("default/shop", "other/crm"):
        wanted = [one for one in expected if one.stream.startswith(f"{source}/")]
        assert found(log, source=source, max_rows=max_rows) == wanted
    assert found(log, source="default/nobody") == []
    assert found(log, streams=[]) == []


def test_a_read_ends_at_until(log: Log, expected: list[Found]) -> None:
    cursors = [log.begin(), *(piece.cursor for piece in slices(log, max_rows=1))]
    for low, after in enumerate(cursors):
        for until in cursors[low:]:
            inside = [one for piece in log.read(after, until=until) for one in contents(piece)]
            assert inside == expected[after.offset() : until.offset()]


def test_the_last_slice_of_a_quiet_stream_moves_its_cursor_to_the_end(log: Log) -> None:
    for wanted in ([], *([stream.id] for stream in log.streams())):
        assert list(slices(log, streams=wanted))[-1].cursor == log.end()
    assert list(log.read(log.end())) == []


def test_touched_names_every_stream_that_has_something_behind_an_offset(log: Log, expected: list[Found]) -> None:
    ids = {stream.label: stream.id for stream in log.streams()}
    for after in range(len(expected) + 1):
        end, touched = log.touched(after)
        assert end == len(expected)
        assert touched >= {ids[one.stream] for one in expected[after:]}


def test_positions_and_facts_of_transactions_are_read_as_they_were_appended(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        one = Transactions.one(
            b"s", [rows(ORDERS, [1])], lineage="L1", sort_key=b"k", token="0/16B", xid="77", committed_at=5, origin="o"
        )
        producer.append(one, b"").result()
        for _ in range(2):
            (piece,) = slices(log)
            (fact,) = piece.transactions.to_pylist()
            assert fact.pop("committed_at").timestamp() == pytest.approx(5e-6)
            assert fact == {
                "first_offset": 0, "producer": "default/shop/stream", "lineage": "L1", "sequence": b"s", "rows": 1,
                "sort_key": b"k", "token": "0/16B", "xid": "77", "origin": "o",
            }  # fmt: skip
            log.seal()


def test_an_append_without_rows_moves_the_sequence_and_takes_no_offset(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        put(producer, 1).result()
        appended = producer.append(Transactions.one(sequence(2)), b"two").result()
        assert appended.first_offset == appended.end_offset == 4
        put(producer, 3).result()
        log.seal()
        everything = found(log)
    with opened(tmp_path / "log") as log:
        assert found(log) == everything
        assert [one.offset for one in everything] == list(range(8))


def test_a_reader_meets_no_hole_when_the_journal_is_sealed_between_two_slices(tmp_path: Path) -> None:
    with opened(tmp_path / "log", journal_file_bytes=4096) as log:
        producer = log.producer(SOURCE, "stream")
        for number in range(1, 41):
            put(producer, number, size=100).result()
        whole = found(log)
        readers = [log.read(log.begin(), max_rows=1) for _ in range(8)]
        read: list[list[Found]] = [[] for _ in readers]
        for at, reader in enumerate(readers):
            for _ in range(1 + 5 * at):
                read[at] += contents(next(reader))
        log.seal()
        put(producer, 41, size=100).result()
        for at, reader in enumerate(readers):
            read[at] += [one for piece in reader for one in contents(piece)]
        assert read == [whole] * len(readers)


def test_a_reader_of_a_transaction_in_pieces_goes_on_when_it_is_sealed_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        pieces = producer.begin("1")
        for start in range(0, 40, 10):
            pieces.add([rows(ORDERS, range(start, start + 10), size=600_000)])
        pieces.commit(sequence(1), b"").result()
        put(producer, 2).result()
        reader = log.read(log.begin())
        read = contents(next(reader))
        assert len(read) < 40
        log.seal()
        read += [one for piece in reader for one in contents(piece)]
        assert [one.offset for one in read] == list(range(44))


def test_an_unknown_kind_of_control_record_reaches_its_reader_as_text(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        later = Control("from-a-later-version", 0)  # type: ignore[arg-type]
        log.producer(SOURCE, "stream").append(Transactions.one(b"1", [], [later]), b"").result()
        for _ in range(2):
            (piece,) = slices(log)
            assert piece.controls[0].kind == "from-a-later-version"
            assert not isinstance(piece.controls[0].kind, ControlKind)
            log.seal()


def test_a_control_record_of_a_table_names_its_stream_and_its_columns(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        schema = Control(ControlKind.SCHEMA, 0, WIDE, {"a": [1, None, "é"]})
        log.producer(SOURCE, "stream").append(Transactions.one(b"1", [], [schema]), b"").result()
        for _ in range(2):
            (piece,) = slices(log)
            (control,) = piece.controls
            assert (control.stream.name, control.table, control.facts) == (
                "default/shop/public.wide",
                WIDE,
                {"a": [1, None, "é"]},
            )
            assert [stream.name for stream in log.streams(SOURCE)] == ["default/shop/public.wide"]
            log.seal()


@pytest.mark.parametrize(
    "ordinals",
    [[[0, 1, 3]], [[1, 0, 2]], [[0, 1], [1]], [[0, 3, 5, 6], [0, 3, 5, 6]], [[1, 2, 3]], [[0, 0, 1]]],
    ids=str,
)
def test_ordinals_with_a_hole_a_repeat_or_out_of_order_are_refused_and_lose_nothing(
    ordinals: list[list[int]], tmp_path: Path
) -> None:
    batches = []
    for numbers in ordinals:
        good = rows(ORDERS, numbers)
        batches.append(ChangeBatch(TableSet.of(ORDERS), pa.array(numbers, pa.uint32()), good.ops, good.values))
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        with pytest.raises(UnknownInputError, match="ordinals"):
            producer.append(Transactions.one(sequence(1), batches), b"")
        pieces = producer.begin("1")
        with pytest.raises(UnknownInputError, match="ordinals"):
            pieces.add(batches)
        pieces.abort()
        put(producer, 1).result()
        assert len(found(log)) == 4


def test_sequences_that_do_not_rise_within_an_append_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        for numbers in ([2, 1], [1, 1]):
            with pytest.raises(UnknownInputError, match="rise"):
                producer.append(several(numbers), b"")
        put(producer, 1).result()


def test_facts_that_are_not_json_are_refused_and_stop_nobody_else(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        bad, good = log.producer(SOURCE, "bad"), log.producer(SOURCE, "good")
        with pytest.raises(UnknownInputError, match="JSON"):
            bad.append(Transactions.one(b"1", [], [Control(ControlKind.GAP, 0, None, {"at": object()})]), b"")
        put(good, 1).result()
        put(bad, 1).result()
        assert log.failure is None


def test_a_caller_that_cancels_its_future_stops_nobody(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        futures = [put(producer, number) for number in range(1, 50)]
        assert not any(future.cancel() for future in futures)
        assert futures[-1].result().end_offset == 49 * 4
        assert log.failure is None


def test_every_op_and_both_images_of_an_update_are_read_in_order(tmp_path: Path) -> None:
    ops = [Op.READ, Op.CREATE, Op.UPDATE, Op.UPDATE, Op.DELETE, Op.TRUNCATE]
    before = pa.array([False, False, True, False, True, False])
    plain = rows(ORDERS, range(6))
    batch = ChangeBatch.of(ORDERS, ops, plain.values, before=before)
    with opened(tmp_path / "log") as log:
        log.producer(SOURCE, "stream").append(Transactions.one(b"1", [batch]), b"").result()
        for _ in range(2):
            (piece,) = slices(log)
            (changes,) = piece.changes
            assert [Op(op) for op in changes.ops.to_pylist()] == ops
            assert changes.before is not None
            assert changes.before.equals(before)
            log.seal()


def test_waiting_ends_with_the_next_change_and_with_the_log(tmp_path: Path) -> None:
    log = opened(tmp_path / "log")
    assert log.wait(0, timeout_seconds=0.01) == 0
    put(log.producer(SOURCE, "stream"), 1)
    assert log.wait(0, timeout_seconds=30) == 4
    log.close()
    assert log.wait(4, timeout_seconds=30) == 4


def test_sealing_a_closed_log_says_so(tmp_path: Path) -> None:
    log = opened(tmp_path / "log")
    log.close()
    with pytest.raises(Exception, match="closed"):
        log.seal()
    assert transaction(1).rows == 4
