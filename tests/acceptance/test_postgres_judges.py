"""The judges over PostgreSQL find each fault that they look for, planted by hand."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.support.postgres_bed import plain_url
from tests.support.postgres_judges import (
    Logged,
    Row,
    differences,
    history_faults,
    log_faults,
    replay_faults,
    replayed,
    watch_commits,
)
from tests.support.postgres_tables import COMMITTED, TABLES, make, scaled
from tests.support.postgres_writers import PostgresWriters
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.own_server("postgres")
FEW = scaled(1000)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


@pytest.fixture(scope="module")
def written(server: PostgresServer) -> str:
    """The URL of the tables, after the writers; the judge has watched."""
    url = plain_url(server.create_database())
    make(url, FEW)
    watch_commits(url)
    with PostgresWriters(url, FEW, seed=1, transactions=60, rows_max=100):
        pass
    return url


def test_postgresqls_own_subscription_equals_its_source_under_the_writers(server: PostgresServer) -> None:
    """What Kadds is asked for is what PostgreSQL itself does; a changed, a lost and a repeated row are each found."""
    source, target = plain_url(server.create_database()), plain_url(server.create_database())
    make(source, FEW)
    with psycopg.connect(target, autocommit=True) as other, psycopg.connect(source, autocommit=True) as one:
        make(target, FEW)
        for table in FEW:
            other.execute(f"TRUNCATE {table.name}")
        one.execute("CREATE PUBLICATION all_of_it FOR ALL TABLES WITH (publish_via_partition_root)")
        one.execute("SELECT pg_create_logical_replication_slot('native', 'pgoutput')")
        other.execute(
            f"CREATE SUBSCRIPTION native CONNECTION '{source}' PUBLICATION all_of_it "
            "WITH (create_slot = false, slot_name = native)"
        )
        with PostgresWriters(source, FEW, seed=2, transactions=60, rows_max=100):
            pass
        (end,) = one.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
        ready = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'"
        flushed = f"SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'native'"
        wait_until(lambda: other.execute(ready).fetchone() == (0,), 60)
        wait_until(lambda: one.execute(flushed).fetchone() == (True,), 60)
        assert [differences(source, target, table.name) for table in FEW] == [[] for _ in FEW]
        assert differences(source, target, COMMITTED) == []
        other.execute("ALTER SUBSCRIPTION native DISABLE")
        other.execute("ALTER SUBSCRIPTION native SET (slot_name = NONE)")
        other.execute("DROP SUBSCRIPTION native")

        other.execute("UPDATE orders SET price = -1 WHERE id = (SELECT max(id) FROM orders)")
        (fault, another) = differences(source, target, "orders")
        assert "1 rows of the source are missing" in fault
        assert "1 rows are not in the source" in another
        other.execute("DELETE FROM hot WHERE id = (SELECT max(id) FROM hot)")
        assert "1 rows of the source are missing" in str(differences(source, target, "hot"))
        other.execute("ALTER TABLE large DROP CONSTRAINT large_pkey")
        other.execute("INSERT INTO large SELECT * FROM large LIMIT 1")
        assert "1 rows are not in the source" in str(differences(source, target, "large"))
        other.execute("ALTER TABLE days DROP COLUMN short")
        assert "no columns short" in str(differences(source, target, "days"))


def as_logged(url: str) -> Logged:
    """A log that is right: each transaction of the record, in the order of commits."""
    found = Logged()
    with psycopg.connect(url) as connection:
        for xid, rows in connection.execute(f"SELECT xid, rows FROM {COMMITTED} ORDER BY number"):
            found.counts[xid] = Counter({(table, op): n for table, ops in rows.items() for op, n in ops.items()})
            found.counts[xid][COMMITTED, "c"] = 1
        slot = f"judge_{connection.info.dbname}"
        found.order = [
            str(xid)
            for (xid,) in connection.execute(
                f"SELECT xid::text FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, "
                "'proto_version', '1', 'publication_names', 'judge') WHERE get_byte(data, 0) = 67"
            )
            if str(xid) in found.counts
        ]
    return found


def lose(logged: Logged) -> None:
    del logged.counts[logged.order.pop(3)]


def exchange(logged: Logged) -> None:
    logged.order[3:5] = reversed(logged.order[3:5])


def tear(logged: Logged) -> None:
    del logged.counts[logged.order[5]][next(iter(logged.counts[logged.order[5]]))]


def repeat(logged: Logged) -> None:
    logged.snapshotted[logged.order[7]] += 1


def make_up(logged: Logged) -> None:
    logged.counts["0"] = Counter({(COMMITTED, "c"): 1})


def test_a_log_that_is_right_has_no_faults(written: str) -> None:
    assert log_faults(as_logged(written), written) == []


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lose, "lost"),
        (exchange, "commit order"),
        (tear, "should hold"),
        (repeat, "in the log and in the snapshot"),
        (make_up, "never committed"),
    ],
)
def test_a_fault_in_the_log_is_found(written: str, plant: Callable[[Logged], None], words: str) -> None:
    logged = as_logged(written)
    plant(logged)
    assert any(words in fault for fault in log_faults(logged, written))


# --------------------------------------------------------------------------------------------------------- histories


def change(offset: int, op: str, image: str | None, key: str | None, value: str | None, **more: Any) -> Row:
    row: Row = {"id": key, "value": value, "_kadds_op": op, "_kadds_image": image, "_kadds_not_given": None}
    return {**row, "_kadds_offset": str(offset), "_kadds_xid": "7", "_kadds_position": "0/1", **more}


HISTORY = [
    change(1, "c", "after", "1", "a"),
    change(2, "c", "after", "2", "b"),
    change(3, "u", "before", "1", None, _kadds_not_given="{value}"),  # 1 and 2 change places
    change(4, "u", "after", "2", "a"),
    change(5, "u", "before", "2", None, _kadds_not_given="{value}"),
    change(6, "u", "after", "1", "b"),
    change(7, "u", "before", "1", None, _kadds_not_given="{value}"),
    change(8, "u", "after", "3", None, _kadds_not_given="{value}"),  # what is not given goes with its row
    change(9, "d", "before", "2", None, _kadds_not_given="{value}"),
]


def test_a_history_replays_to_the_state() -> None:
    assert replayed(HISTORY, ["id"]) == [{"id": "3", "value": "b"}]
    assert replayed(HISTORY[:6], ["id"]) == [{"id": "2", "value": "a"}, {"id": "1", "value": "b"}]
    assert replayed([*HISTORY, change(10, "t", None, None, None)], ["id"]) == []
    assert history_faults(HISTORY, range(1, 10)) == []


def test_a_fault_in_a_history_is_found(written: str) -> None:
    assert "stand twice" in str(history_faults([*HISTORY, HISTORY[4]], range(1, 10)))
    assert "missing" in str(history_faults(HISTORY[:-1], range(1, 10)))
    assert "not in the log" in str(history_faults(HISTORY, range(1, 9)))
    table = TABLES[-1]
    rows: list[Row] = []
    with psycopg.connect(written) as connection:
        names = [column.name for column in table.all]
        texts = ", ".join(f"{name}::text" for name in names)
        rows = [dict(zip(names, row, strict=True)) for row in connection.execute(f"SELECT {texts} FROM {table.name}")]
    assert replay_faults(written, table.name, rows) == []
    assert "not in the replay" in str(replay_faults(written, table.name, rows[1:]))
    assert "not in the source" in str(replay_faults(written, table.name, [*rows, rows[0]]))
    assert len(replay_faults(written, table.name, [{**rows[0], "version": "-1"}, *rows[1:]])) == 2
