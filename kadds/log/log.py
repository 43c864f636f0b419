"""The log: open it, append to it through producers, read it, follow it. INTERFACE; the body follows."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from kadds.api.connector import Producer
from kadds.api.position import Cursor
from kadds.log.slice import Slice
from kadds.log.stream import Stream


class ControlState:
    """Durable key-value state, kept as system streams `<tenant>/_kadds/<kind>`; values are JSON."""

    def put(self, tenant: str, kind: str, key: str, value: Any) -> None:
        """Keep `value`; returns when it is on disk. None forgets the key."""
        raise NotImplementedError

    def get(self, tenant: str, kind: str, key: str) -> Any | None:
        """The latest value, None if there is none."""
        raise NotImplementedError

    def items(self, tenant: str, kind: str) -> dict[str, Any]:
        """Every key of a kind and its value."""
        raise NotImplementedError

    def tenants(self, kind: str) -> list[str]:
        """The tenants that have anything of `kind`."""
        raise NotImplementedError


class Log:
    """An opened log folder; thread-safe; one process at a time (LockedError)."""

    path: Path
    uuid: uuid.UUID
    epoch: int
    state: ControlState

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        memory_bytes: int = 256 << 20,
        free_space_floor_bytes: int = 64 << 20,
        seal_after_seconds: float = 3600.0,
        journal_file_bytes: int = 256 << 20,
        narrate: Callable[[str], None] | None = None,
    ) -> Self:
        """Open for reading and writing, make the folder if there is none, recover in narrated passes."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def producer(self, source: str, name: str) -> Producer:
        """Claim producer `name` of `source` (`tenant/name`); an older holder gets FencedError from then on."""
        raise NotImplementedError

    def begin(self) -> Cursor:
        """The cursor before the first change."""
        raise NotImplementedError

    def end(self) -> Cursor:
        """The cursor behind the last durable change."""
        raise NotImplementedError

    def check(self, cursor: Cursor) -> None:
        """GapError if `cursor` was not given by this log, or by a history of it that this one does not have."""
        raise NotImplementedError

    def streams(self, source: str | None = None) -> Sequence[Stream]:
        """The streams, of one source (`tenant/name`) or all, latest incarnations last; system streams are left out."""
        raise NotImplementedError

    def read(
        self,
        after: Cursor,
        *,
        streams: Collection[int] | None = None,
        source: str | None = None,
        until: Cursor | None = None,
        max_rows: int = 65_536,
        max_bytes: int = 64 << 20,
    ) -> Iterator[Slice]:
        """Slices of what lies behind `after`, in offset order, up to `until` or the end as of now.

        `streams` are ids; `source` means all streams of a source; neither means everything. A slice that
        would be empty is left out, but the last slice's cursor always reaches the place that was read up to, so a
        reader of quiet streams moves on. max_rows is exact within a stream's transaction-free reading only: see
        Slice.whole."""
        raise NotImplementedError

    def touched(self, after: int) -> tuple[int, frozenset[int]]:
        """(end offset, ids of the streams that have anything in [after, end)); for the dispatcher."""
        raise NotImplementedError

    def wait(self, after: int, timeout_seconds: float | None = None) -> int:
        """Wait until the end offset is above `after` (or the time is up, or the log closes); the end offset."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is queued, fsync, stop the threads, give the lock back."""
        raise NotImplementedError
