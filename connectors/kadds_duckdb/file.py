"""The database file: opened by the first that needs it, closed again when nobody has for `idle_close_seconds`.

Invariants: one connection per file in this process, whoever asks (`shared`); one thread at a time uses it; outside
`transaction` there is none open. DuckDB lets one process open a file, so closing it is what lets its owner read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Protocol

import duckdb

from kadds.api.errors import ConfigurationError, RetryableError
from kadds_duckdb.errors import as_ours, translated
from kadds_duckdb.settings import DuckdbSettings

_MEMORY_BYTES = 1 << 30  # where neither a person nor `memory_limit` says what DuckDB may take


class Clock(Protocol):
    """What passes while the file lies idle; tests bring their own."""

    def now(self) -> float:
        """Seconds, rising."""
        ...

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        """Wait, holding `changed`, until it is notified or `seconds` have passed."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        """Seconds, rising."""
        return time.monotonic()

    def wait(self, changed: threading.Condition, seconds: float) -> None:
        """Wait until notified or `seconds` have passed."""
        changed.wait(seconds)


class DatabaseFile:
    """One file of one process. `openings` counts how often it was opened: what its owner may have changed between."""

    _files: ClassVar[dict[Path, DatabaseFile]] = {}
    _files_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: DuckdbSettings, clock: Clock | None = None) -> None:
        self.path = settings.path.absolute()
        self.openings = 0
        self._settings = settings
        self._clock = clock or SystemClock()
        self._users = 0
        self._used_at = 0.0
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._closer: threading.Thread | None = None
        self._changed = threading.Condition(threading.RLock())

    @classmethod
    def shared(cls, settings: DuckdbSettings) -> DatabaseFile:
        """The file of `settings.path`, to be given back with `leave`; ConfigurationError where two sinks disagree."""
        place = settings.path.absolute().resolve()
        with cls._files_lock:
            file = cls._files.get(place) or cls(settings)
            if settings.model_copy(update={"path": file._settings.path, "default_schema": ""}) != (
                file._settings.model_copy(update={"default_schema": ""})
            ):
                raise ConfigurationError(
                    f"two sinks write {place} with different settings",
                    hint="give both the same idle_close_seconds, memory_limit_bytes and threads",
                )
            cls._files[place] = file
            file._users += 1
        return file

    def leave(self) -> None:
        """Give it back; the last one closes it."""
        with self._files_lock:
            self._users -= 1
            if self._users <= 0:
                self._files.pop(self.path.resolve(), None)
                self.close()
                if self._closer is not None:
                    self._closer.join()  # a thread that outlives the interpreter keeps DuckDB from ending in order

    @property
    def is_open(self) -> bool:
        """Whether this process holds the file now."""
        return self._connection is not None

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, for this thread alone; RetryableError that says who else holds the file."""
        with self._changed:
            connection = self._open()
            try:
                yield connection
            except (duckdb.FatalException, duckdb.InternalException):
                self.close()  # DuckDB serves nothing more after it; opening again recovers
                raise
            finally:
                self._used_at = self._clock.now()
                if self._settings.idle_close_seconds == 0:
                    self.close()

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A transaction that is committed at the end, or leaves nothing; RetryableError where a commit fails."""
        with translated(self.path), self.connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            except BaseException:
                with suppress(duckdb.Error):
                    connection.execute("ROLLBACK")
                raise
            self._commit(connection)

    def _commit(self, connection: duckdb.DuckDBPyConnection) -> None:
        try:
            connection.execute("COMMIT")
        except duckdb.Error as error:
            self.close()
            ours = as_ours(error, self.path)
            raise RetryableError(
                f"the outcome of a commit is not known: {ours.message}",
                where=str(self.path),
                hint=ours.hint,
                waiting_for=ours.waiting_for if isinstance(ours, RetryableError) else None,
            ) from error

    def _open(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = duckdb.connect(str(self.path), config=self._config())
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute("SET lock_configuration = true")
            self._connection = connection
            self.openings += 1
            if self._settings.idle_close_seconds > 0:
                name = f"close {self.path.name} when idle"
                self._closer = threading.Thread(
                    target=self._close_when_idle, args=(self.openings,), name=name, daemon=True
                )
                self._closer.start()
        return self._connection

    def _config(self) -> dict[str, str | bool | int | float | list[str]]:
        """No extension is loaded and no other file read, whatever a name or a value says."""
        config: dict[str, str | bool | int | float | list[str]] = {
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "enable_external_access": False,
            "python_enable_replacements": False,
            "memory_limit": f"{self._settings.memory_limit_bytes or _MEMORY_BYTES}B",
        }
        if self._settings.threads is not None:
            config["threads"] = self._settings.threads
        return config

    def _close_when_idle(self, opening: int) -> None:
        with self._changed:
            while self._connection is not None and self.openings == opening:
                left_seconds = self._used_at + self._settings.idle_close_seconds - self._clock.now()
                if left_seconds <= 0:
                    self.close()
                    return
                self._clock.wait(self._changed, left_seconds)

    def close(self) -> None:
        """Close it now; the next use opens it again."""
        with self._changed:
            connection, self._connection = self._connection, None
            self._changed.notify_all()
            if connection is not None:
                with suppress(duckdb.Error):  # a checkpoint that fails here is done by the next opening, from the WAL
                    connection.close()
