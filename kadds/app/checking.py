"""`kadds validate` online: connects and says what would be lost, slow or refused, before anything moves.

Nothing is changed anywhere: sources are discovered and checked, contracts are bound to the tables that are there, and
sinks are asked about the targets that would come of it. What the file gets wrong is told apart from what a server
refuses, because a person mends them in different places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from kadds import plugins
from kadds.api.connector import Finding, Level, SinkAbilities, SourceAbilities, Target
from kadds.api.errors import ConfigurationError, KaddsError, RetryableError
from kadds.api.schema import Table
from kadds.app.assembly import contract, mask_key, open_sink, open_source
from kadds.config import Loaded, Place, SinkEntry, SubscriptionEntry
from kadds.config import names as naming
from kadds.engine.abilities import check_target
from kadds.engine.contract import BoundContract
from kadds.log.stream import Stream, stream_name


@dataclass(frozen=True)
class Found:
    """A finding with its subject and, where the file says it, its place. `in_file`: the file is to be changed."""

    level: Level
    subject: str
    where: str
    message: str
    hint: str | None = None
    place: Place | None = None
    in_file: bool = False

    def to_json(self) -> dict[str, Any]:
        """As `kadds validate --json` prints it."""
        return {
            "level": self.level.value,
            "subject": self.subject,
            "where": self.where,
            "place": self.place and str(self.place),
            "message": self.message,
            "hint": self.hint,
            "fault_of": "file" if self.in_file else "server",
        }


def check_online(loaded: Loaded, registered: Callable[[str], SinkEntry]) -> Iterator[Found]:
    """Everything that is found, source by source and then subscription by subscription.

    `registered` gives the entry of a sink that a subscription uses and the file does not have.
    """
    checking = _Checking(loaded, registered)
    for name in loaded.configuration.sources:
        yield from checking.source(name)
    for name, entry in loaded.configuration.subscriptions.items():
        yield from checking.subscription(name, entry)
    used = {entry.sink for entry in loaded.configuration.subscriptions.values()}
    for name in loaded.configuration.sinks.keys() - used:
        yield from checking.sink(name, (), f"sink {naming.short(name)}", ("sinks", name))


class _Checking:
    def __init__(self, loaded: Loaded, registered: Callable[[str], SinkEntry]) -> None:
        self._loaded = loaded
        self._registered = registered
        self._tables: dict[str, Sequence[Table]] = {}

    def source(self, name: str) -> Iterator[Found]:
        """Connect, discover, check; the tables are kept for the subscriptions."""
        entry = self._loaded.configuration.sources[name]
        subject, path = f"source {naming.short(name)}", ("sources", name)
        try:
            with closing(open_source(entry, self._loaded.installed)) as source:
                tables = source.discover(entry.tables.matches)
                self._tables[name] = tables
                yield from self._missing(name, tables, subject)
                yield from self._table_settings(name, tables, subject)
                yield from self._findings(source.check(tables), subject, path)
        except KaddsError as error:
            yield self._failed(error, subject, path)

    def _missing(self, name: str, tables: Sequence[Table], subject: str) -> Iterator[Found]:
        patterns = self._loaded.configuration.sources[name].tables
        there = {table.qualified_name for table in tables}
        for pattern in patterns.entries:
            if pattern.excludes or any(pattern.matches(table) for table in there):
                continue
            level = Level.ERROR if pattern.exact else Level.WARNING
            message = "there is no such table, or this user may not see it" if pattern.exact else "matches no table"
            hint = "check the name and the user's privileges"
            yield Found(level, subject, pattern.pattern, message, hint, pattern.place)

    def _table_settings(self, name: str, tables: Sequence[Table], subject: str) -> Iterator[Found]:
        patterns = self._loaded.configuration.sources[name].tables
        for table in tables:
            try:
                patterns.settings(table.qualified_name)
            except ConfigurationError as error:
                yield self._failed(error, subject, ("sources", name, "tables"))

    def subscription(self, name: str, entry: SubscriptionEntry) -> Iterator[Found]:
        """Bind each contract to its table, then ask the sink about the targets."""
        subject, path = f"subscription {naming.short(name)}", ("subscriptions", name)
        try:
            sink = self._loaded.configuration.sinks.get(entry.sink) or self._registered(entry.sink)
            side = plugins.installed(sink.connector, self._loaded.installed).connector.sink
            captured = self._loaded.configuration.sources[entry.source]
            source = plugins.installed(captured.connector, self._loaded.installed).connector.source
        except KaddsError as error:
            yield self._failed(error, subject, path)
            return
        assert side is not None  # noqa: S101 - the file has been checked
        assert source is not None  # noqa: S101
        targets = []
        for table in self._tables.get(entry.source, ()):
            if entry.tables.matches(table.qualified_name):
                try:
                    targets.append(self._target(entry, table, source.abilities, side.abilities))
                except KaddsError as error:
                    yield self._failed(error, subject, self._pattern_path(path, entry, table), table.qualified_name)
        yield from self._doubled(targets, subject, path)
        yield from self.sink(entry.sink, targets, subject, path)

    def _target(self, entry: SubscriptionEntry, table: Table, source: SourceAbilities, sink: SinkAbilities) -> Target:
        found = contract(entry.tables.settings(table.qualified_name))
        bound = BoundContract(
            found,
            Stream(0, stream_name(entry.source, table)),
            table,
            entry.mode,
            mask_key=mask_key(self._loaded.configuration, entry.tenant),
            before_images=source.before_images,
        )
        check_target(source, sink, bound.target)
        return bound.target

    def _doubled(self, targets: Sequence[Target], subject: str, path: tuple[str, ...]) -> Iterator[Found]:
        first: dict[str, str] = {}
        for target in targets:
            other = first.setdefault(target.name, target.stream)
            if other != target.stream:
                message = f"{target.stream} and {other} would both go to {target.name}"
                yield self._of_file(subject, path, target.name, message, "give one of them another `target`")

    def _pattern_path(self, path: tuple[str, ...], entry: SubscriptionEntry, table: Table) -> tuple[str, ...]:
        patterns = entry.tables.entries_of(table.qualified_name)
        return (*path, "tables", patterns[-1].written) if patterns else path

    def sink(self, name: str, targets: Sequence[Target], subject: str, path: tuple[str, ...]) -> Iterator[Found]:
        """Open the sink and ask it about the targets."""
        try:
            entry = self._loaded.configuration.sinks.get(name) or self._registered(name)
            with closing(open_sink(entry, self._loaded.installed)) as sink:
                yield from self._findings(sink.check(targets), subject, path)
        except KaddsError as error:
            yield self._failed(error, subject, path, f"sink {naming.short(name)}")

    # ------------------------------------------------------------------------------------------- wording

    def _findings(self, findings: Iterable[Finding], subject: str, path: tuple[str, ...]) -> Iterator[Found]:
        place = self._loaded.place_of(path)
        for one in findings:
            yield Found(one.level, subject, one.where, one.message, one.hint, place)

    def _failed(self, error: KaddsError, subject: str, path: tuple[str, ...], where: str | None = None) -> Found:
        in_file = isinstance(error, ConfigurationError)
        shown = error.where or where or subject
        # What is only held by its owner the engine would wait for.
        waits = isinstance(error, RetryableError) and error.waiting_for is not None
        level, place = Level.WARNING if waits else Level.ERROR, self._loaded.place_of(path)
        return Found(level, subject, shown, error.message, error.hint, place, in_file=in_file)

    def _of_file(self, subject: str, path: tuple[str, ...], where: str, message: str, hint: str) -> Found:
        return Found(Level.ERROR, subject, where, message, hint, self._loaded.place_of(path), in_file=True)


def exit_code(found: Iterable[Found]) -> int:
    """2 where the file is at fault, 1 where a server refuses, else 0."""
    errors = [one for one in found if one.level is Level.ERROR]
    if any(one.in_file for one in errors):
        return 2
    return 1 if errors else 0
