"""The index: which extents of which segments hold a stream, and what the sealed streams are called.

Derived: everything in it stands in the footers of the segments too, so a file that is missing, torn or from another log
is thrown away and made again. It is written in bulk, once a sealing, never per append. The extent table has no primary
key (10 M extents: 34 MB and 2.5 ms a look-up without, 907 MB and 11 ms with one).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from kadds.api.errors import KaddsError
from kadds.log.dictionary import SealedStreams
from kadds.log.segment import Segment
from kadds.log.stream import SYSTEM, Stream

INDEX_NAME = "index.duckdb"
_VERSION = 2
_TABLES = """
    CREATE TABLE about(version INTEGER, log VARCHAR);
    CREATE TABLE segments(number BIGINT, fingerprint VARCHAR, first_offset BIGINT, end_offset BIGINT,
                          min_committed_at BIGINT, max_committed_at BIGINT);
    CREATE TABLE extents(segment BIGINT, block INTEGER, stream BIGINT, layout INTEGER, start INTEGER, rows INTEGER,
                         first_offset BIGINT, last_offset BIGINT);
    CREATE TABLE streams(id BIGINT, name VARCHAR, incarnation INTEGER, token VARCHAR, source VARCHAR);
"""


class Index(SealedStreams):
    """The DuckDB file beside the segments; thread-safe."""

    def __init__(
        self, folder: Path, log: str, *, memory_bytes: int, narrate: Callable[[str], None], writable: bool = True
    ) -> None:
        self._path = folder / INDEX_NAME
        self._lock = threading.Lock()
        self._memory_bytes = memory_bytes
        self._log = log
        self._narrate = narrate
        self._writable = writable
        self._connection: duckdb.DuckDBPyConnection | None = None  # none is needed until there is a segment

    def _connect(self, database: str, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
        return duckdb.connect(
            database,
            read_only=read_only,
            config={
                "threads": 2,
                "memory_limit": f"{max(64, self._memory_bytes >> 20)}MiB",
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )

    def _open(self) -> duckdb.DuckDBPyConnection:
        """The index as it is, if every byte of it can be read; otherwise a new one.

        A log that is opened for reading only has a new one in memory: DuckDB writes when it finds a write-ahead log.
        """
        leftovers = (self._path, self._path.with_name(INDEX_NAME + ".wal"))
        if self._path.exists() and (self._writable or not leftovers[1].exists()):
            reason = self._why_unusable()
            if not reason:
                return self._connect(str(self._path), read_only=not self._writable)
            self._narrate(f"the index is made again from the segments: {reason}")
        return self._new(leftovers)

    def _why_unusable(self) -> str:
        """Why the file cannot be used, "" if it can; DuckDB verifies a block's checksum when it is read."""
        try:
            connection = self._connect(str(self._path), read_only=not self._writable)
        except duckdb.Error as error:
            return str(error).splitlines()[0]
        try:
            if connection.execute("SELECT version, log FROM about").fetchall() != [(_VERSION, self._log)]:
                return "it belongs to another log or version"
            for table in ("segments", "extents", "streams"):
                connection.execute(f"SELECT max(hash(t)) FROM {table} t").fetchall()
        except duckdb.Error as error:
            return str(error).splitlines()[0]
        finally:
            connection.close()
        return ""

    def _new(self, leftovers: Sequence[Path] = ()) -> duckdb.DuckDBPyConnection:
        if self._writable:
            for leftover in leftovers:
                leftover.unlink(missing_ok=True)
        connection = self._connect(str(self._path) if self._writable else ":memory:")
        connection.execute("BEGIN")
        connection.execute(_TABLES)
        connection.execute("INSERT INTO about VALUES (?, ?)", [_VERSION, self._log])
        connection.execute("COMMIT")
        return connection

    @contextlib.contextmanager
    def _asked(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, for one thread; what DuckDB raises is an error of the log."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
            except duckdb.Error as error:
                raise KaddsError(
                    f"the index does not answer: {str(error).splitlines()[0]}",
                    where=str(self._path),
                    hint="it is derived from the segments and made again when the log is opened: start Kadds again, "
                    f"if need be without the file {INDEX_NAME}",
                ) from error

    def complete(self, segments: Sequence[Segment]) -> int:
        """Take the segments that it does not know, starting anew if it knows one that is not live; how many."""
        if not segments:
            return 0
        live = {(segment.number, segment.fingerprint) for segment in segments}
        with self._asked() as connection:
            known = set(connection.execute("SELECT number, fingerprint FROM segments").fetchall())
            stale, unknown = known - live, live - known
            if stale or (unknown and not self._writable):
                connection.close()
                self._connection = self._new((self._path,))
                known = set()
        missing = [segment for segment in segments if (segment.number, segment.fingerprint) not in known]
        for segment in missing:
            self._add(segment)
        return len(missing)

    def move_to_memory(self, segments: Sequence[Segment]) -> None:
        """Leave the file, which took no more, as it is, and know these segments in memory."""
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(duckdb.Error):
                    self._connection.close()
            self._writable = False
            self._connection = self._new()
        for segment in segments:
            self._add(segment)

    def add(self, segment: Segment) -> None:
        """Take a segment's extents and streams, in one transaction."""
        if self._connection is None:
            self.complete([segment])  # the first of the log: what the file may know is of another
        else:
            self._add(segment)

    def _add(self, segment: Segment) -> None:
        extents, streams = segment.extents, segment.streams()
        times = segment.footer["committed_at"] or [None, None]
        with self._asked() as connection:
            run = connection.execute
            run("BEGIN")
            try:
                run(
                    "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)",
                    [segment.number, segment.fingerprint, segment.first_offset, segment.end_offset, *times],
                )
                connection.register("new_extents", extents)
                connection.register("new_streams", streams)
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
                connection.unregister("new_extents")
                connection.unregister("new_streams")

    def extents(self, stream: int, first: int, end: int) -> list[tuple[int, int, int, int]]:
        """(segment, block, start, rows) of the extents of a stream that may hold offsets in [first, end), in order."""
        if self._connection is None:
            return []
        with self._asked() as connection:
            return connection.execute(
                "SELECT segment, block, start, rows FROM extents WHERE stream = ? AND last_offset >= ? "
                "AND first_offset < ? ORDER BY first_offset",
                [stream, first, end],
            ).fetchall()

    def named(self, names: Sequence[str]) -> list[Stream]:
        """The sealed streams with any of these names."""
        if self._connection is None:
            return []
        wanted = pa.table({"name": pa.array(names, pa.string())})
        with self._asked() as connection:
            connection.register("wanted", wanted)
            rows = connection.execute(
                "SELECT id, name, incarnation, token FROM streams SEMI JOIN wanted USING (name) ORDER BY id"
            ).fetchall()
            connection.unregister("wanted")
        return [Stream(*row) for row in rows]

    def with_ids(self, ids: Sequence[int]) -> list[Stream]:
        """The sealed streams with these ids."""
        if self._connection is None:
            return []
        with self._asked() as connection:
            rows = connection.execute(
                "SELECT id, name, incarnation, token FROM streams WHERE id IN (SELECT unnest(?::BIGINT[]))", [list(ids)]
            ).fetchall()
        return [Stream(*row) for row in rows]

    def of_source(self, source: str | None) -> list[Stream]:
        """The sealed streams of a source, or all but the system's."""
        if self._connection is None:
            return []
        where, values = ("source = ?", [source]) if source else ("split_part(name, '/', 2) <> ?", [SYSTEM])
        with self._asked() as connection:
            rows = connection.execute(
                f"SELECT id, name, incarnation, token FROM streams WHERE {where} ORDER BY id", values
            ).fetchall()
        return [Stream(*row) for row in rows]

    def close(self) -> None:
        """Write it out and let the file go."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
