"""`kill -9` of Kadds, of the source and of the target at random moments under load: nothing is lost, nothing is twice.

A round starts `kadds run` over twenty tables that three writers change, waits for a moment (a time, a write to a file
of the log, a line that it says) and kills Kadds, or a server, which is then started again on its data while Kadds waits
for it. Some rounds begin with an empty log, so that the snapshot is killed as well. Every few rounds the writers stop,
Kadds catches up, and source, log, state, books and history are judged.

`KADDS_SOAK_ROUNDS` says how often Kadds is killed (`make soak ROUNDS=300`); each server is killed a tenth as often, and
at least twice. Each round prints a line with its seed and what it kills; one is tried again with
`KADDS_SOAK_SEED=<seed> KADDS_SOAK_KILLS=<kadds|source|target> KADDS_SOAK_ROUNDS=1`.
"""

import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.file_events import FileEvents
from tests.support.kadds_process import Running
from tests.support.postgres_bed import PostgresBed
from tests.support.postgres_tables import scaled
from tests.support.postgres_writers import PostgresWriters
from tests.support.servers import PostgresServer

pytestmark = [pytest.mark.own_server("postgres"), pytest.mark.soak]
ROUNDS = int(os.environ.get("KADDS_SOAK_ROUNDS", "10"))
FIRST_SEED = int(os.environ.get("KADDS_SOAK_SEED", "1"))
KILLS = os.environ.get("KADDS_SOAK_KILLS")
assert KILLS in (None, "kadds", "source", "target"), f"KADDS_SOAK_KILLS is {KILLS!r}; it is kadds, source or target"
ROUNDS_OF_A_BED = 7  # then another begins, with an empty log
LONGEST_SECONDS = 2.5  # from when the log is being opened; loading Python's libraries before that is not Kadds
STARTING_SECONDS = 30.0
TABLES = scaled(4000)

FILES = (
    ("created", "/segments/"),
    ("closed", "/segments/"),
    ("deleted", "/journal/"),
    ("created", "/journal/"),
    ("written", "/journal/"),
    ("written", "MANIFEST"),
    ("created", "kadds.sock"),
)
LINES = ("first pass", "fourth pass", '"started"', '"running"', '"claimed"', "snapshot")


def wait_for_moment(rng: random.Random, running: Running, log: Path) -> str:
    """Waits for a moment of `rng`'s choice; which it was, in words."""
    how = rng.choice(["time", "time", "time", "write", "write", "file", "line"])
    seconds = rng.uniform(0.0, LONGEST_SECONDS)
    if how == "line":
        wanted = rng.choice(LINES)
        running.wait_for_line(lambda line: wanted in line, STARTING_SECONDS / 4)
        return f"at a line with {wanted}"
    log.mkdir(parents=True, exist_ok=True, mode=0o700)
    times, (what, where) = int(2 ** rng.uniform(0, 9)), rng.choice(FILES)
    times = times if how == "write" else rng.randint(1, 2)
    with FileEvents(log) as events:
        running.wait_for_line(lambda line: "opening" in line, STARTING_SECONDS)
        deadline = time.monotonic() + seconds if how == "time" else time.monotonic() + LONGEST_SECONDS
        for done, path in events.until(deadline):
            if how == "write" or (how == "file" and done == what and where in str(path)):
                times -= 1
                if times == 0:
                    break
    return {
        "time": f"{seconds:.3f} s after it began to open the log",
        "write": "at a write to the log",
        "file": f"when {where} is {what}",
    }[how]


def kill_once(bed: PostgresBed, servers: dict[str, PostgresServer], seed: int, kills: str) -> str:
    """One round; what was done, in words."""
    rng = random.Random(f"{seed} {kills}")
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(
            PostgresWriters(
                bed.source_url, TABLES, seed=seed, pace_seconds=0.005, rows_max=1000, outages=kills == "source"
            )
        )
        running = stack.enter_context(bed.kadds.start())
        moment = wait_for_moment(rng, running, bed.kadds.log)
        if kills in servers:
            servers[kills].kill()
            servers[kills].start()
            moment += f", and kadds {wait_for_moment(rng, running, bed.kadds.log)}"
        ended = running.process.poll()
        running.kill()
    assert ended is None, f"kadds ended with {ended} by itself:\n{running.said[-8000:]}"
    return f"{kills} killed {moment} ({time.monotonic() - began:.2f} s)"


def plan() -> Iterator[tuple[int, str]]:
    """The rounds in their order: seed, and what it kills."""
    servers = max(2, ROUNDS // 10)
    if KILLS:
        yield from ((seed, KILLS) for seed in range(FIRST_SEED, FIRST_SEED + ROUNDS))
        return
    kills = ["kadds"] * ROUNDS + ["source", "target"] * servers
    random.Random(FIRST_SEED).shuffle(kills)
    yield from zip(range(FIRST_SEED, FIRST_SEED + len(kills)), kills, strict=True)


def judge(bed: PostgresBed, seed: int) -> None:
    began = time.monotonic()
    bed.kadds.catch_up().check()
    caught_up = time.monotonic()
    assert bed.faults() == {}
    took = f"caught up in {caught_up - began:.2f} s, judged in {time.monotonic() - caught_up:.2f} s"
    say(f"after seed {seed}: {bed.committed()} transactions are right everywhere ({took})")


def test_nothing_is_lost_and_nothing_is_twice_after_kills_of_kadds_and_of_the_servers(tmp_path: Path) -> None:
    rounds = list(plan())
    with PostgresServer({"wal_level": "logical"}) as source, PostgresServer() as target:
        servers = {"source": source, "target": target}
        for first in range(0, len(rounds), ROUNDS_OF_A_BED):
            some = rounds[first : first + ROUNDS_OF_A_BED]
            folder = tmp_path / str(first)
            with PostgresBed(
                folder, source=source, target=target, tables=TABLES, log={"seal_after_seconds": 0.7}
            ) as bed:
                for number, (seed, kills) in enumerate(some, first + 1):
                    say(f"round {number} of {len(rounds)}, seed {seed}: {kill_once(bed, servers, seed, kills)}")
                judge(bed, some[-1][0])


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
