"""`kadds run` as a process: exit codes, signals, the socket, restarts after a kill, and no secret in any output."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kadds.api.errors import KaddsError
from kadds.app import Place, ask
from tests.support.waiting import wait_until
from tests.unit.app.shops import KADDS, Shop, clean_environment, json_lines

CANARY = "canary-4711"


@contextmanager
def running(shop: Shop, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = shop.start("run", "kadds.yml", environment=environment)
    try:
        wait_until(lambda: process.poll() is not None or is_running(shop), waiting_for="kadds run")
        assert process.poll() is None, process.communicate()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def status(shop: Shop) -> dict[str, Any]:
    try:
        return dict(ask(Place(shop.log), "status", patience_seconds=0.1))
    except KaddsError:
        return {"running": False, "subscriptions": []}


def is_running(shop: Shop) -> bool:
    return bool(status(shop)["running"])


def delivered(shop: Shop) -> int:
    return sum(one["rows"] or 0 for one in status(shop)["subscriptions"])


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, json_lines(said)


# --------------------------------------------------------------------------------------------------------- exit codes


def test_until_caught_up_ends_with_0_and_says_so_in_json_lines(shop: Shop) -> None:
    shop.add_orders(1, 101)
    result = shop.kadds("run", "kadds.yml", "--until-caught-up")
    assert result.returncode == 0, result.stderr
    assert len(shop.delivered()) == 100
    *_, ended = json_lines(result.stderr)
    assert (ended["event"], ended["exit_code"], ended["failed"]) == ("ended", 0, [])
    assert all({"event", "level", "timestamp"} <= set(line) for line in json_lines(result.stderr))
    assert "somebody" not in result.stderr, "row values do not belong into logs"


def test_a_table_that_fails_ends_with_1_and_its_name_while_the_others_arrive(shop: Shop) -> None:
    shop.add_orders(1, 4)
    shop.execute("CREATE TABLE notes (id INTEGER NOT NULL, text TEXT); INSERT INTO notes VALUES (1, 'x')")
    result = shop.kadds("run", "kadds.yml", "--until-caught-up")
    assert result.returncode == 1
    *_, ended = json_lines(result.stderr)
    assert [name for name in ended["failed"] if "notes" in name]
    assert len(shop.delivered()) == 3


@pytest.mark.parametrize(
    "text",
    [
        "log: {path: log}\nsources: {shop: {connector: nothing}}\n",
        "log: {colour: red}\n",
        "a: b: c\n",
        "log: {path: ${X}}\n",
    ],
)
def test_a_wrong_configuration_ends_with_2_and_a_place(shop: Shop, text: str) -> None:
    shop.config.write_text(text)
    result = shop.kadds("run", "kadds.yml")
    assert result.returncode == 2
    assert "kadds.yml:" in result.stderr
    assert "Traceback" not in result.stderr
    assert not shop.log.exists()


def test_a_second_process_on_the_folder_ends_with_1_and_names_the_first(shop: Shop) -> None:
    with running(shop) as process:
        result = shop.kadds("run", "kadds.yml")
        assert result.returncode == 1
        assert f"held by process {process.pid}" in result.stderr


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_it_well(shop: Shop, number: int) -> None:
    shop.add_orders(1, 11)
    with running(shop) as process:
        wait_until(lambda: delivered(shop) == 10, waiting_for="the rows")
        code, said = end(process, number)
    assert code == 0
    assert said[-1]["event"] == "ended"
    assert len(shop.delivered()) == 10
    assert not list(shop.log.glob("*.sock"))


def test_a_signal_after_a_failure_ends_with_1(shop: Shop) -> None:
    shop.execute("CREATE TABLE notes (id INTEGER NOT NULL, text TEXT); INSERT INTO notes VALUES (1, 'x')")
    with running(shop) as process:
        wait_until(lambda: [s for s in status(shop)["subscriptions"] if s["failed_tables"]], waiting_for="the failure")
        code, _ = end(process)
    assert code == 1


def test_a_second_signal_ends_it_at_once(shop: Shop) -> None:
    with running(shop) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)
        started = time.monotonic()
        os.kill(process.pid, signal.SIGCONT)
        process.communicate(timeout=30)
        assert process.returncode == 1
        assert time.monotonic() - started < 10


def test_after_a_kill_the_next_run_goes_on_and_the_old_socket_is_no_obstacle(shop: Shop) -> None:
    shop.add_orders(1, 11)
    with running(shop) as process:
        wait_until(lambda: delivered(shop) == 10, waiting_for="the rows")
        process.kill()
        process.communicate()
    assert list(shop.log.glob("*.sock")), "the killed process had no chance to take it away"
    shop.add_orders(11, 21)
    assert shop.kadds("status").returncode == 0
    with running(shop) as process:
        wait_until(lambda: delivered(shop) == 10, waiting_for="the new rows, and those alone")
        assert end(process)[0] == 0
    assert len(shop.delivered()) == 20


# --------------------------------------------------------------------------------------------------- while it runs


def test_commands_reach_the_process_that_runs(shop: Shop) -> None:
    shop.add_orders(1, 4)
    with running(shop) as process:
        wait_until(lambda: delivered(shop) == 3, waiting_for="the rows")
        plain = json.loads(shop.kadds("status", "--json").stdout)
        assert (plain["running"], plain["pid"]) == (True, process.pid)
        assert "running since" in shop.kadds("status").stdout
        assert shop.kadds("subscription", "pause", "shop-to-warehouse").returncode == 0
        shop.add_orders(4, 6)
        wait_until(lambda: status(shop)["sources"][0]["rows"] == 5, waiting_for="capture, which is not paused")
        assert delivered(shop) == 3
        assert shop.kadds("subscription", "resume", "shop-to-warehouse").returncode == 0
        wait_until(lambda: delivered(shop) == 5, waiting_for="the rest")
        read = json_lines(shop.kadds("log", "read", "--stream", "orders", "--json").stdout)
        assert [one["values"]["id"] for one in read if one["type"] == "change"] == [1, 2, 3, 4, 5]


def test_the_log_can_be_followed(shop: Shop) -> None:
    with running(shop):
        wait_until(lambda: status(shop)["sources"][0]["tables"], waiting_for="the tables")
        cursor = status(shop)["log"]["end"]
        following = shop.start("log", "tail", "--from", cursor, "--limit", "3", "--json")
        shop.add_orders(1, 4)
        said, complaint = following.communicate(timeout=60)
        assert following.returncode == 0, complaint
        assert [one["values"]["id"] for one in json_lines(said) if one["type"] == "change"]


def test_a_sink_registered_while_it_runs_is_used_after_a_restart(shop: Shop) -> None:
    shop.add_orders(1, 4)
    with running(shop) as process:
        registered = shop.kadds("sink", "register", "copy", "--connector", "duckdb", "--set", "path=${COPY}")
        assert registered.returncode == 2, "the process that runs has no variable COPY"
        assert end(process)[0] == 0
    environment = {"COPY": str(shop.folder / "copy.duckdb")}
    with running(shop, **environment) as process:
        registered = shop.kadds("sink", "register", "copy", "--connector", "duckdb", "--set", "path=${COPY}")
        assert registered.returncode == 0, registered.stderr
        assert shop.kadds("sink", "test", "copy").returncode == 0
        assert end(process)[0] == 0
    shop.configure(sinks=None, subscriptions={"copied": {**shop.subscription(sink="copy")["shop-to-warehouse"]}})
    result = shop.kadds("run", "kadds.yml", "--until-caught-up", environment=environment)
    assert result.returncode == 0, result.stderr
    assert len(shop.delivered(file="copy.duckdb")) == 3


def test_metrics_and_probes_answer(shop: Shop) -> None:
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shop.configure(metrics={"listen": f"127.0.0.1:{port}"})
    with running(shop):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"kadds_source_state" in answer.read()


# ----------------------------------------------------------------------------------------------------------- a person


def test_a_person_at_a_terminal_sees_a_table_and_each_failure_once(shop: Shop) -> None:
    shop.add_orders(1, 4)
    shop.execute("CREATE TABLE notes (id INTEGER NOT NULL, text TEXT); INSERT INTO notes VALUES (1, 'x')")
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [*KADDS, "run", "kadds.yml", "--until-caught-up"], cwd=shop.folder, stderr=theirs, stdout=theirs,
        env=clean_environment({"COLUMNS": "160", "TERM": "xterm"}),
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # what a terminal says when its last writer is gone
        while piece := os.read(terminal, 4096):
            seen += piece
    os.close(terminal)
    assert process.wait(60) == 1
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", seen).decode()
    assert "shop/orders" in text
    assert "rows/s" in text
    assert text.count("hint: give it a key") == 1
    assert "ended with exit code 1" in text


# ------------------------------------------------------------------------------------------------------------ secrets


def test_no_secret_reaches_any_output_or_file(shop: Shop, tmp_path: Path) -> None:
    """The password is wrong and the server is not there: every message about it comes from a driver."""
    broken = {
        "connector": "polling",
        "url": "${BROKEN_URL}",
        "tables": ["*"],
        "schedule": {"interval_seconds": 3600},
    }
    shop.configure(
        tenants={"default": {"mask_key": "${KEY}"}},
        sources={**shop.source(), "broken": {**broken, "tables": {"*": {"incrementing": "id"}}}},
        subscriptions=shop.subscription(tables={"*": {}, "orders": {"mask": {"customer": "hash"}}}),
    )
    environment = {
        "KEY": f"{CANARY}-key-of-masks",
        "BROKEN_URL": f"postgresql://somebody:{CANARY}-password@127.0.0.1:1/nothing",
    }
    shop.add_orders(1, 3, customer="rowvalue")
    with running(shop, **environment) as process:
        wait_until(lambda: delivered(shop) == 2, waiting_for="the rows")
        wait_until(
            lambda: [s for s in status(shop)["sources"] if s["name"] == "default/broken" and s["problem"]],
            waiting_for="the failure to be seen",
        )
        commands = ("status", "status --json", "source show broken --json", "jobs list", "validate", "validate --show")
        outputs = [shop.kadds(*command.split(), environment=environment) for command in commands]
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)
    texts = [*said, *(text for result in outputs for text in (result.stdout, result.stderr))]
    assert CANARY not in "".join(texts)
    assert "rowvalue" not in "".join(said)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
