"""A streaming source over a database that is a file, so that a test and a source in another process share it.

It is the fake of `kadds.testing` with its commits written down. `behaviour` makes it do what real ones do at their
worst.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import structlog
from pydantic import Field

from kadds.api.change import ChangeBatch, Op, Transactions
from kadds.api.connector import Connector, Finding, Inlet, Level, SourceSide
from kadds.api.errors import LockedError, RefusedError, RetryableError
from kadds.api.position import Position
from kadds.api.schema import Column, Table
from kadds.api.settings import Secret, SecretUrl, Settings
from kadds.testing.fake_source import FakeChange, FakeDatabase, FakeStreamSource, fake_stream_connector

FLOOD_PIECE_BYTES = 1 << 20
FLOOD_TABLE = Table("public", "flood", (Column("id", pa.int64()), Column("label", pa.string())), ("id",))


class _Refreshing(threading.Condition):
    """Whoever looks at the database sees what is in the file."""

    def __init__(self, refresh: Callable[[], None]) -> None:
        super().__init__(threading.RLock())
        self._refresh = refresh

    def __enter__(self) -> bool:
        entered = super().__enter__()
        self._refresh()
        return entered


class FiledDatabase(FakeDatabase):
    """The fake database, kept in a folder; one process commits, any read."""

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "journal"
        self._acknowledged = folder / "acknowledged"
        self._down = folder / "down"
        self._read_bytes = 0
        super().__init__(changed=_Refreshing(self._refresh))

    @property  # type: ignore[override]
    def acknowledged(self) -> int:
        """As the source wrote it."""
        return int(self._acknowledged.read_text()) if self._acknowledged.exists() else 0

    @acknowledged.setter
    def acknowledged(self, number: int) -> None:
        if number:
            replacement = self._acknowledged.with_suffix(".new")
            replacement.write_text(str(number))
            replacement.replace(self._acknowledged)

    @property  # type: ignore[override]
    def reachable(self) -> bool:
        """Whether it answers."""
        return not self._down.exists()

    @reachable.setter
    def reachable(self, reachable: bool) -> None:
        if not reachable:
            self._down.touch()

    def create(self, name: str, columns: Sequence[Column], key: Sequence[str] = ("id",)) -> str:
        """As the fake."""
        table = super().create(name, columns, key)
        self._write({"table": self.tables[table].to_json()})
        return table

    def commit(self, *changes: FakeChange) -> None:
        """As the fake."""
        super().commit(*changes)
        self._write({"commit": [dataclasses.astuple(change) for change in self.commits[-1]]})

    def _write(self, line: dict[str, Any]) -> None:
        with self._journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._read_bytes = self._journal.stat().st_size

    def _refresh(self) -> None:
        if not self._journal.exists():
            return
        with self._journal.open("rb") as file:
            file.seek(self._read_bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            plain = json.loads(line)
            if "table" in plain:
                table = Table.from_json(plain["table"])
                self.tables[table.qualified_name] = table
            else:
                changes = (FakeChange(t, Op(op), before, after) for t, op, before, after in plain["commit"])
                self.commits.append(tuple(changes))


class FiledSettings(Settings):
    """Where the database is, and what the source does."""

    folder: Path
    behaviour: str = ""
    url: SecretUrl | None = None
    password: Secret | None = None
    labels: dict[str, tuple[int, ...]] = Field(default_factory=dict)


class FiledTable(Settings):
    """Settings of one table."""

    token: Secret | None = None


class _OwnRefusedError(RefusedError):
    """An error of this connector's."""


def digest(secret: Secret | None) -> str:
    """What shows that a secret has arrived, and not the secret."""
    return hashlib.sha256(secret.reveal().encode()).hexdigest() if secret else ""


class FiledSource(FakeStreamSource):
    """See the module."""

    def __init__(self, settings: FiledSettings, settings_of: Callable[[str], Any]) -> None:
        super().__init__(FiledDatabase(settings.folder))
        self._settings = settings
        self._settings_of = settings_of

    def check(self, tables: Sequence[Table]) -> Iterable[Finding]:
        """Shows the settings, or raises what it was told to."""
        match self._settings.behaviour:
            case "own error":
                raise _OwnRefusedError("no entry", where="the door", hint="knock")
            case "locked":
                raise LockedError("held", where="the file")
            case "waits":
                raise RetryableError("not yet", retry_after_seconds=7.5, waiting_for="the owner of the file")
            case "defect":
                raise ZeroDivisionError("a fault of the code")
        structlog.get_logger("filed").warning("checked", tables=len(tables), where=Path("somewhere"))
        logging.getLogger("driver").warning("slow")
        return [
            Finding(Level.NOTE, "url", digest(self._settings.url), str(self._settings.url)),
            Finding(Level.NOTE, "password", digest(self._settings.password), str(self._settings.labels)),
            *(Finding(Level.NOTE, t.qualified_name, digest(self._settings_of(t.qualified_name).token)) for t in tables),
        ]

    def head(self) -> Position:
        """Behind the last commit."""
        if self._settings.behaviour == "dies":
            sys.stderr.write("the driver has lost its mind\n")
            os._exit(9)
        if self._settings.behaviour == "crashes":
            signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
        return super().head()

    def stream(self, tables: Sequence[Table], inlet: Inlet) -> None:
        """As the fake, or without measure."""
        if self._settings.behaviour != "floods":
            super().stream(tables, inlet)
            return
        producer = inlet.producer("stream")
        producer.resume()
        values = pa.record_batch([pa.array([1]), pa.array(["x" * FLOOD_PIECE_BYTES])], ["id", "label"])
        number = 0
        while not inlet.stopping.is_set():
            number += 1
            batch = ChangeBatch.of(FLOOD_TABLE, Op.CREATE, values)
            producer.append(Transactions.one(number.to_bytes(8, "big"), [batch]), b"")
            (self._settings.folder / "flooded.new").write_text(str(number))
            (self._settings.folder / "flooded.new").replace(self._settings.folder / "flooded")

    def remove(self, *, drop_slot: bool) -> Sequence[str]:
        """What a source has made in the system."""
        return ["slot"] if drop_slot else []


_fake = fake_stream_connector(FakeDatabase()).source
assert _fake is not None
connector = Connector(
    "filed",
    "a database in a file, for tests",
    SourceSide(FiledSettings, _fake.abilities, FiledSource, FiledTable),
)
