"""The servers that other tests stand on: they start, answer, survive a kill with what was committed, and go away."""

from pathlib import Path

import pytest
import sqlalchemy

from tests.support import servers
from tests.support.servers import DatabaseServer, MariadbServer, OwnServer, PostgresServer

OWN_POSTGRES = pytest.mark.own_server("postgres")
OWN_MARIADB = pytest.mark.own_server("mariadb")


def _run(url: str, *statements: str) -> list[tuple[object, ...]]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    with engine.begin() as connection:
        rows: list[tuple[object, ...]] = []
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def _connect_and_leave_open(url: str) -> sqlalchemy.Connection:
    connection = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool).connect()
    connection.exec_driver_sql("INSERT INTO item VALUES (99)")
    return connection


@pytest.mark.parametrize("fixture", ["postgres_database", "mariadb_database"])
def test_a_database_of_the_session_server_is_empty_and_ones_own(request: pytest.FixtureRequest, fixture: str) -> None:
    url = request.getfixturevalue(fixture)
    schema = "public" if fixture.startswith("postgres") else sqlalchemy.make_url(url).database
    count = f"SELECT count(*) FROM information_schema.tables WHERE table_schema = '{schema}'"
    assert _run(url, count) == [(0,)]
    rows = _run(url, "CREATE TABLE item (id int PRIMARY KEY)", "INSERT INTO item VALUES (1)", "SELECT id FROM item")
    assert rows == [(1,)]


@pytest.mark.parametrize("fixture", ["postgres_server", "mariadb_server"])
def test_a_database_is_dropped_though_a_transaction_is_open_in_it(request: pytest.FixtureRequest, fixture: str) -> None:
    server: DatabaseServer = request.getfixturevalue(fixture)
    url = server.create_database()
    _run(url, "CREATE TABLE item (id int PRIMARY KEY)")
    left_open = _connect_and_leave_open(url)
    server.drop_database(url)
    with pytest.raises(sqlalchemy.exc.OperationalError):
        _run(url, "SELECT 1")
    left_open.invalidate()
    left_open.close()


@pytest.mark.parametrize(
    ("kind", "settings", "show"),
    [
        pytest.param(PostgresServer, {"wal_level": "logical"}, "SHOW wal_level", marks=OWN_POSTGRES, id="postgres"),
        pytest.param(MariadbServer, {"log_bin": "binlog"}, "SELECT @@log_bin", marks=OWN_MARIADB, id="mariadb"),
    ],
)
def test_a_killed_server_comes_back_on_its_port_with_what_was_committed(
    kind: type[OwnServer], settings: dict[str, str], show: str
) -> None:
    with kind(settings) as server:
        url = server.create_database("shop")
        assert url.endswith("/shop")
        _run(url, "CREATE TABLE item (id int PRIMARY KEY)", "INSERT INTO item VALUES (1)")
        left_open = _connect_and_leave_open(url)
        port = server.port

        server.kill()
        assert not server.is_running
        with pytest.raises(sqlalchemy.exc.OperationalError):
            _run(url, "SELECT 1")

        server.start()
        assert server.port == port
        assert _run(url, "SELECT id FROM item") == [(1,)]
        assert _run(url, show) in ([("logical",)], [(1,)])
        left_open.invalidate()
        left_open.close()


@pytest.mark.parametrize(
    ("kind", "show"),
    [
        pytest.param(PostgresServer, "SHOW max_connections", marks=OWN_POSTGRES, id="postgres"),
        pytest.param(MariadbServer, "SELECT @@max_connections", marks=OWN_MARIADB, id="mariadb"),
    ],
)
def test_a_restart_takes_new_settings_and_the_folder_goes_with_the_server(kind: type[OwnServer], show: str) -> None:
    with kind() as server:
        url = server.create_database()
        server.restart({"max_connections": "17"})
        assert [str(value) for (value,) in _run(url, show)] == ["17"]
        folder, pid = server.folder, server.pid
        assert len(str(folder / ".s.PGSQL.65535")) <= 107
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


@OWN_POSTGRES
def test_a_server_that_cannot_start_says_why() -> None:
    server = PostgresServer({"shared_buffers": "nonsense"})
    with pytest.raises(servers.ServerStartError, match="shared_buffers"), server:
        pass
    assert not server.folder.exists()
