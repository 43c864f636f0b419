#!/usr/bin/env python3
"""PostgreSQL beside its yardsticks: capture into the log, PostgreSQL to PostgreSQL, commit to visible.

    python benchmarks/postgres.py [--quick] [--debezium] [--only capture|delivery|latency ...]
        [--rows 1000000] [--rows-per-transaction 1000] [--tables 1] [--seconds 15]

Two PostgreSQL clusters of its own, with fsync; one backlog, and every peer reads it from a slot of its own, in turn.
Each line is a JSON object: `figure`, `value` with its `unit`, the `peer` of the same run (or null), `peer_value`,
`ratio` (value ÷ peer: of rates more is better, of times less), `seconds`, `cpu_seconds_per_million` changes of all
processes concerned, servers included, and the shape: `rows`, `row`, `rows_per_transaction`, `tables`.

  capture   `pg_recvlogical` to /dev/null | Kadds, until its log has everything on disk | Debezium's engine, which keeps
            nothing. Kadds' log is read afterwards: it has every change.
  delivery  PostgreSQL's own subscription | Kadds, log and exactly once included. Inserts, and a mix of 45 % updates,
            37 % inserts, 18 % deletes. Ends when the target shows everything; a target that is not equal to its source
            afterwards fails the benchmark.
  latency   200 single-row commits a second: from the end of a commit to the row's being seen at the target.

Processes that start are not measured: the time runs from the moment the server streams, with Debezium from its first
event. The row is the yardstick: bigint key, int, numeric(12,2), text, timestamptz, text (docs/decisions/0001).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import debezium, postgres, workload
from benchmarks.peers.kadds_run import KaddsRun
from benchmarks.peers.latency import COMMITS_PER_SECOND, commit_to_visible
from benchmarks.peers.processes import Stopwatch
from benchmarks.peers.workload import Connection, Shape
from tests.support.servers import PostgresServer, ServerMissingError


class Bench:
    """Two servers, the options, and where figures go."""

    def __init__(self, folder: Path, source: PostgresServer, target: PostgresServer, arguments: Any) -> None:
        self.folder, self.source, self.target = folder, source, target
        self.shape = Shape(arguments.rows, arguments.rows_per_transaction, arguments.tables)
        self.seconds: float = arguments.seconds
        self.with_debezium: bool = arguments.debezium
        self.source_options: dict[str, Any] = {"isolation": arguments.isolation} if arguments.isolation else {}

    def line(
        self, figure: str, value: float, unit: str, *, peer: str = "", peer_value: float = 0.0, **more: Any
    ) -> None:
        """One figure; what it does not have is null."""
        plain = {
            "figure": figure,
            "value": round(value, 3),
            "unit": unit,
            "peer": peer or None,
            "peer_value": round(peer_value, 3) if peer else None,
            "ratio": round(value / peer_value, 3) if peer_value else None,
        }
        print(json.dumps(plain | more), flush=True)

    def rate(self, figure: str, took: Stopwatch, *peers: tuple[str, Stopwatch]) -> None:
        """Changes a second, one line for each peer."""
        changes = self.shape.changes
        for peer, other in peers or [("", None)]:
            self.line(
                figure,
                changes / took.seconds,
                "changes/s",
                peer=peer,
                peer_value=changes / other.seconds if other else 0.0,
                seconds=round(took.seconds, 3),
                cpu_seconds_per_million=round(took.cpu_seconds * 1e6 / changes, 2),
                **self.shape.facts(),
            )

    @contextmanager
    def database(self, name: str) -> Iterator[Connection]:
        """A new database of tables at the source, published; at its end without slots, so that nothing waits for it."""
        self.source.create_database(name)
        with postgres.connect(self.source, name) as connection:
            workload.create_tables(connection, self.shape)
            connection.execute(f"CREATE PUBLICATION {postgres.PUBLICATION} FOR ALL TABLES")
            yield connection
            postgres.drop_slots(connection)

    @contextmanager
    def target_database(self, name: str, *, base: bool = False) -> Iterator[Connection]:
        """The same tables at the target; with `base`, those rows that a mix finds."""
        self.target.create_database(name)
        with postgres.connect(self.target, name) as connection:
            workload.create_tables(connection, self.shape)
            if base:
                workload.write_base(connection, self.shape)
            connection.execute("VACUUM ANALYZE")
            connection.execute("CHECKPOINT")
            yield connection

    def kadds(self, name: str, database: str, target: str | None = None) -> KaddsRun:
        """Kadds with a slot that holds what comes from now on."""
        where = (self.target, target) if target else None
        run = KaddsRun(self.folder / name, self.source, database, slot=name, target=where, options=self.source_options)
        run.prepare()
        return run


def capture(bench: Bench) -> None:
    """Into nothing, into the log, into a consumer that counts."""
    with bench.database("capture") as source:
        for slot in ("limit", "debezium"):
            postgres.create_slot(source, slot)
        kadds = bench.kadds("kadds_capture", "capture")
        workload.write_inserts(source, bench.shape)
        end = postgres.written_up_to(source)
        limit = postgres.receive(bench.source, "capture", slot="limit", end=end)
        bench.rate("capture.pg_recvlogical", limit)
        peers = [("pg_recvlogical", limit)]
        if bench.with_debezium:
            drained = debezium.drain(
                bench.source,
                "capture",
                slot="debezium",
                publication=postgres.PUBLICATION,
                changes=bench.shape.changes,
                folder=bench.folder / "debezium",
            )
            bench.rate("capture.debezium", drained, *peers)
            peers.append(("Debezium engine", drained))
        bench.rate("capture.kadds", kadds.capture(bench.shape), *peers)


def delivery(bench: Bench) -> None:
    """Inserts into empty tables, then a mix into tables that have rows."""
    _delivery(bench, "inserts", workload.write_inserts, base=False)
    _delivery(bench, "mix", workload.write_mix, base=True)


def _delivery(bench: Bench, name: str, write: Callable[[Connection, Shape], None], *, base: bool) -> None:
    own, ours = f"{name}_native", f"{name}_kadds"
    with ExitStack() as stack:
        source = stack.enter_context(bench.database(name))
        if base:
            workload.write_base(source, bench.shape)
        at_native = stack.enter_context(bench.target_database(own, base=base))
        at_kadds = stack.enter_context(bench.target_database(ours, base=base))
        postgres.create_slot(source, own)
        kadds = bench.kadds(ours, name, ours)
        write(source, bench.shape)
        postgres.written_up_to(source)
        native = postgres.subscribe(bench.source, bench.target, (name, own), slot=own, shape=bench.shape)
        bench.rate(f"delivery.{name}.subscription", native)
        workload.refuse_difference(source, at_native, bench.shape)
        at_kadds.execute("CHECKPOINT")  # what the other has left to write is not ours
        took = kadds.deliver(bench.shape, at_kadds)
        workload.refuse_difference(source, at_kadds, bench.shape)
        bench.rate(f"delivery.{name}.kadds", took, ("PostgreSQL subscription", native))


def latency(bench: Bench) -> None:
    """One row a transaction into one table, with time between them."""
    single = replace(bench.shape, tables=1)
    bench.shape, given = single, bench.shape
    with ExitStack() as stack:
        source = stack.enter_context(bench.database("latency"))
        at_native = stack.enter_context(bench.target_database("latency_native"))
        stack.enter_context(bench.target_database("latency_kadds"))
        kadds = bench.kadds("latency_kadds", "latency", "latency_kadds")
        url = postgres.address(bench.source, "latency")
        postgres.create_slot(source, "latency_native")
        with postgres.subscribed(at_native, url, slot="latency_native"):
            native = commit_to_visible(
                url, postgres.address(bench.target, "latency_native"), first=1, seconds=bench.seconds
            )
        with kadds.streaming() as (run, stopwatch):
            ours = commit_to_visible(
                url, postgres.address(bench.target, "latency_kadds"), first=1 << 30, seconds=bench.seconds
            )
            stopwatch.stop()
            run.terminate().check()
    for percent in (50, 99):
        facts: dict[str, Any] = {"rows": len(ours), "row": "yardstick", "rows_per_transaction": 1, "tables": 1}
        facts |= {"commits_per_second": COMMITS_PER_SECOND}
        peer = float(np.percentile(native, percent))
        bench.line(f"latency.subscription.p{percent}", peer, "ms", **facts)
        bench.line(
            f"latency.kadds.p{percent}",
            float(np.percentile(ours, percent)),
            "ms",
            peer="PostgreSQL subscription",
            peer_value=peer,
            **facts,
        )
    bench.shape = given


FIGURES: dict[str, Callable[[Bench], None]] = {"capture": capture, "delivery": delivery, "latency": latency}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, 5 seconds of commits")
    parser.add_argument("--rows", type=int, default=1_000_000, help="changes of a backlog")
    parser.add_argument("--rows-per-transaction", type=int, default=1000)
    parser.add_argument("--tables", type=int, default=1, help="each transaction goes to the next")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long latency is measured")
    parser.add_argument(
        "--debezium", action="store_true", help="run Debezium's engine too; needs a JDK and kadds[bench]"
    )
    parser.add_argument("--isolation", help="of Kadds' source; not given: its default")
    parser.add_argument("--only", nargs="*", choices=sorted(FIGURES), default=list(FIGURES))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.seconds = arguments.rows // 10, min(arguments.seconds, 5.0)
    folder = Path(tempfile.mkdtemp(prefix="kadds-bench-"))
    try:
        if arguments.debezium:
            debezium.jars()
        with (
            PostgresServer(postgres.SETTINGS, fsync=True) as source,
            PostgresServer(postgres.SETTINGS, fsync=True) as target,
        ):
            bench = Bench(folder, source, target, arguments)
            for name in arguments.only:
                FIGURES[name](bench)
    except (debezium.PeerMissingError, ServerMissingError) as missing:
        sys.exit(str(missing))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
