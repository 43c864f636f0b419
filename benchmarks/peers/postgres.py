"""PostgreSQL's own ways through a backlog: `pg_recvlogical`, which keeps nothing, and a subscription."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.peers.processes import Stopwatch
from benchmarks.peers.workload import Connection, Shape, value, wait_for, wait_for_last
from tests.support.servers import PostgresServer

PUBLICATION = "bench"
SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "logical_decoding_work_mem": "256MB",
    "wal_retrieve_retry_interval": "100ms",  # else a subscription waits for five seconds after the one before it
    "max_locks_per_transaction": "1000",  # a transaction that makes or ends a thousand tables
}


def address(server: PostgresServer, database: str) -> str:
    """libpq's parameters: through the socket, as every peer but Debezium goes."""
    return f"host={server.folder} port={server.port} user=postgres dbname={database}"


def connect(server: PostgresServer, database: str) -> Connection:
    """A connection in autocommit. Its own commits do not wait for the disk: they prepare, and are not measured."""
    connection = psycopg.connect(address(server, database), autocommit=True)
    connection.execute("SET synchronous_commit = off")
    return connection


def create_slot(connection: Connection, name: str) -> None:
    """A slot that keeps what is written from now on."""
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])


def drop_slots(connection: Connection) -> None:
    """All of the connection's database, whoever still reads them."""
    own = "FROM pg_replication_slots WHERE database = current_database()"
    connection.execute(f"SELECT pg_terminate_backend(active_pid) {own} AND active")
    wait_for(connection, f"SELECT count(*) = 0 {own} AND active", pause_seconds=0.01)
    connection.execute(f"SELECT pg_drop_replication_slot(slot_name) {own}")


def receive(server: PostgresServer, database: str, *, slot: str, end: str) -> Stopwatch:
    """`pg_recvlogical` up to the LSN `end`, into /dev/null: nothing that reads this protocol can be faster."""
    program = str(Path(PostgresServer.find_programs()["server"]).with_name("pg_recvlogical"))
    options = ["-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}", "--no-loop", "-F", "0"]
    command = [program, "-d", address(server, database), "--slot", slot, "--start", f"--endpos={end}", *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    stopwatch = Stopwatch(server.pid)
    subprocess.run([*command, "-f", "/dev/null"], check=True, stdout=subprocess.DEVNULL)
    stopwatch.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    stopwatch.cpu_seconds += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return stopwatch


def subscribe(
    source: PostgresServer, target: PostgresServer, databases: tuple[str, str], *, slot: str, shape: Shape
) -> Stopwatch:
    """A subscription until its target shows the end of the workload; it does not wait for the target's disk."""
    stopwatch = Stopwatch(source.pid, target.pid)
    with (
        connect(source, databases[0]) as at_source,
        connect(target, databases[1]) as at_target,
        subscribed(at_target, address(source, databases[0]), slot=slot),
    ):
        wait_until_streaming(at_source, slot)
        stopwatch.start()
        wait_for_last(at_target, shape)
        stopwatch.stop()
    return stopwatch


def wait_until_streaming(source: Connection, slot: str, alive: Callable[[], None] = lambda: None) -> None:
    """Until somebody reads the slot."""
    query = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active"
    wait_for(source, query, pause_seconds=0.005, alive=alive)


@contextmanager
def subscribed(connection: Connection, source: str, *, slot: str) -> Iterator[None]:
    """A subscription on a slot that there is; it is removed again, the slot is not."""
    connection.execute(
        f"CREATE SUBSCRIPTION {slot} CONNECTION '{source}' PUBLICATION {PUBLICATION}"
        f" WITH (create_slot = false, slot_name = {slot}, copy_data = false)"
    )
    yield
    connection.execute(f"ALTER SUBSCRIPTION {slot} DISABLE")
    connection.execute(f"ALTER SUBSCRIPTION {slot} SET (slot_name = NONE)")
    connection.execute(f"DROP SUBSCRIPTION {slot}")


def written_up_to(connection: Connection) -> str:
    """The LSN behind all that is written, with all of it on disk."""
    connection.execute("CHECKPOINT")
    return str(value(connection, "SELECT pg_current_wal_insert_lsn()"))
