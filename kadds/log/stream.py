"""Streams: the ordered changes of one table, known by an integer id.

A name (`tenant/source/schema.table`, percent-encoded) is an attribute. A table that was dropped and made again is a new
stream of the same name with the next incarnation.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

from kadds.api.schema import Table

SYSTEM = "_kadds"  # streams called <tenant>/_kadds/<kind> hold control state and are matched by no pattern


def stream_name(source: str, table: Table | None) -> str:
    """The name of the stream of `table` in `source` (`tenant/name`); of the source itself where there is no table.

    Dots, slashes and percent signs inside a name are percent-encoded, so that equal text means equal names.
    """
    if table is None:
        return f"{source}/"
    parts = [table.name] if table.schema is None else [table.schema, table.name]
    return f"{source}/{'.'.join(quote(part, safe='').replace('.', '%2E') for part in parts)}"


def qualified_name(name: str) -> str:
    """`schema.table` as the source writes it, out of a stream's name."""
    schema, table = table_names(name)
    return f"{schema}.{table}" if schema else table


def table_names(name: str) -> tuple[str | None, str]:
    """Schema (None where the source has none) and table, out of a stream's name."""
    parts = [unquote(part) for part in name.rsplit("/", 1)[1].split(".")]
    return (None, parts[0]) if len(parts) == 1 else (parts[0], parts[1])


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream: `id` is its number in this log, `name` what people call it."""

    id: int
    name: str
    incarnation: int = 1
    token: str = ""  # what the source gave as the table's incarnation

    @property
    def source(self) -> str:
        """`tenant/source`."""
        return self.name.rsplit("/", 1)[0]

    @property
    def is_system(self) -> bool:
        """Whether it holds control state of Kadds itself."""
        return self.source.endswith(f"/{SYSTEM}")

    @property
    def tenant(self) -> str:
        """The tenant that owns the source."""
        return self.name.split("/", 1)[0]

    @property
    def label(self) -> str:
        """The name, with the incarnation where it is not the first: unique in the log, the key of a sink's cursor."""
        return self.name if self.incarnation == 1 else f"{self.name}@{self.incarnation}"
