"""A driver's failure → the error that says what its reader can do, with no secret in its text."""

from __future__ import annotations

import sqlalchemy as sa

from kadds.api.errors import ConfigurationError, DataError, KaddsError, RefusedError, RetryableError
from kadds.api.settings import SecretUrl
from kadds_polling.dialects.interface import Dialect, Failure

_HINTS: dict[type[Failure], str | None] = {
    RefusedError: "check the user, its password and its privileges, and that the database and the table exist",
    DataError: "the table may have changed since it was discovered: restart the source, or correct the row",
    RetryableError: None,
}


def translate(
    error: sa.exc.SQLAlchemyError, dialect: Dialect, url: SecretUrl, *, where: str | None, connecting: bool
) -> KaddsError:
    """The error to raise for one of SQLAlchemy's; one that nobody knows is refused by name, not retried."""
    cause = getattr(error, "orig", None) or error
    text = url.scrub(str(cause).strip())
    kind = _kind(error, cause, dialect, connecting)
    return kind(text, where=where or str(url), hint=_HINTS[kind])


def _kind(error: sa.exc.SQLAlchemyError, cause: BaseException, dialect: Dialect, connecting: bool) -> type[Failure]:
    if isinstance(error, sa.exc.TimeoutError):
        return RetryableError  # every connection of the pool is in use
    named = dialect.classify(cause, connecting)
    if named is not None:
        return named
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return RetryableError
    if isinstance(error, sa.exc.DataError):
        return DataError
    return RetryableError if isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError) else RefusedError


def unusable_url(error: Exception, url: SecretUrl) -> ConfigurationError:
    """For a URL that SQLAlchemy cannot make an engine of: an unknown dialect, a driver that is not installed."""
    if isinstance(error, ModuleNotFoundError):
        return ConfigurationError(
            f"the driver {error.name} for {url} is not installed",
            hint="pip install 'kadds[postgres]' or 'kadds[mysql]', or name an installed driver: mysql+pymysql://…",
        )
    return ConfigurationError(
        f"{url}: {url.scrub(str(error))}", hint="such as sqlite:///path, postgresql://user@host/db"
    )
