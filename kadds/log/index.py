"""The index: which extents of which segments hold a stream, and what the sealed streams are called.

Derived: everything in it stands in the footers of the segments too, so a file that is missing, torn or from another log
is thrown away and made again. It is written in bulk, once a sealing, never per append. The extent table has no primary
key (10 M extents: 34 MB and 2.5 ms a look-up without, 907 MB and 11 ms with one).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from kadds.log.dictionary import SealedStreams
from kadds.log.segment import Segment
from kadds.log.stream import SYSTEM, Stream

INDEX_NAME = "index.duckdb"
_VERSION = 1
_TABLES = """
    CREATE TABLE about(version INTEGER, log VARCHAR);
    CREATE TABLE segments(number BIGINT, first_offset BIGINT, end_offset BIGINT, min_committed_at BIGINT,
                          max_committed_at BIGINT);
    CREATE TABLE extents(segment BIGINT, block INTEGER, stream BIGINT, layout INTEGER, start INTEGER, rows INTEGER,
                         first_offset BIGINT, last_offset BIGINT);
    CREATE TABLE streams(id BIGINT, name VARCHAR, incarnation INTEGER, token VARCHAR, source VARCHAR);
"""


class Index(SealedStreams):
    """The DuckDB file beside the segments; thread-safe."""

    def __init__(self, folder: Path, log: str, *, memory_bytes: int, narrate: Callable[[str], None]) -> None:
        self._path = folder / INDEX_NAME
        self._lock = threading.Lock()
        self._memory_bytes = memory_bytes
        self._connection = self._open(log, narrate)

    def _connect(self) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(
            str(self._path),
            config={
                "threads": 2,
                "memory_limit": f"{max(64, self._memory_bytes >> 20)}MiB",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )

    def _open(self, log: str, narrate: Callable[[str], None]) -> duckdb.DuckDBPyConnection:
        if self._path.exists():
            try:
                connection = self._connect()
                if connection.execute("SELECT version, log FROM about").fetchall() == [(_VERSION, log)]:
                    return connection
                connection.close()
                reason = "it belongs to another log or version"
            except duckdb.Error as error:
                reason = str(error).splitlines()[0]
            narrate(f"the index is made again from the segments: {reason}")
        for leftover in (self._path, self._path.with_name(INDEX_NAME + ".wal")):
            leftover.unlink(missing_ok=True)
        connection = self._connect()
        connection.execute("BEGIN")
        connection.execute(_TABLES)
        connection.execute("INSERT INTO about VALUES (?, ?)", [_VERSION, log])
        connection.execute("COMMIT")
        return connection

    def segments(self) -> set[int]:
        """The numbers of the segments that it knows."""
        with self._lock:
            return {number for (number,) in self._connection.execute("SELECT number FROM segments").fetchall()}

    def complete(self, segments: Sequence[Segment]) -> int:
        """Take the segments that it does not know, starting anew if it knows one that is not live; how many."""
        known, live = self.segments(), {segment.number for segment in segments}
        if known - live:
            with self._lock:
                for table in ("segments", "extents", "streams"):
                    self._connection.execute(f"DELETE FROM {table}")
            known = set()
        missing = [segment for segment in segments if segment.number not in known]
        for segment in missing:
            self.add(segment)
        return len(missing)

    def add(self, segment: Segment) -> None:
        """Take a segment's extents and streams, in one transaction."""
        extents, streams = segment.extents, segment.streams()
        times = segment.footer["committed_at"] or [None, None]
        with self._lock:
            run = self._connection.execute
            run("BEGIN")
            try:
                run(
                    "INSERT INTO segments VALUES (?, ?, ?, ?, ?)",
                    [segment.number, segment.first_offset, segment.end_offset, *times],
                )
                self._connection.register("new_extents", extents)
                self._connection.register("new_streams", streams)
                run(
                    "INSERT INTO extents SELECT ?, block, stream, layout, start, rows, first_offset, last_offset "
                    "FROM new_extents ORDER BY stream, first_offset",
                    [segment.number],
                )
                run(
                    "INSERT INTO streams SELECT id, name, incarnation, token, left(name, length(name) - "
                    "length(split_part(name, '/', 3)) - 1) FROM new_streams "
                    "WHERE id NOT IN (SELECT id FROM streams)"
                )
                run("COMMIT")
            except BaseException:
                run("ROLLBACK")
                raise
            finally:
                self._connection.unregister("new_extents")
                self._connection.unregister("new_streams")

    def extents(self, stream: int, first: int, end: int) -> list[tuple[int, int, int, int]]:
        """(segment, block, start, rows) of the extents of a stream that may hold offsets in [first, end), in order."""
        with self._lock:
            return self._connection.execute(
                "SELECT segment, block, start, rows FROM extents WHERE stream = ? AND last_offset >= ? "
                "AND first_offset < ? ORDER BY first_offset",
                [stream, first, end],
            ).fetchall()

    def named(self, names: Sequence[str]) -> list[Stream]:
        """The sealed streams with any of these names."""
        wanted = pa.table({"name": pa.array(names, pa.string())})
        with self._lock:
            self._connection.register("wanted", wanted)
            rows = self._connection.execute(
                "SELECT id, name, incarnation, token FROM streams SEMI JOIN wanted USING (name) ORDER BY id"
            ).fetchall()
            self._connection.unregister("wanted")
        return [Stream(*row) for row in rows]

    def with_ids(self, ids: Sequence[int]) -> list[Stream]:
        """The sealed streams with these ids."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, name, incarnation, token FROM streams WHERE id IN (SELECT unnest(?::BIGINT[]))", [list(ids)]
            ).fetchall()
        return [Stream(*row) for row in rows]

    def of_source(self, source: str | None) -> list[Stream]:
        """The sealed streams of a source, or all but the system's."""
        where, values = ("source = ?", [source]) if source else ("split_part(name, '/', 2) <> ?", [SYSTEM])
        with self._lock:
            rows = self._connection.execute(
                f"SELECT id, name, incarnation, token FROM streams WHERE {where} ORDER BY id", values
            ).fetchall()
        return [Stream(*row) for row in rows]

    def close(self) -> None:
        """Write it out and let the file go."""
        with self._lock:
            self._connection.close()
