"""Control state: durable keys and values, kept as rows of system streams `<tenant>/_kadds/<kind>`.

Memory holds the latest value of each key; the streams hold every one there was. A put is an append like any other, so
it has the same order, durability and recovery. At each sealing the latest values go into a checkpoint.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from kadds.api.change import ChangeBatch, Op
from kadds.api.connector import Appended
from kadds.api.errors import ConfigurationError
from kadds.api.schema import Column, Table
from kadds.log.block import Block
from kadds.log.stream import SYSTEM, qualified_name

Submit = Callable[[str, ChangeBatch], Future[Appended]]


def state_table(kind: str) -> Table:
    """The table of the system stream of `kind`: key and value, a JSON text."""
    columns = (Column("key", pa.string(), nullable=False), Column("value", pa.string()))
    return Table(None, kind, columns, ("key",))


class ControlState:
    """The state as of the durable end of the log."""

    def __init__(self, submit: Submit | None = None) -> None:
        self._submit = submit  # None: this one only takes what others put
        self._lock = threading.Lock()
        self._values: dict[str, dict[str, dict[str, Any]]] = {}  # tenant → kind → key → value
        self._tables: dict[str, Table] = {}

    def put(self, tenant: str, kind: str, key: str, value: Any) -> None:
        """Keep `value` (JSON); returns when it is on disk. None forgets the key."""
        self.put_soon(tenant, kind, key, value).result()

    def put_soon(self, tenant: str, kind: str, key: str, value: Any) -> Future[Appended]:
        """Like `put`, without waiting for the disk."""
        if self._submit is None:
            raise ConfigurationError("this control state takes no values")
        table = self._tables.setdefault(kind, state_table(kind))
        text = None if value is None else json.dumps(value)
        rows = pa.record_batch([pa.array([key], pa.string()), pa.array([text], pa.string())], schema=table.arrow_schema)
        return self._submit(f"{tenant}/{SYSTEM}", ChangeBatch.of(table, Op.UPDATE if text else Op.DELETE, rows))

    def get(self, tenant: str, kind: str, key: str) -> Any | None:
        """The latest durable value, None if there is none."""
        with self._lock:
            return copy.deepcopy(self._values.get(tenant, {}).get(kind, {}).get(key))

    def items(self, tenant: str, kind: str) -> dict[str, Any]:
        """Every key of a kind and its value."""
        with self._lock:
            return copy.deepcopy(self._values.get(tenant, {}).get(kind, {}))

    def tenants(self, kind: str) -> list[str]:
        """The tenants that have anything of `kind`."""
        with self._lock:
            return sorted(tenant for tenant, kinds in self._values.items() if kinds.get(kind))

    def apply(self, block: Block, name_of: Callable[[int], str]) -> None:
        """Take durable rows of system streams, in order."""
        keys, texts = block.values.column(0).to_pylist(), block.values.column(1).to_pylist()
        starts = block.starts().tolist()
        with self._lock:
            for at, stream in enumerate(block.streams.tolist()):
                name = name_of(stream)
                tenant, kind = name.split("/", 1)[0], qualified_name(name)
                values = self._values.setdefault(tenant, {}).setdefault(kind, {})
                for row in range(starts[at], starts[at + 1]):
                    text = texts[row]
                    if text is None:
                        values.pop(keys[row], None)
                    else:
                        values[keys[row]] = json.loads(text)

    def checkpoint(self) -> dict[str, Any]:
        """All of it, as JSON."""
        with self._lock:
            copy: dict[str, Any] = json.loads(json.dumps(self._values))
            return copy

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Begin with what `checkpoint` gave."""
        with self._lock:
            self._values = json.loads(json.dumps(checkpoint))
