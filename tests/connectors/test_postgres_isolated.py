"""The PostgreSQL source in a process of its own (`isolation: process`): the same suite, over the same server."""

from collections.abc import Iterator

import pytest

from kadds.api.connector import Source
from kadds.api.position import Position
from kadds.app.isolation import IsolatedSource, open_isolated
from kadds_postgres.position import position
from kadds_postgres.settings import PostgresSourceSettings
from tests.connectors import test_postgres
from tests.support.servers import PostgresServer

pytestmark = pytest.mark.own_server("postgres")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One server for the module."""
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


class TestIsolatedPostgresSource(test_postgres.TestPostgresSource):
    """The suite."""

    @pytest.fixture(autouse=True)
    def _processes(self) -> Iterator[None]:
        self.sources: list[IsolatedSource] = []
        yield
        for source in self.sources:
            source.close()

    def make_source(self) -> Source:
        return self._opened({"url": self.database.url, "slot": self.slot})

    def make_unusable_source(self) -> Source:
        return self._opened({"url": "postgresql://postgres@127.0.0.1:1/postgres"})

    def _opened(self, settings: dict[str, str]) -> Source:
        source = open_isolated("postgres", PostgresSourceSettings.model_validate(settings), lambda _: None)
        self.sources.append(source)
        return source

    def acknowledged(self) -> Position | None:
        shown = self.database.slot(self.slot)
        if not shown:
            return None
        with self.opened() as source:
            assert isinstance(source, IsolatedSource)
            return position(source.head().lineage, int(shown["confirmed"]))
