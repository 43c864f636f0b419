"""The settings of a sink of files, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from kadds.api.settings import Settings


class FilesSettings(Settings):
    """Which folder, and in which form."""

    path: Path = Field(description="the folder; made when it is missing")
    format: Literal["parquet", "jsonl"] = Field(default="parquet", description="Parquet, or JSON lines")
    compression: Literal["zstd", "gzip", "snappy", "none"] | None = Field(
        default=None, description="when not set: zstd for Parquet, none for JSON lines"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.format == "jsonl" and self.compression == "snappy":
            raise ValueError("JSON lines are compressed with zstd or gzip, or not at all")
        return self
