"""What psycopg raises, as errors of Kadds: the one place that reads PostgreSQL's error codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from kadds.api.errors import DataError, KaddsError, RefusedError, RetryableError, SchemaMismatchError
from kadds.api.settings import SecretUrl

#: Classes of SQLSTATE whose cause may pass: connections, resources, deadlocks, an administrator's stop, I/O.
_MAY_PASS = ("08", "40", "53", "57", "58")
_MAY_PASS_EXACTLY = frozenset({"55006", "55P03", "25006"})  # in use, lock not available, read-only (a standby)
_OF_DATA = ("21", "22", "23", "54")  # 54: a row or a key that is too large
_OF_SCHEMA = frozenset({"42703", "42P01", "42804", "42701", "42P07", "3F000", "42883", "428C9", "55000"})


@contextmanager
def translated(url: SecretUrl, where: str | None = None) -> Iterator[None]:
    """Raises what psycopg raises inside as errors of Kadds that name the server, and `where` if it is given."""
    try:
        yield
    except KaddsError as error:
        error.where = error.where or where or str(url)
        raise
    except (psycopg.Error, OSError) as error:
        raise as_ours(error, url, where) from error


def as_ours(error: Exception, url: SecretUrl, where: str | None = None) -> KaddsError:
    """The error of Kadds that says what the caller does about `error`."""
    message, where = url.scrub(str(error).strip().split("\n")[0]), where or str(url)
    state = getattr(error, "sqlstate", None)
    if state is None:  # nothing came from the server: the connection is gone, or was never made
        if isinstance(error, OSError | psycopg.OperationalError | psycopg.InterfaceError):
            return _not_connected(message, where)
        return RefusedError(message, where=where, hint="this is not expected; see the server's own log")
    if state.startswith(_MAY_PASS) or state in _MAY_PASS_EXACTLY:
        return RetryableError(message, where=where)
    if state.startswith(_OF_DATA):
        return DataError(message, where=where, hint="correct the row at the source, or change the target's column")
    if state in _OF_SCHEMA:
        return SchemaMismatchError(message, where=where, hint="somebody has changed the table; put it back, or resync")
    return RefusedError(message, where=where, hint="check the user, its password and its privileges")


def _not_connected(message: str, where: str) -> KaddsError:
    refusals = ("certificate", "server does not support SSL", "root certificate", "password authentication failed")
    if any(sign in message for sign in refusals):
        return RefusedError(
            message,
            where=where,
            hint="check the password, or what `tls` and `tls_root_certificate` say of the server",
        )
    return RetryableError(message, where=where)
