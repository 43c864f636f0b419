"""Settings of the polling connector: where the database is, and how each table tells what is new in it.

How often a table is polled is the engine's business and stands beside these in the configuration.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kadds.api.settings import SecretUrl, Settings


class PollingSettings(Settings):
    """The database."""

    url: SecretUrl = Field(
        description="SQLAlchemy URL: sqlite:///path, postgresql://user@host/database, mariadb://user@host/database"
    )
    fetch_rows: int = Field(10_000, ge=1, le=1_000_000, description="most rows held in memory at a time")
    fetch_bytes: int = Field(16 << 20, ge=1, description="about how many bytes of rows are held in memory at a time")
    max_connections: int = Field(4, ge=1, description="most connections at a time, and so most tables read at once")
    connect_timeout_seconds: int = Field(10, ge=1, description="how long to wait for the server to answer")


def _as_text(value: object) -> object:
    """YAML reads the code 1 as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Code = Annotated[str, BeforeValidator(_as_text)]


class ChangeTable(Settings):
    """A table of changes, as triggers or an application keep it: its other columns are the row."""

    table: str = Field(min_length=1, description="its name, schema.table; without schema: that of the table it serves")
    sequence: str = Field(min_length=1, description="its column of numbers that rise from change to change")
    op: str = Field(min_length=1, description="its column that says what happened")
    ops: dict[Code, Literal["c", "u", "d"]] | None = Field(
        None,
        description="what the codes of `op` mean: c (create), u (update) or d (delete); without it I/C/insert/create, "
        "U/update, D/delete in either case",
    )


class PollingTableSettings(Settings):
    """How one table tells what is new: a change table, or a rising number, a time of change, or both."""

    change_table: ChangeTable | None = Field(None, description="read the changes of this table from another table")
    incrementing: str | None = Field(
        None, description="column whose number rises with each new row and never starts again; sees no updates"
    )
    timestamp: str | None = Field(None, description="column with the time of a row's last change; sees no deletes")
    overlap: int = Field(
        1000,
        ge=0,
        description="how far below the highest number (of `incrementing` or the change table's sequence) is read "
        "again, so that a transaction that commits late is not lost",
    )
    overlap_seconds: float = Field(
        60.0, ge=0, description="how far before the latest `timestamp` is read again, for the same reason"
    )
    key: tuple[str, ...] | None = Field(
        None, min_length=1, description="columns that identify a row, instead of the primary key"
    )
    max_overlap_rows: int = Field(
        250_000, ge=1, description="most rows inside the overlap; each is remembered with 16 bytes in every run"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.change_table is None and self.incrementing is None and self.timestamp is None:
            raise ValueError(
                "says not how the table tells what is new: give `change_table`, or `incrementing`, `timestamp` or both"
            )
        if self.change_table is not None and (self.incrementing is not None or self.timestamp is not None):
            raise ValueError("has `change_table` beside `incrementing` or `timestamp`: give one way only")
        return self
