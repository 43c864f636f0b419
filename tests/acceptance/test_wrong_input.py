"""Whatever is wrong is named, with its place and the right exit code, and stops nothing but itself.

2: the configuration or the command; 1: something was refused or failed while running.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
import sqlalchemy

from tests.support.judged_shop import SINKS, SUBSCRIPTIONS, JudgedShop
from tests.support.kadds_process import Kadds
from tests.support.shop import CUSTOMER, NOTE, ORDER_LINE, READING
from tests.support.targets import Lake, duckdb_table
from tests.support.waiting import wait_until

RIGHT = """\
log: {path: data/log}
sources:
  shop:
    connector: polling
    url: sqlite:///shop.db
    poll_interval_seconds: 0.1
    tables:
      customer: {change_table: {table: customer_changes, sequence: sequence, op: op}}
sinks:
  warehouse: {connector: duckdb, path: warehouse.duckdb}
subscriptions:
  state:
    source: shop
    sink: warehouse
    mode: merge
    tables:
      customer: {}
"""


def subscription_of(status: Any, name: str) -> Any:
    return next(one for one in status["subscriptions"] if one["name"] == f"default/{name}")


def tables_of(status: Any, name: str) -> dict[str, Any]:
    """Table → what the status says of it under a subscription."""
    return {one["stream"].split("/")[-1]: one for one in subscription_of(status, name)["tables"]}


# ------------------------------------------------------------------------------------------------- the configuration


WRONG = {  # what stands in RIGHT, what stands there instead, where it is named, and in which words
    "unknown-key": ("    poll_interval", "    poll_intervall", ":6:5", ["poll_interval_seconds"]),
    "unknown-section": ("sinks:", "sink:", ":9:1", ["sinks"]),
    "unknown-setting-of-a-connector": ("path: warehouse", "pfad: warehouse", ":10:34", ["pfad", "path"]),
    "unknown-connector": ("connector: polling", "connector: pollling", ":4:16", ["pollling", "polling"]),
    "bad-url": ("url: sqlite:///shop.db", "url: shop.db", ":5:10", ["URL"]),
    "unset-variable": ("url: sqlite:///shop.db", "url: ${NOWHERE_SET}", ":5:10", ["NOWHERE_SET"]),
    "unknown-sink": ("sink: warehouse", "sink: warehous", ":14:11", ["warehous", "warehouse"]),
    "unknown-mode": ("mode: merge", "mode: murge", ":15:11", ["mode"]),
    "mode-not-executed": ("mode: merge", "mode: snapshot", ":15:11", ["snapshot", "not executed"]),
    "setting-not-executed": (
        "    poll_interval_seconds: 0.1",
        "    snapshot: initial",
        ":6:5",
        ["snapshot", "not executed"],
    ),
    "log-setting-not-executed": (
        "data/log}",
        "data/log, retention: {days: 7}}",
        ":1:23",
        ["retention", "not executed"],
    ),
    "two-ways-of-polling": ("op: op}}", "op: op}, incrementing: id}", ":8:7", ["change_table", "incrementing"]),
    "filter-that-is-no-sql": ("customer: {}", "customer: {where: 'balance >'}", ":17:25", ["where"]),
    "hash-without-a-key": ("customer: {}", "customer: {mask: {name: hash}}", ":17:31", ["mask_key"]),
    "no-yaml": ("  shop:\n", "  shop: [\n", ":5:", ["YAML"]),
}


@pytest.mark.parametrize(("right", "wrong", "place", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_configuration_is_refused_with_its_place(
    tmp_path: Path, right: str, wrong: str, place: str, words: list[str]
) -> None:
    assert right in RIGHT
    kadds = Kadds(tmp_path, RIGHT.replace(right, wrong, 1))
    refused = kadds("run", str(kadds.path), "--until-caught-up").check(2)
    assert f"kadds.yml{place}" in refused.said
    for word in words:
        assert word.lower() in refused.said.lower()
    assert "Traceback" not in refused.said
    assert not (tmp_path / "data").exists(), "nothing is made before the configuration is right"


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = RIGHT.replace("mode: merge", "mode: murge").replace("pollin", "bollin").replace("sink: w", "sink: v")
    refused = Kadds(tmp_path, text)("validate", "kadds.yml", "--offline").check(2)
    for place in (":4:16", ":14:11", ":15:11"):
        assert f"kadds.yml{place}" in refused.said


def test_a_file_that_is_not_there_and_wrong_usage_are_code_2(tmp_path: Path) -> None:
    kadds = Kadds(tmp_path, RIGHT)
    assert "nowhere.yml" in kadds("run", "nowhere.yml").check(2).said
    kadds("run", str(kadds.path), "--no-such-option").check(2)
    kadds("no-such-command").check(2)
    assert "no log" in kadds("status", "--log", str(tmp_path / "nothing")).check(2).said
    assert not (tmp_path / "nothing").exists()


def test_the_right_configuration_of_these_tests_is_right(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(20)
    judged.kadds.configure(RIGHT)
    judged.kadds("validate", str(judged.kadds.path)).check()
    judged.kadds.catch_up().check()
    assert judged.faults_of_state(CUSTOMER) == []


# ---------------------------------------------------------------------------------------------------------- the source


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(20)
    source = judged.configuration["sources"]["shop"]
    source["tables"]["note"] = {"timestamp": "changed"}
    judged.reconfigure()
    for done in (judged.kadds("validate", str(judged.kadds.path)), judged.kadds.catch_up()):
        assert done.code in (1, 2)
        assert "note" in done.said
        assert "no column changed" in done.said
    for table in (CUSTOMER, ORDER_LINE, READING):
        assert judged.faults_of_state(table) == []


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(20)
    judged.configuration["sources"]["shop"]["tables"]["customr"] = {"incrementing": "id"}
    judged.reconfigure()
    done = judged.kadds("validate", str(judged.kadds.path)).check(1)
    assert "customr" in done.said
    assert "no such table" in done.said
    done = judged.kadds.catch_up().check(1)
    assert "customr" in done.said
    assert judged.faults() == {}, "all the others are finished"


@contextmanager
def role_of(url: str, password: str) -> Iterator[tuple[psycopg.Connection[Any], str, str]]:
    """A connection of the owner, and a role that may log in and nothing else, with its URL."""
    parsed = sqlalchemy.make_url(url)
    role = f"kadds_role_{os.getpid()}"
    plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        try:
            yield owner, role, parsed.set(username=role, password=password).render_as_string(hide_password=False)
        finally:
            owner.execute(f"DROP OWNED BY {role}")
            owner.execute(f"DROP ROLE {role}")


def postgres_configuration(url: str, *tables: str) -> dict[str, Any]:
    return {
        "sources": {
            "db": {
                "connector": "polling",
                "url": url,
                "poll_interval_seconds": 0.2,
                "tables": {f"public.{table}": {"incrementing": "id"} for table in tables},
            }
        },
        "sinks": {"warehouse": SINKS["warehouse"]},
        "subscriptions": {"state": {"source": "db", "sink": "warehouse", "mode": "merge", "tables": ["*"]}},
    }


def test_a_missing_privilege_stops_one_table_by_name(tmp_path: Path, postgres_database: str) -> None:
    with role_of(postgres_database, "secret word") as (owner, role, url):
        for table in ("open", "closed"):
            owner.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, name text)")
            owner.execute(f"INSERT INTO {table} VALUES (1, 'one'), (2, NULL)")
        owner.execute(f"GRANT SELECT ON open TO {role}")
        kadds = Kadds(tmp_path, postgres_configuration(url, "open", "closed"))

        for done in (kadds("validate", str(kadds.path)).check(1), kadds.catch_up().check(1)):
            assert "public.closed" in done.said
            assert "permission denied" in done.said
            assert "secret word" not in done.said
        warehouse = tmp_path / "warehouse.duckdb"
        assert duckdb_table(warehouse, "open", "public").num_rows == 2

        owner.execute(f"GRANT SELECT ON closed TO {role}")
        kadds("validate", str(kadds.path)).check()
        kadds.catch_up().check()
        assert duckdb_table(warehouse, "closed", "public").num_rows == 2


def test_a_wrong_password_is_named_and_never_printed(tmp_path: Path, postgres_database: str) -> None:
    wrong = sqlalchemy.make_url(postgres_database).set(password="the wrong one").render_as_string(hide_password=False)
    kadds = Kadds(tmp_path, postgres_configuration(wrong, "t"))
    for done in (kadds("validate", str(kadds.path)).check(1), kadds.catch_up().check(1)):
        assert "authentication failed" in done.said
        assert "source" in done.said
        assert "the wrong one" not in done.said


def test_a_server_that_does_not_answer_is_tried_again_and_shown(tmp_path: Path) -> None:
    kadds = Kadds(tmp_path, postgres_configuration("postgresql://u:hidden-word@127.0.0.1:1/db", "t"))
    with kadds.start() as running:
        status = kadds.wait_for_status(lambda status: status["sources"] and status["sources"][0]["problem"])
        assert status["sources"][0]["state"] == "retrying"
        assert "127.0.0.1" in status["sources"][0]["problem"]["message"]
        ended = running.terminate()
        assert "hidden-word" not in ended.said


@pytest.mark.parametrize(
    "url", ["nonsense://user@host/db", "postgresql+nodriver://user@host/db", "sqlite:///not-there.db"]
)
def test_a_url_of_nothing_is_named(tmp_path: Path, url: str) -> None:
    kadds = Kadds(tmp_path, RIGHT.replace("sqlite:///shop.db", url))
    done = kadds("validate", str(kadds.path))
    assert done.code == (1 if "sqlite" in url else 2)
    assert "shop" in done.said
    assert "hint" in done.said
    done = kadds.catch_up()
    assert done.code == (1 if "sqlite" in url else 2)
    assert "hint" in done.said


# ------------------------------------------------------------------------------------------------------- the log folder


def test_two_processes_on_one_folder_are_refused_by_pid(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(10)
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(lambda status: status["running"])
        refused = judged.kadds("run", str(judged.kadds.path)).check(1)
        assert str(running.process.pid) in refused.said
        assert "data/log" in refused.said
        running.terminate().check()
    judged.kadds.catch_up().check()
    assert judged.faults() == {}


def test_somebody_who_looks_at_the_status_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    """While nothing runs, a command holds the folder itself for as long as it looks, here for longer than usual."""
    judged = JudgedShop(tmp_path)
    judged.shop.change(5)
    judged.kadds.catch_up().check()
    looks = (
        "import pathlib, sys; from kadds.log.lock import FolderLock; lock = FolderLock(pathlib.Path(sys.argv[1]));"
        "print('held', flush=True); sys.stdin.readline(); lock.release()"
    )
    command = [sys.executable, "-c", looks, str(judged.kadds.log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as looker:
        assert looker.stdout is not None
        assert looker.stdout.readline() == "held\n"
        judged.shop.change(5)
        with judged.kadds.start("--until-caught-up") as running:
            with pytest.raises(subprocess.TimeoutExpired):
                running.process.wait(4)
            looker.communicate("done\n")
            running.wait().check()
    assert judged.faults() == {}


def test_two_configurations_with_two_logs_cannot_fill_one_folder_of_files(tmp_path: Path) -> None:
    """The second process is refused by the folder, by the sink's own lock, and stops nothing else."""
    judged = JudgedShop(tmp_path)
    judged.shop.change(10)
    other = Kadds(
        tmp_path / "other", {**judged.configuration, "sinks": absolute(judged.configuration["sinks"], tmp_path)}
    )
    with judged.kadds.start() as running:
        judged.kadds.wait_for_status(lambda status: all(one["rows"] for one in status["subscriptions"]))
        done = other.catch_up().check(1)
        assert "lake" in done.said or "history" in done.said
        running.terminate().check()
    assert judged.faults() == {}


def absolute(sinks: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The sinks with whole paths, but a DuckDB file of its own."""
    found = {name: {**sink, "path": str(folder / sink["path"])} for name, sink in sinks.items()}
    found["warehouse"]["path"] = "other.duckdb"
    return found


def test_a_full_disk_of_a_sink_is_waited_for_and_holds_up_no_other(tmp_path: Path) -> None:
    with small_disk(tmp_path / "lake", 16) as disk:
        judged = JudgedShop(tmp_path)
        judged.shop.change(20)
        judged.kadds.catch_up().check()
        ballast = disk / "_ballast"  # what begins so is no data to readers
        fill(ballast, disk, left_bytes=0)
        judged.shop.change(200)
        with judged.kadds.start() as running:
            status = judged.kadds.wait_for_status(
                lambda status: any(one["state"] == "waiting" for one in tables_of(status, "history").values()),
                waiting_for="the state waiting",
            )
            problems = [one["problem"] for one in tables_of(status, "history").values() if one["problem"]]
            assert any(str(disk) in problem["waiting_for"] for problem in problems)
            wait_until(lambda: judged.faults_of_history(CUSTOMER, "feed") == [], 20, "the other sinks to go on")
            ballast.unlink()
            judged.kadds.wait_for_status(
                lambda status: all(one["caught_up"] for one in tables_of(status, "history").values()),
                waiting_for="delivery to go on",
            )
            running.terminate().check()
        assert judged.faults() == {}


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size, mounted at `path`; only root may do that, anybody else in a namespace of his own."""
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_stops_intake_by_name_and_goes_on_by_itself(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        judged = JudgedShop(
            tmp_path,
            log={"path": str(disk / "log"), "free_space_floor_bytes": 8 << 20, "seal_after_seconds": 1},
        )
        judged.shop.change(20)
        ballast = disk / "ballast"
        with judged.shop.changing(), judged.kadds.start() as running:
            judged.kadds.wait_for_status(lambda status: all(one["rows"] for one in status["subscriptions"]))
            fill(ballast, disk, left_bytes=4 << 20)
            full = judged.kadds.wait_for_status(no_space, waiting_for="the state no-space")
            assert "room" in str(full) or "space" in str(full)
            ballast.unlink()
            rows = sum(one["rows"] for one in full["sources"])
            judged.kadds.wait_for_status(
                lambda status: not no_space(status) and sum(one["rows"] for one in status["sources"]) > rows,
                waiting_for="intake to go on",
            )
            running.terminate().check()
        judged.kadds.catch_up().check()
        assert judged.faults() == {}


def test_a_disk_without_a_free_byte_loses_nothing(tmp_path: Path) -> None:
    """The floor is off, so that writes themselves fail, wherever they are."""
    with small_disk(tmp_path / "disk", 48) as disk:
        log = {"path": str(disk / "log"), "free_space_floor_bytes": 0, "seal_after_seconds": 1}
        judged = JudgedShop(tmp_path, log=log)
        judged.shop.change(20)
        ballast = disk / "ballast"
        with judged.shop.changing(), judged.kadds.start() as running:
            judged.kadds.wait_for_status(lambda status: all(one["rows"] for one in status["subscriptions"]))
            fill(ballast, disk, left_bytes=0)
            judged.kadds.wait_for_status(no_space, waiting_for="the state no-space")
            ballast.unlink()
            judged.kadds.wait_for_status(lambda status: not no_space(status), waiting_for="intake to go on")
            running.terminate().check()
        judged.kadds.catch_up().check()
        assert judged.faults() == {}


def fill(ballast: Path, disk: Path, *, left_bytes: int) -> None:
    """Take the disk's room but for `left_bytes`."""
    with ballast.open("wb", buffering=0) as file:  # what does not fit must not be tried again when it is closed
        while (free := shutil.disk_usage(disk).free - left_bytes) > 0:
            try:
                file.write(b"\0" * min(free, 1 << 20))
            except OSError:
                return


def no_space(status: Any) -> bool:
    """Whether intake says that it has no room."""
    states = [one["state"] for source in status["sources"] for one in (source, *source["tables"])]
    return "no-space" in states


def wiped(judged: JudgedShop) -> None:
    """Somebody deleted the folder."""
    shutil.rmtree(judged.kadds.log)


def older(judged: JudgedShop) -> None:
    """A backup was put back."""
    backup = judged.kadds.log.with_name("backup")
    shutil.copytree(judged.kadds.log, backup)
    move_on(judged)
    shutil.rmtree(judged.kadds.log)
    backup.rename(judged.kadds.log)


def copied_and_both_written(judged: JudgedShop) -> None:
    """A copy of the folder went on and filled the sinks; then the first came back, and is longer by now."""
    original = judged.kadds.log.with_name("original")
    shutil.copytree(judged.kadds.log, original)
    move_on(judged)
    reached = judged.kadds.status()["log"]["end_offset"]
    shutil.rmtree(judged.kadds.log)
    original.rename(judged.kadds.log)
    subscriptions = judged.configuration["subscriptions"]
    judged.reconfigure(subscriptions={})
    judged.shop.change(200)
    judged.kadds.catch_up().check()
    assert judged.kadds.status()["log"]["end_offset"] > reached
    judged.reconfigure(subscriptions=subscriptions)


def move_on(judged: JudgedShop) -> None:
    judged.shop.change(50)
    judged.kadds.catch_up().check()


@pytest.mark.parametrize("happen", [wiped, older, copied_and_both_written])
def test_a_log_that_is_not_the_one_a_sink_was_filled_from_is_a_named_gap(
    tmp_path: Path, happen: Callable[[JudgedShop], None]
) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(100)
    judged.kadds.catch_up().check()

    happen(judged)
    before = filled(judged)
    judged.shop.change(50)
    done = judged.kadds.catch_up().check(1)
    assert "GapError" in done.said, done.said
    assert "hint" in done.said
    for subscription in SUBSCRIPTIONS:
        for table in judged.shop.tables:
            assert f"subscription:default/{subscription} default/shop/{table.name}" in done.said
    assert filled(judged) == before, "neither overwritten nor added to: what the owner reads is as old as it was"


def filled(judged: JudgedShop) -> dict[str, Any]:
    """What the owners of the sinks see."""
    states = {table.name: duckdb_table(judged.warehouse, table.name).to_pylist() for table in judged.shop.tables}
    return {**states, **{name: Lake(judged.folder / name).entries() for name in ("lake", "feed")}}


# ------------------------------------------------------------------------------------------------------------ the sink


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("id BIGINT, text VARCHAR, changed_at DATE, version BIGINT", "column changed_at is DATE"),
        ("id BIGINT, text VARCHAR, version BIGINT", "column changed_at is missing"),
        ("id BIGINT, text VARCHAR, changed_at TIMESTAMP, version BIGINT, more BLOB NOT NULL", "column more"),
    ],
)
def test_a_sink_table_of_another_shape_stops_only_that_table(tmp_path: Path, columns: str, words: str) -> None:
    judged = JudgedShop(tmp_path)
    with duckdb.connect(str(judged.warehouse)) as connection:
        connection.execute(f"CREATE TABLE note ({columns})")
    judged.shop.change(60)
    with judged.shop.changing(), judged.kadds.start() as running:
        status = judged.kadds.wait_for_status(lambda status: tables_of(status, "state").get("note", {}).get("problem"))
        note = tables_of(status, "state")["note"]
        assert note["state"] == "failed"
        assert note["problem"]["kind"] == "SchemaMismatchError"
        assert words in note["problem"]["message"]
        seen = judged.shop.read(READING).num_rows
        judged.kadds.wait_for_status(
            lambda status: tables_of(status, "state")["reading"]["rows"] > seen, waiting_for="the other tables to go on"
        )
        ended = running.terminate().check(1)
        assert "note" in ended.said
    done = judged.kadds.catch_up().check(1)
    assert words in done.said
    for table in (CUSTOMER, ORDER_LINE, READING):
        assert judged.faults_of_state(table) == []
    assert judged.faults_of_history(NOTE, "lake") == []


def test_a_duckdb_file_that_its_owner_has_open_is_waited_for(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(50)
    judged.kadds.catch_up().check()
    holder = (
        "import duckdb, sys; connection = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", holder, str(judged.warehouse)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        judged.shop.change(50)
        with judged.kadds.start() as running:
            status = judged.kadds.wait_for_status(
                lambda status: subscription_of(status, "state")["state"] == "waiting", waiting_for="the state waiting"
            )
            problem = subscription_of(status, "state")["problem"]
            assert str(judged.warehouse) in problem["waiting_for"]
            assert f"PID {owner.pid}" in problem["waiting_for"]
            shown = judged.kadds("status", "--config", str(judged.kadds.path)).check().stdout
            assert f"PID {owner.pid}" in shown
            wait_until(lambda: judged.faults_of_history(CUSTOMER, "lake") == [], 20, "the other sinks to go on")
            owner.communicate("close\n")
            judged.kadds.wait_for_status(
                lambda status: subscription_of(status, "state")["state"] == "idle", waiting_for="delivery to go on"
            )
            running.terminate().check()
    assert judged.faults() == {}


def test_until_caught_up_waits_for_the_owner_of_a_file(tmp_path: Path) -> None:
    judged = JudgedShop(tmp_path)
    judged.shop.change(20)
    with duckdb.connect(str(judged.warehouse)) as owner, judged.kadds.start("--until-caught-up") as running:
        judged.kadds.wait_for_status(lambda status: subscription_of(status, "state")["state"] == "waiting")
        assert running.process.poll() is None
        owner.close()
        running.wait().check()
    assert judged.faults() == {}
