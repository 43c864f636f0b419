"""The settings of a DuckDB sink, declared once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kadds.api.settings import Settings


class DuckdbSettings(Settings):
    """Which file, and what it may take of the machine."""

    path: Path = Field(description="the database file; made, with its folder, when it is missing")
    default_schema: str = Field(
        default="main", min_length=1, description="where a target without a schema in its name goes"
    )
    idle_close_seconds: float = Field(
        default=1.0, ge=0, description="how long after a delivery the file stays open before its owner can read it"
    )
    memory_limit_bytes: int | None = Field(
        default=None,
        ge=128 << 20,
        description="what DuckDB may take, not set: its share of `memory_limit`; beyond it, it works beside the file",
    )
    threads: int | None = Field(default=None, ge=1, description="threads of DuckDB; all cores when not set")
