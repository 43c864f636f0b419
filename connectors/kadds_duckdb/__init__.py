"""DuckDB as a sink: a file that its owner can read between deliveries, each change in it exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kadds.api.connector import (
    Connector,
    Event,
    KeyKind,
    Mode,
    Promise,
    SchemaChange,
    SinkAbilities,
    SinkSide,
    cells,
)
from kadds_duckdb.settings import DuckdbSettings

if TYPE_CHECKING:
    from kadds.api.connector import Sink

WITH_KEY = (KeyKind.SINGLE, KeyKind.COMPOSITE)

#: `transactional` costs nothing more: a call's deliveries are one transaction in every mode.
ABILITIES = SinkAbilities(
    promise=Promise.EXACTLY_ONCE,
    cells=cells(Event, Mode.MERGE, WITH_KEY)
    | cells(Event, Mode.TRANSACTIONAL, WITH_KEY)
    | cells(Event, Mode.APPEND, KeyKind),
    schema_changes=frozenset((SchemaChange.ADD, mode) for mode in (Mode.MERGE, Mode.TRANSACTIONAL, Mode.APPEND)),
)


def _open(settings: DuckdbSettings) -> Sink:
    from kadds_duckdb.sink import DuckdbSink

    return DuckdbSink(settings, ABILITIES)


connector = Connector(
    name="duckdb",
    summary="a DuckDB file, open to its owner between deliveries",
    sink=SinkSide(settings=DuckdbSettings, abilities=ABILITIES, open=_open),
)
