"""What a source in a process of its own appends to: producers that hand everything over the wire.

They keep the contract of `Producer` with one difference in time: an append that the log refuses at once has already
returned here. Its future fails then, and every later call raises the same error until `resume`, as after any refusal.
"""

from __future__ import annotations

import datetime as dt
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from kadds.api.change import ChangeBatch, Control, Transactions
from kadds.api.connector import Appended, OpenTransaction, Producer, Resume, StopSignal
from kadds.api.encoding import Encoder
from kadds.api.errors import UnknownInputError
from kadds.app.isolation.wire import Allowance, Part, Wire, size_bytes

_numbers = itertools.count(1)


class RemoteInlet:
    """The `Inlet` of one session; `allowance` bounds the bytes that the log has not got yet."""

    def __init__(self, wire: Wire, allowance: Allowance, session: int, stopping: threading.Event) -> None:
        self._wire = wire
        self._allowance = allowance
        self._session = session
        self._stopping = stopping

    @property
    def stopping(self) -> StopSignal:
        """Set when the engine says so."""
        return self._stopping

    def producer(self, name: str) -> Producer:
        """Claim it in the engine's process."""
        number = next(_numbers)
        self._wire.call("producer", session=self._session, producer=number, name=name).result()
        return RemoteProducer(self._wire, self._allowance, self._session, number, name)


class RemoteProducer:
    """A claimed producer."""

    def __init__(self, wire: Wire, allowance: Allowance, session: int, number: int, name: str) -> None:
        self._wire = wire
        self._allowance = allowance
        self._session = session
        self._number = number
        self._name = name
        self._encoder = Encoder()
        self._lock = threading.Lock()
        self._refusal: BaseException | None = None
        self._generation = 0  # what was appended before the last `resume` says nothing about what comes after it
        self._open: _RemoteTransaction | None = None

    @property
    def name(self) -> str:
        """As claimed."""
        return self._name

    def resume(self) -> Resume | None:
        """See `Producer`."""
        with self._lock:
            self._generation += 1
            self._refusal = None
        self._encoder = Encoder()  # so does the other end
        self._open = None
        plain = self._call("resume").result()
        return None if plain is None else Resume(bytes.fromhex(plain[0]), bytes.fromhex(plain[1]))

    def append(self, transactions: Transactions, resume: bytes) -> Future[Appended]:
        """See `Producer`; returns when the bytes are on their way."""
        self._check()
        return self._appended("append", self._encoder.encode(transactions), resume=bytes(resume).hex())

    def begin(self, xid: str) -> OpenTransaction:
        """See `Producer`."""
        self._check()
        if self._open is not None:
            raise UnknownInputError(f"another transaction is open in producer {self._name}")
        self._later("begin", xid=xid)
        self._open = _RemoteTransaction(self)
        return self._open

    def _check(self) -> None:
        with self._lock:
            if self._refusal is not None:
                raise self._refusal

    def _call(self, method: str, body: Sequence[Part] = (), **arguments: Any) -> Future[Any]:
        return self._wire.call(method, body, session=self._session, producer=self._number, **arguments)

    def _later(self, method: str, body: Sequence[Part] = (), **arguments: Any) -> Future[Any]:
        """A call whose refusal is raised by the next one."""
        count_bytes, generation = size_bytes(body), self._generation
        self._allowance.take(count_bytes)
        answer = self._call(method, body, **arguments)

        def answered(ended: Future[Any]) -> None:
            self._allowance.give_back(count_bytes)
            with self._lock:
                if self._generation == generation:
                    self._refusal = self._refusal or ended.exception()

        answer.add_done_callback(answered)
        return answer

    def _appended(self, method: str, body: Sequence[Part] = (), **arguments: Any) -> Future[Appended]:
        future: Future[Appended] = Future()

        def answered(ended: Future[Any]) -> None:
            if (error := ended.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(Appended(*ended.result()))

        self._later(method, body, **arguments).add_done_callback(answered)
        return future


class _RemoteTransaction:
    """A transaction on its way in."""

    def __init__(self, producer: RemoteProducer) -> None:
        self._producer = producer

    def add(self, changes: Sequence[ChangeBatch], controls: Sequence[Control] = ()) -> None:
        """See `OpenTransaction`."""
        self._check()
        body = self._producer._encoder.encode(Transactions.one(b"", changes, controls))
        self._producer._later("add", body)

    def commit(
        self,
        sequence: bytes,
        resume: bytes,
        *,
        lineage: str = "",
        sort_key: bytes | None = None,
        token: str = "",
        committed_at: Any = None,
        origin: str | None = None,
    ) -> Future[Appended]:
        """See `OpenTransaction`."""
        self._check()
        self._producer._open = None
        if isinstance(committed_at, dt.datetime):
            committed_at = pa.scalar(committed_at, pa.timestamp("us", "UTC")).value
        return self._producer._appended(
            "commit",
            sequence=bytes(sequence).hex(),
            resume=bytes(resume).hex(),
            lineage=lineage,
            sort_key=None if sort_key is None else bytes(sort_key).hex(),
            token=token,
            committed_at=committed_at,
            origin=origin,
        )

    def abort(self) -> None:
        """See `OpenTransaction`."""
        if self._producer._open is self:
            self._producer._open = None
            self._producer._later("abort")

    def _check(self) -> None:
        self._producer._check()
        if self._producer._open is not self:
            raise UnknownInputError(f"this transaction of producer {self._producer.name} has ended")
