"""The sink: claims, cursors and deliveries, each call of `deliver` one transaction of the target's database.

Invariant: the transaction begins by locking the epoch (`claim`), its cursors are the last that it writes, and behind
its statements it compares each table with what it was prepared for (`existing`). A session has one connection of its
own; once that is gone, the session asks to be claimed again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psycopg

from kadds.api.connector import (
    Delivery,
    Finding,
    Level,
    Mode,
    Plan,
    Session,
    SinkAbilities,
    Target,
    missing_abilities,
)
from kadds.api.errors import ConfigurationError, KaddsError, RetryableError, SchemaMismatchError
from kadds_postgres.claim import LOCK, Claim, StateTables
from kadds_postgres.connection import Connection, connect
from kadds_postgres.errors import translated
from kadds_postgres.existing import FINGERPRINT, find
from kadds_postgres.names import table_name
from kadds_postgres.pipeline import Answer, Pipeline
from kadds_postgres.settings import PostgresSinkSettings
from kadds_postgres.sink_types import note
from kadds_postgres.steps import Progress, apply
from kadds_postgres.table import Layout, cautions, differences, evolution, prepare, unnameable
from kadds_postgres.transaction import Check, Transaction


class PostgresSink:
    """An opened sink; nothing is connected before the first claim or check."""

    def __init__(self, settings: PostgresSinkSettings, abilities: SinkAbilities) -> None:
        self.settings = settings
        self.state = StateTables(settings.state_schema)
        self._abilities = abilities
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()

    def refuse_what_is_missing(self, target: Target) -> None:
        """ConfigurationError for a target to which nothing can be delivered."""
        for finding in missing_abilities(self._abilities, target, ()):
            raise ConfigurationError(finding.message, where=finding.where, hint=finding.hint)

    def check(self, targets: Sequence[Target]) -> Iterable[Finding]:
        """What would be refused, and what could change values on their way; nothing is made."""
        findings = [finding for target in targets for finding in missing_abilities(self._abilities, target, ())]
        for target in targets:
            where = f"{target.stream} -> {target.name}"
            notes = [note(column) for column in target.table.columns]
            findings += [Finding(Level.NOTE, where, text) for text in notes if text]
        try:
            with translated(self.settings.url), connect(self.settings) as connection:
                for target in targets:
                    findings += self._check(connection, target)
        except KaddsError as error:
            level = Level.WARNING if isinstance(error, RetryableError) else Level.ERROR
            findings.append(Finding(level, error.where or str(self.settings.url), error.message, error.hint))
        return findings

    def _check(self, connection: Connection, target: Target) -> list[Finding]:
        where = f"{target.stream} -> {target.name}"
        try:
            name = table_name(target, self.settings.default_schema, self.settings.state_schema)
            problems, warnings = unnameable(target), []
            if (existing := find(connection, name)) is not None:
                problems += differences(target, existing, evolution(target, existing))
                warnings = cautions(target, existing)
        except KaddsError as error:
            return [Finding(Level.ERROR, where, error.message, error.hint)]
        hint = "change the table, or give the target another name with `target:`"
        return [Finding(Level.ERROR, where, f"table {name}: {problem}", hint) for problem in problems] + [
            Finding(Level.WARNING, where, f"table {name}: {warning}") for warning in warnings
        ]

    def claim(self, subscription: str) -> Session:
        """Become the only writer of `subscription`; the raised epoch is committed when this returns."""
        connection = connect(self.settings, application_name=f"kadds {subscription}")
        try:
            with translated(self.settings.url):
                claim = self.state.claim(connection, subscription, self.settings.claim_timeout_seconds)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._connections.add(connection)
        return PostgresSession(self, connection, claim)

    def leave(self, connection: Connection) -> None:
        """Close the connection of a session."""
        with self._lock:
            self._connections.discard(connection)
        with suppress(psycopg.Error, OSError):
            connection.close()

    def close(self) -> None:
        """Close every connection; a transaction under way is rolled back by the server."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            self.leave(connection)


class _OutdatedError(Exception):
    """A table is not what it was when it was prepared."""


class PostgresSession:
    """A claimed subscription; fenced by the next claim."""

    def __init__(self, sink: PostgresSink, connection: Connection, claim: Claim) -> None:
        self._sink = sink
        self._settings = sink.settings
        self._connection = connection
        self._pipeline = Pipeline(connection)
        self._claim = claim
        self._layouts: dict[str, tuple[Target, Layout, Progress]] = {}
        self._oids: dict[str, int] = {}  # of the tables that this session has found or made

    @property
    def cursors(self) -> Mapping[str, str]:
        """The cursors found at the claim."""
        return self._claim.cursors

    def prepare(self, target: Target) -> None:
        """Make the table or match it."""
        self._sink.refuse_what_is_missing(target)
        with self._transaction() as transaction:
            transaction.at(f"{self._settings.url}: {target.name}")
            transaction.send(LOCK)
            transaction.settle()
            layout = prepare(self._connection, target, self._settings.default_schema, self._settings.state_schema)
            if self._oids.get(target.name, layout.existing.oid) != layout.existing.oid:
                raise SchemaMismatchError(
                    f"table {layout.name} was dropped or made anew, and with it the rows that were delivered",
                    hint="`kadds resync` loads the table again",
                )
            progress = Progress()
            if target.mode is not Mode.APPEND:
                rows = transaction.fetch(f"SELECT NOT EXISTS (SELECT 1 FROM {layout.name.sql})")
                progress.only_new = rows == [("t",)]
            transaction.commit()
        self._oids[target.name] = layout.existing.oid
        self._layouts[target.name] = (target, layout, progress)

    def plan(self, target: Target, plan: Plan) -> Mapping[str, str]:
        """Nothing: rows and cursors are one transaction."""
        return {}

    def deliver(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str], plan: Plan | None = None) -> None:
        """Apply everything and keep the cursors in one transaction; once again where a table has changed meanwhile."""
        try:
            self._deliver(deliveries, cursors)
        except _OutdatedError:
            self._layouts.clear()
            try:
                self._deliver(deliveries, cursors)
            except _OutdatedError as error:
                raise RetryableError(str(error), where=str(self._settings.url)) from error

    def release(self) -> None:
        """Close the connection; the claim stays until somebody claims anew."""
        self._sink.leave(self._connection)

    def _deliver(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str]) -> None:
        prepared: list[tuple[Delivery, Layout, Progress]] = []
        progresses: dict[str, Progress] = {}
        for delivery in deliveries:  # two versions of a table have a layout each, and one progress
            name = delivery.target.name
            if name not in self._layouts or self._layouts[name][0] != delivery.target:
                self.prepare(delivery.target)
            target, layout, progress = self._layouts[name]
            progress = progresses.setdefault(name, progress)
            self._layouts[name] = (target, layout, progress)
            prepared.append((delivery, layout, progress))
        with self._transaction() as transaction:
            for delivery, layout, progress in prepared:
                transaction.at(f"{self._settings.url}: {delivery.target.name}")
                for step in delivery.steps:
                    apply(transaction, layout, step, progress)
            for name in {delivery.target.name for delivery in deliveries}:
                layout = self._layouts[name][1]
                transaction.send(FINGERPRINT, [layout.name.sql], _unchanged(layout))
            transaction.at(None)
            self._sink.state.keep(transaction, self._claim, cursors)
            transaction.commit()

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        url = self._settings.url
        if self._connection.closed:
            raise RetryableError("the connection of this session is gone", where=str(url), hint="claim it again")
        transaction = Transaction(self._connection, self._pipeline, url)
        try:
            transaction.begin()
            self._sink.state.hold(transaction, self._claim)
            yield transaction
        except BaseException as error:
            self._layouts.clear()  # what was made on the way is not there
            ours = transaction.undone(error)
            if ours is not None:
                raise ours from error
            if isinstance(error, KaddsError):
                error.where = error.where or transaction.where or str(url)
            raise


def _unchanged(layout: Layout) -> Check:
    def check(answer: Answer) -> None:
        if answer.rows != ((layout.existing.fingerprint,),):
            raise _OutdatedError(f"table {layout.name} changes all the time")

    return check
