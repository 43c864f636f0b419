"""The wire between two processes: calls in both directions at once, over a socket pair.

A frame is a header (kind u8, 3 bytes of padding, length of the head u32, number u64, length of head and body u64, all
little endian), the head (JSON), and where there is a body, padding to a multiple of 64 bytes and the body. A CALL has a
number of the caller's and is answered by one RESULT or ERROR of that number; TELL is answered by nothing.

Whoever sends only puts frames into the outbox, so that nobody who acknowledges waits for the other process: a thread
writes them, many at once, and another reads. What is on its way is bounded by those who call (`Allowance`).
"""

from __future__ import annotations

import itertools
import json
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import pyarrow as pa

from kadds.app.isolation import failure

_HEADER = struct.Struct("<BxxxIQQ")
_ALIGNMENT_BYTES = 64
_SOCKET_BUFFER_BYTES = 1 << 20
_VIEWS_MAX = 512  # below IOV_MAX

Part: TypeAlias = "bytes | pa.Buffer"


class Kind(IntEnum):
    """What a frame is."""

    CALL = 1
    RESULT = 2
    ERROR = 3
    TELL = 4


@dataclass(frozen=True)
class Asked:
    """A call, or something told, from the other side; `number` is that of the answer."""

    number: int
    method: str
    arguments: dict[str, Any]
    body: pa.Buffer | None


class Wire:
    """One end. `asked` is called by the reading thread for each CALL and TELL, and `ended` once, after the last."""

    def __init__(self, end: socket.socket, asked: Callable[[Asked], None], ended: Callable[[], None]) -> None:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self._end = end
        self._asked = asked
        self._ended = ended
        self._outbox: queue.SimpleQueue[Sequence[Part] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._error: Exception | None = None
        self._sender = threading.Thread(target=self._send, name="kadds-wire-send", daemon=True)
        self._receiver = threading.Thread(target=self._receive, name="kadds-wire-receive", daemon=True)

    def start(self) -> None:
        """Begin to send and to receive."""
        self._sender.start()
        self._receiver.start()

    # ------------------------------------------------------------------------------------------- saying

    def call(self, method: str, body: Sequence[Part] = (), **arguments: Any) -> Future[Any]:
        """Ask the other side; the future has what it answers, JSON, or raises its error, or that of `fail`."""
        future: Future[Any] = Future()
        number = next(self._numbers)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._waiting[number] = future
        self._put(Kind.CALL, number, {"method": method, "arguments": arguments}, body)
        return future

    def tell(self, method: str, **arguments: Any) -> None:
        """Say something that has no answer."""
        self._put(Kind.TELL, 0, {"method": method, "arguments": arguments})

    def answer(self, number: int, result: Any = None) -> None:
        """Answer a call."""
        self._put(Kind.RESULT, number, result)

    def refuse(self, number: int, error: BaseException) -> None:
        """Answer a call by an error."""
        self._put(Kind.ERROR, number, failure.to_json(error))

    def _put(self, kind: Kind, number: int, plain: Any, body: Sequence[Part] = ()) -> None:
        head = json.dumps(plain).encode()
        if body:
            start = _aligned(len(head))
            length = start + size_bytes(body)
            header = _HEADER.pack(kind, len(head), number, length)
            self._outbox.put([header, head, bytes(start - len(head)), *body])
        else:
            self._outbox.put([_HEADER.pack(kind, len(head), number, len(head)) + head])

    def finish(self, timeout_seconds: float) -> None:
        """Send what is in the outbox, and then nothing more."""
        self._outbox.put(None)
        self._sender.join(timeout_seconds)

    def close(self) -> None:
        """Cut it off; the other side sees the end."""
        self._outbox.put(None)
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def fail(self, error: Exception) -> None:
        """Every call that has no answer, and every later one, raises `error`."""
        with self._lock:
            self._error = error
            left = list(self._waiting.values())
            self._waiting.clear()
        for future in left:
            future.set_exception(error)

    # ------------------------------------------------------------------------------------------- sending

    def _send(self) -> None:
        while True:
            parts, last = self._outgoing()
            try:
                _send_all(self._end, parts)
            except OSError:
                return  # the receiving thread sees the end as well
            if last:
                with suppress(OSError):
                    self._end.shutdown(socket.SHUT_WR)
                return

    def _outgoing(self) -> tuple[list[Part], bool]:
        """What waits in the outbox, at least one frame; and whether it is the last."""
        parts: list[Part] = []
        frame = self._outbox.get()
        while frame is not None:
            parts += frame
            if len(parts) > _VIEWS_MAX:
                return parts, False
            try:
                frame = self._outbox.get_nowait()
            except queue.Empty:
                return parts, False
        return parts, True

    # ------------------------------------------------------------------------------------------- receiving

    def _receive(self) -> None:
        try:
            with suppress(OSError, EOFError):
                while True:
                    self._receive_frame()
        finally:
            self._ended()
            self._end.close()

    def _receive_frame(self) -> None:
        header = bytearray(_HEADER.size)
        _receive_all(self._end, memoryview(header))
        kind, head_length, number, length = _HEADER.unpack(header)
        content = pa.allocate_buffer(length)  # aligned, not zeroed, and kept alive by the columns that lie in it
        _receive_all(self._end, memoryview(content).cast("B"))
        plain = json.loads(content.slice(0, head_length).to_pybytes())
        if kind in (Kind.RESULT, Kind.ERROR):
            with self._lock:
                future = self._waiting.pop(number, None)
            if future is not None and kind == Kind.RESULT:
                future.set_result(plain)
            elif future is not None:
                future.set_exception(failure.from_json(plain))
            return
        body = content.slice(_aligned(head_length)) if length > head_length else None
        self._asked(Asked(number, plain["method"], plain["arguments"], body))


class Allowance:
    """So many bytes may be on their way; who has more waits. What is larger than all of it goes alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._changed = threading.Condition()

    def take(self, count_bytes: int) -> None:
        """Wait until there is room."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._taken_bytes or self._taken_bytes + count_bytes <= self._limit_bytes
            )
            self._taken_bytes += count_bytes

    def give_back(self, count_bytes: int) -> None:
        """They have arrived."""
        with self._changed:
            self._taken_bytes -= count_bytes
            self._changed.notify_all()


def size_bytes(parts: Sequence[Part]) -> int:
    """How many bytes they have together."""
    return sum(memoryview(part).nbytes for part in parts)


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _send_all(end: socket.socket, parts: Sequence[Part]) -> None:
    views = [view for part in parts if len(view := memoryview(part).cast("B"))]
    while views:
        sent = end.sendmsg(views[:_VIEWS_MAX])
        while views and sent >= len(views[0]):
            sent -= len(views.pop(0))
        if sent:
            views[0] = views[0][sent:]


def _receive_all(end: socket.socket, view: memoryview) -> None:
    while view:
        count = end.recv_into(view, 0, socket.MSG_WAITALL)
        if not count:
            raise EOFError
        view = view[count:]
