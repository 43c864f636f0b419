"""PostgreSQL to PostgreSQL under three writers: everything arrives, whole, in order, and once.

Twenty tables of mixed types with 100,000 rows are snapshotted while the writers are at work. When they have stopped
and Kadds has caught up, the state equals the source, the log holds every transaction, and the history replays to it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.kadds_process import Running
from tests.support.postgres_bed import PostgresBed
from tests.support.postgres_tables import TABLES
from tests.support.postgres_writers import PostgresWriters
from tests.support.servers import DatabaseServer, PostgresServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.own_server("postgres")
SEED = 20261122
TRANSACTIONS_BEFORE = 60
TRANSACTIONS_STREAMED = 500


@pytest.fixture(scope="module")
def source_server() -> Iterator[PostgresServer]:
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


def test_twenty_tables_arrive_exactly_while_writers_are_at_work(
    tmp_path: Path, source_server: PostgresServer, postgres_server: DatabaseServer
) -> None:
    with PostgresBed(tmp_path, source=source_server, target=postgres_server, tables=TABLES) as bed:
        with PostgresWriters(bed.source_url, TABLES, seed=SEED, pace_seconds=0.02) as writers:
            wait_until(lambda: writers.committed >= TRANSACTIONS_BEFORE, 30)
            with bed.kadds.start() as running:
                until(running, lambda: all(map(bed.has_arrived, ("state", "books"))), "the snapshot to be delivered")
                streamed = writers.committed + TRANSACTIONS_STREAMED
                until(running, lambda: writers.committed >= streamed, f"{TRANSACTIONS_STREAMED} transactions more")
                writers.stop()
                running.terminate().check()
        bed.kadds.catch_up().check()
        assert bed.faults() == {}
        assert seen(bed) == {"d", "t", "u", "c"}


def until(running: Running, condition: Callable[[], bool], waiting_for: str) -> None:
    """Waits for the condition; it fails at once where something has failed."""
    wait_until(lambda: failed(running) or condition(), 60, waiting_for)
    assert not failed(running), failed(running)


def failed(running: Running) -> list[str]:
    return [line for line in running.lines if '"event": "failed"' in line]


def seen(bed: PostgresBed) -> set[str]:
    """The operations that the writers' record tells of."""
    with psycopg.connect(bed.source_url) as connection:
        found = connection.execute(
            "SELECT DISTINCT op FROM committed, jsonb_each(rows) AS t (name, ops), jsonb_object_keys(ops) AS op"
        )
        return {str(op) for (op,) in found}
