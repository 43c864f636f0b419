"""`kill -9` at random moments under load: nothing is lost, nothing stands twice, in any sink.

A round starts `kadds run` over a shop that changes all the time and kills it: after a random time, at a random write
to a file of the log or of a sink, at a kind of file (a segment being sealed, a temporary file of a sink, DuckDB's own
journal), or at a line of its log. Every ten rounds, and at the end, Kadds catches up and all sinks are judged.

`KADDS_SOAK_ROUNDS` says how many rounds there are (`make soak ROUNDS=300`). Each prints a line with its seed; a round
is tried again with `KADDS_SOAK_SEED=<seed> KADDS_SOAK_ROUNDS=1`.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.file_events import FileEvents
from tests.support.judged_shop import SINKS, SUBSCRIPTIONS, JudgedShop
from tests.support.kadds_process import Running
from tests.support.oracle import is_same
from tests.support.targets import duckdb_table

ROUNDS = int(os.environ.get("KADDS_SOAK_ROUNDS", "10"))
FIRST_SEED = int(os.environ.get("KADDS_SOAK_SEED", "1"))
JUDGED_EVERY = 10
ROUNDS_OF_A_SHOP = 50  # then another one is opened, or judging takes longer than killing
LONGEST_SECONDS = 1.5  # from when the log is being opened; loading Python's libraries before that is not Kadds
STARTING_SECONDS = 30.0
SOURCE = "shop.db"
BOOKS = "books.duckdb"  # the same state as in the warehouse, by transactions

FILES = (
    ("created", "/segments/"),
    ("renamed", "/segments/"),
    ("closed", "/segments/"),
    ("deleted", "/journal/"),
    ("created", "/journal/"),
    ("written", "/journal/"),
    ("written", "MANIFEST"),
    ("written", "index.duckdb"),
    ("created", "warehouse.duckdb.wal"),
    ("deleted", "warehouse.duckdb.wal"),
    ("written", "warehouse.duckdb"),
    ("created", ".tmp-"),
    ("renamed", ".parquet"),
    ("renamed", ".jsonl"),
    ("written", "_manifest/"),
    ("created", "kadds.sock"),
)
LINES = ("first pass", "second pass", "third pass", "fourth pass", '"started"', '"running"', '"claimed"')


@dataclass(frozen=True)
class Moment:
    """When to kill: by `how`, with what belongs to it. The time is up after LONGEST_SECONDS in any case."""

    how: str
    seconds: float = 0.0
    times: int = 1
    what: str = ""
    where: str = ""

    @classmethod
    def chosen(cls, rng: random.Random) -> "Moment":
        """Half of all moments are of time or of any write, so that no moment is left out for want of a name."""
        how = rng.choice(["start", "time", "time", "time", "write", "write", "write", "file", "file", "file", "line"])
        if how in ("start", "time"):
            return cls(how, seconds=rng.uniform(0.0, LONGEST_SECONDS))
        if how == "write":
            return cls(how, times=int(2 ** rng.uniform(0, 9)))
        if how == "file":
            what, where = rng.choice(FILES)
            return cls(how, times=rng.randint(1, 2), what=what, where=where)
        return cls(how, what=rng.choice(LINES))

    def __str__(self) -> str:
        return {
            "start": f"{self.seconds:.3f} s after its start",
            "time": f"{self.seconds:.3f} s after it began to open the log",
            "line": f"at a line with {self.what}",
            "write": f"at write {self.times}",
            "file": f"when {self.where} is {self.what}, {self.times}×",
        }[self.how]

    def wait(self, running: Running, events: FileEvents) -> bool:
        """Whether it came before the time was up."""
        if self.how != "start":
            running.wait_for_line(lambda line: "opening" in line, STARTING_SECONDS)
        if self.how == "line":
            return running.wait_for_line(lambda line: self.what in line, LONGEST_SECONDS) is not None
        deadline = time.monotonic() + (self.seconds if self.how in ("start", "time") else LONGEST_SECONDS)
        seen = 0
        for what, path in events.until(deadline):
            if path.name.startswith(SOURCE):
                continue
            if self.how == "write" or (self.how == "file" and what == self.what and self.where in str(path)):
                seen += 1
                if seen == self.times:
                    return True
        return self.how in ("start", "time")


def kill_once(judged: JudgedShop, seed: int) -> str:
    """One round; what was done, in words."""
    rng = random.Random(seed)
    moment = Moment.chosen(rng)
    until_caught_up = rng.random() < 0.2
    drain_seconds = rng.uniform(0.0, 0.5) if rng.random() < 0.2 else None
    folders = [judged.folder / name for name in ("data/log", "lake", "feed")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    judged.shop.change(rng.randint(0, 40))
    began = time.monotonic()
    with judged.shop.changing(pace_seconds=0.01), FileEvents(judged.folder) as events:
        arguments = ["--until-caught-up"] if until_caught_up else []
        with judged.kadds.start(*arguments) as running:
            came = moment.wait(running, events)
            ended = running.process.poll()
            if drain_seconds is not None and ended is None:  # as a service manager does with what stops too slowly
                running.signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    running.process.wait(drain_seconds)
            running.kill()
        if ended is not None:
            assert until_caught_up, f"kadds ended with {ended} by itself:\n{running.said[-8000:]}"
            assert ended == 0, f"kadds ended with {ended}:\n{running.said[-8000:]}"
    fate = ", which never came" if not came else ", and had ended" if ended is not None else ""
    fate += f", {drain_seconds:.3f} s into its drain" if drain_seconds is not None else ""
    return f"killed {moment}{fate} ({time.monotonic() - began:.2f} s)"


def judge(judged: JudgedShop) -> None:
    """Catch up and look at every sink."""
    judged.kadds.catch_up().check()
    assert judged.faults() == {}
    for table in judged.shop.tables:
        assert is_same(judged.shop.read(table), duckdb_table(judged.folder / BOOKS, table.name)) == [], table.name
    left_over = [str(path) for path in judged.folder.rglob("*.tmp*")]
    assert left_over == []


@pytest.mark.soak
def test_nothing_is_lost_and_nothing_stands_twice_after_kills_at_random_moments(tmp_path: Path) -> None:
    judged = open_shop(tmp_path, FIRST_SEED)
    for number, seed in enumerate(range(FIRST_SEED, FIRST_SEED + ROUNDS), 1):
        say(f"round {number} of {ROUNDS}, seed {seed}: {kill_once(judged, seed)}")
        if number % JUDGED_EVERY == 0 or number == ROUNDS:
            began = time.monotonic()
            judge(judged)
            changes = sum(judged.shop.read_record(table).num_rows for table in judged.shop.tables)
            say(f"judged after seed {seed}: {changes} changes right in all sinks ({time.monotonic() - began:.2f} s)")
        if number % ROUNDS_OF_A_SHOP == 0:
            shutil.rmtree(judged.folder)
            judged = open_shop(tmp_path, seed + 1)


def open_shop(folder: Path, seed: int) -> JudgedShop:
    """A shop with all its sinks, one of them on a schedule, whose log is sealed all the time."""
    sinks = {**SINKS, "books": {**SINKS["warehouse"], "path": BOOKS}}
    subscriptions = {
        **SUBSCRIPTIONS,
        "feed": {**SUBSCRIPTIONS["feed"], "schedule": {"interval_seconds": 0.3}},
        "books": {**SUBSCRIPTIONS["state"], "sink": "books", "mode": "transactional"},
    }
    log = {"seal_after_seconds": 0.4}
    return JudgedShop(folder / str(seed), seed=seed, sinks=sinks, subscriptions=subscriptions, log=log)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
