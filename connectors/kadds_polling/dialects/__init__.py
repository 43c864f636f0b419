"""Database products: what each needs so that its values are read exactly and of one moment. One file per product."""

from __future__ import annotations

import sqlalchemy as sa

from kadds_polling.dialects.interface import Dialect
from kadds_polling.dialects.mysql import MySQL
from kadds_polling.dialects.other import Other
from kadds_polling.dialects.postgres import PostgreSQL
from kadds_polling.dialects.sqlite import SQLite

_DIALECTS: dict[str, type[Dialect]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
    "sqlite": SQLite,
}

#: The driver of the extra, where a URL names none and SQLAlchemy would take another.
_DRIVERS = {"mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql", "postgres": "postgresql"}


def url_with_driver(url: sa.URL) -> sa.URL:
    """`url` with the driver that the extras install where it names none."""
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))


def dialect_of(url: sa.URL) -> Dialect:
    """The product that `url` speaks of; those that were never tried share one."""
    return _DIALECTS.get(url.get_backend_name(), Other)()
