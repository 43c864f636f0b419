"""The configuration file as types. A setting that stands here is executed; what is only planned is in `planned.py`.

Everything is frozen. Names of sources, sinks and subscriptions are full (`tenant/name`); paths are absolute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, InstanceOf, SerializeAsAny, field_validator, model_validator

from kadds.api.connector import Mode
from kadds.api.settings import Secret, Settings
from kadds.config.cron import cron_fields
from kadds.config.names import tenant_of
from kadds.config.patterns import TablePatterns
from kadds.config.units import Size
from kadds.config.where import WhereError, where_columns

MASK_KEY_CHARACTERS_MIN = 16


class LogSettings(Settings):
    """Where the log is, and how it keeps its disk."""

    path: Path = Field(default=Path("data/log"), description="Folder of the log, relative to this file.")
    free_space_floor_bytes: Size = Field(
        default=64 << 20, ge=0, description="Intake stops with a named state while the disk has less room than this."
    )
    seal_after_seconds: float = Field(
        default=3600.0, gt=0, description="A journal file is sealed into a segment at the latest after this time."
    )


class MetricsSettings(Settings):
    """The HTTP endpoint for Prometheus and probes."""

    listen: str = Field(description="Address and port of /metrics, /livez and /readyz, such as 127.0.0.1:9187.")

    @field_validator("listen")
    @classmethod
    def _has_a_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
            raise ValueError("must be an address and a port such as 127.0.0.1:9187 or [::1]:9187")
        return value

    @property
    def address(self) -> tuple[str, int]:
        """Host without brackets, and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class TenantSettings(Settings):
    """What belongs to a tenant."""

    mask_key: Secret | None = Field(
        default=None, description="Key of `mask: {column: hash}` (HMAC-SHA-256), at least 16 characters."
    )

    @field_validator("mask_key")
    @classmethod
    def _is_long_enough(cls, value: Secret | None) -> Secret | None:
        if value is not None and len(value.reveal()) < MASK_KEY_CHARACTERS_MIN:
            raise ValueError(f"must have at least {MASK_KEY_CHARACTERS_MIN} characters, or hashes can be guessed")
        return value


class Schedule(Settings):
    """When something runs by itself: by `cron` or every `interval_seconds`."""

    cron: str | None = Field(default=None, description="Five fields: minute, hour, day of month, month, day of week.")
    interval_seconds: float | None = Field(default=None, gt=0, description="Time between the starts of two runs.")
    timezone: str = Field(default="UTC", description="Time zone in which `cron` is meant, such as Europe/Berlin.")

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str | None) -> str | None:
        if value is not None:
            cron_fields(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value != "UTC":
            try:
                ZoneInfo(value)
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError("is not a time zone known here, such as Europe/Berlin") from None
        return value

    @model_validator(mode="after")
    def _one_of_two(self) -> Schedule:
        if (self.cron is None) == (self.interval_seconds is None):
            raise ValueError("needs either `cron` or `interval_seconds`")
        return self

    def cron_fields(self) -> dict[str, str]:
        """Arguments of APScheduler's CronTrigger, which counts weekdays otherwise than cron; {} for an interval."""
        return cron_fields(self.cron) if self.cron else {}


class SourceOptions(Settings):
    """What Kadds itself knows of a source, beside the settings of its connector."""

    connector: str = Field(description="Name of the connector; `kadds connectors` lists them.")
    schedule: Schedule | None = Field(default=None, description="When the tables are polled, instead of all the time.")
    poll_interval_seconds: float = Field(
        default=5.0, gt=0, description="Pause between two polls of a table that had nothing new; without `schedule`."
    )
    heartbeat_seconds: float | None = Field(
        default=None, gt=0, description="How often a heartbeat is written, to measure the whole way; not set: never."
    )
    isolation: Literal["thread", "process"] = Field(
        default="thread",
        description="Where a source that streams runs: in a thread of this process, or in a process of its own.",
    )


class SourceEntry(SourceOptions):
    """A captured system: Kadds' own settings, and in `settings` those of its connector."""

    tables: InstanceOf[TablePatterns[Any]]
    settings: SerializeAsAny[InstanceOf[Settings]] = Field(repr=False)


class SinkOptions(Settings):
    """What Kadds itself knows of a sink, beside the settings of its connector."""

    connector: str = Field(description="Name of the connector; `kadds connectors` lists them.")


class SinkEntry(SinkOptions):
    """A place that takes deliveries: its connector, and in `settings` those of the connector."""

    settings: SerializeAsAny[InstanceOf[Settings]] = Field(repr=False)


SchemaChangeName = Literal["add", "drop", "widen", "retype", "rename"]
ReactionName = Literal["apply", "hold", "ignore"]
OnSchemaChange = Mapping[SchemaChangeName, ReactionName]


class SubscriptionTable(Settings):
    """The contract of one table under one subscription."""

    target: str | None = Field(
        default=None, min_length=1, description="Name in the sink; without it the name in the source."
    )
    columns: tuple[str, ...] = Field(
        default=(), description='Columns that are delivered, or "!name" for those that are not; empty means all.'
    )
    where: str | None = Field(
        default=None, description="A boolean DuckDB expression over the columns; NULL is not a match."
    )
    mask: Mapping[str, Literal["hash", "redact"]] = Field(
        default={}, description="Column → `hash` (HMAC-SHA-256 with the tenant's `mask_key`) or `redact`."
    )
    on_schema_change: OnSchemaChange = Field(
        default={}, description="As the subscription's `on_schema_change`, before which it goes."
    )

    @field_validator("columns")
    @classmethod
    def _hold_together(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [name.removeprefix("!") for name in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"names {', '.join(twice)} twice")
        if "" in names:
            raise ValueError("holds an empty name")
        return value

    @field_validator("where")
    @classmethod
    def _is_a_filter(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                where_columns(value)
            except WhereError as fault:
                raise ValueError(f"{fault.message}\n{fault.hint}" if fault.hint else fault.message) from None
        return value

    @model_validator(mode="after")
    def _masks_are_selected(self) -> SubscriptionTable:
        if lost := sorted(name for name in self.mask if not self.selects(name)):
            raise ValueError(f"masks {', '.join(lost)}, which `columns` leaves out")
        return self

    def selects(self, column: str) -> bool:
        """Whether the column is delivered."""
        if f"!{column}" in self.columns:
            return False
        included = [name for name in self.columns if not name.startswith("!")]
        return not included or column in included

    @property
    def named_columns(self) -> frozenset[str]:
        """Every column that the contract names by `columns` and `mask`, to be compared with the table's."""
        return frozenset({name.removeprefix("!") for name in self.columns} | set(self.mask))


class SubscriptionOptions(Settings):
    """What one sink gets from one source, and how; without the tables."""

    source: str = Field(description="Name of the source.")
    sink: str = Field(description="Name of the sink; the subscription belongs to its tenant.")
    mode: Mode = Field(description="merge, append or transactional, as far as the sink can.")
    schedule: Schedule | None = Field(
        default=None, description="When it delivers, instead of as soon as there is something."
    )
    batch_rows: int = Field(
        default=65_536, ge=1, le=10_000_000, description="At most so many changes go to the sink at once."
    )
    on_schema_change: OnSchemaChange = Field(
        default={},
        description="What to do when columns are changed: add, drop, widen, retype, rename → apply, hold or ignore; "
        "not given: `apply` for add, drop and widen, `hold` for retype and rename.",
    )
    paused: bool = Field(default=False, description="Whether it waits; its cursor stays.")


class SubscriptionEntry(SubscriptionOptions):
    """What one sink gets from one source, and how. `source` and `sink` are full names."""

    tables: InstanceOf[TablePatterns[SubscriptionTable]]

    @property
    def tenant(self) -> str:
        """The tenant to which it belongs."""
        return tenant_of(self.sink)


class MemoryOptions(Settings):
    """The budget."""

    memory_limit: Size | None = Field(
        default=None,
        ge=64 << 20,
        description="All memory that is used; a quarter of the machine, at least 512 MB, if not given.",
    )


class Configuration(MemoryOptions):
    """A whole configuration, put together from all its files."""

    log: LogSettings = Field(default=LogSettings(), description="The log.")
    metrics: MetricsSettings | None = Field(default=None, description="Prometheus and probes.")
    tenants: Mapping[str, TenantSettings] = Field(default={}, description="Tenants by name.")
    sources: Mapping[str, SourceEntry] = Field(default={}, description="Sources by `tenant/name`.")
    sinks: Mapping[str, SinkEntry] = Field(default={}, description="Sinks by `tenant/name`.")
    subscriptions: Mapping[str, SubscriptionEntry] = Field(default={}, description="Subscriptions by `tenant/name`.")

    def tenant(self, name: str) -> TenantSettings:
        """The settings of a tenant, also of one that the file does not name."""
        return self.tenants.get(name, TenantSettings())
