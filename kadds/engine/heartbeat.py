"""Heartbeats: records that Kadds itself writes into a source's own stream, to measure the whole way.

Lag that is computed from what a stage knows of itself stays at nothing when that stage is stuck. A heartbeat goes the
way of a change: appended, made durable, seen by the dispatcher, passed by every cursor of a subscription. How long the
oldest one that has not got there has been under way is the lag of the whole, whatever it is that stands still.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from kadds.api.change import Control, ControlKind, Transactions
from kadds.api.connector import Appended, Producer
from kadds.api.errors import KaddsError
from kadds.engine.alarms import Alarms
from kadds.engine.states import utc_now
from kadds.engine.workers import Workers
from kadds.log.log import Log

_KEPT = 1000  # beats remembered; a subscription that is further behind shows the age of the oldest of them
_GROUP = "heartbeat"

_logger = structlog.get_logger(__name__)


@dataclass(eq=False)
class Beat:
    """One heartbeat: when it was sent, and the offset behind it once it is on disk."""

    sent_at: dt.datetime
    end_offset: int | None = None


class Heart:
    """Beats for one source while it is captured; never blocks whoever asks for a lag."""

    def __init__(self, log: Log, source: str, interval_seconds: float, alarms: Alarms, workers: Workers) -> None:
        self._log = log
        self._source = source
        self._interval_seconds = interval_seconds
        self._alarms = alarms
        self._workers = workers
        self._lock = threading.Lock()
        self._beats: deque[Beat] = deque(maxlen=_KEPT)
        self._producer: Producer | None = None
        self._number = 0
        self._stopped = False

    def start(self) -> None:
        """Beat now, and again each interval."""
        self._due()

    def stop(self) -> None:
        """Beat no more."""
        self._stopped = True

    def _due(self) -> None:
        if not self._stopped:
            self._workers.submit(_GROUP, self._beat)
            self._alarms.after(self._interval_seconds, self._due)

    def _beat(self) -> None:
        with self._lock:
            if self._stopped:
                return
            beat = Beat(utc_now())
            self._beats.append(beat)
        try:
            producer = self._claimed()
            self._number += 1
            control = Control(ControlKind.HEARTBEAT, 0, None, {"sent_at": beat.sent_at.isoformat()})
            sequence = self._number.to_bytes(8, "big")
            one = Transactions.one(sequence, controls=[control], committed_at=beat.sent_at)
            producer.append(one, b"").add_done_callback(lambda future: self._durable(beat, future))
        except KaddsError as error:
            self._lost(beat, error)

    def _claimed(self) -> Producer:
        """The producer, at what the log has of it: after a refused append too."""
        if self._producer is None:
            producer = self._log.producer(self._source, "heartbeat")
            resume = producer.resume()
            self._number = int.from_bytes(resume.sequence, "big") if resume else 0
            self._producer = producer
        return self._producer

    def _durable(self, beat: Beat, future: Future[Appended]) -> None:
        error = future.exception()
        if error is None:
            beat.end_offset = future.result().end_offset
        else:
            self._lost(beat, error)

    def _lost(self, beat: Beat, error: BaseException) -> None:
        """A beat that the log refused stays unanswered, and so is seen; the next one begins from what is durable."""
        self._producer = None
        _logger.warning("heartbeat_refused", source=self._source, error=type(error).__name__, sent_at=str(beat.sent_at))

    def lag_seconds(self, passed: Callable[[int], bool]) -> float:
        """For how long the oldest beat that has not passed has been under way; 0.0 where all have.

        `passed` says of an offset whether everything below it has been delivered.
        """
        with self._lock:
            beats = list(self._beats)
        oldest: Beat | None = None
        for beat in reversed(beats):
            if beat.end_offset is not None and passed(beat.end_offset):
                break
            oldest = beat
        return 0.0 if oldest is None else round((utc_now() - oldest.sent_at).total_seconds(), 3)
