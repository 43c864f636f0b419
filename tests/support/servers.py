"""Database servers for tests: throw-away clusters from the installed binaries, or the server that a URL names.

A test takes `postgres_database` or `mariadb_database`, the SQLAlchemy URL of an empty database of its own. One server
per kind lives as long as the session. A test that kills or configures a server starts its own `PostgresServer` or
`MariadbServer`; such tests bear the marker `own_server`.

`KADDS_TEST_POSTGRES_URL` and `KADDS_TEST_MARIADB_URL` name running servers (with a user who may create databases);
then nothing is started and nothing needs to be installed. `own_server` may name what it needs:
`@pytest.mark.own_server("postgres")`; without a name it needs both.

Neither server runs as root, so as root everything below the server's folder belongs to the packages' own user. The
folder is made directly in /tmp, whatever TMPDIR says: a socket's path ends at 107 bytes, and the user must reach it.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import sqlalchemy

from tests.support.waiting import wait_until

PASSWORD = "kadds"
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 60.0
_PORTS_TO_TRY = 5


class ServerMissingError(Exception):
    """No binaries of this server are installed and no URL names a running one."""


class ServerStartError(Exception):
    """The server ended before it answered; the end of its own log is in the message."""


class DatabaseServer:
    """A server that answers at `admin_url`: where databases are made and dropped."""

    def __init__(self, admin_url: str) -> None:
        self.admin_url = admin_url

    def execute(self, *statements: str) -> list[tuple[object, ...]]:
        """Runs each statement outside a transaction, as CREATE DATABASE wants it; returns the rows of the last."""
        rows: list[tuple[object, ...]] = []
        engine = sqlalchemy.create_engine(
            self.admin_url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool
        )
        with engine.connect() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
                rows = [tuple(row) for row in result] if result.returns_rows else []
        return rows

    def create_database(self, name: str | None = None) -> str:
        """Makes an empty database and returns its URL, password included."""
        name = name or f"kadds_test_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, name: str) -> str:
        """The URL of a database of this server, whether it exists or not."""
        return sqlalchemy.make_url(self.admin_url).set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drops a database though a test left a connection or a transaction open, which would hold it for ever."""
        parsed = sqlalchemy.make_url(url)
        if parsed.get_backend_name() == "postgresql":
            self.execute(f"DROP DATABASE IF EXISTS {parsed.database} WITH (FORCE)")
            return
        users = self.execute(f"SELECT id FROM information_schema.processlist WHERE db = '{parsed.database}'")
        for (connection_id,) in users:
            with contextlib.suppress(sqlalchemy.exc.OperationalError):  # it has ended by itself meanwhile
                self.execute(f"KILL {connection_id}")
        self.execute(f"DROP DATABASE IF EXISTS {parsed.database}")


class OwnServer(DatabaseServer, ABC):
    """A server that this process starts and may stop, kill and start again on the same data and the same port.

    `settings` are the server's own, by their names in its documentation; they may be changed before a restart.
    Without `fsync` writes are as safe against `kill`, which leaves the operating system's cache alone, and much
    faster; only a test that cuts the power needs it.
    """

    name: str
    user: str
    settings: dict[str, str]

    def __init__(self, settings: Mapping[str, str] | None = None, *, fsync: bool = False) -> None:
        self._programs = self.find_programs()
        self.settings = dict(settings or {})
        self.fsync = fsync
        self.port = 0
        self.folder = Path(tempfile.mkdtemp(prefix=f"kadds-{self.name}-", dir="/tmp"))  # the module says why
        self._process: subprocess.Popen[bytes] | None = None
        super().__init__("")

    def __enter__(self) -> Self:
        try:
            self._give_folder_to_user()
            self._initialise()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def log_path(self) -> Path:
        """What the server itself wrote, over all its starts."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, f"{self.name} is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives; it may not be ready yet."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when the server answers a query."""
        assert not self.is_running, f"{self.name} runs already"
        chosen_before = self.port
        for _ in range(_PORTS_TO_TRY):
            self.port = chosen_before or _free_port()
            self.admin_url = self._admin_url()
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            with self.log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    [*self._as_user(), *self._command()],
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if wait_until(self._answers_or_ended, START_TIMEOUT_SECONDS, f"{self.name} to answer") == "answers":
                return
            said = self.log_path.read_bytes()[log_start:].decode(errors="replace")
            if chosen_before or "already in use" not in said:
                raise ServerStartError(f"{self.name} ended with code {self._process.returncode}:\n{said[-4000:]}")
        raise ServerStartError(f"{self.name}: {_PORTS_TO_TRY} free ports in a row were taken by others")

    def stop(self) -> None:
        """Ends the server as its administrator would, open connections included."""
        if self._process is None:
            return
        if self.is_running:
            self._process.send_signal(self._stop_signal())
        self._process.wait(STOP_TIMEOUT_SECONDS)
        self._process = None

    def kill(self) -> None:
        """Kills every process of the server with SIGKILL and returns when they are gone.

        The children are killed as well: PostgreSQL's live on for a moment after their parent, each in a session of
        its own, and hold the shared memory that a restart then refuses to share.
        """
        pids = [self.pid, *_children(self.pid)]
        assert self._process is not None
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_SECONDS)
        wait_until(lambda: not any(map(_lives, pids)), STOP_TIMEOUT_SECONDS, f"{self.name} to be gone")
        self._process = None

    def restart(self, settings: Mapping[str, str] | None = None) -> None:
        """Stops the server if it runs and starts it on the same data, with `settings` added to those it has."""
        self.stop()
        self.settings.update(settings or {})
        self.start()

    def remove(self) -> None:
        """Kills the server and removes its folder; nobody needs the data any more."""
        if self.is_running:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers_or_ended(self) -> str:
        assert self._process is not None
        if self._process.poll() is not None:
            return "ended"
        try:
            self.execute("SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return ""
        return "answers"

    def _account(self) -> pwd.struct_passwd | None:
        """The account that the server runs under, or None where that is our own."""
        if os.geteuid() != 0:
            return None
        for name in (self.user, "nobody"):
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name)
        raise ServerMissingError(f"{self.name} does not run as root and there is no user {self.user}")

    def _as_user(self) -> list[str]:
        account = self._account()
        if account is None:
            return []
        return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--"]

    def _give_folder_to_user(self) -> None:
        account = self._account()
        if account is not None:
            os.chown(self.folder, account.pw_uid, account.pw_gid)

    def _run(self, *command: str) -> None:
        """Runs one of the server's tools to its end."""
        done = subprocess.run(
            [*self._as_user(), *command], cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            said = (done.stdout + done.stderr).decode(errors="replace")
            raise ServerStartError(f"{command[0]} ended with code {done.returncode}:\n{said[-4000:]}")

    @classmethod
    @abstractmethod
    def find_programs(cls) -> dict[str, str]:
        """The paths of `server` and `initialise`; ServerMissingError where they are not installed."""

    @abstractmethod
    def _initialise(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _admin_url(self) -> str: ...

    @abstractmethod
    def _stop_signal(self) -> signal.Signals: ...


class PostgresServer(OwnServer):
    """PostgreSQL, with the superuser `postgres`; over TCP the password is asked for, so a wrong one can be tried."""

    name = "postgres"
    user = "postgres"

    @classmethod
    def find_programs(cls) -> dict[str, str]:
        """Debian keeps the servers of each version apart, off the PATH; the newest is taken."""
        installed = [folder for folder in Path("/usr/lib/postgresql").glob("*/bin") if (folder / "initdb").exists()]
        if installed:
            newest = max(installed, key=lambda folder: float(folder.parent.name))
            return {"server": str(newest / "postgres"), "initialise": str(newest / "initdb")}
        return {"server": _program("postgres"), "initialise": _program("initdb")}

    def _initialise(self) -> None:
        password_file = self.folder / "password"
        password_file.write_text(PASSWORD)
        password_file.chmod(0o644)  # the folder itself is closed
        self._run(
            self._programs["initialise"],
            f"--pgdata={self.folder / 'data'}",
            "--username=postgres",
            f"--pwfile={password_file}",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        )

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "shared_buffers": "32MB",
            "fsync": "on" if self.fsync else "off",
            **self.settings,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self._programs["server"], "-D", str(self.folder / "data"), *options]

    def _admin_url(self) -> str:
        return f"postgresql+psycopg://postgres:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGINT  # a "fast" stop: open transactions are rolled back


class MariadbServer(OwnServer):
    """MariaDB, with the user `kadds` who may do everything, from every host, with a password."""

    name = "mariadb"
    user = "mysql"

    @classmethod
    def find_programs(cls) -> dict[str, str]:
        """Distributions before MariaDB 10.5 and some others still have the old names."""
        return {
            "server": _program("mariadbd", "mysqld"),
            "initialise": _program("mariadb-install-db", "mysql_install_db"),
        }

    def _initialise(self) -> None:
        users = self.folder / "users.sql"
        users.write_text(
            f"CREATE USER IF NOT EXISTS kadds@'%' IDENTIFIED BY '{PASSWORD}';\n"
            "GRANT ALL PRIVILEGES ON *.* TO kadds@'%' WITH GRANT OPTION;\n"
        )
        users.chmod(0o644)  # the folder itself is closed
        self._run(
            self._programs["initialise"],
            "--no-defaults",
            f"--datadir={self.folder / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--innodb-log-file-size=16M",
            "--innodb-flush-log-at-trx-commit=2",
        )

    def _command(self) -> list[str]:
        settings = {
            "bind-address": "127.0.0.1",
            "port": str(self.port),
            "socket": str(self.folder / "socket"),
            "pid-file": str(self.folder / "pid"),
            "tmpdir": str(self.folder),
            "init-file": str(self.folder / "users.sql"),
            "character-set-server": "utf8mb4",
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "16M",
            "innodb-flush-log-at-trx-commit": "1" if self.fsync else "2",
            "skip-name-resolve": "ON",
            **{name.replace("_", "-"): value for name, value in self.settings.items()},
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._programs["server"], "--no-defaults", f"--datadir={self.folder / 'data'}", *options]

    def _admin_url(self) -> str:
        return f"mariadb+pymysql://kadds:{PASSWORD}@127.0.0.1:{self.port}/mysql"

    def _stop_signal(self) -> signal.Signals:
        return signal.SIGTERM


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _program(*names: str) -> str:
    """Debian puts servers in /usr/sbin, which an ordinary user's PATH often leaves out."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return found
    raise ServerMissingError(f"{names[0]} is not installed (`make test` installs it as root)")


def _process_state(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process, from what stands behind its name in /proc; None when it is gone."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return state, int(parent)


def _lives(pid: int) -> bool:
    found = _process_state(pid)
    return found is not None and found[0] not in "ZX"


def _children(pid: int) -> list[int]:
    others = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [other for other in others if (found := _process_state(other)) is not None and found[1] == pid]


KINDS: dict[str, type[OwnServer]] = {"postgres": PostgresServer, "mariadb": MariadbServer}


def _variable(name: str) -> str:
    return f"KADDS_TEST_{name.upper()}_URL"


def _server(name: str) -> Iterator[DatabaseServer]:
    url = os.environ.get(_variable(name))
    if url:
        yield DatabaseServer(url)
        return
    try:
        server = KINDS[name]()
    except ServerMissingError as error:
        pytest.skip(f"{error}, and {_variable(name)} is not set")
    with server:
        yield server


def _database(server: DatabaseServer) -> Iterator[str]:
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[DatabaseServer]:
    """The session's PostgreSQL."""
    yield from _server("postgres")


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[DatabaseServer]:
    """The session's MariaDB."""
    yield from _server("mariadb")


@pytest.fixture
def postgres_database(postgres_server: DatabaseServer) -> Iterator[str]:
    """The SQLAlchemy URL of an empty PostgreSQL database, dropped after the test."""
    yield from _database(postgres_server)


@pytest.fixture
def mariadb_database(mariadb_server: DatabaseServer) -> Iterator[str]:
    """The SQLAlchemy URL of an empty MariaDB database, dropped after the test."""
    yield from _database(mariadb_server)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out tests that kill a server where the server is somebody else's, and skips them where there is none.

    What is left out is counted in the closing line ("deselected") and is no skip: there is nothing to install.
    """
    missing: dict[str, str] = {}
    for name, kind in KINDS.items():
        try:
            kind.find_programs()
        except ServerMissingError as error:
            missing[name] = str(error)
    foreign = {name for name in KINDS if os.environ.get(_variable(name))}
    left_out = []
    for item in items:
        marker = item.get_closest_marker("own_server")
        if marker is None:
            continue
        needed = marker.args or tuple(KINDS)
        if foreign.intersection(needed):
            left_out.append(item)
        elif absent := [missing[name] for name in needed if name in missing]:
            item.add_marker(pytest.mark.skip(reason="; ".join(absent)))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
