"""A PostgreSQL source, three databases that Kadds keeps up with it by different contracts, and the verdict over all.

`state` has the tables by `merge`, `books` by `transactional`, `history` every change by `append`. The servers are the
test's own, which may kill them; a bed takes databases of them and gives them back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psycopg
import sqlalchemy

from tests.support.kadds_process import Kadds
from tests.support.postgres_judges import (
    commits,
    differences,
    history_faults,
    log_faults,
    postgres_history,
    read_log,
    replay_faults,
    replayed,
    watch_commits,
)
from tests.support.postgres_tables import COMMITTED, PostgresTable, make
from tests.support.servers import DatabaseServer

MODES = {"state": "merge", "books": "transactional", "history": "append"}


def plain_url(url: str) -> str:
    """The URL as libpq knows it, without SQLAlchemy's name of the driver."""
    return sqlalchemy.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class PostgresBed:
    """Kadds is not running; start it as the test needs. Use it in a `with`, which gives the databases back."""

    def __init__(
        self,
        folder: Path,
        *,
        source: DatabaseServer,
        target: DatabaseServer,
        tables: Sequence[PostgresTable],
        modes: Mapping[str, str] = MODES,
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.tables = tables
        self.modes = modes
        self._servers = (source, target)
        self._made_urls = [source.create_database(), *(target.create_database() for _ in modes)]
        self.source_url, *urls = map(plain_url, self._made_urls)
        self.urls = dict(zip(modes, urls, strict=True))
        make(self.source_url, tables)
        watch_commits(self.source_url)
        self.configuration: dict[str, Any] = {
            "sources": {"shop": {"connector": "postgres", "url": self.source_url, "tables": ["public.*"]}},
            "sinks": {name: {"connector": "postgres", "url": url} for name, url in self.urls.items()},
            "subscriptions": {
                name: {"source": "shop", "sink": name, "mode": mode, "tables": ["*"]} for name, mode in modes.items()
            },
            **more,
        }
        self.kadds = Kadds(folder, self.configuration, environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Give the databases and their slots back."""
        source, target = self._servers
        database = sqlalchemy.make_url(self.source_url).database
        source.execute(
            f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{database}'"
        )
        source.execute(
            f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{database}' "
            "AND NOT active"
        )
        source.drop_database(self._made_urls[0])
        for url in self._made_urls[1:]:
            target.drop_database(url)

    def has_arrived(self, name: str) -> int:
        """How many of the writers' transactions stand in the target `name`."""
        with psycopg.connect(self.urls[name], autocommit=True) as connection:
            (there,) = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [COMMITTED]).fetchone() or (False,)
            if not there:
                return 0
            (count,) = connection.execute(f"SELECT count(*) FROM {COMMITTED}").fetchone() or (0,)
            return int(count)

    def committed(self) -> int:
        """How many transactions the writers have committed."""
        return len(commits(self.source_url))

    def faults(self) -> dict[str, list[str]]:
        """What is wrong, by place, after catching up and while nothing runs; empty where all is as it must be."""
        logged = read_log(self.kadds.log)
        found = {"log": log_faults(logged, self.source_url)}
        for table, key in [*((table.name, table.key_names) for table in self.tables), (COMMITTED, ("number",))]:
            for name, mode in self.modes.items():
                if mode == "append":
                    history = postgres_history(self.urls[name], table)
                    place = f"{name} {table}"
                    found[place] = history_faults(history, logged.offsets[table])
                    found[f"{place} replayed"] = replay_faults(self.source_url, table, replayed(history, key))
                else:
                    found[f"{name} {table}"] = differences(self.source_url, self.urls[name], table)
        return {place: faults for place, faults in found.items() if faults}
