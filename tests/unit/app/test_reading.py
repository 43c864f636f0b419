"""Looking into the log: what is read, in which order, how far, and how it goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kadds.api.change import ChangeBatch, Control, ControlKind, Op, Transactions
from kadds.api.errors import ConfigurationError, GapError
from kadds.api.schema import Column, Table
from kadds.app import App, Place
from kadds.app.verbs import answer
from kadds.cli.changes import Line, lines
from kadds.log.log import Log

ORDERS = Table("public", "orders", (Column("id", pa.int64()), Column("note", pa.string())), ("id",))
PEOPLE = Table("public", "people", (Column("id", pa.int64()), Column("note", pa.string())), ("id",))


def batch(table: Table, first: int, end: int, ordinal: int = 0) -> ChangeBatch:
    rows = pa.record_batch(
        {"id": pa.array(range(first, end), pa.int64()), "note": [f"n{i}" for i in range(first, end)]}
    )
    return ChangeBatch.of(table, Op.CREATE, rows, first_ordinal=ordinal)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """Three transactions over two tables, the second of them large and cut into pieces, and control state."""
    with Log.open(tmp_path / "log") as log:
        log.state.put("default", "runs", "a", {"x": 1})
        producer = log.producer("default/shop", "stream")
        mixed = [batch(ORDERS, 0, 3, 0), batch(PEOPLE, 0, 2, 3)]
        first = Transactions.one(b"\1", mixed, [Control(ControlKind.PROGRESS, 5)], token="A", xid="7")
        producer.append(first, b"").result()
        log.state.put("default", "runs", "b", {"x": 2})
        opened = producer.begin("8")
        opened.add([batch(ORDERS, 3, 9000)])
        opened.add([batch(PEOPLE, 2, 4000)])
        opened.commit(b"\2", b"", token="B").result()
        producer.append(Transactions.one(b"\3", [batch(PEOPLE, 4000, 4003)], token="C"), b"").result()
    app = App.open(Place(tmp_path / "log"), writable=False)
    yield app
    app.close()


def read(app: App, **arguments: Any) -> tuple[list[Line], str]:
    found = list(lines(answer(app, "log.read", arguments)))
    cursors = [one for one in found if isinstance(one, str)]
    return [one for one in found if isinstance(one, Line)], cursors[-1]


def test_everything_is_read_in_the_order_of_the_log(app: App) -> None:
    found, cursor = read(app)
    offsets = [line.offset for line in found]
    assert offsets == sorted(set(offsets))
    assert len([line for line in found if line.plain["type"] == "change"]) == 9000 + 4003, "and no control state"
    assert cursor == str(app.log.end())
    first, control = found[0].plain, found[5].plain
    assert first["stream"] == "default/shop/public.orders"
    assert (first["op"], first["key"], first["xid"], first["position"]) == ("c", {"id": 0}, "7", "A")
    assert (control["type"], control["control"]) == ("control", "progress")


@pytest.mark.parametrize("limit", [1, 4, 6, 4097, 9500])
def test_reading_by_pieces_gives_what_reading_at_once_gives(app: App, limit: int) -> None:
    whole, _ = read(app)
    cursor, pieces = None, []
    while True:
        found, cursor = read(app, after=cursor, limit=limit)
        assert len(found) <= limit
        pieces += found
        if len(found) < limit:
            break
        if limit < 10 and len(pieces) > 60:
            break
    assert [line.plain for line in pieces] == [line.plain for line in whole[: len(pieces)]]
    assert limit < 10 or len(pieces) == len(whole)


@pytest.mark.parametrize("name", ["default/shop/public.people", "shop/public.people", "public.people"])
def test_one_stream_is_read_by_any_of_its_names(app: App, name: str) -> None:
    found, cursor = read(app, stream=[name])
    assert {line.plain["stream"] for line in found} == {"default/shop/public.people"}
    assert len(found) == 4003
    assert cursor == str(app.log.end())


def test_a_name_that_means_nothing_and_a_cursor_that_is_none_are_refused(app: App) -> None:
    with pytest.raises(ConfigurationError, match="no stream 'nothing'"):
        read(app, stream=["nothing"])
    with pytest.raises(ConfigurationError, match="is not a cursor"):
        read(app, after="elsewhere")


def test_a_cursor_of_another_log_is_a_gap(app: App, tmp_path: Path) -> None:
    with Log.open(tmp_path / "other") as other, pytest.raises(GapError, match="belongs to log"):
        read(app, after=str(other.end()))


def test_a_bare_name_that_several_sources_have_must_be_written_whole(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log") as log:
        for source in ("default/a", "default/b"):
            log.producer(source, "stream").append(Transactions.one(b"\1", [batch(ORDERS, 0, 1)]), b"").result()
        app = App(log, config=None)
        with pytest.raises(ConfigurationError, match="means several streams"):
            read(app, stream=["public.orders"])
        assert len(read(app, stream=["a/public.orders"])[0]) == 1
        assert [one["source"] for one in answer(app, "log.streams", {"source": "default/b"})] == ["default/b"]
