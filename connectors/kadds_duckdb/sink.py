"""The sink: claims, cursors and deliveries in one DuckDB file.

Invariant: each transaction that changes anything first reads the subscription's epoch, and a delivery's cursors are
written in the transaction of its rows. The file has one writer at a time (this process holds its lock, and the file's
own lock keeps other processes out), so a checked epoch holds until the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import duckdb

from kadds.api.connector import (
    Delivery,
    Finding,
    Level,
    Plan,
    Session,
    SinkAbilities,
    Target,
    missing_abilities,
)
from kadds.api.errors import ConfigurationError, FencedError, KaddsError, RetryableError
from kadds_duckdb.errors import translated
from kadds_duckdb.file import DatabaseFile
from kadds_duckdb.names import TableName, folded, table_name
from kadds_duckdb.settings import DuckdbSettings
from kadds_duckdb.steps import apply
from kadds_duckdb.table import Layout, addable, differences, find, prepare, unnameable
from kadds_duckdb.types import stored_as

_STATE = """
CREATE TABLE IF NOT EXISTS main._kadds_subscriptions (
    subscription VARCHAR NOT NULL, epoch BIGINT NOT NULL, claimed_at TIMESTAMPTZ NOT NULL);
CREATE TABLE IF NOT EXISTS main._kadds_cursors (
    subscription VARCHAR NOT NULL, stream VARCHAR NOT NULL, cursor VARCHAR NOT NULL);
"""


class DuckdbSink:
    """An opened sink. Its file is opened when the first claim, check or delivery needs it."""

    def __init__(self, settings: DuckdbSettings, abilities: SinkAbilities, file: DatabaseFile | None = None) -> None:
        self._settings = settings
        self._abilities = abilities
        self._file = file or DatabaseFile.shared(settings)
        self._open = True

    @property
    def file(self) -> DatabaseFile:
        """The file that this sink shares with all others of its path."""
        return self._file

    @property
    def default_schema(self) -> str:
        """Where a target without a schema in its name goes."""
        return self._settings.default_schema

    def refuse_what_is_missing(self, target: Target) -> None:
        """ConfigurationError for a target to which nothing can be delivered."""
        for finding in missing_abilities(self._abilities, target, ()):
            raise ConfigurationError(finding.message, where=finding.where, hint=finding.hint)

    def check(self, targets: Sequence[Target]) -> Iterable[Finding]:
        """What would be refused; a file that is not there yet is not made."""
        findings = [finding for target in targets for finding in missing_abilities(self._abilities, target, ())]
        findings += self._collisions(targets)
        for target in targets:
            findings += [
                Finding(Level.NOTE, f"{target.stream} -> {target.name}", f"column {column.name} is kept as {note}")
                for column in target.table.columns
                if (note := stored_as(column.type).note)
            ]
        return findings + self._mismatches(targets)

    def _collisions(self, targets: Sequence[Target]) -> list[Finding]:
        found: list[Finding] = []
        seen: dict[tuple[str, str], TableName] = {}
        for target in targets:
            where = f"{target.stream} -> {target.name}"
            try:
                name = table_name(target, self._settings.default_schema)
                problems = unnameable(target)
            except KaddsError as error:
                found.append(Finding(Level.ERROR, where, error.message, error.hint))
                continue
            found += [Finding(Level.ERROR, where, problem, "rename the column in the contract") for problem in problems]
            other = seen.setdefault((folded(name.schema), folded(name.table)), name)
            if other != name:
                hint = "give one of them another name with `target:`"
                found.append(Finding(Level.ERROR, where, f"DuckDB does not tell {name} from {other}", hint))
        return found

    def _mismatches(self, targets: Sequence[Target]) -> list[Finding]:
        if not self._file.path.exists():
            return []
        found = []
        try:
            with translated(self._file.path), self._file.connection() as connection:
                for target in targets:
                    found += self._mismatch(connection, target)
        except RetryableError as error:
            found.append(Finding(Level.WARNING, str(self._file.path), error.message, error.hint))
        except KaddsError as error:
            found.append(Finding(Level.ERROR, str(self._file.path), error.message, error.hint))
        return found

    def _mismatch(self, connection: duckdb.DuckDBPyConnection, target: Target) -> list[Finding]:
        where = f"{target.stream} -> {target.name}"
        try:
            name = table_name(target, self._settings.default_schema)
            existing = find(connection, name)
            problems = [] if existing is None else differences(target, existing)
            if existing and addable(connection, target, name, existing):
                problems = [problem for problem in problems if not problem.endswith(" is missing")]
        except KaddsError as error:
            return [Finding(Level.ERROR, where, error.message, error.hint)]
        hint = "change the table, or give the target another name with `target:`"
        return [Finding(Level.ERROR, where, f"table {name}: {problem}", hint) for problem in problems]

    def claim(self, subscription: str) -> Session:
        """Become the only writer of `subscription`; the raised epoch is committed when this returns."""
        with self._file.transaction() as connection:
            connection.execute(_STATE)
            rows = connection.execute(
                "SELECT max(epoch) FROM main._kadds_subscriptions WHERE subscription = ?", [subscription]
            ).fetchall()
            epoch = 1 + (rows[0][0] or 0)
            connection.execute("DELETE FROM main._kadds_subscriptions WHERE subscription = ?", [subscription])
            connection.execute("INSERT INTO main._kadds_subscriptions VALUES (?, ?, now())", [subscription, epoch])
            cursors = connection.execute(
                "SELECT stream, cursor FROM main._kadds_cursors WHERE subscription = ?", [subscription]
            ).fetchall()
        return DuckdbSession(self, subscription, epoch, dict(cursors))

    def close(self) -> None:
        """Give the file back."""
        if self._open:
            self._open = False
            self._file.leave()


class DuckdbSession:
    """A claimed subscription; fenced by the next claim."""

    def __init__(self, sink: DuckdbSink, subscription: str, epoch: int, cursors: Mapping[str, str]) -> None:
        self._sink = sink
        self._file = sink.file
        self._subscription = subscription
        self._epoch = epoch
        self._cursors = cursors
        self._layouts: dict[str, tuple[int, Target, Layout]] = {}

    @property
    def cursors(self) -> Mapping[str, str]:
        """The cursors found at the claim."""
        return self._cursors

    def prepare(self, target: Target) -> None:
        """Make the table or match it."""
        with self._transaction() as connection, translated(self._file.path, target.name):
            self._prepare(connection, target)

    def plan(self, target: Target, plan: Plan) -> Mapping[str, str]:
        """Nothing: rows and cursors are one transaction."""
        return {}

    def deliver(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str], plan: Plan | None = None) -> None:
        """Apply everything and keep the cursors in one transaction."""
        with self._transaction() as connection:
            for delivery in deliveries:
                with translated(self._file.path, delivery.target.name):
                    layout = self._layout(connection, delivery.target)
                    for step in delivery.steps:
                        apply(connection, layout, step)
            self._keep(connection, cursors)

    def release(self) -> None:
        """Nothing is held between deliveries but the file, which closes by itself."""

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        try:
            with self._file.transaction() as connection:
                self._hold(connection)
                yield connection
        except BaseException:
            self._layouts.clear()  # what was made on the way is not there
            raise

    def _hold(self, connection: duckdb.DuckDBPyConnection) -> None:
        rows = []
        with suppress(duckdb.CatalogException):  # the owner has put another file in its place
            rows = connection.execute(
                "SELECT epoch FROM main._kadds_subscriptions WHERE subscription = ?", [self._subscription]
            ).fetchall()
        if rows != [(self._epoch,)]:
            raise FencedError(
                f"subscription {self._subscription} was claimed again "
                f"(epoch {rows[0][0] if rows else 'missing'}, this session has {self._epoch})",
                where=str(self._file.path),
                hint="another Kadds delivers it now, or the file was replaced; this one stops",
            )

    def _layout(self, connection: duckdb.DuckDBPyConnection, target: Target) -> Layout:
        """As prepared, unless the file was closed since: then its owner may have changed the table."""
        opening, prepared, layout = self._layouts.get(target.name, (0, None, None))
        if layout is not None and opening == self._file.openings and prepared == target:
            return layout
        return self._prepare(connection, target)

    def _prepare(self, connection: duckdb.DuckDBPyConnection, target: Target) -> Layout:
        self._sink.refuse_what_is_missing(target)
        layout = prepare(connection, target, self._sink.default_schema)
        self._layouts[target.name] = (self._file.openings, target, layout)
        return layout

    def _keep(self, connection: duckdb.DuckDBPyConnection, cursors: Mapping[str, str]) -> None:
        if not cursors:
            return
        streams, values = list(cursors.keys()), list(cursors.values())
        connection.execute(
            "DELETE FROM main._kadds_cursors WHERE subscription = ? AND stream IN (SELECT unnest(?::VARCHAR[]))",
            [self._subscription, streams],
        )
        connection.execute(
            "INSERT INTO main._kadds_cursors SELECT ?, unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
            [self._subscription, streams, values],
        )
