"""Verbs over a unix socket: how other processes ask the one that holds the log's folder.

One connection carries one request and its answer. Every frame is a kind (one byte), a length (u32, little endian) and a
payload. The request is a frame `?` with the JSON object {verb, arguments}. The answer is one of

    J  a JSON value                          E  a JSON object that `failure` turns into the same error again
    P… parts, then Z (or E where it broke)   each part: u32 length of its JSON head, the head, an Arrow IPC stream or ""

The socket stands in the log's folder with mode 0600, and only the holder's own user (and root) is answered. A path that
the system cannot take (over 107 bytes) is replaced by one in the runtime directory; the lock file names it. Whoever
holds the folder's lock owns the name, so a file that a killed process left behind is simply replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from kadds.api import errors
from kadds.api.errors import KaddsError, RefusedError, RetryableError
from kadds.log.lock import FolderLock, read_holder

SOCKET_NAME = "kadds.sock"
PATH_BYTES_MAX = 107
REQUEST_BYTES_MAX = 1 << 20
FRAME_BYTES_MAX = 1 << 30
CONNECTIONS_MAX = 32
GRACE_SECONDS = 1.0  # how long answers under way may take to end by themselves when the server closes
ANSWER_SECONDS = 10.0  # how long the other side may take to say the next byte of a request, or to begin an answer

_HEAD = struct.Struct("<cI")
_LENGTH = struct.Struct("<I")
_PEER = struct.Struct("3i")  # pid, uid, gid


@dataclass(frozen=True)
class Part:
    """A piece of a long answer: a JSON head, and rows where it has some."""

    head: Mapping[str, Any]
    rows: pa.RecordBatch | None = None


#: What a verb answers: a JSON value, or parts. A part of None sends nothing and finds out whether the asker is gone.
Answer = Any | Iterator[Part | None]
Handler = Callable[[str, Mapping[str, Any]], Answer]


class NobodyServesError(Exception):
    """No process answers for this folder; whoever asks may take the lock. A signal inside Kadds, not for people."""


# ------------------------------------------------------------------------------------------------------- where it is


def socket_path(folder: Path) -> Path:
    """Where the socket of a log's folder is; in the runtime directory where the folder's path is too long."""
    path = folder.absolute() / SOCKET_NAME
    if len(os.fsencode(path)) <= PATH_BYTES_MAX:
        return path
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
    return _runtime_directory() / f"{name}.sock"


def _runtime_directory() -> Path:
    """A folder of this user alone: below $XDG_RUNTIME_DIR, else below the folder for temporary files."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    candidates = [Path(given) / "kadds"] if given else []
    candidates.append(Path(tempfile.gettempdir()) / f"kadds-{os.geteuid()}")
    for folder in candidates:
        if len(os.fsencode(folder)) > PATH_BYTES_MAX - 30:
            continue
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise RefusedError(
                "the folder for sockets belongs to another user or is open to others",
                where=str(folder),
                hint="remove it, or set XDG_RUNTIME_DIR to a folder of this user alone",
            )
        return folder
    raise RefusedError(
        "there is no folder whose path is short enough for a socket", hint="set XDG_RUNTIME_DIR to a short path"
    )


# ------------------------------------------------------------------------------------------------------------ frames


def _send(connection: socket.socket, kind: bytes, *payload: bytes | pa.Buffer) -> None:
    connection.sendall(_HEAD.pack(kind, sum(map(len, payload))))
    for piece in payload:
        connection.sendall(piece)


def _receive(connection: socket.socket, bytes_max: int) -> tuple[bytes, memoryview]:
    kind, length = _HEAD.unpack(_exactly(connection, _HEAD.size))
    if length > bytes_max:
        raise ConnectionError(f"a frame of {length} bytes, more than {bytes_max}")
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> memoryview:
    data = memoryview(bytearray(length))
    done = 0
    while done < length:
        count = connection.recv_into(data[done:])
        if not count:
            raise ConnectionError(f"the connection ended after {done} of {length} bytes")
        done += count
    return data


def _encode_rows(rows: pa.RecordBatch | None) -> pa.Buffer | bytes:
    if rows is None:
        return b""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return sink.getvalue()


def _decode_part(payload: memoryview) -> Part:
    (length,) = _LENGTH.unpack_from(payload)
    head = json.loads(bytes(payload[4 : 4 + length]))
    data = payload[4 + length :]
    if not len(data):
        return Part(head)
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return Part(head, reader.read_next_batch())


def describe_failure(error: KaddsError) -> dict[str, Any]:
    """An error as JSON; its class is the nearest one that `kadds.api.errors` has."""
    kind = next(c.__name__ for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
    plain = {"error": kind, "message": error.message, "where": error.where, "hint": error.hint}
    if isinstance(error, RetryableError):
        plain |= {"retry_after_seconds": error.retry_after_seconds, "waiting_for": error.waiting_for}
    return plain


def failure(plain: Mapping[str, Any]) -> KaddsError:
    """The error that `describe_failure` described."""
    kind = getattr(errors, str(plain.get("error")), KaddsError)
    if not (isinstance(kind, type) and issubclass(kind, KaddsError)):
        kind = KaddsError
    optional = {k: plain.get(k) for k in ("retry_after_seconds", "waiting_for") if issubclass(kind, RetryableError)}
    return kind(str(plain.get("message")), where=plain.get("where"), hint=plain.get("hint"), **optional)


# ------------------------------------------------------------------------------------------------------------ serving


class SocketServer:
    """Answers requests in threads of its own, at most `connections_max` at a time; `close` ends them."""

    def __init__(
        self,
        folder: Path,
        lock: FolderLock,
        handler: Handler,
        *,
        connections_max: int = CONNECTIONS_MAX,
        **facts: Any,
    ) -> None:
        """Listen from now on. `facts` go into the lock file beside the socket's path."""
        self._handler = handler
        self._connections_max = connections_max
        self._lock = threading.Lock()
        self._closed = False
        self._connections: dict[socket.socket, threading.Thread] = {}
        self.path = socket_path(folder)
        with suppress(FileNotFoundError):
            self.path.unlink()  # the lock is ours, so its last owner is dead
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(self.path))
            self.path.chmod(0o600)  # before `listen`: until then nobody can connect
            self._listener.listen(64)
        except OSError as error:
            self._listener.close()
            raise RefusedError(
                f"no socket can be made: {error.strerror}",
                where=str(self.path),
                hint="commands reach this process through a socket; put the log on a file system that has them",
            ) from error
        lock.describe(socket=str(self.path), **facts)
        self._thread = threading.Thread(target=self._accept, name="kadds-socket", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, let answers under way end for a moment, break off the others, wait for their threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            open_ones = dict(self._connections)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._listener.close()
        with suppress(FileNotFoundError):
            self.path.unlink()
        self._thread.join()
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in open_ones.values():
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        for connection in open_ones:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in open_ones.values():
            if thread is not threading.current_thread():
                thread.join(ANSWER_SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._closed:
                    return
                continue
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                full = len(self._connections) >= self._connections_max
                if not full:
                    thread = threading.Thread(target=self._serve, args=(connection,), name="kadds-verb", daemon=True)
                    self._connections[connection] = thread
            if full:
                self._turn_away(connection)
            else:
                thread.start()

    def _turn_away(self, connection: socket.socket) -> None:
        message = f"{self._connections_max} connections are open already"
        busy = RetryableError(message, where=str(self.path), hint="end some of the commands that read or follow")
        with closing(connection), suppress(OSError):
            connection.settimeout(1.0)
            _send(connection, b"E", json.dumps(describe_failure(busy)).encode())

    def _serve(self, connection: socket.socket) -> None:
        try:
            with closing(connection), suppress(_AskerGone):
                self._answer(connection)
        finally:
            with self._lock:
                self._connections.pop(connection, None)

    def _answer(self, connection: socket.socket) -> None:
        try:
            request = self._request(connection)
            answer = self._handler(str(request["verb"]), request.get("arguments") or {})
            if isinstance(answer, Iterator):
                self._send_parts(connection, answer)
            else:
                _reply(connection, b"J", json.dumps(answer).encode())
        except KaddsError as error:
            _reply(connection, b"E", json.dumps(describe_failure(error)).encode())
        except _AskerGone:
            raise
        except Exception as error:  # noqa: BLE001 - a defect in one verb is told to its asker and ends nothing else
            defect = KaddsError(f"a defect in Kadds: {type(error).__name__}: {error}", where=str(self.path))
            _reply(connection, b"E", json.dumps(describe_failure(defect)).encode())

    def _request(self, connection: socket.socket) -> Mapping[str, Any]:
        _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if user not in (os.geteuid(), 0):
            raise RefusedError(f"user {user} may not ask here", where=str(self.path))
        try:
            connection.settimeout(ANSWER_SECONDS)
            kind, payload = _receive(connection, REQUEST_BYTES_MAX)
            connection.settimeout(None)  # a reader may take its time; `close` ends it
        except OSError as error:
            raise _AskerGone from error
        if kind != b"?":
            raise RefusedError(f"a frame of kind {kind!r} where a request was expected", where=str(self.path))
        return dict(json.loads(bytes(payload)))

    def _send_parts(self, connection: socket.socket, parts: Iterator[Part | None]) -> None:
        try:
            for part in parts:
                if part is not None:
                    head = json.dumps(dict(part.head)).encode()
                    _reply(connection, b"P", _LENGTH.pack(len(head)), head, _encode_rows(part.rows))
                elif self._closed or _is_gone(connection):
                    return
            _reply(connection, b"Z")
        finally:
            if (end := getattr(parts, "close", None)) is not None:
                end()


class _AskerGone(Exception):  # noqa: N818 - a signal
    """Nobody reads the answer any more, or the server is being closed."""


def _reply(connection: socket.socket, kind: bytes, *payload: bytes | pa.Buffer) -> None:
    try:
        _send(connection, kind, *payload)
    except OSError as error:
        raise _AskerGone from error


def _is_gone(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


# ------------------------------------------------------------------------------------------------------------- asking


def call(folder: Path, verb: str, arguments: Mapping[str, Any] | None = None) -> Any | Iterator[Part]:
    """Ask the process that holds `folder`: its JSON value, or an iterator of parts, each as it comes.

    Raises NobodyServesError where no process answers, and the error that the verb raised there. An iterator of parts
    holds the connection until it is exhausted or closed.
    """
    path = read_holder(folder).get("socket")
    if path is None:
        raise NobodyServesError
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NobodyServesError from None
        except PermissionError as error:
            raise RefusedError(
                "the process that holds the log belongs to another user",
                where=str(path),
                hint="ask as the user that runs Kadds",
            ) from error
        connection.settimeout(None)
        with suppress(BrokenPipeError):  # whoever is turned away is told so before asking
            _send(connection, b"?", json.dumps({"verb": verb, "arguments": arguments or {}}).encode())
        kind, payload = _receive(connection, FRAME_BYTES_MAX)
        if kind in b"PZ":
            return _parts(connection, kind, payload, folder)
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise _broken(folder, error) from error
        raise
    connection.close()
    if kind == b"E":
        raise failure(json.loads(bytes(payload)))
    return json.loads(bytes(payload))


def _parts(connection: socket.socket, kind: bytes, payload: memoryview, folder: Path) -> Iterator[Part]:
    with closing(connection):
        while kind == b"P":
            yield _decode_part(payload)
            try:
                kind, payload = _receive(connection, FRAME_BYTES_MAX)
            except OSError as error:
                raise _broken(folder, error) from error
        if kind == b"E":
            raise failure(json.loads(bytes(payload)))


def _broken(folder: Path, error: OSError) -> RetryableError:
    return RetryableError(
        f"the process that holds the log broke off the answer: {error.strerror or error}",
        where=str(folder),
        hint="it may be ending; ask again",
    )
