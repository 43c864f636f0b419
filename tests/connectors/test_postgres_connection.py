"""How PostgreSQL is connected to: the server is verified unless it is this machine, and a secret is never printed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kadds.api.errors import ConfigurationError, RefusedError
from kadds_postgres.connection import connect, parameters
from kadds_postgres.settings import ConnectionSettings
from tests.support.servers import PASSWORD, PostgresServer


def settings(url: str, **more: Any) -> ConnectionSettings:
    return ConnectionSettings.model_validate({"url": url, **more})


MODES = {
    "postgresql://u@db.example.com/d": "verify-full",
    "postgresql://u@10.0.0.1/d": "verify-full",
    "postgresql://u@localhost.example.com/d": "verify-full",
    "postgresql://u@db.example.com/d?sslmode=require": "require",
    "postgresql://u@localhost/d": "disable",
    "postgresql://u@127.0.0.1/d": "disable",
    "postgresql://u@[::1]/d": "disable",
    "postgresql:///d": "disable",
    "postgresql:///d?host=/run/postgresql": "disable",
    "postgresql://u@localhost,db.example.com/d": "verify-full",
    "postgresql://u@localhost/d?hostaddr=10.0.0.1": "verify-full",
    "postgresql:///d?service=elsewhere": "verify-full",
}


@pytest.mark.parametrize("url", MODES)
def test_a_server_elsewhere_is_verified_unless_somebody_says_otherwise(url: str) -> None:
    given = parameters(settings(url))
    assert given["sslmode"] == MODES[url]
    assert given.get("sslrootcert") == ("system" if MODES[url] == "verify-full" else None)


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE"])
def test_a_host_that_the_environment_names_is_not_taken_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "192.0.2.1")
    assert parameters(settings("postgresql:///d"))["sslmode"] == "verify-full"


def test_tls_is_said_once_and_a_root_certificate_wins_over_the_systems() -> None:
    elsewhere = "postgresql://u@db.example.com/d"
    given = parameters(settings(elsewhere, tls="verify-ca", tls_root_certificate="/etc/our.pem"))
    assert (given["sslmode"], given["sslrootcert"]) == ("verify-ca", "/etc/our.pem")
    with pytest.raises(ConfigurationError, match="sslmode"):
        parameters(settings(elsewhere + "?sslmode=require", tls="disable"))


def test_a_url_that_libpq_cannot_read_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as raised:
        parameters(settings("postgresql://u:sesame@h/d?unheard_of=1"))
    assert "sesame" not in str(raised.value)
    assert raised.value.hint


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _authority(folder: Path, name: str) -> None:
    subject = ("-subj", f"/CN={name}", "-days", "2", "-nodes", "-newkey", "rsa:2048")
    _openssl(folder, "req", "-x509", *subject, "-keyout", f"{name}.key", "-out", f"{name}.pem")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PostgresServer, Path]]:
    """A server whose certificate names `localhost` and is signed by `ours.pem`; `other.pem` signed nothing of it."""
    folder = tmp_path_factory.mktemp("tls")
    _authority(folder, "ours")
    _authority(folder, "other")
    request = ("-subj", "/CN=localhost", "-nodes", "-newkey", "rsa:2048", "-keyout", "server.key", "-out", "server.csr")
    _openssl(folder, "req", *request)
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    signed_by = ("-CA", "ours.pem", "-CAkey", "ours.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    _openssl(folder, "x509", "-req", "-in", "server.csr", *signed_by, "-out", "server.pem")
    with PostgresServer() as server:
        data = server.folder / "data"
        owner = data.stat()
        for name in ("server.key", "server.pem"):
            (data / name).write_bytes((folder / name).read_bytes())
            (data / name).chmod(0o600)
            os.chown(data / name, owner.st_uid, owner.st_gid)
        server.restart({"ssl": "on", "ssl_cert_file": "server.pem", "ssl_key_file": "server.key"})
        yield server, folder


def _give(path: Path, user: int, group: int) -> None:
    import os

    os.chown(path, user, group)


@pytest.mark.own_server("postgres")
def test_a_verified_server_is_connected_to_over_tls(tls_server: tuple[PostgresServer, Path]) -> None:
    server, folder = tls_server
    url = f"postgresql://postgres:{PASSWORD}@localhost:{server.port}/postgres"
    with connect(settings(url, tls="verify-full", tls_root_certificate=folder / "ours.pem")) as connection:
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)


@pytest.mark.own_server("postgres")
@pytest.mark.parametrize(
    ("host", "authority", "said"),
    [("localhost", "other", "certificate"), ("127.0.0.1", "ours", "certificate"), ("localhost", None, "certificate")],
)
def test_another_authority_or_another_name_is_refused(
    tls_server: tuple[PostgresServer, Path], host: str, authority: str | None, said: str
) -> None:
    server, folder = tls_server
    url = f"postgresql://postgres:{PASSWORD}@{host}:{server.port}/postgres"
    root = {} if authority is None else {"tls_root_certificate": folder / f"{authority}.pem"}
    with pytest.raises(RefusedError, match=said) as raised:
        connect(settings(url, tls="verify-full", **root)).close()
    assert f":{PASSWORD}@" not in str(raised.value)
    assert raised.value.hint


@pytest.mark.own_server("postgres")
def test_a_server_without_tls_is_refused_where_it_was_to_be_verified() -> None:
    with PostgresServer() as server, pytest.raises(RefusedError, match="SSL"):
        connect(settings(server.admin_url.replace("+psycopg", ""), tls="require")).close()
