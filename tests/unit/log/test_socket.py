"""Verbs over the log's socket: what comes back, who is let in, and what a dead or busy process leaves."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kadds.api.errors import ConfigurationError, GapError, KaddsError, LockedError, RetryableError
from kadds.log.lock import FolderLock, read_holder
from kadds.log.socket import PATH_BYTES_MAX, NobodyServesError, Part, SocketServer, call
from tests.support.waiting import wait_until


class Served:
    """A folder whose lock is held and whose verbs are answered."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lock = FolderLock(folder)
        self.ended = threading.Event()
        self.go_on = threading.Event()
        self.server = SocketServer(folder, self.lock, self._handle, **settings)

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self.server.close()
        self.lock.release()

    def _handle(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        match verb:
            case "echo":
                return arguments
            case "gap":
                raise GapError("offset 7 is gone", where="log", hint="resync")
            case "busy":
                raise RetryableError("later", retry_after_seconds=2.5, waiting_for="a file")
            case "defect":
                raise ZeroDivisionError("never")
            case "disk":
                raise OSError("no disk")
            case "rows":
                return self._rows(arguments["count"])
            case "broken":
                return self._broken()
            case "tail":
                return self._tail()
            case "wait":
                self.go_on.wait(30)
                return "done"
        raise ConfigurationError(f"there is no verb {verb}")

    def _rows(self, count: int) -> Iterator[Part]:
        for number in range(count):
            rows = pa.record_batch(
                {"id": pa.array([number] * 1000), "price": pa.array([None] * 1000, pa.decimal128(9, 2))}
            )
            yield Part({"number": number}, rows)
        yield Part({"end": True})

    def _broken(self) -> Iterator[Part]:
        yield Part({"number": 0})
        raise GapError("the rest is gone")

    def _tail(self) -> Iterator[Part | None]:
        try:
            yield Part({"event": 1})
            while not self.ended.wait(0.01):
                yield None
        finally:
            self.ended.set()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "log") as one:
        yield one


def test_a_json_answer_comes_back_as_it_was(served: Served) -> None:
    arguments = {"name": "shöp", "limit": 3, "nothing": None}
    assert call(served.folder, "echo", arguments) == arguments
    assert call(served.folder, "echo") == {}


def test_an_error_is_raised_again_with_its_class_place_and_hint(served: Served) -> None:
    with pytest.raises(GapError) as found:
        call(served.folder, "gap")
    assert (found.value.message, found.value.where, found.value.hint) == ("offset 7 is gone", "log", "resync")
    with pytest.raises(RetryableError) as busy:
        call(served.folder, "busy")
    assert (busy.value.retry_after_seconds, busy.value.waiting_for) == (2.5, "a file")


@pytest.mark.parametrize(("verb", "said"), [("defect", "ZeroDivisionError: never"), ("disk", "OSError: no disk")])
def test_a_defect_in_a_verb_is_told_and_the_next_verb_is_answered(served: Served, verb: str, said: str) -> None:
    with pytest.raises(KaddsError, match=said):
        call(served.folder, verb)
    assert call(served.folder, "echo", {"still": "there"}) == {"still": "there"}


def test_rows_come_as_arrow_in_parts(served: Served) -> None:
    parts = list(call(served.folder, "rows", {"count": 3}))
    assert [part.head for part in parts] == [{"number": 0}, {"number": 1}, {"number": 2}, {"end": True}]
    assert parts[1].rows is not None
    assert parts[1].rows.schema.field("price").type == pa.decimal128(9, 2)
    assert parts[1].rows.column("id").to_pylist() == [1] * 1000
    assert parts[3].rows is None
    assert list(call(served.folder, "rows", {"count": 0})) == [Part({"end": True})]


def test_an_answer_that_breaks_in_the_middle_says_so(served: Served) -> None:
    parts = call(served.folder, "broken")
    assert next(parts).head == {"number": 0}
    with pytest.raises(GapError, match="the rest is gone"):
        next(parts)


def test_an_asker_who_leaves_ends_the_tail(served: Served) -> None:
    parts = call(served.folder, "tail")
    assert next(parts).head == {"event": 1}
    assert not served.ended.is_set()
    parts.close()
    wait_until(served.ended.is_set, waiting_for="the tail to end")


def test_closing_the_server_ends_a_tail_under_way(tmp_path: Path) -> None:
    with Served(tmp_path / "log") as served:
        parts = call(served.folder, "tail")
        next(parts)
    with pytest.raises(RetryableError, match="broke off"):
        next(parts)


def test_requests_are_answered_beside_one_that_takes_its_time(served: Served) -> None:
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(call(served.folder, "wait")))
    waiting.start()
    assert call(served.folder, "echo", {"a": 1}) == {"a": 1}
    assert not found
    served.go_on.set()
    waiting.join(30)
    assert found == ["done"]


def test_more_connections_than_allowed_are_turned_away_by_name(tmp_path: Path) -> None:
    with Served(tmp_path / "log", connections_max=2) as served:
        parts = [call(served.folder, "tail") for _ in range(2)]
        assert [next(one).head for one in parts] == [{"event": 1}] * 2
        with pytest.raises(RetryableError, match="2 connections are open already"):
            call(served.folder, "echo")
        parts[0].close()

        def answered() -> bool:
            try:
                return call(served.folder, "echo", {"a": 1}) == {"a": 1}
            except RetryableError:
                return False

        wait_until(answered, waiting_for="a free connection")
        parts[1].close()


def test_only_the_owner_can_reach_the_socket(served: Served) -> None:
    assert stat.S_IMODE(served.server.path.stat().st_mode) == 0o600
    assert read_holder(served.folder) == {"pid": os.getpid(), "socket": str(served.server.path)}


def test_another_user_is_refused_even_where_the_file_lets_him_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Served(tmp_path / "log") as served:
        path = served.server.path
        if os.geteuid() != 0:  # only root can become somebody else, so the server does
            monkeypatch.setattr(os, "geteuid", lambda: 4711)
        path.chmod(0o666)
        script = (
            "import os, socket, sys\n"
            "s = socket.socket(socket.AF_UNIX); os.chdir(os.path.dirname(sys.argv[1]))\n"
            "if os.geteuid() == 0: os.setegid(65534); os.seteuid(65534)\n"
            "s.connect('kadds.sock'); print(b''.join(iter(lambda: s.recv(4096), b''))[5:].decode())"
        )
        said = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
        assert re.fullmatch(r"user \d+ may not ask here", json.loads(said.stdout)["message"])


def test_nobody_serves_where_there_is_no_holder_or_none_that_listens(tmp_path: Path) -> None:
    with pytest.raises(NobodyServesError):
        call(tmp_path, "echo")
    lock = FolderLock(tmp_path)
    with pytest.raises(NobodyServesError):
        call(tmp_path, "echo")
    lock.release()


def test_what_a_killed_process_left_behind_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    script = (
        "import sys, os, signal, pathlib\n"
        "from kadds.log.lock import FolderLock\n"
        "from kadds.log.socket import SocketServer\n"
        "folder = pathlib.Path(sys.argv[1]); lock = FolderLock(folder)\n"
        "SocketServer(folder, lock, lambda verb, arguments: verb)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(folder)], check=False).returncode == -9
    assert read_holder(folder)["socket"]
    with pytest.raises(NobodyServesError):
        call(folder, "echo")
    with Served(folder) as served:
        assert call(served.folder, "echo", {"a": 1}) == {"a": 1}


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory as systems have them: its path is short, which that of a test's own folder is not."""
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        yield Path(folder)


def test_a_long_path_moves_the_socket_to_the_runtime_directory(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    folder = tmp_path / ("x" * 120) / "log"
    with Served(folder) as served:
        assert len(str(served.server.path)) <= PATH_BYTES_MAX
        assert served.server.path.parent == runtime / "kadds"
        assert stat.S_IMODE(served.server.path.parent.stat().st_mode) == 0o700
        assert call(folder, "echo", {"far": True}) == {"far": True}


def test_a_runtime_directory_that_others_may_enter_is_refused(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    (runtime / "kadds").mkdir(mode=0o755)
    with pytest.raises(KaddsError, match="open to others"):
        Served(tmp_path / ("x" * 120) / "log")


@pytest.mark.parametrize("sent", [b"", b"?", b"?\xff\xff\xff\xff", b"J\x02\x00\x00\x00{}", b"?\x02\x00\x00\x00{]"])
def test_nonsense_harms_nobody(served: Served, sent: bytes) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(str(served.server.path))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(4096)
    assert call(served.folder, "echo", {"a": 1}) == {"a": 1}


def test_one_process_holds_the_folder(served: Served) -> None:
    with pytest.raises(LockedError, match=str(os.getpid())):
        FolderLock(served.folder)
