"""The dictionary of streams: names to ids, made when a table is first seen, looked up in the index when it was sealed.

A layout becomes true with the first durable entry that uses it, a stream with the first durable commit; until then
every entry that uses it defines it."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kadds.api.errors import CorruptLogError
from kadds.api.schema import Table, TableSet
from kadds.log.layout import Layout, Layouts
from kadds.log.stream import Stream, stream_name

_KNOWN_MAX = 100_000


@dataclass(frozen=True, eq=False)
class Resolved:
    """The streams and layouts of a table set, by the number of the table in it."""

    ids: npt.NDArray[np.int64]
    layout_numbers: npt.NDArray[np.uint32]
    layouts: tuple[Layout, ...]


class SealedStreams:
    """Where streams are found that no journal entry names any more: the index. This one is empty."""

    def named(self, names: Sequence[str]) -> list[Stream]:
        """The streams with any of these names."""
        return []

    def with_ids(self, ids: Sequence[int]) -> list[Stream]:
        """The streams with these ids."""
        return []

    def of_source(self, source: str | None) -> list[Stream]:
        """The streams of a source, or all."""
        return []


class Dictionary:
    """Streams and layouts of one log; thread-safe."""

    def __init__(self) -> None:
        self.layouts = Layouts()
        self.sealed = SealedStreams()
        self.next_id = 1
        self._lock = threading.RLock()
        self._by_id: dict[int, Stream] = {}
        self._by_name: dict[str, list[Stream]] = {}
        self._complete: set[str] = set()  # names whose sealed incarnations are all in `_by_name`
        self._undefined_streams: set[int] = set()
        self._undefined_layouts: set[int] = set()
        self._known: dict[int, tuple[Any, str, Resolved]] = {}

    # ------------------------------------------------------------------ writing

    def resolve(self, source: str, tables: TableSet) -> Resolved:
        """Ids and layouts of the tables of `source`; makes those that do not exist."""
        with self._lock:
            cached_by = tables.tables[0] if len(tables.tables) == 1 else tables
            known = self._known.get(id(cached_by))
            if known is not None and known[0] is cached_by and known[1] == source:
                return known[2]
            resolved = self._resolve(source, tables.tables)
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[id(cached_by)] = (cached_by, source, resolved)
            return resolved

    def _resolve(self, source: str, tables: Sequence[Table]) -> Resolved:
        names = [stream_name(source, table) for table in tables]
        self._load(names)
        ids = [self._stream(name, table.incarnation).id for name, table in zip(names, tables, strict=True)]
        alike = {(id(table.columns), table.key): table for table in tables}
        by_columns = {columns: self._layout(table) for columns, table in alike.items()}
        layouts = [by_columns[id(table.columns), table.key] for table in tables]
        numbers = np.fromiter((layout.number for layout in layouts), np.uint32, len(layouts))
        return Resolved(np.array(ids, np.int64), numbers, tuple({layout.number: layout for layout in layouts}.values()))

    def source_stream(self, source: str) -> Stream:
        """The stream of the control records that speak of a source as a whole."""
        with self._lock:
            name = stream_name(source, None)
            self._load([name])
            return self._stream(name, "")

    def _stream(self, name: str, token: str) -> Stream:
        incarnations = self._by_name.setdefault(name, [])
        for stream in reversed(incarnations):
            if stream.token == token:
                return stream
        stream = Stream(self.next_id, name, len(incarnations) + 1, token)
        self.next_id += 1
        incarnations.append(stream)
        self._by_id[stream.id] = stream
        self._undefined_streams.add(stream.id)
        return stream

    def _layout(self, table: Table) -> Layout:
        layout, new = self.layouts.of(table)
        if new:
            self._undefined_layouts.add(layout.number)
        return layout

    def definitions(self, streams: Iterable[npt.NDArray[np.int64]], layouts: Collection[int]) -> dict[str, Any]:
        """What an entry that uses these must define: `layouts` and `streams` of its head; {} if nothing is new."""
        with self._lock:
            found: dict[str, Any] = {}
            if new_layouts := self._undefined_layouts.intersection(layouts):
                found["layouts"] = self.layouts.definitions(new_layouts)
            if self._undefined_streams:
                used: set[int] = set()
                for ids in streams:
                    used |= self._undefined_streams.intersection(ids.tolist())
                if used:
                    found["streams"] = [
                        [s.id, s.name, s.incarnation, s.token] for s in (self._by_id[i] for i in sorted(used))
                    ]
            return found

    def defined(self, head: dict[str, Any], *, streams: bool) -> None:
        """The definitions of this head are on disk; `streams`: those of its streams, too, for good."""
        with self._lock:
            self._undefined_layouts.difference_update(number for number, _ in head.get("layouts", ()))
            if streams:
                self._undefined_streams.difference_update(plain[0] for plain in head.get("streams", ()))

    # ------------------------------------------------------------------ reading

    def define(self, head: dict[str, Any]) -> None:
        """Take the definitions of a head, or a footer, that was read from disk."""
        with self._lock:
            for number, text in head.get("layouts", ()):
                self.layouts.define(number, text)
            for plain in head.get("streams", ()):
                self._keep(Stream(*plain))

    def _keep(self, stream: Stream) -> None:
        known = self._by_id.get(stream.id)
        if known is not None:
            if known != stream:
                raise CorruptLogError(f"stream {stream.id} is defined as {known.name} and as {stream.name}")
            return
        self._by_id[stream.id] = stream
        self.next_id = max(self.next_id, stream.id + 1)
        incarnations = self._by_name.setdefault(stream.name, [])
        incarnations.append(stream)
        incarnations.sort(key=lambda s: s.incarnation)

    def _load(self, names: Sequence[str]) -> None:
        """Know every incarnation of these names; that one is known says nothing of the others."""
        unknown = [name for name in names if name not in self._complete]
        if unknown:
            for stream in self.sealed.named(unknown):
                self._keep(stream)
            self._complete.update(unknown)

    def stream(self, stream_id: int) -> Stream:
        """The stream of that id; CorruptLogError if nothing has defined it."""
        known = self._by_id.get(stream_id)
        if known is None:
            with self._lock:
                for stream in self.sealed.with_ids([stream_id]):
                    self._keep(stream)
                known = self._by_id.get(stream_id)
            if known is None:
                raise CorruptLogError(f"stream {stream_id} is used and defined nowhere")
        return known

    def named(self, name: str) -> list[Stream]:
        """All incarnations of a name that are on disk, the latest last."""
        with self._lock:
            self._load([name])
            return [s for s in self._by_name.get(name, ()) if s.id not in self._undefined_streams]

    def of_source(self, source: str | None) -> list[Stream]:
        """Every stream of a source, or of all; system streams only where their own source is asked for."""
        with self._lock:
            for stream in self.sealed.of_source(source):
                self._keep(stream)
            prefix = None if source is None else f"{source}/"
            return [
                stream
                for stream in self._by_id.values()
                if stream.id not in self._undefined_streams
                and (
                    not stream.is_system
                    if prefix is None
                    else stream.name.startswith(prefix) and "/" not in stream.name[len(prefix) :]
                )
            ]
