"""PostgreSQL: its write-ahead log as a source, its tables as a sink."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kadds.api.connector import (
    Capture,
    Connector,
    Event,
    KeyKind,
    Mode,
    Promise,
    SchemaChange,
    SinkAbilities,
    SinkSide,
    SourceAbilities,
    SourceSide,
    cells,
)
from kadds_postgres.settings import PostgresSinkSettings, PostgresSourceSettings

if TYPE_CHECKING:
    from kadds.api.connector import Sink, Source

WITH_KEY = (KeyKind.SINGLE, KeyKind.COMPOSITE)

#: Before images are whole only where a table has REPLICA IDENTITY FULL, so they are not declared.
SOURCE_ABILITIES = SourceAbilities(
    capture=Capture.STREAM,
    events=frozenset(Event),
    transactions=True,
    schema_changes=frozenset(SchemaChange),
)

#: `transactional` costs nothing more: a call's deliveries are one transaction in every mode.
SINK_ABILITIES = SinkAbilities(
    promise=Promise.EXACTLY_ONCE,
    cells=cells(Event, Mode.MERGE, WITH_KEY)
    | cells(Event, Mode.TRANSACTIONAL, WITH_KEY)
    | cells(Event, Mode.APPEND, KeyKind),
    schema_changes=frozenset(
        (change, mode)
        for change in (SchemaChange.ADD, SchemaChange.DROP, SchemaChange.WIDEN)
        for mode in (Mode.MERGE, Mode.TRANSACTIONAL, Mode.APPEND)
    ),
)


def _open_source(settings: PostgresSourceSettings, settings_of: Callable[[str], Any]) -> Source:
    from kadds_postgres.source import PostgresSource

    return PostgresSource(settings)


def _open_sink(settings: PostgresSinkSettings) -> Sink:
    from kadds_postgres.sink import PostgresSink

    return PostgresSink(settings, SINK_ABILITIES)


connector = Connector(
    name="postgres",
    summary="PostgreSQL: its write-ahead log as a source, its tables as a sink",
    source=SourceSide(settings=PostgresSourceSettings, abilities=SOURCE_ABILITIES, open=_open_source),
    sink=SinkSide(settings=PostgresSinkSettings, abilities=SINK_ABILITIES, open=_open_sink),
    extra="postgres",
)
