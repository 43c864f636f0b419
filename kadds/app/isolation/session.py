"""The engine's end of one session of a streaming source: what the child appends goes to the engine's producers.

Each producer has a lane, in which its calls are done one after another in the order in which they came; a lane that
waits because the log is full holds up no other and no acknowledgement. A refused call refuses all behind it until
`resume`, so that no sequence can pass a lost one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from kadds.api.connector import Appended, Inlet, OpenTransaction, Producer
from kadds.api.encoding import Decoder
from kadds.api.errors import FencedError, KaddsError, UnknownInputError
from kadds.app.isolation.wire import Asked, Wire

_IDLE_SECONDS = 5.0  # after which a lane gives its thread back


class Session:
    """One call of `stream`. `broke_off` is called when a producer raises what is no KaddsError, kept in `defect`."""

    def __init__(self, wire: Wire, inlet: Inlet, broke_off: Callable[[], None]) -> None:
        self.wire = wire
        self.inlet = inlet
        self.defect: BaseException | None = None
        self.ended = False
        self._broke_off = broke_off
        self._lanes: dict[int, _Lane] = {}

    def asked(self, asked: Asked) -> None:
        """A call to a producer; answered by its lane."""
        number = asked.arguments.pop("producer")
        if asked.method == "producer":
            self._lanes[number] = _Lane(self)
        self._lanes[number].put(asked)

    def break_off(self, defect: BaseException) -> None:
        """The session cannot go on."""
        self.defect = self.defect or defect
        self._broke_off()

    def end(self) -> None:
        """What is still waiting is refused."""
        self.ended = True


class _Lane:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._wire = session.wire
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._has_thread = False
        self._producer: Producer | None = None
        self._decoder = Decoder()
        self._open: OpenTransaction | None = None
        self._refusal: KaddsError | None = None
        self._methods: dict[str, Callable[..., Any]] = {
            "producer": self._claim,
            "resume": self._resume,
            "append": self._append,
            "begin": self._begin,
            "add": self._add,
            "commit": self._commit,
            "abort": self._abort,
        }

    def put(self, asked: Asked) -> None:
        """Do it when all before it has been done."""
        with self._lock:
            self._queue.put(asked)
            if not self._has_thread:
                self._has_thread = True
                threading.Thread(target=self._run, name="kadds-lane", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                asked = self._queue.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._queue.empty():
                        self._has_thread = False
                        return
                continue
            self._do(asked)

    def _do(self, asked: Asked) -> None:
        if self._session.ended:
            self._wire.refuse(asked.number, FencedError("the session of this producer is over"))
            return
        if asked.method == "resume":
            self._refusal, self._decoder, self._open = None, Decoder(), None
        if self._refusal is not None:
            self._wire.refuse(asked.number, self._refusal)
            return
        try:
            result = self._methods[asked.method](asked)
        except KaddsError as error:
            self._refusal = error
            self._wire.refuse(asked.number, error)
        except BaseException as error:  # noqa: BLE001 - `stream` raises it
            self._session.break_off(error)
        else:
            if isinstance(result, Future):
                result.add_done_callback(lambda ended: self._acknowledge(asked.number, ended))
            else:
                self._wire.answer(asked.number, result)

    def _acknowledge(self, number: int, ended: Future[Appended]) -> None:
        error = ended.exception()
        if error is None:
            done = ended.result()
            self._wire.answer(number, [done.first_offset, done.end_offset, done.repeated])
        elif isinstance(error, KaddsError):
            self._wire.refuse(number, error)
        else:
            self._session.break_off(error)

    # ------------------------------------------------------------------------------------------- what is asked for

    @property
    def _claimed(self) -> Producer:
        assert self._producer is not None  # noqa: S101 - a refused claim refuses all that comes behind it
        return self._producer

    def _claim(self, asked: Asked) -> None:
        self._producer = self._session.inlet.producer(asked.arguments["name"])

    def _resume(self, _: Asked) -> list[str] | None:
        found = self._claimed.resume()
        return None if found is None else [found.sequence.hex(), found.state.hex()]

    def _append(self, asked: Asked) -> Future[Appended]:
        assert asked.body is not None  # noqa: S101 - what an append is
        return self._claimed.append(self._decoder.decode(asked.body), bytes.fromhex(asked.arguments["resume"]))

    def _begin(self, asked: Asked) -> None:
        self._open = self._claimed.begin(asked.arguments["xid"])

    def _transaction(self) -> OpenTransaction:
        if self._open is None:
            raise UnknownInputError("no transaction is open")
        return self._open

    def _add(self, asked: Asked) -> None:
        assert asked.body is not None  # noqa: S101
        piece = self._decoder.decode(asked.body)
        self._transaction().add(piece.changes, piece.controls)

    def _commit(self, asked: Asked) -> Future[Appended]:
        transaction, self._open = self._transaction(), None
        given = dict(asked.arguments)
        sequence, resume = bytes.fromhex(given.pop("sequence")), bytes.fromhex(given.pop("resume"))
        key = given.pop("sort_key")
        return transaction.commit(sequence, resume, sort_key=None if key is None else bytes.fromhex(key), **given)

    def _abort(self, _: Asked) -> None:
        transaction, self._open = self._transaction(), None
        transaction.abort()
