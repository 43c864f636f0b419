"""What DuckDB raises, as errors of Kadds: the one place that reads DuckDB's messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from kadds.api.errors import DataError, KaddsError, RefusedError, RetryableError, SchemaMismatchError

_HELD = re.compile(r"Conflicting lock is held(?: in (?P<program>.*?))? \(PID (?P<pid>\d+)\)")
_FULL = re.compile(r"No space left on device|File too large|Disk quota exceeded|not enough space", re.IGNORECASE)
_OPEN_HERE = ("different configuration than existing connections", "Unique file handle conflict")
_ABSENT_ROW = "Merge error condition"

#: The row does not fit; another row would.
_OF_DATA = (
    duckdb.ConstraintException,
    duckdb.ConversionException,
    duckdb.InvalidInputException,
    duckdb.NotImplementedException,
    duckdb.OutOfRangeException,
    duckdb.TypeMismatchException,
)
#: DuckDB itself has gone wrong or was interrupted; nothing of the transaction is left, or it is not known.
_MAY_PASS = (
    duckdb.ConnectionException,
    duckdb.FatalException,
    duckdb.InternalException,
    duckdb.InterruptException,
    duckdb.TransactionException,
)


@contextmanager
def translated(path: Path, target: str | None = None) -> Iterator[None]:
    """Raises what DuckDB raises inside as errors of Kadds that name the file, and the target where one is at work."""
    try:
        yield
    except KaddsError as error:
        error.where = error.where or (f"{path}: {target}" if target else str(path))
        raise
    except (duckdb.Error, OSError) as error:
        raise as_ours(error, path, target) from error


def as_ours(error: Exception, path: Path, target: str | None = None) -> KaddsError:
    """The error of Kadds that says what the caller does about `error`."""
    message, where = str(error).split("\n")[0], f"{path}: {target}" if target else str(path)
    if held := _HELD.search(message):
        return waiting(path, f"held by PID {held['pid']}", held["program"])
    if any(sign in message for sign in _OPEN_HERE):
        return waiting(path, "open elsewhere in this process", None)
    if _FULL.search(message):
        return RetryableError(
            message, where=where, waiting_for=f"room for {path}", hint="make room on the disk; nothing was half written"
        )
    if isinstance(error, duckdb.ConstraintException) and _ABSENT_ROW in message:
        key = message.rpartition(": ")[2]
        return DataError(
            f"the row with key {key} has cells that were not given and is not in the target",
            where=where,
            hint="rows are missing in the target: `kadds resync` loads the table again",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return RefusedError(message, where=where, hint="raise `memory_limit_bytes` of this sink")
    if isinstance(error, duckdb.CatalogException | duckdb.BinderException):
        hint = "somebody has changed the table; put it back, or `kadds resync` the table"
        return SchemaMismatchError(message, where=where, hint=hint)
    if isinstance(error, _OF_DATA):
        hint = "correct the row at the source, or change the target's column or constraint"
        return DataError(message, where=where, hint=hint)
    if isinstance(error, _MAY_PASS):
        return RetryableError(message, where=where, hint="Kadds opens the file again and reads its cursors back")
    return RefusedError(message, where=where, hint="see that it is a DuckDB file that may be written, and its version")


def waiting(path: Path, why: str, program: str | None) -> RetryableError:
    """The file belongs to somebody else right now: a state to show, not a fault."""
    by = f" by {program}" if program else ""
    return RetryableError(
        f"the file is open{by}, {why}",
        where=str(path),
        hint="DuckDB lets one process at a time open a file; delivery goes on when it is closed there",
        retry_after_seconds=1.0,
        waiting_for=f"{path}, {why}",
    )
