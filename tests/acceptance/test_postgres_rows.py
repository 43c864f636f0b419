"""Rows of the catalogue of failures, from PostgreSQL to PostgreSQL: what happens to rows arrives as it happened.

Each test is named by its row. A `Pair` is a database of a server with logical decoding, two databases on it that get
the state (by merge) and the history (by append), and a Kadds between them.
"""

import json
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.kadds_process import Finished, Kadds
from tests.support.postgres_bed import PostgresBed, plain_url
from tests.support.postgres_judges import (
    columns_of,
    differences,
    history_faults,
    postgres_history,
    read_log,
    replay_faults,
    replayed,
)
from tests.support.postgres_tables import scaled
from tests.support.postgres_writers import PostgresWriters
from tests.support.servers import PostgresServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.own_server("postgres")
MODES = {"state": "merge", "history": "append"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"wal_level": "logical", "max_replication_slots": "40"}) as server:
        yield server


class Pair:
    """A source and its targets by name, of which `modes` says how each is fed."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self._server = server
        self._folder = folder
        self.source = plain_url(server.create_database())
        self.urls: dict[str, str] = {}

    def run(self, *transactions: str, at: str | None = None) -> None:
        """Each argument is a transaction, of one or more statements."""
        with psycopg.connect(at or self.source, autocommit=True) as connection:
            for statements in transactions:
                connection.execute(statements)

    def rows(self, query: str, at: str | None = None) -> list[tuple[Any, ...]]:
        with psycopg.connect(at or self.source) as connection:
            return connection.execute(query).fetchall()

    def target(self, name: str) -> str:
        """The URL of a target, which is made when it is asked for."""
        if name not in self.urls:
            self.urls[name] = plain_url(self._server.create_database())
        return self.urls[name]

    def kadds(self, modes: dict[str, str] | None = None, **subscription: Any) -> Kadds:
        """A Kadds from the source to a target for each of `modes`."""
        modes = modes or MODES
        shared = {"tables": ["*"], **subscription}
        return Kadds(
            self._folder,
            {
                "sources": {"shop": {"connector": "postgres", "url": self.source, "tables": ["*"]}},
                "sinks": {name: {"connector": "postgres", "url": self.target(name)} for name in modes},
                "subscriptions": {
                    name: {"source": "shop", "sink": name, "mode": mode, **shared} for name, mode in modes.items()
                },
            },
        )

    def faults(self, table: str, *key: str, modes: dict[str, str] | None = None) -> list[str]:
        """What tells each target's table from the source's."""
        found: list[str] = []
        for name, mode in (modes or MODES).items():
            if mode == "append":
                history = replayed(postgres_history(self.urls[name], table), key)
                found += replay_faults(self.source, table, history)
            else:
                found += differences(self.source, self.urls[name], table)
        return found

    def ops(self, table: str) -> list[tuple[str | None, str | None]]:
        """Operation and image of each row of a table's history, those of the snapshot left out."""
        rows = postgres_history(self.urls["history"], table)
        return [(row["_kadds_op"], row["_kadds_image"]) for row in rows if row["_kadds_op"] != "r"]


@pytest.fixture
def pair(tmp_path: Path, server: PostgresServer) -> Iterator[Pair]:
    made = Pair(tmp_path, server)
    yield made
    database = made.source.rsplit("/", 1)[1]
    slots = f"FROM pg_replication_slots WHERE database = '{database}'"
    wait_until(lambda: server.execute(f"SELECT count(*) {slots} AND active") == [(0,)])
    server.execute(f"SELECT pg_drop_replication_slot(slot_name) {slots}")
    for url in (made.source, *made.urls.values()):
        server.drop_database(url)


# ------------------------------------------------------------------------------------------------ position and restart


def test_row_06_a_source_that_crashes_rewinds_its_slot_and_repeats_are_dropped(tmp_path: Path) -> None:
    tables = scaled(1000)
    with (
        PostgresServer({"wal_level": "logical", "checkpoint_timeout": "1h"}) as server,
        PostgresBed(tmp_path, source=server, target=server, tables=tables, modes=MODES) as bed,
    ):
        slot = f"kadds_{bed.source_url.rsplit('/', 1)[1]}"
        confirmed = f"SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"
        rewound = 0
        with (
            PostgresWriters(bed.source_url, tables, seed=6, pace_seconds=0.01, rows_max=300, outages=True),
            bed.kadds.start() as running,
        ):
            wait_until(lambda: bed.has_arrived("history") or running.process.poll() is not None, 60)
            for _ in range(3):
                for _ in range(3):  # the slot is kept on disk now and then; what is confirmed after that is forgotten
                    then = number(server.execute(confirmed)[0][0])
                    wait_until(
                        lambda then=then: (
                            number(server.execute(confirmed)[0][0]) > then + 10_000
                            or running.process.poll() is not None
                        ),
                        60,
                        "Kadds to confirm more",
                    )
                running.signal(signal.SIGSTOP)  # so that it confirms nothing before the test has looked
                before = number(server.execute(confirmed)[0][0])
                server.kill()
                server.start()
                rewound += number(server.execute(confirmed)[0][0]) < before
                running.signal(signal.SIGCONT)
            running.terminate().check()
        bed.kadds.catch_up().check()
        assert rewound, "the slot never stood behind what had been confirmed: nothing was sent again"
        assert bed.faults() == {}


def number(lsn: object) -> int:
    """A WAL position as a number."""
    high, low = str(lsn).split("/")
    return int(high, 16) << 32 | int(low, 16)


# ------------------------------------------------------------------------------------------------------ rows and keys

LARGE = "repeat(md5(id::text), 400)"


@pytest.mark.parametrize("identity", ["DEFAULT", "FULL"])
def test_row_36_an_unchanged_large_value_is_left_alone(pair: Pair, identity: str) -> None:
    modes = {**MODES, "books": "transactional"}
    pair.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, small text, big text)",
        "ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL",
        f"ALTER TABLE t REPLICA IDENTITY {identity}",
        f"INSERT INTO t SELECT id, 'a', {LARGE} FROM generate_series(1, 20) AS id",
    )
    kadds = pair.kadds(modes)
    kadds.catch_up().check()
    pair.run(
        "UPDATE t SET small = 'b' WHERE id <= 5",  # only what is not large
        "UPDATE t SET small = 'c', big = repeat('x', 9000) WHERE id = 2; UPDATE t SET small = 'd' WHERE id IN (2, 3)",
        f"INSERT INTO t SELECT id, 'new', {LARGE} FROM generate_series(21, 25) AS id; "
        "UPDATE t SET small = 'e' WHERE id = 22",
        "UPDATE t SET big = NULL WHERE id = 6; UPDATE t SET small = 'f' WHERE id = 6",
        "DELETE FROM t WHERE id = 7; INSERT INTO t VALUES (7, 'g', 'short')",
    )
    kadds.catch_up().check()
    assert pair.faults("t", "id", modes=modes) == []
    not_given = [row["_kadds_not_given"] for row in postgres_history(pair.urls["history"], "t")]
    assert ("{big}" in not_given) == (identity == "DEFAULT"), "large values that a row keeps are named, unless given"


def test_row_37_a_large_value_moves_with_its_key(pair: Pair) -> None:
    modes = {**MODES, "books": "transactional"}
    pair.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, small text, big text)",
        "ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL",
        f"INSERT INTO t SELECT id, 'a', {LARGE} FROM generate_series(1, 20) AS id",
    )
    kadds = pair.kadds(modes)
    kadds.catch_up().check()
    pair.run(
        "UPDATE t SET id = 101 WHERE id = 1",
        "UPDATE t SET id = 102 WHERE id = 2; UPDATE t SET id = 103 WHERE id = 102; "
        "UPDATE t SET small = 'b' WHERE id = 103",
        "UPDATE t SET id = -1 WHERE id = 3; UPDATE t SET id = 3 WHERE id = 4; UPDATE t SET id = 4 WHERE id = -1",
        f"INSERT INTO t SELECT id, 'new', {LARGE} FROM generate_series(30, 31) AS id; "
        "UPDATE t SET id = 130 WHERE id = 30",
        "UPDATE t SET id = 105 WHERE id = 5; INSERT INTO t VALUES (5, 'again', 'short')",
        "DELETE FROM t WHERE id = 6; UPDATE t SET id = 6 WHERE id = 7",
    )
    kadds.catch_up().check()
    assert pair.faults("t", "id", modes=modes) == []


def test_row_38_keys_are_shifted_and_swapped(pair: Pair) -> None:
    modes = {**MODES, "books": "transactional"}
    pair.run(
        "CREATE TABLE shifted (id bigint PRIMARY KEY DEFERRABLE, v text)",
        "ALTER TABLE shifted REPLICA IDENTITY FULL",
        "CREATE TABLE moved (id bigint PRIMARY KEY, v text)",
        "INSERT INTO shifted SELECT n, 'v' || n FROM generate_series(1, 10000) AS n",
        "INSERT INTO moved TABLE shifted",
    )
    kadds = pair.kadds(modes)
    kadds.catch_up().check()
    pair.run(
        "UPDATE shifted SET id = id + 1",
        "UPDATE shifted SET id = 5 - id WHERE id IN (2, 3)",
        "UPDATE moved SET id = id + 1000000",
        "UPDATE moved SET id = -1 WHERE id = 1000001; UPDATE moved SET id = 1000001 WHERE id = 1000002; "
        "UPDATE moved SET id = 1000002 WHERE id = -1",
    )
    kadds.catch_up().check()
    assert pair.rows("SELECT v FROM shifted WHERE id IN (2, 3) ORDER BY id", pair.urls["state"]) == [("v2",), ("v1",)]
    assert pair.faults("shifted", "id", modes=modes) == []
    assert pair.faults("moved", "id", modes=modes) == []


def test_row_39_rows_without_a_key_are_history_only_and_a_merge_refuses_them_by_name(pair: Pair) -> None:
    pair.run(
        "CREATE TABLE twins (a integer, b text)",
        "ALTER TABLE twins REPLICA IDENTITY FULL",
        "CREATE TABLE indexed (code text NOT NULL, v integer)",
        "CREATE UNIQUE INDEX indexed_code ON indexed (code)",
        "ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_code",
        "CREATE TABLE nulls (code text UNIQUE, v integer)",
        "ALTER TABLE nulls REPLICA IDENTITY FULL",
        "INSERT INTO twins VALUES (1, 'same'), (1, 'same'), (2, NULL)",
        "INSERT INTO indexed VALUES ('a', 1), ('b', 2)",
        "INSERT INTO nulls VALUES (NULL, 1), (NULL, 2), ('a', 3)",
    )
    kadds = pair.kadds()
    refused(kadds, "twins", "nulls")
    pair.run(
        "DELETE FROM twins WHERE ctid = (SELECT min(ctid) FROM twins)",
        "UPDATE indexed SET v = 10 WHERE code = 'a'",
        "UPDATE indexed SET code = 'c' WHERE code = 'b'",
        "DELETE FROM indexed WHERE code = 'a'",
        "DELETE FROM nulls WHERE v = 1",
    )
    refused(kadds, "twins", "nulls")
    assert pair.ops("twins") == [("d", "before")]
    assert pair.ops("nulls") == [("d", "before")]
    assert differences(pair.source, pair.urls["state"], "indexed") == []
    assert pair.rows("SELECT to_regclass('twins')", pair.urls["state"]) == [(None,)]
    left = postgres_history(pair.urls["history"], "twins")
    assert sum(row["_kadds_op"] == "r" for row in left) - 1 == pair.rows("SELECT count(*) FROM twins")[0][0]


def refused(kadds: Kadds, *tables: str) -> Finished:
    """Catches up as far as it goes; every one of `tables` is named as failed."""
    done = kadds.catch_up().check(1)
    for table in tables:
        assert f"public.{table}" in done.said, done.said[-4000:]
    return done


def test_row_40_truncates_stand_where_they_happened(pair: Pair) -> None:
    modes = {**MODES, "books": "transactional"}
    pair.run(
        "CREATE TABLE parent (id bigint PRIMARY KEY, v text)",
        "CREATE TABLE child (id bigint PRIMARY KEY, parent bigint REFERENCES parent)",
        "CREATE TABLE other (id bigint PRIMARY KEY)",
        "CREATE TABLE parted (region integer, id bigint, PRIMARY KEY (region, id)) PARTITION BY LIST (region)",
        "CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1)",
        "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2)",
        "INSERT INTO parent SELECT n, 'old' FROM generate_series(1, 100) n",
        "INSERT INTO child SELECT n, n FROM generate_series(1, 100) n",
        "INSERT INTO other SELECT generate_series(1, 10)",
        "INSERT INTO parted SELECT 1 + n % 2, n FROM generate_series(1, 20) n",
    )
    kadds = pair.kadds(modes)
    kadds.catch_up().check()
    pair.run(
        "INSERT INTO parent VALUES (200, 'one transaction'); TRUNCATE parent CASCADE; "
        "INSERT INTO parent VALUES (1, 'new'), (201, 'new'); INSERT INTO child VALUES (1, 201)",
        "INSERT INTO other VALUES (11)",
        "TRUNCATE other",
        "INSERT INTO other VALUES (5)",
        "TRUNCATE parted",
        "INSERT INTO parted VALUES (1, 1), (2, 2)",
        "TRUNCATE parent, child, other; INSERT INTO parent VALUES (300, 'last')",
        "INSERT INTO child VALUES (7, 300); INSERT INTO other VALUES (1)",
    )
    kadds.catch_up().check()
    for table, key in (("parent", ["id"]), ("child", ["id"]), ("other", ["id"]), ("parted", ["region", "id"])):
        assert pair.faults(table, *key, modes=modes) == []
    assert [op for op, _ in pair.ops("other")] == ["c", "t", "c", "t", "c"]


def test_row_41_generated_and_identity_columns_on_both_sides(pair: Pair) -> None:
    made = (
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a integer, "
        "twice integer GENERATED ALWAYS AS (a * 2) STORED)"
    )
    pair.run(made, "INSERT INTO t (a) SELECT generate_series(1, 10)")
    pair.run(made, at=pair.target("state"))
    kadds = pair.kadds({**MODES, "books": "transactional"})
    kadds.catch_up().check()
    pair.run(
        "INSERT INTO t (a) VALUES (100)",
        "UPDATE t SET a = a + 1 WHERE id < 4",
        "DELETE FROM t WHERE id = 5",
        "UPDATE t SET id = DEFAULT WHERE id = 6",
    )
    kadds.catch_up().check()
    assert differences(pair.source, pair.urls["state"], "t", columns=["id", "a", "twice"]) == []
    assert differences(pair.source, pair.urls["books"], "t", columns=["id", "a"]) == []


# ------------------------------------------------------------------------------------------------------------- schemas


def test_row_44_a_table_is_changed_in_the_middle_of_a_transaction(pair: Pair) -> None:
    pair.run("CREATE TABLE t (id bigint PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'a')")
    kadds = pair.kadds()
    kadds.catch_up().check()
    pair.run(
        "INSERT INTO t VALUES (2, 'b'); ALTER TABLE t ADD COLUMN w integer; INSERT INTO t VALUES (3, 'c', 3); "
        "ALTER TABLE t DROP COLUMN v; INSERT INTO t VALUES (4, 4); UPDATE t SET w = 1 WHERE id = 2",
        "INSERT INTO t VALUES (5, 5)",
    )
    kadds.catch_up().check()
    assert differences(pair.source, pair.urls["state"], "t") == []
    told = [(row["id"], row["_kadds_op"]) for row in postgres_history(pair.urls["history"], "t")]
    assert told == [("1", "r"), ("2", "c"), ("3", "c"), ("4", "c"), ("2", "u"), ("5", "c")]


def test_row_47_a_renamed_column_is_held_until_somebody_decides(pair: Pair) -> None:
    pair.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, old text)",
        "INSERT INTO t VALUES (1, 'a')",
        "CREATE TABLE other (id bigint PRIMARY KEY)",
    )
    kadds = pair.kadds({"state": "merge"})
    kadds.catch_up().check()
    pair.run("ALTER TABLE t RENAME COLUMN old TO new", "INSERT INTO t VALUES (2, 'b')", "INSERT INTO other VALUES (1)")
    refused(kadds, "t")
    assert pair.rows("SELECT id FROM t", pair.urls["state"]) == [(1,)], "nothing passes what is held"
    assert differences(pair.source, pair.urls["state"], "other") == []
    assert "rename" in str(kadds.status()).lower()
    kadds("subscription", "schema", "state", "public.t", "apply", "--config", str(kadds.path)).check()
    with kadds.start() as running:  # a sink that does not rename says so; its owner does, and lets the table go on
        kadds.wait_for_status(
            lambda status: any(one["state"] == "failed" for one in status["subscriptions"][0]["tables"])
        )
        pair.run("ALTER TABLE t RENAME COLUMN old TO new", at=pair.urls["state"])
        kadds("subscription", "resume", "state", "--table", "public.t", "--config", str(kadds.path)).check()
        arrived(pair, running.process.poll, "SELECT id, new FROM t ORDER BY id", "state")
        running.terminate().check()
    kadds.catch_up().check()
    assert differences(pair.source, pair.urls["state"], "t") == []


def test_row_47_a_column_dropped_and_added_again_is_another_one(pair: Pair) -> None:
    pair.run("CREATE TABLE t (id bigint PRIMARY KEY, v text, w text)", "INSERT INTO t VALUES (1, 'a', 'x')")
    kadds = pair.kadds({"state": "merge"})
    kadds.catch_up().check()
    pair.run(  # v now stands behind w
        "ALTER TABLE t DROP COLUMN v",
        "UPDATE t SET w = 'y'",
        "ALTER TABLE t ADD COLUMN v text",
        "INSERT INTO t (id, v, w) VALUES (2, 'new v', 'w')",
        "UPDATE t SET v = 'v of one' WHERE id = 1",
    )
    kadds.catch_up().check()
    assert differences(pair.source, pair.urls["state"], "t") == []


def test_row_47_a_table_dropped_and_made_again_is_another_one(pair: Pair) -> None:
    pair.run("CREATE TABLE t (id bigint PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'old'), (2, 'old')")
    kadds = pair.kadds({"state": "merge"})
    kadds.catch_up().check()
    pair.run("DROP TABLE t", "CREATE TABLE t (id bigint PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'new')")
    done = kadds.catch_up()
    if done.code == 0:  # a new snapshot has replaced what was there
        assert differences(pair.source, pair.urls["state"], "t") == []
    else:  # or it is said by name that it is another table
        assert "public.t" in done.said


def test_row_48_names_that_collide_elsewhere_are_different_here(tmp_path: Path, pair: Pair) -> None:
    names = ['"A"', "a", '"é"', '"e\u0301"', '"with ""quotes"" and.dots/%"', '"SELECT"']
    for schema in ("public", "two", '"Two"'):
        pair.run(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        for n, name in enumerate(names):
            pair.run(
                f'CREATE TABLE {schema}.{name} (id bigint PRIMARY KEY, "V" text, v text, "é" text)',
                f"INSERT INTO {schema}.{name} VALUES (1, '{schema}', '{n}', 'é')",
            )
    kadds = pair.kadds({"state": "merge"})
    second = plain_url(pair._server.create_database())
    pair.urls["second source"] = second
    pair.run("CREATE TABLE a (id bigint PRIMARY KEY, v text)", "INSERT INTO a VALUES (9, 'of tenant two')", at=second)
    plain = {
        "sources": {"two/shop": {"connector": "postgres", "url": second, "tables": ["public.*"]}},
        "sinks": {"two/state": {"connector": "postgres", "url": pair.target("state of two")}},
        "subscriptions": {"two/state": {"source": "two/shop", "sink": "two/state", "mode": "merge", "tables": ["*"]}},
    }
    own = json.loads(kadds.path.read_text(encoding="utf-8"))
    kadds.configure({section: {**own[section], **plain[section]} for section in plain})
    try:
        kadds.catch_up().check()
        for schema in ("public", "two", '"Two"'):
            for name in names:
                pair.run(f"UPDATE {schema}.{name} SET v = v || ' changed'", f"INSERT INTO {schema}.{name} VALUES (2)")
        pair.run("INSERT INTO a VALUES (10, 'more')", at=second)
        kadds.catch_up().check()
    finally:
        with psycopg.connect(second, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                "WHERE database = current_database()"
            )
    for schema in ("public", "two", '"Two"'):
        for name in names:
            query = f"SELECT * FROM {schema}.{name} ORDER BY id"
            assert pair.rows(query, pair.urls["state"]) == pair.rows(query), f"{schema}.{name}"
    assert pair.rows("SELECT * FROM a ORDER BY id", pair.urls["state of two"]) == pair.rows("SELECT * FROM a", second)
    kept = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'two', 'Two')"
    assert pair.rows(kept, pair.urls["state"]) == [(18,)]


# ---------------------------------------------------------------------------------------------------------- deliveries


def test_row_76_a_row_that_the_target_refuses_stops_its_table_and_no_other(pair: Pair) -> None:
    made = ("CREATE TABLE t (id bigint PRIMARY KEY, v text)", "CREATE TABLE other (id bigint PRIMARY KEY, v text)")
    pair.run(*made, "INSERT INTO t VALUES (1, 'good')")
    pair.run(*made, "ALTER TABLE t ADD CONSTRAINT no_bad_rows CHECK (v <> 'bad')", at=pair.target("state"))
    kadds = pair.kadds({"state": "merge"}, batch_rows=2)
    kadds.catch_up().check()
    pair.run(
        "INSERT INTO t VALUES (2, 'good')",
        "INSERT INTO t VALUES (3, 'bad')",
        "INSERT INTO t VALUES (4, 'after it')",
        "INSERT INTO t VALUES (5, 'after it')",
        "INSERT INTO other SELECT n, 'v' FROM generate_series(1, 50) n",
    )
    with kadds.start() as running:
        found = kadds.wait_for_status(
            lambda status: any(one["state"] == "failed" for one in status["subscriptions"][0]["tables"])
        )
        assert "no_bad_rows" in str(found)
        assert running.terminate().code == 1
    assert "no_bad_rows" in refused(kadds, "t").said
    assert differences(pair.source, pair.urls["state"], "other") == []
    arrived = [key for (key,) in pair.rows("SELECT id FROM t ORDER BY id", pair.urls["state"])]
    assert arrived in ([1], [1, 2]), "nothing that came after the bad row has passed it"

    pair.run("ALTER TABLE t DROP CONSTRAINT no_bad_rows", at=pair.urls["state"])
    kadds.catch_up().check()
    assert differences(pair.source, pair.urls["state"], "t") == []


def test_row_80_readers_of_a_transactional_target_see_whole_transactions_only(pair: Pair) -> None:
    pair.run(
        "CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL, entries integer NOT NULL DEFAULT 0)",
        "CREATE TABLE entry (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account integer REFERENCES account, "
        "amount bigint)",
        "INSERT INTO account SELECT n, 100 FROM generate_series(1, 20) n",
    )
    made = (
        "CREATE TABLE account (id integer PRIMARY KEY, balance bigint NOT NULL, entries integer NOT NULL)",
        "CREATE TABLE entry (id bigint PRIMARY KEY, account integer REFERENCES account, amount bigint)",
    )
    pair.run(*made, at=pair.target("books"))
    kadds = pair.kadds({"books": "transactional"}, batch_rows=50)
    stop = threading.Event()
    looks, broken = 0, []

    def look() -> None:
        nonlocal looks
        with psycopg.connect(pair.urls["books"], autocommit=True) as connection:
            while not stop.is_set():
                found = connection.execute(
                    "SELECT (SELECT count(*) FROM account), (SELECT sum(balance) FROM account), "
                    "(SELECT sum(entries) FROM account), (SELECT count(*) FROM entry), (SELECT sum(amount) FROM entry)"
                ).fetchone()
                looks += 1
                if found is not None and found[0] and not (found[1] == 100 * found[0] and found[2] == found[3]):
                    broken.append(found)

    reader = threading.Thread(target=look)
    with kadds.start() as running:
        reader.start()
        try:
            wait_until(  # the tables of a snapshot come one after the other
                lambda: (
                    running.process.poll() is not None
                    or pair.rows("SELECT count(*) FROM account", pair.urls["books"]) == [(20,)]
                ),
                60,
            )
            rng = random.Random(80)
            with psycopg.connect(pair.source) as connection:
                for n in range(600):
                    giver, taker = rng.sample(range(1, 21), 2)
                    for account, amount in ((giver, -n), (taker, n)):
                        connection.execute(
                            "UPDATE account SET balance = balance + %s, entries = entries + 1 WHERE id = %s",
                            [amount, account],
                        )
                        connection.execute("INSERT INTO entry (account, amount) VALUES (%s, %s)", [account, amount])
                    if n % 50 == 7:  # an account that did not exist before its entries
                        connection.execute("INSERT INTO account VALUES (%s, 100, 0)", [1000 + n])
                        connection.execute("DELETE FROM account WHERE id = %s", [1000 + n - 50])
                    connection.commit()
            wait_until(
                lambda: (
                    running.process.poll() is not None
                    or pair.rows("SELECT count(*) FROM entry", pair.urls["books"]) == [(1200,)]
                ),
                60,
                "all entries",
            )
            running.terminate().check()
        finally:
            stop.set()
            reader.join()
    assert broken == []
    assert looks > 50
    assert pair.faults("account", "id", modes={"books": "transactional"}) == []
    assert pair.faults("entry", "id", modes={"books": "transactional"}) == []


@pytest.mark.parametrize("batch_rows", [1, 7, 65_536])
def test_row_81_the_net_change_of_any_history_of_a_key_is_its_state(pair: Pair, batch_rows: int) -> None:
    """Every string of at most four operations on a key, and longer ones by chance, cut anywhere by `batch_rows`."""
    pair.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, a text, big text)",
        "ALTER TABLE t ALTER COLUMN big SET STORAGE EXTERNAL",
    )
    kadds = pair.kadds(batch_rows=batch_rows)
    kadds.catch_up().check()
    statements: dict[str, Callable[[int, int], str]] = {
        "i": lambda key, n: f"INSERT INTO t VALUES ({key}, 'i{n}', repeat('{n % 10}', 3000)) ON CONFLICT DO NOTHING",
        "u": lambda key, n: f"UPDATE t SET a = 'u{n}' WHERE id = {key}",
        "b": lambda key, n: f"UPDATE t SET big = repeat('{n % 7}', 3001) WHERE id = {key}",
        "d": lambda key, n: f"DELETE FROM t WHERE id = {key}",
        "k": lambda key, n: (
            f"UPDATE t SET id = -id WHERE id IN ({key}, {-key}) "
            f"AND NOT EXISTS (SELECT FROM t WHERE id IN ({key}, {-key}) GROUP BY () HAVING count(*) > 1)"
        ),
    }
    rng = random.Random(81)
    strings = ["i" + "".join(rest) for rest in short_strings("iubdk", 3)]
    strings += ["i" + "".join(rng.choices("iubdk", k=7)) for _ in range(150)]
    waiting = {key: list(string) for key, string in enumerate(strings, 1)}
    with psycopg.connect(pair.source) as connection:
        for n in range(1, 100_000):
            if not waiting:
                break
            key = rng.choice(list(waiting))
            connection.execute(statements[waiting[key].pop(0)](key, n))
            if not waiting[key]:
                del waiting[key]
            if rng.random() < 0.3:
                connection.commit()
    kadds.catch_up().check()
    assert pair.faults("t", "id") == []
    offsets = read_log(kadds.log).offsets["t"]
    assert history_faults(postgres_history(pair.urls["history"], "t"), offsets) == []


def short_strings(letters: str, longest: int) -> Iterator[str]:
    """Every string of at most `longest` letters."""
    level = [""]
    for _ in range(longest + 1):
        yield from level
        level = [string + letter for string in level for letter in letters]


def test_row_83_added_and_dropped_columns_are_followed_while_it_runs(pair: Pair) -> None:
    pair.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        "INSERT INTO t SELECT n, 'v' FROM generate_series(1, 10) n",
    )
    kadds = pair.kadds({**MODES, "books": "transactional"})
    with kadds.start() as running:
        arrived(pair, running.process.poll, "SELECT count(*) FROM t", "state", "books")
        pair.run("INSERT INTO t VALUES (11, 'v')", "ALTER TABLE t ADD COLUMN w numeric(10,3)")
        pair.run("INSERT INTO t VALUES (12, 'v', 1.5)")
        arrived(pair, running.process.poll, "SELECT count(w) FROM t", "state", "books")
        pair.run("UPDATE t SET w = id WHERE id < 5", "ALTER TABLE t DROP COLUMN v", "INSERT INTO t VALUES (13, 2.5)")
        arrived(pair, running.process.poll, "SELECT count(*), count(w) FROM t", "state", "books")
        running.terminate().check()
    assert differences(pair.source, pair.urls["state"], "t") == []
    assert differences(pair.source, pair.urls["books"], "t") == []
    with psycopg.connect(pair.urls["history"]) as connection:
        assert {"id", "v", "w"} <= set(columns_of(connection, "t")), "a history keeps what has been"


def arrived(pair: Pair, ended: Callable[[], int | None], query: str, *targets: str) -> None:
    """Waits until the query has the same answer at the targets as at the source."""

    def same() -> bool:
        try:
            return ended() is not None or all(pair.rows(query, pair.urls[name]) == pair.rows(query) for name in targets)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            return False

    wait_until(same, 30, f"the same answer to {query}")


def test_row_83_a_changed_type_is_held_by_name_and_goes_on_when_it_is_decided(pair: Pair) -> None:
    pair.run(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text)",
        "INSERT INTO t VALUES (1, '1')",
        "CREATE TABLE other (id bigint PRIMARY KEY, v text)",
    )
    kadds = pair.kadds({"state": "merge"})
    kadds.catch_up().check()
    pair.run(
        "INSERT INTO t VALUES (2, '2')",
        "ALTER TABLE t ALTER COLUMN v TYPE integer USING v::integer",
        "INSERT INTO t VALUES (3, 3)",
        "INSERT INTO other VALUES (1, 'goes on')",
    )
    refused(kadds, "t")
    assert pair.rows("SELECT id, v FROM t ORDER BY id", pair.urls["state"]) == [(1, "1"), (2, "2")]
    assert differences(pair.source, pair.urls["state"], "other") == []
    status = str(kadds.status())
    assert "public.t" in status
    assert "held" in status or "hold" in status
    kadds("subscription", "schema", "state", "public.t", "apply", "--config", str(kadds.path)).check()
    kadds.catch_up().check()
    assert differences(pair.source, pair.urls["state"], "t") == []


def test_row_83_a_change_that_is_ignored_leaves_the_target_as_it_is(pair: Pair) -> None:
    pair.run("CREATE TABLE t (id bigint PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'a')")
    kadds = pair.kadds({"state": "merge"}, on_schema_change={"add": "ignore", "drop": "hold"})
    kadds.catch_up().check()
    pair.run("ALTER TABLE t ADD COLUMN w text", "INSERT INTO t VALUES (2, 'b', 'w')")
    kadds.catch_up().check()
    assert pair.rows("SELECT * FROM t ORDER BY id", pair.urls["state"]) == [(1, "a"), (2, "b")]
    pair.run("ALTER TABLE t DROP COLUMN v", "INSERT INTO t VALUES (3, 'w')")
    refused(kadds, "t")
    assert pair.rows("SELECT * FROM t ORDER BY id", pair.urls["state"]) == [(1, "a"), (2, "b")]
