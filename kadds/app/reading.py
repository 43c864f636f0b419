"""What the log holds, for those who look into it: streams, changes from a cursor on, and the changes that come.

Rows travel as Arrow columns. A part of kind `changes` carries rows of one stream under one schema version; a part of
kind `cursor` ends a group of parts, and only within a group do the streams' offsets interleave.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kadds.api.errors import ConfigurationError, RefusedError
from kadds.api.position import Cursor
from kadds.log.log import Log
from kadds.log.reader import pick
from kadds.log.slice import LoggedControl, Slice, StreamChanges
from kadds.log.socket import Part
from kadds.log.stream import Stream, qualified_name

if TYPE_CHECKING:
    from kadds.app.app import App

ROWS_AT_ONCE = 4096
LOOK_SECONDS = 0.25  # how often a tail without news finds out whether it is still being watched

#: The columns of a part's rows; `values` is a struct of the table's own columns.
FACTS = (
    ("offset", pa.int64()),
    ("op", pa.uint8()),
    ("before", pa.bool_()),
    ("committed_at", pa.timestamp("us", "UTC")),
    ("xid", pa.string()),
    ("position", pa.string()),
)


def streams(app: App, *, source: str | None = None) -> list[dict[str, Any]]:
    """The streams by id; of one source (`tenant/name`) or all."""
    return [_stream(stream) for stream in app.log.streams(source)]


def _stream(stream: Stream) -> dict[str, Any]:
    return {
        "id": stream.id,
        "stream": stream.label,
        "source": stream.source,
        "table": qualified_name(stream.name),
        "incarnation": stream.incarnation,
    }


def chosen_streams(log: Log, wanted: Sequence[str]) -> list[int] | None:
    """The ids that names mean: a stream's label or name, `source/table`, or a bare `schema.table`; None means all.

    Raises ConfigurationError for a name that means nothing, or streams of several sources.
    """
    return [number for name in wanted for number in _chosen(log, name)] or None


def _chosen(log: Log, wanted: str) -> list[int]:
    found = log.streams()
    ways: Sequence[Any] = (
        lambda stream: stream.label == wanted,
        lambda stream: stream.name == wanted,
        lambda stream: f"{stream.source}/{qualified_name(stream.name)}" == wanted,
        lambda stream: f"{stream.source}/{qualified_name(stream.name)}" == f"default/{wanted}",
        lambda stream: qualified_name(stream.name) == wanted,
    )
    for matches in ways:
        chosen = [stream for stream in found if matches(stream)]
        if len({stream.name for stream in chosen}) > 1:
            names = ", ".join(stream.name for stream in chosen)
            raise ConfigurationError(f"{wanted!r} means several streams: {names}", hint="write the whole name")
        if chosen:
            return [stream.id for stream in chosen]
    raise ConfigurationError(f"the log has no stream {wanted!r}", hint="`kadds log streams` lists them")


def read(
    app: App, *, stream: Sequence[str] = (), after: str | None = None, limit: int | None = None
) -> Iterator[Part | None]:
    """Changes behind `after` (the beginning) up to the end as of now, at most `limit` changes and control records."""
    ids = chosen_streams(app.log, stream)
    start = Cursor.parse(after) if after else app.log.begin()
    app.log.check(start)
    return _read(app.log, start, ids, limit)


def _read(log: Log, start: Cursor, ids: list[int] | None, limit: int | None) -> Iterator[Part | None]:
    reached, left = start, limit
    while left is None or left > 0:
        rows_max = ROWS_AT_ONCE if left is None else min(left, ROWS_AT_ONCE)
        found = next(iter(log.read(reached, streams=ids, max_rows=rows_max)), None)
        if found is None:
            break
        found = _shown(found)
        if left is not None and found.rows + len(found.controls) > left:
            found = _shortened(log, reached, found, ids, left)
        if left is not None:
            left -= found.rows + len(found.controls)
        reached = found.cursor
        yield from _parts(found)
    yield Part({"kind": "cursor", "cursor": str(reached), "end": True})


def _shortened(log: Log, start: Cursor, found: Slice, ids: list[int] | None, limit: int) -> Slice:
    """The first `limit` changes and control records of a slice: the same read again, up to where they end."""
    offsets = [changes.offsets.to_numpy() for changes in found.changes]
    offsets.append(np.array([control.offset for control in found.controls], np.int64))
    end = int(np.sort(np.concatenate(offsets))[limit - 1]) + 1
    return _shown(next(iter(log.read(start, streams=ids, until=replace(found.cursor, offsets={0: end})))))


def _shown(found: Slice) -> Slice:
    """Without control state, which Kadds keeps for itself in the same log."""
    blocks = []
    for logged in found.blocks:
        ids = [number for number in logged.block.streams.tolist() if not found.stream_of(number).is_system]
        blocks.append(pick(logged, np.unique(np.array(ids, np.int64)), None))
    return replace(found, blocks=tuple(block for block in blocks if block is not None))


def tail(app: App, *, stream: Sequence[str] = (), after: str | None = None) -> Iterator[Part | None]:
    """Changes behind `after` (now), and then those that come, for as long as somebody asks."""
    if app.engine is None:
        raise RefusedError(
            "nothing runs on this log, so nothing new can come",
            where=str(app.log.path),
            hint="start `kadds run`; `kadds log read` shows what there is",
        )
    start = Cursor.parse(after) if after else app.log.end()
    app.log.check(start)
    return _tail(app, start, list(stream))


def _tail(app: App, start: Cursor, names: list[str]) -> Iterator[Part | None]:
    log, reached = app.log, start
    ids = chosen_streams(log, names)
    yield Part({"kind": "cursor", "cursor": str(reached)})
    while not app.closing.is_set():
        for found in log.read(reached, streams=ids, max_rows=ROWS_AT_ONCE):
            reached = found.cursor
            shown = _shown(found)
            if shown.rows or shown.controls:
                yield from _parts(shown)
        yield None
        log.wait(reached.offset(), LOOK_SECONDS)


# -------------------------------------------------------------------------------------------------------------- parts


def _parts(found: Slice) -> Iterator[Part]:
    facts = _facts(found.transactions)
    for changes in found.changes:
        head = {"kind": "changes", "stream": changes.stream.label, "table": changes.table.to_json()}
        yield Part(head, _rows(changes, facts))
    if found.controls:
        yield Part({"kind": "controls", "controls": [_control(control) for control in found.controls]})
    yield Part({"kind": "cursor", "cursor": str(found.cursor)})


def _facts(transactions: pa.RecordBatch) -> Mapping[str, pa.Array]:
    return {
        "committed_at": transactions.column("committed_at"),
        "xid": transactions.column("xid"),
        "position": transactions.column("token"),
    }


def _rows(changes: StreamChanges, facts: Mapping[str, pa.Array]) -> pa.RecordBatch:
    count = len(changes)
    before = changes.before if changes.before is not None else pa.repeat(pa.scalar(False), count)
    arrays = {"offset": changes.offsets, "op": changes.ops, "before": before}
    arrays |= {name: column.take(changes.transactions) for name, column in facts.items()}
    values = changes.values
    arrays["values"] = pa.StructArray.from_arrays(values.columns, fields=list(values.schema))
    if changes.not_given is not None:
        arrays["not_given"] = changes.not_given
    if changes.as_text is not None:
        arrays["as_text"] = changes.as_text
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _control(control: LoggedControl) -> dict[str, Any]:
    return {
        "offset": control.offset,
        "control": str(control.kind),
        "stream": control.stream.label,
        "table": control.table and control.table.to_json(),
        "facts": dict(control.facts),
    }
