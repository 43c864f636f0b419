"""Two Kadds at one source and one target: only one of them writes, and the other is told so by name.

Two logs become one by copying a folder. What a log holds exclusively, its copy does not; so it is the slot that has one
reader, and the epoch in the target that decides who may write.
"""

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.kadds_process import Kadds
from tests.support.postgres_bed import plain_url
from tests.support.postgres_judges import postgres_history, replay_faults, replayed
from tests.support.servers import DatabaseServer, PostgresServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.own_server("postgres")
TABLE = "CREATE TABLE t (id bigint PRIMARY KEY, v text)"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


@pytest.fixture
def source(server: PostgresServer) -> str:
    """The URL of a database with a table of ten rows."""
    url = plain_url(server.create_database())
    run(url, TABLE, "INSERT INTO t SELECT n, 'old' FROM generate_series(1, 10) n")
    return url


@pytest.fixture
def target(postgres_server: DatabaseServer) -> str:
    """The URL of an empty database of another server."""
    return plain_url(postgres_server.create_database())


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def one(url: str, query: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        return (connection.execute(query).fetchone() or (None,))[0]


def kadds_at(folder: Path, source: str, target: str) -> Kadds:
    return Kadds(
        folder,
        {
            "sources": {"shop": {"connector": "postgres", "url": source, "tables": ["public.*"]}},
            "sinks": {"history": {"connector": "postgres", "url": target}},
            "subscriptions": {
                "history": {"source": "shop", "sink": "history", "mode": "append", "tables": ["*"], "batch_rows": 5}
            },
        },
    )


def copied(kadds: Kadds, folder: Path) -> Kadds:
    """The same configuration over a copy of the log, whose folder nothing holds now."""
    shutil.copytree(kadds.log, folder / "data" / "log", ignore=shutil.ignore_patterns("*.sock"))
    return Kadds(folder, json.loads(kadds.path.read_text(encoding="utf-8")))


def arrived(target: str) -> int:
    """How many rows the history has."""
    return one(target, "SELECT count(*) FROM t") or 0


def twice(target: str) -> list[Any]:
    """Changes that the history has more than once, snapshot rows included."""
    rows = postgres_history(target, "t")
    counts = Counter((row["_kadds_op"], row["_kadds_xid"], row["_kadds_position"], row["id"], row["v"]) for row in rows)
    return [change for change, count in counts.items() if count > 1]


def waits_for_a_lock(target: str) -> bool:
    return bool(
        one(
            target,
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
    )


@pytest.mark.parametrize("moved_on", [False, True])
def test_of_two_logs_on_copies_of_one_folder_one_writes_and_the_other_is_told_so(
    tmp_path: Path, source: str, target: str, moved_on: bool
) -> None:
    first = kadds_at(tmp_path / "first", source, target)
    first.catch_up().check()
    second = copied(first, tmp_path / "second")
    with first.start() as running:
        assert running.wait_for_line(lambda line: '"streaming"' in line, 30) is not None
        if moved_on:  # what the second knows of the source and of the target is old by now
            run(source, "INSERT INTO t VALUES (11, 'by the first')")
            wait_until(lambda: arrived(target) == 11 or running.process.poll() is not None)
        before = arrived(target)
        with second.start() as other:
            refused = other.wait_for_line(lambda line: "slot" in line and "message" in line, 60)
            assert refused is not None, "the second is told that it has no slot to read from"
            assert ("ahead of" if moved_on else "is read by somebody else") in refused
            run(source, "INSERT INTO t VALUES (12, 'captured by the first')")
            fenced = first.wait_for_status(
                lambda status: status["subscriptions"][0]["state"] == "failed",
                waiting_for="the first to be refused at the target, which the second has claimed",
            )
            assert "FencedError" in json.dumps(fenced)
            assert arrived(target) == before, "nothing was written under the older epoch, nor by who lacks changes"
            ended = running.terminate()
            assert ended.code == 1
            assert "FencedError" in ended.said
            other.terminate()
    # What the first has acknowledged is not sent again: the second misses it and says so, or it gets all of it.
    done = second.catch_up()
    assert twice(target) == []
    if done.code:
        assert "GapError" in done.said
        assert arrived(target) == before
    else:
        assert replay_faults(source, "t", replayed(postgres_history(target, "t"), ["id"])) == []


def test_a_holder_that_slept_through_a_claim_changes_nothing_more(tmp_path: Path, source: str, target: str) -> None:
    first = kadds_at(tmp_path / "first", source, target)
    first.catch_up().check()
    second = copied(first, tmp_path / "second")
    with first.start() as running:
        assert running.wait_for_line(lambda line: '"claimed"' in line, 30) is not None
        with psycopg.connect(target) as owner:
            owner.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            run(source, "INSERT INTO t SELECT n, 'in the middle' FROM generate_series(101, 104) n")
            wait_until(lambda: waits_for_a_lock(target), 30, "a delivery of the first to wait inside its transaction")
            running.signal(signal.SIGSTOP)
            with second.start() as other:
                claimed = other.wait_for_line(lambda line: '"claimed"' in line, 3)
                assert claimed is None, "a claim waits for the transaction that holds the epoch"
                owner.rollback()  # the delivery's statement goes on, its client sleeps
                assert other.wait_for_line(lambda line: '"claimed"' in line, 1) is None
                running.signal(signal.SIGCONT)
                wait_until(
                    lambda: (
                        other.wait_for_line(lambda line: '"claimed"' in line, 0.1) is not None
                        or other.process.poll() is not None
                    ),
                    60,
                    "the second to claim",
                )
                before = arrived(target)
                run(source, "INSERT INTO t VALUES (201, 'after the claim')")
                first.wait_for_status(
                    lambda status: status["subscriptions"][0]["state"] == "failed",
                    waiting_for="the first to be refused",
                )
                assert arrived(target) == before
                assert one(target, "SELECT count(*) FROM t WHERE id = 201") == 0
                assert running.terminate().code == 1
                other.terminate()
    assert twice(target) == []


def test_a_backend_that_outlives_its_client_writes_nothing_twice(tmp_path: Path, source: str, target: str) -> None:
    kadds = kadds_at(tmp_path, source, target)
    kadds.catch_up().check()
    with psycopg.connect(target) as owner:
        with kadds.start() as running:
            assert running.wait_for_line(lambda line: '"claimed"' in line, 30) is not None
            owner.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            run(source, "INSERT INTO t SELECT n, 'in the middle' FROM generate_series(101, 150) n")
            wait_until(lambda: waits_for_a_lock(target), 30, "a delivery to wait inside its transaction")
            running.kill()
        assert waits_for_a_lock(target), "the backend does not know that its client is gone"
        with kadds.start() as again:
            assert again.wait_for_line(lambda line: '"claimed"' in line, 3) is None
            owner.rollback()
            wait_until(lambda: arrived(target) == 60 or again.process.poll() is not None, 60)
            again.terminate().check()
    kadds.catch_up().check()
    assert twice(target) == []
    assert replay_faults(source, "t", replayed(postgres_history(target, "t"), ["id"])) == []
