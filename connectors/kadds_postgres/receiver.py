"""Receiving the stream: a thread that takes what the server sends, and tells it how far the log is.

It never decodes, so that the server's decoder does not wait for ours. The queue in front of the decoding thread has a
bound; while it is full nothing is read, but the server still hears from us, or it would end the connection.

Only `acknowledge` moves what the server is told: the end of what is on disk, never more.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass

import psycopg

from kadds.api.errors import UnknownInputError
from kadds_postgres.channel import Channel
from kadds_postgres.wire import HEADER_BYTES

QUEUE_BYTES = 32 << 20
_HAND_OVER_BYTES = 1 << 20
_TAKE_BYTES = 16 << 20
_STATUS_SECONDS_MAX = 10.0
_LOOK_SECONDS = 1.0  # how often it is looked at what is on disk: the server writes its slot to disk for what it is told
_ASK_SECONDS = 0.02
_GATHER_SECONDS = 0.005  # how long a busy stream gathers, since decoding costs nearly the same for few as for many
_GATHER_BYTES = 256 << 10
_BUSY_MESSAGES = 32
_KEEPALIVE, _KEEPALIVE_BYTES = ord("k"), 18
_COMMIT, _COMMIT_BYTES = ord("C"), HEADER_BYTES + 26
_UNIX_TO_POSTGRES_SECONDS = 946_684_800  # PostgreSQL counts from 2000


@dataclass(frozen=True)
class Received:
    """Messages in order; behind them the server has read its own log up to `idle_lsn` (0: it has not said)."""

    messages: list[bytes]
    idle_lsn: int = 0


class Receiver:
    """Owns `channel`, on which START_REPLICATION has been answered, until `stop` returns."""

    def __init__(self, channel: Channel, sender_timeout_seconds: float, acknowledged: int) -> None:
        self._channel = channel
        self._status_seconds = min(_STATUS_SECONDS_MAX, sender_timeout_seconds / 3 or _STATUS_SECONDS_MAX)
        self._changed = threading.Condition()
        self._queue: deque[tuple[list[bytes], int, int]] = deque()  # messages, bytes, idle LSN
        self._bytes = 0
        self._busy = False  # whether the last that was taken was more than a handful
        self._error: Exception | None = None
        self._stopping = False
        self._acknowledged = self._told = acknowledged
        self._told_at = 0.0
        self._asked = False
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._poll = select.poll()
        self._poll.register(channel.pgconn.socket, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="kadds-postgres-receive", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------ the decoding side

    def take(self, timeout_seconds: float) -> Received:
        """What has come, waiting a moment for something; raises what ended the connection once all before is taken."""
        with self._changed:
            if not self._queue:
                self._changed.wait_for(lambda: self._queue or self._error, timeout_seconds)
            if not self._queue:
                if self._error is not None:
                    raise self._error
                self._busy = False
                return Received([])
            if self._busy:
                self._changed.wait_for(lambda: self._bytes >= _GATHER_BYTES or self._error, _GATHER_SECONDS)
            messages, size, idle = self._queue.popleft()
            while self._queue and size < _TAKE_BYTES:
                more, bytes_more, idle = self._queue.popleft()
                messages += more
                size += bytes_more
            self._bytes -= size
            self._busy = len(messages) > _BUSY_MESSAGES
            self._changed.notify_all()
        return Received(messages, idle)

    def acknowledge(self, lsn: int) -> None:
        """Everything up to `lsn` is on disk."""
        self._acknowledged = lsn

    def ask(self) -> None:
        """Let the server say how far it has read its own log."""
        if not self._asked and time.monotonic() - self._told_at >= _ASK_SECONDS:
            self._asked = True
            self._wake()

    def stop(self) -> None:
        """End the thread, after the server has been told what is on disk."""
        self._stopping = True
        with self._changed:
            self._changed.notify_all()
        self._wake()
        self._thread.join()
        with contextlib.suppress(psycopg.Error, OSError):
            if self._error is None:
                self._tell()
        self._waker.close()
        self._woken.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake
            self._waker.send(b"!")

    # ------------------------------------------------------------------------------------------ the receiving thread

    def _run(self) -> None:
        try:
            self._receive()
        except Exception as error:  # noqa: BLE001 - the decoding thread raises it
            self._error = error
        with self._changed:
            self._changed.notify_all()

    def _receive(self) -> None:
        connection = self._channel.pgconn
        take = connection.get_copy_data
        messages: list[bytes] = []
        size = idle = 0
        whole = False  # whether a transaction ends among the messages: before that there is nothing to append
        while not self._stopping:
            count, data = take(1)
            if count > _KEEPALIVE_BYTES:
                messages.append(bytes(data))  # the collector of garbage goes through memoryviews, not through bytes
                size += count
                idle = 0
                if count == _COMMIT_BYTES and data[HEADER_BYTES] == _COMMIT:
                    whole = True
                if size < _HAND_OVER_BYTES:
                    continue
            elif count > 0:
                idle = self._keepalive(data)
                continue
            if whole or idle or size >= _HAND_OVER_BYTES:
                self._hand_over(messages, size, idle)
                messages, size, idle, whole = [], 0, 0, False
            if count < 0:
                raise _ended(self._channel)
            if count == 0:
                self._tell_if_due()
                self._wait()
                connection.consume_input()

    def _keepalive(self, data: memoryview) -> int:
        if data[0] != _KEEPALIVE:
            raise UnknownInputError(
                f"the server sent a message {chr(data[0])!r} in its stream, which this version does not understand",
                where="replication protocol",
            )
        lsn, _, reply = struct.unpack_from(">QQB", data, 1)
        if reply:
            self._tell()
        return int(lsn)

    def _hand_over(self, messages: list[bytes], size: int, idle: int) -> None:
        with self._changed:
            while self._bytes >= QUEUE_BYTES and not self._stopping:
                self._changed.wait(min(_LOOK_SECONDS, self._status_seconds))
                self._tell_if_due()
            self._queue.append((messages, size, idle))
            self._bytes += size
            self._changed.notify_all()

    def _wait(self) -> None:
        seconds = min(_LOOK_SECONDS, max(0.0, self._told_at + self._status_seconds - time.monotonic()))
        for descriptor, _ in self._poll.poll(0 if self._asked else seconds * 1000):
            if descriptor == self._woken.fileno():
                self._woken.recv(4096)

    # ------------------------------------------------------------------------------------------ telling

    def _tell_if_due(self) -> None:
        passed = time.monotonic() - self._told_at
        silent = passed >= self._status_seconds
        if self._asked or silent or (self._acknowledged != self._told and passed >= _LOOK_SECONDS):
            self._tell(ask=self._asked or silent)

    def _tell(self, *, ask: bool = False) -> None:
        lsn = self._acknowledged
        clock = int((time.time() - _UNIX_TO_POSTGRES_SECONDS) * 1_000_000)
        self._asked = False
        self._told, self._told_at = lsn, time.monotonic()
        self._channel.pgconn.put_copy_data(struct.pack(">cQQQqB", b"r", lsn, lsn, lsn, clock, ask))
        self._channel.flush()


def _ended(channel: Channel) -> Exception:
    """Why the server has ended the stream."""
    try:
        channel.end_of_copy()
    except psycopg.Error as error:
        return error
    return psycopg.OperationalError("the server has ended the stream")
