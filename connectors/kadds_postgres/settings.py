"""The settings of both sides, declared once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import Field

from kadds.api.settings import SecretUrl, Settings


class Tls(StrEnum):
    """How the server's identity is checked, by libpq's own names; what verifies nothing is not called safe."""

    VERIFY_FULL = "verify-full"
    VERIFY_CA = "verify-ca"
    REQUIRE = "require"
    DISABLE = "disable"


class Snapshot(StrEnum):
    """When the rows that are there already are copied."""

    INITIAL = "initial"  # once, before the stream begins
    NEVER = "never"  # the stream alone, from now on
    ONLY = "only"  # the rows that are there, and no stream
    WHEN_NEEDED = "when_needed"  # as `initial`, and again where changes were lost


class ConnectionSettings(Settings):
    """Which server, and how it is reached."""

    url: SecretUrl = Field(description="postgresql://user@host/database, with libpq's parameters")
    tls: Tls | None = Field(
        default=None,
        description="how the server is verified; not set: the URL's `sslmode`, else `verify-full`, and `disable` on "
        "loopback and sockets",
    )
    tls_root_certificate: Path | None = Field(
        default=None, description="the authority that signed the server's certificate; not set: the system's"
    )
    connect_timeout_seconds: int = Field(default=10, ge=1, description="how long to wait for the server to answer")


class PostgresSourceSettings(ConnectionSettings):
    """What is read, and what is made on the server for it."""

    slot: str | None = Field(
        default=None,
        pattern="^[a-z0-9_]{1,63}$",
        description="the replication slot, made when it is missing; not set: kadds_<database>",
    )
    publication: str | None = Field(
        default=None, min_length=1, description="the publication, made when it is missing; not set: named as the slot"
    )
    publish_via_partition_root: bool = Field(
        default=True, description="a partitioned table is one stream; `false`: each partition is one"
    )
    snapshot: Snapshot = Field(default=Snapshot.INITIAL, description="when the rows that are there already are copied")
    progress_interval_seconds: float = Field(
        default=10.0, gt=0, description="how often the log notes how far it has read where nothing is captured"
    )


class PostgresSinkSettings(ConnectionSettings):
    """Where the tables and Kadds' own cursors go."""

    default_schema: str = Field(
        default="public", min_length=1, description="where a target without a schema in its name goes"
    )
    state_schema: str = Field(
        default="kadds", min_length=1, description="where Kadds keeps epochs and cursors; made when it is missing"
    )
    claim_timeout_seconds: float = Field(
        default=30.0, gt=0, description="how long a claim waits for a transaction of an older session"
    )
