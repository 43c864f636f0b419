"""A source in a process of its own keeps the contract, and neither process harms the other by its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import structlog

from kadds.api.change import Op
from kadds.api.connector import Connector, Source, StreamSource
from kadds.api.errors import ConfigurationError, LockedError, RefusedError, RetryableError
from kadds.api.schema import Column, Table
from kadds.api.settings import Secret, SecretUrl
from kadds.app.isolation import IsolatedSource, open_isolated
from kadds.app.isolation.child import ON_THE_WAY_BYTES_MAX
from kadds.app.isolation.failure import DefectError
from kadds.plugins import GROUP
from kadds.testing.fake_source import FakeChange
from kadds.testing.memory_log import MemoryInlet, MemoryLog
from kadds.testing.source_contract import SOURCE
from tests.house.source_tree import ROOT
from tests.support.over_fake_database import OverFakeDatabase
from tests.support.waiting import wait_until
from tests.unit.app.filed_source import FLOOD_PIECE_BYTES, FiledDatabase, FiledSettings, FiledTable, connector, digest

PASSWORD = "canary-5d1f"
URL = f"filed://somebody:{PASSWORD}@nowhere/database"
_COLUMNS = (Column("id", pa.int64(), "bigint", nullable=False), Column("label", pa.string(), "text"))


@pytest.fixture(autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connector of these tests is installed for processes that are started, as pip would."""
    site = tmp_path_factory.mktemp("site")
    about = site / "filed-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: filed\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nfiled = tests.unit.app.filed_source:connector\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))


def opened(folder: Path, *, settings_of: Callable[[str], Any] = lambda _: FiledTable(), **more: Any) -> IsolatedSource:
    return open_isolated("filed", FiledSettings(folder=folder, **more), settings_of)


def gone(pid: int) -> bool:
    """Whether the process has ended, buried or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


class TestAnIsolatedSourceKeepsTheContract(OverFakeDatabase):
    connector: ClassVar[Connector] = connector

    @pytest.fixture(autouse=True)
    def _database(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        self.database = FiledDatabase(tmp_path)
        self.sources: list[IsolatedSource] = []
        yield
        for source in self.sources:
            source.close()

    def make_source(self) -> Source:
        self.sources.append(opened(self.folder))
        return self.sources[-1]


def insert(database: FiledDatabase, table: str, first: int, end: int) -> None:
    """One transaction a row."""
    for number in range(first, end):
        database.commit(FakeChange(table, Op.CREATE, None, {"id": number, "label": f"label {number}"}))


class Streaming:
    """A stream in a thread of its own."""

    def __init__(self, source: StreamSource, log: MemoryLog, tables: Sequence[Table]) -> None:
        self.inlet = MemoryInlet(log, SOURCE)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(source, tables), daemon=True)
        self.thread.start()

    def _run(self, source: StreamSource, tables: Sequence[Table]) -> None:
        try:
            source.stream(tables, self.inlet)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self) -> BaseException | None:
        """Wait for its end; what it raised."""
        self.thread.join(30)
        assert not self.thread.is_alive()
        return self.error

    def stop(self) -> None:
        """Tell it to end; it does so without an error."""
        self.inlet.stopping.set()
        assert self.ended() is None


# ------------------------------------------------------------------------------------------------- ends of processes


def test_killed_in_the_middle_it_is_tried_again_and_nothing_is_lost_or_comes_twice(tmp_path: Path) -> None:
    database, log = FiledDatabase(tmp_path), MemoryLog()
    name = database.create("orders", _COLUMNS)
    insert(database, name, 0, 200)
    with closing(opened(tmp_path)) as source:
        for turn in range(3):
            seen = len(log.rows())
            streaming = Streaming(source, log, source.discover(lambda _: True))
            insert(database, name, 200 + turn * 100, 300 + turn * 100)
            wait_until(lambda seen=seen: len(log.rows()) > seen)  # type: ignore[misc]
            assert source.pid is not None
            os.kill(source.pid, signal.SIGKILL)
            error = streaming.ended()
            assert isinstance(error, RetryableError)
            assert "SIGKILL" in error.message
        streaming = Streaming(source, log, source.discover(lambda _: True))
        wait_until(lambda: len(log.rows()) >= 500)
        wait_until(lambda: database.acknowledged == 500)
        streaming.stop()
    assert [row.values["id"] for row in log.rows()] == list(range(500))


_HOLDER = """
import sys
from pathlib import Path
from kadds.app.isolation import open_isolated
from tests.unit.app.filed_source import FiledSettings, FiledTable
source = open_isolated("filed", FiledSettings(folder=Path(sys.argv[1])), lambda _: FiledTable())
print(source.pid, flush=True)
sys.stdin.read()
"""


def test_when_the_engine_is_killed_the_source_s_process_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        pid = int(engine.stdout.readline())
        assert not gone(pid)
        engine.kill()
        wait_until(lambda: gone(pid))


def test_signals_that_a_whole_group_gets_are_left_to_the_engine(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as source:
        pid = source.pid
        assert pid is not None
        assert os.getpgid(pid) != os.getpgid(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert source.head().token == "0"
        assert source.pid == pid
    wait_until(lambda: gone(pid))
    with pytest.raises(RetryableError, match="closed"):
        source.head()


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("dies", "exit code 9"), ("dies", "lost its mind"), ("crashes", "SIGSEGV"), ("crashes", "in head")],
)
def test_how_it_ended_and_what_it_said_last_is_in_the_error(tmp_path: Path, behaviour: str, said: str) -> None:
    with closing(opened(tmp_path, behaviour=behaviour)) as source:
        with pytest.raises(RetryableError) as caught:
            source.head()
        assert said in caught.value.message
        assert source.discover(lambda _: True) == [], "it is started again"


def test_a_slow_log_makes_it_wait_with_a_bounded_number_of_bytes(tmp_path: Path) -> None:
    log, count = MemoryLog(automatic=False, queue_bytes=1), tmp_path / "flooded"
    most = ON_THE_WAY_BYTES_MAX // FLOOD_PIECE_BYTES

    def flooded() -> int:
        return int(count.read_text()) if count.exists() else 0

    with closing(opened(tmp_path, behaviour="floods")) as source:
        streaming = Streaming(source, log, [])
        wait_until(lambda: flooded() >= most - 1)
        for _ in range(20):
            source.head()  # it has had time to go on
        assert flooded() <= most
        for _ in range(5):
            before = flooded()
            log.wait(lambda: log.queued > 0)
            log.flush()
            wait_until(lambda before=before: flooded() > before)  # type: ignore[misc]
        log.automatic = True
        log.flush()
        streaming.stop()


# ----------------------------------------------------------------------------------------------------- what crosses


def test_calls_of_other_threads_are_answered_while_it_streams(tmp_path: Path) -> None:
    database, log = FiledDatabase(tmp_path), MemoryLog()
    name = database.create("orders", _COLUMNS)
    with closing(opened(tmp_path)) as source:
        streaming = Streaming(source, log, source.discover(lambda _: True))
        insert(database, name, 0, 3)
        assert source.head().token == "3"
        assert [table.qualified_name for table in source.discover(lambda one: one == name)] == [name]
        assert source.discover(lambda _: False) == []
        assert [one.where for one in source.check(source.discover(lambda _: True))] == ["url", "password", name]
        wait_until(lambda: len(log.rows()) == 3)
        streaming.stop()


def test_what_asks_in_vain_fails_where_it_asked(tmp_path: Path) -> None:
    FiledDatabase(tmp_path).create("orders", _COLUMNS)

    def wanted(_: str) -> bool:
        raise LockedError("no answer", hint="later")

    with closing(opened(tmp_path)) as source, pytest.raises(LockedError, match="no answer"):
        source.discover(wanted)


def test_errors_keep_their_class_and_their_words(tmp_path: Path) -> None:
    def raised(behaviour: str, kind: type[Exception]) -> Any:
        with closing(opened(tmp_path, behaviour=behaviour)) as source, pytest.raises(kind) as caught:
            source.check([])
        return caught.value

    error = raised("own error", RefusedError)
    assert type(error) is RefusedError, "the connector's own class is unknown to the engine"
    assert (error.message, error.where, error.hint) == ("no entry", "the door", "knock")
    assert type(raised("locked", LockedError)) is LockedError
    error = raised("waits", RetryableError)
    assert (error.retry_after_seconds, error.waiting_for) == (7.5, "the owner of the file")
    assert "ZeroDivisionError: a fault of the code" in str(raised("defect", DefectError))


def test_settings_arrive_whole_and_secrets_stand_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_URL", URL)
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    monkeypatch.setenv("SHOP_NAME", "kept")
    token = Secret("token-of-orders")
    given = {"url": SecretUrl(URL), "password": Secret(PASSWORD), "labels": {"a": (1, 2)}}
    table = Table("public", "orders", _COLUMNS, ("id",))
    with closing(opened(tmp_path, settings_of=lambda _: FiledTable(token=token), **given)) as source:
        found = {one.where: one for one in source.check([table])}
        for file in ("cmdline", "environ"):
            assert PASSWORD not in Path(f"/proc/{source.pid}/{file}").read_text()
        assert "SHOP_NAME=kept" in Path(f"/proc/{source.pid}/environ").read_text()
    assert found["url"].message == digest(given["url"])  # type: ignore[arg-type]
    assert found["password"].message == digest(given["password"])  # type: ignore[arg-type]
    assert found["password"].hint == "{'a': (1, 2)}"
    assert found["public.orders"].message == digest(token)
    assert PASSWORD not in str(found)


def test_settings_that_would_not_arrive_as_they_are_are_refused() -> None:
    settings = FiledSettings(folder=Path()).model_copy(update={"labels": {"a": "no tuple"}})
    with pytest.raises(ConfigurationError, match="cannot be carried") as caught:
        open_isolated("filed", settings, lambda _: FiledTable())
    assert caught.value.hint == "set `isolation: thread`"


def test_what_it_logs_is_in_the_engine_s_log(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines, closing(opened(tmp_path)) as source:
        source.check([])
    checked, library = (one for one in lines if one["event"] in ("checked", "library"))
    assert checked == {
        "event": "checked", "tables": 0, "where": "somewhere", "log_level": "warning", "connector": "filed"
    }  # fmt: skip
    assert (library["library"], library["message"], library["log_level"]) == ("driver", "slow", "warning")


def test_what_the_source_can_remove_it_can_remove_from_here(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as source:
        assert hasattr(source, "remove")
        assert source.remove(drop_slot=True) == ["slot"]
    assert not hasattr(IsolatedSource, "remove"), "other sources have none"
