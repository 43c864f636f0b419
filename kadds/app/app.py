"""The composition root: one opened log, and what a configuration makes of it.

An `App` answers every verb (`verbs`). Where it was opened only to answer one, it has a log and no engine; `start` opens
sources and sinks and starts the engine, and from then on other processes reach it through the socket.
"""

from __future__ import annotations

import datetime as dt
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tenacity

from kadds.api.connector import Sink, StopSignal
from kadds.api.errors import ConfigurationError, LockedError, RefusedError
from kadds.app import assembly
from kadds.app.places import Place
from kadds.app.registry import Registry
from kadds.app.remembered import Remembered, refuse
from kadds.app.schedules import Job, jobs_of, jobs_remembered
from kadds.app.secrets import secrets_in, secrets_of
from kadds.config import Configuration, Difference, Effect, Loaded, SinkEntry, load
from kadds.config import names as naming
from kadds.engine.budget import MemorySplit, default_memory_limit_bytes
from kadds.engine.runs import Run
from kadds.engine.states import utc_now
from kadds.engine.supervisor import DRAIN_SECONDS, Engine, Outcome
from kadds.log.lock import read_holder
from kadds.log.log import Log

Narrate = Callable[[str], None]
_LOOK_SECONDS = 1.0  # how long a run that will never end may keep its thread from seeing that the app ends
_ABANDONED_SECONDS = 2.0
_LOOK_AT_LOCK_SECONDS = 0.05
_LOCK_PATIENCE_SECONDS = 10.0


class App:
    """See the module. Made by `open` or `for_running`; `close` gives everything back."""

    def __init__(self, log: Log, *, config: Path | None, environment: Mapping[str, str] = os.environ) -> None:
        self.log = log
        self.environment = environment
        self.registry = Registry(log, environment)
        self.remembered = Remembered(log)
        self.engine: Engine | None = None
        self.started_at: dt.datetime | None = None
        self.differences: Sequence[Difference] = ()
        self.next_runs: Callable[[], Mapping[str, dt.datetime | None]] = dict
        self.closing = threading.Event()
        self.config = config
        self._loaded: Loaded | None = None
        self._sink_memory_bytes: int | None = None
        self._closers: list[Callable[[], None]] = []
        self._drained = False

    # ------------------------------------------------------------------------------------------- opening

    @classmethod
    def open(cls, place: Place, *, writable: bool, environment: Mapping[str, str] = os.environ) -> Self:
        """Open the log to answer one command; LockedError where another process holds it."""
        return cls(Log.open(place.log, writable=writable), config=place.config, environment=environment)

    @classmethod
    def for_running(
        cls, loaded: Loaded, *, environment: Mapping[str, str] = os.environ, narrate: Narrate | None = None
    ) -> Self:
        """Open the log and compare the file with what it remembers; nothing is connected to yet.

        Raises ConfigurationError where the two do not fit, or where a sink is in both. A short command that holds the
        folder (somebody looks at the status just now) is waited for; a process that serves it is not.
        """
        settings = loaded.configuration.log
        log = _held_only_for_a_moment(settings.path)(
            Log.open,
            settings.path,
            memory_bytes=MemorySplit.of(memory_limit_bytes(loaded.configuration)).log_bytes,
            free_space_floor_bytes=settings.free_space_floor_bytes,
            seal_after_seconds=settings.seal_after_seconds,
            narrate=narrate,
        )
        app = cls(log, config=loaded.files[0], environment=environment)
        app._loaded = loaded
        try:
            app.registry.refuse_names_of(loaded.configuration)
            app.differences = app.remembered.compare(loaded)
            refuse(app.differences)
        except BaseException:
            app.close()
            raise
        return app

    def on_close(self, closer: Callable[[], None]) -> None:
        """Call it when the app closes, the last first, before the log closes."""
        self._closers.append(closer)

    # ------------------------------------------------------------------------------------------- configuration

    def loaded(self) -> Loaded | None:
        """The configuration, loaded when it is first asked for; None where only the log's folder was named."""
        if self._loaded is None and self.config is not None:
            self._loaded = load(self.config, self.environment, registered_sinks=lambda _: self.registered_connectors())
        return self._loaded

    def loaded_if_possible(self) -> Loaded | None:
        """As `loaded`, but None where the file cannot be loaded: a command about the log need not have its secrets."""
        try:
            return self.loaded()
        except ConfigurationError:
            return None

    @property
    def running(self) -> Loaded | None:
        """The configuration that runs; None where nothing does."""
        return self._loaded if self.engine is not None else None

    def registered_connectors(self) -> dict[str, str]:
        """Full name → connector of each registered sink."""
        return {name: str(kept["written"].get("connector")) for name, kept in self.registry.written().items()}

    def sink_entry(self, name: str) -> SinkEntry:
        """A registered sink, or one of the file; ConfigurationError that lists them where there is none."""
        if name in self.registry.written():
            return self.registry.entry(name).entry
        loaded = self.loaded()
        own = loaded.configuration.sinks if loaded else {}
        if name not in own:
            known = ", ".join(map(naming.short, sorted({*own, *self.registry.written()}))) or "none"
            raise ConfigurationError(f"there is no sink {naming.short(name)!r}", hint=f"there are: {known}")
        return own[name]

    def contracts(self) -> dict[str, dict[str, Any]]:
        """What the file says, and what the log remembers of things that the file does not have."""
        found = self.remembered.contracts()
        if (loaded := self.loaded_if_possible()) is not None:
            for section, entries in loaded.contracts().items():
                found[section].update(entries)
        return found

    def secrets(self) -> frozenset[str]:
        """Every secret of the file and of the registered sinks that it uses."""
        loaded = self.loaded()
        if loaded is None:
            return frozenset()
        used = {entry.sink for entry in loaded.configuration.subscriptions.values()} & self.registry.written().keys()
        return secrets_of(loaded.configuration) | secrets_in(*(self.sink_entry(name).settings for name in used))

    def jobs(self) -> list[Job]:
        """Everything that has a schedule: of the file where it is known, else as the log remembers it."""
        loaded = self.loaded_if_possible()
        return list(jobs_of(loaded.configuration) if loaded else jobs_remembered(self.remembered.contracts()))

    # ------------------------------------------------------------------------------------------- running

    def start(self) -> None:
        """Open sources and sinks and start the engine; what cannot be opened ends the start, with nothing moved."""
        loaded = self._loaded
        assert loaded is not None  # noqa: S101 - `for_running` has it
        engine = Engine(self.log, memory_limit_bytes=memory_limit_bytes(loaded.configuration))
        try:
            self._add_all(engine, loaded)
        except BaseException:
            engine.drain(timeout_seconds=1.0)  # closes what has been opened
            raise
        self.remembered.keep(loaded.contracts())
        self.started_at = utc_now()
        self.engine = engine
        engine.start()
        for one in self.differences:
            taken_back = one.field == "paused" and one.effect is Effect.APPLIED
            if taken_back and not loaded.configuration.subscriptions[one.subject].paused:
                engine.resume_subscription(one.subject)

    def _add_all(self, engine: Engine, loaded: Loaded) -> None:
        configuration = loaded.configuration
        for name, source in configuration.sources.items():
            opened = assembly.open_source(source, loaded.installed)
            engine.add_source(assembly.source_spec(name, source, opened, loaded.installed))
        used = {entry.sink for entry in configuration.subscriptions.values()}
        sinks = sorted(used | configuration.sinks.keys())
        self._sink_memory_bytes = engine.memory.per_sink_bytes(len(sinks))
        for name in sinks:
            self.add_sink(engine, name, self.sink_entry(name))
        for name, subscription in configuration.subscriptions.items():
            engine.add_subscription(assembly.subscription_spec(name, subscription, configuration))
            if subscription.paused:
                engine.pause_subscription(name)

    def add_sink(self, engine: Engine, name: str, entry: SinkEntry) -> None:
        """Open a sink and give it to the engine."""
        spec = assembly.sink_spec(name, entry, self.open_sink(entry))
        engine.add_sink(spec.name, spec.sink, spec.abilities)

    def open_sink(self, entry: SinkEntry) -> Sink:
        """Open a sink with its share of `memory_limit`, which stays the same as long as this process runs."""
        return assembly.open_sink(entry, memory_bytes=self._sink_memory_bytes)

    def needs_engine(self) -> Engine:
        """The engine; RefusedError where nothing runs."""
        if self.engine is None:
            raise RefusedError("nothing runs on this log", where=str(self.log.path), hint="start `kadds run` first")
        return self.engine

    def start_job(self, name: str, *, trigger: str) -> Run:
        """Start a job now; ConfigurationError for one that there is not."""
        engine = self.needs_engine()
        kind, subject = name.split(":", 1)
        if kind == "source":
            return engine.run_source_now(subject, trigger=trigger)
        return engine.run_subscription_now(subject, trigger=trigger)

    def run_job(self, name: str) -> None:
        """Run a job as its schedule wants it; returns when it has ended, or when the app does."""
        run = self.start_job(name, trigger="schedule")
        while not run.ended.wait(_LOOK_SECONDS) and not self.closing.is_set():
            pass

    def wait(self, stop: StopSignal) -> None:
        """Until `stop` is set, or the log fails."""
        self.needs_engine().wait(stop)

    def wait_until_caught_up(self, stop: StopSignal) -> Outcome:
        """See `Engine.wait_until_caught_up`."""
        return self.needs_engine().wait_until_caught_up(stop)

    def drain(self, timeout_seconds: float = DRAIN_SECONDS) -> Outcome:
        """See `Engine.drain`; those who follow the log are let go first."""
        self.closing.set()
        self._drained = True
        return self.needs_engine().drain(timeout_seconds)

    def close(self) -> None:
        """Let go of everything and close the log; an engine that nobody drained is given a moment."""
        if self.engine is not None and not self._drained:
            self.drain(_ABANDONED_SECONDS)
        self.closing.set()
        while self._closers:
            self._closers.pop()()
        self.log.close()


def _held_only_for_a_moment(folder: Path) -> tenacity.Retrying:
    """Tries again while another process holds the folder and says nowhere that it serves it."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(
            lambda error: isinstance(error, LockedError) and "socket" not in read_holder(folder)
        ),
        wait=tenacity.wait_fixed(_LOOK_AT_LOCK_SECONDS),
        stop=tenacity.stop_after_delay(_LOCK_PATIENCE_SECONDS),
        reraise=True,
    )


def memory_limit_bytes(configuration: Configuration) -> int:
    """`memory_limit`, or what it is where it is not given."""
    return configuration.memory_limit or default_memory_limit_bytes()
