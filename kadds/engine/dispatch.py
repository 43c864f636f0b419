"""The dispatcher: one thread that follows the log and wakes the subscriptions that each commit concerns.

It reads no rows: the log says which streams have been touched, a map says who wants them, and the workers do the rest.
Streams that appear while it runs are matched when they are first touched. Whoever is not concerned is not woken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog

from kadds.api.errors import KaddsError
from kadds.engine.deliver import SubscriptionRunner
from kadds.log.log import Log
from kadds.log.stream import Stream, qualified_name

_LOOK_UP_SECONDS = 0.2  # how long the log may keep the thread from seeing that it is to stop

_logger = structlog.get_logger(__name__)


class Dispatcher:
    """`failed` is called, once, with the error that ended the log."""

    def __init__(self, log: Log, failed: Callable[[BaseException], None], changed: Callable[[], None]) -> None:
        self._log = log
        self._failed = failed
        self._changed = changed
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # one looks at a time, so that `scanned` only rises
        self._runners: list[SubscriptionRunner] = []
        self._known: dict[int, tuple[SubscriptionRunner, ...]] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.scanned = log.end().offset()  # everything below has been handed to whom it concerns

    def start(self) -> None:
        """Follow the log from where it stood when this was made."""
        self._thread = threading.Thread(target=self._run, name="kadds-dispatcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wake nobody any more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def add(self, runner: SubscriptionRunner) -> None:
        """A subscription, which is given its streams and everything that they hold.

        All of its streams come before the first mark, here as in `_route`: a lane of many streams reads up to its mark,
        and what a stream that is not yet its own holds below would be passed by.
        """
        with self._lock:
            self._runners.append(runner)
            self._known.clear()
            end = self._log.end().offset()
            wanted = [
                stream
                for stream in self._log.streams(runner.spec.source)
                if runner.wants(stream, qualified_name(stream.name))
            ]
            for stream in wanted:
                runner.add_stream(stream)
            for stream in wanted:
                runner.mark(stream.id, end)
        runner.wake()

    def remove(self, runner: SubscriptionRunner) -> None:
        """It is woken no more."""
        with self._lock:
            self._runners = [other for other in self._runners if other is not runner]
            self._known.clear()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                end = self._log.wait(self.scanned, _LOOK_UP_SECONDS)
                failure = self._log.failure
                if failure is not None:
                    self._failed(failure)
                    return
                if end > self.scanned:
                    self.look()
            except KaddsError as error:
                self._failed(error)
                return
            except Exception as error:
                _logger.exception("defect_in_dispatcher")
                self._failed(error)
                return

    def look(self) -> None:
        """Hand out all that the log has now; whoever starts a run up to its end needs that first."""
        with self._looking:
            if self._log.end().offset() > self.scanned:
                end, ids = self._log.touched(self.scanned)
                self._route(end, ids)

    def _route(self, end: int, ids: Iterable[int]) -> None:
        with self._lock:
            concerned: dict[SubscriptionRunner, None] = {}
            for number in self._with_known(ids):
                for runner in self._known[number]:
                    runner.mark(number, end)
                    concerned[runner] = None
            self.scanned = end
        for runner in concerned:
            runner.wake()
        self._changed()

    def _with_known(self, ids: Iterable[int]) -> Iterable[int]:
        """The ids, each of which is in the map; streams not met before are matched now."""
        ids = tuple(ids)
        for number in ids:
            if number not in self._known:
                self._known[number] = self._matched(self._log.stream(number))
        return ids

    def _matched(self, stream: Stream) -> tuple[SubscriptionRunner, ...]:
        if stream.is_system or stream.name.endswith("/"):
            return ()
        name = qualified_name(stream.name)
        wanting = tuple(runner for runner in self._runners if runner.wants(stream, name))
        for runner in wanting:
            runner.add_stream(stream)
        return wanting
