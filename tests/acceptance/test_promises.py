"""What Kadds promises at the command line: caught up, drained, scheduled, registered, compared, kept secret."""

import hashlib
import hmac
import json
import os
import signal
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy

from tests.support.judged_shop import SINKS, SUBSCRIPTIONS, JudgedShop
from tests.support.kadds_process import Kadds
from tests.support.oracle import happened_once, is_same, replayed
from tests.support.shop import CUSTOMER, NOTE, ORDER_LINE, READING, Shop, ShopTable
from tests.support.targets import Lake, duckdb_table, duckdb_table_names, rows_of

MASK_KEY = "a key for masks, long enough to be one"


def named(listed: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The one with that name in a part of the status."""
    return next(one for one in listed if one["name"] == f"default/{name}")


def job(status: Any, name: str) -> dict[str, Any]:
    return next(one for one in status["jobs"] if one["job"] == name)


# -------------------------------------------------------------------------------------------------------- caught up


def test_until_caught_up_ends_when_all_that_was_there_is_in_every_sink(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(300)
    done = judged.kadds.catch_up().check()
    assert judged.faults() == {}
    assert done.stdout == ""
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]  # a machine reads each line
    assert events[-1] == "ended"
    judged.kadds.catch_up().check()  # nothing new: nothing is added
    assert judged.faults() == {}


def test_the_verdict_is_no_formality(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(100)
    judged.kadds.catch_up().check()
    with duckdb.connect(str(judged.warehouse)) as connection:
        connection.execute("DELETE FROM reading WHERE id = (SELECT max(id) FROM reading)")
    assert set(judged.faults()) == {"warehouse reading"}
    entry = next(one for one in Lake(tmp_path / "lake").entries() if one["target"] == "note")
    (tmp_path / "lake" / entry["path"]).rename(tmp_path / "lake" / "note" / "another.parquet")
    assert "lake" in judged.faults()


def test_until_caught_up_lists_what_is_paused_and_ends_well(tmp_path: Path) -> None:
    paused = {**SUBSCRIPTIONS, "history": {**SUBSCRIPTIONS["history"], "paused": True}}
    judged = JudgedShop(tmp_path, subscriptions=paused)
    judged.shop.change(50)
    done = judged.kadds.catch_up().check()
    assert "history" in done.said
    assert "paused" in done.said
    assert Lake(tmp_path / "lake").entries() == []
    assert judged.faults_of_state(CUSTOMER) == []

    judged.reconfigure(subscriptions=SUBSCRIPTIONS)  # and what was missed comes when it goes on
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


def test_what_has_failed_is_named_and_the_rest_is_finished(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    with duckdb.connect(str(judged.warehouse)) as connection:
        connection.execute("CREATE TABLE note (id BLOB, text VARCHAR, changed_at TIMESTAMP, version BIGINT)")
    judged.shop.change(100)
    done = judged.kadds.catch_up().check(1)
    assert "note" in done.said
    assert "column id" in done.said
    for table in (CUSTOMER, ORDER_LINE, READING):
        assert judged.faults_of_state(table) == []
    assert [judged.faults_of_history(table, "lake") for table in judged.shop.tables] == [[]] * 4

    with duckdb.connect(str(judged.warehouse)) as connection:  # mended, it goes on where it stopped
        connection.execute("DROP TABLE note")
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


# ---------------------------------------------------------------------------------------------------------- stopping


def test_sigterm_drains_and_a_restart_goes_on_exactly(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path, log={"seal_after_seconds": 0.5})
    for _ in range(3):
        with judged.shop.changing(), judged.kadds.start() as running:
            before = judged.shop.read(READING).num_rows
            judged.kadds.wait_for_status(
                lambda status, before=before: moved(status) and judged.shop.read(READING).num_rows > before + 20
            )
            running.terminate().check()
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


def moved(status: Any) -> bool:
    """Whether every subscription has delivered something."""
    return bool(status["subscriptions"]) and all(one["rows"] for one in status["subscriptions"])


def test_ctrl_c_drains_as_well(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(20)
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(moved)
        running.signal(signal.SIGINT)
        running.wait(45).check()
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


def test_a_second_signal_stops_at_once(tmp_path: Path, postgres_database: str) -> None:
    """The drain is made to last by a table that somebody has locked, so that a poll of it hangs."""
    plain = sqlalchemy.make_url(postgres_database).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id bigint PRIMARY KEY, version bigint)")
        connection.execute("INSERT INTO t VALUES (1, 1)")
    source = {
        "connector": "polling",
        "url": postgres_database,
        "poll_interval_seconds": 0.1,
        "tables": {"public.t": {"incrementing": "id"}},
    }
    subscription = {"source": "db", "sink": "warehouse", "mode": "merge", "tables": ["*"]}
    kadds = Kadds(
        tmp_path,
        {
            "sources": {"db": source},
            "sinks": {"warehouse": SINKS["warehouse"]},
            "subscriptions": {"state": subscription},
        },
    )
    with kadds.start() as running:
        kadds.wait_for_status(moved)
        with psycopg.connect(plain) as owner:
            owner.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            with psycopg.connect(plain, autocommit=True) as other:
                waiting = (
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
                deadline = time.monotonic() + 20
                while other.execute(waiting).fetchone() == (0,):
                    assert time.monotonic() < deadline, "no poll waits for the lock"
            running.signal(signal.SIGTERM)
            kadds.wait_for_status(lambda status: status["state"] == "stopped", waiting_for="the drain to begin")
            assert running.process.poll() is None
            began = time.monotonic()
            running.signal(signal.SIGTERM)
            ended = running.wait(20)
            assert time.monotonic() - began < 5
            assert ended.code != 0
    kadds.catch_up().check()
    assert duckdb_table(tmp_path / "warehouse.duckdb", "t", "public").to_pylist() == [{"id": 1, "version": 1}]


# ---------------------------------------------------------------------------------------------------------- schedule


def test_scheduled_runs_are_recorded_and_shown(tmp_path: Path) -> None:
    scheduled = {**SUBSCRIPTIONS, "history": {**SUBSCRIPTIONS["history"], "schedule": {"interval_seconds": 1}}}
    judged = JudgedShop(tmp_path, source={"schedule": {"interval_seconds": 1}}, subscriptions=scheduled)
    judged.shop.change(50)
    names = ("source:default/shop", "subscription:default/history")
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(
            lambda status: all(
                sum(run["outcome"] == "done" for run in job(status, name)["runs"]) >= 2 for name in names
            )
        )
        running.terminate().check()
    status = judged.kadds.status()
    for name in names:
        run = job(status, name)["runs"][0]
        assert run["trigger"] == "schedule"
        assert run["started_at"] < run["ended_at"]
    assert sum(run["rows"] for run in job(status, names[0])["runs"]) > 0
    listed = judged.kadds("jobs", "list", "--config", str(judged.kadds.path)).check().stdout
    assert "source:" in listed
    assert "subscription:" in listed
    judged.kadds.catch_up().check()  # what is scheduled runs once, now
    assert judged.faults() == {}


def test_a_schedule_that_is_far_away_runs_once_for_until_caught_up(tmp_path: Path) -> None:
    yearly = {"cron": "0 0 1 1 *", "timezone": "Europe/Berlin"}
    scheduled = {**SUBSCRIPTIONS, "feed": {**SUBSCRIPTIONS["feed"], "schedule": yearly}}
    judged = JudgedShop(tmp_path, source={"schedule": yearly}, subscriptions=scheduled)
    judged.shop.change(60)
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


def test_a_run_that_fails_moves_no_watermark(tmp_path: Path) -> None:
    """The table of changes is taken away between two runs; what happened meanwhile is not missed afterwards."""
    judged = JudgedShop(tmp_path, source={"schedule": {"interval_seconds": 1}})
    judged.shop.change(40)
    judged.kadds.catch_up().check()
    with closing(judged.shop.connect()) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute("ALTER TABLE customer_changes RENAME TO customer_changes_away")
    done = judged.kadds.catch_up().check(1)
    assert "customer" in done.said
    runs = job(judged.kadds.status(), "source:default/shop")["runs"]
    assert runs[-1]["outcome"] == "failed"
    assert any("customer" in name for name in runs[-1]["problems"])

    with closing(judged.shop.connect()) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.execute("ALTER TABLE customer_changes_away RENAME TO customer_changes")
    judged.shop.change(40)
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


# ------------------------------------------------------------------------------------- registered, removed, compared


def test_a_registered_sink_survives_restarts_and_serves_a_subscription(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(30)
    config = ("--config", str(judged.kadds.path))
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(moved)
        judged.kadds(
            "sink", "register", "extra", "--connector", "duckdb", "--set", "path=extra.duckdb", *config
        ).check()
        assert "extra" in judged.kadds("sink", "list", *config).check().stdout
        judged.kadds("sink", "test", "extra", *config).check()
        running.terminate().check()
    assert "extra.duckdb" in judged.kadds("sink", "show", "extra", *config).check().stdout

    more = {"source": "shop", "sink": "extra", "mode": "merge", "tables": ["customer"]}
    judged.reconfigure(subscriptions={**SUBSCRIPTIONS, "more": more})
    judged.kadds.catch_up().check()
    assert is_same(judged.shop.read(CUSTOMER), duckdb_table(tmp_path / "extra.duckdb", "customer")) == []
    assert judged.faults() == {}
    refused = judged.kadds("sink", "remove", "extra", *config)
    assert refused.code == 2
    assert "more" in refused.said


def test_a_subscription_taken_out_of_the_file_is_kept_and_warned_of_until_it_is_removed(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(20)
    judged.kadds.catch_up().check()
    judged.reconfigure(subscriptions={name: one for name, one in SUBSCRIPTIONS.items() if name != "feed"})

    for _ in range(2):
        done = judged.kadds.catch_up().check()
        assert "subscription feed" in done.said
        assert "kadds subscription remove feed" in done.said
    assert any(one["name"] == "default/feed" for one in judged.kadds.status()["subscriptions"])

    judged.kadds("subscription", "remove", "feed", "--config", str(judged.kadds.path)).check()
    done = judged.kadds.catch_up().check()
    assert "subscription feed" not in done.said
    assert all(one["name"] != "default/feed" for one in judged.kadds.status()["subscriptions"])


def test_every_difference_of_an_edited_configuration_is_named(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(30)
    judged.kadds.catch_up().check()

    state = {**SUBSCRIPTIONS["state"], "tables": {"*": {}, "customer": {"columns": ["!card"]}}}
    history = {**SUBSCRIPTIONS["history"], "mode": "append", "tables": ["*", "!note"]}
    judged.reconfigure(subscriptions={**SUBSCRIPTIONS, "state": state, "history": history})
    refused = judged.kadds.catch_up().check(2)
    for words in ("subscription state", "customer", "columns", "narrower", "subscription history", "note"):
        assert words in refused.said, refused.said
    assert judged.faults() == {}, "nothing has moved"

    source = judged.shop.source(poll_interval_seconds=0.07)
    more = {"source": "shop", "sink": "warehouse", "mode": "append", "tables": {"note": {"target": "note_history"}}}
    judged.reconfigure(sources={"shop": source}, subscriptions={**SUBSCRIPTIONS, "more": more})
    done = judged.kadds.catch_up().check()
    for words in ("poll_interval_seconds", "0.05", "0.07", "subscription more", "is new"):
        assert words in done.said, done.said
    assert "main.note_history" in duckdb_table_names(judged.warehouse)
    late = of_the_history(duckdb_table(judged.warehouse, "note_history"), NOTE)
    assert is_same(judged.shop.read(NOTE), replayed(late, key=NOTE.key)) == []
    assert late.num_rows == Lake(tmp_path / "lake").history("note", NOTE.schema).num_rows
    assert judged.faults() == {}


def of_the_history(table: pa.Table, of: ShopTable) -> pa.Table:
    """A history in DuckDB, in the columns that are judged."""
    return table.select([*of.schema.names, "_kadds_op", "_kadds_offset", "_kadds_image"])


def test_a_history_in_duckdb_and_a_state_by_transactions_are_exact_too(tmp_path: Path) -> None:
    sinks = {name: {**SINKS["warehouse"], "path": f"{name}.duckdb"} for name in ("ledger", "books")}
    subscriptions = {
        "ledger": {"source": "shop", "sink": "ledger", "mode": "append", "tables": ["*"]},
        "books": {"source": "shop", "sink": "books", "mode": "transactional", "tables": ["*"]},
    }
    judged = JudgedShop(tmp_path, sinks=sinks, subscriptions=subscriptions)
    for _ in range(2):
        with judged.shop.changing(), judged.kadds.start() as running:
            judged.kadds.wait_for_status(moved)
            running.kill()
    judged.kadds.catch_up().check()
    for table in judged.shop.tables:
        assert is_same(judged.shop.read(table), duckdb_table(tmp_path / "books.duckdb", table.name)) == []
        ledger = of_the_history(duckdb_table(tmp_path / "ledger.duckdb", table.name), table)
        by_time = table is NOTE
        record = judged.shop.read_record(table)
        assert happened_once(ledger, record, key=table.key, order="sequence", every=not by_time, ops=not by_time) == []
        assert is_same(judged.shop.read(table), replayed(ledger, key=table.key)) == []


def test_a_subscription_with_one_cursor_does_not_pass_by_what_a_new_table_of_it_had_before(tmp_path: Path) -> None:
    """In mode transactional it is past the older changes of a table that it is given later."""
    books = {"source": "shop", "sink": "warehouse", "mode": "transactional", "tables": ["customer"]}
    judged = JudgedShop(tmp_path, subscriptions={"books": books, "feed": SUBSCRIPTIONS["feed"]})
    judged.shop.change(50)
    judged.kadds.catch_up().check()
    judged.reconfigure(subscriptions={"books": {**books, "tables": ["customer", "note"]}})
    refused = judged.kadds.catch_up().check(2)
    assert "subscription books" in refused.said
    assert "note" in refused.said
    judged.reconfigure(subscriptions={"books": books, "more": {**books, "tables": ["note"]}})
    judged.kadds.catch_up().check()
    assert [judged.faults_of_state(table) for table in (CUSTOMER, NOTE)] == [[], []]


def test_a_scheduled_subscription_with_one_cursor_is_exact_while_tables_come(tmp_path: Path) -> None:
    books = {**SUBSCRIPTIONS["state"], "mode": "transactional", "schedule": {"interval_seconds": 0.2}}
    judged = JudgedShop(tmp_path, subscriptions={"books": books})
    for _ in range(3):
        with judged.shop.changing(), judged.kadds.start() as running:
            judged.kadds.wait_for_status(moved)
            running.kill()
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


def test_what_is_paused_by_command_stays_so_over_a_restart_until_it_is_resumed(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(20)
    config = ("--config", str(judged.kadds.path))
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(moved)
        judged.kadds("subscription", "pause", "feed", *config).check()
        judged.kadds.wait_for_status(lambda status: named(status["subscriptions"], "feed")["state"] == "paused")
        running.terminate().check()
    files = len(Lake(tmp_path / "feed").entries())
    judged.shop.change(50)
    assert "paused" in judged.kadds.catch_up().check().said
    assert len(Lake(tmp_path / "feed").entries()) == files
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(lambda status: named(status["subscriptions"], "feed")["state"] == "paused")
        judged.kadds("subscription", "resume", "feed", *config).check()
        judged.kadds.wait_for_status(lambda status: all(one["state"] == "idle" for one in status["subscriptions"]))
        running.terminate().check()
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


def test_a_column_added_at_the_source_arrives_with_its_values(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path, tables=(CUSTOMER, READING))
    judged.shop.change(40)
    judged.kadds.catch_up().check()
    judged.shop.execute(
        "ALTER TABLE customer ADD COLUMN town TEXT",
        "ALTER TABLE customer_changes ADD COLUMN town TEXT",
        "INSERT INTO customer_changes (op, id, name, version, town) VALUES ('c', 1000, 'new', 9999, 'Köln')",
    )
    judged.kadds.catch_up().check()
    found = duckdb_table(judged.warehouse, "customer")
    assert rows_of(found, id=1000)["town"].to_pylist() == ["Köln"]
    assert rows_of(found, town=None).num_rows == found.num_rows - 1
    assert judged.faults_of_state(READING) == []


def test_tenants_have_names_of_their_own(tmp_path: Path) -> None:
    shop = JudgedShop(tmp_path)
    shop.shop.change(30)
    shop.kadds.configure(
        {
            "tenants": {"acme": {"mask_key": MASK_KEY}},
            "sources": {"acme/shop": shop.shop.source()},
            "sinks": {"acme/warehouse": SINKS["warehouse"]},
            "subscriptions": {
                "acme/state": {
                    "source": "shop",
                    "sink": "acme/warehouse",
                    "mode": "merge",
                    "tables": {"customer": {"mask": {"name": "hash"}}, "note": {}},
                }
            },
        }
    )
    shop.kadds.catch_up().check()
    assert shop.faults_of_state(NOTE) == []
    customers = shop.shop.read(CUSTOMER)
    hashed = replaced(customers, "name", [masked(name) for name in customers["name"].to_pylist()], pa.string())
    assert is_same(hashed, duckdb_table(shop.warehouse, "customer")) == []
    assert {one["name"] for one in shop.kadds.status()["subscriptions"]} == {"acme/state"}


def test_a_table_added_to_the_source_begins_with_all_its_rows(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(60)
    source = judged.shop.source()
    tables = source["tables"]
    judged.reconfigure(sources={"shop": {**source, "tables": {"customer": tables["customer"]}}})
    judged.kadds.catch_up().check()
    assert duckdb_table_names(judged.warehouse) == {"main.customer"}
    judged.reconfigure(sources={"shop": source})
    done = judged.kadds.catch_up().check()
    for name in ("note", "order_line", "reading"):
        assert name in done.said
    assert judged.faults() == {}


# ------------------------------------------------------------------------------------------------------------ fan-out


def test_each_sink_gets_exactly_its_contract(tmp_path: Path) -> None:
    """One source; the state of part of the rows, without a column, behind masks, under another name; and histories."""
    sinks = {name: {**SINKS["warehouse"], "path": f"{name}.duckdb"} for name in ("rich", "masked", "renamed")}
    each = {"source": "shop", "mode": "merge"}
    subscriptions = {
        "rich": {**each, "sink": "rich", "tables": {"customer": {"where": "balance > 0 and active"}}},
        "masked": {
            **each,
            "sink": "masked",
            "tables": {
                "customer": {"mask": {"name": "hash", "card": "redact"}},
                "order_line": {"mask": {"line": "hash"}},
            },
        },
        "renamed": {
            **each,
            "sink": "renamed",
            "tables": {"customer": {"target": "crm.people", "columns": ["id", "name", "version"]}, "note": {}},
        },
        "history": SUBSCRIPTIONS["history"],
        "state": SUBSCRIPTIONS["state"],
    }
    judged = JudgedShop(
        tmp_path,
        sinks={**SINKS, **sinks},
        subscriptions=subscriptions,
        tenants={"default": {"mask_key": "${KADDS_MASK_KEY}"}},
        environment={"KADDS_MASK_KEY": MASK_KEY},
    )
    with judged.shop.changing(), judged.kadds.start() as running:
        judged.kadds.wait_for_status(lambda status: moved(status) and judged.shop.read(READING).num_rows > 200)
        running.terminate().check()
    judged.kadds.catch_up().check()

    assert judged.faults() == {}
    customers = judged.shop.read(CUSTOMER)
    wanted = pc.and_kleene(pc.greater(customers["balance"], pa.scalar(0, pa.decimal128(12, 2))), customers["active"])
    assert is_same(customers.filter(wanted), duckdb_table(tmp_path / "rich.duckdb", "customer")) == []
    assert 0 < customers.filter(wanted).num_rows < customers.num_rows
    assert duckdb_table_names(tmp_path / "rich.duckdb") == {"main.customer"}

    hashed = replaced(customers, "name", [masked(name) for name in customers["name"].to_pylist()], pa.string())
    hashed = replaced(hashed, "card", [None] * hashed.num_rows, pa.string())
    assert is_same(hashed, duckdb_table(tmp_path / "masked.duckdb", "customer")) == []
    lines = judged.shop.read(ORDER_LINE)
    lines = replaced(lines, "line", [masked(line) for line in lines["line"].to_pylist()], pa.string())
    assert is_same(lines, duckdb_table(tmp_path / "masked.duckdb", "order_line")) == []

    people = customers.select(["id", "name", "version"])
    assert is_same(people, duckdb_table(tmp_path / "renamed.duckdb", "people", "crm")) == []
    assert is_same(judged.shop.read(NOTE), duckdb_table(tmp_path / "renamed.duckdb", "note")) == []
    assert duckdb_table_names(tmp_path / "renamed.duckdb") == {"crm.people", "main.note"}


def masked(text: str | None) -> str | None:
    return None if text is None else hmac.new(MASK_KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def replaced(table: pa.Table, name: str, values: list[Any], kind: pa.DataType) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


# ------------------------------------------------------------------------------------------------------------ secrets


def test_no_secret_is_seen_anywhere(tmp_path: Path, postgres_database: str) -> None:
    """A password in a URL and a mask key, in everything that is printed, kept and answered, also when things fail."""
    password, mask_key = "canary!sEcret/42", "canary of a mask key, 0123456789"
    url = sqlalchemy.make_url(postgres_database)
    role = f"kadds_canary_{os.getpid()}"
    with psycopg.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    ) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        connection.execute("CREATE TABLE t (id bigint PRIMARY KEY, name text)")
        connection.execute("CREATE TABLE hidden (id bigint PRIMARY KEY)")
        connection.execute("INSERT INTO t VALUES (1, 'one')")
        connection.execute(f"GRANT SELECT ON t TO {role}")
        try:
            own = url.set(username=role, password=password).render_as_string(hide_password=False)
            use_with_secrets(tmp_path, own, password, mask_key)
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


def use_with_secrets(folder: Path, url: str, password: str, mask_key: str) -> None:
    tables = {"public.t": {"incrementing": "id"}, "public.hidden": {"incrementing": "id"}}
    subscription = {
        "source": "db",
        "sink": "lake",
        "mode": "append",
        "tables": {"*": {}, "public.t": {"mask": {"name": "hash"}}},
    }
    configuration = {
        "tenants": {"default": {"mask_key": "${MASK_KEY}"}},
        "sources": {"db": {"connector": "polling", "url": "${DB_URL}", "poll_interval_seconds": 0.2, "tables": tables}},
        "sinks": {"lake": SINKS["lake"]},
        "subscriptions": {"history": subscription},
    }
    kadds = Kadds(folder, configuration, {"DB_URL": url, "MASK_KEY": mask_key, "KADDS_DEBUG": "1"})
    config = ("--config", str(kadds.path))
    with kadds.start() as running:
        kadds.wait_for_status(lambda status: named(status["subscriptions"], "history")["rows"])
        kadds("status", *config)
        kadds("source", "show", "db", *config)
        kadds("log", "streams", *config)
        kadds("log", "read", "--json", *config)
        running.terminate()
    kadds.said.append(running.said)
    kadds("validate", str(kadds.path))
    kadds("validate", str(kadds.path), "--show")
    kadds("validate", str(kadds.path), "--explain", "public.t")
    kadds("status", "--json", *config)
    kadds("subscription", "show", "history", *config)
    kadds.environment["DB_URL"] = url.replace("127.0.0.1", "127.0.0.2").replace("localhost", "127.0.0.2")
    kadds("validate", str(kadds.path))
    kadds.environment["DB_URL"] = f"no url at all, {password}"
    kadds("run", str(kadds.path), "--until-caught-up")

    forms = {
        password,
        mask_key,
        sqlalchemy.make_url(url).render_as_string(hide_password=False).split("@")[0].split(":")[-1],
    }
    said = "\n".join(kadds.said)
    assert "public.t" in said
    assert [form for form in forms if form in said] == []
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("journal" in str(path) for path in files)
    found = [(str(path), form) for path in files for form in forms if form.encode() in path.read_bytes()]
    assert found == []


def test_the_log_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(lambda status: status["running"])
        assert stat.S_IMODE(judged.kadds.log.stat().st_mode) == 0o700
        sockets = [path for path in judged.kadds.log.iterdir() if path.is_socket()]
        assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o600]
        running.terminate().check()


def test_a_log_folder_with_a_long_path_can_be_asked_too(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path / ("a long name " * 12) / "x")
    judged.shop.change(5)
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(moved)
        running.terminate().check()
    assert judged.faults() == {}


def test_the_log_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    config = ("--config", str(judged.kadds.path))
    with judged.shop.changing(), judged.kadds.start() as running:
        judged.kadds.wait_for_status(moved)
        streams = judged.kadds("log", "streams", *config).check().stdout
        assert all(table.name in streams for table in judged.shop.tables)
        read = judged.kadds("log", "read", "--stream", "customer", "--json", *config).check()
        assert read.stdout.count("\n") > 0
        running.terminate().check()


def test_the_shop_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "größe 日本 'quoted'"
    shop = Shop(folder / "shop.db")
    shop.change(10)
    judged = JudgedShop(folder)
    judged.kadds.catch_up().check()
    assert judged.faults() == {}
