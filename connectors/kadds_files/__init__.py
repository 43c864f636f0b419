"""Files as a sink: the history of each table as Parquet or JSON lines, complete by a manifest, each change once."""

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
from kadds_files.settings import FilesSettings

if TYPE_CHECKING:
    from kadds.api.connector import Sink

#: Each file has its own columns, so that a column may come and go; one that changes its type would break readers.
ABILITIES = SinkAbilities(
    promise=Promise.PLANNED,
    cells=cells(Event, Mode.APPEND, KeyKind),
    schema_changes=frozenset({(SchemaChange.ADD, Mode.APPEND), (SchemaChange.DROP, Mode.APPEND)}),
)


def _open(settings: FilesSettings) -> Sink:
    from kadds_files.sink import FilesSink

    return FilesSink(settings, ABILITIES)


connector = Connector(
    name="files",
    summary="Parquet or JSON lines in a folder, with a manifest of what is complete",
    sink=SinkSide(settings=FilesSettings, abilities=ABILITIES, open=_open),
)
