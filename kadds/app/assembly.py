"""From configuration to what the engine is told: opened sources and sinks, and plain specifications."""

from __future__ import annotations

from collections.abc import Mapping

from kadds import plugins
from kadds.api.connector import SchemaChange, Sink, Source
from kadds.app.isolation import open_isolated
from kadds.config import Configuration, SinkEntry, SourceEntry, SubscriptionEntry, SubscriptionTable
from kadds.config.names import tenant_of
from kadds.engine.contract import TableContract, column_choice
from kadds.engine.mask import Mask
from kadds.engine.schema_change import Reaction, SchemaPolicy
from kadds.engine.spec import SinkSpec, SourceSpec, SubscriptionSpec
from kadds.plugins import Installed


def open_source(entry: SourceEntry, installed: Mapping[str, Installed]) -> Source:
    """The source, opened, in a process of its own where that is wanted; errors as in `plugins.open_source`."""
    if entry.isolation == "process":
        return open_isolated(entry.connector, entry.settings, entry.tables.settings)
    return plugins.open_source(entry.connector, entry.settings, entry.tables.settings, among=installed)


def open_sink(
    entry: SinkEntry, installed: Mapping[str, Installed] | None = None, *, memory_bytes: int | None = None
) -> Sink:
    """The sink, opened, with `memory_bytes` as its memory where nobody gave it another; as `plugins.open_sink`."""
    settings = entry.settings
    if memory_bytes is not None and getattr(settings, "memory_limit_bytes", 0) is None:
        settings = settings.model_copy(update={"memory_limit_bytes": memory_bytes})
    return plugins.open_sink(entry.connector, settings, among=installed)


def source_spec(name: str, entry: SourceEntry, source: Source, installed: Mapping[str, Installed]) -> SourceSpec:
    """What the engine is told of an opened source."""
    side = plugins.installed(entry.connector, installed).connector.source
    assert side is not None  # noqa: S101 - it was opened
    patterns = entry.tables
    return SourceSpec(
        name,
        source,
        side.abilities,
        wanted=patterns.matches,
        named=frozenset(one.pattern for one in patterns.entries if one.exact and patterns.matches(one.pattern)),
        interval_seconds=None if entry.schedule else entry.poll_interval_seconds,
        heartbeat_seconds=entry.heartbeat_seconds,
    )


def sink_spec(name: str, entry: SinkEntry, sink: Sink) -> SinkSpec:
    """What the engine is told of an opened sink."""
    side = plugins.installed(entry.connector).connector.sink
    assert side is not None  # noqa: S101
    return SinkSpec(name, sink, side.abilities)


def subscription_spec(name: str, entry: SubscriptionEntry, configuration: Configuration) -> SubscriptionSpec:
    """What the engine is told of a subscription."""
    return SubscriptionSpec(
        name,
        entry.source,
        entry.sink,
        entry.mode,
        wanted=entry.tables.matches,
        contract_of=lambda table: contract(entry.tables.settings(table)),
        policy_of=lambda table: schema_policy(entry, entry.tables.settings(table)),
        mask_key=mask_key(configuration, entry.tenant),
        batch_rows=entry.batch_rows,
        scheduled=entry.schedule is not None,
    )


def mask_key(configuration: Configuration, tenant: str) -> bytes | None:
    """The tenant's key of masks; None where it has none."""
    key = configuration.tenant(tenant).mask_key
    return key.reveal().encode() if key is not None else None


def schema_policy(entry: SubscriptionEntry, settings: SubscriptionTable) -> SchemaPolicy:
    """What to do about changes of columns of one table: its own settings, the subscription's, the defaults."""
    given = {**entry.on_schema_change, **settings.on_schema_change}
    return SchemaPolicy.of(
        {SchemaChange(change): Reaction(reaction) for change, reaction in given.items()},
        other_tenant=tenant_of(entry.source) != entry.tenant,
    )


def contract(settings: SubscriptionTable) -> TableContract:
    """The engine's form of one table's contract."""
    include, exclude = column_choice(settings.columns)
    masks = {column: Mask(how) for column, how in settings.mask.items()}
    return TableContract(settings.where, include, exclude, masks, settings.target)
