"""What the engine is told: plain descriptions with opened objects in them, made by whoever reads a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kadds.api.connector import Mode, Sink, SinkAbilities, Source, SourceAbilities
from kadds.engine.contract import TableContract
from kadds.engine.schema_change import SchemaPolicy


def everything(_: str) -> bool:
    """Matches every table."""
    return True


def no_contract(_: str) -> TableContract:
    """The contract that lets everything through."""
    return TableContract()


def usual_policy(_: str) -> SchemaPolicy:
    """The defaults of `on_schema_change`."""
    return SchemaPolicy()


@dataclass(frozen=True)
class SourceSpec:
    """A source to capture. `name` is `tenant/name`.

    `wanted` says for a table's qualified name whether it is captured. A polling source is asked for each table every
    `interval_seconds`, or, where that is None, only by `Engine.run_source_now` (a schedule calls it). At most `workers`
    tables are polled at once. New tables and changed columns are looked for every `rediscover_seconds`, and before
    each scheduled run. `named` are tables that somebody asked for one by one: one that is not there is a failed table,
    where one that only a pattern could have meant is nobody's concern. A scheduled run in which something has been
    retrying for `give_up_seconds` ends as failed, so that the next one begins anew; without a schedule nothing ever
    gives up. A heartbeat is written every `heartbeat_seconds`, none where that is None.
    """

    name: str
    source: Source
    abilities: SourceAbilities
    wanted: Callable[[str], bool] = everything
    named: frozenset[str] = frozenset()
    interval_seconds: float | None = 10.0
    workers: int = 4
    rediscover_seconds: float = 60.0
    give_up_seconds: float = 300.0
    heartbeat_seconds: float | None = None

    @property
    def tenant(self) -> str:
        """The tenant that owns it."""
        return self.name.split("/", 1)[0]


@dataclass(frozen=True)
class SinkSpec:
    """An opened sink under the name that subscriptions use."""

    name: str
    sink: Sink
    abilities: SinkAbilities


@dataclass(frozen=True)
class SubscriptionSpec:
    """What carries streams of one source to one sink. All names are `tenant/name`.

    `wanted`, `contract_of` and `policy_of` (what to do about changes of columns) are asked with a table's qualified
    name, also for streams that appear while it runs.
    `mask_key` is the tenant's; without it a contract with `hash` is refused. `batch_rows` bounds what one delivery
    carries; a single transaction larger than that still goes through whole. A `scheduled` subscription delivers only
    when `Engine.run_subscription_now` is called, up to what the log held then.
    """

    name: str
    source: str
    sink: str
    mode: Mode
    wanted: Callable[[str], bool] = everything
    contract_of: Callable[[str], TableContract] = no_contract
    policy_of: Callable[[str], SchemaPolicy] = usual_policy
    mask_key: bytes | None = None
    batch_rows: int = 65_536
    scheduled: bool = False

    @property
    def tenant(self) -> str:
        """The tenant that owns it: its sink's."""
        return self.name.split("/", 1)[0]
