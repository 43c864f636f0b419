"""Epochs and cursors: who may write, and how far it has written; both in tables of the target's own database.

Invariant: whoever delivers holds a shared lock on the epoch's row from the start of its transaction to the end. A newer
claim changes that row, so it waits for a transaction that is under way, even for one whose client is gone; and a
transaction that begins later sees the new epoch. That is what fences.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from kadds.api.errors import FencedError, RetryableError
from kadds_postgres.connection import Connection
from kadds_postgres.names import quoted
from kadds_postgres.pipeline import Answer, TextParameter
from kadds_postgres.transaction import Transaction

_OURS = 0x6B61646473  # "kadds": the advisory lock under which tables are made and changed
LOCK = f"SELECT pg_catalog.pg_advisory_xact_lock({_OURS})"


@dataclass(frozen=True)
class Claim:
    """A claimed subscription."""

    subscription: str
    epoch: int
    cursors: Mapping[str, str]


class StateTables:
    """The tables `subscriptions` and `cursors` in `schema`."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._subscriptions = quoted(schema, "subscriptions")
        self._cursors = quoted(schema, "cursors")

    def claim(self, connection: Connection, subscription: str, wait_seconds: float) -> Claim:
        """Raise the epoch, commit that, and read the cursors; RetryableError names who is in the way."""
        self._make_missing(connection)
        raised = (
            f"INSERT INTO {self._subscriptions} AS s VALUES ($1, 1, pg_catalog.now()) ON CONFLICT (subscription) "
            "DO UPDATE SET epoch = s.epoch + 1, claimed_at = excluded.claimed_at RETURNING epoch"
        )
        kept = f"SELECT stream, cursor FROM {self._cursors} WHERE subscription = $1"
        cursor = psycopg.RawCursor(connection)
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {int(wait_seconds * 1000)}".encode())
                ((epoch,),) = cursor.execute(raised.encode(), [subscription]).fetchall()
        except psycopg.errors.LockNotAvailable as error:
            raise self._in_the_way(connection, subscription, wait_seconds) from error
        return Claim(subscription, epoch, dict(cursor.execute(kept.encode(), [subscription]).fetchall()))

    def hold(self, transaction: Transaction, claim: Claim) -> None:
        """Keep newer claims waiting until the transaction ends; FencedError where there was one."""

        def check(answer: Answer) -> None:
            if answer.rows != ((str(claim.epoch),),):
                raise FencedError(
                    f"subscription {claim.subscription} was claimed again "
                    f"(epoch {answer.rows[0][0] if answer.rows else 'missing'}, this session has {claim.epoch})",
                    hint="another Kadds delivers it now, or the tables of Kadds were replaced; this one stops",
                )

        transaction.send(
            f"SELECT epoch FROM {self._subscriptions} WHERE subscription = $1 FOR SHARE", [claim.subscription], check
        )

    def keep(self, transaction: Transaction, claim: Claim, cursors: Mapping[str, str]) -> None:
        """Write the cursors, as the last of the transaction."""
        if cursors:
            transaction.send(
                f"INSERT INTO {self._cursors} SELECT $1, s.stream, s.cursor "
                "FROM unnest($2::pg_catalog._text, $3::pg_catalog._text) AS s(stream, cursor) "
                "ON CONFLICT (subscription, stream) DO UPDATE SET cursor = excluded.cursor",
                [claim.subscription, _text_array(cursors.keys()), _text_array(cursors.values())],
            )

    def _make_missing(self, connection: Connection) -> None:
        names = [self._subscriptions, self._cursors]
        if self._there(connection, names):
            return
        with connection.transaction():
            connection.execute(LOCK.encode())
            if self._there(connection, names):
                return
            connection.execute(
                f"CREATE SCHEMA IF NOT EXISTS {quoted(self._schema)};"
                f"CREATE TABLE IF NOT EXISTS {self._subscriptions} ("
                "subscription text PRIMARY KEY, epoch bigint NOT NULL, claimed_at timestamp with time zone NOT NULL);"
                f"CREATE TABLE IF NOT EXISTS {self._cursors} ("
                "subscription text, stream text, cursor text NOT NULL, PRIMARY KEY (subscription, stream));".encode()
            )

    def _there(self, connection: Connection, names: Sequence[str]) -> bool:
        row = connection.execute(
            "SELECT pg_catalog.to_regclass(%s) IS NOT NULL AND pg_catalog.to_regclass(%s) IS NOT NULL", names
        ).fetchone()
        return row == (True,)

    def _in_the_way(self, connection: Connection, subscription: str, wait_seconds: float) -> RetryableError:
        rows: list[tuple[Any, ...]] = []
        with suppress(psycopg.Error):
            rows = connection.execute(
                "SELECT a.pid, coalesce(a.client_addr::text, 'this machine'), a.xact_start "
                "FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a USING (pid) "
                "WHERE l.relation = pg_catalog.to_regclass(%s) AND l.mode = 'RowShareLock' AND l.granted "
                "AND a.pid <> pg_catalog.pg_backend_pid() "
                "AND a.application_name = pg_catalog.current_setting('application_name') ORDER BY a.xact_start",
                [self._subscriptions],
            ).fetchall()
        who = "; ".join(f"backend {pid} from {client}, in its transaction since {since}" for pid, client, since in rows)
        end = f"SELECT pg_terminate_backend({rows[0][0]})" if rows else "pg_terminate_backend"
        return RetryableError(
            f"subscription {subscription} is still being written by an older session after {wait_seconds:g} s"
            + (f": {who}" if who else ""),
            hint=f"it goes on when that transaction ends; if its client is gone for good, {end} ends it",
        )


def _text_array(texts: Iterable[str]) -> TextParameter:
    quoted_texts = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return TextParameter(f"{{{','.join(quoted_texts)}}}".encode())
