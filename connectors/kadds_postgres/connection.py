"""Connections: which parameters they get, so that every session is verified and speaks one dialect of text.

Values are text in this protocol, and how a value is written and read depends on settings of the session. `SESSION`
fixes all of them, for the snapshot, the stream and the sink alike; one decoder reads them all. With `row_security` off
a role that policies show only some rows is refused, where it would copy only those without a word.
"""

from __future__ import annotations

import ipaddress
import os
from typing import Any

import psycopg
from psycopg import conninfo

from kadds.api.errors import ConfigurationError
from kadds_postgres.errors import translated
from kadds_postgres.settings import ConnectionSettings, Tls

Connection = psycopg.Connection[tuple[Any, ...]]

SESSION = {
    "datestyle": "ISO",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "client_encoding": "UTF8",
    "search_path": "",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "xmloption": "content",
    "row_security": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read\\ committed",
}


def parameters(settings: ConnectionSettings) -> dict[str, Any]:
    """libpq's parameters; ConfigurationError for a URL that libpq cannot read."""
    text = settings.url.reveal()
    try:
        given: dict[str, Any] = dict(conninfo.conninfo_to_dict(text))
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            settings.url.scrub(str(error)).strip(), where=str(settings.url), hint="such as postgresql://user@host/db"
        ) from error
    if settings.tls is not None and "sslmode" in given:
        raise ConfigurationError(
            "both `tls` and the URL's `sslmode` say how the server is verified",
            where=str(settings.url),
            hint="give one of them",
        )
    if settings.tls is not None:
        given["sslmode"] = str(settings.tls)
    elif "sslmode" not in given:
        given["sslmode"] = str(Tls.DISABLE if _is_local(given) else Tls.VERIFY_FULL)
    if settings.tls_root_certificate is not None:
        given["sslrootcert"] = str(settings.tls_root_certificate)
    elif given["sslmode"] == Tls.VERIFY_FULL:
        given.setdefault("sslrootcert", "system")
    given["options"] = " ".join([given.get("options", ""), *(f"-c {name}={value}" for name, value in SESSION.items())])
    given["connect_timeout"] = settings.connect_timeout_seconds
    given.setdefault("application_name", "kadds")
    given.update(keepalives=1, keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=30_000)
    return given


def _is_local(given: dict[str, Any]) -> bool:
    """Whether every host is a socket of this machine or a loopback address; names other than localhost are not.

    libpq takes from the environment, or from its file of services, what the URL leaves out.
    """
    if given.get("service") or os.environ.get("PGSERVICE"):
        return False
    named = [given.get("hostaddr") or os.environ.get("PGHOSTADDR"), given.get("host") or os.environ.get("PGHOST")]
    hosts = (named[0] or named[1] or "").split(",")
    return all(not host or host.startswith(("/", "@")) or host == "localhost" or _is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connect(settings: ConnectionSettings, **more: Any) -> Connection:
    """A connection in autocommit; RetryableError, RefusedError as `errors` says.

    `replication="database"` makes it one of the replication protocol.
    """
    with translated(settings.url):
        return psycopg.connect(**{**parameters(settings), **more}, autocommit=True, prepare_threshold=None)
