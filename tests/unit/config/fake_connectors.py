"""Two connectors that exist only for these tests, so that the configuration is tried without any real one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kadds.api.connector import (
    Capture,
    Connector,
    Event,
    KeyKind,
    Mode,
    Promise,
    SinkAbilities,
    SinkSide,
    SourceAbilities,
    SourceSide,
    cells,
)
from kadds.api.settings import Secret, SecretUrl, Settings
from kadds.plugins import Installed


class Retries(Settings):
    """A group inside the settings."""

    attempts: int = Field(default=3, ge=1, description="tries")
    token: Secret | None = None


class PullSettings(Settings):
    """A source of these tests."""

    url: SecretUrl = Field(description="where it is")
    password: Secret | None = Field(default=None, description="beside the URL")
    fetch_rows: int = Field(default=100, ge=1, description="rows at a time")
    retries: Retries = Retries()
    level: str = "low"

    @model_validator(mode="after")
    def _quotes_what_it_should_not(self) -> PullSettings:
        if self.level == "loud":
            secret = self.password.reveal() if self.password else ""
            raise ValueError(f"cannot be loud with {self.url.reveal()} and {secret}")
        return self


class PullTable(Settings):
    """Settings of one table."""

    column: str
    overlap: int = Field(default=0, ge=0)
    labels: Mapping[str, str] = {}
    token: Secret | None = None

    @model_validator(mode="after")
    def _no_negative_label(self) -> PullTable:
        if "never" in self.labels and self.overlap:
            raise ValueError("has a label `never` beside an overlap")
        return self


class PutSettings(Settings):
    """A sink of these tests."""

    path: Path = Field(description="a file")
    key: Secret | None = None
    label: str | None = None


def _never(*_: Any) -> Any:
    raise AssertionError("loading a configuration opens nothing")


PULL = Connector(
    name="pull",
    summary="a source to try things on",
    source=SourceSide(
        settings=PullSettings,
        abilities=SourceAbilities(Capture.POLL, frozenset({Event.CREATE, Event.UPDATE})),
        open=_never,
        table_settings=PullTable,
    ),
)
STREAM = Connector(
    name="stream",
    summary="a source with before images and without settings per table",
    source=SourceSide(
        settings=PullSettings,
        abilities=SourceAbilities(Capture.STREAM, frozenset({Event.CREATE, Event.UPDATE}), before_images=True),
        open=_never,
    ),
)
PUT = Connector(
    name="put",
    summary="a sink to try things on",
    sink=SinkSide(
        settings=PutSettings,
        abilities=SinkAbilities(
            Promise.EXACTLY_ONCE, cells(Event, Mode.MERGE, KeyKind) | cells(Event, Mode.APPEND, KeyKind)
        ),
        open=_never,
    ),
)

INSTALLED = {one.name: Installed(one.name, one, "kadds-fake", "1.0") for one in (PULL, STREAM, PUT)}
