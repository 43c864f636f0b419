"""Every error that Kadds raises, grouped by what the caller does about it.

    KaddsError
     ├── ConfigurationError      exit 2; the person corrects the file or the command
     ├── RetryableError          the engine waits and tries again
     │    └── NoSpaceError       intake stops with a named state and goes on when there is room
     ├── RefusedError            a server or the operating system says no; a person changes something there
     │    └── LockedError        another process holds what is needed, named with its pid where known
     ├── DataError               one table stops, named; the others go on
     │    ├── UnknownInputError  something not understood; nothing is skipped
     │    └── SchemaMismatchError  a target is of another shape than the stream
     ├── GapError                changes are missing between two places; a resync is needed, never a silent skip
     ├── FencedError             a newer claim exists; this holder stops and touches nothing more
     └── CorruptLogError         bytes on disk are not what was written; they are never served

`Stopping` is a signal, not an error. Code either raises or logs, never both. Each error says what happened, `where`,
and in `hint` what to do next.
"""

from __future__ import annotations


class KaddsError(Exception):
    """What happened, where, and what to do next."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class ConfigurationError(KaddsError):
    """The configuration or the command is wrong; nothing has been moved."""


class RetryableError(KaddsError):
    """Trying again later may succeed: a lost connection, a deadlock, a server that is starting.

    `waiting_for` is set where the cause is a state to show rather than a fault (a file that its owner has open); such a
    wait has no limit on its attempts.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        retry_after_seconds: float | None = None,
        waiting_for: str | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.retry_after_seconds = retry_after_seconds
        self.waiting_for = waiting_for


class NoSpaceError(RetryableError):
    """The disk of the log is full or below its floor: nothing was accepted, nothing is lost."""


class RefusedError(KaddsError):
    """A server or the operating system refuses: a missing privilege, a missing table, a wrong password."""


class LockedError(RefusedError):
    """Another process holds the folder."""


class DataError(KaddsError):
    """This table cannot go on with these data; other tables do."""


class UnknownInputError(DataError):
    """Input that this version does not understand; skipping it would lose data."""


class SchemaMismatchError(DataError):
    """A target exists with another shape than the stream needs."""


class GapError(KaddsError):
    """Changes are missing between what the reader has and what can be read."""


class FencedError(KaddsError):
    """A newer holder has claimed this producer or this subscription."""


class CorruptLogError(KaddsError):
    """A checksum or a structure of the log does not hold."""


class Stopping(Exception):  # noqa: N818 - it is no error
    """Raised inside a wait when the process is asked to stop; not an error."""
