"""The polling connector: any table of any SQLAlchemy database, asked again and again for what is new.

It sees what a table shows: rows by a rising number, rows by a time of change, or a table of changes kept by triggers.
It is a source only. SQLAlchemy and the driver are imported when a source is opened, never for listing or describing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kadds.api.connector import Capture, Connector, Event, Source, SourceAbilities, SourceSide
from kadds.api.errors import ConfigurationError
from kadds_polling.settings import PollingSettings, PollingTableSettings


def _open(settings: PollingSettings, settings_of: Callable[[str], Any]) -> Source:
    try:
        from kadds_polling.source import PollingSource
    except ModuleNotFoundError as error:
        if error.name != "sqlalchemy":
            raise
        raise ConfigurationError("SQLAlchemy is not installed", hint="pip install 'kadds[polling]'") from None
    return PollingSource(settings, settings_of)


connector = Connector(
    name="polling",
    summary="tables of any SQLAlchemy database, by a table of changes, a rising number or a time of change",
    source=SourceSide(
        settings=PollingSettings,
        abilities=SourceAbilities(
            capture=Capture.POLL,
            # Deletes only through a table of changes; `check` says so for each table that has none.
            events=frozenset({Event.CREATE, Event.UPDATE, Event.DELETE, Event.AS_TEXT}),
        ),
        open=_open,
        table_settings=PollingTableSettings,
    ),
    extra="polling",
)
